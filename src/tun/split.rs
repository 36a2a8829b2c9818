//! Splits a large packet of the TUN device into the segments that go over the wire, as the kernel's
//! `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment` would have done.
//!
//! Only headers are written. Payloads stay where they were read to, and are sent from there.

use std::ops::Range;

use crate::wire::inner::Inner;
use crate::wire::udp::UDP_HEADER_LEN;

use super::checksum::{self, Sum, double_word, word};
use super::segment::{PSH, TCP_HEADER_LEN};
use super::vnet::{Gso, Vnet};

const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

/// A large packet that is to be split.
pub struct Super {
    header_len: usize,
    /// Bytes of the IP header, without the extension headers of IPv6.
    ip: usize,
    /// Where TCP or UDP begins.
    transport: usize,
    is_v4: bool,
    kind: Kind,
    /// The payload size of each segment except the last.
    size: usize,
    /// The payload size of all segments together.
    payload: usize,
    id: u16,
    /// The sum over the fields of the IPv4 header that are the same in all segments.
    ip_sum: Sum,
    /// The sum over the fields of the TCP or UDP header that are the same in all segments, and over the
    /// pseudo-header without its length.
    transport_sum: Sum,
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl Super {
    /// `None` for a packet that does not match its header. No TCP segment gets longer than `most`
    /// bytes: where a TCP stream is cut does not matter to anybody. Datagrams stay whole.
    pub fn parse(packet: &[u8], inner: &Inner, vnet: &Vnet, most: usize) -> Option<Self> {
        let transport = usize::from(vnet.csum_start);
        let is_v4 = inner.source.is_ipv4();
        if !vnet.needs_csum || transport < inner.header_len || inner.is_fragment {
            return None;
        }
        let header = packet.get(transport..)?;
        let (kind, transport_len, field) = match vnet.gso {
            Gso::None => return None,
            Gso::Tcp4 | Gso::Tcp6 => {
                let tcp: &[u8; TCP_HEADER_LEN] = header.first_chunk()?;
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                let length = usize::from(tcp[12] >> 4) * 4;
                if length < TCP_HEADER_LEN {
                    return None;
                }
                (Kind::Tcp { sequence, flags: tcp[13] }, length, 16..18)
            }
            Gso::Udp => (Kind::Udp, UDP_HEADER_LEN, 6..8),
        };
        let header_len = transport + transport_len;
        let payload = inner.length.checked_sub(header_len)?;
        let size = match kind {
            Kind::Tcp { .. } => usize::from(vnet.gso_size).min(most.checked_sub(header_len)?),
            Kind::Udp => usize::from(vnet.gso_size),
        };
        if size == 0 || payload == 0 {
            return None;
        }
        let (ip, header) = (packet.get(..transport)?, header.get(..transport_len)?);
        // The field holds the sum over the pseudo-header (`CHECKSUM_PARTIAL`), whose destination is the
        // final one: where there is a routing header or a source route, that differs from the one in
        // the IP header. Only the length in it has to be replaced (`tcp_gso_segment`).
        let length = low_u16(inner.length - transport);
        let pseudo = checksum::sum(&header[field.clone()]) + word(!length);
        let same = match kind {
            // Ports; acknowledgement, length; window; urgent pointer and options.
            Kind::Tcp { .. } => {
                checksum::sum(&header[..4])
                    + checksum::sum(&header[8..13])
                    + checksum::sum(&header[14..field.start])
                    + checksum::sum(&header[field.end..])
            }
            Kind::Udp => checksum::sum(&header[..4]),
        };
        let id = u16::from_be_bytes([ip[4], ip[5]]);
        // All fields except length, number and checksum.
        let ip_sum = match is_v4 {
            true => [0..2, 6..10, 12..inner.header_len].map(|part| checksum::sum(&ip[part])),
            false => [0; 3],
        };
        Some(Super {
            header_len,
            ip: inner.header_len,
            transport,
            is_v4,
            kind,
            size,
            payload,
            id,
            ip_sum: ip_sum.into_iter().sum(),
            transport_sum: same + pseudo,
        })
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.size)
    }

    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Where the payload of segment `index` is in the packet.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = (index * self.size).min(self.payload);
        let end = (start + self.size).min(self.payload);
        self.header_len + start..self.header_len + end
    }

    /// Writes the headers of segment `index` to the beginning of `out`, which has room for
    /// [`Super::header_len`] bytes. `packet` must be the one that was parsed.
    pub fn write_header(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let range = self.payload(index);
        let offset = range.start - self.header_len;
        let is_last = range.end == self.header_len + self.payload;
        let payload = &packet[range];
        let out = &mut out[..self.header_len];
        out.copy_from_slice(&packet[..self.header_len]);

        let length = self.header_len + payload.len();
        if self.is_v4 {
            let length = low_u16(length);
            let id = self.id.wrapping_add(low_u16(index));
            out[2..4].copy_from_slice(&length.to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = checksum::finish(self.ip_sum + word(length) + word(id));
            out[10..12].copy_from_slice(&sum);
        } else {
            out[4..6].copy_from_slice(&low_u16(length - self.ip).to_be_bytes());
        }

        let transport_len = low_u16(length - self.transport);
        let sum = self.transport_sum + word(transport_len) + checksum::sum(payload);
        let out = &mut out[self.transport..];
        match self.kind {
            Kind::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add(low_u32(offset));
                let mut flags = flags;
                if index > 0 {
                    flags &= !CWR;
                }
                if !is_last {
                    flags &= !(FIN | PSH);
                }
                out[4..8].copy_from_slice(&sequence.to_be_bytes());
                out[13] = flags;
                let sum = sum + double_word(sequence) + word(u16::from(flags));
                out[16..18].copy_from_slice(&checksum::finish(sum));
            }
            Kind::Udp => {
                out[4..6].copy_from_slice(&transport_len.to_be_bytes());
                let sum = udp_checksum(sum + word(transport_len));
                out[6..8].copy_from_slice(&sum);
            }
        }
    }
}

