//! Recognises packets that would go round and round: the tunnel's own outer packets, where a route
//! leads them into the tunnel. Each round makes a packet larger, and soon turns it into two.

use std::net::SocketAddr;

use crate::wire::inner::Inner;

/// How many packets within packets are looked into. Two tunnels that lead into each other make two.
const DEPTH: usize = 4;

/// Whether a packet, or one inside it, is UDP between addresses for which `ours` holds.
#[inline]
pub fn is_own(packet: &[u8], inner: &Inner, ours: impl Fn(SocketAddr, SocketAddr) -> bool) -> bool {
    let (mut packet, mut inner) = (packet, *inner);
    for _ in 0..DEPTH {
        let Some((from, to, payload)) = udp(packet, &inner) else { return false };
        if ours(from, to) {
            return true;
        }
        let Some(next) = Inner::parse(payload) else { return false };
        (packet, inner) = (payload, next);
    }
    false
}

/// Source, destination and payload of a UDP datagram, or of its first fragment.
#[inline]
fn udp<'a>(packet: &'a [u8], inner: &Inner) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
    // An IPv6 fragment has another protocol; an IPv4 fragment has an offset.
    let is_first = !inner.is_fragment
        || matches!(packet, [_, _, _, _, _, _, flags, 0, ..] if flags & 0x1f == 0);
    if i32::from(inner.protocol) != libc::IPPROTO_UDP || !is_first {
        return None;
    }
    let (&[s0, s1, d0, d1, _, _, _, _], payload) =
        packet.get(inner.header_len..)?.split_first_chunk()?;
    let from = SocketAddr::new(inner.source, u16::from_be_bytes([s0, s1]));
    let to = SocketAddr::new(inner.destination, u16::from_be_bytes([d0, d1]));
    Some((from, to, payload))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const OURS: ([u8; 4], u16) = ([203, 0, 113, 1], 10000);

    fn around(from: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let ip = PacketBuilder::ipv4(from.0, [198, 51, 100, 7], 9);
        ip.udp(from.1, 4500).write(&mut packet, payload).unwrap();
        packet
    }

    fn is_ours(packet: &[u8]) -> bool {
        let ours = |from: SocketAddr, to: SocketAddr| {
            assert_eq!(to.port(), 4500);
            from == OURS.into()
        };
        is_own(packet, &Inner::parse(packet).unwrap(), ours)
    }

    #[test]
    fn own_outer_packets_are_distinguished_from_others() {
        assert!(is_ours(&around(OURS, b"x")));
        assert!(!is_ours(&around((OURS.0, 10001), b"x")));
        assert!(!is_ours(&around(([203, 0, 113, 2], 10000), b"x")));
        let mut tcp = around(OURS, &[0; 20]);
        tcp[9] = 6;
        assert!(!is_ours(&tcp));
    }

    #[test]
    fn own_packets_are_found_inside_others_to_some_depth() {
        let other = ([192, 0, 2, 1], 51820);
        let mut packet = around(OURS, b"x");
        for _ in 1..DEPTH {
            packet = around(other, &packet);
            assert!(is_ours(&packet));
        }
        assert!(!is_ours(&around(other, &packet)));
        // Many datagrams in one large packet: the first one is enough.
        let own = around(OURS, b"x");
        assert!(is_ours(&around(other, &[own.clone(), own].concat())));
    }

    #[test]
    fn only_the_first_fragment_is_recognised() {
        let mut fragment = around(OURS, &[0; 64]);
        fragment[6] = 0x20;
        assert!(is_ours(&fragment));
        fragment[7] = 1;
        assert!(!is_ours(&fragment));
    }

    #[test]
    fn own_outer_packets_over_ipv6_are_recognised() {
        let ours: SocketAddr = "[2001:db8::1]:10000".parse().unwrap();
        let SocketAddr::V6(own) = ours else { unreachable!() };
        let mut packet = Vec::new();
        let ip = PacketBuilder::ipv6(own.ip().octets(), [7; 16], 9);
        ip.udp(own.port(), 9).write(&mut packet, b"x").unwrap();
        assert!(is_own(&packet, &Inner::parse(&packet).unwrap(), |from, _| from == ours));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_inspected(mut bytes in proptest::collection::vec(any::<u8>(), 20..200)) {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&[0, 20]);
            bytes[9] = 17;
            if let Some(inner) = Inner::parse(&bytes) {
                is_own(&bytes, &inner, |_, _| false);
                is_own(&bytes[..inner.length], &inner, |_, _| false);
            }
        }
    }
}
