//! Keys, secrets and tokens: where they come from, and what is said when they cannot be right.

use std::os::unix::fs::PermissionsExt as _;

use clap::CommandFactory as _;
use ipipou::cli::Options;

use super::*;

/// A file that only we can read; removed when dropped.
struct Secret(PathBuf);

impl Secret {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let path = file(text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
        Secret(path)
    }

    fn path(&self) -> std::path::Display<'_> {
        self.0.display()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("ours");
    }
}

/// The start of the packet that a client signs, as in the shared test vectors.
fn signs(line: &str) -> Vec<u8> {
    let Credential::Key(signer) = client(line).credential else { panic!("{line}: no key") };
    signer.packet(1_700_000_000, [1, 2, 3, 4])
}

#[test]
fn a_secret_file_means_its_content() {
    let given = signs(&format!("--auth-key-b64 {PRIVATE} --auth-secret topsecret"));
    let secret = Secret::new("topsecret\n");
    for text in [
        PRIVATE.to_owned(),
        format!("{PRIVATE}\n"),
        format!("{PRIVATE}\r\n"),
        format!("{PRIVATE}\n{PUBLIC}\n"),
    ] {
        let key = Secret::new(&text);
        let line = format!("--auth-key-file {} --auth-secret-file {}", key.path(), secret.path());
        assert_eq!(signs(&line), given, "{text:?}");
    }
}

#[test]
fn one_newline_at_the_end_of_a_file_is_not_part_of_it() {
    for (text, token) in [
        (&b"t"[..], &b"t"[..]),
        (b"t\n", b"t"),
        (b"t\r\n", b"t"),
        (b"t\n\n", b"t\n"),
        (b" t # \n", b" t # "),
        (b"\"t\"", b"\"t\""),
        (b"t\nu\n", b"t\nu"),
        (b"\xff\0\n", b"\xff\0"),
    ] {
        let file = Secret::new(text);
        let policy = server(&format!("--auth-token-file {}", file.path())).policy;
        let Proof::Token(found) = policy.proof else { panic!("no token") };
        assert_eq!(found.as_bytes(), token, "{text:?}");
    }
    // What is signed is the same for a secret in a file and one in a `.conf` line, byte for byte.
    let key = format!("--auth-key-b64 {PRIVATE}");
    let conf = format!("client\nb @e\nr a:1\ntunl-ip 10.0.0.1\nauth-key-b64 {PRIVATE}\n");
    for text in [" a b", "\"a\"", "a # b"] {
        let Ok(Invocation::Run(run)) = with_file(format!("{conf}auth-secret {text}"), "") else {
            panic!("no run")
        };
        let of_line = Client::of(run.config);
        let Credential::Key(signer) = of_line.credential else { panic!("no key") };
        let file = Secret::new(format!("{text}\n"));
        let of_file = signs(&format!("{key} --auth-secret-file {}", file.path()));
        assert_eq!(of_file, signer.packet(1_700_000_000, [1, 2, 3, 4]), "{text:?}");
    }
}

#[test]
fn the_last_of_a_value_and_a_file_counts() {
    let secret = Secret::new("one");
    let key = format!("--auth-key-b64 {PRIVATE}");
    let one = signs(&format!("{key} --auth-secret one"));
    let two = signs(&format!("{key} --auth-secret two"));
    let path = secret.path();
    assert_eq!(signs(&format!("{key} --auth-secret two --auth-secret-file {path}")), one);
    assert_eq!(signs(&format!("{key} --auth-secret-file {path} --auth-secret two")), two);
    // Also when one of them stands in a `.conf` file: the command line wins.
    let text = format!("auth-key-file /nowhere\nauth-secret-file {path}\n");
    let Ok(Invocation::Run(run)) = with_file(&text, &format!("{CLIENT} {key}")) else {
        panic!("no run")
    };
    let client = Client::of(run.config);
    let Credential::Key(signer) = client.credential else { panic!("no key") };
    assert_eq!(signer.packet(1_700_000_000, [1, 2, 3, 4]), one);
}

#[test]
fn an_unusable_secret_file_is_refused_in_one_line() {
    const H7: &str = "h7u3q9z1";
    for (option, text, problem) in [
        ("--auth-key-file", String::new(), "is empty"),
        ("--auth-key-file", "\n".to_owned(), "is empty"),
        ("--auth-secret-file", "\n".to_owned(), "is empty"),
        ("--auth-token-file", "\r\n".to_owned(), "is empty"),
        ("--auth-key-file", H7.to_owned(), "has 6 bytes: an ed25519 key has 32"),
        ("--auth-key-file", format!("{H7}!"), "is not base64"),
        (
            "--auth-key-file",
            format!("{PRIVATE}\n{OTHER_PUBLIC}"),
            "not the public key of the first",
        ),
        ("--auth-key-file", format!("{PRIVATE}\n{H7}"), "not the public key of the first"),
        ("--auth-key-file", format!("{PRIVATE}\n{PUBLIC}\n{H7}"), "more lines than the two"),
        ("--auth-token-file", H7.repeat(200), "has 1600 bytes: a token has at most 1472"),
        ("--auth-secret-file", H7.repeat(10_000), "is larger than 64 KiB"),
    ] {
        let file = Secret::new(&text);
        let path = file.path().to_string();
        let line = usage(format!("{CLIENT} --auth-key-b64 {PRIVATE} {option} {path}").split(' '));
        assert!(line.starts_with(&format!("{option}: {path}: ")), "{line}");
        assert!(line.contains(problem) && !line.contains(H7), "{problem}: {line}");
        assert!(!line.contains(PRIVATE) && line.lines().count() == 1, "{line}");
    }
    for (path, problem) in [
        ("/nowhere/x", "cannot be read: No such file or directory"),
        ("/", "cannot be read: Is a directory"),
        ("/dev/zero", "is larger than 64 KiB"),
    ] {
        let line = usage(format!("{CLIENT} --auth-key-file {path}").split(' '));
        assert!(line.starts_with(&format!("--auth-key-file: {path}: {problem}")), "{line}");
    }
}

