//! Explicit congestion notification through the tunnel (RFC 6040), as the kernel's tunnels do it
//! (`ip_tunnel_ecn_encap`, `IP_ECN_decapsulate`). The field is copied to the outer header ("normal
//! mode"), so that a router on the way can mark instead of drop, and a mark is carried over to the
//! inner header. The other six bits, the DSCP, stay inside.

use crate::wire::udp::IPV4_HEADER_LEN;

use super::checksum::{self, word};

/// The ECN field (RFC 3168, 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ecn {
    /// The endpoints do not support it: a router can only drop.
    #[default]
    NotCapable,
    Capable1,
    Capable0,
    /// A router on the way was congested.
    Congested,
}

impl Ecn {
    /// Takes the field from a TOS or traffic class.
    pub fn of_class(class: u8) -> Self {
        match class & 3 {
            0 => Ecn::NotCapable,
            1 => Ecn::Capable1,
            2 => Ecn::Capable0,
            _ => Ecn::Congested,
        }
    }

    /// Takes the field from an IPv4 or IPv6 packet.
    pub fn of_packet(packet: &[u8]) -> Self {
        match packet {
            [first, second, ..] if first >> 4 == 4 => Ecn::of_class(*second),
            [_, second, ..] => Ecn::of_class(second >> 4),
            _ => Ecn::NotCapable,
        }
    }

    pub fn bits(self) -> u8 {
        self as u8
    }
}

/// Marks an inner packet whose outer header was marked. False when its endpoints do not support marks:
/// then it has to be dropped (RFC 6040, 4.2).
pub fn mark(packet: &mut [u8]) -> bool {
    match Ecn::of_packet(packet) {
        Ecn::NotCapable => return false,
        Ecn::Capable0 | Ecn::Capable1 => {}
        Ecn::Congested => return true,
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= 0x30;
    } else if let Some(header) = packet.first_chunk_mut::<IPV4_HEADER_LEN>() {
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (old, sum) = (number(0), number(10));
        // A wrong checksum stays wrong (RFC 1624, equation 3).
        let sum = checksum::finish(word(!sum) + word(!old) + word(old | 3));
        header[1] |= 3;
        header[10..12].copy_from_slice(&sum);
    }
    true
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Header, Ipv6Header, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    fn v4(class: u8, id: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut packet, &[7; 9])
            .unwrap();
        packet[1] = class;
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let (header, _) = Ipv4Header::from_slice(&packet).unwrap();
        packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        packet
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut packet = Vec::new();
        let mut header = Ipv6Header { traffic_class: class, ..Ipv6Header::default() };
        header.set_payload_length(3).unwrap();
        header.flow_label = 0xf_ffffu32.try_into().unwrap();
        header.write(&mut packet).unwrap();
        packet.extend([1, 2, 3]);
        packet
    }

    proptest! {
        #[test]
        fn a_congestion_mark_is_copied_to_the_inner_packet(class: u8, id: u16) {
            let capable = class & 3 != 0;
            let mut packet = v4(class, id);
            let expected = if capable { v4(class | 3, id) } else { packet.clone() };
            prop_assert_eq!(Ecn::of_packet(&packet).bits(), class & 3);
            prop_assert_eq!(mark(&mut packet), capable);
            prop_assert_eq!(packet, expected);

            let mut packet = v6(class);
            let expected = if capable { v6(class | 3) } else { packet.clone() };
            prop_assert_eq!(Ecn::of_packet(&packet).bits(), class & 3);
            prop_assert_eq!(mark(&mut packet), capable);
            prop_assert_eq!(packet, expected);
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut packet = v4(2, 77);
        packet[8] ^= 1;
        assert!(mark(&mut packet));
        let (header, _) = Ipv4Header::from_slice(&packet).unwrap();
        assert_ne!(header.calc_header_checksum(), header.header_checksum);
    }
}
