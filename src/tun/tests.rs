//! Splits large packets and puts them together again, with etherparse as the independent reader.

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::wire::inner::Inner;

use super::coalesce::Coalescer;
use super::device::Offload;
use super::split::{Super, complete_checksum};
use super::vnet::{Gso, Vnet};

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A packet to make.
#[derive(Debug, Clone)]
pub struct Plan {
    pub v4: bool,
    pub tcp: bool,
    pub port: u16,
    pub sequence: u32,
    pub id: u16,
    pub dont_fragment: bool,
    pub flags: u8,
    pub options: bool,
    pub payload: Vec<u8>,
}

impl Plan {
    pub fn tcp(payload: usize) -> Plan {
        Plan {
            v4: true,
            tcp: true,
            port: 1000,
            sequence: 0xffff_fe00,
            id: 0xfffe,
            dont_fragment: true,
            flags: ACK,
            options: true,
            payload: (0..payload).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect(),
        }
    }

    fn udp(payload: usize) -> Plan {
        Plan { tcp: false, options: false, ..Plan::tcp(payload) }
    }

    fn ip(&self) -> usize {
        if self.v4 { 20 } else { 40 }
    }

    /// Builds the packet with right checksums.
    pub fn build(&self) -> Vec<u8> {
        let ip =
            if self.v4 { PacketBuilder::ipv4(A, B, 9) } else { PacketBuilder::ipv6(A6, B6, 9) };
        let mut packet = Vec::new();
        if self.tcp {
            let mut tcp = ip.tcp(self.port, 80, self.sequence, 500).ack(77);
            if self.options {
                // Two no-operations for alignment, and a timestamp.
                tcp = tcp.options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
            }
            tcp.write(&mut packet, &self.payload).unwrap();
        } else {
            ip.udp(self.port, 80).write(&mut packet, &self.payload).unwrap();
        }
        if self.v4 {
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            packet[6] = if self.dont_fragment { 0x40 } else { 0 };
        }
        if self.tcp {
            packet[self.ip() + 13] = self.flags;
        }
        seal(&mut packet);
        packet
    }

    /// The packet as the kernel hands it over: with the sum over the pseudo-header as its checksum.
    fn large(&self, size: u16) -> (Vec<u8>, Vnet) {
        let mut packet = self.build();
        let (ip, offset) = (self.ip(), if self.tcp { 16 } else { 6 });
        let transport_len = u16::try_from(packet.len() - ip).unwrap();
        let mut pseudo = packet[if self.v4 { 12..20 } else { 8..40 }].to_vec();
        pseudo.extend([0, if self.tcp { 6 } else { 17 }]);
        pseudo.extend(transport_len.to_be_bytes());
        packet[ip + offset..ip + offset + 2].copy_from_slice(&(!plain_sum(&pseudo)).to_be_bytes());
        let gso = match (self.tcp, self.v4) {
            (true, true) => Gso::Tcp4,
            (true, false) => Gso::Tcp6,
            (false, _) => Gso::Udp,
        };
        let vnet = Vnet {
            needs_csum: true,
            gso,
            hdr_len: 0,
            gso_size: size,
            csum_start: u16::try_from(ip).unwrap(),
            csum_offset: u16::try_from(offset).unwrap(),
        };
        (packet, vnet)
    }
}

/// RFC 1071, word by word: the complement of the sum.
pub fn plain_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// The checksums as etherparse computes them.
fn checksums(packet: &[u8]) -> (Option<u16>, u16) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let header = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => Some(ip.header().to_header().calc_header_checksum()),
        NetSlice::Ipv6(_) => None,
        NetSlice::Arp(_) => unreachable!(),
    };
    let transport = match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) if header.is_some() => tcp.calc_checksum_ipv4(A, B),
        TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv6(A6, B6),
        TransportSlice::Udp(udp) if header.is_some() => {
            udp.to_header().calc_checksum_ipv4_raw(A, B, udp.payload())
        }
        TransportSlice::Udp(udp) => udp.to_header().calc_checksum_ipv6_raw(A6, B6, udp.payload()),
        other => panic!("{other:?}"),
    };
    (header, transport.unwrap())
}

