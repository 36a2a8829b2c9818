//! The messages of an NFQUEUE (linux/netfilter/nfnetlink_queue.h). Its numbers are in network byte order;
//! those of netlink itself are in the host's.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};

use crate::host::netlink::{SHORT_HEADER, attribute, message};

/// `NFNL_SUBSYS_QUEUE` in linux/netfilter/nfnetlink.h, and the kinds of its messages.
const QUEUE: u16 = 3 << 8;
const PACKET: u16 = QUEUE;
const VERDICT: u16 = QUEUE | 1;
const CONFIG: u16 = QUEUE | 2;

/// Attributes of a packet, and of a verdict on one.
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const PAYLOAD: u16 = 10;

/// Attributes of a configuration.
const COMMAND: u16 = 1;
const COPY: u16 = 2;
const MAX_LEN: u16 = 3;
const MASK: u16 = 4;
const FLAGS: u16 = 5;

const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
/// What is to happen to packets that find the queue full.
const FAIL_OPEN: u32 = 1;

/// `NF_DROP` in linux/netfilter.h.
const DROP: u32 = 0;

/// The length of `struct nlmsghdr` in linux/netlink.h.
const HEADER: usize = 16;

/// What the kernel says to the reader of a queue.
#[derive(Debug)]
pub enum Message<'a> {
    /// What became of a request.
    Answer(io::Result<()>),
    /// A packet waits for a verdict.
    Packet {
        /// By which the verdict names it.
        id: u32,
        /// From the IP header on, as much as is copied.
        payload: &'a [u8],
    },
}

/// Asks for a queue: `copied` bytes of each packet, `max_len` packets at most, and the rest is dropped.
pub fn configuration(queue: u16, copied: u32, max_len: u32) -> Vec<u8> {
    let copied = [&copied.to_be_bytes()[..], &[COPY_PACKET]].concat();
    let attributes: [(u16, &[u8]); 5] = [
        (COMMAND, &[BIND, 0, 0, 0]),
        (COPY, &copied),
        (MAX_LEN, &max_len.to_be_bytes()),
        (MASK, &FAIL_OPEN.to_be_bytes()),
        (FLAGS, &0u32.to_be_bytes()),
    ];
    request(CONFIG, NLM_F_REQUEST | NLM_F_ACK, queue, &attributes)
}

/// Has a packet of a queue dropped.
pub fn dropped(queue: u16, id: u32) -> Vec<u8> {
    let verdict = [DROP.to_be_bytes(), id.to_be_bytes()].concat();
    request(VERDICT, NLM_F_REQUEST, queue, &[(VERDICT_HEADER, &verdict)])
}

fn request(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0, 0]; // any address family, version 0: `struct nfgenmsg`
    body.extend(queue.to_be_bytes());
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]); // neither a sequence nor a sender
    request.extend(body);
    request
}

/// The messages in what was read from the socket; others than these two are left out.
pub fn each(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let (kind, body, rest) = message(bytes)?;
            bytes = rest;
            match kind {
                NLMSG_ERROR => return Some(Message::Answer(answer(body))),
                PACKET => {
                    let header = attribute(body, SHORT_HEADER, PACKET_HEADER);
                    let id = header.and_then(|header| header.first_chunk());
                    let payload = attribute(body, SHORT_HEADER, PAYLOAD).unwrap_or_default();
                    if let Some(id) = id {
                        return Some(Message::Packet { id: u32::from_be_bytes(*id), payload });
                    }
                }
                _ => {}
            }
        }
    })
}

fn answer(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u16, flags: u16, length: u32) -> Vec<u8> {
        let words = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
        [length.to_ne_bytes().to_vec(), words, vec![0; 8]].concat()
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut whole = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        whole.extend(value);
        whole.resize(whole.len().next_multiple_of(4), 0);
        whole
    }

    #[test]
    fn a_queue_is_asked_for_and_a_packet_dropped() {
        let asked = [
            header(0x302, 5, 68),
            vec![0, 0, 0x27, 0x13],
            attribute(1, &[1, 0, 0, 0]),
            attribute(2, &[0, 0, 5, 0xdc, 2]),
            attribute(3, &[0, 0, 0, 24]),
            attribute(4, &[0, 0, 0, 1]),
            attribute(5, &[0, 0, 0, 0]),
        ];
        let asked = asked.concat();
        let length = u32::try_from(asked.len()).unwrap();
        assert_eq!(configuration(10003, 1500, 24)[4..], asked[4..]);
        assert_eq!(configuration(10003, 1500, 24)[..4], length.to_ne_bytes());
        let verdict =
            [header(0x301, 1, 32), vec![0, 0, 0, 7], attribute(2, &[0, 0, 0, 0, 1, 2, 3, 4])];
        assert_eq!(dropped(7, 0x0102_0304), verdict.concat());
    }

    #[test]
    fn packets_and_answers_are_told_apart_and_the_rest_is_left_out() {
        let packet = |id: u8, payload: &[u8]| {
            let header = attribute(1, &[0, 0, 0, id, 8, 0, 1]);
            let body = [vec![2, 0, 0, 7], header, attribute(10, payload)].concat();
            let length = u32::try_from(HEADER + body.len()).unwrap();
            [self::header(0x300, 0, length), body].concat()
        };
        let busy = [header(2, 0, 36), (-libc::EBUSY).to_ne_bytes().to_vec(), vec![0; 16]].concat();
        let done = [header(2, 0, 36), vec![0; 20]].concat();
        let other = header(0x0a0f, 0, 16);
        let whole = [packet(1, &[5; 9]), other, busy, packet(2, &[]), done].concat();
        let found: Vec<_> = each(&whole)
            .map(|message| match message {
                Message::Packet { id, payload } => format!("{id} {}", payload.len()),
                Message::Answer(Ok(())) => "done".to_owned(),
                Message::Answer(Err(e)) => e.kind().to_string(),
            })
            .collect();
        assert_eq!(found, ["1 9", "resource busy", "2 0", "done"]);
        for length in 0..whole.len() {
            assert!(each(&whole[..length]).count() <= 4);
        }
    }
}
