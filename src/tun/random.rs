//! Feeds random packets and random bytes: nothing panics, and merging is invisible.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::wire::inner::Inner;

use super::device::Offload;
use super::split::{Super, complete_checksum};
use super::tests::{ACK, ECE, FIN, PSH, Plan, coalesce, offsets, split};
use super::vnet::{Gso, Vnet};

/// The choices for one packet: port, IPv4, TCP, may be fragmented; payload, flags, gap before it; a
/// wrong checksum, a fragment.
type Choice = ((u16, bool, bool, bool), usize, u8, u32, (bool, bool));

fn plans() -> impl Strategy<Value = Vec<(Plan, bool, bool)>> {
    let one = (
        (0u16..3, any::<bool>(), any::<bool>(), any::<bool>()),
        prop_oneof![8 => Just(100usize), 1 => Just(99), 1 => Just(1), 1 => Just(0)],
        prop_oneof![8 => Just(ACK), 1 => Just(ACK | PSH), 1 => Just(ACK | FIN), 1 => Just(ACK | ECE)],
        prop_oneof![9 => Just(0u32), 1 => Just(1)],
        (prop::bool::weighted(0.05), prop::bool::weighted(0.05)),
    );
    proptest::collection::vec(one, 1..80).prop_map(|packets| {
        let mut next: HashMap<(u16, bool, bool), (u32, u16)> = HashMap::new();
        let one = |packet: Choice| {
            let ((port, v4, tcp, loose), size, flags, gap, (broken, fragment)) = packet;
            let (sequence, id) = next.entry((port, v4, tcp)).or_insert((u32::MAX - 200, 65530));
            *sequence = sequence.wrapping_add(gap);
            let plan = Plan {
                v4,
                tcp,
                port,
                sequence: *sequence,
                id: *id,
                dont_fragment: !loose && port == 0,
                flags,
                options: port == 1,
                payload: (0..size).map(|i| i.to_le_bytes()[0]).collect(),
            };
            *sequence = sequence.wrapping_add(u32::try_from(size).unwrap());
            *id = id.wrapping_add(1);
            (plan, broken, fragment)
        };
        packets.into_iter().map(one).collect()
    })
}

/// The packet, without PSH and without the number of an IPv4 packet that is never fragmented.
fn comparable(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    if pushes(&packet) {
        let (transport, checksum) = offsets(&packet);
        packet[transport + 13] &= !PSH;
        // The checksum without PSH (RFC 1624), with a single form of zero.
        let old = u16::from_be_bytes([packet[checksum], packet[checksum + 1]]);
        let new = (u32::from(old) + u32::from(PSH)) % 0xffff;
        packet[checksum..checksum + 2].copy_from_slice(&new.to_be_bytes()[2..]);
    }
    packet
}

fn pushes(packet: &[u8]) -> bool {
    let (transport, checksum) = offsets(packet);
    checksum == transport + 16 && packet[transport + 13] & PSH != 0
}

proptest! {
    /// The packets that the kernel segments again are, flow by flow, those that came in.
    #[test]
    fn merged_packets_split_into_the_original_ones(plans in plans()) {
        let packets: Vec<_> = plans
            .iter()
            .map(|(plan, broken, fragment)| {
                let mut packet = plan.build();
                if *broken {
                    *packet.last_mut().unwrap() ^= 0x55;
                }
                if *fragment && plan.v4 {
                    packet[6] |= 0x20;
                }
                packet
            })
            .collect();
        let mut out = Vec::new();
        for (packet, vnet, count) in coalesce(&packets, Offload::TcpAndUdp) {
            if vnet.gso == Gso::None {
                prop_assert_eq!(count, 1);
                out.push(packet);
            } else {
                let parts = split(&packet, &vnet);
                prop_assert_eq!(parts.len(), usize::from(count));
                out.extend(parts);
            }
        }
        prop_assert_eq!(out.len(), packets.len());
        // Addresses and ports, and whether it is TCP; a fragment may belong to any flow.
        let flow = |p: &Vec<u8>| (p[0] >> 4, offsets(p).1, p[offsets(p).0..offsets(p).0 + 4].to_vec());
        for of in packets.iter().map(flow) {
            let of_flow = |all: &[Vec<u8>]| -> Vec<_> {
                all.iter().filter(|p| flow(p) == of).cloned().map(comparable).collect()
            };
            prop_assert_eq!(of_flow(&out), of_flow(&packets));
            // A PSH arrives with its packet or after it.
            let pushing = |all: &[Vec<u8>]| -> Vec<_> {
                let flow = all.iter().filter(|p| flow(p) == of).enumerate();
                flow.filter(|(_, p)| pushes(p)).map(|(index, _)| index).collect()
            };
            let (before, after) = (pushing(&packets), pushing(&out));
            prop_assert!(after.len() <= before.len());
            prop_assert!(before.last() <= after.last());
        }
    }

    #[test]
    fn any_bytes_are_coalesced(
        mut packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 20..120), 1..30),
        kinds in proptest::collection::vec((any::<bool>(), any::<bool>()), 30),
    ) {
        for (packet, (v4, tcp)) in packets.iter_mut().zip(kinds) {
            let length = u16::try_from(packet.len()).unwrap();
            let protocol = if tcp { 6 } else { 17 };
            if v4 {
                packet[0] = 0x45 + u8::from(packet[0] > 250);
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                packet[6..10].copy_from_slice(&[0, 0, 9, protocol]);
            } else if length >= 40 {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                packet[6] = protocol;
            }
        }
        let whole = packets.iter().filter(|p| Inner::parse(p).is_some()).count();
        prop_assert_eq!(coalesce(&packets, Offload::TcpAndUdp).len(), whole);
    }

    #[test]
    fn any_bytes_are_split(
        mut packet in proptest::collection::vec(any::<u8>(), 0..200),
        header in any::<[u8; 10]>(),
        small in any::<bool>(),
        v4 in any::<bool>(),
    ) {
        if let Some(first) = packet.first_mut() {
            *first = if v4 { 0x45 } else { 0x60 };
        }
        let mut header = header;
        if small {
            header[1] = [0, 1, 4, 5][usize::from(header[1] % 4)];
            let (size, start) = (1 + header[4] % 64, header[6] % 64);
            header[4..10].copy_from_slice(&[size, 0, start, 0, 6, 0]);
        }
        let length = u16::try_from(packet.len()).unwrap();
        if v4 && length >= 4 {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
        } else if length >= 40 {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        }
        if let (Some(vnet), Some(inner)) = (Vnet::parse(&header), Inner::parse(&packet)) {
            let packet = &mut packet[..inner.length];
            complete_checksum(packet, &vnet);
            if let Some(parts) = Super::parse(packet, &inner, &vnet, 1500) {
                let total: usize = (0..parts.count()).map(|i| parts.payload(i).len()).sum();
                prop_assert_eq!(parts.header_len() + total, inner.length);
                for index in 0..parts.count() {
                    parts.write_header(packet, index, &mut vec![0; parts.header_len()]);
                }
            }
        }
    }
}
