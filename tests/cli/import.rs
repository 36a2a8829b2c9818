//! Files of servers with one client each, which become peers of one server.

use ipipou::engine::peers_file::import::{OldServer, clashes, network_for};

use super::*;

/// A directory of files of servers, removed at the end. `hub.conf` is the one that takes the peers.
struct Files(PathBuf);

const HUB_FILE: &str = "server\npeers /p\nnumber 100\nfou-dev eth0\ntunl-ip 172.28.0.100/24\n\
                        auth-secret s\n";

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipipou-import-{}-{number}", std::process::id());
        let directory = Files(std::env::temp_dir().join(name));
        std::fs::create_dir(&directory.0).expect("a new directory");
        for (name, text) in files.iter().chain(&[("hub", HUB_FILE)]) {
            let text = text.replace("PUBLIC", PUBLIC).replace("OTHER", OTHER_PUBLIC);
            let path = directory.0.join(format!("{name}.conf"));
            std::fs::write(path, text).expect("a new file");
        }
        directory
    }

    /// The servers of all files but the last, and the one that takes them, whose file has `more`.
    fn read(&self, more: &str) -> Result<(Vec<OldServer>, TunnelConfig), String> {
        let hub = self.0.join("hub.conf");
        std::fs::write(&hub, format!("{HUB_FILE}{more}")).expect("the directory is ours");
        let entries = std::fs::read_dir(&self.0).expect("the directory is ours");
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| *file != hub);
        files.sort();
        let words = ["peer", "import", "-i"].map(OsString::from).into_iter();
        let words = words.chain([hub.into()]).chain(files.into_iter().map(Into::into));
        match parse(words) {
            Ok(Invocation::ImportPeers { servers, config, .. }) => Ok((servers, config.tunnel)),
            Err(CliError::Usage(lines)) => Err(self.shown(&lines)),
            other => panic!("{other:?}"),
        }
    }

    /// With `DIR` for the directory.
    fn shown(&self, text: &str) -> String {
        text.replace(&self.0.display().to_string(), "DIR")
    }

    fn hindrances(&self, more: &str) -> Vec<String> {
        let (servers, hub) = self.read(more).expect("the files are good");
        let found = servers.iter().flat_map(|server| server.hindrances(&hub));
        found.chain(clashes(&servers)).map(|line| self.shown(&line)).collect()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("the directory is ours");
    }
}

/// What is written of the only file; notes last.
fn imported(text: &str) -> (String, Option<Vec<u8>>, String) {
    let files = Files::new(&[("server1", text)]);
    let (servers, hub) = files.read("").expect("the file is good");
    let [server] = servers.as_slice() else { panic!("one file, {} servers", servers.len()) };
    assert_eq!(server.hindrances(&hub), Vec::<String>::new(), "{text}");
    let imported = server.imported(&server.name, &hub, Path::new("/p"));
    let token = imported.token.map(|(path, bytes)| {
        assert_eq!(path, Path::new("/p/server1.token"));
        bytes
    });
    (files.shown(&imported.text), token, files.shown(&imported.notes.join("\n")))
}

#[test]
fn a_server_of_the_old_program_becomes_a_peer() {
    let (text, token, notes) = imported(
        "# Written for the old program.\n  -s\n\n--n 1\nfou-dev eth0\nauth-remote-pubkey-b64 PUBLIC\n\
         auth-secret it's \"two words\" \nauth-lifetime 90.5\nkeepalive 7\nno-nft-counter\n",
    );
    let expected = format!(
        "# From DIR/server1.conf.\n[peer.server1]\npublic-key = \"{PUBLIC}\"\n\
         secret = \"\"\"it's \"two words\" \"\"\"\naddress = \"172.28.0.3\"\nold = 10001\n\
         server-address = \"172.28.0.2\"\nlifetime = \"91s\"\n"
    );
    assert_eq!(text, expected);
    assert_eq!(token, None);
    assert_eq!(notes, "");
}

#[test]
fn ports_addresses_and_routes_are_those_that_the_old_server_had() {
    let (text, _, notes) = imported(
        "server\nb @eth0\nfou-local-port 7000\ntunl-ip 172.28.0.100\ntunl-peer-ip 172.28.0.7\n\
         auth-remote-pubkey-b64 PUBLIC\nroute 192.168.7.0/24\nroute 192.168.8.1\nreply-on-auth-ok\n\
         auth-max-time-discrepancy 60\n",
    );
    let expected = format!(
        "# From DIR/server1.conf.\n[peer.server1]\npublic-key = \"{PUBLIC}\"\n\
         secret = \"netprickle.com\"\naddress = \"172.28.0.7\"\nold = 7000\n\
         route = [\"192.168.7.0/24\", \"192.168.8.1/32\"]\n"
    );
    assert_eq!(text, expected);
    assert_eq!(
        notes,
        "server1: DIR/server1.conf:9: reply-on-auth-ok: peers with the old program are not answered\n\
         server1: DIR/server1.conf:10: auth-max-time-discrepancy: clocks are not compared: a packet \
         counts once, and only after those before it"
    );
}

