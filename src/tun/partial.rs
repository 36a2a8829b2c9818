//! Packets whose checksum nobody has computed. Between containers, or virtual machines of one host,
//! the kernel leaves that to a network card which no packet ever reaches (CHECKSUM_PARTIAL in
//! linux/skbuff.h), and what a socket receives is not whole: where the checksum of the inner packet
//! belongs there is the sum of its pseudo-header only. The header of the TUN device can say so.
//!
//! By chance a whole packet looks like that, too, once in 65,536. Nothing happens to it: the kernel
//! computes its checksum where it is needed, which is the one that it had.

use crate::wire::inner::Inner;

use super::checksum;
use super::vnet::Vnet;

/// How a packet is written that is alone.
pub fn vnet(packet: &[u8], inner: &Inner) -> Vnet {
    let offset = match i32::from(inner.protocol) {
        libc::IPPROTO_TCP => 16u8,
        libc::IPPROTO_UDP => 6,
        _ => return Vnet::PLAIN,
    };
    let addresses = if inner.source.is_ipv4() { 12..20 } else { 8..40 };
    let field = inner.header_len + usize::from(offset);
    let (Some(addresses), Some(found), Ok(start), Ok(length)) = (
        packet.get(addresses),
        packet.get(field..field + 2),
        u16::try_from(inner.header_len),
        u16::try_from(inner.length - inner.header_len),
    ) else {
        return Vnet::PLAIN;
    };
    let pseudo = checksum::pseudo_header(addresses, inner.protocol, length);
    let partial = !inner.is_fragment && found == checksum::fold(pseudo);
    if !partial {
        return Vnet::PLAIN;
    }
    Vnet { needs_csum: true, csum_start: start, csum_offset: offset.into(), ..Vnet::PLAIN }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A packet, and the place of its checksum.
    fn packets() -> [(Vec<u8>, u16, u16); 3] {
        let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
        let (mut tcp, mut udp, mut tcp6) = (Vec::new(), Vec::new(), Vec::new());
        v4().tcp(1, 2, 3, 4).write(&mut tcp, &[7; 9]).unwrap();
        v4().udp(1, 2).write(&mut udp, &[7; 9]).unwrap();
        v6.tcp(1, 2, 3, 4).write(&mut tcp6, &[7; 9]).unwrap();
        [(tcp, 20, 16), (udp, 20, 6), (tcp6, 40, 16)]
    }

    /// As the kernel leaves it (`__tcp_v4_send_check` in net/ipv4/tcp_ipv4.c).
    fn leave_partial(packet: &mut [u8], start: u16, offset: u16) {
        let addresses = if start == 20 { 12..20 } else { 8..40 };
        let protocol = if offset == 6 { 17 } else { 6 };
        let length = u16::try_from(packet.len()).unwrap() - start;
        let pseudo = checksum::pseudo_header(&packet[addresses], protocol, length);
        let field = usize::from(start + offset);
        packet[field..field + 2].copy_from_slice(&checksum::fold(pseudo));
    }

    #[test]
    fn a_whole_packet_stays_as_it_is() {
        for (packet, ..) in packets() {
            assert_eq!(vnet(&packet, &Inner::parse(&packet).unwrap()), Vnet::PLAIN);
        }
    }

    #[test]
    fn a_partial_checksum_is_left_to_the_kernel() {
        for (mut packet, start, offset) in packets() {
            leave_partial(&mut packet, start, offset);
            let found = vnet(&packet, &Inner::parse(&packet).unwrap());
            assert!(found.needs_csum && (found.csum_start, found.csum_offset) == (start, offset));
            packet[usize::from(start)] ^= 1; // no part of the pseudo-header: it tells nothing
            assert_eq!(vnet(&packet, &Inner::parse(&packet).unwrap()), found);
        }
    }

    #[test]
    fn cut_headers_and_fragments_are_left_alone() {
        for (mut packet, start, offset) in packets().into_iter().take(2) {
            leave_partial(&mut packet, start, offset);
            let fragment = Inner { is_fragment: true, ..Inner::parse(&packet).unwrap() };
            assert_eq!(vnet(&packet, &fragment), Vnet::PLAIN);
            for length in 20..packet.len() {
                let inner = Inner { length, ..Inner::parse(&packet).unwrap() };
                assert_eq!(vnet(&packet[..length], &inner), Vnet::PLAIN);
            }
        }
    }
}
