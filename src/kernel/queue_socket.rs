//! Finds the socket of the `nfq` crate, which does not give its number. Without it only a thread
//! that nobody can wake could wait for a packet, and the queue of a tunnel that ended would never
//! be free.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_domain, socket_protocol};

/// `NETLINK_NETFILTER` in linux/netlink.h.
const NETLINK_NETFILTER: u32 = 12;
/// Another thread may open such a socket at the same moment: then it is tried again.
const TRIES: usize = 10;

/// One is opened at a time, so that the new socket is known.
static OPENING: Mutex<()> = Mutex::new(());

/// A queue, and its socket once more, to be waited for.
pub struct Pollable {
    pub queue: nfq::Queue,
    pub socket: OwnedFd,
}

/// Opens a queue, whose socket no program that is started here inherits.
///
/// # Errors
/// When the kernel refuses, or /proc is not there.
pub fn open() -> io::Result<Pollable> {
    let _alone = OPENING.lock();
    for _ in 0..TRIES {
        let before = netfilter_sockets()?;
        let queue = nfq::Queue::open()?;
        let after = netfilter_sockets()?;
        let mut new = after.difference(&before);
        if let (Some(number), None) = (new.next(), new.next()) {
            // SAFETY: the queue has it open, and lives as long as this.
            let socket = unsafe { BorrowedFd::borrow_raw(*number) };
            fcntl_setfd(socket, FdFlags::CLOEXEC)?;
            let socket = fcntl_dupfd_cloexec(socket, 3)?;
            return Ok(Pollable { queue, socket });
        }
    }
    Err(io::Error::other("cannot tell its socket from others"))
}

/// The numbers of the netlink sockets for netfilter that this process has open (proc(5)).
fn netfilter_sockets() -> io::Result<BTreeSet<RawFd>> {
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: it was open just now; where it is not any more, or is another file, both calls say so, and
        // change nothing.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        let is_netlink = socket_domain(socket).is_ok_and(|family| family == AddressFamily::NETLINK);
        let protocol = socket_protocol(socket).ok().flatten().map(|it| it.as_raw().get());
        if is_netlink && protocol == Some(NETLINK_NETFILTER) {
            sockets.insert(number);
        }
    }
    Ok(sockets)
}
