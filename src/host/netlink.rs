//! Netlink messages as bytes: those for which no crate has types, and lists that are too long to be
//! held as a whole.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{
    Emitable as _, NLA_HEADER_SIZE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

/// The length of what precedes the attributes in a netfilter message and in one about settings: `struct
/// nfgenmsg` in linux/netfilter/nfnetlink.h, `struct netconfmsg` in linux/netconf.h.
pub const SHORT_HEADER: usize = 4;
/// The same length in a message about a route: `struct rtmsg` in linux/rtnetlink.h.
pub const ROUTE_HEADER: usize = 12;

/// `struct nlmsghdr` in linux/netlink.h.
const HEADER: usize = 16;

/// Splits off the first message: its type, its contents after the header, and the bytes that follow it.
pub fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let message = NetlinkBuffer::new_checked(bytes).ok()?;
    let length = usize::try_from(message.length()).ok()?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message.message_type(), message.payload(), next))
}

/// Requests one thing and reads the contents of the answer after the header. Blocks until the kernel
/// answers, which it does at once.
///
/// # Errors
/// When the kernel refuses.
pub fn ask<T>(
    protocol: isize,
    kind: u16,
    body: &[u8],
    read: impl FnOnce(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let (mut read, mut answer) = (Some(read), None);
    exchange(protocol, &request(kind, NLM_F_REQUEST, body), |message| {
        answer = read.take().and_then(|read| read(message));
        ControlFlow::Break(())
    })?;
    answer.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Requests a list of all objects of a kind and hands over the contents of each message after the
/// header, until the list ends or the callback says to stop. `body` is the request after its header.
/// Blocks until the kernel answers, which it does at once.
///
/// # Errors
/// When the kernel refuses.
pub fn list(
    protocol: isize,
    kind: u16,
    body: &[u8],
    each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    exchange(protocol, &request(kind, NLM_F_REQUEST | NLM_F_DUMP, body), each)
}

fn exchange(
    protocol: isize,
    request: &[u8],
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let Some((kind, message, next)) = message(rest) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            // Both begin with an error number, which is zero at the end of a list.
            if [NLMSG_ERROR, NLMSG_DONE].contains(&kind) {
                let number = message.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return match number {
                    0 => Ok(()),
                    _ => Err(io::Error::from_raw_os_error(-number)),
                };
            }
            if each(message).is_break() {
                return Ok(());
            }
            rest = next;
        }
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    header.message_type = kind;
    header.flags = flags;
    let mut request = vec![0; HEADER];
    header.emit(&mut request);
    request.extend(body);
    request
}

/// An attribute's value in a message whose header has this length.
pub fn attribute(message: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    let attribute = NlasIterator::new(message.get(header..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == wanted)?;
    let value = NLA_HEADER_SIZE..attribute.length().into();
    attribute.into_inner().get(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_and_separated_from_the_rest() {
        let hook = [2, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 0];
        let mut whole = request(0x0c00, NLM_F_REQUEST, &hook);
        assert_eq!(whole.len(), 28);
        whole.extend([1, 2, 3]);
        assert_eq!(message(&whole), Some((0x0c00, hook.as_slice(), [1u8, 2, 3].as_slice())));
        assert_eq!(message(&whole[..27]), None);
        assert_eq!(message(&[]), None);
    }
}
