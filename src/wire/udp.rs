//! A whole IPv4 datagram with UDP inside: parsed when it comes from the queue, built when it leaves
//! through a raw socket.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{PacketBuilder, ip_number};

/// One UDP datagram as the queue sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source address and UDP port, as the headers claim.
    pub from: SocketAddrV4,
    /// Destination address and UDP port: our outer address and port.
    pub to: SocketAddrV4,
    /// As much of the payload as was copied to us.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads an IPv4 packet whose end may be cut off (NFQUEUE copies a bounded range).
    ///
    /// `None` for anything that is not the first fragment of UDP over IPv4.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        // The copy may be shorter than the header says, so the length field is not held against it.
        let (header, rest) = etherparse::Ipv4Header::from_slice(packet).ok()?;
        if header.protocol != ip_number::UDP || header.fragment_offset.value() != 0 {
            return None;
        }
        let udp = etherparse::UdpHeaderSlice::from_slice(rest).ok()?;
        let length = usize::from(udp.length()).checked_sub(UDP_HEADER_LEN)?;
        let copied = rest.get(UDP_HEADER_LEN..)?;
        Some(Datagram {
            from: SocketAddrV4::new(Ipv4Addr::from(header.source), udp.source_port()),
            to: SocketAddrV4::new(Ipv4Addr::from(header.destination), udp.destination_port()),
            payload: copied.get(..length).unwrap_or(copied),
        })
    }
}

/// The UDP port that an IPv4 packet goes to, as a rule `udp dport` sees it: nothing else of the UDP header has
/// to be right, or there. `None` for anything that is not the first fragment of UDP over IPv4.
pub fn destination_port(packet: &[u8]) -> Option<u16> {
    let first = packet.first().filter(|first| *first >> 4 == 4)?;
    let transport = packet.get(usize::from(first & 0xf) * 4..)?;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    if packet.get(9) != Some(&ip_number::UDP.0) || fragment != 0 {
        return None;
    }
    Some(u16::from_be_bytes([*transport.get(2)?, *transport.get(3)?]))
}

/// Bytes of a UDP header (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;
/// Bytes of an IPv4 header without options (RFC 791).
pub const IPV4_HEADER_LEN: usize = 20;

/// The payload does not fit into one IPv4 datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes do not fit into one UDP datagram")]
pub struct TooLong(usize);

/// Builds an IPv4 packet with UDP and correct checksums, for a socket of protocol `IPPROTO_RAW`
/// (raw(7)). The kernel fills in the identification.
///
/// # Errors
/// When the payload is longer than a datagram can be.
pub fn build(
    from: SocketAddrV4,
    to: SocketAddrV4,
    ttl: u8,
    payload: &[u8],
) -> Result<Vec<u8>, TooLong> {
    let builder =
        PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), ttl).udp(from.port(), to.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).map_err(|_| TooLong(payload.len()))?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Slice, UdpSlice};

    use super::*;

    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 10000);
    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 20000);

    /// Whether the bytes are a complete IPv4/UDP datagram whose checksums hold.
    fn verify(packet: &[u8]) -> bool {
        let Ok(ip) = Ipv4Slice::from_slice(packet) else { return false };
        let Ok(udp) = UdpSlice::from_slice(ip.payload().payload) else { return false };
        let header = ip.header().to_header();
        header.header_checksum == header.calc_header_checksum()
            && udp
                .to_header()
                .calc_checksum_ipv4_raw(header.source, header.destination, udp.payload())
                .is_ok_and(|sum| sum == udp.checksum())
    }

    #[test]
    fn what_is_built_is_read_back() {
        for length in [0, 1, 2, 73, 1472] {
            let payload = vec![0xa5; length];
            let packet = build(FROM, TO, 64, &payload).unwrap();
            assert!(verify(&packet), "{length}");
            assert_eq!(packet.len(), IPV4_HEADER_LEN + UDP_HEADER_LEN + length);
            let read = Datagram::parse(&packet).unwrap();
            assert_eq!(read, Datagram { from: FROM, to: TO, payload: &payload });
        }
    }

    #[test]
    fn a_truncated_packet_gives_the_payload_that_is_there() {
        let packet = build(FROM, TO, 64, &[7; 100]).unwrap();
        assert_eq!(Datagram::parse(&packet[..58]).unwrap().payload, &[7; 30]);
        assert_eq!(Datagram::parse(&packet[..27]), None);
        assert_eq!(Datagram::parse(&[]), None);
    }

    #[test]
    fn the_port_is_known_as_long_as_it_is_there() {
        let packet = build(FROM, TO, 64, b"hi").unwrap();
        assert_eq!(destination_port(&packet), Some(TO.port()));
        assert_eq!(
            destination_port(&packet[..24]),
            Some(TO.port()),
            "no datagram, yet for the port"
        );
        assert_eq!(destination_port(&packet[..23]), None);
        let changed = |byte: usize, to: u8| {
            let mut packet = packet.clone();
            packet[byte] = to;
            destination_port(&packet)
        };
        assert_eq!(changed(25, 3), Some(TO.port()), "the UDP length is impossible");
        assert_eq!(changed(6, 0x20), Some(TO.port()), "the first fragment");
        assert_eq!(changed(7, 1), None, "another fragment");
        assert_eq!(changed(9, 6), None, "TCP");
        assert_eq!(changed(0, 0x65), None, "IPv6");
        let mut with_options = packet.clone();
        with_options[0] = 0x46;
        with_options.splice(20..20, [1; 4]);
        assert_eq!(destination_port(&with_options), Some(TO.port()));
    }

    #[test]
    fn ethernet_padding_is_not_payload() {
        let mut packet = build(FROM, TO, 64, b"hi").unwrap();
        packet.extend([0; 16]);
        assert_eq!(Datagram::parse(&packet).unwrap().payload, b"hi");
    }
}
