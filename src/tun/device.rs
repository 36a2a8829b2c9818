//! The TUN interface: `/dev/net/tun` (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::engine::config::DeviceName;

use super::vnet;

/// Large TCP packets, and no checksums.
const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Large UDP packets; Linux 6.2, both or none.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An interface. It is gone when all its queues are closed.
pub struct Interface {
    queues: Vec<Queue>,
    pub offload: Offload,
}

/// What the kernel leaves to us and takes from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    None,
    Tcp,
    TcpAndUdp,
}

/// One of the interface's queues: packets come from here, and go here.
pub struct Queue(File);

impl Interface {
    /// Makes a new interface.
    ///
    /// # Errors
    /// `NotFound`: the kernel has no TUN (module `tun`); `PermissionDenied`: no CAP_NET_ADMIN;
    /// `ResourceBusy`: there is an interface of this name.
    pub fn create(device: &DeviceName, queues: usize) -> io::Result<Self> {
        let mut opened = Vec::with_capacity(queues);
        for number in 0..queues {
            // The first one makes it, and takes over nobody else's.
            let new = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
            let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
            opened.push(Queue::open(device, new | multi)?);
        }
        let offload = opened.first().map_or(Offload::None, Queue::request_offload);
        Ok(Interface { queues: opened, offload })
    }

    /// Takes over the queues that an earlier process opened.
    ///
    /// # Errors
    /// `InvalidInput` when they are not all those of an interface of this name; [`is_gone`].
    pub fn adopt(device: &DeviceName, queues: Vec<OwnedFd>) -> io::Result<Self> {
        let queues: Vec<_> = queues.into_iter().map(|fd| Queue(fd.into())).collect();
        let mut offload = Offload::None;
        for queue in &queues {
            if queue.interface_name()? != device.as_str().as_bytes() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            offload = queue.request_offload();
        }
        Ok(Interface { queues, offload })
    }

    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }
}

impl Queue {
    fn open(device: &DeviceName, flags: libc::c_int) -> io::Result<Self> {
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
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
        // The flags have 16 bits, of which IFF_TUN_EXCL is the highest.
        #[allow(clippy::cast_possible_truncation)]
        let flags = flags as libc::c_short;
        request.ifr_ifru.ifru_flags = flags;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let length = libc::c_int::try_from(vnet::LEN).map_err(io::Error::other)?;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
        Ok(Queue(file))
    }

    fn interface_name(&self) -> io::Result<Vec<u8>> {
        // SAFETY: plain numbers, of which zero is one.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        Ok(request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|b| *b != 0).collect())
    }

    /// As much as the kernel gives; it is a matter of the interface, not of the queue.
    fn request_offload(&self) -> Offload {
        // TUNSETOFFLOAD takes its number by value.
        let ask = |flags: libc::c_uint| {
            // SAFETY: no pointers.
            check(unsafe {
                libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
            })
        };
        if ask(TCP | UDP).is_ok() {
            Offload::TcpAndUdp
        } else if ask(TCP).is_ok() {
            Offload::Tcp
        } else {
            Offload::None
        }
    }

    /// Reads one packet with its header ([`vnet::Vnet`]) in front.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; [`is_gone`] when there is no interface any more.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one packet with its header in front.
    ///
    /// # Errors
    /// EIO when the interface is down; [`is_gone`].
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(parts)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the interface was deleted (`tun_get` finds none, or finds it going).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EFAULT))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