pub fn offsets(packet: &[u8]) -> (usize, usize) {
    let (ip, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    (ip, ip + if IpNumber(protocol) == etherparse::ip_number::TCP { 16 } else { 6 })
}

/// Writes the checksums into the packet.
fn seal(packet: &mut [u8]) {
    let (header, transport) = checksums(packet);
    if let Some(header) = header {
        packet[10..12].copy_from_slice(&header.to_be_bytes());
    }
    let at = offsets(packet).1;
    packet[at..at + 2].copy_from_slice(&transport.to_be_bytes());
}

fn is_sealed(packet: &[u8]) -> bool {
    let mut sealed = packet.to_vec();
    seal(&mut sealed);
    sealed == packet
}

pub fn split(packet: &[u8], vnet: &Vnet) -> Vec<Vec<u8>> {
    let inner = Inner::parse(packet).unwrap();
    let parts = Super::parse(packet, &inner, vnet, usize::MAX).unwrap();
    (0..parts.count())
        .map(|index| {
            let mut header = vec![0xee; parts.header_len()];
            parts.write_header(packet, index, &mut header);
            let mut segment = header;
            segment.extend(&packet[parts.payload(index)]);
            segment
        })
        .collect()
}

/// What the coalescer writes to the device for these packets.
pub fn coalesce(packets: &[Vec<u8>], offload: Offload) -> Vec<(Vec<u8>, Vnet, u16)> {
    let mut coalescer = Coalescer::new(offload);
    let mut buffer = packets.concat();
    let mut start = 0;
    for packet in packets {
        if let Some(inner) = Inner::parse(packet) {
            coalescer.push(&buffer, start, &inner, None);
        }
        start += packet.len();
    }
    let mut written = Vec::new();
    coalescer.drain(&mut buffer, |buffer, merged| {
        let mut packet = buffer[merged.head.clone()].to_vec();
        merged.rest().for_each(|payload| packet.extend(&buffer[payload]));
        written.push((packet, merged.vnet, merged.count));
    });
    assert!(coalescer.is_empty());
    written
}

fn kinds() -> [Plan; 4] {
    let tcp = Plan { flags: ACK | PSH | FIN | CWR | ECE, ..Plan::tcp(5000) };
    [Plan { v4: false, ..tcp.clone() }, tcp, Plan::udp(5000), Plan { v4: false, ..Plan::udp(5000) }]
}

#[test]
fn a_large_packet_is_split_as_the_kernel_would() {
    for plan in kinds() {
        let (packet, vnet) = plan.large(1201);
        let segments = split(&packet, &vnet);
        assert_eq!(segments.len(), 5);
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            assert!(is_sealed(segment), "{plan:?} {index}");
            let sliced = SlicedPacket::from_ip(segment).unwrap();
            if let Some(NetSlice::Ipv4(ip)) = &sliced.net {
                let id = plan.id.wrapping_add(u16::try_from(index).unwrap());
                assert_eq!(ip.header().identification(), id);
                assert!(ip.header().dont_fragment());
            }
            match sliced.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    let sent = u32::try_from(payload.len()).unwrap();
                    assert_eq!(tcp.sequence_number(), plan.sequence.wrapping_add(sent));
                    let last = if index == 4 { PSH | FIN } else { 0 };
                    let first = if index == 0 { CWR } else { 0 };
                    assert_eq!(segment[offsets(segment).0 + 13], ACK | ECE | last | first);
                    assert_eq!(tcp.options().len(), 12);
                    payload.extend(tcp.payload());
                }
                TransportSlice::Udp(udp) => payload.extend(udp.payload()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(payload, plan.payload);
    }
}

#[test]
fn segments_are_merged_into_the_large_packet_again() {
    for plan in kinds() {
        let plan = Plan { flags: ACK | ECE | PSH, ..plan };
        let (packet, vnet) = plan.large(1201);
        let segments = split(&packet, &vnet);
        let written = coalesce(&segments, Offload::TcpAndUdp);
        let headers = packet.len() - plan.payload.len();
        let expected = Vnet { hdr_len: u16::try_from(headers).unwrap(), ..vnet };
        assert_eq!(written, [(packet, expected, 5)]);
    }
}

#[test]
fn packets_are_merged_only_if_the_device_supports_it() {
    for (offload, tcp, udp) in
        [(Offload::None, 5, 5), (Offload::Tcp, 1, 5), (Offload::TcpAndUdp, 1, 1)]
    {
        let writes = |plan: Plan| {
            let (packet, vnet) = plan.large(1000);
            coalesce(&split(&packet, &vnet), offload).len()
        };
        assert_eq!((writes(Plan::tcp(5000)), writes(Plan::udp(5000))), (tcp, udp), "{offload:?}");
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for plan in kinds() {
        let (packet, vnet) = Plan { flags: ACK, ..plan }.large(1000);
        for broken in 0..5 {
            let mut segments = split(&packet, &vnet);
            *segments[broken].last_mut().unwrap() ^= 1;
            let written = coalesce(&segments, Offload::TcpAndUdp);
            let alone = (segments[broken].clone(), Vnet::PLAIN, 1);
            assert!(written.contains(&alone), "{broken}");
            assert_eq!(written.iter().map(|(.., count)| count).sum::<u16>(), 5);
        }
    }
}

#[test]
fn packets_with_different_headers_are_not_merged() {
    let first = Plan { payload: vec![7; 100], options: false, ..Plan::tcp(0) };
    let next = Plan { sequence: first.sequence.wrapping_add(100), ..first.clone() };
    let writes =
        |one: &Plan, other: Vec<u8>| coalesce(&[one.build(), other], Offload::TcpAndUdp).len();
    assert_eq!(writes(&first, next.build()), 1);
    let changed = |offset: usize, value: u8| {
        let mut packet = next.build();
        packet[offset] = value;
        seal(&mut packet);
        packet
    };
    // Class, TTL, DF, a fragment; acknowledgement, FIN, SYN, RST, URG, CWR, ECE, window, urgent.
    for (offset, value) in [(1, 3), (8, 8), (6, 0), (31, 78), (33, 0x11), (33, 0x12)] {
        assert_eq!(writes(&first, changed(offset, value)), 2, "{offset} {value:x}");
    }
    for (offset, value) in [(33, 0x14), (33, 0x30), (33, 0x90), (33, 0x50), (35, 1), (39, 1)] {
        assert_eq!(writes(&first, changed(offset, value)), 2, "{offset} {value:x}");
    }
    let gap = Plan { sequence: next.sequence.wrapping_add(1), ..next.clone() };
    assert_eq!(writes(&first, gap.build()), 2);
    let longer = Plan { payload: vec![7; 101], ..next.clone() };
    assert_eq!(writes(&first, longer.build()), 2);
    let empty = Plan { payload: vec![], ..next.clone() };
    assert_eq!(writes(&first, empty.build()), 2);
    let options = Plan { options: true, ..next.clone() };
    assert_eq!(writes(&first, options.build()), 2);
    let loose = Plan { dont_fragment: false, ..first };
    let numbered = Plan { dont_fragment: false, id: loose.id.wrapping_add(1), ..next.clone() };
    assert_eq!(writes(&loose, numbered.build()), 1);
    assert_eq!(writes(&loose, Plan { id: loose.id, ..numbered }.build()), 2);
}

#[test]
fn the_push_flag_goes_to_the_last_segment() {
    for pushing in 0..3 {
        let segment = |n: usize| {
            let plan = Plan { payload: vec![7; 100], options: false, ..Plan::tcp(0) };
            let sequence = plan.sequence.wrapping_add(100 * u32::try_from(n).unwrap());
            let flags = if n == pushing { ACK | PSH } else { ACK };
            Plan { sequence, flags, ..plan }.build()
        };
        let written = coalesce(&[segment(0), segment(1), segment(2)], Offload::Tcp);
        let [(packet, vnet, 3)] = &written[..] else { panic!("{} writes", written.len()) };
        let pushes: Vec<_> = split(packet, vnet).iter().map(|s| s[33] & PSH != 0).collect();
        assert_eq!(pushes, [false, false, true]);
    }
}

#[test]
fn a_fragment_is_not_overtaken() {
    let first = Plan { payload: vec![7; 100], ..Plan::udp(0) };
    let next = Plan { id: first.id.wrapping_add(1), ..first.clone() };
    let mut fragment = first.build();
    fragment[6] = 0x20;
    let packets = [first.build(), fragment.clone(), next.build()];
    let written = coalesce(&packets, Offload::TcpAndUdp);
    assert_eq!(
        written.iter().map(|(p, ..)| p).collect::<Vec<_>>(),
        packets.iter().collect::<Vec<_>>()
    );
}

#[test]
fn udp_without_a_checksum_is_not_merged() {
    // The sum in place of its checksum happens to be right, too.
    let mut packet = Plan { payload: vec![0; 100], ..Plan::udp(0) }.build();
    packet.copy_within(26..28, 126);
    packet[26..28].fill(0);
    assert_eq!(coalesce(&[packet.clone(), packet], Offload::TcpAndUdp).len(), 2);
}

#[test]
fn a_partial_checksum_is_completed() {
    for plan in kinds() {
        let (mut packet, vnet) = plan.large(1000);
        assert!(!is_sealed(&packet));
        assert!(complete_checksum(&mut packet, &Vnet { gso: Gso::None, ..vnet }));
        assert!(is_sealed(&packet));
    }
    let outside = Vnet { csum_start: 20, csum_offset: 7, ..Vnet::PLAIN };
    assert!(!complete_checksum(&mut [0; 28], &outside));
    assert!(!complete_checksum(&mut [0; 19], &outside));
}
