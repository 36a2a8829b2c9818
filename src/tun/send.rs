//! Sends through the UDP socket: many segments in one call where the kernel can do that, otherwise one
//! datagram at a time.

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use socket2::{SockAddr, Socket};

use super::cmsg::CmsgBuffer;
use super::ecn::Ecn;
use super::others::{self, Care, Failure};
use super::path;
use super::refused::Refused;
use super::socket::{REFUSALS, UdpSocket};
use super::{read, write};
use crate::engine::Outgoing;

/// The most segments in one call (`UDP_MAX_SEGMENTS` in linux/udp.h; later kernels take 128).
pub const MAX_SEGMENTS: usize = 64;
/// The most bytes in one call: what fits into an IPv4 packet (`__ip_append_data`).
pub const MAX_BYTES: usize = 65_507;

/// What the outer headers have in common of datagrams that leave in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    pub to: SocketAddr,
    pub ecn: Ecn,
}

/// Datagrams to one remote, in their order.
pub struct Datagrams<'a> {
    pub outer: Outer,
    /// The size of each datagram except the last, which may be shorter.
    pub size: usize,
    pub slices: &'a [IoSlice<'a>],
    /// Where each datagram ends in `slices`.
    pub ends: &'a [usize],
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

/// What the thread that sends datagrams keeps and calls.
pub struct Sender<'a> {
    pub refused: &'a mut Refused,
    pub calls: Calls<'a>,
}

/// How calls are made.
#[derive(Clone, Copy)]
pub struct Calls<'a> {
    /// Reads the socket's error queue.
    pub read_errors: &'a dyn Fn(),
    /// Whether they wait while the socket is full.
    pub waits: bool,
}

/// The result of sending datagrams.
#[derive(Default)]
struct Sent {
    /// How many were not taken.
    failed: usize,
    /// Whether some were too long to leave unfragmented.
    in_fragments: bool,
}

impl UdpSocket {
    /// Sends them all, or as many as the kernel takes. Returns how many it did not take.
    pub fn send_all(&self, datagrams: &Datagrams<'_>, sender: &mut Sender<'_>) -> usize {
        let Datagrams { outer, size, slices, ends } = *datagrams;
        if ends.len() == 1 {
            let sent = self.send_message(outer.to, slices, &outer.control(), sender.calls);
            return usize::from(sent.is_err());
        }
        let takes_many = self.gso && !sender.refused.holds(outer.to, size);
        if takes_many && !self.room.is_crowded(&self.socket) {
            let mut control = outer.control();
            let segment = u16::try_from(size).unwrap_or(u16::MAX);
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
            let to = SockAddr::from(outer.to);
            let message = header(&to, slices, &control);
            let error = match self.call(&message, sender.calls) {
                Ok(()) => {
                    self.gso_refused.store(0, Ordering::Relaxed);
                    return 0;
                }
                Err(Failure::Own(error)) if has_to_send_each(&error, datagrams, sender.refused) => {
                    error
                }
                Err(_) => return ends.len(),
            };
            let Sent { failed, in_fragments } = self.send_each(datagrams, sender.calls);
            // If they were not too long, the kernel refused their number.
            if failed == 0 && !in_fragments {
                self.count_refusal(outer.to, &error);
            }
            return failed;
        }
        self.send_each(datagrams, sender.calls).failed
    }

