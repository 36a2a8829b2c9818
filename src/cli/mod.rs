//! The command line and the `.conf` files: text in, a checked configuration out.
//!
//! ```text
//! .conf lines ─ conf ─┐
//! command line ───────┴─ options ─ resolve ─ engine::config::Role
//! ```
//!
//! Arguments of files stand before those of the command line, and the last one counts; options that
//! may be repeated add up. Messages are one line, say where and what to do, and never repeat a
//! secret.

mod address;
mod check;
mod completions;
pub mod conf;
mod conf_file;
mod document;
mod endpoint;
mod explain;
mod meant;
mod options;
mod resolve;
mod secret_file;
mod value;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::CommandFactory as _;
use clap::error::ErrorKind;

pub use document::render;
pub use options::{Document, Options};

use crate::engine::config::Role;
use options::Command;
use resolve::Directories;

/// What the program is asked to do.
#[derive(Debug, Clone)]
pub enum Invocation {
    /// Print a new key pair.
    Keygen { labelled: bool },
    /// Show the tunnels whose control sockets are in directories below `runtime_root`.
    Show { json: bool, wide: bool, name: Option<String>, runtime_root: PathBuf },
    /// Print that there are no mistakes, and what else is to be said.
    Checked(String),
    /// Print [`render`]'s text.
    Generate(Document),
    /// Send one authentication packet; the role is that of a client.
    Reauth(Box<Run>),
    /// Be a tunnel.
    Run(Box<Run>),
}

/// A tunnel, and what its process needs beside it.
#[derive(Debug, Clone)]
pub struct Run {
    pub role: Role,
    pub log: LogConfig,
    /// Where the replay memory is kept, if that is given.
    pub state_dir: Option<PathBuf>,
    /// Where the control socket is, if that is given.
    pub runtime_dir: Option<PathBuf>,
    /// To be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Warnings and errors at 0, then what happens, every packet, everything.
    pub verbosity: u8,
    /// Whether lines begin with the time.
    pub time: bool,
    /// Whether lines have the process number.
    pub pid: bool,
}

/// Why nothing is to be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// Help or version: to standard output, exit 0.
    #[error("{0}")]
    Print(String),
    /// To standard error, each line after `ipipou: `; exit 2. Bad lines of `.conf` files are several.
    #[error("{0}")]
    Usage(String),
}

/// Reads the arguments, the program's name first, and the files that they name. `env` looks up a
/// variable of the environment: `STATE_DIRECTORY` and `RUNTIME_DIRECTORY` are asked for.
///
/// # Errors
/// When help was asked for, or something is wrong with the arguments.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Invocation, CliError> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.is_empty() {
        args.push("ipipou".into());
    }
    if let Some(start) = check::start(&args) {
        return check::options(parse(start, env)?).map(Invocation::Checked);
    }
    let mut command = Options::command();
    let mut options = table(&mut command, &args)?;
    match options.command {
        Some(Command::Show { json, wide, runtime_root, name, help: _ }) => {
            return Ok(Invocation::Show { json, wide, name, runtime_root });
        }
        Some(Command::Check { running, name, help: _ }) => {
            let checked = check::check(&name, running.as_deref(), &mut command);
            return checked.map(Invocation::Checked);
        }
        Some(Command::Generate { document, help: _ }) => return Ok(Invocation::Generate(document)),
        None => {}
    }
    let mut warnings = Vec::new();
    let exposed = secret_file::exposed(&options);
    warnings.extend(options.last_of_two());
    if !options.config.is_empty() {
        let mut all = vec![args[0].clone()];
        let mut problems = Vec::new();
        for name in &options.config {
            match conf_file::read(name, &mut command) {
                Ok(file) => {
                    let mut own = vec![args[0].clone()];
                    own.extend_from_slice(&file.arguments);
                    warnings.extend(table(&mut command, &own)?.last_of_two());
                    all.extend(file.arguments);
                    warnings.extend(file.warning);
                }
                Err(errors) => problems.extend(errors.lines()),
            }
        }
        if !problems.is_empty() {
            return Err(usage_lines(&problems));
        }
        all.extend_from_slice(&args[1..]);
        options = table(&mut command, &all)?;
    }
    if options.auth_keygen {
        let labelled = options.verbose > 0 || options.verb.is_some_and(|verb| verb > 0);
        return Ok(Invocation::Keygen { labelled });
    }
    let directories = Directories {
        state: env("STATE_DIRECTORY").as_deref().and_then(first_directory),
        runtime: env("RUNTIME_DIRECTORY").as_deref().and_then(first_directory),
    };
    if !exposed.is_empty() && !options.reauth_only {
        warnings.push(format!(
            "{}: every user of this host can read a command line (ps): put secrets into files, see \
             --auth-key-file, --auth-secret-file and --config",
            exposed.join(", ")
        ));
    }
    secret_file::read(&mut options, &mut warnings).map_err(usage)?;
    let mut run = resolve::resolve(&options, &directories).map_err(usage)?;
    warnings.append(&mut run.warnings);
    let run = Box::new(Run { warnings, ..run });
    Ok(if options.reauth_only { Invocation::Reauth(run) } else { Invocation::Run(run) })
}

fn table(command: &mut clap::Command, args: &[OsString]) -> Result<Options, CliError> {
    Ok(matches(command, args)?.1)
}

fn matches(
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
            _ => usage(explain::complaint(&error, command, args)),
        },
    )
}

fn usage_lines(problems: &[String]) -> CliError {
    let lines: Vec<_> = problems.iter().map(|problem| usage(problem).to_string()).collect();
    CliError::Usage(lines.join("\n"))
}

/// Whatever stands in a path or a value, a message stays one line.
fn usage(problem: impl ToString) -> CliError {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    CliError::Usage(problem.to_string().chars().map(escape).collect())
}

/// systemd joins several directories with colons.
fn first_directory(value: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(value).find(|path| path.is_absolute())
}
