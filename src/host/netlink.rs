//! Netlink messages as bytes: those for which no crate has types, and lists that are too long to be
//! held as a whole.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_packet_core::{
    Emitable as _, NLA_HEADER_SIZE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NlasIterator,
};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
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
    let socket = open(protocol)?;
    socket.send(&request(kind, NLM_F_REQUEST, body), 0)?;
    let end = read_messages(
        || receive(&socket),
        |message| {
            answer = read.take().and_then(|read| read(message));
            Ok(ControlFlow::Break(()))
        },
    )?;
    match end {
        End::Refused(number) => Err(io::Error::from_raw_os_error(number)),
        End::Whole { .. } | End::Interrupted | End::Stopped => {
            answer.ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
    }
}

/// How often a list is asked for.
const TRIES: usize = 5;
/// How long a part of it may be.
const PART: usize = 32 << 10;

/// Requests lists, and sees to it that they are whole: what one lacks would be taken for damage.
///
/// The kernel tells a long list in parts, each when the last one has been read. What changes in between
/// can move an entry from a part that is still to come into one that was told, and then it is in none. Such a
/// list has a mark (`NLM_F_DUMP_INTR`, `nl_dump_check_consistent` in net/netlink.h), and is asked for
/// again. Lists of policy rules and routes never have it (tried on 6.18), and those of rules lack some all the
/// same: such a list of more than one part counts when the next one says the same.
///
/// The crates hide mark and parts. They are left to read the lists that fit into one part: of FOU listeners, and of
/// filters of one kind at one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lists {
    protocol: isize,
    /// Whether the kernel checks requests strictly.
    strict: bool,
}

/// The sockets that lists are requested on, one of each kind for all tunnels of the process. They stay open: a
/// process that can open no more files goes on.
static SOCKETS: Mutex<BTreeMap<Lists, Socket>> = Mutex::new(BTreeMap::new());

impl Lists {
    pub const ROUTE: Self = Lists { protocol: NETLINK_ROUTE, strict: false };
    /// The same, for lists that the kernel is to filter (`ip_valid_fib_dump_req` in net/ipv4/fib_frontend.c).
    pub const ROUTE_FILTERED: Self = Lists { strict: true, ..Lists::ROUTE };
    pub const NETFILTER: Self = Lists { protocol: NETLINK_NETFILTER, strict: false };

