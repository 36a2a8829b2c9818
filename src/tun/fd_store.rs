//! Passes the open files of a datapath on to the next process: the service manager keeps them while
//! there is none (`FileDescriptorStoreMax=` in systemd.service(5), sd_notify(3)). Meanwhile the
//! interface stays, and packets wait in its queue and in the socket's buffer.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use sd_notify::NotifyState;

const QUEUE: &str = "tun";
const SOCKET: &str = "udp";

/// What an earlier process left.
#[derive(Debug, Default)]
pub struct StoredFds {
    /// The queues of the interface.
    pub queues: Vec<OwnedFd>,
    pub socket: Option<OwnedFd>,
}

impl StoredFds {
    /// Whether there was no earlier process, or it left nothing.
    pub fn is_nothing(&self) -> bool {
        self.queues.is_empty() && self.socket.is_none()
    }
}

/// Takes what the service manager hands to this process. Must be called only once.
pub fn inherited() -> StoredFds {
    let mut kept = StoredFds::default();
    let Ok(files) = sd_notify::listen_fds_with_names() else { return kept };
    for (number, name) in files {
        // SAFETY: the service manager opened them for this process (LISTEN_PID), and nothing else in it
        // knows of them.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        match name.as_str() {
            QUEUE => kept.queues.push(file),
            SOCKET => kept.socket = Some(file),
            _ => {}
        }
    }
    kept
}

/// Has these kept, in place of what was kept before.
pub fn keep<'a>(
    queues: impl Iterator<Item = BorrowedFd<'a>>,
    socket: Option<BorrowedFd<'a>>,
) -> io::Result<()> {
    forget()?;
    let files = queues.map(|queue| (QUEUE, queue)).chain(socket.map(|socket| (SOCKET, socket)));
    for (name, file) in files {
        let state = [NotifyState::FdStore, NotifyState::FdName(name)];
        sd_notify::notify_with_fds(&state, &[file])?;
    }
    Ok(())
}

/// Has nothing kept any longer: the interface goes with its last queue.
///
/// # Errors
/// When the service manager cannot be reached.
pub fn forget() -> io::Result<()> {
    for name in [QUEUE, SOCKET] {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
    }
    Ok(())
}
