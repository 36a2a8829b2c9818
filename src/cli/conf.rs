//! Turns the lines of a `.conf` file into command line arguments.
//!
//! One option per line: leading blanks, tabs and hyphens are dropped, the key runs to the first
//! blank (or `=`), the rest is the value. Empty lines and lines that start with `#` are skipped. A
//! key of one letter is a short option; a longer one may be shortened as on the command line.
//!
//! Of the end of a line only `\n` and `\r` are dropped. Blanks at the end belong to the value, since
//! a secret may end in one and the other end would have it; where they cannot matter, the value's
//! own parser drops them.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::explain::{LIST, beginning_with, explain, placeholder, shown, unknown_option};
use super::{meant, options};

/// Says what is wrong with a file, and in which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfError {
    pub file: PathBuf,
    /// Counted from 1; `None` when the whole file is meant.
    pub line: Option<usize>,
    pub problem: String,
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ConfError {}

/// Everything that is wrong with a file, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfErrors(pub Vec<ConfError>);

/// How many bad lines are named at most: a file of another kind has thousands.
const NAMED: usize = 20;

impl ConfErrors {
    /// Returns the first errors as text, and how many more there are.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.0.iter().take(NAMED).map(ToString::to_string).collect();
        if let (more @ 1.., Some(first)) = (self.0.len().saturating_sub(NAMED), self.0.first()) {
            lines.push(format!("{}: {more} more bad lines", first.file.display()));
        }
        lines
    }
}

impl fmt::Display for ConfErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for ConfErrors {}

/// Returns the arguments in `text`, the contents of `path`. Every line is parsed by itself with
/// `command`, so that an error can name it; all together parse without error afterwards.
///
/// # Errors
/// For every line that is not an option, or has a value that its option does not take.
pub fn arguments(
    text: &[u8],
    path: &Path,
    command: &mut clap::Command,
) -> Result<Vec<OsString>, ConfErrors> {
    Ok(numbered(text, path, command)?.into_iter().map(|(_, argument)| argument).collect())
}

/// Returns the arguments, each with the number of its line, from 1.
///
/// # Errors
/// As [`arguments`].
pub fn numbered(
    text: &[u8],
    path: &Path,
    command: &mut clap::Command,
) -> Result<Vec<(usize, OsString)>, ConfErrors> {
    // Without this, help and the derived settings are not in the table yet.
    command.build();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text); // byte order mark
    let (mut arguments, mut errors) = (Vec::new(), Vec::new());
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        match checked(line, command) {
            Ok(argument) => arguments.extend(argument.map(|argument| (index + 1, argument))),
            Err(problem) => {
                errors.push(ConfError { file: path.into(), line: Some(index + 1), problem });
            }
        }
    }
    if errors.is_empty() { Ok(arguments) } else { Err(ConfErrors(errors)) }
}

/// Returns the argument that a line stands for, if it parses.
fn checked(line: &[u8], command: &mut clap::Command) -> Result<Option<OsString>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "not valid UTF-8".to_owned())?;
    let line = line.trim_end_matches('\r');
    let explained = |problem: String| match hint(line) {
        Some(hint) => format!("{problem}; {hint}"),
        None => problem,
    };
    let Some(argument) = argument(line, command).map_err(explained)? else { return Ok(None) };
    let matches = command
        .try_get_matches_from_mut([&"ipipou".into(), &argument])
        .map_err(|error| explained(bare(&explain(&error, command, &[]))))?;
    match placeholder(&matches, command) {
        Some(problem) => Err(bare(&problem)),
        None => Ok(Some(argument)),
    }
}

/// Says what in a bad line was probably not meant as a part of its value.
fn hint(line: &str) -> Option<&'static str> {
    let value = line.trim().split_once([' ', '\t', '=']).map_or("", |(_, value)| value.trim());
    let quoted = |quote| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
    if line.contains(" #") || line.contains("\t#") {
        Some("a comment needs a line of its own")
    } else if quoted('"') || quoted('\'') {
        Some("values stand without quotes")
    } else {
        None
    }
}

/// Makes one argument from a line. The value is joined to its key with `=`, so that it can begin
/// with a hyphen.
fn argument(line: &str, command: &clap::Command) -> Result<Option<OsString>, String> {
    if line.trim_start_matches([' ', '\t']).starts_with('#') {
        return Ok(None);
    }
    let line = line.trim_start_matches([' ', '\t', '-']);
    let (key, value) = match line.split_once([' ', '\t', '=']) {
        Some((key, value)) => (key, Some(value).filter(|value| !value.is_empty())),
        None => (line, None),
    };
    if key.is_empty() {
        return if line.is_empty() { Ok(None) } else { Err("no option before '='".to_owned()) };
    }
    let option = find(key, command)?;
    let name = option.get_long().unwrap_or(key);
    if options::attributes(name).is_some_and(|option| !option.in_files) {
        return Err(format!("{name} belongs on the command line"));
    }
    let needs_value = option.get_num_args().is_some_and(|range| range.min_values() > 0);
    let value = value.filter(|value| needs_value || !value.trim().is_empty());
    match (option.get_action().takes_values(), value) {
        (true, Some(value)) => Ok(Some(format!("--{name}={value}").into())),
        (true, None) if needs_value => Err(format!("{name} needs a value")),
        (false, Some(_)) => Err(format!("{name} takes no value")),
        (_, None) if option.get_long().is_some() => Ok(Some(format!("--{name}").into())),
        (_, None) => Ok(Some(format!("-{name}").into())),
    }
}

