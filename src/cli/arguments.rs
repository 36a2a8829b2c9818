//! Parses arguments with the table of options.

use std::ffi::OsString;

use clap::error::ErrorKind;

use super::error::{CliError, usage};
use super::explain;
use super::options::Options;

/// Parses `args`, which begin with the program's name.
///
/// # Errors
/// When help was asked for, or something is wrong with the arguments.
pub fn options(command: &mut clap::Command, args: &[OsString]) -> Result<Options, CliError> {
    Ok(matches(command, args)?.1)
}

/// Parses `args`, and returns clap's matches too, which know every option as it was given.
///
/// # Errors
/// As [`options`].
pub fn matches(
    command: &mut clap::Command,
    args: &[OsString],
) -> Result<(clap::ArgMatches, Options), CliError> {
    let matches = command.try_get_matches_from_mut(args);
    if let Ok(matches) = &matches
        && let Some(problem) = explain::placeholder(matches, command)
    {
        return Err(usage(problem));
    }
    matches.and_then(|matches| Options::of(&matches).map(|options| (matches, options))).map_err(
        |error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                CliError::Print(error.to_string())
            }
            _ => usage(explain::explain(&error, command, args)),
        },
    )
}
