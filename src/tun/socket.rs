//! The UDP socket: opening it, and reading from it. Sending is in `send.rs`.

use std::io::{self, IoSliceMut};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::cmsg::{self, CmsgBuffer, set_option};
use super::ecn::Ecn;
use super::path::{self, SaidBy, TooLong};
use super::room::Room;
use super::unreachable::{self, Unreachable};
use super::{lock, shared_port};
use crate::engine::host::SocketSpec;

/// Room for some milliseconds of a fast sender's packets to us; the kernel doubles it (socket(7)).
const BUFFER: usize = 4 << 20;
/// How many errors are read at a time: others can cause as many as they like.
const ERRORS: usize = 256;

/// After this many refused calls with many segments in a row, this is said. Until the kernel has taken
/// one, a single refusal is enough.
pub const REFUSALS: u32 = 3;

/// A bound UDP socket.
pub struct UdpSocket {
    pub(super) socket: Socket,
    pub(super) spec: SocketSpec,
    /// Whether the kernel knows how to send many segments in one call (`UDP_SEGMENT`).
    pub(super) gso: bool,
    /// How many calls have been refused because of that since the last one that was not.
    pub(super) gso_refused: AtomicU32,
    /// Whether it was said that the kernel refuses them.
    pub(super) gso_said: AtomicBool,
    pub(super) room: Room,
    /// Counts what routers and hosts said, as it is read.
    pub(super) heard: AtomicU64,
    /// Held while the error queue is read, so that who comes second knows of what the first one read.
    reading_errors: Mutex<()>,
    /// Held exclusively while what is sent may be fragmented, and shared while it may not.
    pub(super) fragmenting: RwLock<()>,
    /// Whether many datagrams may arrive in one call (`UDP_GRO`).
    gro: bool,
}

/// What one call received.
pub struct Received {
    pub from: SocketAddr,
    /// Bytes of all datagrams.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub size: usize,
    /// The field of all outer headers: the kernel puts together only packets that are alike
    /// (`inet_gro_receive`).
    pub ecn: Ecn,
    /// The index of the interface by which they came in.
    pub interface: Option<u32>,
}

/// What is reported about a packet that was sent.
pub enum Word {
    TooLong(TooLong),
    Unreachable(Unreachable),
}

