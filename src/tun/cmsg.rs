//! Control messages, which go beside the payload of `sendmsg` and `recvmsg` (cmsg(3)), and socket
//! options.

use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::slice;

use socket2::Socket;

/// Room for the most that is sent or received at once, with its headers: a number, the interface by
/// which a packet came (20 bytes over IPv6), and an error with its sender (44 bytes).
const ROOM: usize = 160;

/// A buffer, aligned as a `cmsghdr` has to be.
#[repr(C, align(8))]
pub struct CmsgBuffer {
    bytes: [u8; ROOM],
    used: usize,
}

impl CmsgBuffer {
    pub fn new() -> Self {
        CmsgBuffer { bytes: [0; ROOM], used: 0 }
    }

    /// Appends a message. It is omitted if there is no room for it.
    pub fn push(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        let Ok(length) = libc::c_uint::try_from(value.len()) else { return };
        // SAFETY: no pointers.
        let (space, length) = unsafe { (libc::CMSG_SPACE(length), libc::CMSG_LEN(length)) };
        let Some(room) = self.bytes.get_mut(self.used..self.used + space as usize) else { return };
        let header = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: the buffer is aligned and every space is a multiple of that; there is room for
        // the header and the value.
        unsafe {
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length as _;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(value.as_ptr(), value.len());
        }
        self.used += space as usize;
    }

    /// Attaches the messages to `message`. The buffer must outlive the call that `message` is for.
    pub fn attach(&self, message: &mut libc::msghdr) {
        // Sending only reads them.
        message.msg_control = self.bytes.as_ptr().cast_mut().cast();
        message.msg_controllen = self.used as _;
    }

    /// Offers the whole buffer for control messages that are received. It must outlive that call too.
    pub fn lend(&mut self, message: &mut libc::msghdr) {
        message.msg_control = self.bytes.as_mut_ptr().cast();
        message.msg_controllen = ROOM as _;
    }
}

/// Calls `look` for each control message: level, type, value.
///
/// # Safety
/// The message must be one that `recvmsg` filled in, and its buffer still there.
pub unsafe fn each(message: &libc::msghdr, mut look: impl FnMut(libc::c_int, libc::c_int, &[u8])) {
    // SAFETY: as the caller says; the macros stay inside of msg_controllen.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let start = libc::CMSG_DATA(header);
            let length = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let value = slice::from_raw_parts(start, length);
            look((*header).cmsg_level, (*header).cmsg_type, value);
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

/// The number in a value that is a C int.
pub fn int(value: &[u8]) -> Option<libc::c_int> {
    value.first_chunk::<{ mem::size_of::<libc::c_int>() }>().map(|b| libc::c_int::from_ne_bytes(*b))
}

/// Sets an option of a socket that is an integer (setsockopt(2)).
pub fn set_option(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: four bytes are read.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buffer = CmsgBuffer::new();
        buffer.push(1, 2, &7u16.to_ne_bytes());
        buffer.push(3, 4, &(-9i32).to_ne_bytes());
        buffer.push(5, 6, &[0; 104]); // there is no room
        // SAFETY: plain numbers and pointers, of which zero is one.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        buffer.attach(&mut message);
        let mut found = Vec::new();
        // SAFETY: in the format of `recvmsg`.
        unsafe { each(&message, |level, kind, value| found.push((level, kind, value.to_vec()))) };
        let expected =
            [(1, 2, 7u16.to_ne_bytes().to_vec()), (3, 4, (-9i32).to_ne_bytes().to_vec())];
        assert_eq!(found, expected);
        assert_eq!((int(&found[1].2), int(&found[0].2)), (Some(-9), None));
    }
}
