//! From the interface to the remotes: one thread per queue.
//!
//! Packets are read behind each other into one buffer and sent from there, headers of segments from
//! a second, small one. What goes to the same remote and is of one length leaves in one call. The
//! thread waits for nothing: when the interface has no more, it sends what there is.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::wire::inner::{self, Inner};

use super::counters::Count;
use super::device::{Interface, Queue, is_gone};
use super::limit::Limit;
use super::send::{Datagrams, MAX_BYTES, MAX_SEGMENTS, Narrow};
use super::socket::UdpSocket;
use super::split::{MAX_HEADER, Super, complete_checksum};
use super::vnet::{self, Gso, Vnet};
use super::{Shared, wake};

/// Room for the largest packet with its header.
const ROOM: usize = vnet::LEN + 65_536;
/// A large packet whose last segments wait for the next one, and many small ones.
const BUFFER: usize = 4 * ROOM;
/// Errors about unreachable destinations, for each sender.
const UNREACHABLE_PER_SECOND: u32 = 10;
/// Packets after which others are looked at: another socket, the end.
const TURN: usize = 64;
/// What the kernel gets to find memory again.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads one queue until the interface is gone or everything ends.
pub fn run(shared: &Shared, interface: &Arc<Interface>, queue: &Queue) {
    let mut transmitter = Transmitter::new(shared);
    while !shared.stopping.load(Ordering::Relaxed) {
        match transmitter.forward(queue) {
            Ok(true) => {}
            Ok(false) => wake::wait(Some(queue.as_fd()), &shared.stop, None),
            Err(e) if is_gone(&e) => break,
            // ENOMEM, most likely. The interface is there, so it is not given up.
            Err(_) => wake::wait(None, &shared.stop, Some(PAUSE)),
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
    to: Option<SocketAddr>,
    /// Bytes of each but the last.
    size: usize,
    bytes: usize,
    segments: Vec<Segment>,
    /// Bytes of `headers` that are used.
    headers: usize,
    /// The last one was shorter: nothing may follow.
    is_closed: bool,
}

/// Headers written anew, and bytes as they were read.
#[derive(Clone, Copy)]
struct Segment {
    header: (usize, usize),
    body: (usize, usize),
}

impl<'a> Transmitter<'a> {
    fn new(shared: &'a Shared) -> Self {
        Transmitter {
            shared,
            buffer: vec![0; BUFFER].into(),
            headers: vec![0; MAX_SEGMENTS * MAX_HEADER].into(),
            batch: Batch {
                to: None,
                size: 0,
                bytes: 0,
                segments: Vec::with_capacity(MAX_SEGMENTS),
                headers: 0,
                is_closed: false,
            },
            route: None,
            narrow: Narrow::default(),
            limit: Limit::new(UNREACHABLE_PER_SECOND),
        }
    }

    /// Sends what the queue has; whether it may have more.
    fn forward(&mut self, queue: &Queue) -> io::Result<bool> {
        let socket = self.shared.socket();
        let socket = socket.as_deref();
        let mut used = 0;
        for _ in 0..TURN {
            if self.buffer.len() - used < ROOM {
                self.flush(socket);
                used = 0;
            }
            match queue.read(&mut self.buffer[used..]) {
                Ok(length) => {
                    self.packet(queue, socket, used, length);
                    used = if self.batch.segments.is_empty() { 0 } else { used + length };
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.flush(socket);
                    let nothing = e.kind() == io::ErrorKind::WouldBlock;
                    return if nothing { Ok(false) } else { Err(e) };
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
            self.shared.counters.add(Count::TxMalformed, 1);
            return;
        };
        let Some(to) = self.remote_of(inner.destination) else {
            self.shared.counters.add(Count::TxNoRoute, 1);
            self.answer(queue, start, &inner);
            return;
        };
        if vnet.gso == Gso::None {
            let body = (start, start + inner.length);
            self.append(socket, to, Segment { header: (0, 0), body });
            return;
        }
        let packet = start..start + inner.length;
        let Some(parts) = Super::parse(&self.buffer[packet.clone()], &inner, &vnet) else {
            self.shared.counters.add(Count::TxMalformed, 1);
            return;
        };
        for index in 0..parts.count() {
            let payload = parts.payload(index);
            if !self.batch.takes(to, parts.header_len() + payload.len()) {
                self.flush(socket);
            }
            let header = self.batch.headers..self.batch.headers + parts.header_len();
            parts.write_header(
                &self.buffer[packet.clone()],
                index,
                &mut self.headers[header.clone()],
            );
            self.batch.headers = header.end;
            let body = (start + payload.start, start + payload.end);
            self.append(socket, to, Segment { header: (header.start, header.end), body });
        }
        // What would follow in the same call is the beginning of another large packet: the other
        // end could not write either of them at once.
        if self.batch.bytes >= MAX_BYTES / 2 {
            self.flush(socket);
        }
    }

    fn append(&mut self, socket: Option<&UdpSocket>, to: SocketAddr, segment: Segment) {
        if !self.batch.takes(to, segment.length()) {
            self.flush(socket);
        }
        self.batch.push(to, segment);
        // At once, while it is in the processor's cache, and the buffer can be used again.
        if !self.batch.takes(to, self.batch.size) {
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

    /// Tells the sender that nobody is there.
    fn answer(&mut self, queue: &Queue, start: usize, inner: &Inner) {
        if !self.limit.passes(inner.source, wake::now()) {
            return;
        }
        let packet = &self.buffer[start..start + inner.length];
        let Some(error) = inner::unreachable(packet) else { return };
        let header = Vnet::PLAIN.bytes();
        if queue.write(&[IoSlice::new(&header), IoSlice::new(&error)]).is_ok() {
            self.shared.counters.add(Count::TxUnreachable, 1);
        }
    }

    fn flush(&mut self, socket: Option<&UdpSocket>) {
        let batch = &mut self.batch;
        let Some(to) = batch.to else { return };
        let counters = &self.shared.counters;
        let count = batch.segments.len();
        let sent = socket.map(|socket| {
            let mut slices = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
            let mut ends = [0; MAX_SEGMENTS];
            let mut used = 0;
            for (segment, end) in batch.segments.iter().zip(&mut ends) {
                let (header, body) = (segment.header, segment.body);
                if header.0 < header.1 {
                    slices[used] = IoSlice::new(&self.headers[header.0..header.1]);
                    used += 1;
                }
                slices[used] = IoSlice::new(&self.buffer[body.0..body.1]);
                used += 1;
                // Not more than 128.
                *end = u8::try_from(used).unwrap_or(u8::MAX);
            }
            let (slices, ends) = (&slices[..used], &ends[..count]);
            let datagrams = Datagrams { to, size: batch.size, slices, ends };
            socket.send_all(&datagrams, &mut self.narrow)
        });
        match sent {
            Some(sent) => {
                counters.add(Count::TxPackets, count - sent.failed);
                counters.add(Count::TxFailed, sent.failed);
                counters.add(Count::TxCalls, sent.calls);
                if sent.failed == 0 {
                    counters.add(Count::TxBytes, batch.bytes);
                }
            }
            None => counters.add(Count::TxFailed, count),
        }
        batch.clear();
    }
}

impl Segment {
    fn length(&self) -> usize {
        self.header.1 - self.header.0 + self.body.1 - self.body.0
    }
}

impl Batch {
    /// Whether a datagram may follow those that are there.
    fn takes(&self, to: SocketAddr, length: usize) -> bool {
        self.to.is_none()
            || (self.to == Some(to)
                && !self.is_closed
                && length <= self.size
                && self.segments.len() < MAX_SEGMENTS
                && self.bytes + length <= MAX_BYTES)
    }

    fn push(&mut self, to: SocketAddr, segment: Segment) {
        let length = segment.length();
        if self.to.is_none() {
            self.to = Some(to);
            self.size = length;
        }
        self.is_closed = length < self.size;
        self.bytes += length;
        self.segments.push(segment);
    }

    fn clear(&mut self) {
        self.to = None;
        self.bytes = 0;
        self.segments.clear();
        self.headers = 0;
        self.is_closed = false;
    }
}
