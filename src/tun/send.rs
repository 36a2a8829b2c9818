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

use super::cmsg::CmsgBuffer;
use super::ecn::Ecn;
use super::path::Narrow;
use super::socket::UdpSocket;
use super::wake;

/// Segments in one call (`UDP_MAX_SEGMENTS` in linux/udp.h; later kernels take 128).
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one call: what fits into an IPv4 packet (`__ip_append_data`).
pub const MAX_BYTES: usize = 65_507;

/// How long the network card gets to take something from a full buffer.
const FULL: Duration = Duration::from_millis(100);

/// What the outer headers of datagrams that leave in one call have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    pub to: SocketAddr,
    pub ecn: Ecn,
}

/// Datagrams to one remote, in their order.
pub struct Datagrams<'a> {
    pub outer: Outer,
    /// Bytes of each but the last, which may be shorter.
    pub size: usize,
    pub slices: &'a [IoSlice<'a>],
    /// Where each datagram ends in `slices`.
    pub ends: &'a [usize],
}

/// What was done about errors of a call; nothing is done twice.
#[derive(Default)]
struct Remedies {
    waited: bool,
    fragments: bool,
}

impl Outer {
    fn control(self) -> CmsgBuffer {
        let mut control = CmsgBuffer::new();
        if self.ecn != Ecn::NotCapable {
            push_field(&mut control, self.to, self.ecn.bits(), libc::IP_TOS, libc::IPV6_TCLASS);
        }
        control
    }
}

impl UdpSocket {
    /// Sends them all, or as many as the kernel takes; how many it did not.
    pub fn send_all(&self, datagrams: &Datagrams<'_>, narrow: &mut Narrow) -> usize {
        self.fragmenting.end_in_time(&self.socket);
        let Datagrams { outer, size, slices, ends } = *datagrams;
        if ends.len() == 1 {
            let sent = self.send_message(outer.to, slices, &outer.control(), Remedies::default());
            return usize::from(sent.is_err());
        }
        if self.has_gso() && !narrow.holds(outer.to, size) {
            let mut control = outer.control();
            let segment = u16::try_from(size).unwrap_or(u16::MAX);
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
            // Segments are not fragmented.
            let remedies = Remedies { fragments: true, ..Remedies::default() };
            match self.send_message(outer.to, slices, &control, remedies) {
                Ok(()) => return 0,
                Err(error) if self.has_to_send_each(&error, datagrams, narrow) => {}
                Err(_) => return ends.len(),
            }
        }
        self.send_each(datagrams)
    }

