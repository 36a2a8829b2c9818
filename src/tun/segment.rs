//! Decides which packets may become one large packet: those that differ only in what the segments of a
//! large packet differ in (`inet_gro_receive`, `tcp_gro_receive`, `udp_gro_receive_segment`).

use crate::wire::inner::Inner;
use crate::wire::udp::UDP_HEADER_LEN;

use super::checksum;
use super::device::Offload;

pub const TCP_HEADER_LEN: usize = 20;
pub const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const DONT_FRAGMENT: u8 = 0x40;

/// A packet that can be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub is_tcp: bool,
    pub is_v4: bool,
    /// Bytes of the IP header.
    pub ip: usize,
    /// Bytes of both headers.
    pub headers: usize,
    /// Bytes of payload, at least one.
    pub size: usize,
    /// The sequence number of TCP.
    pub sequence: u32,
    pub push: bool,
}

impl Segment {
    /// Whether the packet can be merged at all; its checksums are checked later.
    pub fn parse(packet: &[u8], inner: &Inner, offload: Offload) -> Option<Self> {
        let is_v4 = inner.source.is_ipv4();
        if inner.is_fragment || (is_v4 && inner.header_len != 20) {
            return None;
        }
        let transport = packet.get(inner.header_len..inner.length)?;
        let protocol = i32::from(inner.protocol);
        let is_tcp = protocol == libc::IPPROTO_TCP;
        let (length, sequence, flags) = if is_tcp && offload != Offload::None {
            let tcp: &[u8; TCP_HEADER_LEN] = transport.first_chunk()?;
            // Plain data only; ECE is set on every segment of a receiver that saw congestion.
            if tcp[13] & !(PSH | ECE) != ACK {
                return None;
            }
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            (usize::from(tcp[12] >> 4) * 4, sequence, tcp[13])
        } else if protocol == libc::IPPROTO_UDP && offload == Offload::TcpAndUdp {
            let udp: &[u8; UDP_HEADER_LEN] = transport.first_chunk()?;
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            // A datagram without a checksum would have one afterwards.
            if length != transport.len() || udp[6..8] == [0, 0] {
                return None;
            }
            (UDP_HEADER_LEN, 0, 0)
        } else {
            return None;
        };
        let size = transport.len().checked_sub(length)?;
        let minimum = if is_tcp { TCP_HEADER_LEN } else { UDP_HEADER_LEN };
        (length >= minimum && size > 0).then_some(Segment {
            is_tcp,
            is_v4,
            ip: inner.header_len,
            headers: inner.header_len + length,
            size,
            sequence,
            push: flags & PSH != 0,
        })
    }

    /// The sequence number of the next segment; 0 for UDP, which has none.
    #[allow(clippy::cast_possible_truncation)] // sequence numbers wrap
    pub fn next_sequence(self) -> u32 {
        if self.is_tcp { self.sequence.wrapping_add(self.size as u32) } else { 0 }
    }

    /// Whether both have the same kind of headers.
    pub fn is_like(self, other: Segment) -> bool {
        self.headers == other.headers && (self.is_tcp, self.is_v4) == (other.is_tcp, other.is_v4)
    }

    /// Whether the checksums are right.
    pub fn is_intact(self, packet: &[u8]) -> bool {
        let (ip, transport) = packet.split_at(self.ip);
        let addresses = if self.is_v4 { 12..20 } else { 8..40 };
        let protocol = if self.is_tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
        let (Ok(protocol), Ok(length)) = (u8::try_from(protocol), u16::try_from(transport.len()))
        else {
            return false;
        };
        let pseudo = checksum::pseudo_header(&ip[addresses], protocol, length);
        (!self.is_v4 || checksum::holds(checksum::sum(ip)))
            && checksum::holds(pseudo + checksum::sum(transport))
    }
}

/// Whether `packet`, judged by its IP header, may be number `count` of those that begin with `first`.
pub fn same_ip(first: &[u8], packet: &[u8], count: u16, is_v4: bool) -> bool {
    if !is_v4 {
        // Version, class and label; next header and hop limit; addresses.
        return first[..4] == packet[..4] && first[6..40] == packet[6..40];
    }
    let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    // Version, class; flags, TTL, protocol; addresses.
    first[..2] == packet[..2]
        && first[6..10] == packet[6..10]
        && first[12..20] == packet[12..20]
        // The number has no meaning in a packet that is never fragmented (RFC 6864).
        && (first[6] & DONT_FRAGMENT != 0 || id(packet) == id(first).wrapping_add(count))
}

/// Whether both headers differ only in what segments differ in.
pub fn same_transport(first: &[u8], packet: &[u8], is_tcp: bool) -> bool {
    // Ports; for TCP acknowledgement and length, flags, window, urgent pointer and options.
    first[..4] == packet[..4]
        && (!is_tcp
            || (first[8..13] == packet[8..13]
                && (first[13] ^ packet[13]) & !PSH == 0
                && first[14..16] == packet[14..16]
                && first[18..] == packet[18..]))
}
