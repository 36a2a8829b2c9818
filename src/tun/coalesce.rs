//! Segments of one flow that follow each other, put together into one large packet for the TUN
//! device, which carries them through the kernel at the cost of one: what the kernel's own
//! `tcp_gro_receive` and `udp_gro_receive` do for network cards.
//!
//! Packets are not copied: a group remembers where its parts are in the buffer they were received
//! in. A flow's packets are never reordered. Groups leave in the order they were begun, and a
//! packet that cannot be appended to the group of its flow closes it.
//!
//! The device wants the checksum of a large packet left to the kernel, so a wrong one would be made
//! good here: every checksum is verified before its packet is merged.

use std::ops::Range;

use crate::wire::inner::Inner;

use super::checksum;
use super::device::Offload;
use super::vnet::{Gso, Vnet};

/// Groups that wait to be written.
const GROUPS: usize = 128;
/// Segments in all of them.
const PARTS: usize = 1024;
/// Segments in one: the kernel takes no more from a UDP socket at once (`UDP_MAX_SEGMENTS`).
const SEGMENTS: u16 = 64;
/// Places where the latest group of a flow is looked for.
const SLOTS: usize = 256;

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const DONT_FRAGMENT: u8 = 0x40;

/// Packets on their way to the device.
pub struct Coalescer {
    groups: Vec<Group>,
    parts: Vec<Part>,
    slots: [u16; SLOTS],
    /// What the device takes.
    offload: Offload,
}

/// A packet, and those that continue it.
#[derive(Debug)]
struct Group {
    /// The first packet, headers and all.
    head: Range<usize>,
    /// Hash of addresses, protocol and ports.
    flow: u32,
    /// Hash of the addresses alone.
    pair: u32,
    /// What it takes to be continued; `None`: it is not.
    open: Option<Segment>,
    /// Whether the checksums of the first packet hold; looked at when a second one comes.
    verified: bool,
    /// Packets.
    count: u16,
    /// Bytes of all.
    length: usize,
    /// Sequence number that the next packet has to have.
    next_sequence: u32,
    /// Whether the last packet has the flag.
    push: bool,
    first_part: Option<u16>,
    last_part: u16,
}

/// The payload of a packet that continues a group.
#[derive(Debug)]
struct Part {
    payload: Range<usize>,
    next: Option<u16>,
}

/// A packet that can be merged.
#[derive(Debug, Clone, Copy)]
struct Segment {
    is_tcp: bool,
    is_v4: bool,
    /// Bytes of the IP header.
    ip: usize,
    /// Bytes of both headers.
    headers: usize,
    /// Bytes of payload.
    size: usize,
}

