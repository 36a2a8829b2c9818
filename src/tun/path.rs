//! Knows how long packets may be on the path to a remote.
//!
//! Routers must not fragment what leaves. They would do it silently, packet by packet, and the numbers
//! by which fragments are told apart repeat, because the kernel counts a batch as one
//! (`__ip_select_ident`); so parts of different packets would be put together. So every packet says
//! that it must not be fragmented, whatever the kernel knows of the path (`IP_PMTUDISC_PROBE`), and of
//! the path to another remote of the same socket.
//!
//! A router that has to drop a packet because of its length says so (ICMP), and the kernel puts that
//! into the socket's error queue together with the remote's address and port, as they were quoted.
//! Anybody can send such a message. So it counts only for a remote that packets are sent to; nothing
//! below [`LEAST`] is believed; and it is forgotten after a while, because a path may widen.
//!
//! A packet that is longer is fragmented inside where that is allowed, and otherwise refused there
//! (`transmit.rs`).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use socket2::Socket;

use super::cmsg::set_option;
use super::{lock, wake};

/// The size of a packet that fits through every path: for IPv6 always (RFC 8200, 5), for IPv4 in
/// practice.
pub const LEAST: usize = 1280;
/// No network allows less (RFC 791, 3.2), so a smaller number is not worth a warning.
const LEAST_OF_ALL: usize = 68 + 48;
/// How long a router is believed (RFC 1191, 6.3: not less than ten minutes).
const ROUTER_FOR: Duration = Duration::from_secs(600);
/// How long the kernel's own answer counts. It is about an interface of this host, and asking again
/// costs nothing.
const KERNEL_FOR: Duration = Duration::from_secs(10);
/// How many remotes are remembered. A server that learns has no more than that.
const MOST: usize = 65_536;
/// At most one line in this time says that a path is narrower than what is believed.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A report that a packet was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// Where the packet was sent to.
    pub to: SocketAddr,
    /// The size that a packet may have, headers included.
    pub mtu: usize,
    pub said_by: SaidBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaidBy {
    /// The interface by which the packet was to leave allows no more.
    Kernel,
    /// A router says so, or anybody who pretends to be one.
    Router,
}

/// What is known about the paths to remotes.
#[derive(Debug, Default)]
pub struct Paths {
    known: Mutex<Known>,
    /// Whether there is anything in the map: almost always it is empty.
    any: AtomicBool,
    /// Told when one is narrower than it was.
    narrower: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    narrow: HashMap<SocketAddr, Path>,
    said: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Path {
    mtu: usize,
    until: Duration,
}

impl Paths {
    /// The size of the longest payload that reaches a remote, as far as it is known; otherwise there is
    /// no limit here.
    #[inline]
    pub fn most(&self, to: SocketAddr) -> usize {
        match self.any.load(Ordering::Relaxed) {
            true => self.most_at(to, wake::now()),
            false => usize::MAX,
        }
    }

    fn most_at(&self, to: SocketAddr, now: Duration) -> usize {
        let mut known = lock(&self.known);
        let mut most = usize::MAX;
        for to in [to, at_any_port(to)] {
            match known.narrow.get(&to) {
                Some(path) if now < path.until => {
                    most = most.min(path.mtu.saturating_sub(overhead(to)));
                }
                Some(_) => {
                    known.narrow.remove(&to);
                    self.any.store(!known.narrow.is_empty(), Ordering::Relaxed);
                }
                None => {}
            }
        }
        most
    }

