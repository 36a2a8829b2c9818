//! Changes the files of peers for commands, each as a whole, and sends them to the running server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::peers::send_again;
use super::requests::{self, Request};
use super::running::{called, known_directory};
use super::snapshot::PeersAsked;
use super::stream::connect;
use super::{Failure, control};
use crate::engine::config::{Config, HubConfig};
use crate::engine::peers_file::{PeerName, PeerSet};
use crate::host::{atomic_file, clock};
use crate::observe::printable;
use crate::sources::exposed::has_secret;

/// How long a process is waited for that may be there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes one of the files at `peers`. One of a directory that says nothing any more is removed.
pub fn write(peers: &Path, path: &Path, text: &str) -> Result<(), Failure> {
    let result = match text.is_empty() && path != peers {
        true => atomic_file::remove(path),
        false => atomic_file::rewrite(path, text.as_bytes(), has_secret(text)),
    };
    result.map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => is_mount(path),
        _ => failed(path)(e),
    })
}

/// Refuses a change if one of its files cannot be replaced.
///
/// # Errors
/// Names the first that is a mount point, before anything is written.
pub fn are_replaceable<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), Failure> {
    match paths.into_iter().find(|path| atomic_file::is_mount(path)) {
        Some(path) => Err(is_mount(path)),
        None => Ok(()),
    }
}

fn is_mount(path: &Path) -> Failure {
    Failure::Generic(format!(
        "{}: is mounted by itself, as into a container, so it cannot be replaced, and nothing was changed \
         in it: mount the directory around it instead, or edit the file where it comes from and `ipipou \
         reload`",
        path.display()
    ))
}

/// Writes a file that only its owner may read, and that was not there.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    atomic_file::create(path, bytes).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Failure::Generic(format!(
            "{}: exists already: remove it, or have this one written elsewhere",
            path.display()
        )),
        _ => failed(path)(e),
    })
}

/// What a command says of a file that it cannot read or write.
pub fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Generic(format!("{}: {error}", path.display()))
}

/// Says that a peer cannot come in, by its own fields or the defaults of its file.
pub fn kept_out(set: &PeerSet, name: &PeerName) -> Option<String> {
    let peer = set.get(name)?;
    let why = match (peer.enabled, peer.has_expired(clock::unix())) {
        (false, _) => "disabled",
        (true, true) => "expired",
        (true, false) => return None,
    };
    Some(format!("{name}: is {why} ({}), and not let in\n", peer.origin))
}

/// Has the running server called `tunnel`, if there is one, take its files, whether they were changed now or
/// by a command that came no further. `said` is what was done before; what there is to say comes behind it.
///
/// # Errors
/// When a server is running and has not taken them.
pub fn taken(
    said: String,
    hub: &HubConfig,
    config: &Config,
    tunnel: &str,
    root: &Path,
) -> Result<String, Failure> {
    let running = known_directory(root, &called(config, tunnel));
    let at = running.as_ref().map_or_else(|_| root.join(tunnel), Clone::clone);
    let name = at.file_name().unwrap_or_default().display();
    let not_taken = |why: &dyn std::fmt::Display| {
        format!(
            "{said}the files are as they should be, and the running server has not taken them: \
             `ipipou reload {name}`, or the same again\n{why}"
        )
    };
    match running.and_then(|directory| send_again(&directory, tunnel, hub.peers.clone())) {
        Ok(more) => Ok(said + &more),
        Err(Failure::Generic(_)) if !answers(&at) => {
            Ok(said + "the server is not running: it reads them at its start\n")
        }
        Err(Failure::Usage(why)) => Err(Failure::Usage(not_taken(&why))),
        Err(failure) => Err(Failure::Generic(not_taken(&failure))),
    }
}

/// Checks, before anything is written, that the running server called `tunnel`, if there is one, has its peers where
/// its file says now, and does not lose them because nothing is there.
///
/// # Errors
/// When the file was edited since its start, or a directory is not mounted.
pub fn goes_with_running(
    hub: &HubConfig,
    config: &Config,
    tunnel: &str,
    root: &Path,
) -> Result<(), Failure> {
    let running = known_directory(root, &called(config, tunnel)).ok().and_then(|directory| {
        let (answer, _) = requests::ask(&directory, Request::Where).ok()?;
        Some((directory, answer.path?))
    });
    let Some((directory, theirs)) = running else {
        return match hub.peers.is_relative() {
            true => Err(Failure::Usage(format!(
                "{tunnel} does not run, and its file says `peers {}`: that is in the directory where it is \
                 started; say so in full there; nothing was changed",
                hub.peers.display()
            ))),
            false => Ok(()),
        };
    };
    let ours = std::path::absolute(&hub.peers).map_err(failed(&hub.peers))?;
    if theirs != ours {
        return Err(Failure::Usage(format!(
            "{tunnel} runs with the peers in {}, and its file says {}: restart it, or say so in full there; \
             nothing was changed",
            printable(&theirs.display().to_string()),
            ours.display()
        )));
    }
    let status = control::ask(&directory, &PeersAsked::None)?;
    let peers = status.and_then(|status| status.peers);
    let named: usize = peers.map_or(0, |peers| peers.by_state.values().sum());
    match ours.exists() || named == 0 {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "{}: not there, and {tunnel} runs with {named} peers of it: is something not mounted? To begin anew, \
             make it, and `ipipou reload {tunnel}`; nothing was changed",
            ours.display()
        ))),
    }
}

/// Whether a process listens at a socket in its directory, as far as can be seen.
fn answers(directory: &Path) -> bool {
    let nobody = |e: &io::Error| {
        use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
        matches!(e.kind(), ConnectionRefused | NotADirectory | NotFound)
    };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .flatten()
            .any(|entry| connect(&entry.path(), PATIENCE).err().is_none_or(|e| !nobody(&e))),
        Err(e) => !nobody(&e),
    }
}
