//! From the remotes to the interface, and to the engine what is for the engine: one thread.
//!
//! An outer flow is one pair of addresses and ports, which network cards and kernels steer to one
//! processor; more threads would only reorder it. Datagrams are received behind each other into one
//! buffer, put together there, and written from there when the socket has no more.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::forwarding::Judgement;
use crate::wire::inner::Inner;

use super::classify::{Class, classify, is_control};
use super::coalesce::{Coalescer, Merged, SEGMENTS};
use super::counters::Count;
use super::device::{Interface, Offload, is_gone};
use super::limit::Limit;
use super::socket::UdpSocket;
use super::{Shared, wake};

/// Room for the most that comes with one call.
const ROOM: usize = 65_536;
/// So many bytes are written before more are read: they are in the processor's cache.
const WRITE_FROM: usize = 32 * 1024;
const BUFFER: usize = WRITE_FROM + ROOM;
/// Calls after which others are looked at: another socket, another interface, the end.
const TURN: usize = 64;
/// Packets for the engine per second and source address, as on the kernel path.
const CONTROL_PER_SECOND: u32 = 50;
/// Headers and payloads of one packet that is written.
const SLICES: usize = 1 + SEGMENTS as usize;
/// How often addresses that were silent for too long are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// What the kernel gets to find memory again.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads the socket, whichever it is, until everything ends.
pub fn run(shared: &Shared) {
    let mut receiver = Receiver::new(shared);
    let mut socket = None;
    while !shared.stopping.load(Ordering::Relaxed) {
        shared.changed.clear();
        let current = shared.socket().filter(|_| shared.is_open());
        if let Some(former) = &socket
            && !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, former))
        {
            // What it still has was sent to us as well.
            for _ in 0..TURN {
                if !receiver.forward(former).is_ok_and(|has_more| has_more) {
                    break;
                }
            }
        }
        socket = current;
        receiver.adopt_interface();
        let result = socket.as_ref().map_or(Ok(false), |socket| receiver.forward(socket));
        let expires = receiver.expire();
        match result {
            Ok(true) => {}
            Ok(false) => {
                wake::wait(socket.as_ref().map(|s| s.as_fd()), &shared.changed, expires);
            }
            // ENOMEM, most likely.
            Err(_) => wake::wait(None, &shared.changed, Some(PAUSE)),
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    interface: Option<Arc<Interface>>,
    buffer: Box<[u8]>,
    coalescer: Coalescer,
    limit: Limit,
    expired: Duration,
}

impl<'a> Receiver<'a> {
    fn new(shared: &'a Shared) -> Self {
        Receiver {
            shared,
            interface: None,
            buffer: vec![0; BUFFER].into(),
            coalescer: Coalescer::new(Offload::None),
            limit: Limit::new(CONTROL_PER_SECOND),
            expired: Duration::ZERO,
        }
    }

    fn adopt_interface(&mut self) {
        self.interface = self.shared.interface();
        let offload = self.interface.as_ref().map_or(Offload::None, |i| i.offload);
        self.coalescer.set_offload(offload);
    }

    /// Forgets addresses; how long until the next time.
    fn expire(&mut self) -> Option<Duration> {
        self.shared.forwarding().spec().learn.as_ref()?;
        let now = wake::now();
        if now.saturating_sub(self.expired) >= EXPIRE_EVERY {
            self.expired = now;
            self.shared.change_forwarding(|forwarding| forwarding.expire(now));
        }
        Some(EXPIRE_EVERY)
    }

