//! Tells which network namespace this process is in, and since when there can be what is in it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use socket2::{Domain, Socket, Type};

/// The network namespace of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// The namespace of process 1: that of the host, or of the container.
    Own,
    /// It has a name in /run/netns (ip-netns(8)).
    Named(String),
    /// The number tells it from all others since the kernel started.
    Unnamed(u64),
}

/// Where `ip netns` keeps namespaces.
const NAMES: &str = "/run/netns";

impl Namespace {
    /// The namespace of this process.
    pub fn current() -> Self {
        let Some(own) = number_of("self") else { return Namespace::Own };
        let first = number_of("1");
        if first == Some(own) {
            return Namespace::Own;
        }
        let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| fs::metadata(entry.path()).is_ok_and(|m| m.ino() == own))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        match names.into_iter().next() {
            Some(name) => Namespace::Named(name),
            None if first.is_none() && !was_entered(own) => Namespace::Own,
            None => Namespace::Unnamed(cookie().unwrap_or(own)),
        }
    }
}

/// Tells this network namespace from all others, those of earlier starts of the machine too; `None` where the
/// kernel does not say.
pub fn identity() -> Option<String> {
    let number = cookie().or_else(|| number_of("self"))?;
    Some(format!("{} {number}", boot_id().ok()?))
}

/// The number that the machine gets when it starts.
///
/// # Errors
/// Without /proc/sys.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether an ancestor of this process is in another namespace. Process 1 itself is hidden from a
/// service, and from a process with fewer capabilities.
fn was_entered(own: u64) -> bool {
    let parent_of = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Some(parent.trim().to_owned())
    };
    std::iter::successors(parent_of("self"), |process| parent_of(process))
        .any(|process| number_of(&process).is_some_and(|namespace| namespace != own))
}

/// The inode of a process' network namespace, from `net:[INODE]`: reading a link needs fewer rights
/// than following it (namespaces(7)).
fn number_of(process: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{process}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The number that the kernel gives each network namespace, never twice (`SO_NETNS_COOKIE`, since
/// 5.14).
fn cookie() -> Option<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).ok()?;
    let (mut cookie, mut length) = (0u64, 8 as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes to `cookie`; both are alive.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

/// From asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;
