//! Puts consecutive segments of one flow together into one large packet for the TUN device, which
//! carries them through the kernel at the cost of one. The kernel's own GRO does the same for network
//! cards.
//!
//! Packets are not copied: a group remembers where its parts are in the buffer into which they were
//! received. A flow's packets are never reordered. Groups leave in the order in which they were begun,
//! and a packet that cannot be appended to its flow's group closes that group.
//!
//! A flag that asks for delivery (PSH) does not close a group: the group is written in a moment anyway.
//! The last segment then carries one such flag for all, as a sender may do, too (RFC 9293, 3.9.1.2).
//!
//! The device requires that the checksum of a large packet is left to the kernel, so a wrong one would
//! become right here: every checksum is verified before its packet is merged.

use std::ops::Range;

use crate::wire::inner::Inner;

use super::checksum;
use super::device::Offload;
use super::flow::Flow;
use super::partial;
use super::segment::{PSH, Segment, same_ip, same_transport};
use super::vnet::{Gso, Vnet};

/// How many groups may wait to be written.
const GROUPS: usize = 128;
/// How many segments may be in all of them.
const PARTS: usize = 1024;
/// How many segments may be in one: no more leave a UDP socket of the kernel at once
/// (`UDP_MAX_SEGMENTS`).
pub const SEGMENTS: u16 = 64;
/// The number of slots in which the latest group of a flow is looked up.
const SLOTS: usize = 256;

/// Packets on their way to the device.
pub struct Coalescer {
    groups: Vec<Group>,
    parts: Vec<Part>,
    /// One more than the number of the latest group of a flow. A flow whose slot another one takes
    /// begins a new group.
    slots: [u16; SLOTS],
    /// The large packets that the device takes.
    offload: Offload,
}

/// A packet, and those that continue it.
#[derive(Debug)]
struct Group {
    /// The first packet, headers and all.
    head: Range<usize>,
    flow: u32,
    /// The hash of the flow without the ports.
    pair: u32,
    segment: Option<Segment>,
    /// How the first packet is written if none follows.
    alone: Vnet,
    /// Whether another packet may follow.
    is_open: bool,
    /// Whether the checksums of the first packet are right; checked when a second one comes.
    is_intact: bool,
    /// How many packets are in it.
    count: u16,
    /// Bytes of all packets.
    length: usize,
    /// Sequence number that the next packet has to have.
    sequence: u32,
    /// Whether any packet after the first has the flag.
    push: bool,
    /// The payloads after the first packet: the first and the last of them.
    parts: Option<(u16, u16)>,
}

/// The payload of a packet that continues a group.
#[derive(Debug)]
struct Part {
    payload: Range<usize>,
    next: Option<u16>,
}

/// A packet that is ready to be written: the header of the device, the first packet with its headers
/// corrected, and where the payloads of the others are.
pub struct Merged<'a> {
    pub vnet: Vnet,
    pub head: Range<usize>,
    pub flow: u32,
    /// How many packets are in it.
    pub count: u16,
    parts: &'a [Part],
    next: Option<u16>,
}

impl Coalescer {
    pub fn new(offload: Offload) -> Self {
        Coalescer {
            groups: Vec::with_capacity(GROUPS),
            parts: Vec::with_capacity(PARTS),
            slots: [0; SLOTS],
            offload,
        }
    }

