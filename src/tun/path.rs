//! Paths that are narrower than what is sent: what is done about the kernel's EMSGSIZE.
//!
//! Over IPv4 what leaves must not be fragmented by routers (`IP_PMTUDISC_DO`): they would do it
//! silently, packet by packet, and the numbers by which fragments are told apart repeat, since the
//! kernel counts a batch as one (`__ip_select_ident`). With the weaker `IP_PMTUDISC_WANT` it allows
//! that for all batches (`__ip_make_skb`). A router that has to drop something says so, the kernel
//! notes how wide the path is (`__udp4_lib_err`), and refuses what is longer from then on. Only then
//! it is let to fragment, itself, with numbers of its own.
//!
//! A path may widen, so all this is forgotten after a while.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::Socket;

use super::lock;
use super::socket::set_option;
use super::wake::{self, millis};

const NARROW_FOR: Duration = Duration::from_secs(10);

/// A remote that did not take large segments: datagrams of so many bytes or more. The kernel does
/// not segment what would have to be fragmented as well: it says EMSGSIZE, EINVAL before Linux 6.14
/// (`udp_send_skb`). Single datagrams it does fragment.
#[derive(Debug, Default)]
pub struct Narrow(Option<(SocketAddr, usize, Duration)>);

impl Narrow {
    /// Whether datagrams of `size` bytes are to be sent one by one.
    pub fn holds(&self, to: SocketAddr, size: usize) -> bool {
        self.0.is_some_and(|(remote, from, until)| {
            remote == to && size >= from && wake::now() < until
        })
    }

    pub fn set(&mut self, to: SocketAddr, size: usize) {
        self.0 = Some((to, size, wake::now() + NARROW_FOR));
    }
}

/// Whether the kernel fragments what one IPv4 socket sends.
#[derive(Debug, Default)]
pub struct Fragmenting {
    /// In milliseconds of the clock; 0: it does not.
    until: AtomicU64,
    /// Held while that and the socket are changed: threads share it.
    change: Mutex<()>,
}

impl Fragmenting {
    /// For a while from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin(&self, socket: &Socket) -> io::Result<()> {
        let _alone = lock(&self.change);
        self.until.store(millis(wake::now() + NARROW_FOR), Ordering::Relaxed);
        discover(socket, libc::IP_PMTUDISC_WANT)
    }

    /// Once the while is over; to be called before something is sent.
    pub fn end_in_time(&self, socket: &Socket) {
        if !self.is_over() {
            return;
        }
        let _alone = lock(&self.change);
        if self.is_over() && never(socket).is_ok() {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    fn is_over(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until != 0 && until <= millis(wake::now())
    }
}

/// Nobody fragments what the socket sends.
///
/// # Errors
/// When the kernel refuses.
pub fn never(socket: &Socket) -> io::Result<()> {
    discover(socket, libc::IP_PMTUDISC_DO)
}

fn discover(socket: &Socket, how: libc::c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_IP, libc::IP_MTU_DISCOVER, how)
}
