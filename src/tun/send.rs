//! Sending through the UDP socket: many segments in one call where the kernel can do that, one
//! datagram at a time where it cannot.

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockAddr;

use crate::engine::Outgoing;

use super::socket::{Control, UdpSocket};
use super::wake;

/// Segments in one call (`UDP_MAX_SEGMENTS` in linux/udp.h; later kernels take 128).
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one call: what fits into an IPv4 packet (`__ip_append_data`).
pub const MAX_BYTES: usize = 65_507;

/// For how long a remote that did not take large segments gets none.
const NARROW_FOR: Duration = Duration::from_secs(10);
/// How long the network card gets to take something from a full buffer.
const FULL: Duration = Duration::from_millis(100);

/// Datagrams to one remote, in their order.
pub struct Datagrams<'a> {
    pub to: SocketAddr,
    /// Bytes of each but the last, which may be shorter.
    pub size: usize,
    pub slices: &'a [IoSlice<'a>],
    /// Where each datagram ends in `slices`.
    pub ends: &'a [u8],
}

/// A remote whose path is too narrow for what it was sent. The kernel does not segment what would
/// have to be fragmented as well: it says EMSGSIZE, EINVAL before Linux 6.14 (`udp_send_skb`).
/// Single datagrams it does fragment. The path may widen, so this is forgotten after a while.
#[derive(Debug, Default)]
pub struct Narrow(Option<(SocketAddr, usize, Duration)>);

impl Narrow {
    fn holds(&self, datagrams: &Datagrams<'_>, now: Duration) -> bool {
        self.0.is_some_and(|(remote, size, until)| {
            remote == datagrams.to && datagrams.size >= size && now < until
        })
    }
}

/// What became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub failed: usize,
    pub calls: usize,
}

impl UdpSocket {
    /// Sends them all, or as many as the kernel takes.
    pub fn send_all(&self, datagrams: &Datagrams<'_>, narrow: &mut Narrow) -> Sent {
        let count = datagrams.ends.len();
        if count == 1 {
            let sent = self.send_message(datagrams.to, datagrams.slices, None);
            return Sent { failed: usize::from(sent.is_err()), calls: 1 };
        }
        if self.has_gso() && !narrow.holds(datagrams, wake::now()) {
            let size = u16::try_from(datagrams.size).unwrap_or(u16::MAX);
            let segment = Some((libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes()[..]));
            match self.send_message(datagrams.to, datagrams.slices, segment) {
                Ok(()) => return Sent { failed: 0, calls: 1 },
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMSGSIZE | libc::EINVAL) => {
                        let until = wake::now() + NARROW_FOR;
                        narrow.0 = Some((datagrams.to, datagrams.size, until));
                    }
                    // A device without checksums, IPsec on the way: it will not change.
                    Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                        self.gso.store(false, Ordering::Relaxed);
                    }
                    _ => return Sent { failed: count, calls: 1 },
                },
            }
        }
        self.send_each(datagrams)
    }

    /// One datagram each: `sendmmsg`, which stops at the first that fails.
    fn send_each(&self, datagrams: &Datagrams<'_>) -> Sent {
        let to = SockAddr::from(datagrams.to);
        // SAFETY: plain numbers and pointers, of which zero is one.
        let mut messages: [libc::mmsghdr; MAX_SEGMENTS] = unsafe { mem::zeroed() };
        let mut start = 0;
        let mut count = 0;
        for (message, end) in messages.iter_mut().zip(datagrams.ends) {
            let end = usize::from(*end);
            let slices = datagrams.slices.get(start..end).unwrap_or_default();
            message.msg_hdr = header(&to, slices);
            start = end;
            count += 1;
        }
        let mut sent = Sent::default();
        let mut rest = &mut messages[..count];
        let mut waited = false;
        while !rest.is_empty() {
            let length = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            // SAFETY: so many messages, whose pointers are to things that outlive the call.
            let taken =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), length, 0) };
            sent.calls += 1;
            let passed = match usize::try_from(taken) {
                Ok(taken) => taken,
                Err(_) if self.may_retry(&io::Error::last_os_error(), &mut waited) => 0,
                Err(_) => {
                    sent.failed += 1;
                    1
                }
            };
            rest = rest.get_mut(passed..).unwrap_or_default();
        }
        sent
    }

    /// Sends a packet of the engine's.
    ///
    /// # Errors
    /// What the kernel says: no route, no buffer, a payload longer than a datagram.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        let slices = [IoSlice::new(&out.payload)];
        let Some(ttl) = out.ttl else { return self.send_message(out.to, &slices, None) };
        let ttl = libc::c_int::from(ttl).to_ne_bytes();
        let (level, name) = match out.to {
            SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TTL),
            SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_HOPLIMIT),
        };
        self.send_message(out.to, &slices, Some((level, name, &ttl)))
    }

    /// One `sendmsg`, with one control message: level, type, data of at most 8 bytes.
    fn send_message(
        &self,
        to: SocketAddr,
        slices: &[IoSlice<'_>],
        control: Option<(libc::c_int, libc::c_int, &[u8])>,
    ) -> io::Result<()> {
        let to = SockAddr::from(to);
        let mut buffer = Control([0; _]);
        let mut message = header(&to, slices);
        if let Some((level, name, data)) = control {
            let length = libc::c_uint::try_from(data.len().min(8)).unwrap_or(0);
            message.msg_control = (&raw mut buffer).cast();
            // SAFETY: the buffer is aligned, and has room for a header and 8 bytes of data, which
            // is what CMSG_FIRSTHDR and CMSG_DATA point to.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(length) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = level;
                (*header).cmsg_type = name;
                (*header).cmsg_len = libc::CMSG_LEN(length) as _;
                libc::CMSG_DATA(header).copy_from_nonoverlapping(data.as_ptr(), length as usize);
            }
        }
        let mut waited = false;
        loop {
            // SAFETY: all pointers are to things that outlive the call, with their lengths.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !self.may_retry(&error, &mut waited) {
                return Err(error);
            }
        }
    }

    /// After a signal, and once when the buffer was full.
    fn may_retry(&self, error: &io::Error, waited: &mut bool) -> bool {
        match error.kind() {
            io::ErrorKind::Interrupted => true,
            io::ErrorKind::WouldBlock if !*waited => {
                wake::wait_writable(self.as_fd(), FULL);
                *waited = true;
                true
            }
            _ => false,
        }
    }
}

/// The pointers in it are good as long as both arguments are.
fn header(to: &SockAddr, slices: &[IoSlice<'_>]) -> libc::msghdr {
    // SAFETY: plain numbers and pointers, of which zero is one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    // An IoSlice is an iovec (its documentation); sending only reads them.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    message
}