/// Finds the option that a key means. A letter is always a short option; a longer key is a long
/// option, or the beginning of only one.
fn find<'a>(key: &str, command: &'a clap::Command) -> Result<&'a clap::Arg, String> {
    let mut letters = key.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    let unique = beginning_with(key, command);
    command
        .get_arguments()
        .find(|arg| match letter {
            Some(_) => arg.get_short() == letter,
            None => names(arg, key) || unique == [arg.get_long().unwrap_or_default()],
        })
        .ok_or_else(|| no_option(key, letter.is_some(), command))
}

fn names(arg: &clap::Arg, key: &str) -> bool {
    let alias = || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&key));
    arg.get_long() == Some(key) || alias()
}

/// Describes a key that is not an option. It is repeated only if it is a word or resembles an
/// option: otherwise it may be a private key or a token on a line of its own.
fn no_option(key: &str, letter: bool, command: &clap::Command) -> String {
    if letter {
        return format!("unknown option {}; {LIST}", shown(key));
    }
    let is_word = key.len() <= 24 && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if is_word {
        return bare(&unknown_option(&format!("--{key}"), command));
    }
    match meant::options(key, command).is_empty() && beginning_with(key, command).is_empty() {
        true => format!("the line does not begin with an option; {LIST}"),
        false => bare(&unknown_option(&format!("--{key}"), command)),
    }
}

/// Removes the hyphens before options, which have none in a file.
pub fn bare(problem: &str) -> String {
    problem.strip_prefix("--").unwrap_or(problem).replace(" --", " ").replace("(--", "(")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::options::Options;
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let read = arguments(text.as_bytes(), Path::new("f"), &mut Options::command());
        let texts = |list: Vec<OsString>| {
            list.into_iter().map(|arg| arg.into_string().expect("from a str")).collect()
        };
        read.map(texts).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_an_option() {
        for (text, expected) in [
            ("", vec![]),
            ("# server\n\n   \n \t# indented\n---\n", vec![]),
            ("server\nn 3\n", vec!["--server", "--number=3"]),
            ("  --fou-dev eth0\r\n\t-v\r\n", vec!["--fou-dev=eth0", "-v"]),
            ("auth-secret two words \r\n", vec!["--auth-secret=two words "]),
            ("auth-secret  x", vec!["--auth-secret= x"]),
            ("auth-token -x=y", vec!["--auth-token=-x=y"]),
            ("auth-token=x y", vec!["--auth-token=x y"]),
            ("auth-secret #no comment", vec!["--auth-secret=#no comment"]),
            ("tunl-i 10.0.0.1", vec!["--tunl-ip=10.0.0.1"]),
            ("tunl-dev\teth7", vec!["--tunl-dev=eth7"]),
            ("server  ", vec!["--server"]),
            ("\u{feff}server", vec!["--server"]),
            ("masquerade\nmasquerade  \n", vec!["--masquerade", "--masquerade"]),
            ("masquerade eth0", vec!["--masquerade=eth0"]),
            (
                "route 10.1.0.0/16\nroute 10.2.0.0/16",
                vec!["--route=10.1.0.0/16", "--route=10.2.0.0/16"],
            ),
            ("for", vec!["--force-fou-local-ip-alt"]),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (text, expected) in [
            ("sever", "f:1: unknown option sever; did you mean server?"),
            ("server\nx", "f:2: unknown option x; `ipipou -h` lists all"),
            ("t 1", "f:1: unknown option t; `ipipou -h` lists all"),
            ("fou-local-port", "f:1: fou-local-port needs a value"),
            ("fou-local-port ", "f:1: fou-local-port needs a value"),
            ("\nfou-local-port 70000", "f:2: fou-local-port: 70000 is not a port (1..65535)"),
            ("server yes", "f:1: server takes no value"),
            ("v 3", "f:1: v takes no value"),
            ("config other", "f:1: config belongs on the command line"),
            ("h", "f:1: help belongs on the command line"),
            ("=x", "f:1: no option before '='"),
            ("no-log", "f:1: no-log is ambiguous: no-log-time or no-log-pid"),
            (
                "auth-key-b64 c2hvcnQ=",
                "f:1: auth-key-b64: the value has 5 bytes: an ed25519 key has 32",
            ),
            ("monitor", "f:1: unknown option monitor; `ipipou -h` lists all"),
            (
                "RuBZkT23na2Q4QH1xfmZ=",
                "f:1: the line does not begin with an option; `ipipou -h` lists all",
            ),
            ("server # ours", "f:1: server takes no value; a comment needs a line of its own"),
            (
                "tunl-ip \"10.0.0.1\"",
                "f:1: tunl-ip: \\\"10.0.0.1\\\" is not an IPv4 address; values stand without quotes",
            ),
            (
                "sever\n\nfou-local-port 0\nserver\nx",
                "f:1: unknown option sever; did you mean server?\nf:3: fou-local-port: 0 is not a port \
                 (1..65535)\nf:5: unknown option x; `ipipou -h` lists all",
            ),
            ("rp-filter on", "f:1: rp-filter: on is not one of strict, loose, off"),
        ] {
            assert_eq!(read(text).unwrap_err(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_not_utf8_is_refused() {
        let read = arguments(b"server\n\xff\n", Path::new("f"), &mut Options::command());
        assert_eq!(read.unwrap_err().to_string(), "f:2: not valid UTF-8");
    }
}