    /// Sets the large packets that a new device takes.
    pub fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// Whether there may be no room for another packet.
    pub fn is_full(&self) -> bool {
        self.groups.len() == GROUPS || self.parts.len() == PARTS
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes the packet at `start` in `buffer`, which stays there until all are drained. Must not be
    /// called when full. `large` says how the packet is split if it is a large one itself.
    pub fn push(&mut self, buffer: &[u8], start: usize, inner: &Inner, large: Option<Vnet>) {
        let range = start..start + inner.length;
        let packet = &buffer[range.clone()];
        let Flow { pair, ports } = Flow::of(packet, inner);
        let Some(flow) = ports else {
            // The packet may belong to any flow between its addresses.
            for group in self.groups.iter_mut().filter(|group| group.pair == pair) {
                group.is_open = false;
            }
            let alone = large.unwrap_or_else(|| partial::vnet(packet, inner));
            self.begin(range, alone, pair, pair, None);
            return;
        };
        let segment = match large {
            Some(_) => None,
            None => Segment::parse(packet, inner, self.offload),
        };
        let part = low_u16(self.parts.len());
        if let Some(group) = latest(&mut self.groups, &self.slots, flow) {
            if let Some(segment) = segment
                && group.takes(buffer, packet, segment)
            {
                if let Some(last) = group.append(segment, part) {
                    self.parts[usize::from(last)].next = Some(part);
                }
                let payload = start + segment.headers..range.end;
                self.parts.push(Part { payload, next: None });
                return;
            }
            group.is_open = false;
        }
        let alone = large.unwrap_or_else(|| partial::vnet(packet, inner));
        self.begin(range, alone, flow, pair, segment);
    }

    /// Hands out all packets in their order, and is empty afterwards. Corrects the headers in `buffer`.
    pub fn drain(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[u8], Merged<'_>)) {
        for group in &self.groups {
            let merged = Merged {
                vnet: group.finish(buffer),
                head: group.head.clone(),
                flow: group.flow,
                count: group.count,
                parts: &self.parts,
                next: group.parts.map(|(first, _)| first),
            };
            write(buffer, merged);
        }
        self.groups.clear();
        self.parts.clear();
        self.slots.fill(0);
    }

    fn begin(
        &mut self,
        head: Range<usize>,
        alone: Vnet,
        flow: u32,
        pair: u32,
        segment: Option<Segment>,
    ) {
        self.groups.push(Group {
            length: head.len(),
            head,
            flow,
            pair,
            segment,
            alone,
            is_open: segment.is_some(),
            is_intact: false,
            count: 1,
            sequence: segment.map_or(0, Segment::next_sequence),
            push: false,
            parts: None,
        });
        self.slots[slot(flow)] = low_u16(self.groups.len());
    }
}

impl Group {
    /// Whether the packet continues the group.
    fn takes(&mut self, buffer: &[u8], packet: &[u8], segment: Segment) -> bool {
        let Some(head) = self.segment else { return false };
        let first = &buffer[self.head.clone()];
        let follows = self.is_open
            && self.count < SEGMENTS
            && self.length + segment.size <= usize::from(u16::MAX)
            && segment.size <= head.size
            && segment.sequence == self.sequence
            && segment.is_like(head)
            && same_ip(first, packet, self.count, head.is_v4)
            && same_transport(
                &first[head.ip..head.headers],
                &packet[head.ip..head.headers],
                head.is_tcp,
            );
        if !follows {
            return false;
        }
        self.is_intact = self.is_intact || head.is_intact(first);
        self.is_intact && segment.is_intact(packet)
    }

    /// Notes that the payload of a packet is number `part`, and returns the number of the one before.
    fn append(&mut self, segment: Segment, part: u16) -> Option<u16> {
        let (first, last) = self.parts.map_or((part, None), |(first, last)| (first, Some(last)));
        self.parts = Some((first, part));
        self.count += 1;
        self.length += segment.size;
        self.sequence = segment.next_sequence();
        self.push |= segment.push;
        self.is_open = self.segment.is_some_and(|head| segment.size == head.size);
        last
    }

    /// Corrects the headers, and returns how the packet is to be split again.
    fn finish(&self, buffer: &mut [u8]) -> Vnet {
        let Some(head) = self.segment.filter(|_| self.count > 1) else { return self.alone };
        let packet = &mut buffer[self.head.clone()];
        let transport_len = low_u16(self.length - head.ip);
        let (addresses, protocol) = if head.is_v4 {
            packet[2..4].copy_from_slice(&low_u16(self.length).to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&packet[..head.ip]));
            packet[10..12].copy_from_slice(&sum);
            (12..20, packet[9])
        } else {
            packet[4..6].copy_from_slice(&transport_len.to_be_bytes());
            (8..40, packet[6])
        };
        let pseudo = checksum::pseudo_header(&packet[addresses], protocol, transport_len);
        let transport = &mut packet[head.ip..];
        let csum_offset = if head.is_tcp {
            if self.push {
                transport[13] |= PSH;
            }
            16
        } else {
            transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
            6
        };
        transport[csum_offset..csum_offset + 2].copy_from_slice(&checksum::fold(pseudo));
        Vnet {
            needs_csum: true,
            gso: match (head.is_tcp, head.is_v4) {
                (true, true) => Gso::Tcp4,
                (true, false) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            hdr_len: low_u16(head.headers),
            gso_size: low_u16(head.size),
            csum_start: low_u16(head.ip),
            csum_offset: low_u16(csum_offset),
        }
    }
}

impl Merged<'_> {
    /// The payloads after the head, in their order.
    pub fn rest(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = self.next;
        std::iter::from_fn(move || {
            let part = self.parts.get(usize::from(next?))?;
            next = part.next;
            Some(part.payload.clone())
        })
    }
}

/// The latest group of a flow.
fn latest<'a>(groups: &'a mut [Group], slots: &[u16; SLOTS], flow: u32) -> Option<&'a mut Group> {
    let index = usize::from(slots[slot(flow)]).checked_sub(1)?;
    groups.get_mut(index).filter(|group| group.flow == flow)
}

fn slot(flow: u32) -> usize {
    flow as usize % SLOTS
}

/// Narrows a packet length, or the number of a group or part.
#[allow(clippy::cast_possible_truncation)]
fn low_u16(value: usize) -> u16 {
    value as u16
}
