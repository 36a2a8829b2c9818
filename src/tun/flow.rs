//! The inner flow that a packet belongs to: a hash that is the same for both directions, because a flow
//! is written to the queue from which its answers are read.

use std::net::IpAddr;

use crate::wire::inner::Inner;

/// The hashes of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Over the addresses.
    pub pair: u32,
    /// Over addresses, protocol and ports; `None` where no ports can be seen.
    pub ports: Option<u32>,
}

impl Flow {
    pub fn of(packet: &[u8], inner: &Inner) -> Self {
        let pair = mix(fold(number(inner.source) ^ number(inner.destination)));
        let flow = |ports| mix(pair ^ ports);
        Flow { pair, ports: ports(packet, inner).map(flow) }
    }
}

/// Both ports of TCP or UDP, together with the protocol.
fn ports(packet: &[u8], inner: &Inner) -> Option<u32> {
    let protocol = i32::from(inner.protocol);
    if inner.is_fragment || (protocol != libc::IPPROTO_TCP && protocol != libc::IPPROTO_UDP) {
        return None;
    }
    let &[s0, s1, d0, d1] = packet.get(inner.header_len..)?.first_chunk()?;
    let ports = u16::from_be_bytes([s0, s1]) ^ u16::from_be_bytes([d0, d1]);
    Some(u32::from(ports) << 8 | u32::from(inner.protocol))
}

fn number(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.segments();
            let half = |parts: [u16; 4]| {
                parts.into_iter().fold(0, |number: u64, part| number << 16 | u64::from(part))
            };
            half([a, b, c, d]) ^ half([e, f, g, h])
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // it is a hash
fn fold(number: u64) -> u32 {
    (number ^ number >> 32) as u32
}

/// Spreads the bits (the finalizer of MurmurHash3).
fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use etherparse::PacketBuilder;

    use super::*;

    fn flow(source: u8, source_port: u16, destination: u8, destination_port: u16) -> Flow {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, source], [10, 0, 0, destination], 9)
            .udp(source_port, destination_port)
            .write(&mut packet, &[])
            .unwrap();
        Flow::of(&packet, &Inner::parse(&packet).unwrap())
    }

    #[test]
    fn both_directions_are_one_flow() {
        assert_eq!(flow(1, 1000, 2, 53), flow(2, 53, 1, 1000));
        assert_ne!(flow(1, 1000, 2, 53).ports, flow(1, 1001, 2, 53).ports);
        assert_eq!(flow(1, 1000, 2, 53).pair, flow(1, 1001, 2, 53).pair);
    }

    #[test]
    fn flows_spread_over_queues() {
        let queues: BTreeSet<_> =
            (0..16).filter_map(|port| flow(1, 1000 + port, 2, 53).ports).map(|f| f % 4).collect();
        assert_eq!(queues.len(), 4);
    }

    #[test]
    fn a_fragment_has_no_ports() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(1, 2).write(&mut packet, &[]).unwrap();
        packet[6] = 0x20;
        assert_eq!(Flow::of(&packet, &Inner::parse(&packet).unwrap()).ports, None);
    }
}
