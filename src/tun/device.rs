//! The TUN interface: `/dev/net/tun` (Documentation/networking/tuntap.rst).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::vnet::{self, Gso, Vnet};
use super::wake::Wake;
use crate::engine::config::DeviceName;

/// Large TCP packets, and no checksums.
const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Large UDP packets; Linux 6.2, both or none.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An interface. It is gone when all its queues are closed.
pub struct Interface {
    queues: Vec<Queue>,
    /// What it leaves to us, and what it takes from us, as [`Offload`]s.
    gives: AtomicU8,
    takes: AtomicU8,
    /// It is given up; and what wakes its readers then, for good.
    given_up: AtomicBool,
    end: Wake,
}

/// What the kernel leaves to us and takes from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    None,
    Tcp,
    TcpAndUdp,
}

impl Offload {
    /// Whether a large packet of this kind is taken.
    pub fn takes(self, gso: Gso) -> bool {
        match gso {
            Gso::None => true,
            Gso::Tcp4 | Gso::Tcp6 => self >= Offload::Tcp,
            Gso::Udp => self >= Offload::TcpAndUdp,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Offload::None,
            1 => Offload::Tcp,
            _ => Offload::TcpAndUdp,
        }
    }
}

/// One of the interface's queues: packets come from here, and go here.
pub struct Queue {
    file: File,
    /// Whether every packet has a header ([`vnet::Vnet`]) in front.
    has_header: bool,
}

/// What is asked of the kernel when a queue is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    multi_queue: bool,
    header: bool,
    /// That it is a new interface.
    exclusive: bool,
}

impl Interface {
    /// Makes a new interface. What a kernel does not know, as in some sandboxes and old containers,
    /// is done without.
    ///
    /// # Errors
    /// `NotFound`: the kernel has no TUN (module `tun`); `PermissionDenied`: no CAP_NET_ADMIN;
    /// `ResourceBusy`: there is an interface of this name.
    pub fn create(device: &DeviceName, queues: usize) -> io::Result<Self> {
        let most = Ask { multi_queue: queues > 1, header: true, exclusive: true };
        let (first, ask) = open_new(device, most)?;
        first.keep_others_off(ask.multi_queue)?;
        if most.multi_queue && !ask.multi_queue {
            tracing::warn!(
                "the kernel has TUN interfaces of one queue only: one thread reads {device}"
            );
        }
        if !ask.header {
            tracing::warn!(
                "the kernel knows no offloads of TUN interfaces: every packet goes through {device} \
                 by itself, which is slower"
            );
        }
        let mut opened = vec![first];
        // The first one has made it; these are queues of the same.
        for _ in 1..if ask.multi_queue { queues } else { 1 } {
            opened.push(Queue::open(device, Ask { exclusive: false, ..ask })?);
        }
        Interface::of(opened)
    }

    /// Takes over the queues that an earlier process opened.
    ///
    /// # Errors
    /// `InvalidInput` when they are not all those of an interface of this name; [`is_gone`].
    pub fn adopt(device: &DeviceName, queues: Vec<OwnedFd>) -> io::Result<Self> {
        let mut adopted = Vec::with_capacity(queues.len());
        for fd in queues {
            let mut queue = Queue { file: fd.into(), has_header: false };
            let request = queue.get()?;
            if interface_name(&request) != device.as_str().as_bytes() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // SAFETY: TUNGETIFF wrote the flags.
            let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
            queue.has_header = flags & libc::IFF_VNET_HDR != 0;
            queue.keep_others_off(flags & libc::IFF_MULTI_QUEUE != 0)?;
            adopted.push(queue);
        }
        Interface::of(adopted)
    }

    fn of(queues: Vec<Queue>) -> io::Result<Self> {
        let mut offload = Offload::None;
        for queue in queues.iter().filter(|queue| queue.has_header) {
            offload = queue.request_offload(Offload::TcpAndUdp);
        }
        let number = || AtomicU8::new(offload as u8);
        let (gives, takes, given_up) = (number(), number(), AtomicBool::new(false));
        Ok(Interface { queues, gives, takes, given_up, end: Wake::new()? })
    }

    /// Ends its readers. When all have let go of it the kernel removes it, wherever it is by then.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.end.wake();
    }

    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Wakes its readers when it is given up.
    pub fn end(&self) -> &Wake {
        &self.end
    }

    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The large packets that come from here.
    pub fn gives(&self) -> Offload {
        Offload::of(self.gives.load(Ordering::Relaxed))
    }

    /// The large packets that may go here.
    pub fn takes(&self) -> Offload {
        Offload::of(self.takes.load(Ordering::Relaxed))
    }

    /// The kernel refused a large packet of this kind, and took its parts: there is none any more.
    pub fn refuses(&self, gso: Gso, error: &io::Error) {
        let less = if gso == Gso::Udp { Offload::Tcp } else { Offload::None };
        if self.takes.fetch_min(less as u8, Ordering::Relaxed) > less as u8 {
            tracing::warn!(
                "the kernel does not take large packets that it said it would ({error}): they are \
                 written one by one, which is slower"
            );
        }
    }

    /// The kernel cannot hand over a packet: it may be a large one, and there are to be none any more.
    /// Whether that is new.
    pub fn cannot_give(&self, error: &io::Error) -> bool {
        let before = Offload::of(self.gives.swap(Offload::None as u8, Ordering::Relaxed));
        if before == Offload::None {
            return false;
        }
        for queue in &self.queues {
            queue.request_offload(Offload::None);
        }
        tracing::warn!(
            "the kernel does not hand over large packets that it said it would ({error}): they are \
             read one by one, which is slower"
        );
        true
    }

    /// Bytes of the largest packet that is to come out of here. `socket` is any of this namespace.
    pub fn mtu(&self, socket: BorrowedFd<'_>) -> Option<usize> {
        // Its name may be another by now.
        let mut request = self.queues.first()?.get().ok()?;
        // With musl a request is an int, and this one constant is not.
        #[allow(clippy::cast_possible_truncation)]
        let get_mtu = libc::SIOCGIFMTU as libc::Ioctl;
        // SAFETY: SIOCGIFMTU reads and writes one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), get_mtu, &raw mut request) }).ok()?;
        // SAFETY: it wrote the MTU.
        usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
    }
}

