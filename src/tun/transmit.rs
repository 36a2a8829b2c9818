//! From the interface to the remotes: one thread per queue.
//!
//! Packets are read behind each other into one buffer and sent from there, headers of segments from
//! a second, small one. What goes to the same remote and is of one length leaves in one call. The
//! thread waits for nothing: when the interface has no more, it sends what there is.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::wire::inner::{self, Inner};

use super::Shared;
use super::device::{Interface, Queue, is_gone};
use super::drops::Reason;
use super::ecn::Ecn;
use super::limit::Limit;
use super::path::Narrow;
use super::send::{Datagrams, MAX_BYTES, MAX_SEGMENTS, Outer};
use super::socket::UdpSocket;
use super::split::{MAX_HEADER, Super, complete_checksum};
use super::vnet::{self, Gso, Vnet};
use super::wake::{self, Patience};

/// Room for the largest packet with its header.
const ROOM: usize = vnet::LEN + 65_536;
/// A large packet whose last segments wait, and the next one; not more, for the processor's cache.
const BUFFER: usize = 2 * ROOM;
/// Errors about unreachable destinations, for each sender.
const UNREACHABLE_PER_SECOND: u32 = 10;
/// Packets after which others are looked at: another socket, the end.
const TURN: usize = 64;
/// What the kernel gets to find memory again.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads one queue until the interface is gone or everything ends.
pub fn run(shared: &Shared, interface: &Arc<Interface>, queue: &Queue) {
    let mut transmitter = Transmitter::new(shared);
    let mut patience = Patience::new();
    while !shared.stopping.load(Ordering::Relaxed) {
        match transmitter.forward(queue) {
            Ok(true) => patience.renew(),
            Ok(false) if patience.looks_again() => {}
            Ok(false) => {
                wake::wait(Some(queue.as_fd()), &shared.stop, None);
            }
            Err(e) if is_gone(&e) => break,
            // ENOMEM, most likely. The interface is there, so it is not given up.
            Err(_) => {
                wake::wait(None, &shared.stop, Some(PAUSE));
            }
        }
    }
    shared.interface_gone(interface);
}

struct Transmitter<'a> {
    shared: &'a Shared,
    buffer: Box<[u8]>,
    headers: Box<[u8]>,
    batch: Batch,
    route: Option<Route>,
    narrow: Narrow,
    limit: Limit,
}

/// The answer of the last look-up: most packets go where the one before went.
struct Route {
    destination: IpAddr,
    remote: Option<SocketAddr>,
    generation: u64,
}

/// Datagrams that wait to be sent.
struct Batch {
    outer: Option<Outer>,
    /// Bytes of each but the last.
    size: usize,
    bytes: usize,
    datagrams: Vec<Datagram>,
    /// Bytes of `headers` that are used.
    headers: usize,
    /// The last one was shorter: nothing may follow.
    is_closed: bool,
}

/// Headers written anew, and bytes as they were read.
struct Datagram {
    /// In the headers' buffer; empty for a packet that was not taken apart.
    header: Range<usize>,
    body: Range<usize>,
}

impl<'a> Transmitter<'a> {
    fn new(shared: &'a Shared) -> Self {
        Transmitter {
            shared,
            buffer: vec![0; BUFFER].into(),
            headers: vec![0; MAX_SEGMENTS * MAX_HEADER].into(),
            batch: Batch::new(),
            route: None,
            narrow: Narrow::default(),
            limit: Limit::new(UNREACHABLE_PER_SECOND),
        }
    }

    /// Sends what the queue has; whether it had anything.
    fn forward(&mut self, queue: &Queue) -> io::Result<bool> {
        let socket = self.shared.socket();
        let socket = socket.as_deref();
        let mut used = 0;
        let mut any = false;
        for _ in 0..TURN {
            let at = self.batch.room(used).unwrap_or_else(|| {
                self.flush(socket);
                0
            });
            match queue.read(&mut self.buffer[at..at + ROOM]) {
                Ok(length) => {
                    any = true;
                    self.packet(queue, socket, at, length);
                    used = at + length;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.flush(socket);
                    let nothing = e.kind() == io::ErrorKind::WouldBlock;
                    return if nothing { Ok(any) } else { Err(e) };
                }
            }
        }
        self.flush(socket);
        Ok(true)
    }

    /// Takes what was read to `at`.
    fn packet(&mut self, queue: &Queue, socket: Option<&UdpSocket>, at: usize, length: usize) {
        let start = at + vnet::LEN;
        let read = &mut self.buffer[at..at + length];
        let parsed = read.split_first_chunk_mut::<{ vnet::LEN }>().and_then(|(header, packet)| {
            let (vnet, inner) = (Vnet::parse(header)?, Inner::parse(packet)?);
            let packet = &mut packet[..inner.length];
            let whole =
                vnet.gso != Gso::None || !vnet.needs_csum || complete_checksum(packet, &vnet);
            whole.then_some((vnet, inner))
        });
        let Some((vnet, inner)) = parsed else {
            self.shared.drops.add(Reason::TxMalformed, 1);
            return;
        };
        let Some(to) = self.remote_of(inner.destination) else {
            let reason = match self.answer(queue, start, &inner) {
                true => Reason::TxUnreachable,
                false => Reason::TxNoRoute,
            };
            self.shared.drops.add(reason, 1);
            return;
        };
        let packet = start..start + inner.length;
        let outer = Outer { to, ecn: Ecn::of_packet(&self.buffer[packet.clone()]) };
        if vnet.gso == Gso::None {
            self.append(socket, outer, Datagram { header: 0..0, body: packet });
            return;
        }
        let Some(parts) = Super::parse(&self.buffer[packet.clone()], &inner, &vnet) else {
            self.shared.drops.add(Reason::TxMalformed, 1);
            return;
        };
        for index in 0..parts.count() {
            let payload = parts.payload(index);
            if !self.batch.takes(outer, parts.header_len() + payload.len()) {
                self.flush(socket);
            }
            let header = self.batch.headers..self.batch.headers + parts.header_len();
            parts.write_header(
                &self.buffer[packet.clone()],
                index,
                &mut self.headers[header.clone()],
            );
            self.batch.headers = header.end;
            let body = start + payload.start..start + payload.end;
            self.append(socket, outer, Datagram { header, body });
        }
    }

