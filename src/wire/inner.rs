//! The packets inside the tunnel, IPv4 and IPv6, as the userspace datapath sees them.
//!
//! Every packet is parsed, so only what forwarding needs is looked at, and nothing is copied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type, IpSlice, PacketBuilder, ip_number};

use super::udp::IPV4_HEADER_LEN;

/// Bytes of an IPv6 header (RFC 8200).
pub const IPV6_HEADER_LEN: usize = 40;

/// An ICMPv4 error quotes what fits into this many bytes (RFC 1812, 4.3.2.3), …
const ICMPV4_ERROR_LEN: usize = 576;
/// … an ICMPv6 error what fits into the smallest MTU (RFC 4443, 2.4 c).
const ICMPV6_ERROR_LEN: usize = 1280;
/// Bytes of an ICMP header in front of what is quoted.
const ICMP_HEADER_LEN: usize = 8;
/// TTL and hop limit of the errors.
const ICMP_TTL: u8 = 64;

/// The header of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Address of the inner host that sent it, as the header claims.
    pub source: IpAddr,
    /// Address of the inner host that it is for.
    pub destination: IpAddr,
    /// Protocol, or for IPv6 the next header.
    pub protocol: u8,
    /// Bytes of the IP header with the options of IPv4; extension headers of IPv6 are payload.
    pub header_len: usize,
    /// Bytes of the whole packet. What was read may be longer, and the rest is padding.
    pub length: usize,
    /// Whether it is one of several fragments of a datagram.
    pub is_fragment: bool,
}

impl Inner {
    /// Reads the header of a packet; `None` unless it is a whole IPv4 or IPv6 packet. Checksums are the
    /// receiver's business.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let inner = match packet.first()? >> 4 {
            4 => Self::parse_v4(packet.first_chunk()?),
            6 => Self::parse_v6(packet.first_chunk()?),
            _ => return None,
        };
        let whole = inner.header_len >= IPV4_HEADER_LEN
            && inner.header_len <= inner.length
            && inner.length <= packet.len();
        whole.then_some(inner)
    }

    fn parse_v4(header: &[u8; IPV4_HEADER_LEN]) -> Self {
        let &[version, _, l0, l1, _, _, f0, f1, _, protocol, _, _, ref addresses @ ..] = header;
        let &[s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        // More fragments, or an offset (RFC 791).
        const FRAGMENT: u16 = 0x3fff;
        Inner {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            header_len: usize::from(version & 0xf) * 4,
            length: usize::from(u16::from_be_bytes([l0, l1])),
            is_fragment: u16::from_be_bytes([f0, f1]) & FRAGMENT != 0,
        }
    }

    fn parse_v6(header: &[u8; IPV6_HEADER_LEN]) -> Self {
        let &[_, _, _, _, l0, l1, next_header, _, ref addresses @ ..] = header;
        let (source, destination) = addresses.split_at(16);
        // Both halves of 32 bytes have 16.
        let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).unwrap_or_default();
        Inner {
            source: Ipv6Addr::from(address(source)).into(),
            destination: Ipv6Addr::from(address(destination)).into(),
            protocol: next_header,
            header_len: IPV6_HEADER_LEN,
            length: IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([l0, l1])),
            is_fragment: next_header == ip_number::IPV6_FRAGMENTATION_HEADER.0,
        }
    }
}

/// The ICMP error that says that nobody is behind the destination of `packet`: host unreachable
/// (RFC 792), address unreachable (RFC 4443). `None` where the RFCs forbid one.
///
/// It seems to come from the unreachable destination itself. It is written into the interface that
/// the packet came out of, and there the kernel drops what has a source address of the host's own
/// (`fib_validate_source`), while the route to the destination leads into just this interface.
pub fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    error_about(
        packet,
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
    )
}

/// The ICMP error that says that `packet` is longer than the way on takes, which is `mtu` bytes:
/// fragmentation needed (RFC 1191), packet too big (RFC 4443). As [`unreachable()`] otherwise.
pub fn too_long(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    error_about(
        packet,
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: mtu,
        }),
        Icmpv6Type::PacketTooBig { mtu: mtu.into() },
    )
}

