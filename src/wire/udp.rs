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
    fn ethernet_padding_is_not_payload() {
        let mut packet = build(FROM, TO, 64, b"hi").unwrap();
        packet.extend([0; 16]);
        assert_eq!(Datagram::parse(&packet).unwrap().payload, b"hi");
    }
}