    /// Notes a report about a path; `is_remote` says whether packets are sent there. Returns the MTU to
    /// warn about, when a path is narrower than what is believed.
    pub fn note(&self, word: &TooLong, is_remote: bool, now: Duration) -> Option<usize> {
        let lifetime = match word.said_by {
            SaidBy::Kernel => KERNEL_FOR,
            SaidBy::Router if !is_remote => return None,
            SaidBy::Router if word.mtu < LEAST_OF_ALL => return None,
            SaidBy::Router if word.mtu < LEAST => {
                let said = &mut lock(&self.known).said;
                let is_due = said.is_none_or(|said| now >= said + SAY_EVERY);
                *said = if is_due { Some(now) } else { *said };
                return is_due.then(|| word.mtu.saturating_sub(overhead(word.to)));
            }
            SaidBy::Router => ROUTER_FOR,
        };
        let path = Path { mtu: word.mtu, until: now + lifetime };
        let mut known = lock(&self.known);
        let narrow = &mut known.narrow;
        match narrow.get(&word.to) {
            Some(old) if now < old.until && old.mtu < path.mtu => return None,
            Some(old) if now < old.until && old.mtu == path.mtu && old.until > path.until => {
                return None;
            }
            Some(_) => {}
            None if narrow.len() >= MOST => {
                narrow.retain(|_, path| now < path.until);
                if narrow.len() >= MOST {
                    return None;
                }
            }
            None => {}
        }
        let before = narrow.insert(word.to, path);
        self.any.store(true, Ordering::Relaxed);
        if before.is_none_or(|before| path.mtu < before.mtu) {
            self.narrower.notify_one();
        }
        None
    }

    /// Notifies when a path is narrower than it was.
    pub fn narrower(&self) -> Arc<Notify> {
        Arc::clone(&self.narrower)
    }

    /// The remotes of which it is known, each with its longest payload; with port 0, all at an address.
    pub fn narrow(&self, now: Duration) -> BTreeMap<SocketAddr, usize> {
        if !self.any.load(Ordering::Relaxed) {
            return BTreeMap::new();
        }
        let known = lock(&self.known);
        let current = known.narrow.iter().filter(|(_, path)| now < path.until);
        current.map(|(to, path)| (*to, path.mtu.saturating_sub(overhead(*to)))).collect()
    }

    /// Forgets all paths, because they may have changed.
    pub fn forget(&self) {
        lock(&self.known).narrow.clear();
        self.any.store(false, Ordering::Relaxed);
    }
}

/// What the kernel says of an IPv4 packet of its own names no port: the socket is not connected, and its own
/// destination port is told (`ip_local_error` as `__ip_append_data` in net/ipv4/ip_output.c calls it).
fn at_any_port(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), 0)
}

/// Bytes of the headers around a payload.
fn overhead(to: SocketAddr) -> usize {
    match to {
        SocketAddr::V4(_) => 20 + 8,
        SocketAddr::V6(_) => 40 + 8,
    }
}