fn error_about(packet: &[u8], v4: Icmpv4Type, v6: Icmpv6Type) -> Option<Vec<u8>> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let mut error = Vec::new();
    match &ip {
        IpSlice::Ipv4(ip) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr(), header.destination_addr());
            if header.fragments_offset().value() != 0
                || !is_host_v4(source)
                || !is_host_v4(destination)
                || (header.protocol() == ip_number::ICMP
                    && is_error_v4(*ip.payload().payload.first()?))
            {
                return None;
            }
            let quoted = ICMPV4_ERROR_LEN - IPV4_HEADER_LEN - ICMP_HEADER_LEN;
            PacketBuilder::ipv4(destination.octets(), source.octets(), ICMP_TTL)
                .icmpv4(v4)
                .write(&mut error, packet.get(..quoted).unwrap_or(packet))
                .ok()?;
        }
        IpSlice::Ipv6(ip) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr(), header.destination_addr());
            // Only the first fragment tells what it is.
            let payload = ip.payload();
            if source.is_unspecified()
                || source.is_multicast()
                || destination.is_multicast()
                || (payload.fragmented && payload.ip_number == ip_number::IPV6_ICMP)
                || (payload.ip_number == ip_number::IPV6_ICMP
                    && is_error_v6(*payload.payload.first()?))
            {
                return None;
            }
            let quoted = ICMPV6_ERROR_LEN - IPV6_HEADER_LEN - ICMP_HEADER_LEN;
            PacketBuilder::ipv6(destination.octets(), source.octets(), ICMP_TTL)
                .icmpv6(v6)
                .write(&mut error, packet.get(..quoted).unwrap_or(packet))
                .ok()?;
        }
    }
    Some(error)
}

/// Whether it is an ICMP redirect (RFC 792). Those of IPv6 are known by their source, which is
/// link-local.
#[inline]
pub fn is_redirect_v4(packet: &[u8], inner: &Inner) -> bool {
    const REDIRECT: u8 = 5;
    // Only the first fragment begins with the type (RFC 791).
    let begins =
        || packet.get(6..8).is_some_and(|field| matches!(*field, [flags, 0] if flags & 0x1f == 0));
    inner.protocol == ip_number::ICMP.0
        && inner.source.is_ipv4()
        && packet.get(inner.header_len) == Some(&REDIRECT)
        && begins()
}

/// Whether the address is that of one host (RFC 1122, 3.2.2).
fn is_host_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
fn is_error_v4(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
}