/// Opens the first queue of a new interface with as much as the kernel knows.
fn open_new(device: &DeviceName, most: Ask) -> io::Result<(Queue, Ask)> {
    let mut asks = vec![most];
    if most.multi_queue {
        asks.push(Ask { multi_queue: false, ..most });
    }
    let less = Ask { multi_queue: false, header: false, exclusive: true };
    asks.push(less);
    asks.push(Ask { exclusive: false, ..less });
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for ask in asks {
        if !ask.exclusive && exists(device) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        match Queue::open(device, ask) {
            Ok(queue) => return Ok((queue, ask)),
            // What this kernel does not know (`tun_set_iff`).
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                refused = e;
            }
            Err(e) => return Err(e),
        }
    }
    Err(refused)
}

fn exists(device: &DeviceName) -> bool {
    CString::new(device.as_str()).is_ok_and(|name| {
        // SAFETY: a string that ends with zero.
        unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
    })
}

fn interface_name(request: &libc::ifreq) -> Vec<u8> {
    request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|b| *b != 0).collect()
}

impl Queue {
    fn open(device: &DeviceName, ask: Ask) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: plain numbers, of which zero is one.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let name = device.as_str().as_bytes();
        // A name has 15 bytes at most (IFNAMSIZ), so the last byte stays zero.
        for (to, from) in request.ifr_name.iter_mut().take(15).zip(name) {
            *to = from.cast_signed();
        }
        let flag = |on, flag| if on { flag } else { 0 };
        let flags = libc::IFF_TUN
            | libc::IFF_NO_PI
            | flag(ask.header, libc::IFF_VNET_HDR)
            | flag(ask.multi_queue, libc::IFF_MULTI_QUEUE)
            | flag(ask.exclusive, libc::IFF_TUN_EXCL);
        // The flags have 16 bits, of which IFF_TUN_EXCL is the highest.
        #[allow(clippy::cast_possible_truncation)]
        let flags = flags as libc::c_short;
        request.ifr_ifru.ifru_flags = flags;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        if ask.header {
            set_header_length(&file)?;
        }
        Ok(Queue { file, has_header: ask.header })
    }

    /// Gives the interface an owner. While it has none, every user who may open /dev/net/tun, and that
    /// is all of them, can attach a queue of his own (`tun_not_capable`). With root as the owner
    /// nobody can but root and who has CAP_NET_ADMIN, as this process does.
    ///
    /// A kernel with interfaces of one queue only may not know of owners, and needs none.
    fn keep_others_off(&self, multi_queue: bool) -> io::Result<()> {
        // SAFETY: no pointers.
        let own = |user: libc::uid_t| {
            check(unsafe {
                libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user))
            })
        };
        // A user namespace need not have root.
        // SAFETY: it cannot fail.
        let owned = own(0).or_else(|_| own(unsafe { libc::geteuid() }));
        if multi_queue { owned } else { Ok(()) }
    }

    /// What it is (TUNGETIFF): name and flags.
    fn get(&self) -> io::Result<libc::ifreq> {
        // SAFETY: plain numbers, of which zero is one.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        Ok(request)
    }

    /// Asks for so much; what the kernel gives. It is a matter of the interface, not of the queue.
    fn request_offload(&self, most: Offload) -> Offload {
        // TUNSETOFFLOAD takes its number by value.
        let ask = |flags: libc::c_uint| {
            // SAFETY: no pointers.
            check(unsafe {
                libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
            })
        };
        if most >= Offload::TcpAndUdp && ask(TCP | UDP).is_ok() {
            Offload::TcpAndUdp
        } else if most >= Offload::Tcp && ask(TCP).is_ok() {
            Offload::Tcp
        } else {
            // It may say no to that as well, and then has none anyway.
            let _ = ask(0);
            Offload::None
        }
    }

    /// Whether every packet has a header in front; it must ask for nothing otherwise.
    pub fn has_header(&self) -> bool {
        self.has_header
    }

    /// Reads one packet with its header ([`vnet::Vnet`]) in front.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; [`is_gone`] when there is no interface any more.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_header {
            return (&self.file).read(buffer);
        }
        let (header, packet) = buffer.split_at_mut(vnet::LEN);
        header.copy_from_slice(&Vnet::PLAIN.bytes());
        Ok(vnet::LEN + (&self.file).read(packet)?)
    }

    /// Writes one packet with its header in front.
    ///
    /// # Errors
    /// EIO when the interface is down; [`is_gone`].
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts = if self.has_header { parts } else { parts.get(1..).unwrap_or_default() };
        (&self.file).write_vectored(parts)
    }
}

/// The kernel's own choice is ours, so one that lets nobody choose is fine, if it says so.
fn set_header_length(file: &File) -> io::Result<()> {
    let wanted = libc::c_int::try_from(vnet::LEN).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let set =
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const wanted) });
    let Err(error) = set else { return Ok(()) };
    let mut length: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut length) })?;
    if length == wanted { Ok(()) } else { Err(error) }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether the kernel does not know such a packet, or says so: it is not its length in memory, nor that
/// the interface is down (EIO) or gone.
pub fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::EPROTO | libc::E2BIG)
    )
}

/// Whether the interface was deleted (`tun_get` finds none, or finds it going).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EFAULT))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