/// A large packet, ready to be written: the header of the device, the first packet with its headers
/// put right, and where the payloads of the others are.
pub struct Merged<'a> {
    pub vnet: Vnet,
    pub head: Range<usize>,
    pub flow: u32,
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

    /// There is another device.
    pub fn offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// Whether there may be no room for another packet.
    pub fn is_full(&self) -> bool {
        self.groups.len() == GROUPS || self.parts.len() == PARTS
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes the packet at `start` in `buffer`, which stays where it is until all groups are taken.
    /// Not to be called when full.
    pub fn push(&mut self, buffer: &[u8], start: usize, inner: &Inner) {
        let packet = &buffer[start..start + inner.length];
        let pair = pair(inner);
        let Some(ports) = ports(packet, inner) else {
            self.close_pair(pair);
            self.begin(start..start + inner.length, pair, pair, None, 0);
            return;
        };
        let flow = mix(pair ^ ports);
        let segment = self.segment(packet, inner);
        if let Some(group) = self.latest(flow) {
            match segment {
                Some(segment) if continues(buffer, group, packet, segment) => {
                    self.append(start, packet, segment, flow);
                    return;
                }
                Some(_) | None => group.open = None,
            }
        }
        let sequence = segment
            .filter(|s| s.is_tcp)
            .map_or(0, |s| sequence(&packet[s.ip..]).wrapping_add(low_u32(s.size)));
        self.begin(start..start + inner.length, flow, pair, segment, sequence);
        if segment.is_some_and(|s| s.is_tcp && packet[s.ip + 13] & PSH != 0)
            && let Some(group) = self.latest(flow)
        {
            group.open = None;
        }
    }

    /// Hands out all packets in their order, and is empty then. Headers are put right in `buffer`.
    pub fn drain(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[u8], Merged<'_>)) {
        for group in &mut self.groups {
            let vnet = group.finish(buffer);
            write(
                buffer,
                Merged {
                    vnet,
                    head: group.head.clone(),
                    flow: group.flow,
                    count: group.count,
                    parts: &self.parts,
                    next: group.first_part,
                },
            );
        }
        self.groups.clear();
        self.parts.clear();
        self.slots.fill(0);
    }

    /// The last group of a flow that was begun.
    fn latest(&mut self, flow: u32) -> Option<&mut Group> {
        let index = usize::from(self.slots[slot(flow)]).checked_sub(1)?;
        self.groups.get_mut(index).filter(|group| group.flow == flow)
    }

    /// A packet of unknown ports may belong to any flow between its addresses.
    fn close_pair(&mut self, pair: u32) {
        for group in self.groups.iter_mut().filter(|group| group.pair == pair) {
            group.open = None;
        }
    }

    fn begin(
        &mut self,
        head: Range<usize>,
        flow: u32,
        pair: u32,
        open: Option<Segment>,
        next_sequence: u32,
    ) {
        self.groups.push(Group {
            length: head.len(),
            head,
            flow,
            pair,
            open,
            verified: false,
            count: 1,
            next_sequence,
            push: false,
            first_part: None,
            last_part: 0,
        });
        self.slots[slot(flow)] = low_u16(self.groups.len());
    }

    fn append(&mut self, start: usize, packet: &[u8], segment: Segment, flow: u32) {
        let payload = start + segment.headers..start + segment.headers + segment.size;
        let part = low_u16(self.parts.len());
        self.parts.push(Part { payload, next: None });
        let index = usize::from(self.slots[slot(flow)]).saturating_sub(1);
        let group = &mut self.groups[index];
        match group.first_part {
            None => group.first_part = Some(part),
            Some(_) => self.parts[usize::from(group.last_part)].next = Some(part),
        }
        group.last_part = part;
        group.count += 1;
        group.length += segment.size;
        group.next_sequence = group.next_sequence.wrapping_add(low_u32(segment.size));
        group.push = segment.is_tcp && packet[segment.ip + 13] & PSH != 0;
        if group.push || group.open.is_none_or(|head| segment.size < head.size) {
            group.open = None;
        }
    }

    /// What a packet needs to be merged at all; its checksum is looked at later.
    fn segment(&self, packet: &[u8], inner: &Inner) -> Option<Segment> {
        let is_v4 = inner.source.is_ipv4();
        if is_v4 && inner.header_len != 20 {
            return None;
        }
        let ip = inner.header_len;
        let transport = packet.get(ip..)?;
        let is_tcp = i32::from(inner.protocol) == libc::IPPROTO_TCP;
        let length = if is_tcp {
            let tcp: &[u8; TCP_HEADER_LEN] = transport.first_chunk()?;
            // Nothing but plain data; ECE stands on every segment of a sender that slows down.
            if self.offload == Offload::None || tcp[13] & !(PSH | ECE) != ACK {
                return None;
            }
            usize::from(tcp[12] >> 4) * 4
        } else {
            let udp: &[u8; UDP_HEADER_LEN] = transport.first_chunk()?;
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            if self.offload != Offload::TcpAndUdp
                || length != transport.len()
                || udp[6..8] == [0, 0]
            {
                return None;
            }
            UDP_HEADER_LEN
        };
        let minimum = if is_tcp { TCP_HEADER_LEN } else { UDP_HEADER_LEN };
        let size = transport.len().checked_sub(length)?;
        (length >= minimum && size > 0).then_some(Segment {
            is_tcp,
            is_v4,
            ip,
            headers: ip + length,
            size,
        })
    }
}

impl Group {
    /// Puts the headers right, and tells how the device takes the packet apart again.
    fn finish(&mut self, buffer: &mut [u8]) -> Vnet {
        if self.count == 1 {
            return Vnet::PLAIN;
        }
        let packet = &mut buffer[self.head.clone()];
        let is_v4 = packet[0] >> 4 == 4;
        let ip = if is_v4 { 20 } else { 40 };
        let transport_len = low_u16(self.length - ip);
        let is_tcp = i32::from(packet[if is_v4 { 9 } else { 6 }]) == libc::IPPROTO_TCP;
        let addresses = if is_v4 { 12..20 } else { 8..40 };
        if is_v4 {
            packet[2..4].copy_from_slice(&low_u16(self.length).to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&packet[..ip]));
            packet[10..12].copy_from_slice(&sum);
        } else {
            packet[4..6].copy_from_slice(&transport_len.to_be_bytes());
        }
        let protocol = packet[if is_v4 { 9 } else { 6 }];
        let partial = checksum::pseudo_header(&packet[addresses], protocol, transport_len);
        let partial = checksum::fold(partial);
        let transport = &mut packet[ip..];
        let (headers, csum_offset) = if is_tcp {
            if self.push {
                transport[13] |= PSH;
            }
            (ip + usize::from(transport[12] >> 4) * 4, 16)
        } else {
            transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
            (ip + UDP_HEADER_LEN, 6)
        };
        transport[csum_offset..csum_offset + 2].copy_from_slice(&partial);
        Vnet {
            needs_csum: true,
            gso: match (is_tcp, is_v4) {
                (true, true) => Gso::Tcp4,
                (true, false) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            hdr_len: low_u16(headers),
            gso_size: low_u16(self.head.len() - headers),
            csum_start: low_u16(ip),
            csum_offset: low_u16(csum_offset),
        }
    }
}

