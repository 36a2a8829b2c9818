//! The program itself: exit codes, and what goes where.

use std::process::{Command, Output, Stdio};

use super::*;

#[allow(clippy::disallowed_methods)] // a test starts what it tests
fn ipipou(args: &[&str]) -> Output {
    // No terminal at all, so that help is as wide as it gets.
    Command::new(env!("CARGO_BIN_EXE_ipipou"))
        .args(args)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("the program is there")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

#[test]
fn usage_errors_exit_with_2_and_one_line() {
    for args in [
        &["-s"][..],
        &[],
        &["--nonsense"],
        &["--fou-local-port", "70000"],
        &["--config", "/nowhere"],
        &["--auth-key-b64", "short"],
        &["-s", "-b", "@eth0", "--reauth-only"],
        &["-b", "a\nb"],
    ] {
        let output = ipipou(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("ipipou: ") && stderr.ends_with('\n'), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn keygen_prints_a_pair_that_works() {
    let output = ipipou(&["--auth-keygen"]);
    assert_eq!(output.status.code(), Some(0));
    let [private, public] = stdout(&output).lines().collect::<Vec<_>>()[..] else {
        panic!("not two lines");
    };
    let credential = client(&format!("--auth-key-b64 {private} --auth-secret s")).credential;
    let Credential::Key(signer) = credential else { panic!("no key") };
    assert_eq!(signer.public(), *ipipou::auth::parse_key(public).expect("a key"));

    let output = ipipou(&["--auth-keygen", "-v"]);
    let [private, public] = stdout(&output).lines().collect::<Vec<_>>()[..] else {
        panic!("not two lines");
    };
    let key = |line: &str, label| line.strip_prefix(label).map(str::len);
    assert_eq!(key(private, "Private key (ed25519, 32 bytes): "), Some(44));
    assert_eq!(key(public, "Public  key (ed25519, 32 bytes): "), Some(44));
}

/// `UPDATE_GOLDEN=1 cargo test --test cli` writes the file again.
#[test]
fn help_matches_the_golden_file() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    let output = ipipou(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, ipipou(&["--help"]).stdout);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &output.stdout).expect("the repository can be written");
    }
    let expected = std::fs::read_to_string(&golden).expect("it is in the repository");
    assert_eq!(stdout(&output), expected);
}

#[test]
fn documents_know_every_option() {
    let output = ipipou(&["-h"]);
    let options: Vec<&str> = stdout(&output)
        .split_whitespace()
        .filter(|word| word.starts_with("--") && word.len() > 4)
        .map(|word| {
            let letter = |c: char| c.is_ascii_alphanumeric() || c == '-';
            word.split(|c| !letter(c)).next().unwrap_or_default()
        })
        .collect();
    for document in ["man", "bash", "zsh", "fish"] {
        let output = ipipou(&["generate", document]);
        assert_eq!(output.status.code(), Some(0), "{document}");
        let text = stdout(&output).replace("\\-", "-");
        for option in &options {
            let known = text.contains(option) || text.contains(&format!("-l {}", &option[2..]));
            assert!(known, "{document}: {option}");
        }
    }
}

/// What the man page says of exit codes is what the program knows, in rising order.
#[test]
fn the_man_page_has_the_exit_codes_that_are_used() {
    let output = ipipou(&["generate", "man"]);
    let page = stdout(&output);
    let (_, section) = page.split_once(".SH \"EXIT STATUS\"\n").expect("a section");
    let (section, _) = section.split_once(".SH ").expect("another section");
    let codes: Vec<u8> = section
        .split(".TP\n")
        .filter_map(|entry| entry.strip_prefix("\\fB")?.split_once("\\fR"))
        .map(|(code, meaning)| {
            assert!(meaning.trim().ends_with('.'), "{code}: {meaning}");
            code.parse().expect("a number")
        })
        .collect();
    assert_eq!(codes, [0, 1, 2, 10, 20, 40, 51, 52, 53, 54, 120, 200]);
    assert_eq!(codes, ipipou::daemon::Exit::ALL.map(ipipou::daemon::Exit::code));
}