impl UdpSocket {
    /// Opens and binds a socket.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; `NotFound` when there is no such device; `PermissionDenied`
    /// when a mark is requested without CAP_NET_ADMIN.
    pub fn open(spec: &SocketSpec) -> io::Result<Self> {
        let domain = Domain::for_address(spec.address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        UdpSocket::set_up(socket, spec, |socket| socket.bind(&spec.address.into()))
    }

    /// Takes over the socket of an earlier process. It has to be bound as `spec` says, except for the
    /// address.
    ///
    /// # Errors
    /// `InvalidInput` when it has another port or device; `AddrInUse` when another socket shares its
    /// port.
    pub fn adopt(spec: &SocketSpec, socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let device = spec.device.as_ref().map(|device| device.as_str().as_bytes().to_vec());
        let bound = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        if bound.port() != spec.address.port() || socket.device()? != device {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // An earlier version let others share the port while it moved.
        if shared_port::has_another(bound, &[socket.as_fd()]).unwrap_or(false) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let spec = SocketSpec { address: bound, ..spec.clone() };
        UdpSocket::set_up(socket, &spec, |_| Ok(()))
    }

    fn set_up(
        socket: Socket,
        spec: &SocketSpec,
        bind: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<Self> {
        let device = spec.device.as_ref().map(|device| device.as_str().as_bytes());
        // Setting the device again takes CAP_NET_RAW (`sock_bindtoindex_locked`).
        if socket.device()?.as_deref() != device {
            socket.bind_device(device)?;
        }
        // Setting the mark takes CAP_NET_ADMIN.
        let mark = spec.mark.unwrap_or(0);
        if socket.mark()? != mark {
            socket.set_mark(mark)?;
        }
        enlarge_receive_buffer(&socket);
        let room = Room::make(&socket);
        // Only over IPv4 may the checksum be omitted (RFC 768, RFC 8200).
        let no_checksum = spec.checksum == Some(false) && spec.address.is_ipv4();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, no_checksum.into())?;
        path::discover(&socket, spec.address.is_ipv4())?;
        if spec.address.is_ipv4() {
            set_option(&socket, libc::SOL_IP, libc::IP_RECVTOS, 1)?;
            set_option(&socket, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
        } else {
            set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
        let gro = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // The kernel refuses segmentation without checksums (`udp_send_skb`), and older kernels do not
        // have it.
        let gso = !no_checksum && set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        bind(&socket)?;
        let mut spec = spec.clone();
        if let Some(bound) = socket.local_addr()?.as_socket() {
            spec.address = bound;
        }
        Ok(UdpSocket {
            socket,
            spec,
            gso,
            gso_refused: AtomicU32::new(REFUSALS - 1),
            gso_said: AtomicBool::new(false),
            room,
            heard: AtomicU64::new(0),
            reading_errors: Mutex::default(),
            fragmenting: RwLock::default(),
            gro,
        })
    }

    pub fn spec(&self) -> &SocketSpec {
        &self.spec
    }

    /// Whether the interface to which it is bound is still there. A new one of the same name is a
    /// different one (`sock_getbindtodevice` says ENODEV).
    pub fn has_device(&self) -> bool {
        match (&self.spec.device, self.socket.device()) {
            (None, _) => true,
            (Some(device), Ok(Some(name))) => name == device.as_str().as_bytes(),
            (Some(_), Ok(None) | Err(_)) => false,
        }
    }

    /// Whether many segments leave with one call, as far as the last calls tell.
    pub fn has_gso(&self) -> bool {
        self.gso && self.gso_refused.load(Ordering::Relaxed) < REFUSALS
    }

    pub fn has_gro(&self) -> bool {
        self.gro
    }

    /// Receives what one call returns: one datagram, or many from one sender.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut received = None;
        let (from, length) = self.receive_message(buffer, 0, |length, level, kind, value| {
            received.get_or_insert(Parts::of(length)).note(level, kind, value);
        })?;
        let Parts { size, ecn, interface } = received.unwrap_or(Parts::of(length));
        let from = from.ok_or_else(|| io::Error::other("no sender"))?;
        Ok(Received { from, length, size, ecn, interface })
    }

    /// Hands out what the kernel and routers say about packets that did not arrive.
    pub fn read_errors(&self, mut look: impl FnMut(Word)) {
        let _alone = lock(&self.reading_errors);
        for _ in 0..ERRORS {
            let mut said = None;
            let note = |_, level, kind, value: &[u8]| said = Said::of(level, kind, value).or(said);
            match self.receive_message(&mut [], libc::MSG_ERRQUEUE, note) {
                Ok((to, _)) => {
                    if said.is_none_or(Said::is_of_others) {
                        self.heard.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(word) = to.zip(said).and_then(|(to, said)| said.about(to)) {
                        look(word);
                    }
                }
                Err(_) => break, // there are no more
            }
        }
    }

    /// Calls `recvmsg` once. Returns the address that it names, and how many bytes arrived. `look` gets
    /// each control message with that number.
    fn receive_message(
        &self,
        buffer: &mut [u8],
        flags: libc::c_int,
        mut look: impl FnMut(usize, libc::c_int, libc::c_int, &[u8]),
    ) -> io::Result<(Option<SocketAddr>, usize)> {
        let mut control = CmsgBuffer::new();
        let mut address = SockAddrStorage::zeroed();
        let mut slice = IoSliceMut::new(buffer);
        // SAFETY: plain numbers and pointers, of which zero is one.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = address.size_of();
        // An IoSliceMut is an iovec (its documentation).
        message.msg_iov = (&raw mut slice).cast();
        message.msg_iovlen = 1;
        control.lend(&mut message);
        // SAFETY: all pointers are to local things that outlive the call, with their lengths.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, flags) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel wrote an address of this length.
        let address = unsafe { SockAddr::new(address, message.msg_namelen) };
        // SAFETY: the kernel filled in the message, and the buffer is there.
        unsafe { cmsg::each(&message, |level, kind, value| look(length, level, kind, value)) };
        Ok((address.as_socket(), length))
    }
}

/// What the control messages of one call say.
#[derive(Clone, Copy)]
struct Parts {
    size: usize,
    ecn: Ecn,
    interface: Option<u32>,
}

/// An extended error: `struct sock_extended_err` of linux/errqueue.h, and the address after it.
#[derive(Clone, Copy)]
struct Said {
    error: libc::c_int,
    origin: u8,
    kind: u8,
    code: u8,
    info: u32,
    by: Option<IpAddr>,
}

impl Said {
    fn of(level: libc::c_int, kind: libc::c_int, value: &[u8]) -> Option<Said> {
        if !matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        ) {
            return None;
        }
        let (error, rest) = value.split_first_chunk()?;
        let (&[origin, kind, code, _], rest) = rest.split_first_chunk()?;
        let (info, rest) = rest.split_first_chunk()?;
        let by = rest.get(4..).and_then(offender);
        let (error, info) = (i32::from_ne_bytes(*error), u32::from_ne_bytes(*info));
        Some(Said { error, origin, kind, code, info, by })
    }

    /// Whether it is not this kernel's own.
    fn is_of_others(self) -> bool {
        self.origin != libc::SO_EE_ORIGIN_LOCAL
    }

    /// What the error says about a packet that was sent there.
    fn about(self, to: SocketAddr) -> Option<Word> {
        let said_by = match self.origin {
            libc::SO_EE_ORIGIN_LOCAL => SaidBy::Kernel,
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => SaidBy::Router,
            _ => return None,
        };
        if self.error == libc::EMSGSIZE {
            let mtu = usize::try_from(self.info).ok()?;
            return Some(Word::TooLong(TooLong { to, mtu, said_by }));
        }
        let what = match self.origin {
            libc::SO_EE_ORIGIN_ICMP => unreachable::of_icmp(self.kind, self.code),
            libc::SO_EE_ORIGIN_ICMP6 => unreachable::of_icmp6(self.kind, self.code),
            _ => None,
        };
        what.map(|what| Word::Unreachable(Unreachable { to, what, by: self.by }))
    }
}

/// Who reported it: a `sockaddr`, if its family is known here (`SO_EE_OFFENDER`).
fn offender(address: &[u8]) -> Option<IpAddr> {
    let (family, rest) = address.split_first_chunk()?;
    match libc::c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => rest.get(2..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        libc::AF_INET6 => rest.get(6..)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

impl Parts {
    /// For a call that received this many bytes: one datagram, unless a control message says otherwise.
    fn of(length: usize) -> Self {
        Parts { size: length, ecn: Ecn::NotCapable, interface: None }
    }

    /// Notes what a control message says (udp(7), ip(7), ipv6(7)).
    fn note(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = cmsg::int(value).and_then(|size| usize::try_from(size).ok());
                self.size = size.filter(|size| *size > 0).unwrap_or(self.size);
            }
            (libc::SOL_IP, libc::IP_TOS) => {
                self.ecn = value.first().copied().map_or(Ecn::NotCapable, Ecn::of_class);
            }
            (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                let class = cmsg::int(value).and_then(|class| u8::try_from(class).ok());
                self.ecn = class.map_or(Ecn::NotCapable, Ecn::of_class);
            }
            // `struct in_pktinfo` begins with the number, `struct in6_pktinfo` ends with it.
            (libc::SOL_IP, libc::IP_PKTINFO) => self.interface = index(value.first_chunk()),
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => self.interface = index(value.last_chunk()),
            _ => {}
        }
    }
}

fn index(bytes: Option<&[u8; 4]>) -> Option<u32> {
    bytes.map(|bytes| u32::from_ne_bytes(*bytes))
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes the buffer as large as wanted with CAP_NET_ADMIN, otherwise as large as the host allows.
fn enlarge_receive_buffer(socket: &Socket) {
    let size = libc::c_int::try_from(BUFFER).unwrap_or(libc::c_int::MAX);
    // A smaller buffer is slower, but not wrong.
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
}