    /// Requests a list of all objects of a kind and hands over the contents of each message after the
    /// header, until the list ends or the callback says to stop. `body` is the request after its header.
    /// When the list is not whole, all begins again. Blocks until the kernel answers, which it does at once.
    ///
    /// # Errors
    /// When the kernel refuses; `Interrupted`, when the list changes all the time.
    pub fn list<C: Default + PartialEq>(
        self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&mut C, &[u8]) -> io::Result<ControlFlow<()>>,
    ) -> io::Result<C> {
        let kept = || SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
        let request = request(kind, NLM_F_REQUEST | NLM_F_DUMP, body);
        whole(self.has_marks(kind), |listed| {
            // It is put back when nothing of the list is left in it.
            let socket = kept().remove(&self);
            let socket = socket.map_or_else(|| self.open(), Ok)?;
            socket.send(&request, 0)?;
            let end = read_messages(|| receive(&socket), |message| each(listed, message))?;
            if end != End::Stopped {
                kept().insert(self, socket);
            }
            Ok(end)
        })
    }

    /// Requests a list by a request that the crate `netlink-bindings` has made, and hands over each answer.
    ///
    /// # Errors
    /// Those of [`list`](Self::list), and of the callback.
    pub fn read<R: NetlinkRequest, C: Default + PartialEq>(
        self,
        request: &R,
        mut each: impl FnMut(&mut C, R::ReplyType<'_>) -> io::Result<()>,
    ) -> io::Result<C> {
        let Protocol::Raw { request_type, .. } = request.protocol() else {
            return Err(io::ErrorKind::Unsupported.into()); // it has no number before it is asked for
        };
        self.list(request_type, request.payload(), |listed, message| {
            each(listed, R::decode_reply(message))?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn has_marks(self, kind: u16) -> bool {
        self.protocol != NETLINK_ROUTE || ![libc::RTM_GETROUTE, libc::RTM_GETRULE].contains(&kind)
    }

    fn open(self) -> io::Result<Socket> {
        let socket = open(self.protocol)?;
        if self.strict {
            socket.set_netlink_get_strict_chk(true)?;
        }
        Ok(socket)
    }
}

/// Asks for a list until it is whole. `has_marks`: it has the mark when it is not.
fn whole<C: Default + PartialEq>(
    has_marks: bool,
    mut ask: impl FnMut(&mut C) -> io::Result<End>,
) -> io::Result<C> {
    let mut before = None;
    for _ in 0..TRIES {
        let mut listed = C::default();
        match ask(&mut listed)? {
            End::Stopped => return Ok(listed),
            End::Whole { parts } if has_marks || parts < 2 => return Ok(listed),
            End::Whole { .. } if before.as_ref() == Some(&listed) => return Ok(listed),
            End::Whole { .. } => before = Some(listed),
            End::Interrupted => {}
            End::Refused(number) => return Err(io::Error::from_raw_os_error(number)),
        }
    }
    let text = format!("what the kernel lists was changed while it was read, {TRIES} times");
    Err(io::Error::new(io::ErrorKind::Interrupted, text))
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Receives a part. The kernel makes the next ones as long as what is asked for (`netlink_recvmsg`), at most
/// 32 KiB; a few messages are longer.
fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut part = Vec::with_capacity(PART);
    let (length, _) = socket.recv_from(&mut part, libc::MSG_PEEK | libc::MSG_TRUNC)?;
    part.clear();
    part.reserve(length);
    socket.recv_from(&mut part, 0)?;
    Ok(part)
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Without the mark, in so many parts.
    Whole { parts: usize },
    /// With the mark.
    Interrupted,
    /// The callback said so.
    Stopped,
    /// The error number.
    Refused(i32),
}

/// Hands over the contents of each message until the answer ends.
fn read_messages(
    mut receive: impl FnMut() -> io::Result<Vec<u8>>,
    mut each: impl FnMut(&[u8]) -> io::Result<ControlFlow<()>>,
) -> io::Result<End> {
    let (mut is_whole, mut parts) = (true, 0);
    loop {
        let answer = receive()?;
        let mut is_part = false;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let Some((kind, message, next)) = message(rest) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            is_whole &= NetlinkBuffer::new(rest).flags() & NLM_F_DUMP_INTR == 0;
            // Both begin with an error number, which is zero at the end of a list.
            if [NLMSG_ERROR, NLMSG_DONE].contains(&kind) {
                let number = message.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return Ok(match number {
                    0 if is_whole => End::Whole { parts },
                    0 => End::Interrupted,
                    _ => End::Refused(-number),
                });
            }
            parts += usize::from(!std::mem::replace(&mut is_part, true));
            // The rest of a list that is not whole is read for its end only.
            if is_whole && each(message)?.is_break() {
                return Ok(End::Stopped);
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

    /// Messages as the kernel sends them: each with its flags and a number, and the end with flags of its own.
    fn played(entries: &[(u8, u16)], (error, flags): (i32, u16)) -> Vec<u8> {
        let entries = entries.iter().map(|(number, flags)| request(16, *flags, &[*number; 4]));
        let end = request(NLMSG_DONE, flags, &error.to_ne_bytes());
        entries.chain([end]).collect::<Vec<_>>().concat()
    }

    fn read(answer: &[u8]) -> (End, Vec<u8>) {
        let mut read = Vec::new();
        // One message at a time, as in parts.
        let mut rest = answer;
        let receive = || {
            let (_, _, next) = message(rest).unwrap();
            let (first, next) = rest.split_at(rest.len() - next.len());
            rest = next;
            Ok(first.to_vec())
        };
        let end = read_messages(receive, |message| {
            read.extend(message.first());
            Ok(ControlFlow::Continue(()))
        });
        (end.unwrap(), read)
    }

    #[test]
    fn a_list_with_the_mark_anywhere_is_not_whole() {
        let all = read(&played(&[(1, 2), (2, 2)], (0, 2)));
        assert_eq!(all, (End::Whole { parts: 2 }, vec![1, 2]));
        for marked in 0..3 {
            let mark = |at| 2 | if at == marked { NLM_F_DUMP_INTR } else { 0 };
            let (end, _) = read(&played(&[(1, mark(0)), (2, mark(1))], (0, mark(2))));
            assert_eq!(end, End::Interrupted, "{marked}");
        }
        assert_eq!(read(&played(&[(1, 2)], (-2, 2))).0, End::Refused(2));
    }

    /// Asks for lists, of which the kernel plays these one after the other; the last one again and again.
    fn ask_for(has_marks: bool, lists: &[Vec<u8>]) -> (io::Result<Vec<u8>>, usize) {
        let mut asked = 0;
        let listed = whole(has_marks, |listed: &mut Vec<u8>| {
            let (end, numbers) = read(&lists[asked.min(lists.len() - 1)]);
            asked += 1;
            listed.extend(numbers);
            Ok(end)
        });
        (listed, asked)
    }

    #[test]
    fn a_list_that_was_interrupted_is_asked_for_again() {
        let interrupted = played(&[(1, 2), (3, 2 | NLM_F_DUMP_INTR)], (0, 2));
        let good = played(&[(1, 2), (2, 2), (3, 2)], (0, 2));
        for has_marks in [true, false] {
            let (listed, _) = ask_for(has_marks, &[interrupted.clone(), good.clone()]);
            assert_eq!(listed.unwrap(), [1, 2, 3], "{has_marks}");
        }
        let (listed, asked) = ask_for(true, &[interrupted]);
        assert_eq!((listed.unwrap_err().kind(), asked), (io::ErrorKind::Interrupted, TRIES));
    }

    #[test]
    fn a_list_that_never_has_the_mark_counts_when_the_next_one_says_the_same() {
        let list = |numbers: &[u8]| {
            played(&numbers.iter().map(|number| (*number, 2)).collect::<Vec<_>>(), (0, 2))
        };
        let (lacks, good) = (list(&[1, 3]), list(&[1, 2, 3]));
        let (listed, asked) = ask_for(false, &[lacks.clone(), good.clone()]);
        assert_eq!((listed.unwrap(), asked), (vec![1, 2, 3], 3));
        assert_eq!(ask_for(true, std::slice::from_ref(&good)).1, 1);
        assert_eq!(ask_for(false, &[list(&[1])]).1, 1, "it has one part");
        let (listed, asked) =
            ask_for(false, &[lacks.clone(), good.clone(), lacks, good, list(&[4, 5])]);
        assert_eq!((listed.unwrap_err().kind(), asked), (io::ErrorKind::Interrupted, TRIES));
    }
}