/// All below 128 (RFC 4443, 2.1), and redirect (RFC 4861).
fn is_error_v6(icmp_type: u8) -> bool {
    icmp_type < 128 || icmp_type == 137
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Header, Icmpv6Header, NetSlice, SlicedPacket};
    use proptest::prelude::*;

    use super::*;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];
    const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    fn udp_v4(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(A, B, 9).udp(1, 2).write(&mut packet, payload).unwrap();
        packet
    }

    fn udp_v6(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6(A6, B6, 9).udp(1, 2).write(&mut packet, payload).unwrap();
        packet
    }

    #[test]
    fn the_fields_that_forwarding_needs_are_read() {
        let mut packet = udp_v4(b"hello");
        packet.extend([0; 3]);
        let expected = Inner {
            source: A.into(),
            destination: B.into(),
            protocol: 17,
            header_len: 20,
            length: 33,
            is_fragment: false,
        };
        assert_eq!(Inner::parse(&packet), Some(expected));
        packet[6] = 0x20;
        assert!(Inner::parse(&packet).unwrap().is_fragment);
        packet[6] = 0x40;
        assert!(!Inner::parse(&packet).unwrap().is_fragment);
        let packet = udp_v6(b"hello");
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!((inner.source, inner.destination), (A6.into(), B6.into()));
        assert_eq!((inner.protocol, inner.header_len, inner.length), (17, 40, 53));
    }

    #[test]
    fn a_truncated_packet_is_refused() {
        for whole in [udp_v4(b"hello"), udp_v6(b"hello")] {
            for length in 0..whole.len() {
                assert_eq!(Inner::parse(&whole[..length]), None, "{length}");
                assert_eq!(unreachable(&whole[..length]), None, "{length}");
            }
        }
        let mut packet = udp_v4(b"");
        packet[0] = 0x44;
        assert_eq!(Inner::parse(&packet), None);
        packet[0] = 0x48;
        assert_eq!(Inner::parse(&packet), None, "options longer than the packet");
    }

    #[test]
    fn an_icmp_error_follows_the_rfcs() {
        let packet = udp_v4(&[7; 1000]);
        let error = unreachable(&packet).unwrap();
        assert_eq!(error.len(), 576);
        let read = SlicedPacket::from_ip(&error).unwrap();
        let Some(NetSlice::Ipv4(ip)) = read.net else { panic!() };
        assert_eq!(ip.header().source(), B);
        assert_eq!(ip.header().destination(), A);
        let (icmp, quoted) = Icmpv4Header::from_slice(ip.payload().payload).unwrap();
        assert_eq!((icmp.icmp_type.header_len(), quoted), (8, &packet[..548]));
        assert_eq!(ip.payload().payload[..2], [3, 1]);
        assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(quoted));

        let packet = udp_v6(&[7; 1400]);
        let error = unreachable(&packet).unwrap();
        assert_eq!(error.len(), 1280);
        let read = SlicedPacket::from_ip(&error).unwrap();
        let Some(NetSlice::Ipv6(ip)) = read.net else { panic!() };
        assert_eq!(ip.header().source(), B6);
        assert_eq!(ip.header().destination(), A6);
        let (icmp, quoted) = Icmpv6Header::from_slice(ip.payload().payload).unwrap();
        assert_eq!(ip.payload().payload[..2], [1, 3]);
        assert_eq!(quoted, &packet[..1232]);
        let expected = icmp.icmp_type.calc_checksum(B6, A6, quoted).unwrap();
        assert_eq!(icmp.checksum, expected);
    }

    #[test]
    fn the_error_about_a_too_long_packet_carries_the_mtu() {
        let error = too_long(&udp_v4(&[7; 1400]), 1252).unwrap();
        assert_eq!(error[20..22], [3, 4]);
        assert_eq!(error[24..28], [0, 0, 0x04, 0xe4]); // RFC 1191, 4
        let error = too_long(&udp_v6(&[7; 1400]), 1300).unwrap();
        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], [0, 0, 0x05, 0x14]); // RFC 4443, 3.2
        let source = |error: &[u8]| Inner::parse(error).unwrap().source;
        assert_eq!(source(&error), IpAddr::from(B6));
    }

    #[test]
    fn no_icmp_error_answers_errors_fragments_or_multicast() {
        let of = |icmp: Icmpv4Type| {
            let mut packet = Vec::new();
            PacketBuilder::ipv4(A, B, 9).icmpv4(icmp).write(&mut packet, &[0; 28]).unwrap();
            packet
        };
        let host = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
        assert_eq!(unreachable(&of(host)), None);
        let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
        assert!(unreachable(&of(Icmpv4Type::EchoRequest(echo))).is_some());

        let mut fragment = udp_v4(b"hello");
        fragment[6..8].copy_from_slice(&[0x20, 0]);
        assert!(unreachable(&fragment).is_some(), "the first one");
        fragment[6..8].copy_from_slice(&[0x20, 1]);
        assert_eq!(unreachable(&fragment), None, "another one");

        for (offset, address) in [
            (12, [0, 0, 0, 0]),
            (12, [127, 0, 0, 1]),
            (12, [224, 0, 0, 1]),
            (12, [255; 4]),
            (16, [224, 0, 0, 1]),
            (16, [255; 4]),
        ] {
            let mut packet = udp_v4(b"hello");
            packet[offset..offset + 4].copy_from_slice(&address);
            assert_eq!(unreachable(&packet), None, "{offset} {address:?}");
        }

        for (offset, first) in [(8, 0xff), (24, 0xff)] {
            let mut packet = udp_v6(b"hello");
            packet[offset] = first;
            assert_eq!(unreachable(&packet), None, "{offset}");
        }
        let mut packet = udp_v6(b"hello");
        packet[8..24].fill(0);
        assert_eq!(unreachable(&packet), None);
        let mut packet = Vec::new();
        let icmp = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address);
        PacketBuilder::ipv6(A6, B6, 9).icmpv6(icmp).write(&mut packet, &[0; 48]).unwrap();
        assert_eq!(unreachable(&packet), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0xf) };
            }
            if let Some(inner) = Inner::parse(&bytes) {
                prop_assert!(inner.header_len <= inner.length && inner.length <= bytes.len());
            }
            if let Some(error) = unreachable(&bytes) {
                prop_assert!(Inner::parse(&error).is_some_and(|i| i.length == error.len()));
            }
        }
    }
}
