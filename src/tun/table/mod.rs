//! Where inner packets are sent, and from whom they are accepted: the engine's [`PeerTable`] in a form
//! for looking packets up.

mod learned;
mod learning;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::counts::Counts;
use super::sources::Sources;
use crate::engine::host::surroundings::Surroundings;
use crate::engine::host::{PeerTable, RemoteSpec, Traffic};
use crate::engine::networks::Networks;
use learned::LearnedAddresses;

/// The table in which packets are looked up.
#[derive(Debug, Default)]
pub struct Forwarding {
    spec: PeerTable,
    destinations: Networks<SocketAddr>,
    entries: HashMap<SocketAddr, Entry>,
    /// Remotes that reach no other remote.
    isolated: HashSet<SocketAddr>,
    /// Networks of all peers that may come, where some of these reach no other, and whether each does.
    named: Networks<bool>,
    learned: LearnedAddresses,
    around: Surroundings,
    /// Counters of peers whose remote another one has taken, the oldest first: the same change may give them
    /// another remote.
    displaced: VecDeque<(RemoteSpec, Arc<Counts>)>,
}

/// How many peers may be without a remote within one change: one of more than sixteen is made as a whole.
const MOST_DISPLACED: usize = 16;

/// What is kept of one remote.
#[derive(Debug)]
struct Entry {
    sources: Sources,
    counts: Arc<Counts>,
}

/// What is done with an inner packet that came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Deliver,
    /// Deliver it once it is noted ([`Forwarding::learn`]) where the inner address is.
    Learn,
    /// It is from a remote that is not admitted.
    Stranger,
    /// The remote may not send from this inner address.
    WrongSource,
}

impl Forwarding {
    pub fn new(spec: PeerTable) -> Self {
        let mut forwarding = Forwarding::default();
        forwarding.replace(spec);
        forwarding
    }

    pub fn spec(&self) -> &PeerTable {
        &self.spec
    }

    pub fn around(&self) -> &Surroundings {
        &self.around
    }

    /// Takes new facts about the host.
    pub fn surround(&mut self, around: Surroundings) {
        self.around = around;
    }

    /// Replaces the specification. What was learned behind remotes that stay is kept, and so are the
    /// counters of peers that stay.
    pub fn replace(&mut self, spec: PeerTable) {
        let known = self.spec.remotes.keys();
        known.filter(|r| !spec.remotes.contains_key(*r)).for_each(|r| self.learned.forget(*r));
        let counts: Vec<_> =
            spec.remotes.iter().map(|(address, remote)| self.counts_of(*address, remote)).collect();
        self.destinations = Networks::default();
        self.entries.clear();
        self.displaced.clear();
        self.isolated.clear();
        self.named = Networks::default();
        for (network, is_isolated) in spec.named.iter() {
            self.named.insert(*network, *is_isolated);
        }
        for ((address, remote), counts) in spec.remotes.iter().zip(counts) {
            self.index(*address, remote, counts);
        }
        self.spec = spec;
        if self.spec.learn.is_none() {
            self.learned = LearnedAddresses::default();
        }
    }

    /// The counters of a peer that is there already, here or at the remote that it moves from. It is the
    /// same one if it has a network still.
    fn counts_of(&self, address: SocketAddr, remote: &RemoteSpec) -> Arc<Counts> {
        let before = self.spec.remotes.get(&address);
        let is_same = before.is_some_and(|before| {
            before.destinations.is_empty() && remote.destinations.is_empty()
                || before.destinations.iter().any(|net| remote.destinations.contains(net))
        });
        let elsewhere = || {
            let holder = *self.destinations.get_exact(*remote.destinations.first()?)?;
            (self.spec.remotes.get(&holder) == Some(remote)).then_some(holder)
        };
        let holder = if is_same { Some(address) } else { elsewhere() };
        let entry = holder.and_then(|holder| self.entries.get(&holder));
        let displaced = || self.displaced.iter().find(|(spec, _)| spec == remote);
        let counts = entry.map(|entry| &entry.counts);
        counts.or_else(|| displaced().map(|(_, counts)| counts)).cloned().unwrap_or_default()
    }

