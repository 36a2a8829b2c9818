//! Turns the command line and the `.conf` files into a checked configuration.
//!
//! ```text
//! .conf lines ─ conf ─┐
//! command line ───────┴─ options ─ resolve ─ engine::config::Config
//! ```
//!
//! Arguments of files come before those of the command line, and the last one counts; options that
//! can be repeated add up. A message is one line, says where and what to do, and never repeats a
//! secret.

mod address;
mod arguments;
mod check;
mod completions;
pub mod conf;
mod conf_file;
mod document;
mod endpoint;
mod error;
mod explain;
mod import;
mod invocation;
mod meant;
mod options;
mod peers;
mod places;
mod resolve;
mod secrets;
mod service;
mod value;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::CommandFactory as _;

pub use document::render;
pub use error::CliError;
pub use invocation::{Invocation, LogConfig, PeersQuestion, Run};
pub use options::{Document, Options};

use error::{usage, usage_lines};
use options::Command;
use options::command::RunningOptions;
use resolve::Directories;
use secrets::Secrets;

/// Reads the arguments, which begin with the program's name, and the files that they name. `env`
/// looks up the environment variables `STATE_DIRECTORY` and `RUNTIME_DIRECTORY`.
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
    let mut command = Options::command();
    if let Some(start) = check::start(&args, &command) {
        return check::options(parse(start, env)?);
    }
    let mut options = arguments::options(&mut command, &args)?;
    match options.command {
        Some(Command::Show { json, wide, runtime_root, name, help: _ }) => {
            let name = peers::named(name, &mut command);
            return Ok(Invocation::Show { json, wide, name, runtime_root });
        }
        Some(Command::Check { running, name, help: _ }) => {
            return check::check(&name, running.as_deref(), &mut command);
        }
        Some(Command::Ping { count, tunnel, runtime_root, host, help: _ }) => {
            let tunnel = peers::named(tunnel, &mut command);
            return Ok(Invocation::Ping { host, tunnel, count, runtime_root });
        }
        Some(Command::Genkey { help: _ }) => return Ok(Invocation::Genkey),
        Some(Command::Pubkey { name: None, .. }) => return Ok(Invocation::Pubkey),
        Some(Command::Pubkey { name: Some(name), runtime_root, help: _ }) => {
            let (config, tunnel) = peers::configured(&name, &mut command)?;
            return Ok(Invocation::PubkeyOf { config, tunnel, runtime_root });
        }
        Some(Command::Peer { command: about, help: _ }) => {
            return peers::asked(about, &mut command);
        }
        Some(Command::Reload { if_peers, runtime_root, name, help: _ }) => {
            let peers = name.as_deref().map(|name| peers::by_good_file(name, &mut command));
            let peers = peers.transpose()?.flatten();
            let tunnel = peers::named(name, &mut command);
            return Ok(Invocation::Reload { tunnel, runtime_root, if_peers, peers });
        }
        Some(Command::Monitor { json, peer, running }) => {
            let RunningOptions { tunnel, runtime_root, help: _ } = running;
            let tunnel = peers::named(tunnel, &mut command);
            return Ok(Invocation::Monitor { peer, tunnel, runtime_root, json });
        }
        Some(Command::Generate { document, help: _ }) => return Ok(Invocation::Generate(document)),
        None => {}
    }
    let (mut warnings, mut files) = (Vec::new(), Vec::new());
    let on_command_line = options.given.clone();
    let exposed: Vec<_> = options.given.secrets().map(|name| format!("--{name}")).collect();
    warnings.extend(options.given.warnings());
    if !options.config.is_empty() {
        let mut all = vec![args[0].clone()];
        let mut problems = Vec::new();
        for name in &options.config {
            match conf_file::read(name, &mut command) {
                Ok(file) => {
                    let mut own = vec![args[0].clone()];
                    own.extend_from_slice(&file.arguments);
                    warnings.extend(arguments::options(&mut command, &own)?.given.warnings());
                    all.extend_from_slice(&file.arguments);
                    warnings.extend(file.warning.clone());
                    files.push(file);
                }
                Err(errors) => problems.extend(errors.lines()),
            }
        }
        if !problems.is_empty() {
            return Err(usage_lines(&problems));
        }
        all.extend_from_slice(&args[1..]);
        options = arguments::options(&mut command, &all)?;
    }
    if options.auth.auth_keygen {
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
    let secrets = Secrets::read(&options.auth, &mut warnings).map_err(usage)?;
    let mut run = resolve::resolve(&options, &secrets, &directories).map_err(|error| {
        // The command line wins over files, and of files the last one.
        let option = error.option().filter(|option| !on_command_line.has(option));
        match option.and_then(|option| files.iter().rev().find_map(|file| file.place(option))) {
            Some(place) => usage(format!("{place}: {}", conf::bare(&error.to_string()))),
            None => usage(error),
        }
    })?;
    warnings.append(&mut run.warnings);
    let run = Box::new(Run { warnings, ..run });
    Ok(if options.reauth_only { Invocation::Reauth(run) } else { Invocation::Run(run) })
}

/// Returns the first of the directories that systemd joined with colons.
fn first_directory(value: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(value).find(|path| path.is_absolute())
}
