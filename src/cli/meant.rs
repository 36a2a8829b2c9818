//! Guesses what was meant by a word that the program does not know.

use std::ffi::OsString;
use std::path::Path;

use strsim::osa_distance;

use super::places;

/// How many options a guess names at most.
const NAMED: usize = 3;

/// Commands that other programs have, and what to use instead of them.
const ELSEWHERE: [(&[&str], &str); 7] = [
    (
        &["start", "up", "run", "restart", "add", "connect"],
        "a tunnel is started by its options, or by `systemctl start ipipou@NAME`",
    ),
    (
        &["stop", "down", "kill", "del", "delete", "disconnect", "quit"],
        "a tunnel ends with its process: `systemctl stop ipipou@NAME`, or Ctrl-C",
    ),
    (&["reload", "reauth"], "give a service `systemctl reload ipipou@NAME`, or see --reauth-only"),
    (&["status", "list", "ls", "info", "stats"], "did you mean show?"),
    (&["help", "usage", "man"], "did you mean -h?"),
    (&["version"], "did you mean --version?"),
    (&["keygen", "key", "keys"], "did you mean genkey?"),
];

/// Asks whether these options were meant, each with `dashes` before it.
pub fn question(dashes: &str, options: &[&str]) -> Option<String> {
    let (last, others) = options.split_last()?;
    let mut text = String::from("did you mean ");
    for (index, option) in others.iter().enumerate() {
        let separator = if index + 1 == others.len() { " or " } else { ", " };
        text.extend([dashes, option, separator]);
    }
    text.extend([dashes, last, "?"]);
    Some(text)
}

/// Finds the long options that a name resembles: it has a typing error, is the end of theirs, or
/// lacks some of their parts (`auth-pubkey`).
pub fn options<'a>(name: &str, command: &'a clap::Command) -> Vec<&'a str> {
    let name = name.trim_matches('-').to_lowercase().replace('_', "-");
    if name.len() < 2 {
        return Vec::new();
    }
    let long = || command.get_arguments().filter_map(clap::Arg::get_long);
    let mut by_distance: Vec<_> = long().map(|long| (osa_distance(&name, long), long)).collect();
    by_distance.sort_by_key(|(distance, _)| *distance);
    let within = |most: usize| -> Vec<&str> {
        let nearest = by_distance.first().map_or(0, |(distance, _)| *distance);
        let near = by_distance.iter().filter(|(d, _)| *d == nearest && *d <= most);
        near.map(|(_, long)| *long).collect()
    };
    let is_end = |long: &&str| long.strip_suffix(&*name).is_some_and(|rest| rest.ends_with('-'));
    let found = [
        within(1),
        long().filter(is_end).collect(),
        long().filter(|long| has_parts(long, &name)).collect(),
        within(name.len() / 4),
    ];
    let mut found = found.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    found.truncate(NAMED);
    found
}

/// Whether all parts of `name` begin parts of an option, in this order.
fn has_parts(long: &str, name: &str) -> bool {
    let mut parts = long.split('-');
    name.split('-').all(|part| parts.any(|other| other.starts_with(part)))
}

/// Finds a long option with one hyphen, as `-server`, which the parser takes for several short
/// ones. Returns the word as given, and the option.
pub fn with_one_hyphen<'a>(
    words: impl IntoIterator<Item = &'a str>,
    command: &clap::Command,
) -> Option<(&'a str, String)> {
    words.into_iter().find_map(|word| {
        let name = word.strip_prefix('-').filter(|name| !name.starts_with('-'))?;
        let name = name.split('=').next().filter(|name| name.len() > 2)?;
        let long = || command.get_arguments().filter_map(clap::Arg::get_long);
        let mut begin_so = long().filter(|long| long.starts_with(name));
        let meant = match (long().find(|long| *long == name), begin_so.next(), begin_so.next()) {
            (Some(exact), _, _) => exact,
            (None, Some(only), None) => only,
            (None, _, _) => return None,
        };
        Some((word, format!("--{meant}")))
    })
}

/// Guesses what was meant by the word before a stray one: the parser takes `-remote` for `-r
/// emote`, which has its value already.
pub fn behind_one_hyphen(word: &str, command: &clap::Command) -> Option<String> {
    let name = word.strip_prefix('-').filter(|name| !name.starts_with('-') && name.len() > 2)?;
    let (letter, value) = name.split_at_checked(1)?;
    let question = question("--", &options(name, command))?;
    Some(format!("{word} is -{letter} {value}: {question}"))
}