    /// Notes that the kernel refuses many datagrams in one call, although it takes each of them.
    fn count_refusal(&self, to: SocketAddr, error: &io::Error) {
        let before = self.gso_refused.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= REFUSALS && !self.gso_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the kernel takes no more than one packet to {to} in a call ({error}): they are sent \
                 one by one, which is slower"
            );
        }
    }

    /// Sends them one by one with `sendmmsg`, which stops at the first that fails.
    fn send_each(&self, datagrams: &Datagrams<'_>, calls: Calls<'_>) -> Sent {
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
        let mut result = Sent::default();
        let mut rest = &mut messages[..count];
        while let Some(first) = rest.first() {
            let first = first.msg_hdr;
            let passed = self.own(calls, || self.send_many(rest)).unwrap_or_else(|failure| {
                let too_long = is_too_long(&failure);
                result.in_fragments |= too_long;
                let sent = too_long && self.send_fragmented(&first, calls).is_ok();
                result.failed += usize::from(!sent);
                1
            });
            rest = rest.get_mut(passed..).unwrap_or_default();
        }
        result
    }

    fn send_many(&self, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
        let length = libc::c_uint::try_from(messages.len()).unwrap_or(0);
        let _not_fragmented = read(&self.fragmenting);
        // SAFETY: the array has this many messages, and their pointers are to things that outlive the
        // call.
        let taken =
            unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), length, 0) };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }

    /// Sends a packet of the engine. `most`: the size of the longest payload that the path allows.
    ///
    /// # Errors
    /// What the kernel says: no route, no buffer, a payload longer than a datagram.
    pub fn send(&self, out: &Outgoing, most: usize, calls: Calls<'_>) -> io::Result<()> {
        let mut control = CmsgBuffer::new();
        if let Some(ttl) = out.ttl {
            push_field(&mut control, out.to, ttl, libc::IP_TTL, libc::IPV6_HOPLIMIT);
        }
        let slices = [IoSlice::new(&out.payload)];
        self.room.send_for_engine(&self.socket, || {
            if out.payload.len() > most {
                let to = SockAddr::from(out.to);
                return self.send_fragmented(&header(&to, &slices, &control), calls);
            }
            self.send_message(out.to, &slices, &control, calls)
        })
    }

    /// Sends one datagram that is longer than the path allows, in fragments.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_in_fragments(
        &self,
        outer: Outer,
        payload: &[u8],
        calls: Calls<'_>,
    ) -> io::Result<()> {
        let to = SockAddr::from(outer.to);
        self.send_fragmented(&header(&to, &[IoSlice::new(payload)], &outer.control()), calls)
    }

    /// Sends one datagram. If the interface does not take it whole, it leaves in fragments.
    fn send_message(
        &self,
        to: SocketAddr,
        slices: &[IoSlice<'_>],
        control: &CmsgBuffer,
        calls: Calls<'_>,
    ) -> io::Result<()> {
        let to = SockAddr::from(to);
        let message = header(&to, slices, control);
        match self.call(&message, calls) {
            Err(failure) if is_too_long(&failure) => self.send_fragmented(&message, calls),
            result => Ok(result?),
        }
    }

    /// Calls `sendmsg`, and repeats it where that may help.
    fn call(&self, message: &libc::msghdr, calls: Calls<'_>) -> Result<(), Failure> {
        self.own(calls, || {
            let _not_fragmented = read(&self.fragmenting);
            send_message(&self.socket, message)
        })
    }

    /// Makes a call until its result is its own.
    fn own<T>(&self, calls: Calls<'_>, call: impl FnMut() -> io::Result<T>) -> Result<T, Failure> {
        let care = Care {
            read_errors: calls.read_errors,
            heard: &|| self.heard.load(Ordering::Relaxed),
            waits: &|| calls.waits && self.room.comes(&self.socket),
        };
        others::own(care, call)
    }

    /// Allows this datagram to be fragmented. The setting belongs to the socket, so nobody else sends
    /// meanwhile; and it is a single datagram, whose number no other one has.
    fn send_fragmented(&self, message: &libc::msghdr, calls: Calls<'_>) -> io::Result<()> {
        let is_v4 = self.spec.address.is_ipv4();
        let calls = Calls { waits: false, ..calls };
        let _alone = write(&self.fragmenting);
        path::fragment(&self.socket, is_v4, true)?;
        let sent = self.own(calls, || send_message(&self.socket, message));
        path::fragment(&self.socket, is_v4, false)?;
        Ok(sent?)
    }
}

/// Whether the error says that segments are refused; they are not tried again for a while.
fn has_to_send_each(error: &io::Error, datagrams: &Datagrams<'_>, refused: &mut Refused) -> bool {
    let to = datagrams.outer.to;
    match error.raw_os_error() {
        Some(libc::EMSGSIZE | libc::EINVAL) => refused.set(to, datagrams.size),
        // There is IPsec on the way or, before Linux 6.11, a device without checksums: this is so for
        // any size.
        Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => refused.set(to, 0),
        _ => return false,
    }
    true
}

fn is_too_long(failure: &Failure) -> bool {
    matches!(failure, Failure::Own(error) if error.raw_os_error() == Some(libc::EMSGSIZE))
}

fn send_message(socket: &Socket, message: &libc::msghdr) -> io::Result<()> {
    // SAFETY: all pointers are to things that outlive the call, with their lengths.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), message, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Appends a field of the outer header (ip(7), ipv6(7)): `v4` or `v6`, as the remote is.
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

/// A message whose pointers are valid as long as the arguments are.
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

    use super::*;
    use crate::engine::host::SocketSpec;

    #[test]
    fn a_refusal_of_segments_is_remembered_for_the_remote() {
        let [to, other] = ["192.0.2.1:9", "192.0.2.2:9"].map(|to| to.parse().unwrap());
        let outer = Outer { to, ecn: Ecn::NotCapable };
        let datagrams = Datagrams { outer, size: 1400, slices: &[], ends: &[] };
        let refuse = |error| {
            let mut refused = Refused::default();
            let error = io::Error::from_raw_os_error(error);
            let each = has_to_send_each(&error, &datagrams, &mut refused);
            (each, [(to, 1), (to, 1400), (other, 1400)].map(|(to, size)| refused.holds(to, size)))
        };
        assert_eq!(refuse(libc::EMSGSIZE), (true, [false, true, false]));
        assert_eq!(refuse(libc::EIO), (true, [true, true, false]));
        assert_eq!(refuse(libc::ENETUNREACH), (false, [false; 3]));
        assert_eq!(refuse(libc::EOPNOTSUPP), (true, [true, true, false]));
    }

    #[test]
    fn segmentation_is_not_in_use_while_it_is_refused() {
        let address = "127.0.0.1:0".parse().unwrap();
        let spec = SocketSpec { address, device: None, mark: None, checksum: None };
        let socket = UdpSocket::open(&spec).unwrap();
        let refused = || {
            socket.count_refusal(address, &io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            !socket.has_gso()
        };
        assert!(socket.has_gso() && refused());
        socket.gso_refused.store(0, Ordering::Relaxed); // one was taken
        assert_eq!([refused(), refused(), refused()], [false, false, true]);
    }
}
