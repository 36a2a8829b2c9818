//! `ipipou check` says what is wrong with a file, and how it differs from the one that a tunnel was
//! started with.

use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::path::Path;

use clap::{ArgMatches, Command};

use super::arguments::matches;
use super::conf::bare;
use super::conf_file::{self, ConfFile};
use super::error::{CliError, usage, usage_lines};
use super::invocation::{Invocation, Run};
use super::options::{self, Options};
use super::places;
use super::resolve::{self, Directories};
use super::secrets::Secrets;
use super::service;
use crate::auth::key_text;

/// Checks the file that `--config NAME` means. Returns warnings and, given the copy that a running
/// tunnel has read, the options that need a restart.
///
/// # Errors
/// When the tunnel could not be started with this file.
pub fn check(
    name: &Path,
    running: Option<&Path>,
    command: &mut Command,
) -> Result<Invocation, CliError> {
    let path = places::conf_path(name);
    let path = path.display();
    let Read { matches: now, options, run, mut warnings, .. } = understood(name, command)?;
    if running.is_none() {
        warnings.extend(service::unreadable(name, &options));
    }
    let mut text = about(&run, &warnings);
    let mut say = |line: String| writeln!(text, "{line}").unwrap_or_default();
    say(format!("{path}: no mistakes"));
    match running.map(|running| read(running, command)) {
        Some(Ok((before, ..))) => {
            let changed = differing(&before, &now, command);
            if !changed.is_empty() {
                say(format!("{path}: a restart is needed for: {}", changed.join(", ")));
            }
        }
        // The file itself is good.
        Some(Err(problem)) => say(format!("{path}: changes cannot be listed: {problem}")),
        None => {}
    }
    Ok(Invocation::Checked { text, config: Box::new(run.config) })
}

/// Returns the command line of the start that `ipipou check NAME OPTIONS` is about, if there are
/// options: a file is checked without.
pub fn start(args: &[OsString], command: &Command) -> Option<Vec<OsString>> {
    let [program, check, first, rest @ ..] = args else { return None };
    let own = command.find_subcommand("check").filter(|own| check == own.get_name())?;
    let is_own = |option: &clap::Arg| {
        option.get_long().is_some_and(|long| *first == *format!("--{long}"))
            || option.get_short().is_some_and(|letter| *first == *format!("-{letter}"))
    };
    if own.get_arguments().any(is_own) {
        return None;
    }
    let is_option = first.as_encoded_bytes().starts_with(b"-");
    let mut start = vec![program.clone()];
    match (is_option, rest) {
        (true, _) => {}
        (false, []) => return None,
        (false, _) => start.push("--config".into()),
    }
    start.push(first.clone());
    start.extend_from_slice(rest);
    Some(start)
}

/// Says what there is to say about the options of a start.
///
/// # Errors
/// When they ask for something else.
pub fn options(start: Invocation) -> Result<Invocation, CliError> {
    match start {
        Invocation::Run(run) | Invocation::Reauth(run) => {
            let text = about(&run, &[]) + "the options: no mistakes\n";
            Ok(Invocation::Checked { text, config: Box::new(run.config) })
        }
        Invocation::Keygen { .. }
        | Invocation::Genkey
        | Invocation::Pubkey
        | Invocation::PubkeyOf { .. }
        | Invocation::Peers(_)
        | Invocation::EditPeers { .. }
        | Invocation::ImportPeers { .. }
        | Invocation::Kick { .. }
        | Invocation::Monitor { .. }
        | Invocation::Ping { .. }
        | Invocation::Reload { .. }
        | Invocation::Show { .. }
        | Invocation::Checked { .. }
        | Invocation::Generate(_) => Err(usage("check: these options start no tunnel")),
    }
}

fn about(run: &Run, warnings: &[String]) -> String {
    let warnings = warnings.iter().chain(&run.warnings);
    let mut text: String = warnings.map(|warning| format!("warning: {warning}\n")).collect();
    if let Some(key) = run.config.public_key() {
        text += &format!("our public key is {}\n", key_text(&key));
    }
    text
}

/// A file, and what it means.
pub struct Read {
    matches: ArgMatches,
    pub options: Options,
    pub conf: ConfFile,
    pub secrets: Secrets,
    pub run: Run,
    warnings: Vec<String>,
}

/// Reads the file that `--config NAME` means, and the files of secrets that it names.
///
/// # Errors
/// When no tunnel could be started with this file.
pub fn understood(name: &Path, command: &mut Command) -> Result<Read, CliError> {
    let file = places::conf_path(name);
    let in_file = |problem: &dyn Display| usage(format!("{}: {problem}", file.display()));
    let (matches, mut options, conf) = read(name, command)?;
    options.config.push(name.to_owned()); // files of peers may be called after it
    let mut warnings: Vec<_> = conf.warning.iter().cloned().collect();
    let secrets = Secrets::read(&options.auth, &mut warnings).map_err(|error| in_file(&error))?;
    let run =
        resolve::resolve(&options, &secrets, &Directories::default()).map_err(
            |error| match error.option().and_then(|option| conf.place(option)) {
                Some(place) => usage(format!("{place}: {}", bare(&error.to_string()))),
                None => in_file(&error),
            },
        )?;
    warnings.extend(options.given.warnings());
    Ok(Read { matches, options, conf, secrets, run, warnings })
}

fn read(name: &Path, command: &mut Command) -> Result<(ArgMatches, Options, ConfFile), CliError> {
    let file = conf_file::read(name, command).map_err(|errors| usage_lines(&errors.lines()))?;
    let all: Vec<_> =
        std::iter::once("ipipou".into()).chain(file.arguments.iter().cloned()).collect();
    let (matches, options) = matches(command, &all)?;
    Ok((matches, options, file))
}

/// Returns the names of the options whose values differ, or that were given in one of the two only, if
/// they matter to a tunnel that runs.
fn differing(before: &ArgMatches, now: &ArgMatches, command: &Command) -> Vec<String> {
    let options = command.get_arguments().filter(|option| {
        let id = option.get_id().as_str();
        let given = |matches: &ArgMatches| -> Vec<OsString> {
            // Flags have values, too: how often, or "true".
            let values = matches.get_raw(id).into_iter().flatten();
            values.map(OsString::from).collect()
        };
        let attributes = option.get_long().and_then(options::attributes);
        given(before) != given(now) && !attributes.is_some_and(|it| it.for_commands)
    });
    let name = |option: &clap::Arg| match option.get_long() {
        Some(long) => long.to_owned(),
        None => option.get_id().to_string(),
    };
    options.map(name).collect()
}
