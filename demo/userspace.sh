#!/usr/bin/env bash
# What the userspace datapath does, step by step, in network namespaces that are removed at the end:
# two clients behind one NAT, hosts that know each other from a table, a server that learns who its
# clients are, a full tunnel, and a server of many clients who have names. Needs root, /dev/net/tun and ipipou in the PATH: any kernel will
# do. `make demo DATAPATH=tun` sees to it.
#
#     alice 192.168.1.11 ──┐
#                          ├── router ═══════ server 203.0.113.1, 198.51.100.1 ─── web 198.51.100.80
#       bob 192.168.1.12 ──┘  203.0.113.2
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/hub.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh" # it goes to another directory

# What a tunnel may leave behind on a host, as text that two moments agree on.
traces() { # HOST
    ip -n "demo-$1" -br addr | sed 's/@[^ ]*//'
    ip -n "demo-$1" rule
    ip -n "demo-$1" route show table all
    ip netns exec "demo-$1" nft list tables
    ip netns exec "demo-$1" sysctl -a -r '\.(forwarding|rp_filter)$'
    cat "$place/$1/resolv.conf"
}

say "== Five hosts: a server, a home router with two machines behind it, and a web server =="
home_and_server
new_hosts web
cable web eth0 198.51.100.80/24 server eth1
ip -n demo-server addr add 198.51.100.1/24 dev eth1
masquerade 20000-20999
make_keys
declare -A before
for host in server alice bob; do
    before[$host]=$(traces "$host")
done

say "== One: a tunnel each. The process carries the packets, through a TUN interface =="
start server to-alice ipipou -s -v --no-log-time -n0 -b @eth0 --datapath tun \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$alice_public"
start server to-bob ipipou -s -v --no-log-time -n1 -b @eth0 --datapath tun \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$bob_public"
await to-alice 'ready on'
await to-bob 'ready on'
start alice alice ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10000 --datapath tun \
    --tunl-ip 172.28.0.1 --auth-secret-file shared.secret --auth-key-file alice.key
alice_process=${processes[-1]}
start bob bob ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10001 --datapath tun \
    --tunl-ip 172.28.0.3 --auth-secret-file shared.secret --auth-key-file bob.key
await to-alice 'tunnel up'
await to-bob 'tunnel up'
await alice 'ready on'
await bob 'ready on'
ping_from alice 172.28.0.0
ping_from server 172.28.0.3

say "== The router restarts and maps the clients to other ports. A client there has to prove
who he is: on SIGUSR1 here, --keepalive 27 does it by itself =="
masquerade 30000-30999
on router conntrack -F
ping_from alice 172.28.0.0 2 && exit 1
on alice kill -USR1 "$alice_process"
await to-alice 'moved'
ping_from alice 172.28.0.0
on server ipipou show
on server ipipou show ipipou0
stop_all

say "== Two: three hosts on one network, who know each other from a table. No server, no keys =="
new_hosts lan node1 node2 node3
ip -n demo-lan link add lan type bridge
ip -n demo-lan link set lan up
for i in 1 2 3; do
    cable "node$i" eth0 "10.0.0.$i/24" lan "node$i"
    ip -n demo-lan link set "node$i" master lan
done
cat >"$place/hosts.json" <<'TABLE'
{"nodes": {
    "192.168.100.1": {"host": "10.0.0.1"},
    "192.168.100.2": {"host": "10.0.0.2"},
    "192.168.100.3": {"host": "10.0.0.3"}
}}
TABLE
on node1 cat "$place/hosts.json"
for i in 1 2 3; do
    start "node$i" "node$i" ipipou -v --no-log-time -b @eth0 --datapath tun \
        --tunl-ip "192.168.100.$i/24" --hosts-file "$place/hosts.json"
done
for i in 1 2 3; do
    await "node$i" 'ready on'
done
ping_from node1 192.168.100.2
ping_from node2 192.168.100.3
echo "Nobody has 192.168.100.9, and a ping there fails at once:"
{ on node1 ping -n -c 1 192.168.100.9 || true; } | grep -e "^node1#" -e Unreachable
stop_all

say "== Three: one server for any number of clients. It learns from their packets who has which
address. Clients with alice's key are let in, and they reach each other =="
start server learning ipipou -s -v --no-log-time -b @eth0 --learn --tunl-ip 10.8.0.1/24 \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$alice_public"
await learning 'ready on'
clients=0
for client in alice:10.8.0.11 bob:10.8.0.12; do
    start "${client%:*}" "${client%:*}" ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10000 \
        --datapath tun --tunl-ip "${client#*:}" --tunl-peer-ip 10.8.0.1 --route 10.8.0.0/24 \
        --auth-secret-file shared.secret --auth-key-file alice.key
    await "${client%:*}" 'ready on'
    await learning 'tunnel up' $((++clients))
done
ping_from alice 10.8.0.1
ping_from bob 10.8.0.11
on server ipipou show ipipou0
stop_all

say "== Four: everything of alice's goes through the tunnel, and out into the world with the server's
address. The web server knows no way to her: it notes whom it sees =="
on web nft "table ip seen {
        set clients { type ipv4_addr; flags dynamic; }
        chain input { type filter hook input priority 0; icmp type echo-request add @clients { ip saddr }; }
    }"
start server gateway ipipou -s -v --no-log-time -b @eth0 --datapath tun --masquerade eth1 \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$alice_public"
await gateway 'ready on'
start alice alice ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10000 --datapath tun \
    --tunl-ip 172.28.0.1 --auth-secret-file shared.secret --auth-key-file alice.key \
    --default-route --dns 198.51.100.80
await gateway 'tunnel up'
await alice 'ready on'
ping_from alice 198.51.100.80
on web nft list set ip seen clients | sed -n '/^web#/p; s/^.*elements = /    /p'
on alice ip route get 198.51.100.80 | sed -n 1,2p
on alice grep nameserver /etc/resolv.conf

stop_all

show_a_hub tun

say "== SIGTERM: nothing stays behind =="
stop_all
for host in server alice bob; do
    diff <(echo "${before[$host]}") <(traces "$host")
    echo "$host: addresses, routes, rules, settings and name servers are as they were."
done
say "== Done =="
