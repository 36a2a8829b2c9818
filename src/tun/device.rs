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

/// Large TCP packets, whose checksums are left to the other side.
const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Large UDP packets, of both families or none; since Linux 6.2.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A TUN interface. It is gone when all its queues are closed.
pub struct Interface {
    queues: Vec<Queue>,
    /// What the kernel leaves to this process and takes from it, as [`Offload`]s.
    gives: AtomicU8,
    takes: AtomicU8,
    /// Whether the interface is given up, and what wakes its readers then, for good.
    given_up: AtomicBool,
    end: Wake,
}

/// Which large packets the kernel hands over, or takes.
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

/// One of the interface's queues, from which packets are read and to which they are written.
pub struct Queue {
    file: File,
    /// Whether every packet has a header ([`vnet::Vnet`]) in front.
    has_header: bool,
}

/// What is requested from the kernel when a queue is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    multi_queue: bool,
    header: bool,
    /// The interface must be a new one.
    exclusive: bool,
}

impl Interface {
    /// Makes a new interface. It does without the features that a kernel lacks, as in some sandboxes
    /// and old containers.
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
        // The first queue has made the interface; these belong to the same one.
        for _ in 1..if ask.multi_queue { queues } else { 1 } {
            opened.push(Queue::open(device, Ask { exclusive: false, ..ask })?);
        }
        Interface::of(opened)
    }

    /// Takes over the queues that an earlier process opened.
    ///
    /// # Errors
    /// `InvalidInput` when they are not all the queues of one interface of this name; [`is_gone`].
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

    /// Ends its readers. When the last user has dropped it, the kernel removes it, under whatever name
    /// and in whatever namespace it is by then.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.end.wake();
    }

    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// What wakes its readers when it is given up.
    pub fn end(&self) -> &Wake {
        &self.end
    }

    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The large packets that are read from here.
    pub fn gives(&self) -> Offload {
        Offload::of(self.gives.load(Ordering::Relaxed))
    }

    /// The large packets that may be written here.
    pub fn takes(&self) -> Offload {
        Offload::of(self.takes.load(Ordering::Relaxed))
    }

    /// Notes that the kernel refused a large packet of this kind but took its parts: no more are
    /// written.
    pub fn refuses(&self, gso: Gso, error: &io::Error) {
        let less = if gso == Gso::Udp { Offload::Tcp } else { Offload::None };
        if self.takes.fetch_min(less as u8, Ordering::Relaxed) > less as u8 {
            tracing::warn!(
                "the kernel does not take large packets that it said it would ({error}): they are \
                 written one by one, which is slower"
            );
        }
    }

    /// Notes that the kernel cannot hand over a packet. It may be a large one, so no more are
    /// requested. Returns whether that is new.
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

    /// The size of the largest packet that is read from here. `socket` is any socket of this namespace.
    pub fn mtu(&self, socket: BorrowedFd<'_>) -> Option<usize> {
        // The interface may have been renamed by now.
        let mut request = self.queues.first()?.get().ok()?;
        // With musl an ioctl number is an int, and this one constant is not.
        #[allow(clippy::cast_possible_truncation)]
        let get_mtu = libc::SIOCGIFMTU as libc::Ioctl;
        // SAFETY: SIOCGIFMTU reads and writes one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), get_mtu, &raw mut request) }).ok()?;
        // SAFETY: it wrote the MTU.
        usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
    }
}

/// Opens the first queue of a new interface with as many features as the kernel has.
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
            // The kernel does not know one of the features (`tun_set_iff`).
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
        // SAFETY: the string ends with a zero byte.
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

    /// Gives the interface an owner. While it has none, every user who may open /dev/net/tun, which is
    /// everybody, can attach a queue (`tun_not_capable`). With root as the owner, only root and
    /// processes with CAP_NET_ADMIN can, as this one has.
    ///
    /// A kernel whose interfaces have only one queue may not know of owners, and needs none.
    fn keep_others_off(&self, multi_queue: bool) -> io::Result<()> {
        // SAFETY: the call takes no pointers.
        let own = |user: libc::uid_t| {
            check(unsafe {
                libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user))
            })
        };
        // A user namespace need not have root.
        // SAFETY: geteuid cannot fail.
        let owned = own(0).or_else(|_| own(unsafe { libc::geteuid() }));
        if multi_queue { owned } else { Ok(()) }
    }

    /// The interface of this queue (TUNGETIFF): its name and flags.
    fn get(&self) -> io::Result<libc::ifreq> {
        // SAFETY: plain numbers, of which zero is one.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        Ok(request)
    }

    /// Requests these offloads, and returns what the kernel grants. The setting belongs to the
    /// interface, not to the queue.
    fn request_offload(&self, most: Offload) -> Offload {
        // TUNSETOFFLOAD takes its number by value.
        let ask = |flags: libc::c_uint| {
            // SAFETY: the call takes no pointers.
            check(unsafe {
                libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
            })
        };
        if most >= Offload::TcpAndUdp && ask(TCP | UDP).is_ok() {
            Offload::TcpAndUdp
        } else if most >= Offload::Tcp && ask(TCP).is_ok() {
            Offload::Tcp
        } else {
            // The kernel may refuse that as well; then there are no offloads anyway.
            let _ = ask(0);
            Offload::None
        }
    }

    /// Whether every packet has a header in front. Without one, no offloads may be requested.
    pub fn has_header(&self) -> bool {
        self.has_header
    }

    /// Reads one packet with its header ([`vnet::Vnet`]) in front.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; [`is_gone`] when the interface is gone.
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

/// Sets the length of the header. The wanted length is the kernel's default, so a kernel that does not
/// let it be set is fine, if it reports that length.
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

/// Whether the kernel refused this packet for what it is: not for a lack of memory, and not because the
/// interface is down (EIO) or gone.
pub fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::EPROTO | libc::E2BIG)
    )
}

/// Whether the interface was deleted (`tun_get` finds none, or one that is being removed).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EFAULT))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
