//! The socket's room for packets that are on their way out of this host.
//!
//! A packet belongs to the socket that sent it until it has left the host: it may wait at an interface, or
//! for a neighbour that does not answer (208 KiB for each, `unres_qlen_bytes` in arp(7)). The kernel sends
//! nothing more from a socket that is full, to whomever. All remotes share one socket, so it has room for
//! more than those queues hold: they limit what waits. An eighth is kept for the packets of the engine.
//!
//! A queue counts what leaves with one call as one packet, and a thousand of these would keep everything
//! behind them for half a minute where it is slow. So once much waits, packets leave one by one, as those
//! that the kernel forwards.
//!
//! Where the host does not allow that much, the data of one remote may fill the socket. The threads that
//! carry data wait for a moment until half of it is free (`sock_writeable`), but not for a queue that needs
//! longer.

use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{cmp, io};

use socket2::Socket;

use super::cmsg::set_option;
use super::wake;

/// Room for the unanswered packets to 1024 neighbours, which is as many as a host has by default
/// (`gc_thresh3` in arp(7)), and for two interfaces with a thousand large packets each.
const MOST: usize = 512 << 20;
/// Room for some milliseconds of a fast sender's packets, however little memory the host has.
const LEAST: usize = 8 << 20;
/// The part of the host's memory that may wait.
const PART: usize = 8;
/// The part of the room that is kept for the engine.
const KEPT: usize = 8;
/// The least that is kept, if it is not more than half: the kernel takes a call while there is any room at
/// all, so each thread may need that of one with a whole datagram more.
const KEPT_AT_LEAST: usize = 4 * (68 << 10);
/// How much waits when packets begin to leave one by one: some milliseconds of a fast network card.
const CROWDED: usize = 4 << 20;

/// How long a socket that is full is waited for.
const WAIT: Duration = Duration::from_millis(10);
/// How long it is not waited for again once that was in vain.
const NO_WAIT: Duration = Duration::from_secs(1);

/// How much of a socket's room is for whom.
pub struct Room {
    all: usize,
    data: usize,
    /// Until when it is not waited for, in milliseconds of the monotonic clock.
    slow_until: AtomicU64,
}

impl Room {
    /// Makes as much room as is wanted with CAP_NET_ADMIN, otherwise as much as the host allows.
    pub fn make(socket: &Socket) -> Self {
        set(socket, wanted(memory()));
        let all = socket.send_buffer_size().unwrap_or(LEAST);
        let data = all - kept(all);
        set(socket, data);
        Room { all, data, slow_until: AtomicU64::new(0) }
    }

    /// Sends a packet of the engine: if the socket is full of data, from what is kept.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn send_for_engine(
        &self,
        socket: &Socket,
        send: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        match send() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                set(socket, self.all);
                let sent = send();
                set(socket, self.data);
                sent
            }
            sent => sent,
        }
    }

    /// Whether so much waits that something in front is slower than what is sent.
    pub fn is_crowded(&self, socket: &Socket) -> bool {
        let mut waiting: libc::c_int = 0;
        // SAFETY: one number is written.
        let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
        told == 0 && usize::try_from(waiting).is_ok_and(|waiting| waiting > CROWDED)
    }

    /// Waits for a moment until there may be room again; false if what fills the socket is slower.
    pub fn comes(&self, socket: &Socket) -> bool {
        let now = wake::now();
        if wake::millis(now) < self.slow_until.load(Ordering::Relaxed) {
            return false;
        }
        let comes = wake::wait_writable(socket.as_fd(), WAIT);
        if !comes {
            self.slow_until.store(wake::millis(now + NO_WAIT), Ordering::Relaxed);
        }
        comes
    }
}

/// The bytes to ask for on a host with so much memory.
fn wanted(memory: usize) -> usize {
    (memory / PART).clamp(LEAST, MOST)
}

/// The bytes of so much room that are kept for the engine.
fn kept(all: usize) -> usize {
    (all / KEPT).max(KEPT_AT_LEAST).min(all / 2)
}

/// Bytes of the host's memory.
fn memory() -> usize {
    // SAFETY: plain numbers, of which zero is one.
    let mut info: libc::sysinfo = unsafe { mem::zeroed() };
    // SAFETY: one structure is written. It does not fail, and if it did, there would be no memory.
    unsafe { libc::sysinfo(&raw mut info) };
    let unit = usize::try_from(info.mem_unit).unwrap_or(1);
    usize::try_from(info.totalram).unwrap_or(usize::MAX).saturating_mul(unit)
}

/// Sets the size as the kernel counts it: twice what it is asked for (socket(7)).
fn set(socket: &Socket, bytes: usize) {
    let half = cmp::min(bytes, MOST) / 2;
    let size = libc::c_int::try_from(half).unwrap_or(libc::c_int::MAX);
    if set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
        // A smaller buffer is worse, but not wrong.
        let _ = socket.set_send_buffer_size(half);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_room_depends_on_the_memory_of_the_host() {
        let wanted = [32, 64, 128, 1024, 4096, 1 << 20].map(|mib| wanted(mib << 20) >> 20);
        assert_eq!(wanted, [8, 8, 16, 128, 512, 512]);
        assert!(memory() > LEAST);
        // As much as an unprivileged process gets by default, and more.
        assert_eq!([425_984, 8 << 20, 64 << 20].map(kept), [212_992, 1 << 20, 8 << 20]);
    }

    #[test]
    fn the_engine_sends_from_what_is_kept_while_the_socket_is_full() {
        let socket = Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let room = Room::make(&socket);
        let size = || socket.send_buffer_size().unwrap();
        assert_eq!((size(), size() < room.all), (room.data, true));
        let send = || match size() {
            size if size == room.all => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        };
        room.send_for_engine(&socket, send).unwrap();
        assert_eq!(size(), room.data);
        let other = || Err(io::ErrorKind::NetworkUnreachable.into());
        assert!(room.send_for_engine(&socket, other).is_err());
    }
}
