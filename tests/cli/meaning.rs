//! What options that are right mean.

use ipipou::auth::key_text;

use super::*;

#[test]
fn a_server_has_defaults_for_everything_but_its_endpoint() {
    let Server { tunnel, queue, policy, lifetime, reply, learn } = server("");
    assert_eq!(tunnel.device.as_str(), "ipipou0");
    assert_eq!(tunnel.inner.to_string(), "172.28.0.0");
    assert_eq!(tunnel.inner_peer.to_string(), "172.28.0.1/32");
    assert_eq!(tunnel.outer, Outer::Device("eth0".parse().unwrap()));
    assert_eq!(tunnel.port.get(), 10000);
    assert_eq!(tunnel.alternate, AlternateAddress::WhenTaken("172.29.0.0".parse().unwrap()));
    assert_eq!(tunnel.checksum, None);
    assert_eq!(tunnel.source_check, SourceCheck::Strict);
    assert_eq!(tunnel.auth_ttl, None);
    assert_eq!(tunnel.rules.table, "ipipou-0");
    assert!(tunnel.rules.counters);
    assert_eq!((queue.number, queue.max_len), (0, 24));
    assert_eq!((policy.remote_ip, policy.remote_port), (None, None));
    assert!(matches!(policy.proof, Proof::Nothing));
    assert_eq!(lifetime, None);
    assert!(matches!(reply, Reply::Silent));
    assert_eq!(learn, None);
}

#[test]
fn a_client_needs_its_endpoint_its_server_and_its_inner_address() {
    let Client { tunnel, server, credential, keepalive, answers } = client("");
    assert_eq!(answers, None);
    assert_eq!(tunnel.inner.to_string(), "172.28.0.1");
    assert_eq!(tunnel.inner_peer.to_string(), "172.28.0.0/32");
    assert_eq!(server.host, HostName::Address("203.0.113.1".parse().unwrap()));
    assert_eq!(server.port.get(), 10000);
    assert!(matches!(credential, Credential::Empty));
    assert_eq!(keepalive, None);
}

#[test]
fn the_number_sets_the_other_defaults() {
    let with = server("-n300 --nft-table other");
    assert_eq!(with.tunnel.device.as_str(), "ipipou300");
    assert_eq!(with.tunnel.port.get(), 10300);
    assert_eq!(with.tunnel.inner.to_string(), "172.28.2.88");
    assert_eq!(with.tunnel.inner_peer.to_string(), "172.28.2.89/32");
    assert_eq!(with.tunnel.alternate.address().to_string(), "172.29.1.44");
    assert_eq!(with.queue.number, 300);
    assert_eq!(with.tunnel.rules.table, "other-300");
}

#[test]
fn a_server_without_a_number_takes_that_of_its_queue() {
    assert_eq!(server("-q 7").tunnel.device.as_str(), "ipipou7");
    assert_eq!(server("-q 7 -n 2").tunnel.device.as_str(), "ipipou2");
    assert_eq!(server("-q 7 -n 2").queue.number, 7);
    assert_eq!(server("-q 1000").tunnel.device.as_str(), "ipipou0");
    assert_eq!(client("-q 7").tunnel.device.as_str(), "ipipou0");
}

#[test]
fn all_spellings_of_an_option_mean_the_same() {
    let forms = ["-n 3", "-n3", "-n=3", "--number 3", "--number=3", "--num 3", "-n1 -n2 --numb=3"];
    for form in forms {
        assert_eq!(server(form).tunnel.device.as_str(), "ipipou3", "{form}");
    }
}

#[test]
fn the_last_of_two_wins() {
    Server::of(run("-c -b @eth0 -s").config);
    Client::of(run(&format!("-s {CLIENT} -c")).config);
    assert_eq!(client("--encap-csum").tunnel.checksum, Some(true));
    assert_eq!(client("--encap-csum --no-encap-csum").tunnel.checksum, Some(false));
    assert_eq!(client("--no-encap-csum --encap-csum").tunnel.checksum, Some(true));
    let Credential::Token(token) = client("--auth-token a --auth-token-b64 Yg==").credential else {
        panic!("no token");
    };
    assert_eq!(token.as_bytes(), b"b");
}

