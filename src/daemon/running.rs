//! Finds the running processes of this host, by name or all of them.

use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use super::Failure;
use super::control::{ask, unreadable};
use super::requests::belongs_to_us;
use super::snapshot::PeersAsked;
use crate::auth;
use crate::engine::config::{Config, DeviceName, TunnelName};
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
    name: Option<&TunnelName>,
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
pub fn known_directory(root: &Path, name: &TunnelName) -> Result<PathBuf, Failure> {
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
pub fn running_key(root: &Path, name: &TunnelName) -> Option<[u8; 32]> {
    let servers = known(root, name).ok()?;
    let status = servers.into_iter().find_map(|(_, process)| process.peers)?;
    auth::parse_key(&status.public_key).ok().map(|key| *key)
}

/// What the tunnel is called whose file has this name and this content.
pub fn called(config: &Config, file: &str) -> TunnelName {
    TunnelName { name: file.to_owned(), device: Ok(Some(config.tunnel.device.clone())) }
}

/// Those below `root` that are called so by their directories, which only root can make there, or by a process
/// of root or of this user.
fn known(root: &Path, name: &TunnelName) -> Result<Vec<Found>, Failure> {
    let mut found = named(root, name, &PeersAsked::None)?;
    let by_hand = by_hand(name);
    found.retain(|(directory, _)| {
        is_called(directory, &name.name)
            || by_hand.as_ref().is_some_and(|(_, by_hand)| is_called(directory, by_hand))
            || belongs_to_us(directory).unwrap_or(false)
    });
    match found.is_empty() {
        true => Err(none_called(name)),
        false => Ok(found),
    }
}

/// The interface of the file with this name, and the directory of a process that was started by hand with it.
fn by_hand(name: &TunnelName) -> Option<(&DeviceName, String)> {
    let device = name.device.as_ref().ok()?.as_ref()?;
    let directory = Directories::new(None, None, device).runtime;
    Some((device, directory.file_name()?.to_string_lossy().into_owned()))
}

/// Whether this is the directory of the file or the interface called `name`.
pub fn is_called(directory: &Path, name: &str) -> bool {
    directory.file_name().is_some_and(|file| file == name)
}

fn none_called(name: &TunnelName) -> Failure {
    let TunnelName { name, device } = name;
    // With them, it cannot be seen whether one was started by hand with this file.
    let mistakes = device.as_ref().err().map(|lines| format!("{lines}\n")).unwrap_or_default();
    Failure::Generic(format!(
        "{mistakes}no running tunnel is called {name}; `ipipou show` lists them"
    ))
}

/// The process called `name`, or all below `root`, and why not all of them are among these.
pub fn named_or_all(
    root: &Path,
    name: Option<&TunnelName>,
    peers: &PeersAsked,
) -> Result<(Vec<Found>, Option<Failure>), Failure> {
    match name {
        Some(name) => Ok((named(root, name, peers)?, None)),
        None => all(root, peers),
    }
}

/// Those below `root` that are called so: by their directories, or else by their interfaces, or else because they
/// were started by hand with the file of this name. One that is meant by nobody may stand still.
fn named(root: &Path, name: &TunnelName, peers: &PeersAsked) -> Result<Vec<Found>, Failure> {
    let (called, others): (Vec<_>, Vec<_>) =
        directories(root)?.into_iter().partition(|directory| is_called(directory, &name.name));
    for directory in called {
        if let Some(process) = ask(&directory, peers)? {
            return Ok(vec![(directory, process)]);
        }
    }
    // A process that is named by its interface is found without asking for the peers of all others.
    let (processes, failed) = each(others, &PeersAsked::None);
    let meant = by_interface(processes, name);
    if meant.is_empty() {
        return Err(failed.unwrap_or_else(|| none_called(name)));
    }
    let again = meant.into_iter().map(|directory| Ok((ask(&directory, peers)?, directory)));
    let again = again.collect::<Result<Vec<_>, Failure>>()?;
    Ok(again.into_iter().filter_map(|(process, directory)| Some((directory, process?))).collect())
}

/// The directories of those whose interface is called so, or that were started by hand with the file of this
/// name: such a start has the directory of the interface in this network namespace, or in another one, where
/// only root's and this user's are taken for one. A service has that of its own file.
fn by_interface(processes: Vec<Found>, name: &TunnelName) -> Vec<PathBuf> {
    let having = |interface: &str| -> Vec<PathBuf> {
        let has =
            |it: &ProcessStatus| it.tunnels.iter().any(|tunnel| tunnel.interface == interface);
        let having = processes.iter().filter(|(_, it)| has(it));
        having.map(|(directory, _)| directory.clone()).collect()
    };
    let called = having(&name.name);
    let Some((device, by_hand)) = by_hand(name).filter(|_| called.is_empty()) else {
        return called;
    };
    let mut all = having(&device.to_string());
    if let Some(here) = all.iter().position(|directory| is_called(directory, &by_hand)) {
        return vec![all.swap_remove(here)];
    }
    all.retain(|directory| {
        Directories::are_by_hand(directory, device) && belongs_to_us(directory).unwrap_or(false)
    });
    all
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
