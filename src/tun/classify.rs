//! Decides which UDP payloads are data, and which are for the engine: the rules of the kernel datapath
//! (see `kernel/ruleset.rs`), with IPv6 inside as well.

use std::net::SocketAddr;

use crate::engine::host::PacketShape;
use crate::wire::control;
use crate::wire::inner::Inner;

/// What a payload is, no matter who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A whole inner packet.
    Data(Inner),
    /// Something else.
    Other,
}

/// Classifies a payload. A packet of exactly the length of an authentication packet is data only if the
/// length in its own header matches to the byte.
#[inline]
pub fn classify(payload: &[u8], control: Option<PacketShape>) -> Class {
    let Some(inner) = Inner::parse(payload) else { return Class::Other };
    match control {
        Some(PacketShape::NotIpv4 { length, .. })
            if payload.len() == usize::from(length) && inner.length != payload.len() =>
        {
            Class::Other
        }
        Some(
            PacketShape::NotIpv4 { .. }
            | PacketShape::Hellos { .. }
            | PacketShape::Answers
            | PacketShape::FromRemote { .. },
        )
        | None => Class::Data(inner),
    }
}

/// Whether the engine reads a packet from `from` that is not data of an admitted remote.
pub fn is_control(
    class: Class,
    payload: &[u8],
    from: SocketAddr,
    control: Option<PacketShape>,
) -> bool {
    match (control, class) {
        (Some(PacketShape::FromRemote { ip, port }), Class::Data(_) | Class::Other) => {
            ip.is_none_or(|ip| ip == from.ip()) && port.is_none_or(|port| port == from.port())
        }
        (
            None
            | Some(PacketShape::NotIpv4 { .. } | PacketShape::Hellos { .. } | PacketShape::Answers),
            Class::Data(_),
        )
        | (None, Class::Other) => false,
        (Some(PacketShape::NotIpv4 { .. }), Class::Other) => true,
        (Some(PacketShape::Hellos { receiver }), Class::Other) => {
            control::is_hello_to(payload, &receiver)
        }
        (Some(PacketShape::Answers), Class::Other) => control::is_answer(payload),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const AUTH: Option<PacketShape> = Some(PacketShape::NotIpv4 { length: 73, longest: 512 });

    fn data(length: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(1, 2);
        builder.write(&mut packet, &vec![7; length - 28]).unwrap();
        packet
    }

    #[test]
    fn an_authentication_packet_that_looks_like_data() {
        let exact = data(73);
        assert!(matches!(classify(&exact, AUTH), Class::Data(_)));
        let mut padded = data(72);
        padded.push(0);
        assert_eq!(classify(&padded, AUTH), Class::Other);
        assert!(matches!(classify(&padded, None), Class::Data(_)));
        padded.push(0);
        assert!(matches!(classify(&padded, AUTH), Class::Data(_)), "padded, of another length");
    }

    #[test]
    fn control_packets_are_recognised_by_class_and_source() {
        let from: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let inner = classify(&data(100), None);
        assert!(is_control(Class::Other, &[0x90], from, AUTH));
        assert!(!is_control(inner, &[0x45], from, AUTH));
        assert!(!is_control(Class::Other, &[0x90], from, None));
        let remote = |ip: Option<&str>, port| {
            Some(PacketShape::FromRemote { ip: ip.map(|ip| ip.parse().unwrap()), port })
        };
        for class in [inner, Class::Other] {
            assert!(is_control(class, &[0x90], from, remote(None, None)));
            assert!(is_control(class, &[0x90], from, remote(Some("192.0.2.1"), Some(1000))));
            assert!(!is_control(class, &[0x90], from, remote(Some("192.0.2.2"), None)));
            assert!(!is_control(class, &[0x90], from, remote(None, Some(1001))));
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_classified(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        ) {
            let payload: Vec<u8> = std::iter::once(first).chain(bytes).collect();
            if let Class::Data(inner) = classify(&payload, AUTH) {
                prop_assert!(inner.length <= payload.len());
            }
        }
    }
}
