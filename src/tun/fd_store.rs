//! Passes the open files of a datapath on to the next process: the service manager keeps them while
//! there is none (`FileDescriptorStoreMax=` in systemd.service(5), sd_notify(3)). Meanwhile the
//! interface stays, and packets wait in its queue and in the socket's buffer.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use sd_notify::NotifyState;

use crate::host::datapath::OpenFiles;

const QUEUE: &str = "tun";
const SOCKET: &str = "udp";
const SESSIONS: &str = "sessions";

/// Whose open files these are: the service manager keeps them by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The tunnel of the process.
    #[default]
    Tunnel,
    /// The tunnel to a peer with the old program, at this local UDP port.
    OldPeer(NonZeroU16),
}

impl Owner {
    fn name(self, kind: &str) -> String {
        match self {
            Owner::Tunnel => kind.to_owned(),
            Owner::OldPeer(port) => format!("{kind}-{port}"),
        }
    }

    /// The kind of file that has this name, and whose it is.
    fn of(name: &str) -> (&str, Option<Owner>) {
        match name.split_once('-') {
            None => (name, Some(Owner::Tunnel)),
            Some((kind, port)) => (kind, port.parse().ok().map(Owner::OldPeer)),
        }
    }
}

/// What an earlier process, or an earlier tunnel of this one, left of one tunnel.
pub type StoredFds = OpenFiles;

/// Takes what the service manager hands to this process. Must be called only once.
pub fn inherited() -> BTreeMap<Owner, StoredFds> {
    let mut all: BTreeMap<Owner, StoredFds> = BTreeMap::new();
    let Ok(files) = sd_notify::listen_fds_with_names() else { return all };
    for (number, name) in files {
        // SAFETY: the service manager opened them for this process (LISTEN_PID), and nothing else in it
        // knows of them.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        match Owner::of(&name) {
            (QUEUE, Some(owner)) => all.entry(owner).or_default().queues.push(file),
            (SOCKET, Some(owner)) => all.entry(owner).or_default().socket = Some(file),
            (SESSIONS, Some(owner)) => all.entry(owner).or_default().sessions = Some(file),
            _ => {}
        }
    }
    all
}

/// Has these kept, in place of what was kept before.
pub fn keep<'a>(
    owner: Owner,
    queues: impl Iterator<Item = BorrowedFd<'a>>,
    socket: Option<BorrowedFd<'a>>,
) -> io::Result<()> {
    release(owner)?;
    let files = queues.map(|queue| (QUEUE, queue)).chain(socket.map(|socket| (SOCKET, socket)));
    for (name, file) in files {
        store(&owner.name(name), file)?;
    }
    Ok(())
}

/// Has the sessions of the tunnel of this process kept in place of those of before, or none.
///
/// # Errors
/// When the service manager cannot be reached; without one there is no error.
pub fn keep_sessions(file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    remove(Owner::Tunnel, &[SESSIONS])?;
    file.map_or(Ok(()), |file| store(SESSIONS, file))
}

/// Drops the stored interface and socket, and keeps the sessions.
///
/// # Errors
/// When the service manager cannot be reached.
pub fn release(owner: Owner) -> io::Result<()> {
    remove(owner, &[QUEUE, SOCKET])
}

/// Has nothing kept any longer: the interface goes with its last queue.
///
/// # Errors
/// When the service manager cannot be reached.
pub fn forget(owner: Owner) -> io::Result<()> {
    remove(owner, &[QUEUE, SOCKET, SESSIONS])
}

/// Stores one file, whatever poll(2) reports for it. Otherwise the service manager removes a file that reports
/// EPOLLERR, as a socket does after one ICMP error (IP_RECVERR) that nobody has read. systemd knows `FDPOLL=0`
/// since version 246.
fn store(name: &str, file: BorrowedFd<'_>) -> io::Result<()> {
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[file])
}

fn remove(owner: Owner, kinds: &[&str]) -> io::Result<()> {
    for name in kinds.iter().map(|kind| owner.name(kind)) {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_by_the_names_that_older_versions_know() {
        let port = NonZeroU16::new(10003).unwrap();
        for (owner, name) in [(Owner::Tunnel, "tun"), (Owner::OldPeer(port), "tun-10003")] {
            assert_eq!(owner.name(QUEUE), name);
            assert_eq!(Owner::of(name), (QUEUE, Some(owner)));
        }
        assert_eq!(Owner::of("tun-x"), (QUEUE, None));
    }
}
