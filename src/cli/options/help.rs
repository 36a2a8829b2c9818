//! The usage above the table of options in the help, and the examples below it.

pub const USAGE: &str = "ipipou -s -b @DEV --auth-remote-pubkey-b64 KEY [OPTIONS]
       ipipou -c -b @DEV -r HOST:PORT --auth-key-file FILE --tunl-ip IP [OPTIONS]
       ipipou -b @DEV --hosts-file FILE --tunl-ip IP [OPTIONS]
       ipipou --config NAME
       ipipou genkey | pubkey
       ipipou show [--json | --wide] [NAME]
       ipipou check [NAME] [OPTIONS]";

pub const EXAMPLES: &str =
    "  A key pair, on the client: the private key stays in the file, the public one goes to the server
    umask 077; ipipou genkey >client.key
    ipipou pubkey <client.key
  The server, on UDP port 10000 of eth0; inside the tunnel it is 172.28.0.0. The file shared.secret
  holds a secret of your own, the same at both ends
    ipipou -s -n0 -b @eth0 --auth-secret-file shared.secret --auth-remote-pubkey-b64 PUBLIC
  The client; inside the tunnel it is 172.28.0.1
    ipipou -c -n0 -b @wlan0 -r 203.0.113.1:10000 --tunl-ip 172.28.0.1 --keepalive 27 \\
      --auth-secret-file shared.secret --auth-key-file client.key
  The client, and everything it sends goes through a server that has --masquerade
    ipipou -c -n0 -b @auto -r 203.0.113.1:10000 --tunl-ip 172.28.0.1 --keepalive 27 \\
      --auth-secret-file shared.secret --auth-key-file client.key --default-route --dns 9.9.9.9
  A server of many clients, which are in 10.8.0.0/24 inside the tunnel
    ipipou -s -n1 -b @eth0 --learn --tunl-ip 10.8.0.1/24 \\
      --auth-secret-file shared.secret --auth-remote-pubkey-b64 PUBLIC
  One of many hosts that know each other from a table
    ipipou -n2 -b @eth0 --tunl-ip 192.168.100.1/24 --hosts-file /etc/ipipou/hosts.json
  The server from a file, /etc/ipipou/server0.conf: one option per line, no hyphens
    ipipou --config server0
  What the tunnels of this host are doing
    ipipou show";