    fn append(&mut self, socket: Option<&UdpSocket>, outer: Outer, datagram: Datagram) {
        if !self.batch.takes(outer, datagram.length()) {
            self.flush(socket);
        }
        self.batch.push(outer, datagram);
        // At once, while it is in the processor's cache, and the buffer can be used again.
        if !self.batch.takes(outer, self.batch.size) {
            self.flush(socket);
        }
    }

    fn remote_of(&mut self, destination: IpAddr) -> Option<SocketAddr> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if let Some(route) = &self.route
            && route.destination == destination
            && route.generation == generation
        {
            return route.remote;
        }
        let remote = self.shared.forwarding().remote_of(destination);
        self.route = Some(Route { destination, remote, generation });
        remote
    }

    /// Tells the sender that nobody is there, if it is to be told.
    fn answer(&mut self, queue: &Queue, start: usize, inner: &Inner) -> bool {
        if !self.limit.passes(inner.source, wake::now()) {
            return false;
        }
        let packet = &self.buffer[start..start + inner.length];
        let Some(error) = inner::unreachable(packet) else { return false };
        let header = Vnet::PLAIN.bytes();
        queue.write(&[IoSlice::new(&header), IoSlice::new(&error)]).is_ok()
    }

    fn flush(&mut self, socket: Option<&UdpSocket>) {
        let batch = &mut self.batch;
        let Some(outer) = batch.outer else { return };
        let count = batch.datagrams.len();
        let failed = socket.map_or(count, |socket| {
            let mut slices = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
            let mut ends = [0; MAX_SEGMENTS];
            let mut used = 0;
            for (datagram, end) in batch.datagrams.iter().zip(&mut ends) {
                if !datagram.header.is_empty() {
                    slices[used] = IoSlice::new(&self.headers[datagram.header.clone()]);
                    used += 1;
                }
                slices[used] = IoSlice::new(&self.buffer[datagram.body.clone()]);
                used += 1;
                *end = used;
            }
            let (slices, ends) = (&slices[..used], &ends[..count]);
            let datagrams = Datagrams { outer, size: batch.size, slices, ends };
            socket.send_all(&datagrams, &mut self.narrow)
        });
        if failed > 0 {
            self.shared.drops.add(Reason::TxFailed, failed);
        }
        batch.clear();
    }
}

impl Datagram {
    fn length(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

impl Batch {
    fn new() -> Self {
        Batch {
            outer: None,
            size: 0,
            bytes: 0,
            datagrams: Vec::with_capacity(MAX_SEGMENTS),
            headers: 0,
            is_closed: false,
        }
    }

    /// Where the next packet may be read to, when the last one ended at `used`: as far in front as
    /// what waits allows.
    fn room(&self, used: usize) -> Option<usize> {
        let Some(first) = self.datagrams.first().map(|datagram| datagram.body.start) else {
            return Some(0);
        };
        // What waits begins at `first` and ends at `used`; if that is before it, it wraps around.
        let (at, end) = match first < used {
            true if first >= ROOM => (0, first),
            true => (used, BUFFER),
            false => (used, first),
        };
        (end - at >= ROOM).then_some(at)
    }

    /// Whether a datagram may follow those that are there.
    fn takes(&self, outer: Outer, length: usize) -> bool {
        self.outer.is_none()
            || (self.outer == Some(outer)
                && !self.is_closed
                && length <= self.size
                && self.datagrams.len() < MAX_SEGMENTS
                && self.bytes + length <= MAX_BYTES)
    }

    fn push(&mut self, outer: Outer, datagram: Datagram) {
        let length = datagram.length();
        if self.outer.is_none() {
            self.outer = Some(outer);
            self.size = length;
        }
        self.is_closed = length < self.size;
        self.bytes += length;
        self.datagrams.push(datagram);
    }

    fn clear(&mut self) {
        self.outer = None;
        self.bytes = 0;
        self.datagrams.clear();
        self.headers = 0;
        self.is_closed = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![vnet::LEN + 20..2000, ROOM / 2..=ROOM]
    }

    proptest! {
        #[test]
        fn what_waits_is_not_overwritten(
            packets in proptest::collection::vec((length(), 1..2000usize, 0..4usize), 1..200),
        ) {
            let mut batch = Batch::new();
            let mut used = 0;
            for (length, end, waiting) in packets {
                let from = batch.datagrams.len().saturating_sub(waiting);
                batch.datagrams.drain(..from);
                let at = batch.room(used).unwrap_or_else(|| {
                    batch.clear();
                    0
                });
                prop_assert!(at + ROOM <= BUFFER);
                for Datagram { body, .. } in &batch.datagrams {
                    prop_assert!(body.end <= at || at + ROOM <= body.start);
                }
                used = at + length;
                // Of a large packet the end may wait, of others all.
                let body = used.saturating_sub(end).max(at + vnet::LEN)..used;
                batch.datagrams.push(Datagram { header: 0..0, body });
            }
        }
    }
}