#[test]
fn combined_options_win_over_single_ones() {
    let single = "--fou-local-ip 192.0.2.9 --fou-local-port 9 --fou-dev eth9";
    for (local, outer, port) in [
        ("-b 192.0.2.1:1@eth0", "AddressOn(192.0.2.1, DeviceName(\"eth0\"))", 1),
        ("-b @eth0", "AddressOn(192.0.2.9, DeviceName(\"eth0\"))", 9),
        ("-b :1", "AddressOn(192.0.2.9, DeviceName(\"eth9\"))", 1),
        ("-b192.0.2.1", "AddressOn(192.0.2.1, DeviceName(\"eth9\"))", 9),
    ] {
        for line in [format!("{local} {single}"), format!("{single} {local}")] {
            let server = Server::of(run(&format!("-s {line}")).config);
            assert_eq!(format!("{:?}", server.tunnel.outer), outer, "{line}");
            assert_eq!(server.tunnel.port.get(), port, "{line}");
        }
    }
    let server = client("-r other.example:7 --fou-remote-ip 192.0.2.9").server;
    assert_eq!(server.host, HostName::Name("other.example".into()));
    let parts = "-b 192.0.2.1 --fou-remote-ip s.example --fou-remote-port 7 --tunl-ip 10.0.0.1";
    Client::of(run(parts).config);
}

#[test]
fn a_client_that_knows_their_keys_has_several_servers() {
    let keys = format!("--auth-key-b64 {PRIVATE} --auth-secret topsecret");
    let several = |line: &str| client(&format!("{keys} {line}"));
    let one_key = format!("-r a.example:1,192.0.2.9:2 --auth-remote-pubkey-b64 {OTHER_PUBLIC}");
    let known = several(&one_key);
    assert_eq!(known.server.to_string(), "a.example:1");
    let answering = known.answers.unwrap();
    let [standby] = &answering.standby[..] else { panic!("{answering:?}") };
    assert_eq!((standby.at.to_string().as_str(), standby.key), ("192.0.2.9:2", answering.key));
    // The keys come in the same order; a port that is left out is the one of its own option.
    let two = "-r a.example,b.example:2 --fou-remote-port 7 --auth-remote-pubkey-b64";
    let known = several(&format!("{two} {OTHER_PUBLIC},{PUBLIC}"));
    assert_eq!(known.server.to_string(), "a.example:7");
    let answering = known.answers.unwrap();
    assert_eq!(answering.standby[0].at.to_string(), "b.example:2");
    assert_ne!(answering.standby[0].key, answering.key);
    // A second -r replaces the first.
    assert!(several(&format!("{one_key} -r c.example:3")).answers.unwrap().standby.is_empty());
}

#[test]
fn a_client_that_knows_its_server_may_be_given_its_address() {
    let line = format!(
        "-b @eth0 -r a.example:1 --tunl-ip auto --route fd08::/64 --default-route \
         --auth-key-b64 {PRIVATE} --auth-secret topsecret --auth-remote-pubkey-b64 {OTHER_PUBLIC}"
    );
    let run = run(&line);
    assert!(!run.warnings.iter().any(|warning| warning.contains("--ip6")), "{:?}", run.warnings);
    let tunnel = Client::of(run.config).tunnel;
    assert!(tunnel.inner_from_server && tunnel.inner.is_unspecified() && !tunnel.is_network());
    assert!(!client("").tunnel.inner_from_server);
}