#[test]
fn a_secret_file_without_effect_is_refused() {
    let key = format!("--auth-remote-pubkey-b64 {PUBLIC}");
    for (line, other) in [
        (format!("{SERVER} --auth-key-file f"), "--auth-remote-pubkey-b64"),
        (format!("{SERVER} {key} --auth-key-file f"), "--reply-on-auth-ok"),
        (format!("{SERVER} --auth-secret-file f"), "--auth-remote-pubkey-b64"),
        (format!("{CLIENT} --auth-secret-file f"), "--auth-key-file"),
    ] {
        let secret = Secret::new(PRIVATE);
        let line = line.replace(" f", &format!(" {}", secret.path()));
        let said = usage(line.split(' '));
        assert!(said.contains(&format!("counts only with {other}")), "{said}");
    }
    let table = usage(format!("{NODE} --auth-token-file /dev/null").split(' '));
    assert!(table.contains("--auth-token-file: "), "{table}");
}

#[test]
fn a_secret_that_others_can_read_causes_a_warning() {
    let warned = |line: &str, what: &str| {
        let run = parse(line.split(' ')).expect("it parses");
        let (Invocation::Run(run) | Invocation::Reauth(run)) = run else { panic!("{line}") };
        run.warnings.iter().filter(|warning| warning.contains(what)).cloned().collect::<Vec<_>>()
    };
    let key = Secret::new(PRIVATE);
    let by_file = format!("{CLIENT} --auth-key-file {} --auth-secret s", key.path());
    assert_eq!(warned(&by_file, "chmod o-r"), Vec::<String>::new());
    std::fs::set_permissions(&key.0, std::fs::Permissions::from_mode(0o644)).expect("ours");
    assert_eq!(warned(&by_file, &format!("chmod o-r {}", key.path())).len(), 1);

    const PS: &str = "every user of this host can read a command line";
    for (line, named) in [
        (format!("{CLIENT} --auth-key-b64 {PRIVATE}"), "--auth-key-b64: "),
        (by_file.clone(), "--auth-secret: "),
        (
            format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-sec s"),
            "--auth-key-b64, --auth-secret: ",
        ),
        (format!("{SERVER} --auth-token t"), "--auth-token: "),
        (format!("{SERVER} --auth-token-b64 dA=="), "--auth-token-b64: "),
        #[cfg(feature = "hosts-url")]
        ("-b @e --tunl-ip 10.0.0.1 --hosts-url https://me:x@a/".to_owned(), "--hosts-url: "),
    ] {
        let warnings = warned(&line, PS);
        let [warning] = warnings.as_slice() else { panic!("{line}: {warnings:?}") };
        assert!(warning.starts_with(named), "{line}: {warning}");
        assert!(!warning.contains(PRIVATE), "{warning}");
    }
    for line in [
        format!("{SERVER} --auth-remote-pubkey-b64 {PUBLIC}"),
        // It sends one packet and is gone.
        format!("{CLIENT} --auth-key-b64 {PRIVATE} --reauth-only"),
        #[cfg(feature = "hosts-url")]
        "-b @e --tunl-ip 10.0.0.1 --hosts-url https://a/".to_owned(),
    ] {
        assert_eq!(warned(&line, PS), Vec::<String>::new(), "{line}");
    }
    let text = format!("client\nb @e\nr a:1\ntunl-ip 10.0.0.1\nauth-key-b64 {PRIVATE}\n");
    let Ok(Invocation::Run(run)) = with_file(text, "") else { panic!("no run") };
    assert!(!run.warnings.iter().any(|warning| warning.contains(PS)), "{:?}", run.warnings);
}

/// A private key of the Python program that is a point of the curve, and not in the subgroup.
const POINT: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[test]
fn a_private_key_in_place_of_a_public_one_is_refused() {
    for (private, conf) in [(POINT, false), (POINT, true), (PRIVATE, false)] {
        let line = match conf {
            true => match with_file(format!("server\nauth-remote-pubkey-b64 {private}"), "") {
                Err(CliError::Usage(line)) => line,
                other => panic!("{other:?}"),
            },
            false => usage(format!("{SERVER} --auth-remote-pubkey-b64 {private}").split(' ')),
        };
        assert!(line.contains("auth-remote-pubkey-b64: the value is not an ed25519 public key"));
        assert!(!line.contains(private), "{line}");
    }
}

