//! Large packets that were never segmented. Between containers, or virtual machines of one host, the
//! kernel keeps a large packet whole even when its tunnels carry it: one datagram arrives with some
//! thousand bytes of TCP or UDP inside, and does not say how long its segments are meant to be. It can
//! be received here, but not forwarded as it is: it is longer than any interface allows, and an error
//! about that is useless to its sender, whose own packets were shorter.

use crate::wire::inner::Inner;
use crate::wire::udp::UDP_HEADER_LEN;

use super::checksum;
use super::partial::Transport;
use super::path::LEAST;
use super::segment::TCP_HEADER_LEN;
use super::vnet::{Gso, Vnet};

/// How a packet is to be written so that the kernel can segment it; its checksum is left to the kernel
/// then. `None` for a packet that fits through an interface of `mtu` bytes as it is, and for one that
/// is not a large packet of TCP or, when the length of its datagrams is known (`datagrams`), of UDP.
pub fn vnet(
    packet: &mut [u8],
    inner: &Inner,
    mtu: usize,
    datagrams: Option<usize>,
) -> Option<Vnet> {
    if inner.length <= mtu && datagrams.is_none() {
        return None;
    }
    let transport = Transport::of(packet, inner)?;
    let start = usize::from(transport.start);
    let header = packet.get(start..inner.length)?;
    let (gso, length, size) = match (transport.is_tcp, datagrams) {
        (true, _) => {
            let length = usize::from(header.get(..TCP_HEADER_LEN)?[12] >> 4) * 4;
            // The path after this interface may allow less than the interface does, and every path
            // allows this.
            let size = mtu.min(LEAST).checked_sub(start + length)?;
            (if inner.source.is_ipv4() { Gso::Tcp4 } else { Gso::Tcp6 }, length, size)
        }
        (false, Some(size)) => (Gso::Udp, UDP_HEADER_LEN, size),
        (false, None) => return None,
    };
    let is_partial =
        packet.get(transport.field()) == Some(&checksum::fold(transport.pseudo_header));
    let sum = || checksum::sum(header) + transport.pseudo_header;
    // A wrong checksum would become right.
    if size == 0 || header.len() <= length || !(is_partial || checksum::holds(sum())) {
        return None;
    }
    let partial = checksum::fold(transport.pseudo_header);
    packet.get_mut(transport.field())?.copy_from_slice(&partial);
    Some(Vnet {
        gso,
        hdr_len: u16::try_from(start + length).ok()?,
        gso_size: u16::try_from(size).ok()?,
        ..transport.partial()
    })
}

#[cfg(test)]
mod tests {
    use super::super::split::each;
    use super::super::tests::Plan;
    use super::*;

    fn large(packet: &mut [u8], mtu: usize, datagrams: Option<usize>) -> Option<Vnet> {
        let inner = Inner::parse(packet).unwrap();
        vnet(packet, &inner, mtu, datagrams)
    }

    #[test]
    fn a_large_packet_is_split_into_sizes_that_fit() {
        for plan in [Plan::tcp(8000), Plan { v4: false, ..Plan::tcp(8000) }] {
            let whole = plan.build();
            let headers = whole.len() - 8000;
            for (mtu, most) in [(1472, 1280), (1200, 1200)] {
                let mut packet = whole.clone();
                let found = large(&mut packet, mtu, None).unwrap();
                assert_eq!(usize::from(found.gso_size), most - headers);
                let mut data: Vec<u8> = Vec::new();
                each(&mut packet.clone(), &found, |parts| {
                    assert!(parts.concat().len() <= most);
                    data.extend(&parts.concat()[headers..]);
                });
                assert_eq!(data, plan.payload);
                // The packet may come with a checksum or without.
                assert_eq!(large(&mut packet, mtu, None), Some(found));
            }
        }
    }

    #[test]
    fn datagrams_keep_their_length() {
        let plan = Plan { tcp: false, options: false, ..Plan::tcp(5000) };
        let mut packet = plan.build();
        assert_eq!(large(&mut packet, 1472, None), None);
        let found = large(&mut packet, 1472, Some(1200)).unwrap();
        let mut lengths = Vec::new();
        each(&mut packet, &found, |parts| lengths.push(parts.concat().len() - 28));
        assert_eq!(lengths, [1200, 1200, 1200, 1200, 200]);
    }

    #[test]
    fn packets_that_fit_or_are_damaged_are_not_split() {
        let whole = Plan::tcp(8000).build();
        assert_eq!(large(&mut whole.clone(), 9000, None), None);
        let mut damaged = whole.clone();
        damaged[5000] ^= 1;
        assert_eq!(large(&mut damaged, 1472, None), None);
        let mut fragment = whole;
        fragment[6] = 0x20;
        assert_eq!(large(&mut fragment, 1472, None), None);
    }
}
