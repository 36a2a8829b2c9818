//! Whatever is given: nothing panics, messages are one line, and a file means what the same
//! options mean on the command line.

use clap::CommandFactory as _;
use ipipou::cli::Options;
use proptest::prelude::*;

use super::*;

fn valid_option() -> impl Strategy<Value = (String, Option<String>)> {
    let command = Options::command();
    let is_flag = |option: &&clap::Arg| matches!(option.get_action(), clap::ArgAction::SetTrue);
    let flags = command.get_arguments().filter(is_flag).filter_map(clap::Arg::get_long);
    // Its value may be left out.
    let flags: Vec<_> = flags.chain(["masquerade"]).map(str::to_owned).collect();
    let flags = prop::sample::select(flags);
    let values = prop::sample::select(vec![
        ("number", "5"),
        ("number", "40000"),
        ("queue-number", "9"),
        ("fou-local", "@eth0"),
        ("fou-local", "192.0.2.1:5"),
        ("fou-local-ip", "192.0.2.2"),
        ("fou-local-port", "77"),
        ("fou-remote", "a.example:6"),
        ("fou-remote-ip", "192.0.2.3"),
        ("fou-remote-port", "7"),
        ("tunl-ip", "10.0.0.1"),
        ("tunl-peer-ip", "10.0.0.2"),
        ("tunl-dev", "tun9"),
        ("keepalive", "27"),
        ("auth-lifetime", "0"),
        ("auth-key-b64", PRIVATE),
        ("auth-remote-pubkey-b64", OTHER_PUBLIC),
        ("auth-token-b64", "Yg=="),
        ("nft-table", "x"),
        ("rp-filter", "loose"),
        ("verb", "3"),
        ("auth-packet-ttl", "9"),
        ("memory-dir", "/s t"),
        ("tunl-ip", "10.0.0.1/24"),
        ("ip6", "fd00::1"),
        ("datapath", "tun"),
        ("tun-queues", "2"),
        ("fou-local", "[2001:db8::1]:5"),
        ("learn-lifetime", "9"),
        ("learn-limit", "9"),
        ("hosts-file", "/a b"),
        ("hosts-url", "https://a/b"),
        ("hosts-url-interval", "60"),
        ("ca-file", "/a b"),
        ("ca-path", "/a b"),
        ("route", "10.1.0.0/16"),
        ("route", "10.2.0.0/16"),
        ("route", "2001:db8::/32"),
        ("dns", "9.9.9.9"),
        ("masquerade", "eth1"),
    ]);
    let text = "[^\n\r]{1,20}";
    prop_oneof![
        flags.prop_map(|flag| (flag, None)),
        values.prop_map(|(option, value)| (option.to_owned(), Some(value.to_owned()))),
        text.prop_map(|text| ("auth-secret".to_owned(), Some(text))),
        text.prop_map(|text| ("auth-token".to_owned(), Some(text))),
    ]
}

/// Everything about an outcome, secrets by what they sign.
fn outcome(mut result: Result<Invocation, CliError>) -> String {
    if let Ok(Invocation::Run(run)) = &mut result {
        // Of the command line only.
        run.warnings.retain(|warning| !warning.contains("can read a command line"));
    }
    let proof = match &result {
        Ok(Invocation::Run(run) | Invocation::Reauth(run)) => {
            let (shows, expects) = (run.config.shows(), run.config.expects());
            match (shows.map(|s| &s.credential), expects.map(|e| (&e.policy.proof, &e.reply))) {
                (Some(Credential::Key(signer)), _) => format!("{:?}", signer.packet(1, [0; 4])),
                (Some(Credential::Token(token)), _) => format!("{:?}", token.as_bytes()),
                (None, Some((Proof::Token(token), _))) => format!("{:?}", token.as_bytes()),
                (None, Some((_, Reply::Signed(s)))) => format!("{:?}", s.packet(1, [0; 4])),
                (Some(Credential::Empty), _) | (None, _) => String::new(),
            }
        }
        _ => String::new(),
    };
    format!("{result:?} {proof}")
}

proptest! {
    #[test]
    fn a_file_equals_the_command_line(options in prop::collection::vec(valid_option(), 0..12)) {
        let (mut text, mut args) = (String::new(), Vec::new());
        for (option, value) in &options {
            match value {
                Some(value) => {
                    text += &format!("{option} {value}\n");
                    args.push(format!("--{option}={value}"));
                }
                None => {
                    text += &format!("  --{option}\r\n");
                    args.push(format!("--{option}"));
                }
            }
        }
        let path = file(text);
        // Otherwise the file is warned about, and the command line is not.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private).expect("ours");
        let from_file = parse([Path::new("--config"), &path]);
        std::fs::remove_file(&path).expect("it was just written");
        prop_assert_eq!(outcome(from_file), outcome(parse(args)));
    }

    #[test]
    fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(CliError::Usage(lines)) = with_file(bytes, "") {
            let bad = lines.lines().filter(|line| line.starts_with("FILE:")).count();
            prop_assert!(lines.lines().count() == bad.max(1), "{}", lines);
        }
    }

    #[test]
    fn no_line_makes_it_panic(key in "-{0,2}[a-z0-9-]{0,20}", value in "\\PC{0,40}") {
        if let Err(CliError::Usage(line)) = with_file(format!("{key} {value}"), "") {
            prop_assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn no_argument_makes_it_panic(args in prop::collection::vec(any::<Vec<u8>>(), 0..6)) {
        use std::os::unix::ffi::OsStringExt as _;
        let args = args.into_iter().map(OsString::from_vec);
        if let Err(CliError::Usage(line)) = parse(args) {
            prop_assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn no_value_makes_it_panic((option, _) in valid_option(), value in any::<String>()) {
        for line in [CLIENT, SERVER, HUB, NODE] {
            let mut args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            args.push(format!("--{option}={value}"));
            if let Err(CliError::Usage(line)) = parse(args) {
                prop_assert_eq!(line.lines().count(), 1);
            }
        }
    }
}