#[test]
fn a_token_goes_into_a_file_of_its_own() {
    for (line, bytes) in [
        ("auth-token two words ", &b"two words \n"[..]),
        ("auth-token-b64 AP8N", b"\x00\xff\r"),
        ("auth-token-b64 DQo=", b"\r\n\n"),
    ] {
        let (text, token, _) = imported(&format!("server\nn 1\nb @eth0\n{line}\n"));
        assert!(text.contains("token-file = \"/p/server1.token\"\n"), "{text}");
        assert!(!text.contains("secret") && !text.contains("public-key"), "{text}");
        assert_eq!(token.as_deref(), Some(bytes), "{line}");
    }
}

#[test]
fn files_of_secrets_stay_where_they_are() {
    let (secret, token) = (file("s3cret\n"), file("t0ken\n"));
    let name = secret.display();
    let keys =
        format!("server\nn 1\nb @eth0\nauth-remote-pubkey-b64 PUBLIC\nauth-secret-file {name}");
    let (text, _, _) = imported(&keys);
    assert!(text.contains(&format!("secret-file = \"{name}\"\n")), "{text}");
    let name = token.display();
    let (text, bytes, _) = imported(&format!("server\nn 1\nb @eth0\nauth-token-file {name}"));
    assert!(text.contains(&format!("token-file = \"{name}\"\n")) && bytes.is_none(), "{text}");
    for path in [secret, token] {
        std::fs::remove_file(path).expect("it was just written");
    }
}

#[test]
fn what_would_have_to_change_for_a_client_is_reported_with_its_line() {
    let key = "auth-remote-pubkey-b64 PUBLIC\n";
    for (lines, more, said) in [
        ("n 1\nb @eth0", "", "server1.conf: the client proves nothing"),
        (
            "n 1\nb @eth0\nauth-by-remote-ip\nr 192.0.2.1\nKEY",
            "",
            "server1.conf:4: auth-by-remote-ip: a peer may be anywhere",
        ),
        ("n 100\nb @eth0\nKEY", "", "server1.conf:2: number: the port 10100 is the one of"),
        ("q 100\nb @eth0\nKEY", "", "server1.conf:2: queue-number: the port 10100 is the one of"),
        ("n 1\nb @eth1\nKEY", "", "server1.conf:3: fou-local: the server that takes the peers li"),
        (
            "n 1\nfou-local-ip 192.0.2.2\nKEY",
            "",
            "server1.conf:3: fou-local-ip: the client sends to 192.0.2.2, and the server that takes the \
             peers listens at one address of eth0, whichever that is: give that `fou-local-ip \
             192.0.2.2` too",
        ),
        (
            "n 1\nb 192.0.2.2@eth0\nKEY",
            "",
            "server1.conf:3: fou-local: the client sends to 192.0.2.2",
        ),
        (
            "n 1\nb @eth0\nKEY",
            "fou-local-ip 192.0.2.1",
            "server1.conf:3: fou-local: this server listens at one address of eth0, whichever that is, \
             and the server that takes the peers at 192.0.2.1: if the client sends to that, write \
             `fou-local-ip 192.0.2.1` into this file too",
        ),
        (
            "n 1\nb 192.0.2.2\nKEY",
            "fou-local-ip 192.0.2.1",
            "server1.conf:3: fou-local: the server that takes the peers listens at another address",
        ),
        (
            "n 1\nfou-local-ip 192.0.2.1\nKEY",
            "fou-local-ip 192.0.2.1",
            "server1.conf:3: fou-local-ip: the server that takes the peers takes packets from eth0 \
             alone, and this server from any interface: take `fou-dev` out of its file, or write it \
             into this one too",
        ),
        (
            "n 1\nb @eth0\ntunl-ip 10.9.0.1\nKEY",
            "",
            "server1.conf:4: tunl-ip: the client has 10.9.0.2 inside the tunnel, which no host of \
             172.28.0.0/24",
        ),
        (
            "n 1\nb @eth0\ntunl-peer-ip 172.28.0.255\nKEY",
            "",
            "server1.conf:4: tunl-peer-ip: the client has 172.28.0.255 inside the tunnel, which no",
        ),
        (
            "n 1\nb @eth0\ntunl-peer-ip 172.28.0.100\nKEY",
            "",
            "server1.conf:4: tunl-peer-ip: the client has 172.28.0.100, the address of the server",
        ),
        ("n 1\nb @eth0\nip6 fd00::1\nKEY", "", "server1.conf:4: ip6: peers with the old program"),
        ("n 1\nb @eth0\nrp-filter off\nKEY", "", "server1.conf:4: rp-filter: a peer sends from"),
        ("n 1\nb @eth0\nforward\nKEY", "", "server1.conf:4: forward: this is for all peers"),
        ("n 1\nb @eth0\nmasquerade eth0\nKEY", "masquerade", "server1.conf:4: masquerade: this is"),
        ("n 1\nb @eth0\nmtu 1300\nKEY", "mtu 1400", "server1.conf:4: mtu: the server that takes"),
        ("n 1\nb @eth0\nauth-lifetime 10\nKEY", "", "server1.conf:4: auth-lifetime: a peer has at"),
    ] {
        let text = format!("server\n{}\n", lines.replace("KEY", key));
        let found = Files::new(&[("server1", &text)]).hindrances(more);
        assert_eq!(found.len(), 1, "{lines}: {found:?}");
        assert!(found[0].starts_with(&format!("DIR/{said}")), "{lines}: {found:?}");
    }
    // These are the same in the file of the server that takes the peers.
    let text = format!("server\nn 1\nb @eth0\nforward\nmasquerade eth0\nmtu 1300\n{key}");
    let files = Files::new(&[("server1", &text)]);
    assert!(files.hindrances("forward\nmasquerade eth0\nmtu 1300\n").is_empty());
    let text = format!("server\nn 1\nb 192.0.2.1@eth0\n{key}");
    assert!(Files::new(&[("server1", &text)]).hindrances("fou-local-ip 192.0.2.1\n").is_empty());
}