/// Finds the first word that is neither an option nor a value of one, and its place.
pub fn stray<'a>(args: &'a [OsString], command: &clap::Command) -> Option<(usize, &'a str)> {
    let takes_value = |arg: &clap::Arg| arg.get_action().takes_values();
    let mut is_value = false;
    for (position, word) in args.iter().enumerate().skip(1) {
        let word = word.to_str()?;
        if word.starts_with("--") {
            let (name, given) =
                word.split_once('=').map_or((word, false), |(name, _)| (name, true));
            let name = name.trim_start_matches('-');
            let long = |arg: &&clap::Arg| arg.get_long().is_some_and(|l| l.starts_with(name));
            is_value = !given && command.get_arguments().find(long).is_some_and(takes_value);
        } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            let short = |letter| command.get_arguments().find(|a| a.get_short() == Some(letter));
            let first = letters.chars().position(|letter| short(letter).is_some_and(takes_value));
            // A value may be joined to it.
            is_value = first.is_some_and(|first| first + 1 == letters.chars().count());
        } else if !std::mem::take(&mut is_value) {
            return Some((position, word));
        }
    }
    None
}

/// Says what to do instead of giving this word, which belongs to no option.
pub fn instead_of(word: &str, command: &clap::Command) -> Option<String> {
    let elsewhere = ELSEWHERE.iter().find(|(words, _)| words.contains(&word));
    if let Some((_, instead)) = elsewhere {
        return Some((*instead).to_owned());
    }
    if let Some(device) = word.strip_prefix('@') {
        return question("-b @", &[device]);
    }
    let commands = command.get_subcommands().filter(|known| !known.is_hide_set());
    let near = |known: &str| osa_distance(word, known) < known.len() / 2;
    let commands: Vec<_> = commands.map(clap::Command::get_name).filter(|c| near(c)).collect();
    if !commands.is_empty() {
        return question("", &commands);
    }
    // Hyphens of a word processor, or none at all.
    let name = word.trim_start_matches(['–', '—', '−', '‐', '‑']);
    let options = options(name, command);
    if let Some(question) = question("--", &options) {
        return Some(question);
    }
    let is_name = !word.contains('/') && places::conf_path(Path::new(word)).exists();
    is_name.then(|| format!("did you mean --config {word}?"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::options::Options;
    use super::*;

    fn meant(name: &str) -> String {
        let command = Options::command();
        question("--", &options(name, &command)).unwrap_or_default()
    }

    #[test]
    fn misspellings_and_parts_of_an_option_find_it() {
        for (name, expected) in [
            ("sever", "did you mean --server?"),
            ("Server", "did you mean --server?"),
            ("keep-alive", "did you mean --keepalive?"),
            ("auth_secret", "did you mean --auth-secret?"),
            ("auth-pubkey", "did you mean --auth-remote-pubkey-b64?"),
            ("pubkey", "did you mean --auth-remote-pubkey-b64?"),
            ("remote", "did you mean --fou-remote?"),
            ("secret", "did you mean --auth-secret?"),
            ("dev", "did you mean --fou-dev or --tunl-dev?"),
            ("peer-ip", "did you mean --tunl-peer-ip?"),
            ("monitor", ""),
            ("x", ""),
            ("h7u3q9z1h7u3q9z1h7u3q9z1", ""),
        ] {
            assert_eq!(meant(name), expected, "{name}");
        }
    }

    #[test]
    fn a_long_option_with_one_hyphen_is_recognised() {
        let command = Options::command();
        let found = |word| with_one_hyphen([word], &command).map(|(_, meant)| meant);
        assert_eq!(found("-server"), Some("--server".to_owned()));
        assert_eq!(found("-number=3"), Some("--number".to_owned()));
        assert_eq!(found("-vers"), Some("--version".to_owned()));
        for other in ["-vvv", "-n3", "-s", "--server", "-b@eth0", "-auth", "server"] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_long_option_read_as_a_short_one_and_its_value_is_recognised() {
        let command = Options::command();
        let behind = |word| behind_one_hyphen(word, &command).unwrap_or_default();
        assert_eq!(behind("-remote"), "-remote is -r emote: did you mean --fou-remote?");
        let meant = "did you mean --fou-remote-ip or --auth-by-remote-ip?";
        assert_eq!(behind("-remote-ip"), format!("-remote-ip is -r emote-ip: {meant}"));
        for other in ["-r", "-vv", "--remote", "remote", "-r192.0.2.1", "-bé"] {
            assert_eq!(behind(other), "", "{other}");
        }
    }

    #[test]
    fn words_of_other_programs_are_recognised() {
        let command = Options::command();
        let instead = |word| instead_of(word, &command).unwrap_or_default();
        assert!(instead("stop").contains("systemctl stop"));
        assert_eq!(instead("shwo"), "did you mean show?");
        assert_eq!(instead("status"), "did you mean show?");
        assert_eq!(instead("server"), "did you mean --server?");
        assert_eq!(instead("—server"), "did you mean --server?");
        assert_eq!(instead("@eth0"), "did you mean -b @eth0?");
        assert_eq!(instead("8.8.8.8"), "");
    }
}