/// Computes the checksum that the kernel left to the device: the field holds the sum over the
/// pseudo-header (`CHECKSUM_PARTIAL`). False when the field is outside of the packet.
pub fn complete_checksum(packet: &mut [u8], vnet: &Vnet) -> bool {
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    let Some(covered) = packet.get_mut(start..) else { return false };
    let sum = checksum::sum(covered);
    let Some(field) = covered.get_mut(offset..offset + 2) else { return false };
    // Of the protocols whose checksum the kernel leaves to a device, UDP is the one that has it at 6.
    let sum = if offset == 6 { udp_checksum(sum) } else { checksum::finish(sum) };
    field.copy_from_slice(&sum);
    true
}

/// Hands out what a packet becomes when nothing is left to the device: its segments, each in parts, or
/// the packet itself with its checksum. Hands out nothing for a packet that does not match its header.
pub fn each(packet: &mut [u8], vnet: &Vnet, mut take: impl FnMut(&[&[u8]])) {
    if vnet.gso == Gso::None {
        if !vnet.needs_csum || complete_checksum(packet, vnet) {
            take(&[packet]);
        }
        return;
    }
    let Some(inner) = Inner::parse(packet) else { return };
    let Some(parts) = Super::parse(packet, &inner, vnet, usize::MAX) else { return };
    let mut header = vec![0; parts.header_len()];
    for index in 0..parts.count() {
        parts.write_header(packet, index, &mut header);
        take(&[&header, &packet[parts.payload(index)]]);
    }
}

/// Zero would mean that there is no checksum, so it is written as its other form (RFC 768).
fn udp_checksum(sum: Sum) -> [u8; 2] {
    match checksum::finish(sum) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    }
}

/// Narrows a number: packets and their parts have at most 65,535 bytes, and sequence numbers wrap.
#[allow(clippy::cast_possible_truncation)]
fn low_u16(value: usize) -> u16 {
    value as u16
}