    /// Delivers what the socket has; whether it may have more.
    fn forward(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        let mut used = 0;
        for _ in 0..TURN {
            match socket.receive(&mut self.buffer[used..]) {
                Ok(received) => {
                    self.shared.counters.add(Count::RxCalls, 1);
                    let end = used + received.length;
                    let delivered = self.datagrams(used, end, received.segment, received.from);
                    // What was read for the engine or for nobody is not kept.
                    if delivered {
                        used = end;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.flush();
                    let nothing = e.kind() == io::ErrorKind::WouldBlock;
                    return if nothing { Ok(false) } else { Err(e) };
                }
            }
            if self.coalescer.is_empty() {
                used = 0;
            } else if used >= WRITE_FROM {
                self.flush();
                used = 0;
            }
        }
        self.flush();
        Ok(true)
    }

    /// Sorts the datagrams of one sender; whether any is to be delivered.
    fn datagrams(&mut self, start: usize, end: usize, size: usize, from: SocketAddr) -> bool {
        let shared = self.shared;
        let now = wake::now();
        let mut forwarding = shared.forwarding();
        let control = forwarding.spec().control;
        let mut known: Option<IpAddr> = None;
        let (mut packets, mut bytes) = (0, 0);
        let mut at = start;
        // A datagram may be empty.
        loop {
            let next = (at + size).min(end);
            let payload = &self.buffer[at..next];
            let class = classify(payload, control);
            let taken = match class {
                Class::Data(inner) if known == Some(inner.source) => Some(inner),
                Class::Data(inner) => match forwarding.judge(from, inner.source, now) {
                    Judgement::Deliver => {
                        known = Some(inner.source);
                        Some(inner)
                    }
                    Judgement::Learn => {
                        drop(forwarding);
                        let learned =
                            shared.change_forwarding(|table| table.learn(from, inner.source, now));
                        forwarding = shared.forwarding();
                        if !learned {
                            shared.counters.add(Count::RxWrongSource, 1);
                        }
                        learned.then_some(inner)
                    }
                    Judgement::Stranger => {
                        if is_control(class, from, control) {
                            self.limit_control(from, at..next, now);
                        } else {
                            shared.counters.add(Count::RxStranger, 1);
                        }
                        None
                    }
                    Judgement::WrongSource => {
                        shared.counters.add(Count::RxWrongSource, 1);
                        None
                    }
                },
                Class::Other => {
                    if is_control(class, from, control) {
                        self.limit_control(from, at..next, now);
                    } else {
                        shared.counters.add(Count::RxMalformed, 1);
                    }
                    None
                }
            };
            if let Some(inner) = taken {
                packets += 1;
                bytes += inner.length;
                self.deliver(at, &inner);
            }
            at = next;
            if at >= end {
                break;
            }
        }
        shared.counters.add(Count::RxPackets, packets);
        shared.counters.add(Count::RxBytes, bytes);
        packets > 0
    }

    fn limit_control(&mut self, from: SocketAddr, range: std::ops::Range<usize>, now: Duration) {
        if self.limit.passes(from.ip(), now) {
            self.shared.pass_control(from, &self.buffer[range]);
        } else {
            self.shared.counters.add(Count::ControlLimited, 1);
        }
    }

    fn deliver(&mut self, start: usize, inner: &Inner) {
        if self.coalescer.is_full() {
            self.flush();
        }
        self.coalescer.push(&self.buffer, start, inner);
    }

    /// Writes everything to the interface.
    fn flush(&mut self) {
        let shared = self.shared;
        let interface = self.interface.as_ref();
        let mut gone = false;
        self.coalescer.drain(&mut self.buffer, |buffer, merged| {
            let written = interface.map(|interface| write(interface, buffer, &merged));
            match written {
                Some(Ok(_)) => shared.counters.add(Count::RxWrites, 1),
                Some(Err(e)) => {
                    gone |= is_gone(&e);
                    shared.counters.add(Count::RxFailed, usize::from(merged.count));
                }
                None => shared.counters.add(Count::RxFailed, usize::from(merged.count)),
            }
        });
        if gone && let Some(interface) = self.interface.take() {
            shared.interface_gone(&interface);
        }
    }
}

/// A flow always goes to the same queue: the kernel reads its answers from there
/// (`tun_flow_update`).
fn write(interface: &Interface, buffer: &[u8], merged: &Merged<'_>) -> io::Result<usize> {
    let queues = interface.queues();
    let queue = &queues[merged.flow as usize % queues.len()];
    let header = merged.vnet.bytes();
    let mut slices = [IoSlice::new(&[]); SLICES];
    slices[0] = IoSlice::new(&header);
    slices[1] = IoSlice::new(&buffer[merged.head.clone()]);
    let mut used = 2;
    for payload in merged.rest().take(SLICES - 2) {
        slices[used] = IoSlice::new(&buffer[payload]);
        used += 1;
    }
    queue.write(&slices[..used])
}
