//! Packets whose checksum has not been computed. Between containers, or virtual machines of one host,
//! the kernel leaves it to a network card that no packet ever reaches (CHECKSUM_PARTIAL in
//! linux/skbuff.h), so what a socket receives is not finished: in place of the checksum of the inner
//! packet there is only the sum of its pseudo-header. The header of the TUN device can say so.
//!
//! By chance a finished packet looks like that, too, once in 65,536. It is not harmed: where its
//! checksum is needed the kernel computes it, and gets the one that it had.

use std::ops::Range;

use etherparse::{IpNumber, ip_number};

use crate::wire::inner::Inner;

use super::checksum::{self, Sum};
use super::vnet::Vnet;

/// How a packet is written that is not part of a group.
pub fn vnet(packet: &[u8], inner: &Inner) -> Vnet {
    let Some(transport) = Transport::of(packet, inner) else { return Vnet::PLAIN };
    if packet.get(transport.field()) != Some(&checksum::fold(transport.pseudo_header)) {
        return Vnet::PLAIN;
    }
    transport.partial()
}

/// TCP or UDP in a packet: what its checksum needs.
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    pub is_tcp: bool,
    /// Where TCP or UDP begins, after options and extension headers.
    pub start: u16,
    /// The sum over the pseudo-header.
    pub pseudo_header: Sum,
}

impl Transport {
    /// `None` for other protocols, and for a fragment.
    pub fn of(packet: &[u8], inner: &Inner) -> Option<Self> {
        let is_v4 = inner.source.is_ipv4();
        let (protocol, start, destination) = match (is_v4, inner.header_len) {
            _ if inner.is_fragment => return None,
            (true, 20) => (inner.protocol, 20, 16..20),
            (true, length) => (inner.protocol, length, last_of_source_route(packet, length)),
            (false, _) => behind_extensions(packet, inner.protocol)?,
        };
        let is_tcp = protocol == ip_number::TCP.0;
        if !is_tcp && protocol != ip_number::UDP.0 {
            return None;
        }
        let source = if is_v4 { 12..16 } else { 8..24 };
        let length = inner.length.checked_sub(start).and_then(|length| u16::try_from(length).ok());
        let pseudo_header = checksum::sum(packet.get(source)?)
            + checksum::pseudo_header(packet.get(destination)?, protocol, length?);
        Some(Transport { is_tcp, start: u16::try_from(start).ok()?, pseudo_header })
    }

    /// Where the checksum is, counted from the beginning of TCP or UDP.
    pub fn offset(self) -> u16 {
        if self.is_tcp { 16 } else { 6 }
    }

    /// Where the checksum is in the packet.
    pub fn field(self) -> Range<usize> {
        let start = usize::from(self.start) + usize::from(self.offset());
        start..start + 2
    }

    /// How a packet is written whose checksum is not computed.
    pub fn partial(self) -> Vnet {
        let (csum_start, csum_offset) = (self.start, self.offset());
        Vnet { needs_csum: true, csum_start, csum_offset, ..Vnet::PLAIN }
    }
}

/// Where in an IPv4 packet the destination is that its checksum covers: the last address of a loose or
/// strict source route that has not come to its end, otherwise that of the header (RFC 791, 3.1;
/// `ip_options_build` in net/ipv4/ip_options.c).
fn last_of_source_route(packet: &[u8], header_len: usize) -> Range<usize> {
    const SOURCE_ROUTES: [u8; 2] = [131, 137];
    let of_header = 16..20;
    let mut at = 20;
    while at < header_len {
        let (length, pointer) = match packet.get(at..header_len) {
            None | Some([] | [0, ..]) => return of_header,
            Some([1, ..]) => (1, 0),
            Some([_, length, pointer, ..]) => (usize::from(*length), usize::from(*pointer)),
            Some(_) => return of_header,
        };
        let end = at + length;
        if length == 0 || end > header_len {
            return of_header;
        }
        if SOURCE_ROUTES.contains(&packet[at]) && length >= 7 && pointer <= length {
            return end - 4..end;
        }
        at = end;
    }
    of_header
}

/// Protocol and position of what follows the extension headers of IPv6, and where the destination is
/// that its checksum covers: with a routing header, that is the last one (RFC 8200, 8.1). `None` for a
/// fragment, and where this is not known.
fn behind_extensions(packet: &[u8], first: u8) -> Option<(u8, usize, Range<usize>)> {
    /// Routing headers of type 0 (RFC 5095) and type 2 (RFC 6275) end with the last address; that of
    /// segment routing (RFC 8754) begins with it.
    const ENDS_WITH_IT: [u8; 2] = [0, 2];
    const BEGINS_WITH_IT: u8 = 4;
    let (mut next, mut at, mut destination) = (first, 40, 24..40);
    loop {
        let length = match IpNumber(next) {
            ip_number::IPV6_FRAGMENTATION_HEADER => return None,
            ip_number::IPV6_HEADER_HOP_BY_HOP
            | ip_number::IPV6_DESTINATION_OPTIONS
            | ip_number::IPV6_ROUTE_HEADER => usize::from(*packet.get(at + 1)?) * 8 + 8,
            ip_number::AUTHENTICATION_HEADER => usize::from(*packet.get(at + 1)?) * 4 + 8,
            _ => return Some((next, at, destination)),
        };
        let header = packet.get(at..at + length)?;
        if next == ip_number::IPV6_ROUTE_HEADER.0 && header[3] > 0 {
            destination = match header[2] {
                kind if ENDS_WITH_IT.contains(&kind) => at + length.checked_sub(16)?..at + length,
                BEGINS_WITH_IT => at + 8..at + 24,
                _ => return None,
            };
        }
        next = header[0];
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A packet, the start of its transport header, and the offset of its checksum.
    fn packets() -> [(Vec<u8>, u16, u16); 3] {
        let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
        let (mut tcp, mut udp, mut tcp6) = (Vec::new(), Vec::new(), Vec::new());
        v4().tcp(1, 2, 3, 4).write(&mut tcp, &[7; 9]).unwrap();
        v4().udp(1, 2).write(&mut udp, &[7; 9]).unwrap();
        v6.tcp(1, 2, 3, 4).write(&mut tcp6, &[7; 9]).unwrap();
        [(tcp, 20, 16), (udp, 20, 6), (tcp6, 40, 16)]
    }

    /// Leaves a checksum partial, as the kernel does (`__tcp_v4_send_check` in net/ipv4/tcp_ipv4.c).
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
            packet[usize::from(start)] ^= 1; // not in the pseudo-header, so it tells nothing
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
