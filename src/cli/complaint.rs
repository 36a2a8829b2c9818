//! clap's errors, which have several lines and repeat what was given, boiled down to one clear line.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::options;
use super::value::{ValueError, is_placeholder};

/// The most characters of a value that are repeated.
const SHOWN: usize = 60;

/// What is wrong with the arguments, where, and what to do. Secrets are not repeated.
pub(super) fn complaint(error: &clap::Error, command: &clap::Command, args: &[OsString]) -> String {
    let given = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let option = given.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
            let word = text(error, ContextKind::InvalidSubcommand).unwrap_or(given);
            if word.starts_with('-') {
                unknown_option(word, suggestion(error, command), command)
            } else {
                stray_word(word, args)
            }
        }
        ErrorKind::ValueValidation => bad_value(error, option),
        ErrorKind::InvalidValue => match text(error, ContextKind::InvalidValue) {
            None | Some("") => missing_value(option),
            Some(_) => bad_value(error, option),
        },
        ErrorKind::NoEquals
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::MissingRequiredArgument => missing_value(option),
        ErrorKind::TooManyValues => format!("{option} takes no value"),
        ErrorKind::ArgumentConflict if names_command(command, args) => {
            "a command stands alone, without options before it".to_owned()
        }
        ErrorKind::ArgumentConflict => {
            "one argument belongs to no option; a value with blanks needs quotes".to_owned()
        }
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".to_owned(),
        // What is left are clap's own faults, or help, which is not for here.
        _ => error.to_string().lines().next().unwrap_or_default().replace("error: ", ""),
    }
}

/// The option that clap thinks was meant. Aliases are short, and near to anything.
pub(super) fn suggestion<'a>(error: &'a clap::Error, command: &clap::Command) -> Option<&'a str> {
    let near = text(error, ContextKind::SuggestedArg)?;
    let mut long = command.get_arguments().filter_map(clap::Arg::get_long);
    long.any(|long| near.strip_prefix("--") == Some(long)).then_some(near)
}

/// An option that is not in the table, or a shortened one that could be several.
pub(super) fn unknown_option(
    word: &str,
    suggestion: Option<&str>,
    command: &clap::Command,
) -> String {
    let name = word.split('=').next().unwrap_or_default();
    let candidates = beginning_with(name.trim_start_matches('-'), command);
    match (candidates.as_slice(), suggestion) {
        ([_, _, ..], _) if name.starts_with("--") => {
            format!("{} is ambiguous: --{}", shown(name), candidates.join(" or --"))
        }
        (_, Some(near)) => format!("{} is no option; is it {near}?", shown(name)),
        _ => format!("{} is no option; `ipipou -h` lists them", shown(name)),
    }
}

/// The long options that begin so.
pub(super) fn beginning_with<'a>(prefix: &str, command: &'a clap::Command) -> Vec<&'a str> {
    let long = command.get_arguments().filter_map(clap::Arg::get_long);
    long.filter(|long| long.starts_with(prefix)).collect()
}

/// A value as it is repeated in a message: one line, and not too long.
pub(super) fn shown(value: &str) -> String {
    let mut text: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN).is_some() {
        text.push('…');
    }
    if text.is_empty() || text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text }
}

/// A word that belongs to no option. It may be the rest of a secret that was not quoted.
fn stray_word(word: &str, args: &[OsString]) -> String {
    let secret = args.iter().any(|arg| arg.as_encoded_bytes().starts_with(b"--a"));
    let position = args.iter().position(|arg| arg == word).unwrap_or_default();
    let word = if secret { format!("argument {position}") } else { shown(word) };
    format!("{word} is no command and belongs to no option; a value with blanks needs quotes")
}

fn names_command(command: &clap::Command, args: &[OsString]) -> bool {
    command.get_subcommands().any(|known| args.iter().any(|arg| arg == known.get_name()))
}

fn missing_value(option: &str) -> String {
    match option.starts_with('-') {
        true => format!("{option} needs a value (one that begins with '-': {option}=VALUE)"),
        false => format!("{option} is missing; `ipipou -h` shows the usage"),
    }
}

fn bad_value(error: &clap::Error, option: &str) -> String {
    let value = match text(error, ContextKind::InvalidValue) {
        Some(_) if options::is_secret(option.trim_start_matches('-')) => "the value".to_owned(),
        value => shown(value.unwrap_or_default()),
    };
    if text(error, ContextKind::InvalidValue).is_some_and(is_placeholder) {
        return format!("{option}: {value} {}", ValueError::Placeholder);
    }
    let reason = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(valid)), _) => format!("is not one of {}", valid.join(", ")),
        // A `ValueError`, made to follow the value.
        (_, Some(reason)) => reason.to_string(),
        (_, None) => "does not fit".to_owned(),
    };
    format!("{option}: {value} {reason}")
}

/// The first option with a value that only stands for one.
pub(super) fn placeholder(matches: &clap::ArgMatches, command: &clap::Command) -> Option<String> {
    let is_one = |arg: &&clap::Arg| {
        let mut values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
        values.any(|value| value.to_str().is_some_and(is_placeholder))
    };
    let option = command.get_arguments().filter(|arg| arg.get_long().is_some()).find(is_one)?;
    let name = option.get_long().unwrap_or_default();
    Some(format!("--{name}: the value {}", ValueError::Placeholder))
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    }
}
