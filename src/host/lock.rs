//! Locks between processes: abstract unix sockets (unix(7)). Each network namespace has its own, and
//! the kernel releases one when the process that holds it ends, however that happens.
//!
//! Any user may take such a name. So the holder is looked at: a process that cannot run a tunnel keeps
//! nobody out.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::sleep;

/// Bit of CAP_NET_ADMIN in capability sets (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// How long a start waits for a name, in pauses: its holder may be about to end, or may have only just
/// begun.
const PATIENCE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// How many waiting connections are dropped at a time: as many as fit into a queue
/// (`net.core.somaxconn`).
const MOST_WAITING: usize = 4096;

/// A name in this network namespace, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    listener: Option<UnixListener>,
}

/// The process that holds a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// `None` for a process of another PID namespace.
    pid: Option<i32>,
    uid: u32,
    /// The name of its program, where that can be seen.
    name: Option<String>,
}

/// Why a name does not lock, so that it keeps nobody out.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    #[error("{0} has it, and may not run a tunnel")]
    Powerless(Holder),
    #[error("another process has it, and does not answer")]
    Unanswered,
    #[error("{0}")]
    Unavailable(io::Error),
}

/// The name that the process of a tunnel holds while it runs.
pub fn of_interface(device: &str) -> String {
    format!("ipipou/interface/{device}")
}

impl Lock {
    /// Takes a name, and waits for it a second at most. If something keeps it from being a lock, the
    /// reason is handed to `doubt`, and the caller goes on without one.
    ///
    /// # Errors
    /// The holder: another process that may run a tunnel.
    pub async fn wait(name: &str, doubt: impl FnOnce(Doubt)) -> Result<Self, Holder> {
        let mut patience = PATIENCE;
        loop {
            let last = Lock::attempt(name);
            match &last {
                Ok(Err(_)) | Err(Doubt::Unanswered) if patience > 0 => sleep(PAUSE).await,
                Ok(_) | Err(_) => return Lock::settle(last, doubt),
            }
            patience -= 1;
        }
    }

    /// Takes a name at once; otherwise it does what [`Lock::wait`] does.
    ///
    /// # Errors
    /// The holder.
    pub fn take(name: &str, doubt: impl FnOnce(Doubt)) -> Result<Self, Holder> {
        Lock::settle(Lock::attempt(name), doubt)
    }

    /// Lets the caller go on with a name that turned out not to lock.
    fn settle(
        attempt: Result<Result<Self, Holder>, Doubt>,
        doubt: impl FnOnce(Doubt),
    ) -> Result<Self, Holder> {
        attempt.unwrap_or_else(|why| {
            doubt(why);
            Ok(Lock { listener: None })
        })
    }

    fn attempt(name: &str) -> Result<Result<Self, Holder>, Doubt> {
        match bind(name) {
            Ok(listener) => return Ok(Ok(Lock { listener: Some(listener) })),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(Doubt::Unavailable(e)),
        }
        match holder(name) {
            Ok(Some(holder)) if holder.may_run_a_tunnel() => Ok(Err(holder)),
            Ok(Some(holder)) => Err(Doubt::Powerless(holder)),
            Ok(None) => Err(Doubt::Unanswered),
            Err(e) => Err(Doubt::Unavailable(e)),
        }
    }

    /// Drops the connections of processes that asked for the holder: each waits in a queue, and a full
    /// queue answers nobody.
    pub fn drain(&self) {
        let Some(listener) = &self.listener else { return };
        for _ in 0..MOST_WAITING {
            if listener.accept().is_err() {
                return; // there is none
            }
        }
    }

    /// Whether another process holds a name that may run a tunnel. One that cannot be asked, as without a
    /// free descriptor, counts as well.
    pub fn is_held(name: &str) -> bool {
        holder(name).map_or(true, |holder| holder.is_some_and(|holder| holder.may_run_a_tunnel()))
    }
}

fn bind(name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The process that listens at a name; `None`: none does, or its queue is full. Its credentials are from
/// the moment it began to listen.
///
/// # Errors
/// When this process can ask nobody.
fn holder(name: &str) -> io::Result<Option<Holder>> {
    // A blocking socket would wait for room in the queue.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(format!("\0{name}"))?) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::OutOfMemory => return Err(e),
        Err(_) => return Ok(None), // any user may have taken it for any kind of socket
    }
    let stream = std::os::unix::net::UnixStream::from(OwnedFd::from(socket));
    let peer = tokio::net::UnixStream::from_std(stream)?.peer_cred()?;
    let pid = peer.pid().filter(|pid| *pid != 0);
    Ok(Some(Holder { pid, uid: peer.uid(), name: pid.and_then(program) }))
}

/// The name of a process' program, where that can be seen.
fn program(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

impl Holder {
    pub(super) fn of_process(pid: i32) -> Self {
        let uid = effective_uid(pid).unwrap_or_default();
        Holder { pid: Some(pid), uid, name: program(pid) }
    }

    pub(super) fn out_of_sight(uid: u32) -> Self {
        Holder { pid: None, uid, name: None }
    }

    /// Whether the process has CAP_NET_ADMIN here, as far as can be seen.
    fn may_run_a_tunnel(&self) -> bool {
        // A process that cannot be seen is believed if it is root's.
        let Some(pid) = self.pid else { return self.uid == 0 };
        has_net_admin_here(pid) && effective_uid(pid).is_none_or(|now| now == self.uid)
    }
}

/// Whether a process has CAP_NET_ADMIN here, as far as can be seen.
pub(super) fn has_net_admin_here(pid: i32) -> bool {
    has_net_admin(pid) && same_user_namespace(pid).unwrap_or(true)
}

/// Asks capget(2), which needs no /proc: that may be hidden.
fn has_net_admin(pid: i32) -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: CAPABILITY_VERSION, pid };
    let mut sets = [Sets::default(); 2];
    // SAFETY: version 3 reads the header and writes two `Sets`, both alive and of C layout.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    result == 0 && sets[0].effective >> CAP_NET_ADMIN & 1 == 1
}

/// Whether a process is in our user namespace. In one of its own, every process has all capabilities,
/// and they count for nothing outside of it. `None` where this may not be seen.
fn same_user_namespace(pid: i32) -> Option<bool> {
    let namespace = |pid: &str| {
        let metadata = fs::metadata(format!("/proc/{pid}/ns/user")).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    Some(namespace(&pid.to_string())? == namespace("self")?)
}

/// The user id that counts now. It differs from the one at the start if the process has become a setuid
/// program since.
fn effective_uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.name, self.pid) {
            (Some(name), Some(pid)) => write!(f, "{name}, process {pid}"),
            (None, Some(pid)) => write!(f, "process {pid}"),
            (_, None) => write!(f, "a process of user {} in another container", self.uid),
        }
    }
}
