//! The header in front of every packet of a TUN device with `IFF_VNET_HDR`: `struct virtio_net_hdr`
//! (linux/virtio_net.h), in the byte order of the machine.

/// The length of this header (`TUNSETVNETHDRSZ`).
pub const LEN: usize = 10;

/// The packet's checksum is yet to be computed, from `csum_start` to the end.
pub const NEEDS_CSUM: u8 = 1;

/// How a packet is to be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    None,
    Tcp4,
    Tcp6,
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP segmentation over IPv4 or IPv6; since Linux 6.2.
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vnet {
    pub needs_csum: bool,
    pub gso: Gso,
    /// The size of the headers that every segment repeats.
    pub hdr_len: u16,
    /// The payload size of each segment.
    pub gso_size: u16,
    /// Where the checksummed part begins.
    pub csum_start: u16,
    /// Where the checksum is stored, counted from `csum_start`.
    pub csum_offset: u16,
}

impl Vnet {
    /// A packet as it is, with nothing left to do.
    pub const PLAIN: Vnet = Vnet {
        needs_csum: false,
        gso: Gso::None,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// `None` for kinds that were not requested (`TUNSETOFFLOAD`).
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let &[flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        Some(Vnet {
            needs_csum: flags & NEEDS_CSUM != 0,
            gso: match gso {
                0 => Gso::None,
                1 => Gso::Tcp4,
                4 => Gso::Tcp6,
                5 => Gso::Udp,
                _ => return None,
            },
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    pub fn bytes(&self) -> [u8; LEN] {
        let gso = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [s0, s1] = self.gso_size.to_ne_bytes();
        let [c0, c1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let flags = if self.needs_csum { NEEDS_CSUM } else { 0 };
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            let header = Vnet {
                needs_csum: true,
                gso,
                hdr_len: 0x0102,
                gso_size: 0x0304,
                csum_start: 0x0506,
                csum_offset: 0x0708,
            };
            assert_eq!(Vnet::parse(&header.bytes()), Some(header));
        }
        assert_eq!(Vnet::PLAIN.bytes(), [0; LEN]);
        // UFO (3) and ECN (0x80) are not requested.
        assert_eq!(Vnet::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Vnet::parse(&[0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
