//! What stands in `.conf` files.

use super::*;

#[test]
fn the_command_line_wins_over_files() {
    let text = "server\nnumber 3\nfou-local @eth0\nfou-local-port 7\nauth-token a b\nv\n";
    let Ok(Invocation::Run(run)) = with_file(text, "-n 4 -v") else { panic!("no run") };
    let server = Server::of(run.config);
    assert_eq!(server.tunnel.device.as_str(), "ipipou4");
    assert_eq!(server.tunnel.port.get(), 7);
    assert_eq!(run.log.verbosity, 2);
    let Proof::Token(token) = server.policy.proof else { panic!("no token") };
    assert_eq!(token.as_bytes(), b"a b");

    let (first, second) = (file("server\nn 1\nb @eth0"), file("n 2"));
    let args = [Path::new("--config"), &first, Path::new("--config"), &second];
    let Ok(Invocation::Run(run)) = parse(args) else { panic!("no run") };
    let server = Server::of(run.config);
    assert_eq!(server.tunnel.device.as_str(), "ipipou2");
    for path in [first, second] {
        std::fs::remove_file(path).expect("it was just written");
    }
}

#[test]
fn errors_of_files_name_file_and_line() {
    for (text, expected) in [
        ("server\n\n  fou-local-port 0", "FILE:3: fou-local-port: 0 is not a port (1..65535)"),
        ("config x", "FILE:1: config belongs on the command line"),
        (
            "server",
            "our end of the tunnel is missing: give -b @DEV or -b IP (or --fou-dev, \
                    --fou-local-ip); `ipipou -h` shows examples",
        ),
    ] {
        let Err(CliError::Usage(line)) = with_file(text, "") else { panic!("{text}") };
        assert_eq!(line, expected, "{text}");
    }
    let Err(CliError::Usage(line)) = with_file(b"server\n\xff", "") else { panic!("it is read") };
    assert_eq!(line, "FILE:2: not valid UTF-8");
    let Err(CliError::Usage(line)) = with_file("#".repeat(1 << 20) + "#", "") else {
        panic!("it is read")
    };
    assert_eq!(line, "FILE: is larger than 1 MiB: that is not a configuration file");
}

#[test]
fn all_bad_lines_are_named_at_once() {
    let text = "server\nsever\n\nfou-local-port 0\nauth-key-b64 h7u3q9z1\nb @eth0\nwhatever x";
    let Err(CliError::Usage(lines)) = with_file(text, "") else { panic!("it is bad") };
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "FILE:2: unknown option sever; did you mean server?",
            "FILE:4: fou-local-port: 0 is not a port (1..65535)",
            "FILE:5: auth-key-b64: the value has 6 bytes: an ed25519 key has 32",
            "FILE:7: unknown option whatever; `ipipou -h` lists all",
        ]
    );
    let (first, second) = (file("sever"), file("n x"));
    let args = [Path::new("--config"), &first, Path::new("--config"), &second];
    let both = usage(args);
    for (line, path) in both.lines().zip([&first, &second]) {
        assert!(line.starts_with(&format!("{}:1: ", path.display())), "{line}");
    }
    assert_eq!(both.lines().count(), 2);
    for path in [first, second] {
        std::fs::remove_file(path).expect("it was just written");
    }
    let Err(CliError::Usage(lines)) = with_file("x\n".repeat(100), "") else { panic!("bad") };
    assert_eq!(lines.lines().count(), 21);
    assert_eq!(lines.lines().last(), Some("FILE: 80 more bad lines"));
    assert!(usage(["--config", "nobody0.conf"]).ends_with("; did you mean nobody0?"));
}

#[test]
fn a_secret_that_everybody_can_read_causes_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    #[cfg(feature = "hosts-url")]
    const TABLE: &str = "tunl-ip 10.0.0.1\nhosts-url https://a/";
    #[cfg(feature = "hosts-url")]
    const TABLE_WITH_PASSWORD: &str = "tunl-ip 10.0.0.1\nhosts-url https://me:x@a/";
    for (mode, text, warned) in [
        (0o644, "auth-token x", true),
        (0o640, "auth-token x", false),
        (0o644, "server", false),
        #[cfg(feature = "hosts-url")]
        (0o644, TABLE, false),
        #[cfg(feature = "hosts-url")]
        (0o644, TABLE_WITH_PASSWORD, true),
    ] {
        let path = file(format!("server\nb @eth0\n{text}"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
        let Ok(Invocation::Run(run)) = parse([Path::new("--config"), &path]) else { panic!("bad") };
        std::fs::remove_file(&path).expect("it was just written");
        let found = run.warnings.iter().any(|warning| warning.contains("chmod o-r"));
        assert_eq!(found, warned, "{mode:o} {text}");
    }
}

#[test]
fn the_files_to_install_work_once_their_keys_are_set() {
    for (name, key) in [
        ("server0", Some(PUBLIC)),
        ("client0", Some(PRIVATE)),
        ("hub0", None),
        ("learn0", Some(PUBLIC)),
        ("node0", None),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("etc/ipipou/{name}.conf"));
        let text = std::fs::read_to_string(&path).expect("it is in the repository");
        let unset = |line: &str| line.starts_with("auth-") && line.contains("b64 <");
        let line = text.lines().position(unset).map(|index| index + 1);
        assert_eq!(line.is_some(), key.is_some(), "{name}");
        if let Some(line) = line {
            let error = usage([Path::new("--config"), &path]);
            assert!(error.contains(&format!("{name}.conf:{line}: auth-")), "{error}");
        }
        let text = with_keys(&text, key.unwrap_or("s"));
        assert!(matches!(with_file(&text, ""), Ok(Invocation::Run(_))), "{name}");
        // What stands there as a proposal works too, all of it together.
        let proposed: Vec<_> =
            text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect();
        let option = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase());
        let proposed: Vec<_> = proposed.into_iter().filter(option).collect();
        let proposed = with_keys(&proposed.join("\n"), PRIVATE);
        let result = with_file(proposed, "");
        assert!(matches!(result, Ok(Invocation::Run(_))), "{name}: {result:?}");
    }
}

