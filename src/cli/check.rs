//! `ipipou check`: what is wrong with a file, and in what it differs from the one that a tunnel was
//! started with.

use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::path::Path;

use clap::{ArgMatches, Command};

use super::conf_file::{self, ConfFile};
use super::resolve::{self, Directories};
use super::{CliError, Options, matches, secret_file, usage};

/// What to say of the file `--config NAME` means, when nothing is wrong with it: warnings, and, with
/// the copy that a running tunnel has read, the options that need a restart.
///
/// # Errors
/// When the tunnel could not be started with this file.
pub fn check(
    name: &Path,
    running: Option<&Path>,
    command: &mut Command,
) -> Result<String, CliError> {
    let file = conf_file::path_of(name);
    let path = file.display();
    let ((now, mut options), warning) = read(name, command)?;
    let mut warnings: Vec<_> = warning.into_iter().collect();
    let in_file = |problem: &dyn Display| usage(format!("{path}: {problem}"));
    secret_file::read(&mut options, &mut warnings).map_err(|error| in_file(&error))?;
    let run =
        resolve::resolve(&options, &Directories::default()).map_err(|error| in_file(&error))?;
    let mut text = String::new();
    let mut say = |line: String| writeln!(text, "{line}").unwrap_or_default();
    for warning in warnings.into_iter().chain(run.warnings) {
        say(format!("warning: {warning}"));
    }
    say(format!("{path}: no mistakes"));
    match running.map(|running| read(running, command)) {
        Some(Ok(((before, _), _))) => {
            let changed = differing(&before, &now, command);
            if !changed.is_empty() {
                say(format!("{path}: a restart is needed for: {}", changed.join(", ")));
            }
        }
        // The file itself is good.
        Some(Err(problem)) => say(format!("{path}: changes cannot be told: {problem}")),
        None => {}
    }
    Ok(text)
}

type Read = ((ArgMatches, Options), Option<String>);

fn read(name: &Path, command: &mut Command) -> Result<Read, CliError> {
    let ConfFile { arguments, warning } = conf_file::read(name, command).map_err(usage)?;
    let all: Vec<_> = std::iter::once("ipipou".into()).chain(arguments).collect();
    Ok((matches(command, &all)?, warning))
}

/// Names of the options that were given otherwise, or in one of the two only.
fn differing(before: &ArgMatches, now: &ArgMatches, command: &Command) -> Vec<String> {
    let options = command.get_arguments().filter(|option| {
        let id = option.get_id().as_str();
        let given = |matches: &ArgMatches| -> Vec<OsString> {
            // Flags have values, too: how often, or "true".
            let values = matches.get_raw(id).into_iter().flatten();
            values.map(OsString::from).collect()
        };
        given(before) != given(now)
    });
    let name = |option: &clap::Arg| match option.get_long() {
        Some(long) => long.to_owned(),
        None => option.get_id().to_string(),
    };
    options.map(name).collect()
}