#[test]
fn what_two_old_servers_have_in_common_is_reported() {
    let text = "server\nb @eth0\nn 1\nauth-token x\n";
    let files = Files::new(&[("server1", text), ("server2", text)]);
    assert_eq!(
        files.hindrances(""),
        [
            "DIR/server2.conf:3: number: the port 10001 is that of DIR/server1.conf, too",
            "DIR/server2.conf:3: number: the client's address 172.28.0.3 is that of \
             DIR/server1.conf, too",
        ]
    );
}

#[test]
fn a_network_with_room_for_all_is_proposed() {
    let text = |number: u8, peer: &str| {
        format!("server\nb @eth0\nn {number}\ntunl-peer-ip {peer}\nauth-token x{number}\n")
    };
    let proposed = |peers: [&str; 2]| {
        let (one, two) = (text(1, peers[0]), text(2, peers[1]));
        let files = Files::new(&[("server1", &one), ("server2", &two)]);
        let (servers, hub) = files.read("").expect("the files are good");
        network_for(&servers, &hub).map(|network| network.to_string())
    };
    assert_eq!(proposed(["172.28.0.3", "172.28.0.5"]), None);
    assert_eq!(proposed(["172.28.0.3", "172.28.1.5"]).as_deref(), Some("172.28.0.100/23"));
    // 172.28.1.255 is the last of that one.
    assert_eq!(proposed(["172.28.0.3", "172.28.1.255"]).as_deref(), Some("172.28.0.100/22"));
    assert_eq!(proposed(["172.28.0.3", "192.168.0.5"]), None);
}

#[test]
fn mistakes_in_all_files_are_reported_at_once() {
    let files = Files::new(&[
        ("client0", "client\nb @eth0\nr a:1\ntunl-ip 172.28.0.1\n"),
        ("learn0", "server\nb @eth0\nlearn\ntunl-ip 10.8.0.1/24\n"),
        ("server1", "sever\nfou-local-port 0\n"),
        ("Ünder", "server\nb @eth0\nauth-token x\n"),
    ]);
    let said = files.read("").expect_err("all of them are wrong");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "DIR/client0.conf: this is not a server with one client",
            "DIR/learn0.conf: this is not a server with one client",
            "DIR/server1.conf:1: unknown option sever; did you mean server?",
            "DIR/server1.conf:2: fou-local-port: 0 is not a port (1..65535)",
            "DIR/Ünder.conf: a peer takes the file's name, and ünder has 'ü' in it, and a name has only \
             a-z, 0-9, '-', '_' and '.': rename it",
        ]
    );
}
