//! Receives from the remotes and writes to the interface, or to the engine what is for the engine: one
//! thread.
//!
//! An outer flow is one pair of addresses and ports, which network cards and kernels steer to one
//! processor; more threads would only reorder it. Datagrams are received one after the other into one
//! buffer, put together there, and written from there when the socket has no more.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::coalesce::Coalescer;
use super::counts::{Counts, Tally};
use super::delivery::write;
use super::device::{Interface, Offload, is_gone};
use super::drops::Reason;
use super::ecn::{self, Ecn};
use super::limit::{ControlLimit, Unproven};
use super::others::is_about_others;
use super::socket::{Received, UdpSocket};
use super::table::Forwarding;
use super::verdict::{Sender, Verdict};
use super::wake::{self, Patience};
use super::{Shared, large};
use crate::engine::host::PacketShape;
use crate::wire::inner::Inner;

/// Room for the most that one call receives.
const ROOM: usize = 65_536;
/// This many bytes are written before more are read: they are still in the processor's cache.
const WRITE_FROM: usize = 32 * 1024;
const BUFFER: usize = WRITE_FROM + ROOM;
/// How many calls are made before other things are checked: another socket, another interface, the end.
const TURN: usize = 64;
/// No Ethernet interface takes more, so a longer packet may be a large one.
const LARGE: usize = 1500;
/// How often the MTU of the interface is asked for, at most.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often addresses that were silent for too long are searched for.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How long the kernel gets to find memory again.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads the current socket until everything ends.
pub fn run(shared: &Shared) {
    let mut receiver = Receiver::new(shared);
    let mut patience = Patience::new();
    let mut socket = None;
    while !shared.stopping.load(Ordering::Relaxed) {
        let current = shared.socket().filter(|_| shared.is_open());
        if let Some(former) = &socket
            && !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, former))
        {
            // The packets that a former socket still has were sent to this tunnel as well.
            for _ in 0..TURN {
                if !receiver.forward(former).is_ok_and(|any| any) {
                    break;
                }
            }
        }
        socket = current;
        receiver.adopt_interface();
        let result = socket.as_ref().map_or(Ok(false), |socket| receiver.forward(socket));
        let expires = receiver.expire();
        let (fd, timeout) = match result {
            Ok(true) => {
                patience.renew();
                continue;
            }
            Ok(false) if patience.looks_again() => continue,
            Ok(false) => (socket.as_ref().map(|socket| socket.as_fd()), expires),
            // Most likely ENOMEM.
            Err(_) => (None, Some(PAUSE)),
        };
        let woken = wake::wait(fd, &shared.changed, timeout);
        if woken.called {
            // Before the state is looked at again.
            shared.changed.clear();
        }
        if woken.error
            && let Some(socket) = &socket
        {
            shared.read_errors(socket);
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    interface: Option<Arc<Interface>>,
    buffer: Box<[u8]>,
    coalescer: Coalescer,
    limit: ControlLimit,
    expired: Duration,
    /// The MTU of the interface, and when it was read.
    mtu: Option<(usize, Duration)>,
    counted: Option<Counted>,
}

/// The counters of the last sender: most packets come from the same one as those before.
struct Counted {
    from: SocketAddr,
    generation: u64,
    counts: Option<Arc<Counts>>,
}

impl<'a> Receiver<'a> {
    fn new(shared: &'a Shared) -> Self {
        Receiver {
            shared,
            interface: None,
            buffer: vec![0; BUFFER].into(),
            coalescer: Coalescer::new(Offload::None),
            limit: ControlLimit::new(),
            expired: Duration::ZERO,
            mtu: None,
            counted: None,
        }
    }

    fn adopt_interface(&mut self) {
        self.interface = self.shared.interface();
        let offload = self.interface.as_ref().map_or(Offload::None, |i| i.takes());
        self.coalescer.set_offload(offload);
    }

    /// Forgets silent addresses. Returns how long it is until the next time.
    fn expire(&mut self) -> Option<Duration> {
        self.shared.forwarding().spec().learn.as_ref()?;
        let now = wake::now();
        if now.saturating_sub(self.expired) >= EXPIRE_EVERY {
            self.expired = now;
            self.shared.change_forwarding(|forwarding| forwarding.expire(now));
        }
        Some(EXPIRE_EVERY)
    }