#[allow(clippy::cast_possible_truncation)]
fn low_u32(value: usize) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::super::partial;
    use super::super::tests::plain_sum;
    use super::*;

    const SOURCE: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const NEXT: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    const LAST: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

    /// An IPv6 header, and extension headers whose first byte (the protocol that follows) is filled in.
    fn v6(extensions: &[(u8, Vec<u8>)], transport: u8, destination: [u8; 16]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, transport, 9];
        header.extend([SOURCE, destination].concat());
        let mut next = 6; // where the number of the next header is
        for (number, bytes) in extensions {
            header[next] = *number;
            next = header.len();
            header.extend(bytes);
            header[next] = transport;
        }
        header
    }

    fn v4(options: &[u8], transport: u8) -> Vec<u8> {
        let length = 20 + options.len();
        let mut header = vec![0x40 | (length / 4).to_le_bytes()[0], 0, 0, 0, 0, 7, 0x40, 0, 9];
        header.extend([transport, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(options);
        header
    }

    fn segment_routing(segments: u8, left: u8) -> Vec<u8> {
        let mut header = vec![0, 2 * segments, 4, left, segments - 1, 0, 0, 0];
        header.extend(LAST);
        (1..segments).for_each(|_| header.extend(NEXT));
        header
    }

    fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> Vec<u8> {
        let mut pseudo = addresses.to_vec();
        pseudo.extend([0, protocol]);
        pseudo.extend(u16::try_from(length).unwrap().to_be_bytes());
        pseudo
    }

    /// The packet as the kernel hands it over; `addresses` are those that its checksum covers.
    fn large(header: &[u8], addresses: &[u8], payload: usize, size: u16) -> (Vec<u8>, Vnet) {
        let mut packet = header.to_vec();
        packet.extend([0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        packet.extend((0..payload).map(|i| (i % 251).to_le_bytes()[0]));
        let length = packet.len();
        let sum = !plain_sum(&pseudo(addresses, 6, length - header.len()));
        packet[header.len() + 16..header.len() + 18].copy_from_slice(&sum.to_be_bytes());
        let (at, counted) = if header[0] >> 4 == 4 { (2, length) } else { (4, length - 40) };
        packet[at..at + 2].copy_from_slice(&u16::try_from(counted).unwrap().to_be_bytes());
        let vnet = Vnet {
            needs_csum: true,
            gso: if header[0] >> 4 == 4 { Gso::Tcp4 } else { Gso::Tcp6 },
            hdr_len: 0,
            gso_size: size,
            csum_start: u16::try_from(header.len()).unwrap(),
            csum_offset: 16,
        };
        (packet, vnet)
    }

    /// Whether the checksum is right for the last host.
    fn holds(segment: &[u8], transport: usize, addresses: &[u8]) -> bool {
        let mut covered = pseudo(addresses, 6, segment.len() - transport);
        covered.extend(&segment[transport..]);
        plain_sum(&covered) == 0
    }

    fn segments(packet: &mut [u8], vnet: &Vnet) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        each(packet, vnet, |parts| segments.push(parts.concat()));
        segments
    }

    /// Headers before TCP, and the addresses that its checksum covers.
    fn routed() -> Vec<(Vec<u8>, Vec<u8>)> {
        let of = |last: [u8; 16]| [SOURCE, last].concat();
        let mut type_2 = vec![0, 2, 2, 1, 0, 0, 0, 0];
        type_2.extend(LAST);
        let hop_by_hop = vec![0, 0, 1, 4, 0, 0, 0, 0];
        let options = vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let authentication = [vec![0, 4], vec![0; 22]].concat();
        // Where no segments are left, the address in the header is the last one.
        vec![
            (v6(&[(43, segment_routing(2, 1))], 6, NEXT), of(LAST)),
            (v6(&[(43, segment_routing(20, 19))], 6, NEXT), of(LAST)),
            (v6(&[(43, segment_routing(2, 0))], 6, LAST), of(LAST)),
            (v6(&[(43, type_2.clone())], 6, NEXT), of(LAST)),
            (v6(&[(0, hop_by_hop), (43, type_2), (60, options)], 6, NEXT), of(LAST)),
            (v6(&[(51, authentication)], 6, LAST), of(LAST)),
            // Loose and strict source routes, before and at their end; a no-operation option first.
            (v4(&[1, 131, 7, 4, 10, 0, 0, 3], 6), vec![10, 0, 0, 1, 10, 0, 0, 3]),
            (v4(&[137, 7, 4, 10, 0, 0, 3, 0], 6), vec![10, 0, 0, 1, 10, 0, 0, 3]),
            (v4(&[131, 7, 8, 10, 0, 0, 3, 0], 6), vec![10, 0, 0, 1, 10, 0, 0, 2]),
            (v4(&[7, 7, 4, 0, 0, 0, 0, 0], 6), vec![10, 0, 0, 1, 10, 0, 0, 2]),
        ]
    }

    #[test]
    fn a_checksum_is_over_the_last_destination() {
        for (header, addresses) in routed() {
            let (mut packet, vnet) = large(&header, &addresses, 5000, 1201);
            let parts = segments(&mut packet, &vnet);
            assert_eq!(parts.len(), 5, "{header:?}");
            for (index, part) in parts.iter().enumerate() {
                assert!(holds(part, header.len(), &addresses), "{index}: {header:?}");
                if header[0] >> 4 == 4 {
                    assert_eq!(plain_sum(&part[..header.len()]), 0);
                }
            }
            let data: Vec<u8> =
                parts.iter().flat_map(|part| part[header.len() + 20..].to_vec()).collect();
            assert_eq!(data, packet[header.len() + 20..]);
        }
    }

    #[test]
    fn a_missing_checksum_is_recognised_behind_all_headers() {
        for (header, addresses) in routed() {
            let (mut packet, vnet) = large(&header, &addresses, 100, 0);
            let inner = Inner::parse(&packet).unwrap();
            let found = partial::vnet(&packet, &inner);
            let expected = Vnet { gso: Gso::None, ..vnet };
            assert_eq!(found, expected, "{header:?}");
            let parts = segments(&mut packet, &found);
            assert!(holds(&parts[0], header.len(), &addresses), "{header:?}");
            assert_eq!(partial::vnet(&parts[0], &inner), Vnet::PLAIN, "it is whole");
        }
    }

    #[test]
    fn no_checksum_is_sought_behind_fragments_and_unknown_headers() {
        let fragment = v6(&[(44, vec![0; 8])], 6, LAST);
        let behind = v6(&[(60, vec![0; 8]), (44, vec![0; 8])], 6, LAST);
        let unknown = v6(&[(43, [vec![0, 2, 9, 1], vec![0; 20]].concat())], 6, LAST);
        for header in [fragment, behind, unknown] {
            let (packet, _) = large(&header, &[SOURCE, LAST].concat(), 100, 0);
            let inner = Inner::parse(&packet).unwrap();
            assert_eq!(partial::vnet(&packet, &inner), Vnet::PLAIN, "{header:?}");
        }
        for options in [[131, 0, 4, 0], [131, 90, 4, 0], [131, 3, 4, 0], [0, 131, 7, 4]] {
            let (packet, _) = large(&v4(&options, 6), &[10, 0, 0, 1, 10, 0, 0, 2], 100, 0);
            let inner = Inner::parse(&packet).unwrap();
            assert!(partial::vnet(&packet, &inner).needs_csum, "that of the header: {options:?}");
        }
    }

    #[test]
    fn segments_fit_the_path() {
        let (packet, vnet) = large(&v4(&[], 6), &[10, 0, 0, 1, 10, 0, 0, 2], 5000, 1432);
        let inner = Inner::parse(&packet).unwrap();
        for (most, count, longest) in [(usize::MAX, 4, 1472), (1472, 4, 1472), (1252, 5, 1252)] {
            let parts = Super::parse(&packet, &inner, &vnet, most).unwrap();
            let length = |index| parts.header_len() + parts.payload(index).len();
            assert_eq!(parts.count(), count);
            assert_eq!((0..count).map(length).max(), Some(longest));
        }
        assert!(Super::parse(&packet, &inner, &vnet, 40).is_none(), "no room for anything");
    }
}