    /// Keeps the counters of the peer that is at `address`, and nowhere else, where another one comes with
    /// its own.
    fn displace(&mut self, address: SocketAddr, coming: &Arc<Counts>) {
        let Some((spec, entry)) = self.spec.remotes.get(&address).zip(self.entries.get(&address))
        else {
            return;
        };
        let holder = spec.destinations.first().and_then(|net| self.destinations.get_exact(*net));
        if holder != Some(&address) || Arc::ptr_eq(&entry.counts, coming) {
            return;
        }
        if self.displaced.len() >= MOST_DISPLACED {
            self.displaced.pop_front();
        }
        self.displaced.push_back((spec.clone(), Arc::clone(&entry.counts)));
    }

    fn index(&mut self, address: SocketAddr, remote: &RemoteSpec, counts: Arc<Counts>) {
        for network in remote.destinations.iter() {
            self.destinations.insert(*network, address);
        }
        let sources = Sources::of(&remote.sources);
        self.entries.insert(address, Entry { sources, counts });
        if remote.isolated {
            self.isolated.insert(address);
        } else {
            self.isolated.remove(&address);
        }
    }

    /// Adds one remote, or replaces its entry. What was learned behind it is kept.
    pub fn add_remote(&mut self, address: SocketAddr, remote: RemoteSpec) {
        let counts = self.counts_of(address, &remote);
        self.displace(address, &counts);
        self.displaced.retain(|(spec, _)| *spec != remote);
        self.forget_destinations(address);
        self.index(address, &remote, counts);
        self.spec.remotes.insert(address, remote);
    }

    /// Removes one remote, and forgets what was learned behind it. Returns whether it was there.
    pub fn remove_remote(&mut self, address: SocketAddr) -> bool {
        self.forget_destinations(address);
        self.entries.remove(&address);
        self.isolated.remove(&address);
        self.learned.forget(address);
        self.spec.remotes.remove(&address).is_some()
    }

    fn forget_destinations(&mut self, address: SocketAddr) {
        let networks = self.spec.remotes.get(&address).map(|remote| &remote.destinations);
        for network in networks.into_iter().flat_map(|networks| networks.iter()) {
            // It may have gone to another remote already.
            if self.destinations.get_exact(*network) == Some(&address) {
                self.destinations.remove(*network);
            }
        }
    }

    /// The remote that an inner packet to this address is sent to.
    pub fn remote_of(&self, destination: IpAddr) -> Option<SocketAddr> {
        let learned = || {
            let learned = self.learned.get(destination)?;
            self.is_remote(learned.remote).then_some(learned.remote)
        };
        self.destinations.get(destination).copied().or_else(learned)
    }

    /// The counters of a remote that is named.
    pub fn counts(&self, remote: SocketAddr) -> Option<&Arc<Counts>> {
        self.entries.get(&remote).map(|entry| &entry.counts)
    }

    /// What was carried from and to each remote that is named.
    pub fn traffic(&self) -> HashMap<SocketAddr, Traffic> {
        self.entries.iter().map(|(remote, entry)| (*remote, entry.counts.read())).collect()
    }

    /// Whether some peers reach no other peer.
    pub fn isolates(&self) -> bool {
        !self.isolated.is_empty() || !self.spec.named.is_empty()
    }

    /// Whether an inner packet from `source` must not be sent to this remote: it is from another peer, and
    /// one of both reaches nobody but us and what is behind us. The other one may have gone since: its packets
    /// wait in the interface.
    pub fn keeps_apart(&self, source: IpAddr, to: SocketAddr) -> bool {
        let to_isolated = || self.isolated.contains(&to);
        match self.remote_of(source) {
            Some(from) => from != to && (self.isolated.contains(&from) || to_isolated()),
            None => self.named.get(source).is_some_and(|isolated| *isolated || to_isolated()),
        }
    }

