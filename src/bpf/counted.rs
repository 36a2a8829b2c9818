//! What the peers of a tunnel sent and got, however often the maps are made again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;

use crate::engine::host::{FastPath, Traffic};

/// What was carried.
#[derive(Default, Clone)]
pub struct Counted {
    /// The peers, by their first networks, which they keep when they move.
    pub peers: BTreeMap<Ipv4Net, CountedPeer>,
    /// By the numbers of the peers.
    pub traffic: Vec<Traffic>,
    /// Of those that have no number any more, by the index of the link that they were behind.
    pub gone: BTreeMap<u32, Traffic>,
}

/// A peer whose packets are counted.
#[derive(Clone, Copy)]
pub struct CountedPeer {
    pub id: u32,
    /// Index of the interface that it was last behind.
    pub link: u32,
    /// Where it was last.
    pub remote: SocketAddrV4,
}

impl Counted {
    pub fn of(&self, peer: &CountedPeer) -> Traffic {
        let id = usize::try_from(peer.id).ok();
        id.and_then(|id| self.traffic.get(id)).copied().unwrap_or_default()
    }

    /// What goes on being counted for these: the peers have new numbers, and of all who went only the sums
    /// stay, so that it does not grow with everybody who ever came.
    pub fn among(&self, wanted: &FastPath) -> Self {
        let firsts = wanted.peers.values().filter_map(|peer| peer.networks.first());
        let stays: BTreeSet<&Ipv4Net> = firsts.collect();
        // Nobody has the number 0.
        let mut after = Counted {
            traffic: vec![Traffic::default()],
            gone: self.gone.clone(),
            ..Self::default()
        };
        for (first, peer) in &self.peers {
            let traffic = self.of(peer);
            match (stays.contains(first), u32::try_from(after.traffic.len())) {
                (true, Ok(id)) => {
                    after.traffic.push(traffic);
                    after.peers.insert(*first, CountedPeer { id, ..*peer });
                }
                (false, _) | (true, Err(_)) => {
                    *after.gone.entry(peer.link).or_default() += traffic;
                }
            }
        }
        after.gone.retain(|link, _| wanted.links.contains(link));
        after
    }

    /// What each link carried.
    pub fn by_link(&self) -> BTreeMap<u32, Traffic> {
        let mut carried = self.gone.clone();
        for peer in self.peers.values() {
            *carried.entry(peer.link).or_default() += self.of(peer);
        }
        carried
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::engine::host::{FastPathEnds, FastPeer, LinkHeader, Takes};

    const LINK: u32 = 7;

    fn one(packets: u64) -> Traffic {
        Traffic { rx_packets: packets, ..Traffic::default() }
    }

    fn network(n: u32) -> Ipv4Net {
        Ipv4Net::from(Ipv4Addr::from(0x0a08_0000 + n))
    }

    fn with(peers: impl Iterator<Item = u32>, links: &[u32]) -> FastPath {
        let peer = |n| FastPeer { networks: [network(n)].into(), link: LINK, uplink: 2, mtu: 1472 };
        let remote = |n| SocketAddrV4::new(Ipv4Addr::from(0xc000_0200 + n), 10_000);
        let ends = FastPathEnds {
            outer: Ipv4Addr::LOCALHOST,
            port: 10_000,
            mark: 0,
            time_to_live: 64,
            takes: Takes::All,
        };
        FastPath {
            ends,
            uplinks: [(2, LinkHeader::Ethernet)].into(),
            links: links.iter().copied().collect(),
            peers: Arc::new(peers.map(|n| (remote(n), peer(n))).collect()),
            except: BTreeSet::new(),
        }
    }

    /// As the maps do: each new peer has the next number, and one packet.
    fn count(before: Counted, path: &FastPath) -> Counted {
        let mut after = before;
        for (remote, peer) in &*path.peers {
            let id = u32::try_from(after.traffic.len()).unwrap();
            let there = CountedPeer { id, link: peer.link, remote: *remote };
            if after.peers.insert(peer.networks[0], there).is_none() {
                after.traffic.push(one(1));
            }
        }
        after
    }

    #[test]
    fn who_went_takes_no_room_and_stays_in_the_sum_of_its_link() {
        let mut counted = Counted::default();
        for round in 0..20 {
            let path = with(100 * round..100 * (round + 1), &[LINK]);
            counted = count(counted.among(&path), &path);
            assert_eq!((counted.peers.len(), counted.traffic.len()), (100, 101));
        }
        assert_eq!(counted.by_link(), [(LINK, one(2000))].into());
    }

    #[test]
    fn who_stays_goes_on_being_counted() {
        let counted = count(Counted::default().among(&with(0..0, &[LINK])), &with(1..4, &[LINK]));
        let after = counted.among(&with(3..5, &[LINK]));
        assert_eq!(after.peers.keys().collect::<Vec<_>>(), [&network(3)]);
        assert_eq!(after.of(&after.peers[&network(3)]), one(1));
        assert_eq!(after.peers[&network(3)].id, 1);
    }

    #[test]
    fn a_link_that_is_gone_is_forgotten() {
        let path = with(1..4, &[LINK]);
        let counted = count(Counted::default().among(&path), &path);
        assert_eq!(counted.among(&with(0..0, &[8])).by_link(), BTreeMap::new());
    }
}