    /// Whether the error says that segments are not taken: for a while, or never again.
    fn has_to_send_each(
        &self,
        error: &io::Error,
        datagrams: &Datagrams<'_>,
        narrow: &mut Narrow,
    ) -> bool {
        let to = datagrams.outer.to;
        match error.raw_os_error() {
            Some(libc::EMSGSIZE | libc::EINVAL) => narrow.set(to, datagrams.size),
            // On the way there is IPsec or, before Linux 6.11, a device without checksums: whatever
            // the size.
            Some(libc::EIO) => narrow.set(to, 0),
            Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT) => self.gso.store(false, Ordering::Relaxed),
            _ => return false,
        }
        true
    }

    /// One datagram each: `sendmmsg`, which stops at the first that fails.
    fn send_each(&self, datagrams: &Datagrams<'_>) -> usize {
        let to = SockAddr::from(datagrams.outer.to);
        let control = datagrams.outer.control();
        // SAFETY: plain numbers and pointers, of which zero is one.
        let mut messages: [libc::mmsghdr; MAX_SEGMENTS] = unsafe { mem::zeroed() };
        let mut start = 0;
        let mut count = 0;
        for (message, end) in messages.iter_mut().zip(datagrams.ends) {
            let slices = datagrams.slices.get(start..*end).unwrap_or_default();
            message.msg_hdr = header(&to, slices, &control);
            start = *end;
            count += 1;
        }
        let mut failed = 0;
        let mut rest = &mut messages[..count];
        let mut remedies = Remedies::default();
        while !rest.is_empty() {
            let length = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            // SAFETY: so many messages, whose pointers are to things that outlive the call.
            let taken =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), length, 0) };
            let passed = match usize::try_from(taken) {
                Ok(taken) => taken,
                Err(_) if self.may_retry(&io::Error::last_os_error(), &mut remedies) => 0,
                Err(_) => {
                    failed += 1;
                    1
                }
            };
            rest = rest.get_mut(passed..).unwrap_or_default();
        }
        failed
    }

    /// Sends a packet of the engine's.
    ///
    /// # Errors
    /// What the kernel says: no route, no buffer, a payload longer than a datagram.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        self.fragmenting.end_in_time(&self.socket);
        let mut control = CmsgBuffer::new();
        if let Some(ttl) = out.ttl {
            push_field(&mut control, out.to, ttl, libc::IP_TTL, libc::IPV6_HOPLIMIT);
        }
        let slices = [IoSlice::new(&out.payload)];
        self.send_message(out.to, &slices, &control, Remedies::default())
    }

    /// One `sendmsg`.
    fn send_message(
        &self,
        to: SocketAddr,
        slices: &[IoSlice<'_>],
        control: &CmsgBuffer,
        mut remedies: Remedies,
    ) -> io::Result<()> {
        let to = SockAddr::from(to);
        let message = header(&to, slices, control);
        loop {
            // SAFETY: all pointers are to things that outlive the call, with their lengths.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !self.may_retry(&error, &mut remedies) {
                return Err(error);
            }
        }
    }

    /// After a signal; once each when the buffer was full and when the path is too narrow.
    fn may_retry(&self, error: &io::Error, remedies: &mut Remedies) -> bool {
        match error.raw_os_error() {
            Some(libc::EINTR) => true,
            Some(libc::EAGAIN) if !remedies.waited => {
                wake::wait_writable(self.as_fd(), FULL);
                remedies.waited = true;
                true
            }
            // Over IPv6 it fragments anyway.
            Some(libc::EMSGSIZE) if !remedies.fragments && self.spec.address.is_ipv4() => {
                remedies.fragments = true;
                self.fragmenting.begin(&self.socket).is_ok()
            }
            _ => false,
        }
    }
}

/// A field of the outer header (ip(7), ipv6(7)): `v4` or `v6`, as the remote is.
fn push_field(
    control: &mut CmsgBuffer,
    to: SocketAddr,
    value: u8,
    v4: libc::c_int,
    v6: libc::c_int,
) {
    let (level, kind) = match to {
        SocketAddr::V4(_) => (libc::SOL_IP, v4),
        SocketAddr::V6(_) => (libc::SOL_IPV6, v6),
    };
    control.push(level, kind, &libc::c_int::from(value).to_ne_bytes());
}

/// The pointers in it are good as long as the arguments are.
fn header(to: &SockAddr, slices: &[IoSlice<'_>], control: &CmsgBuffer) -> libc::msghdr {
    // SAFETY: plain numbers and pointers, of which zero is one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    // An IoSlice is an iovec (its documentation); sending only reads them.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    control.attach(&mut message);
    message
}

#[cfg(test)]
mod tests {
    use crate::engine::socket::SocketSpec;

    use super::*;

    #[test]
    fn segments_are_refused_for_a_remote_or_for_good() {
        let address = "127.0.0.1:0".parse().unwrap();
        let spec = SocketSpec { address, device: None, mark: None, checksum: None };
        let socket = UdpSocket::open(&spec, None).unwrap();
        let [to, other] = ["192.0.2.1:9", "192.0.2.2:9"].map(|to| to.parse().unwrap());
        let outer = Outer { to, ecn: Ecn::NotCapable };
        let datagrams = Datagrams { outer, size: 1400, slices: &[], ends: &[] };
        let refuse = |error| {
            let mut narrow = Narrow::default();
            let error = io::Error::from_raw_os_error(error);
            let each = socket.has_to_send_each(&error, &datagrams, &mut narrow);
            let held =
                [(to, 1), (to, 1400), (other, 1400)].map(|(to, size)| narrow.holds(to, size));
            (each, held, socket.has_gso())
        };
        assert_eq!(refuse(libc::EMSGSIZE), (true, [false, true, false], true));
        assert_eq!(refuse(libc::EIO), (true, [true, true, false], true));
        assert_eq!(refuse(libc::ENETUNREACH), (false, [false; 3], true));
        assert_eq!(refuse(libc::EOPNOTSUPP), (true, [false; 3], false));
    }
}
