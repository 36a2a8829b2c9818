//! Finds the running processes of this host, by name or all of them.

use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use super::Failure;
use super::control::{ask, unreadable};
use super::requests::belongs_to_us;
use super::snapshot::PeersAsked;
use crate::auth;
use crate::engine::config::DeviceName;
use crate::host::Directories;
use crate::observe::status::ProcessStatus;

/// A process, and its directory.
pub type Found = (PathBuf, ProcessStatus);

/// The directory of the process called `name`, or of the only one below `root` that `is_meant`.
///
/// # Errors
/// When there is none, or there are several.
pub fn directory(
    root: &Path,
    name: Option<&str>,
    is_meant: impl Fn(&ProcessStatus) -> bool,
) -> Result<PathBuf, Failure> {
    let mut found = match name {
        Some(name) => named(root, name, &PeersAsked::None)?,
        None => match all(root, &PeersAsked::None)? {
            // It may be the one that is meant.
            (_, Some(silent)) => {
                return Err(Failure::Generic(format!(
                    "{silent}\nwhich tunnel is meant? give its NAME; `ipipou show` lists those that \
                     answer"
                )));
            }
            (processes, None) => processes,
        },
    };
    if name.is_none() {
        found.retain(|(_, process)| is_meant(process));
    }
    only(found)
}

/// The directory of the process that is known to be called `name`: what another user's process says of itself
/// brings it neither files nor secrets.
///
/// # Errors
/// As [`directory`].
pub fn known_directory(root: &Path, name: &str) -> Result<PathBuf, Failure> {
    only(known(root, name)?)
}

fn only(mut found: Vec<Found>) -> Result<PathBuf, Failure> {
    match (found.pop(), found.is_empty()) {
        (Some((directory, _)), true) => Ok(directory),
        (Some(_), false) => Err(Failure::Usage(
            "several tunnels are running: which one? give its NAME; `ipipou show` lists them"
                .to_owned(),
        )),
        (None, _) => Err(Failure::Generic(
            "no such tunnel is running here; `ipipou show` lists those that are".to_owned(),
        )),
    }
}

/// The public key that the server known as `name` says is its own; `None`: none is running.
pub fn running_key(root: &Path, name: &str) -> Option<[u8; 32]> {
    let servers = known(root, name).ok()?;
    let status = servers.into_iter().find_map(|(_, process)| process.peers)?;
    auth::parse_key(&status.public_key).ok().map(|key| *key)
}

/// What the running process of this tunnel is called below `root`: after its file, as a service is, or after
/// its interface.
pub fn running_name(root: &Path, tunnel: &str, device: &DeviceName) -> String {
    let by_hand = Directories::new(None, None, device).runtime;
    let by_hand = by_hand.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_running = |name: &str| known(root, name).is_ok();
    let is_by_hand = !is_running(tunnel) && is_running(&by_hand);
    if is_by_hand { by_hand } else { tunnel.to_owned() }
}

/// Those below `root` that are called so by their directories, which only root can make there, or by a process
/// of root or of this user.
fn known(root: &Path, name: &str) -> Result<Vec<Found>, Failure> {
    let mut found = named(root, name, &PeersAsked::None)?;
    found.retain(|(directory, _)| {
        is_called(directory, name) || belongs_to_us(directory).unwrap_or(false)
    });
    match found.is_empty() {
        true => Err(none_called(name)),
        false => Ok(found),
    }
}

/// Whether this is the directory of the file or the interface called `name`.
pub fn is_called(directory: &Path, name: &str) -> bool {
    directory.file_name().is_some_and(|file| file == name)
}

fn none_called(name: &str) -> Failure {
    Failure::Generic(format!("no running tunnel is called {name}; `ipipou show` lists them"))
}

/// The process called `name`, or all below `root`, and why not all of them are among these.
pub fn named_or_all(
    root: &Path,
    name: Option<&str>,
    peers: &PeersAsked,
) -> Result<(Vec<Found>, Option<Failure>), Failure> {
    match name {
        Some(name) => Ok((named(root, name, peers)?, None)),
        None => all(root, peers),
    }
}

/// Those below `root` that are called so. One that is meant by nobody may stand still.
fn named(root: &Path, name: &str, peers: &PeersAsked) -> Result<Vec<Found>, Failure> {
    let (called, others): (Vec<_>, Vec<_>) =
        directories(root)?.into_iter().partition(|directory| is_called(directory, name));
    for directory in called {
        if let Some(process) = ask(&directory, peers)? {
            return Ok(vec![(directory, process)]);
        }
    }
    // A process that is named by its interface is found without asking for the peers of all others.
    let (mut processes, failed) = each(others, &PeersAsked::None);
    processes.retain(|(_, it)| it.tunnels.iter().any(|tunnel| tunnel.interface == name));
    if processes.is_empty() {
        return Err(failed.unwrap_or_else(|| none_called(name)));
    }
    let again =
        processes.into_iter().map(|(directory, _)| Ok((ask(&directory, peers)?, directory)));
    let again = again.collect::<Result<Vec<_>, Failure>>()?;
    Ok(again.into_iter().filter_map(|(process, directory)| Some((directory, process?))).collect())
}

/// All processes below `root`, and why some of them could not be asked, a line each.
fn all(root: &Path, peers: &PeersAsked) -> Result<(Vec<Found>, Option<Failure>), Failure> {
    Ok(each(directories(root)?, peers))
}

/// Asks all of them at once: each that stands still is waited for.
fn each(directories: Vec<PathBuf>, peers: &PeersAsked) -> (Vec<Found>, Option<Failure>) {
    let answers: Vec<_> = thread::scope(|scope| {
        let asked = directories.iter().map(|directory| {
            thread::Builder::new().spawn_scoped(scope, move || ask(directory, peers))
        });
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(|one| one.map(|one| one.join())).collect()
    });
    let (mut processes, mut silent) = (Vec::new(), Vec::new());
    for (directory, answer) in directories.into_iter().zip(answers) {
        match answer {
            Ok(Ok(Ok(process))) => processes.extend(process.map(|process| (directory, process))),
            Ok(Ok(Err(failure))) => silent.push(failure.to_string()),
            Ok(Err(_)) => {
                silent.push(format!("{}: its answer could not be read", directory.display()))
            }
            Err(e) => silent.push(format!("{}: {e}", directory.display())),
        }
    }
    (processes, (!silent.is_empty()).then(|| Failure::Generic(silent.join("\n"))))
}

fn directories(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(root, &e)),
    };
    let mut directories: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    directories.sort();
    Ok(directories)
}
