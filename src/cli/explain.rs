//! Turns clap's errors, which have several lines and repeat what was given, into one clear line.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::value::ValueError;
use super::{meant, options};
use crate::auth::is_placeholder;

/// How many characters of a value a message repeats at most.
const SHOWN: usize = 60;

/// Points to the list of all options and commands.
pub(super) const LIST: &str = "`ipipou -h` lists all";

/// Says what is wrong with the arguments, where, and what to do. It repeats no secret.
pub(super) fn explain(error: &clap::Error, command: &clap::Command, args: &[OsString]) -> String {
    let given = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let option = given.split([' ', '=']).next().unwrap_or_default();
    if let Some((word, meant)) = one_hyphen_too_few(error, command, args) {
        return format!("unknown option {}; did you mean {meant}?", shown(word));
    }
    match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
            let word = text(error, ContextKind::InvalidSubcommand).unwrap_or(given);
            if word.starts_with('-') {
                unknown_option(word, command)
            } else {
                let position = args.iter().position(|arg| arg == word).unwrap_or_default();
                stray_word(word, position, command, args)
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
        ErrorKind::ArgumentConflict => conflict(error, command, args),
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".to_owned(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let asked =
                args.get(1).map_or_else(String::new, |word| word.to_string_lossy().into_owned());
            format!("{asked}: which of its commands? `ipipou {asked} --help` lists them")
        }
        // What is left are clap's own faults, or help, which is not for here.
        _ => error.to_string().lines().next().unwrap_or_default().replace("error: ", ""),
    }
}

/// Finds a long option that was given with one hyphen. The parser takes it for several short ones,
/// so its error is about one of these, or about the rest as a value.
fn one_hyphen_too_few<'a>(
    error: &clap::Error,
    command: &clap::Command,
    args: &'a [OsString],
) -> Option<(&'a str, String)> {
    let words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let (word, meant) = meant::with_one_hyphen(words, command)?;
    let is_value =
        text(error, ContextKind::InvalidValue).is_some_and(|value| word.ends_with(value));
    let is_letter = text(error, ContextKind::InvalidArg).is_some_and(|given| {
        let letter = given.strip_prefix('-').filter(|letter| letter.chars().count() == 1);
        letter.is_some_and(|letter| word.contains(letter))
    });
    (is_value || is_letter).then_some((word, meant))
}

/// Says that an option is not in the table, or that a shortened one could be several.
pub(super) fn unknown_option(word: &str, command: &clap::Command) -> String {
    let name = word.split('=').next().unwrap_or_default();
    let candidates = beginning_with(name.trim_start_matches('-'), command);
    if let ([_, _, ..], true) = (candidates.as_slice(), name.starts_with("--")) {
        return format!("{} is ambiguous: --{}", shown(name), candidates.join(" or --"));
    }
    let near = meant::options(name, command);
    let hint = meant::question("--", &near);
    format!("unknown option {}; {}", shown(name), hint.as_deref().unwrap_or(LIST))
}

/// Returns the long options that begin with `prefix`.
pub(super) fn beginning_with<'a>(prefix: &str, command: &'a clap::Command) -> Vec<&'a str> {
    let long = command.get_arguments().filter_map(clap::Arg::get_long);
    long.filter(|long| long.starts_with(prefix)).collect()
}

/// Returns a value as a message repeats it: in one line, and not too long.
pub(super) fn shown(value: &str) -> String {
    let mut text: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN).is_some() {
        text.push('…');
    }
    if text.is_empty() || text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text }
}

/// Describes a word that belongs to no option. It is not repeated where it may be the rest of a
/// secret that was not quoted.
fn stray_word(word: &str, position: usize, command: &clap::Command, args: &[OsString]) -> String {
    let before = args.iter().take(position).rev().filter_map(|arg| arg.to_str());
    let option = before.clone().find(|arg| arg.starts_with('-')).unwrap_or_default();
    if options::begins_as_secret(option.trim_start_matches('-')) {
        return format!(
            "argument {position} belongs to no option; a value with blanks needs quotes"
        );
    }
    let joined = before.clone().next().and_then(|before| meant::behind_one_hyphen(before, command));
    let hint = joined.or_else(|| meant::instead_of(word, command));
    let word = shown(word);
    match (position, hint) {
        (1, Some(hint)) => format!("unknown command {word}; {hint}"),
        (1, None) => format!("unknown command {word}; {LIST}"),
        (_, Some(hint)) => format!("{word} belongs to no option; {hint}"),
        (_, None) => format!("{word} belongs to no option; a value with blanks needs quotes"),
    }
}

/// Describes two options that exclude each other, or a word behind options that is neither an
/// option nor a value.
fn conflict(error: &clap::Error, command: &clap::Command, args: &[OsString]) -> String {
    let is_command = |arg: &OsString| command.get_subcommands().any(|c| arg == c.get_name());
    if args.get(1).is_some_and(is_command) {
        let given = text(error, ContextKind::InvalidArg).unwrap_or_default();
        let other = text(error, ContextKind::PriorArg).unwrap_or_default();
        return format!("{given} and {other}: leave out one of them");
    }
    match meant::stray(args, command) {
        Some((_, word)) if command.get_subcommands().any(|known| known.get_name() == word) => {
            format!("{word} is a command: it stands first, without options before it")
        }
        Some((position, word)) => stray_word(word, position, command, args),
        None => "one argument belongs to no option; a value with blanks needs quotes".to_owned(),
    }
}

fn missing_value(option: &str) -> String {
    match option.starts_with('-') {
        true => format!("{option} needs a value (one that begins with '-': {option}=VALUE)"),
        false => format!("{option} is missing; `ipipou -h` shows the usage"),
    }
}

fn bad_value(error: &clap::Error, option: &str) -> String {
    let value = match text(error, ContextKind::InvalidValue) {
        Some(_) if !is_repeatable(option) => "the value".to_owned(),
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

/// Whether the value of an option, which is given with its hyphens, may stand in a message.
fn is_repeatable(option: &str) -> bool {
    let attributes = options::attributes(option.trim_start_matches('-'));
    attributes.is_none_or(|option| option.secrecy.is_repeatable())
}

/// Finds the first option whose value is a placeholder.
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