#[test]
fn a_client_authenticates_by_its_key_or_its_token() {
    let key = client(&format!("--auth-key-b64 {PRIVATE} --auth-secret topsecret")).credential;
    let Credential::Key(signer) = key else { panic!("no key") };
    // From shared test vectors: the first bytes of the signature, so the secret is the right one.
    assert_eq!(signer.packet(1_700_000_000, [1, 2, 3, 4])[..4], [0xc7, 0xd2, 0xb6, 0xde]);
    let both = run(&format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-token t"));
    let client = Client::of(both.config);
    assert!(matches!(client.credential, Credential::Token(_)), "as the first version does");
    assert!(both.warnings.iter().any(|warning| warning.contains("both a token and a key")));
}

#[test]
fn the_options_of_a_server_set_the_proof_and_the_reply() {
    let key = format!("--auth-remote-pubkey-b64 {PUBLIC} --auth-secret s");
    assert!(matches!(server(&key).policy.proof, Proof::Key(_)));
    assert!(matches!(server("--auth-token t").policy.proof, Proof::Token(_)));
    let by_ip = server("-r 192.0.2.1:5 --auth-by-remote-ip --auth-by-remote-port").policy;
    assert_eq!(by_ip.remote_ip, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(by_ip.remote_port, Some(5));
    assert_eq!(server("-r 192.0.2.1:5").policy.remote_ip, None);

    for proof in ["--auth-token x", "--auth-by-remote-ip -r 192.0.2.1"] {
        let answers = server(&format!("--reply-on-auth-ok {proof}")).reply;
        assert!(matches!(answers, Reply::Reversed), "{proof}");
    }
    // Nobody could be told from somebody who forges an address.
    assert!(matches!(server("--reply-on-auth-ok").reply, Reply::Silent));
    let one = format!("--reply-on-auth-ok --auth-key-b64 {PRIVATE}");
    assert!(matches!(server(&format!("{one} --auth-token x")).reply, Reply::Reversed));
    let both = format!("{one} --auth-remote-pubkey-b64 {OTHER_PUBLIC}");
    assert!(matches!(server(&both).reply, Reply::Signed(_)));
}

/// What the first version took in silence still starts, with one warning.
#[test]
fn options_without_effect_cause_one_warning() {
    let about = |line: &str, part: &str| {
        let warnings = run(line).warnings;
        warnings.into_iter().filter(|warning| warning.contains(part)).collect::<Vec<_>>()
    };
    for (line, named) in [
        (format!("{SERVER} --keepalive 27"), "--keepalive: a server has no use for it"),
        (format!("{CLIENT} --auth-lifetime 9"), "--auth-lifetime: a client has no use for it"),
        (
            format!("{CLIENT} --reply-on-auth-ok --auth-by-remote-ip -q 7"),
            "--queue-number, --auth-by-remote-ip, --reply-on-auth-ok: a client has no use for it",
        ),
        (format!("{SERVER} --auth-secret s"), "--auth-secret, without --auth-remote-pubkey-b64: "),
        (format!("{NODE} -s"), "--server: a host of a table has no use for it"),
    ] {
        let warnings = about(&line, "has no use for it");
        let [warning] = warnings.as_slice() else { panic!("{line}: {warnings:?}") };
        assert!(warning.starts_with(named), "{line}: {warning}");
    }
    for line in [SERVER, CLIENT, HUB, NODE, &format!("{SERVER} --keepalive 0")] {
        assert_eq!(about(line, "has no use for it"), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn the_last_of_two_roles_counts_with_a_warning() {
    let about = |run: &Run| {
        let said = run.warnings.iter().filter(|warning| warning.contains("the last one counts"));
        said.cloned().collect::<Vec<_>>()
    };
    let server = run("-c -b @eth0 -s");
    assert_eq!(about(&server), ["--client and --server: the last one counts, --server"]);
    Server::of(server.config);
    let client = run(&format!("-s {CLIENT} -s -c"));
    assert_eq!(about(&client), ["--server and --client: the last one counts, --client"]);
    Client::of(client.config);
    let Ok(Invocation::Run(run)) = with_file("client\nserver\nb @eth0", "") else {
        panic!("no run")
    };
    assert_eq!(about(&run), ["--client and --server: the last one counts, --server"]);
    // The command line wins over files: that is meant.
    let Ok(Invocation::Run(run)) = with_file("client\nb @eth0", "-s") else { panic!("no run") };
    assert_eq!(about(&run), Vec::<String>::new());
    Server::of(run.config);
}

#[test]
fn zero_seconds_mean_never() {
    let line = "--auth-lifetime 0 --auth-max-time-discrepancy 0";
    assert_eq!(server(line).lifetime, None);
    assert_eq!(client("--keepalive 0").keepalive, None);
    assert_eq!(client("--keepalive 27").keepalive.unwrap().as_secs(), 27);
    assert_eq!(server("--auth-lifetime 1.5").lifetime.unwrap().as_millis(), 1500);
}

#[test]
fn logging_and_directories() {
    let plain = run(SERVER);
    assert_eq!((plain.log.verbosity, plain.log.time, plain.log.pid), (0, true, true));
    assert_eq!((plain.state_dir, plain.runtime_dir), (None, None));
    let more = run(&format!("{SERVER} -vv -v --verb 2 --no-log-time --no-log-pid --tunl-dev a"));
    assert_eq!((more.log.verbosity, more.log.time, more.log.pid), (5, false, false));

    let env = |name: &str| match name {
        "STATE_DIRECTORY" => Some(OsString::from("/s/one:/s/two")),
        "RUNTIME_DIRECTORY" => Some(OsString::from("/r")),
        _ => None,
    };
    let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    for (line, state, runtime) in [
        ("ipipou -s -b @eth0", "/s/one", "/r"),
        ("ipipou -s -b @eth0 --memory-dir x --runtime-dir /y", "x", "/y"),
    ] {
        let Ok(Invocation::Run(run)) = cli::parse(args(line), &env) else { panic!("{line}") };
        assert_eq!(
            (run.state_dir.as_deref(), run.runtime_dir.as_deref()),
            (Some(Path::new(state)), Some(Path::new(runtime)))
        );
    }
}

#[test]
fn commands_other_than_a_tunnel_are_parsed() {
    assert!(matches!(parse(["--auth-keygen"]), Ok(Invocation::Keygen { labelled: false })));
    assert!(matches!(parse(["--auth-keygen", "-v"]), Ok(Invocation::Keygen { labelled: true })));
    let line = format!("{CLIENT} --reauth-only");
    assert!(matches!(parse(line.split(' ')), Ok(Invocation::Reauth(_))));
    let Ok(Invocation::Show { json: true, wide: false, name: Some(name), runtime_root }) =
        parse(["show", "--json", "server0"])
    else {
        panic!("no show");
    };
    assert_eq!((name.name.as_str(), runtime_root.as_path()), ("server0", Path::new("/run/ipipou")));
    assert!(matches!(parse(["generate", "man"]), Ok(Invocation::Generate(Document::Man))));
    assert!(matches!(parse(["-h"]), Err(CliError::Print(_))));
    assert!(matches!(parse(["show", "-h"]), Err(CliError::Print(_))));
    assert!(matches!(parse(["generate", "-h"]), Err(CliError::Print(_))));
    assert!(
        matches!(parse(["--version"]), Err(CliError::Print(text)) if text == concat!("ipipou ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}

#[test]
fn risky_options_cause_a_warning() {
    let long = format!("--auth-token {}", "x".repeat(549));
    for (line, part) in [
        (SERVER, "anybody who sends a packet takes the tunnel"),
        ("-s -b @eth0 -r 192.0.2.1 --auth-by-remote-ip", "forges the address"),
        ("-s -b @eth0 -r 192.0.2.1", "counts only with"),
        ("-s -b @eth0 --auth-token x", "send it again"),
        (&format!("-s -b @eth0 {long}"), "549 bytes"),
        (&format!("-s -b @eth0 --auth-remote-pubkey-b64 {PUBLIC}"), "which everybody knows"),
        (&format!("{CLIENT} --auth-key-b64 {PRIVATE}"), "which everybody knows"),
        (&format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-secret="), "is not secret"),
        (&format!("-s -b @eth0 --auth-key-b64 {PRIVATE}"), "needs --auth-remote-pubkey-b64"),
        (
            &format!("-s -b @e --auth-key-b64 {PRIVATE} --auth-remote-pubkey-b64 {PUBLIC}"),
            "its own key",
        ),
        ("-s -b @eth0 --nft-table x", "here it is x-0"),
        (CLIENT, "neither a key nor a token"),
    ] {
        let warnings = run(line).warnings;
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{line}: {warnings:?}");
    }
    let quiet = format!("server\nb @e\nauth-remote-pubkey-b64 {PUBLIC}\nauth-secret s");
    let path = file(quiet);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let Ok(Invocation::Run(run)) = parse([Path::new("--config"), &path]) else { panic!("no run") };
    std::fs::remove_file(path).expect("it was just written");
    assert_eq!(run.warnings, Vec::<String>::new());
}

/// The options of the first `ipipou`. argparse takes any prefix of them that is unambiguous among
/// them, and scripts use such prefixes: an option added since must not take one away.
const FIRST_OPTIONS: &str = "version config verb client server number queue-number \
    auth-by-remote-ip auth-by-remote-port auth-token auth-token-b64 auth-key-b64 \
    auth-remote-pubkey-b64 auth-key-type auth-secret auth-keygen auth-max-time-discrepancy \
    fou-local fou-local-ip fou-local-ip-alt force-fou-local-ip-alt fou-local-port fou-remote \
    fou-remote-ip fou-remote-port fou-dev tunl-dev tunl-ip tunl-peer-ip nfq-max-len encap-csum \
    no-encap-csum no-nft-counter nft-table reauth-only auth-packet-ttl auth-lifetime keepalive \
    reply-on-auth-ok no-log-time no-log-pid help";

#[test]
fn every_prefix_that_was_unambiguous_still_is() {
    let first: Vec<_> = FIRST_OPTIONS.split_whitespace().collect();
    for option in &first {
        for end in 1..option.len() {
            let prefix = &option[..end];
            if first.iter().filter(|other| other.starts_with(prefix)).count() > 1 {
                continue;
            }
            // With a value that no option takes, and none where none is allowed: whatever is said
            // must be about this option.
            if let Err(CliError::Usage(line)) = parse([format!("--{prefix}=\u{1}")]) {
                assert!(
                    !line.contains("ambiguous") && !line.contains("is no option"),
                    "--{prefix} for --{option}: {line}"
                );
            }
        }
    }
}

#[test]
fn auto_follows_the_route_on_a_client_only() {
    let run = run("-b :10007@auto -r 203.0.113.1:10000 --tunl-ip 172.28.0.1");
    let client = Client::of(run.config);
    assert_eq!(client.tunnel.outer, Outer::Route);
    assert_eq!(client.tunnel.port.get(), 10007);
    assert!(usage(["-s", "-b", "@auto"]).contains("-b @auto"));
}

#[test]
fn a_client_with_both_keys_asks_its_server_to_answer() {
    let keys = format!("--auth-key-b64 {PRIVATE} --auth-remote-pubkey-b64 {PUBLIC}");
    let asked = client(&format!("{keys} -n3")).answers.expect("it knows the server's key");
    assert_eq!((key_text(&asked.key).as_str(), asked.queue.number), (PUBLIC, 3));
    assert!(client(&format!("{keys} --protocol 2")).answers.is_some());
    assert_eq!(client(&format!("{keys} --protocol 1")).answers, None);
    for lacking in ["", &format!("--auth-key-b64 {PRIVATE}"), "--auth-token x"] {
        let said = usage(format!("{CLIENT} {lacking} --protocol 2").split_whitespace());
        assert!(said.starts_with("--protocol 2 needs our own key"), "{said}");
    }
    let said = usage(format!("{CLIENT} {keys} --reauth-only").split(' '));
    assert!(said.contains("`ipipou reload NAME`"), "{said}");
}

#[test]
fn a_server_with_files_of_peers_needs_a_network() {
    let with =
        |more: &str| format!("{SERVER} --auth-key-b64 {PRIVATE} --tunl-ip 10.8.0.1/24 {more}");
    let config = run(&with("--peers /p")).config;
    let hub = config.hub().expect("it has files of peers");
    assert_eq!((hub.peers.to_str(), hub.queue.max_len), (Some("/p"), 1024));
    assert_eq!(config.public_key().map(|key| key_text(&key)).as_deref(), Some(PUBLIC));
    // Its first start makes a key.
    let without = run(&format!("{SERVER} --tunl-ip 10.8.0.1/24 --peers /p")).config;
    assert_eq!(without.public_key(), None);
    let pool = run(&with("--peers /p --ip6 fd00::1 --pool 10.8.0.128/25,fd00::/112")).config;
    let hub = pool.hub().expect("as before");
    let given: Vec<_> = hub.pool.given().map(|network| network.to_string()).collect();
    assert_eq!(given, ["10.8.0.128/25", "fd00::/112"]);
    for (line, said) in [
        (format!("{SERVER} --auth-key-b64 {PRIVATE} --peers /p"), "give --tunl-ip IP/LEN"),
        (with("--peers"), "which files?"),
        (with("--pool 10.8.0.0/25"), "--pool counts only with --peers"),
        (with("--peers /p --pool 10.9.0.0/24"), "10.9.0.0/24 is not within the server's network"),
        (with("--peers /p --pool 10.8.0.0/23"), "10.8.0.0/23 is not within the server's network"),
        (with("--peers /p --pool 10.8.0.0/25,fd00::/64"), "fd00::/64 is IPv6, and the server has"),
        (with("--peers /p --ip6 fd00::1 --pool fd01::/64"), "network fd00::/64"),
        (with("--peers /p --pool 10.8.0.0/25,10.8.0.128/25"), "names two networks of one family"),
        (with("--peers /p --pool 10.8.0.5/25"), "the network is 10.8.0.0/25"),
        (with("--peers /p --pool 10.8.0.9-20"), "is not a network"),
        (format!("{CLIENT} --pool 10.8.0.0/25"), "--pool"),
        (with("--peers /p --learn"), "--learn: with --peers"),
        (with("--peers /p --auth-token x"), "--auth-token: with --peers"),
        (with(&format!("--peers /p --auth-remote-pubkey-b64 {PUBLIC}")), "-b64: with --peers"),
        (with("--peers /p --hosts-file /h"), "--hosts-file: with --peers"),
        (with("--peers /p --route 10.9.0.0/16"), "the files of --peers say"),
        (with("--peers /p --rp-filter loose"), "--rp-filter: with --peers"),
        (format!("{CLIENT} --peers /p"), "--peers: only a server has it"),
    ] {
        let usage = usage(line.split_whitespace());
        assert!(usage.contains(said), "{line}: {usage}");
    }
}

#[test]
fn ping_is_for_one_client_and_one_of_its_servers() {
    let ping = |line: &str| match parse(line.split(' ')) {
        Ok(Invocation::Ping { host, tunnel, count, .. }) => {
            (host, tunnel.map(|tunnel| tunnel.name), count)
        }
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(ping("ping"), (None, None, 3));
    let (host, tunnel) = (Some("b.example:10000".to_owned()), Some("client0".to_owned()));
    assert_eq!(ping("ping -c5 -i client0 b.example:10000"), (host, tunnel, 5));
}
