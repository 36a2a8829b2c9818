//! What stands in `.conf` files.

use super::*;

#[test]
fn files_come_before_the_command_line_and_it_wins() {
    let text = "server\nnumber 3\nfou-local @eth0\nfou-local-port 7\nauth-token a b\nv\n";
    let Ok(Invocation::Run(run)) = with_file(text, "-n 4 -v") else { panic!("no run") };
    let Role::Server(server) = run.role else { panic!("a client") };
    assert_eq!(server.tunnel.device.as_str(), "ipipou4");
    assert_eq!(server.tunnel.port.get(), 7);
    assert_eq!(run.log.verbosity, 2);
    let Proof::Token(token) = server.policy.proof else { panic!("no token") };
    assert_eq!(token.as_bytes(), b"a b");

    let (first, second) = (file("server\nn 1\nb @eth0"), file("n 2"));
    let args = [Path::new("--config"), &first, Path::new("--config"), &second];
    let Ok(Invocation::Run(run)) = parse(args) else { panic!("no run") };
    let Role::Server(server) = run.role else { panic!("a client") };
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
    assert_eq!(line, "FILE: is larger than 1 MiB: that is no configuration file");
}

#[test]
fn a_secret_that_everybody_can_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt as _;
    const TABLE: &str = "tunl-ip 10.0.0.1\nhosts-url https://a/";
    const TABLE_WITH_PASSWORD: &str = "tunl-ip 10.0.0.1\nhosts-url https://me:x@a/";
    for (mode, text, warned) in [
        (0o644, "auth-token x", true),
        (0o640, "auth-token x", false),
        (0o644, "server", false),
        (0o644, TABLE, false),
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
        ("hub0", Some(PUBLIC)),
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
        let text = with_keys(&text, key.unwrap_or_default());
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

/// A file with `key` in place of `<…>`.
fn with_keys(text: &str, key: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" <") {
        Some((option, _)) if !line.starts_with('#') => format!("{option} {key}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