impl Merged<'_> {
    /// The payloads behind the head, in their order.
    pub fn rest(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = self.next;
        std::iter::from_fn(move || {
            let part = self.parts.get(usize::from(next?))?;
            next = part.next;
            Some(part.payload.clone())
        })
    }
}

/// Whether the packet goes on where the group ends, and differs in nothing that a segment of a
/// large packet would not differ in.
fn continues(buffer: &[u8], group: &mut Group, packet: &[u8], segment: Segment) -> bool {
    let Some(head) = group.open else { return false };
    let first = &buffer[group.head.clone()];
    let fits = segment.headers == head.headers
        && (segment.is_tcp, segment.is_v4) == (head.is_tcp, head.is_v4)
        && segment.size <= head.size
        && group.count < SEGMENTS
        && group.length + segment.size <= usize::from(u16::MAX);
    if !fits || !same_ip(first, packet, group.count, segment.is_v4) {
        return false;
    }
    let (one, other) = (&first[head.ip..head.headers], &packet[head.ip..head.headers]);
    let same = if segment.is_tcp {
        // Ports; acknowledgement, offset; flags but for PSH; window; urgent pointer, options.
        one[..4] == other[..4]
            && one[8..13] == other[8..13]
            && (one[13] ^ other[13]) & !PSH == 0
            && one[14..16] == other[14..16]
            && one[18..] == other[18..]
            && sequence(other) == group.next_sequence
    } else {
        one[..4] == other[..4]
    };
    if !same {
        return false;
    }
    group.verified = group.verified || is_intact(first, head);
    group.verified && is_intact(packet, segment)
}

fn same_ip(first: &[u8], packet: &[u8], count: u16, is_v4: bool) -> bool {
    if !is_v4 {
        // Version, class and label; next header and hop limit; addresses.
        return first[..4] == packet[..4] && first[6..40] == packet[6..40];
    }
    let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    first[..2] == packet[..2]
        && first[6..10] == packet[6..10]
        && first[12..20] == packet[12..20]
        // The number has no meaning in what is never fragmented (RFC 6864).
        && (first[6] & DONT_FRAGMENT != 0 || id(packet) == id(first).wrapping_add(count))
}

/// Whether the checksums hold.
fn is_intact(packet: &[u8], segment: Segment) -> bool {
    let (ip, transport) = packet.split_at(segment.ip);
    let addresses = if segment.is_v4 { 12..20 } else { 8..40 };
    let protocol = if segment.is_tcp { 6 } else { 17 };
    let pseudo = checksum::pseudo_header(&ip[addresses], protocol, low_u16(transport.len()));
    (!segment.is_v4 || checksum::holds(checksum::sum(ip)))
        && checksum::holds(pseudo + checksum::sum(transport))
}

fn sequence(tcp: &[u8]) -> u32 {
    u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
}

/// Both ports of TCP or UDP in one number that is the same for both directions.
fn ports(packet: &[u8], inner: &Inner) -> Option<u32> {
    let protocol = i32::from(inner.protocol);
    if inner.is_fragment || (protocol != libc::IPPROTO_TCP && protocol != libc::IPPROTO_UDP) {
        return None;
    }
    let &[s0, s1, d0, d1] = packet.get(inner.header_len..)?.first_chunk()?;
    let ports = u32::from(u16::from_be_bytes([s0, s1]) ^ u16::from_be_bytes([d0, d1]));
    Some(ports << 8 | u32::from(inner.protocol))
}

/// A hash of both addresses, the same for both directions: a flow is written to the queue that its
/// answers are read from.
fn pair(inner: &Inner) -> u32 {
    let number = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => u64::from(address.to_bits()),
        std::net::IpAddr::V6(address) => {
            let bits = address.to_bits();
            low_u64(bits) ^ low_u64(bits >> 64)
        }
    };
    let (source, destination) = (number(inner.source), number(inner.destination));
    let both = (source ^ destination).wrapping_add(source.wrapping_mul(destination));
    low_u32_of(both) ^ low_u32_of(both >> 32)
}

/// Spreads the bits (the finalizer of MurmurHash3).
fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

fn slot(flow: u32) -> usize {
    flow as usize % SLOTS
}

#[allow(clippy::cast_possible_truncation)] // of packets, which are shorter; of hashes
fn low_u16(value: usize) -> u16 {
    value as u16
}

#[allow(clippy::cast_possible_truncation)]
fn low_u32(value: usize) -> u32 {
    value as u32
}

#[allow(clippy::cast_possible_truncation)]
fn low_u32_of(value: u64) -> u32 {
    value as u32
}

#[allow(clippy::cast_possible_truncation)]
fn low_u64(value: u128) -> u64 {
    value as u64
}
