//! A large packet of the TUN device, taken apart into the segments that go over the wire: what the
//! kernel's `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment` would have done.
//!
//! Only headers are written. Payloads stay where they were read to, and are sent from there.

use std::ops::Range;

use crate::wire::inner::Inner;
use crate::wire::udp::UDP_HEADER_LEN;

use super::checksum::{self, Sum, double_word, word};
use super::segment::{PSH, TCP_HEADER_LEN};
use super::vnet::{Gso, Vnet};

/// Longest headers that are repeated: IPv4 and TCP with all their options have 120 bytes; the rest
/// is for IPv6 extension headers.
pub const MAX_HEADER: usize = 256;

const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

/// A packet that is to be taken apart.
pub struct Super {
    /// The headers with their changing fields zeroed.
    template: [u8; MAX_HEADER],
    header_len: usize,
    /// Where TCP or UDP begins.
    transport: usize,
    is_v4: bool,
    kind: Kind,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Payload bytes of all.
    payload: usize,
    id: u16,
    /// Sum over the template's IPv4 header.
    ip_sum: Sum,
    /// Sum over the template's TCP or UDP header, and over the pseudo-header but for the length.
    transport_sum: Sum,
}

enum Kind {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl Super {
    /// `None` for a packet that is not what the header says.
    pub fn parse(packet: &[u8], inner: &Inner, vnet: &Vnet) -> Option<Self> {
        let transport = usize::from(vnet.csum_start);
        let is_v4 = inner.source.is_ipv4();
        if transport < inner.header_len || inner.is_fragment {
            return None;
        }
        let (protocol, kind, transport_len) = match vnet.gso {
            Gso::None => return None,
            Gso::Tcp4 | Gso::Tcp6 => {
                let tcp: &[u8; TCP_HEADER_LEN] = packet.get(transport..)?.first_chunk()?;
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                let length = usize::from(tcp[12] >> 4) * 4;
                if length < TCP_HEADER_LEN {
                    return None;
                }
                (libc::IPPROTO_TCP, Kind::Tcp { sequence, flags: tcp[13] }, length)
            }
            Gso::Udp => (libc::IPPROTO_UDP, Kind::Udp, UDP_HEADER_LEN),
        };
        let header_len = transport + transport_len;
        let size = usize::from(vnet.gso_size);
        let payload = inner.length.checked_sub(header_len)?;
        if header_len > MAX_HEADER || size == 0 || payload == 0 {
            return None;
        }
        let mut template = [0; MAX_HEADER];
        template[..header_len].copy_from_slice(packet.get(..header_len)?);
        let id = u16::from_be_bytes([template[4], template[5]]);
        let addresses = if is_v4 {
            template[2..6].fill(0);
            template[10..12].fill(0);
            12..20
        } else {
            template[4..6].fill(0);
            8..40
        };
        match kind {
            Kind::Tcp { .. } => {
                template[transport + 4..transport + 8].fill(0);
                template[transport + 13] = 0;
                template[transport + 16..transport + 18].fill(0);
            }
            Kind::Udp => template[transport + 4..transport + 8].fill(0),
        }
        let protocol = u8::try_from(protocol).ok()?;
        Some(Super {
            header_len,
            transport,
            is_v4,
            kind,
            size,
            payload,
            id,
            ip_sum: checksum::sum(&template[..inner.header_len]),
            transport_sum: checksum::sum(&template[transport..header_len])
                + checksum::pseudo_header(&template[addresses], protocol, 0),
            template,
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
    /// [`Super::header_len`] bytes.
    pub fn write_header(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let range = self.payload(index);
        let offset = range.start - self.header_len;
        let is_last = range.end == self.header_len + self.payload;
        let payload = &packet[range];
        let out = &mut out[..self.header_len];
        out.copy_from_slice(&self.template[..self.header_len]);

        let length = low_u16(self.header_len + payload.len());
        if self.is_v4 {
            let id = self.id.wrapping_add(low_u16(index));
            out[2..4].copy_from_slice(&length.to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = checksum::finish(self.ip_sum + word(length) + word(id));
            out[10..12].copy_from_slice(&sum);
        } else {
            let length = low_u16(self.header_len + payload.len() - 40);
            out[4..6].copy_from_slice(&length.to_be_bytes());
        }

        let transport_len = low_u16(self.header_len - self.transport + payload.len());
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
/// pseudo-header (`CHECKSUM_PARTIAL`). False when it is outside of the packet.
pub fn complete_checksum(packet: &mut [u8], vnet: &Vnet) -> bool {
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    let Some(covered) = packet.get_mut(start..) else { return false };
    let sum = checksum::sum(covered);
    let Some(field) = covered.get_mut(offset..offset + 2) else { return false };
    // Of the protocols that the kernel leaves to a device, UDP has its checksum at 6.
    let sum = if offset == 6 { udp_checksum(sum) } else { checksum::finish(sum) };
    field.copy_from_slice(&sum);
    true
}

/// Zero means that there is none, and is written as its other form (RFC 768).
fn udp_checksum(sum: Sum) -> [u8; 2] {
    match checksum::finish(sum) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    }
}

/// Packets and what is in them have at most 65,535 bytes, and sequence numbers wrap.
#[allow(clippy::cast_possible_truncation)]
fn low_u16(value: usize) -> u16 {
    value as u16
}

#[allow(clippy::cast_possible_truncation)]
fn low_u32(value: usize) -> u32 {
    value as u32
}