#[test]
fn a_public_key_in_place_of_a_private_one_causes_a_warning() {
    let said = |line: &str| {
        let warnings = run(line).warnings;
        warnings.iter().find(|warning| warning.contains("looks like a public key")).cloned()
    };
    let ours = format!("{CLIENT} --auth-key-b64 {PUBLIC} --auth-secret s");
    let warning = said(&ours).expect("it is a public key");
    let client = Client::of(run(&ours).config);
    let Credential::Key(signer) = client.credential else { panic!("no key") };
    assert!(warning.contains(&ipipou::auth::key_text(&signer.public())), "{warning}");
    assert!(!warning.contains(PUBLIC), "{warning}");
    assert_eq!(said(&format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-secret s")), None);
    let both = format!("{SERVER} --auth-remote-pubkey-b64 {OTHER_PUBLIC} --reply-on-auth-ok");
    assert!(said(&format!("{both} --auth-key-b64 {PUBLIC}")).is_some());
    assert_eq!(said(&format!("{both} --auth-key-b64 {PRIVATE}")), None);
}

#[test]
fn a_placeholder_is_refused_in_every_option() {
    const PLACEHOLDERS: [&str; 4] =
        ["<the shared secret>", "<SECRET>", "<the client's private key>", "<a_b-c.d>"];
    let command = Options::command();
    let with_value = command.get_arguments().filter(|option| option.get_action().takes_values());
    let names: Vec<_> = with_value.filter_map(clap::Arg::get_long).collect();
    assert!(names.len() > 40, "{names:?}");
    for option in names.into_iter().filter(|name| *name != "config") {
        for value in PLACEHOLDERS {
            let line = usage(["-s", "-b", "@e", &format!("--{option}={value}")]);
            let expected = " is a placeholder: put what it stands for in its place";
            assert!(
                line.starts_with(&format!("--{option}: ")) && line.ends_with(expected),
                "{line}"
            );
            let Err(CliError::Usage(line)) = with_file(format!("server\n{option} {value} "), "")
            else {
                panic!("{option} {value}")
            };
            assert!(line.starts_with(&format!("FILE:2: {option}: ")), "{line}");
            assert!(line.ends_with(expected), "{line}");
        }
    }
    let file = Secret::new("<the shared secret>\n");
    let line = format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-secret-file {}", file.path());
    assert!(usage(line.split(' ')).ends_with("put what it stands for in its place"));
    // What somebody made up is none.
    for secret in ["<", "<>", "<x", "x>", "<3?>", "a<b>", "<b>a", "<x{y>"] {
        let args = ["-s", "-b", "@e", "--auth-token", secret];
        assert!(matches!(parse(args), Ok(Invocation::Run(_))), "{secret}");
    }
}

#[test]
fn every_placeholder_of_the_files_to_install_is_refused() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/ipipou");
    let mut found = 0;
    for entry in std::fs::read_dir(directory).expect("it is in the repository") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue; // the program itself reads the others
        }
        let text = std::fs::read_to_string(&path).expect("it can be read");
        for line in text.lines().filter(|line| line.ends_with('>') && !line.starts_with("# ")) {
            let line = line.trim_start_matches('#');
            let Err(CliError::Usage(said)) = with_file(line, "") else { panic!("{line}") };
            assert!(said.ends_with("put what it stands for in its place"), "{line}: {said}");
            found += 1;
        }
    }
    assert!(found >= 7, "{found}");
}

#[test]
fn a_secret_with_blanks_or_quotes_is_kept_with_a_warning() {
    for (text, said) in [
        (" a", "begins or ends with a blank"),
        ("\"a\"", "begins and ends with a quote"),
        ("'a b'", "begins and ends with a quote"),
        ("a # b", "has a # behind a blank"),
        ("a\t#", "has a # behind a blank"),
    ] {
        for (option, rest) in [
            ("auth-secret", format!("auth-remote-pubkey-b64 {PUBLIC}")),
            ("auth-token", "v".to_owned()),
        ] {
            let text = format!("server\nb @eth0\n{option} {text}\n{rest}");
            let Ok(Invocation::Run(run)) = with_file(&text, "") else { panic!("{text}") };
            let start = format!("--{option} {said}");
            let about: Vec<_> =
                run.warnings.iter().filter(|warning| warning.starts_with(&start)).collect();
            assert_eq!(about.len(), 1, "{text}: {:?}", run.warnings);
            assert!(about[0].contains("part of it"), "{about:?}");
        }
    }
    for text in ["a\"b", "\"", "a#b", "#a", "it's"] {
        let warnings = run(&format!("-s -b @e --auth-token {text}")).warnings;
        assert!(!warnings.iter().any(|warning| warning.contains("part of it")), "{warnings:?}");
    }
}
