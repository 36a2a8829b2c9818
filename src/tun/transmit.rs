//! Reads from the interface and sends to the remotes: one thread per queue.
//!
//! Packets are read one after the other into one buffer and sent from there; the headers of segments
//! come from a second, small buffer. Packets of one length to the same remote leave in one call. The
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
use super::batch::{BUFFER, Batch, Datagram, HEADERS, ROOM};
use super::circle;
use super::counts::{Counts, Tally};
use super::device::{Interface, Queue, is_gone, is_refused};
use super::drops::Reason;
use super::ecn::Ecn;
use super::fragment::{fragments, may_be_fragmented};
use super::limit::Limit;
use super::path::LEAST;
use super::refused::Refused;
use super::send::{Calls, Datagrams, MAX_SEGMENTS, Outer, Sender};
use super::socket::UdpSocket;
use super::split::{Super, complete_checksum};
use super::vnet::{self, Gso, Vnet};
use super::wake::{self, Patience};

/// The limit on errors about unreachable destinations and about packets that are too long, for each
/// sender.
const ERRORS_PER_SECOND: u32 = 10;
/// How many packets are read before other things are checked: another socket, the end.
const TURN: usize = 64;
/// How long the kernel gets to find memory again.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads one queue until the interface is gone or everything ends.
pub fn run(shared: &Shared, interface: &Arc<Interface>, queue: &Queue) {
    let mut transmitter = Transmitter::new(shared);
    let mut patience = Patience::new();
    while !interface.is_given_up() {
        match transmitter.forward(interface, queue) {
            Ok(true) => patience.renew(),
            Ok(false) if patience.looks_again() => {}
            Ok(false) => {
                wake::wait(Some(queue.as_fd()), interface.end(), None);
            }
            Err(e) if is_gone(&e) => break,
            // Most likely ENOMEM. The interface is still there, so it is not given up.
            Err(_) => {
                wake::wait(None, interface.end(), Some(PAUSE));
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
    refused: Refused,
    unreachable: Limit,
    too_long: Limit,
}

/// The result of the last look-up: most packets go where the one before went.
struct Route {
    destination: IpAddr,
    remote: Option<SocketAddr>,
    generation: u64,
    /// Whether some peers may not reach others.
    isolates: bool,
    /// The counters of the remote.
    counts: Option<Arc<Counts>>,
}

/// A packet that is longer than the path allows.
struct Long<'a> {
    outer: Outer,
    /// Its headers; at least the IP header, of `ip` bytes.
    header: &'a [u8],
    ip: usize,
    /// Where the rest is in the buffer.
    body: Range<usize>,
    /// The size that the path allows.
    most: usize,
}

impl<'a> Transmitter<'a> {
    fn new(shared: &'a Shared) -> Self {
        Transmitter {
            shared,
            buffer: vec![0; BUFFER].into(),
            headers: vec![0; HEADERS].into(),
            batch: Batch::new(),
            route: None,
            refused: Refused::default(),
            unreachable: Limit::new(ERRORS_PER_SECOND),
            too_long: Limit::new(ERRORS_PER_SECOND),
        }
    }

    /// Sends what the queue has. Returns whether it had anything.
    fn forward(&mut self, interface: &Interface, queue: &Queue) -> io::Result<bool> {
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
                // This packet is lost, and the next one may fail in the same way.
                Err(e) if is_refused(&e) && interface.cannot_give(&e) => {
                    any = true;
                    self.shared.drops.add(Reason::TxFailed, 1);
                }
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

    /// Handles the packet that was read to `at`.
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
        if self.leads_back(socket, start, &inner) {
            self.shared.drops.add(Reason::TxLeadsBack, 1);
            return;
        }
        // A setting of the interface does not keep the kernel from it where that of `all` is on
        // (`IN_DEV_TX_REDIRECTS` in include/linux/inetdevice.h), and there is no shorter way.
        if inner::is_redirect_v4(&self.buffer[start..start + inner.length], &inner) {
            self.shared.drops.add(Reason::TxRedirect, 1);
            return;
        }
        let Some(to) = self.remote_of(inner.destination) else {
            let reason = match self.say_unreachable(queue, start, &inner) {
                true => Reason::TxUnreachable,
                false => Reason::TxNoRoute,
            };
            self.shared.drops.add(reason, 1);
            return;
        };
        if self.keeps_apart(inner.source, to) {
            self.shared.drops.add(Reason::TxIsolated, 1);
            return;
        }
        let packet = start..start + inner.length;
        let outer = Outer { to, ecn: Ecn::of_packet(&self.buffer[packet.clone()]) };
        let most = self.shared.paths.most(to);
        if vnet.gso == Gso::None {
            if packet.len() > most {
                let body = start + inner.header_len..packet.end;
                let header = self.buffer[start..body.start].to_vec();
                self.too_long(
                    queue,
                    socket,
                    Long { outer, header: &header, ip: header.len(), body, most },
                );
            } else {
                self.append(socket, outer, Datagram { header: 0..0, body: packet });
            }
            return;
        }
        let parts = Super::parse(&self.buffer[packet.clone()], &inner, &vnet, most);
        let Some(parts) = parts.filter(|parts| parts.header_len() <= HEADERS) else {
            self.shared.drops.add(Reason::TxMalformed, 1);
            return;
        };
        for index in 0..parts.count() {
            let payload = parts.payload(index);
            let length = parts.header_len() + payload.len();
            if !self.batch.takes(outer, length) || !self.batch.has_room(parts.header_len()) {
                self.flush(socket);
            }
            let header = self.batch.headers..self.batch.headers + parts.header_len();
            parts.write_header(
                &self.buffer[packet.clone()],
                index,
                &mut self.headers[header.clone()],
            );
            let body = start + payload.start..start + payload.end;
            if length > most {
                let (mut header, ip) = (self.headers[header].to_vec(), inner.header_len);
                if may_be_fragmented(&header) {
                    // The kernel counts a large packet as one (`__ip_select_ident`), so the next one's
                    // segments have the same numbers; and nothing else tells fragments apart.
                    let number = self.shared.fragmented.fetch_add(1, Ordering::Relaxed);
                    header[4..6].copy_from_slice(&number.to_be_bytes());
                }
                self.too_long(queue, socket, Long { outer, header: &header, ip, body, most });
                continue;
            }
            self.batch.headers = header.end;
            self.append(socket, outer, Datagram { header, body });
        }
    }

    fn append(&mut self, socket: Option<&UdpSocket>, outer: Outer, datagram: Datagram) {
        if !self.batch.takes(outer, datagram.length()) {
            self.flush(socket);
        }
        if self.batch.outer.is_none() {
            self.batch.count_by(self.route.as_ref().and_then(|route| route.counts.as_ref()));
        }
        self.batch.push(outer, datagram);
        // Sent at once, while it is in the processor's cache and the buffer can be used again.
        if !self.batch.takes(outer, self.batch.size) {
            self.flush(socket);
        }
    }

    /// Whether the packet would come back here as an outer one. The host may have given it the address
    /// of the interface on the way (masquerading).
    #[inline]
    fn leads_back(&self, socket: Option<&UdpSocket>, start: usize, inner: &Inner) -> bool {
        let Some(own) = socket.map(|socket| socket.spec().address) else { return false };
        let translated = |from: SocketAddr, to| {
            let forwarding = self.shared.forwarding();
            forwarding.around().has(from.ip()) && forwarding.is_remote(to)
        };
        circle::is_own(&self.buffer[start..start + inner.length], inner, |from, to| {
            from.port() == own.port() && (from.ip() == own.ip() || translated(from, to))
        })
    }

    fn remote_of(&mut self, destination: IpAddr) -> Option<SocketAddr> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if let Some(route) = &self.route
            && route.destination == destination
            && route.generation == generation
        {
            return route.remote;
        }
        let forwarding = self.shared.forwarding();
        let (remote, isolates) = (forwarding.remote_of(destination), forwarding.isolates());
        let counts = remote.and_then(|remote| forwarding.counts(remote)).cloned();
        self.route = Some(Route { destination, remote, generation, isolates, counts });
        remote
    }

    /// Whether a packet from one peer must not go to another.
    #[inline]
    fn keeps_apart(&self, source: IpAddr, to: SocketAddr) -> bool {
        let isolates = self.route.as_ref().is_some_and(|route| route.isolates);
        isolates && self.shared.forwarding().keeps_apart(source, to)
    }

    /// Handles a packet that is longer than the path allows: it leaves in fragments, or its sender is
    /// told.
    fn too_long(&mut self, queue: &Queue, socket: Option<&UdpSocket>, long: Long<'_>) {
        if may_be_fragmented(long.header) {
            self.fragment(socket, &long);
            return;
        }
        let packet = [long.header, &self.buffer[long.body]].concat();
        if packet[0] >> 4 == 6 && packet.len() <= LEAST {
            // No router may ask for less (RFC 8200, 5), so the packet is fragmented outside (RFC 2473,
            // 7.1).
            self.flush(socket);
            let sent = socket.is_some_and(|socket| {
                let read_errors = || self.shared.read_errors(socket);
                let calls = Calls { read_errors: &read_errors, waits: true };
                socket.send_in_fragments(long.outer, &packet, calls).is_ok()
            });
            self.shared.drops.add(Reason::TxFailed, usize::from(!sent));
            let counts = self.route.as_ref().and_then(|route| route.counts.as_ref());
            if let Some(counts) = counts.filter(|_| sent) {
                counts.sent(Tally { packets: 1, bytes: packet.len() as u64 });
            }
            return;
        }
        self.shared.drops.add(Reason::TxTooLong, 1);
        // Over IPv6 everybody may send this much.
        let most = if packet[0] >> 4 == 6 { long.most.max(LEAST) } else { long.most };
        let Ok(most) = u16::try_from(most) else { return };
        let source = Inner::parse(&packet).map(|inner| inner.source);
        if source.is_some_and(|source| self.too_long.passes(source, wake::now()))
            && let Some(error) = inner::too_long(&packet, most)
        {
            // A sender without an error sends the packet again, and gets one then.
            let _ = queue.write(&[IoSlice::new(&Vnet::PLAIN.bytes()), IoSlice::new(&error)]);
        }
    }

    fn fragment(&mut self, socket: Option<&UdpSocket>, long: &Long<'_>) {
        let (ip, behind) = long.header.split_at(long.ip);
        let Some(parts) = fragments(ip, behind.len() + long.body.len(), long.most) else {
            self.shared.drops.add(Reason::TxTooLong, 1);
            return;
        };
        for part in parts {
            let data = part.data();
            let within = |at: usize| at.min(behind.len());
            let behind = &behind[within(data.start)..within(data.end)];
            let body = |at: usize| long.body.start + (at - within(at));
            let length = part.header().len() + behind.len();
            let datagram = |start| Datagram {
                header: start..start + length,
                body: body(data.start)..body(data.end),
            };
            if !self.batch.takes(long.outer, datagram(0).length()) || !self.batch.has_room(length) {
                self.flush(socket);
            }
            let datagram = datagram(self.batch.headers);
            let (ip, rest) =
                self.headers[datagram.header.clone()].split_at_mut(part.header().len());
            ip.copy_from_slice(part.header());
            rest.copy_from_slice(behind);
            self.batch.headers = datagram.header.end;
            self.append(socket, long.outer, datagram);
        }
    }

    /// Tells the sender that the destination is unreachable, if the sender may be told.
    fn say_unreachable(&mut self, queue: &Queue, start: usize, inner: &Inner) -> bool {
        if !self.unreachable.passes(inner.source, wake::now()) {
            return false;
        }
        let packet = &self.buffer[start..start + inner.length];
        let Some(error) = inner::unreachable(packet) else { return false };
        queue.write(&[IoSlice::new(&Vnet::PLAIN.bytes()), IoSlice::new(&error)]).is_ok()
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
            let read_errors = || self.shared.read_errors(socket);
            let calls = Calls { read_errors: &read_errors, waits: true };
            socket.send_all(&datagrams, &mut Sender { refused: &mut self.refused, calls })
        });
        if failed > 0 {
            self.shared.drops.add(Reason::TxFailed, failed);
        }
        batch.count(failed);
        batch.clear();
    }
}