    /// Whether this remote is admitted.
    pub fn admits(&self, remote: SocketAddr) -> bool {
        let admits = |spec: &RemoteSpec| self.spec.learn.is_some() || !spec.sources.is_empty();
        self.spec.remotes.get(&remote).is_some_and(admits)
    }

    /// Whether packets from this remote are admitted, or at least its answers.
    pub fn hears(&self, remote: SocketAddr) -> bool {
        self.admits(remote) || self.spec.answering.contains(&remote)
    }

    /// Whether any inner packet is sent to this remote.
    pub fn is_remote(&self, remote: SocketAddr) -> bool {
        let from_anybody = self.spec.learn.as_ref().is_some_and(|learn| learn.from_anybody);
        self.spec.remotes.contains_key(&remote) || (from_anybody && self.learned.is_behind(remote))
    }

    /// Decides about an inner packet from `source` that came from the remote `from`. `now` is the
    /// monotonic clock.
    pub fn judge(&self, from: SocketAddr, source: IpAddr, now: Duration) -> Judgement {
        let sources = self.entries.get(&from).map(|entry| &entry.sources);
        let may_be_inside = self.around.may_be_inside(source);
        if may_be_inside && sources.is_some_and(|sources| sources.contain(source)) {
            return Judgement::Deliver;
        }
        match (sources, &self.spec.learn) {
            (Some(_), None) if self.spec.remotes[&from].sources.is_empty() => Judgement::Stranger,
            (None, None) => Judgement::Stranger,
            (None, Some(learn)) if !learn.from_anybody => Judgement::Stranger,
            (None, Some(_)) if !self.around.may_be_remote(from.ip()) => Judgement::Stranger,
            (_, Some(_)) if may_be_inside => self.judge_learned(from, source, now),
            (Some(_), None) | (_, Some(_)) => Judgement::WrongSource,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::counts::Tally;
    use super::*;

    const ALICE: &str = "192.0.2.1:1000";
    const BOB: &str = "192.0.2.2:1000";

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn remote(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let remotes = [(remote(ALICE), to(&["10.0.0.0/8"])), (remote(BOB), to(&["10.1.0.0/16"]))];
        let table = Forwarding::new(PeerTable { remotes: remotes.into(), ..PeerTable::default() });
        assert_eq!(table.remote_of(ip("10.2.3.4")), Some(remote(ALICE)));
        assert_eq!(table.remote_of(ip("10.1.3.4")), Some(remote(BOB)));
        assert_eq!(table.remote_of(ip("11.1.3.4")), None);
        assert_eq!(table.remote_of(ip("2001:db8::1")), None);
        assert_eq!(table.judge(remote(BOB), ip("10.1.0.1"), at(0)), Judgement::Deliver);
        assert_eq!(table.judge(remote(BOB), ip("10.2.0.1"), at(0)), Judgement::WrongSource);
        assert_eq!(table.judge(remote("192.0.2.3:1"), ip("10.2.0.1"), at(0)), Judgement::Stranger);
    }

    fn to(networks: &[&str]) -> RemoteSpec {
        let networks: Vec<_> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let networks: Arc<[ipnet::IpNet]> = networks.into();
        RemoteSpec { destinations: Arc::clone(&networks), sources: networks, isolated: false }
    }

    #[test]
    fn a_peer_that_moves_takes_its_counters_along_and_the_next_one_there_begins_at_zero() {
        let (alice, bob) = (remote(ALICE), remote(BOB));
        let count = |table: &Forwarding, of| {
            table.counts(of).unwrap().received(Tally { packets: 1, bytes: 20 });
        };
        let packets = |table: &Forwarding, of| table.traffic()[&of].rx_packets;
        let mut table = Forwarding::default();
        table.add_remote(alice, to(&["10.0.0.7/32"]));
        count(&table, alice);
        table.add_remote(bob, to(&["10.0.0.7/32"]));
        table.remove_remote(alice);
        count(&table, bob);
        assert_eq!(packets(&table, bob), 2);
        // It has one more network.
        table.add_remote(bob, to(&["10.0.0.7/32", "10.1.0.0/16"]));
        assert_eq!(packets(&table, bob), 2);
        // All at once: it moves back, and another one has its former place.
        let whole = to(&["10.0.0.7/32", "10.1.0.0/16"]);
        let remotes = [(alice, whole), (bob, to(&["10.0.0.8/32"]))];
        table.replace(PeerTable { remotes: remotes.into(), ..PeerTable::default() });
        assert_eq!((packets(&table, alice), packets(&table, bob)), (2, 0));
    }

    #[test]
    fn peers_that_exchange_their_remotes_keep_their_counters() {
        let remotes = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(remote);
        let peers = ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"];
        let packets = |table: &Forwarding, of| table.traffic()[&of].rx_packets;
        // Where each is in the end; all are put there one after the other, in every order.
        let ends: [[usize; 3]; 3] = [[1, 0, 2], [1, 2, 0], [2, 0, 1]];
        let orders: [[usize; 3]; 6] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for (end, order) in ends.iter().flat_map(|end| orders.map(|order| (end, order))) {
            let mut table = Forwarding::default();
            for (n, peer) in peers.iter().enumerate() {
                table.add_remote(remotes[n], to(&[peer]));
                (0..=n).for_each(|_| {
                    let tally = Tally { packets: 1, bytes: 20 };
                    table.counts(remotes[n]).unwrap().received(tally);
                });
            }
            for n in order {
                table.add_remote(remotes[end[n]], to(&[peers[n]]));
            }
            let counted = [0, 1, 2].map(|n| packets(&table, remotes[end[n]]));
            assert_eq!(counted, [1, 2, 3], "{end:?}, {order:?}");
            assert_eq!(table.remote_of(ip("10.0.0.1")), Some(remotes[end[0]]));
            assert!(table.displaced.is_empty(), "{:?}", table.displaced);
        }
    }

    #[test]
    fn who_is_isolated_reaches_nobody_by_leaving() {
        let (alice, bob) = (remote(ALICE), remote(BOB));
        let net = |net: &str| net.parse().unwrap();
        let named = [(net("10.0.0.7/32"), true), (net("10.0.0.8/32"), false)];
        let isolated = RemoteSpec { isolated: true, ..to(&["10.0.0.7/32"]) };
        let remotes = [(alice, isolated.clone()), (bob, to(&["10.0.0.8/32"]))];
        let spec =
            PeerTable { remotes: remotes.into(), named: named.into(), ..PeerTable::default() };
        let mut table = Forwarding::new(spec);
        let (from_alice, from_bob) = (ip("10.0.0.7"), ip("10.0.0.8"));
        assert!(table.keeps_apart(from_alice, bob) && table.keeps_apart(from_bob, alice));
        table.remove_remote(alice);
        assert!(table.isolates() && table.keeps_apart(from_alice, bob));
        table.add_remote(alice, isolated);
        table.remove_remote(bob);
        assert!(table.keeps_apart(from_bob, alice));
        // We ourselves, and what is behind us.
        assert!(!table.keeps_apart(ip("10.0.0.1"), alice));
        assert!(!table.keeps_apart(ip("192.168.1.1"), alice));
    }

    #[test]
    fn what_is_kept_of_peers_without_a_remote_is_bounded() {
        let mut table = Forwarding::default();
        for n in 0..1000u32 {
            let inside = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
            table.add_remote(remote(ALICE), to(&[&format!("{inside}/32")]));
        }
        assert_eq!(table.displaced.len(), MOST_DISPLACED);
    }
}