/// Sets a socket so that nobody fragments what it sends, and so that it hears of routers that cannot
/// pass a packet on.
///
/// # Errors
/// When the kernel refuses.
pub fn discover(socket: &Socket, is_v4: bool) -> io::Result<()> {
    fragment(socket, is_v4, false)?;
    match is_v4 {
        true => set_option(socket, libc::SOL_IP, libc::IP_RECVERR, 1),
        false => set_option(socket, libc::SOL_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// Sets whether what the socket sends may be fragmented: over IPv4 by anybody, over IPv6 by this host.
///
/// # Errors
/// When the kernel refuses.
pub fn fragment(socket: &Socket, is_v4: bool, may: bool) -> io::Result<()> {
    let (level, option, how) = match (is_v4, may) {
        (true, true) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (true, false) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (false, true) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        (false, false) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    set_option(socket, level, option, how)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use std::net::Ipv4Addr;

    use super::*;

    const ALICE: &str = "192.0.2.1:1000";
    const BOB: &str = "[2001:db8::1]:1000";

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn word(to: &str, mtu: usize) -> TooLong {
        TooLong { to: to.parse().unwrap(), mtu, said_by: SaidBy::Router }
    }

    /// What is known about a path after a report.
    fn most(paths: &Paths, to: &str, now: u64) -> Option<usize> {
        Some(paths.most_at(to.parse().unwrap(), at(now))).filter(|most| *most != usize::MAX)
    }

    #[test]
    fn a_path_that_becomes_narrower_is_notified_once() {
        let paths = Paths::default();
        let is_told = || paths.narrower().notified().now_or_never().is_some();
        for (mtu, told) in [(1400, true), (1400, false), (1450, false), (1300, true)] {
            paths.note(&word(ALICE, mtu), true, at(5));
            assert_eq!(is_told(), told, "{mtu}");
        }
    }

    #[test]
    fn the_smallest_reported_mtu_counts_for_ten_minutes() {
        let paths = Paths::default();
        for mtu in [1400, 1300, 1450] {
            assert_eq!(paths.note(&word(ALICE, mtu), true, at(5)), None);
        }
        assert_eq!(paths.note(&word(BOB, 1400), true, at(5)), None);
        assert_eq!(most(&paths, ALICE, 604), Some(1300 - 28));
        assert_eq!(most(&paths, BOB, 604), Some(1400 - 48));
        assert_eq!(most(&paths, ALICE, 605), None);
        assert!(paths.any.load(Ordering::Relaxed));
        assert_eq!(most(&paths, BOB, 605), None);
        assert!(!paths.any.load(Ordering::Relaxed), "nothing is looked up any more");
        // A wider path is believed once the time is over.
        paths.note(&word(ALICE, 1300), true, at(700));
        paths.note(&word(ALICE, 1400), true, at(1300));
        assert_eq!(most(&paths, ALICE, 1301), Some(1400 - 28));
        paths.forget();
        assert_eq!(most(&paths, ALICE, 1301), None);
    }

    #[test]
    fn mtus_from_strangers_and_tiny_ones_are_ignored() {
        let paths = Paths::default();
        assert_eq!(paths.note(&word(ALICE, 1300), false, at(0)), None);
        assert_eq!(paths.note(&word(ALICE, 100), false, at(0)), None);
        assert_eq!(paths.note(&word(ALICE, 1279), true, at(0)), Some(1251), "said");
        assert_eq!(paths.note(&word(BOB, 0), true, at(59)), None, "once in a while");
        assert_eq!(paths.note(&word(BOB, 1000), true, at(60)), Some(952));
        assert_eq!((most(&paths, ALICE, 60), most(&paths, BOB, 60)), (None, None));
        paths.note(&word(ALICE, 1280), true, at(60));
        assert_eq!(most(&paths, ALICE, 60), Some(1252));
    }

    #[test]
    fn an_mtu_from_the_kernel_counts_for_ten_seconds() {
        let paths = Paths::default();
        let word = |mtu| TooLong { said_by: SaidBy::Kernel, ..word(ALICE, mtu) };
        assert_eq!(paths.note(&word(600), false, at(0)), None);
        assert_eq!(most(&paths, ALICE, 9), Some(572));
        assert_eq!(most(&paths, ALICE, 10), None);
        // Of IPv4 it tells no port: whoever is at that address.
        let to = at_any_port(ALICE.parse().unwrap());
        assert_eq!(paths.note(&TooLong { to, ..word(1400) }, false, at(20)), None);
        assert_eq!((most(&paths, ALICE, 29), most(&paths, ALICE, 30)), (Some(1372), None));
    }

    #[test]
    fn memory_is_bounded() {
        let paths = Paths::default();
        let to = |n: usize| TooLong {
            to: SocketAddr::from((Ipv4Addr::from_bits(u32::try_from(n).unwrap()), 1)),
            ..word(ALICE, 1400)
        };
        for number in 0..MOST + 10 {
            paths.note(&to(number), true, at(0));
        }
        assert_eq!(lock(&paths.known).narrow.len(), MOST);
        paths.note(&to(MOST), true, at(600));
        assert_eq!(lock(&paths.known).narrow.len(), 1, "what is over makes room");
    }
}
