//! Fragments an IPv4 packet that is longer than the path allows, as `ip_do_fragment` does. Only headers
//! are written; the data after them stays where it is.

use std::ops::Range;

use super::checksum;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// The longest IPv4 header.
pub const MAX_HEADER: usize = 60;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// An option with this bit is repeated in every fragment (RFC 791, 3.1).
const COPIED: u8 = 0x80;

/// One fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    header: [u8; MAX_HEADER],
    header_len: usize,
    start: usize,
    end: usize,
}

impl Fragment {
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len]
    }

    /// The bytes after the header of the whole packet that this fragment contains.
    pub fn data(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Whether a packet that is too long may be fragmented.
pub fn may_be_fragmented(packet: &[u8]) -> bool {
    matches!(packet, [first, _, _, _, _, _, flags, ..]
        if first >> 4 == 4 && u16::from(*flags) << 8 & DONT_FRAGMENT == 0)
}

/// The fragments, of `most` bytes at most, of a packet with this header and this many bytes after it.
/// The packet may be a fragment itself. `None` when there is no room for any data.
pub fn fragments(
    header: &[u8],
    length: usize,
    most: usize,
) -> Option<impl Iterator<Item = Fragment>> {
    // An offset counts units of eight bytes.
    let room = most.checked_sub(header.len())? & !7;
    if room == 0 || header.len() < 20 || header.len() > MAX_HEADER {
        return None;
    }
    let mut first = [0; MAX_HEADER];
    let header_len = header.len();
    first[..header_len].copy_from_slice(header);
    let field = u16::from_be_bytes([header[6], header[7]]);
    let mut others = first;
    only_copied(&mut others[20..header_len]);
    Some((0..length).step_by(room).map(move |start| {
        let end = (start + room).min(length);
        let more = if end < length { MORE_FRAGMENTS } else { field & MORE_FRAGMENTS };
        let eights = low_u16(start / 8);
        let mut header = if start == 0 { first } else { others };
        let total = low_u16(header_len + end - start);
        let offset = field & !(OFFSET | MORE_FRAGMENTS) | more | ((field & OFFSET) + eights);
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&offset.to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(&header[..header_len]));
        header[10..12].copy_from_slice(&sum);
        Fragment { header, header_len, start, end }
    }))
}

/// Blanks the options that only the first fragment carries (`ip_options_fragment`).
fn only_copied(options: &mut [u8]) {
    let mut at = 0;
    while let Some(kind) = options.get(at).copied() {
        let length = match kind {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(0)),
        };
        let Some(option) = options.get_mut(at..at + length).filter(|o| !o.is_empty()) else {
            return; // this is not an option: it is left as it is
        };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += length;
    }
}

/// Narrows a length or an offset of a packet.
#[allow(clippy::cast_possible_truncation)]
fn low_u16(value: usize) -> u16 {
    value as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv4Header, PacketBuilder, defrag::IpDefragPool};
    use proptest::prelude::*;

    use super::*;

    fn packet(options: &[u8], length: usize, flags: u16) -> Vec<u8> {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
        let mut header = Ipv4Header::new(0, 9, IpNumber(253), [1; 4], [2; 4]).unwrap();
        header.identification = 77;
        header.options = options.try_into().unwrap();
        header.set_payload_len(length).unwrap();
        let mut packet = Vec::new();
        header.write(&mut packet).unwrap();
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(&packet));
        packet[10..12].copy_from_slice(&sum);
        packet.extend(payload);
        packet
    }

    fn cut(packet: &[u8], most: usize) -> Vec<Vec<u8>> {
        let header = usize::from(packet[0] & 15) * 4;
        let of = |f: Fragment| [f.header(), &packet[header..][f.data()]].concat();
        fragments(&packet[..header], packet.len() - header, most).unwrap().map(of).collect()
    }

    #[test]
    fn only_ipv4_without_df_may_be_fragmented() {
        assert!(may_be_fragmented(&packet(&[], 8, 0)));
        assert!(may_be_fragmented(&packet(&[], 8, 0x2001)));
        assert!(!may_be_fragmented(&packet(&[], 8, DONT_FRAGMENT)));
        let mut v6 = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(1, 2).write(&mut v6, &[]).unwrap();
        assert!(!may_be_fragmented(&v6));
        assert!(!may_be_fragmented(&[]));
    }

    #[test]
    fn a_fragment_of_a_fragment() {
        let parts = cut(&packet(&[], 100, MORE_FRAGMENTS | 5), 20 + 47);
        let fields: Vec<_> = parts.iter().map(|p| (p.len(), [p[6], p[7]])).collect();
        assert_eq!(fields, [(60, [0x20, 5]), (60, [0x20, 10]), (40, [0x20, 15])]);
        let last = cut(&packet(&[], 50, 5), 60);
        assert_eq!([last[0][6..8].to_vec(), last[1][6..8].to_vec()], [[0x20, 5], [0, 10]]);
    }

    #[test]
    fn options_that_are_not_copied_are_blanked() {
        // Record route (7, not copied), then a router alert (148, copied), and the end.
        let options = [7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0];
        let parts = cut(&packet(&options, 100, 0), 32 + 48);
        assert_eq!(parts[0][20..32], options);
        assert_eq!(parts[1][20..32], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0]);
        for length in [1, 0, 200] {
            let mut wrong = [7, length, 4, 0];
            only_copied(&mut wrong);
            assert_eq!(wrong[1..], [length, 4, 0], "no option is that long");
        }
    }

    #[test]
    fn a_size_without_room_for_data_gives_no_fragments() {
        let packet = packet(&[], 100, 0);
        assert!(fragments(&packet[..20], 100, 27).is_none());
        assert!(fragments(&packet[..20], 100, 28).is_some());
    }

    proptest! {
        #[test]
        fn fragments_are_reassembled_to_the_packet(length in 1usize..4000, most in 28usize..1500) {
            let whole = packet(&[], length, 0);
            let parts = cut(&whole, most);
            let mut pool = IpDefragPool::<(), ()>::new();
            let mut found = None;
            for part in &parts {
                prop_assert!(part.len() <= most);
                let sliced = etherparse::SlicedPacket::from_ip(part).unwrap();
                let (header, _) = Ipv4Header::from_slice(part).unwrap();
                prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
                prop_assert_eq!(header.identification, 77);
                found = pool.process_sliced_packet(&sliced, (), ()).unwrap();
            }
            match found {
                Some(found) => prop_assert_eq!(&found.payload, &whole[20..]),
                None => prop_assert_eq!(&parts, &[whole]),
            }
        }
    }
}