/// What `ipipou check` says of a file, and how it differs from the one before.
fn check(before: &str, now: &str) -> Result<String, String> {
    let (before, now) = (file(before), file(now));
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&now, closed).expect("ours");
    let arguments = [Path::new("check"), Path::new("--running"), &before, &now];
    let result = parse(arguments);
    for path in [&before, &now] {
        std::fs::remove_file(path).expect("it was just written");
    }
    let shown = |text: String| text.replace(&now.display().to_string(), "FILE");
    match result {
        Ok(Invocation::Checked { text, .. }) => Ok(shown(text)),
        Err(CliError::Usage(line)) => Err(shown(line)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_checked_without_a_tunnel() {
    let server = format!("server\nb @eth0\nauth-remote-pubkey-b64 {PUBLIC}\nauth-secret s\n");
    let good = "FILE: no mistakes\n";
    let changed = |more: &str| check(&server, &format!("{server}{more}"));
    for same in ["", "# n 3\n", "auth-secret s\n", "fou-local @eth0\n"] {
        assert_eq!(changed(same).as_deref(), Ok(good), "{same}");
    }
    for (more, names) in [
        ("n 3", "number"),
        ("v", "verbose"),
        ("auth-secret another", "auth-secret"),
        ("no-encap-csum\nauth-lifetime 7", "no-encap-csum, auth-lifetime"),
        ("nfq-max-len 24\nnfq-max-len 25", "nfq-max-len"),
    ] {
        let expected = format!("{good}FILE: a restart is needed for: {names}\n");
        assert_eq!(changed(more), Ok(expected), "{more}");
    }
    let gone = check(&format!("{server}route 10.1.0.0/16\nroute 10.2.0.0/16"), &server);
    assert_eq!(gone, Ok(format!("{good}FILE: a restart is needed for: route\n")));
    let warned = changed("nft-table x").expect("a warning is not a mistake");
    assert!(warned.starts_with("warning: --nft-table: every tunnel has its own"), "{warned}");
    for (more, said) in [
        ("fou-local-port 0", "FILE:5: fou-local-port: 0 is not a port (1..65535)"),
        ("auth-by-remote-ip", "FILE: --auth-by-remote-ip needs "),
    ] {
        let refused = changed(more).expect_err(more);
        assert!(refused.starts_with(said), "{refused}");
    }
    let path = file(server.clone());
    let lost = parse([Path::new("check"), Path::new("--running"), Path::new("/nowhere"), &path]);
    let Ok(Invocation::Checked { text, .. }) = lost else { panic!("{lost:?}") };
    assert!(text.contains("changes cannot be listed: /nowhere: cannot be read"), "{text}");
    std::fs::remove_file(&path).expect("it was just written");
    assert!(usage(["check", "/nowhere.conf"]).starts_with("/nowhere.conf: cannot be read"));
}

#[test]
fn a_pool_outside_of_the_servers_network_is_reported_with_its_line() {
    let hub = "server\nb @eth0\npeers /p\ntunl-ip 10.8.0.1/24\nauth-secret s\n";
    let hub = format!("{hub}auth-key-b64 {PRIVATE}\n");
    let good = format!("{hub}pool 10.8.0.128/25\n");
    let bad = format!("{hub}pool 10.8.0.0/25\n\npool 10.9.0.0/24\n");
    let outside = "pool: 10.9.0.0/24 is not within the server's network 10.8.0.0/24";
    assert_eq!(check(&hub, &bad), Err(format!("FILE:9: {outside}")));
    let start = |line: &str| match with_file(&bad, line) {
        Err(CliError::Usage(said)) => said,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(start(""), format!("FILE:9: {outside}"));
    // What the command line says is not a line of the file.
    assert_eq!(start("--pool 10.9.0.0/24"), format!("--{outside}"));
    // Only commands use it, and they read the file.
    let checked = check(&hub, &good).expect("it is good");
    assert!(!checked.contains("a restart is needed"), "{checked}");
}

/// A file with `key` in place of `<…>`.
fn with_keys(text: &str, key: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" <") {
        Some((option, _)) if !line.starts_with('#') => format!("{option} {key}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn check_finds_the_same_mistakes_as_a_start() {
    let said = |line: &str| match parse(format!("check {line}").split(' ')) {
        Ok(Invocation::Checked { text, .. }) => text,
        other => panic!("{line}: {other:?}"),
    };
    let text = said("-s -b @eth0 --keepalive 27");
    assert!(text.starts_with("warning: --keepalive: a server has no use for it"), "{text}");
    assert!(text.ends_with("the options: no mistakes\n"), "{text}");
    let text = said(&format!("{CLIENT} --auth-key-b64 {PRIVATE}"));
    assert!(text.contains(&format!("our public key is {PUBLIC}\n")), "{text}");
    let path = file("server\nb @eth0\n");
    let name = path.display().to_string();
    assert!(said(&format!("{name} -n 4 --nft-table x")).contains("here it is x-4"));
    let bad = usage(["check", &name, "-n", "many"]);
    assert_eq!(bad, "--number: many is not a number from 0 to 4294967295");
    std::fs::remove_file(&path).expect("it was just written");
    assert!(usage(["check", "-s"]).starts_with("our end of the tunnel is missing"));
    assert_eq!(usage(["check", "--auth-keygen"]), "check: these options start no tunnel");
    assert!(usage(["check", "-s", "sever"]).starts_with("sever belongs to no option"));
}