    /// Delivers what the socket has. Returns whether it had anything.
    fn forward(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        let mut used = 0;
        let mut any = false;
        for _ in 0..TURN {
            match socket.receive(&mut self.buffer[used..]) {
                Ok(received) => {
                    any = true;
                    // Packets for the engine, and those that are dropped, are not kept in the buffer.
                    if self.datagrams(socket, used, &received) {
                        used += received.length;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // An error about a packet that was sent (ICMP): nothing that arrived is lost.
                Err(e) if is_about_others(&e) => {
                    self.shared.read_errors(socket);
                    continue;
                }
                Err(e) => {
                    self.flush();
                    let nothing = e.kind() == io::ErrorKind::WouldBlock;
                    return if nothing { Ok(any) } else { Err(e) };
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

    /// Sorts the datagrams of one sender, which begin at `start`. Returns whether any is to be
    /// delivered.
    fn datagrams(&mut self, socket: &UdpSocket, start: usize, received: &Received) -> bool {
        let shared = self.shared;
        let Received { from, length, size, ecn, interface } = *received;
        // Many datagrams, or one with a large UDP packet in it: in that case the size is that of the
        // inner datagrams.
        let whole = Inner::parse(&self.buffer[start..start + length]);
        let is_large = size < length && whole.is_some_and(|inner| inner.length == length);
        let (size, datagrams) = if is_large { (length, Some(size)) } else { (size, None) };
        let to = socket.spec().address.ip();
        let mut sender = Sender { from, now: wake::now(), known: None };
        let mut forwarding = shared.forwarding();
        if interface.is_some_and(|link| forwarding.around().came_out_of_tunnel(link, to)) {
            shared.drops.add(Reason::RxInside, length.div_ceil(size.max(1)).max(1));
            return false;
        }
        let mut delivered = Tally::default();
        let (mut at, end) = (start, start + length);
        // A datagram may be empty.
        loop {
            let next = (at + size).min(end);
            match sender.verdict(&forwarding, &self.buffer[at..next]) {
                Verdict::Deliver(inner) => {
                    if self.deliver(socket, at, &inner, datagrams, ecn) {
                        delivered.add(inner.length);
                    }
                }
                Verdict::Learn(source) => {
                    drop(forwarding);
                    shared.change_forwarding(|table| table.learn(from, source, sender.now));
                    forwarding = shared.forwarding();
                    continue; // the address is known now
                }
                Verdict::Control => self.limit_control(&forwarding, &sender, at..next),
                Verdict::Drop(reason) => {
                    shared.drops.add(reason, 1);
                    if forwarding.admits(from) {
                        shared.answers.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            at = next;
            if at >= end {
                break;
            }
        }
        let any = delivered != Tally::default();
        if any {
            self.count(&forwarding, from, delivered);
        }
        any
    }

    fn count(&mut self, forwarding: &Forwarding, from: SocketAddr, delivered: Tally) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let is_known = |counted: &Counted| (counted.from, counted.generation) == (from, generation);
        if !self.counted.as_ref().is_some_and(is_known) {
            let counts = forwarding.counts(from).cloned();
            self.counted = Some(Counted { from, generation, counts });
        }
        if let Some(counts) = self.counted.as_ref().and_then(|counted| counted.counts.as_ref()) {
            counts.received(delivered);
        }
    }

    fn limit_control(&mut self, forwarding: &Forwarding, sender: &Sender, range: Range<usize>) {
        let shape = forwarding.spec().control;
        let packet = Unproven {
            from: sender.from,
            is_known: forwarding.hears(sender.from),
            is_possible: shape.is_some_and(|shape| shape.may_have(range.len())),
        };
        let passed = match shape {
            // The engine itself limits what it does for them; a source costs others nothing.
            Some(PacketShape::Hellos { .. }) => self.limit.pass_hello(packet, sender.now),
            Some(
                PacketShape::NotIpv4 { .. } | PacketShape::Answers | PacketShape::FromRemote { .. },
            )
            | None => self.limit.pass(packet, sender.now),
        };
        match passed {
            Some(lane) => self.shared.pass_control(lane, sender.from, &self.buffer[range]),
            None => self.shared.drops.add(Reason::ControlLimited, 1),
        }
    }

    /// Adds a packet to those for the interface. `ecn` is the outer header's; false when the packet has
    /// to be dropped for it.
    fn deliver(
        &mut self,
        socket: &UdpSocket,
        start: usize,
        inner: &Inner,
        datagrams: Option<usize>,
        ecn: Ecn,
    ) -> bool {
        let packet = &mut self.buffer[start..start + inner.length];
        if ecn == Ecn::Congested && !ecn::mark(packet) {
            self.shared.drops.add(Reason::RxCongested, 1);
            return false;
        }
        if self.coalescer.is_full() {
            self.flush();
        }
        let large = (inner.length > LARGE || datagrams.is_some()).then(|| self.mtu(socket));
        let packet = &mut self.buffer[start..start + inner.length];
        let large = large.and_then(|mtu| large::vnet(packet, inner, mtu, datagrams));
        self.coalescer.push(&self.buffer, start, inner, large);
        true
    }

    /// The MTU of the interface, as it was a moment ago.
    fn mtu(&mut self, socket: &UdpSocket) -> usize {
        let now = wake::now();
        if let Some((mtu, asked)) = self.mtu
            && now < asked + ASK_EVERY
        {
            return mtu;
        }
        let asked = self.interface.as_ref().and_then(|interface| interface.mtu(socket.as_fd()));
        let mtu = asked.unwrap_or(usize::MAX);
        self.mtu = Some((mtu, now));
        mtu
    }

    /// Writes everything to the interface.
    fn flush(&mut self) {
        let shared = self.shared;
        let interface = self.interface.as_ref();
        let mut gone = false;
        self.coalescer.drain(&mut self.buffer, |buffer, merged| {
            let Some(interface) = interface else {
                shared.drops.add(Reason::RxFailed, usize::from(merged.count));
                return;
            };
            if let Err(failed) = write(interface, buffer, &merged) {
                gone |= is_gone(&failed.error);
                shared.drops.add(Reason::RxFailed, failed.packets);
            }
        });
        if gone && let Some(interface) = self.interface.take() {
            shared.interface_gone(&interface);
        }
    }
}
