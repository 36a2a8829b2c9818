//! What is said when something is wrong, and what is never said.

use super::*;

/// `UPDATE_GOLDEN=1 cargo test --test cli` writes the messages again.
#[test]
#[cfg(feature = "hosts-url")]
fn every_usage_error_is_one_clear_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/usage-errors.txt");
    let golden = std::fs::read_to_string(&path).expect("it is in the repository");
    let mut actual = String::new();
    for line in golden.lines().filter_map(|line| line.strip_prefix("$ ipipou ")) {
        let message = usage(line.split_whitespace());
        actual += &format!("$ ipipou {line}\nipipou: {message}\n");
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &actual).expect("the repository can be written");
    } else {
        assert_eq!(actual, golden);
    }
}

#[test]
fn no_message_repeats_a_secret() {
    const SECRET: &str = "h7u3q9z1";
    let too_long = SECRET.repeat(200);
    for args in [
        vec!["--auth-key-b64", SECRET],
        vec!["--auth-key-b46=h7u3q9z1"],
        vec!["--auth-remote-pubkey-b64", "h7u3q9z1!"],
        vec!["--auth-token-b64", "h7u3q9z1!"],
        vec!["--auth-token", &too_long],
        vec!["--auth-secret", "two", SECRET],
        vec!["-s", "--auth-secret", "two", SECRET],
        vec!["--hosts-url", "htps://me:h7u3q9z1@a/"],
    ] {
        let line = usage(args.clone());
        assert!(!line.contains(SECRET), "{args:?}: {line}");
    }
    for text in
        ["h7u3q9z1=", "auth-key-b64 h7u3q9z1", "auth-tokn h7u3q9z1", "auth-key-b64=h7u3q9z1"]
    {
        let Err(CliError::Usage(line)) = with_file(text, "") else { panic!("{text}") };
        assert!(!line.contains(SECRET), "{text}: {line}");
    }
    let key = format!("{CLIENT} --auth-key-b64 {PRIVATE} --auth-secret {SECRET}");
    let run = parse(key.split(' '));
    assert!(!format!("{run:?}").contains(SECRET) && !format!("{run:?}").contains(PRIVATE));
}
