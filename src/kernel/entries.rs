//! What our sets have to contain, as the kernel has it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use super::words::{
    Contents, SET_ADDRESSES, SET_ALTERNATES, SET_GATEWAYS, SET_KNOWN, SET_KNOWN_ADDRESSES,
    SET_QUOTED, SET_QUOTED_ADDRESSES, SET_REMOTES, SET_SHARING, SETS_PORTS, SETS_SENDERS, parts,
};

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub key: Vec<u8>,
    /// Of a map, its value.
    pub data: Option<Vec<u8>>,
}

impl Entry {
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Entry { key: key.into(), data: None }
    }

    pub fn to(self, data: impl Into<Vec<u8>>) -> Self {
        Entry { data: Some(data.into()), ..self }
    }
}

/// What one message changes in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub set: &'static str,
    pub verb: Verb,
    pub elements: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Delete,
}

/// How many elements a message has at most: what contains them has a length of 16 bits, and they take up to 40
/// bytes.
const MOST_IN_MESSAGE: usize = 1000;
/// How many elements are changed in one transaction. It is sent as a whole: these are up to 160 kB, and a socket may
/// send 208 (`net.core.wmem_default`).
const MOST_AT_ONCE: usize = 4000;

/// The transactions that make these changes, in this order, at least one; what one remote has is nearly always in
/// one.
pub fn transactions(changes: impl IntoIterator<Item = Change>) -> Vec<Vec<Change>> {
    let (mut all, mut room) = (vec![Vec::new()], MOST_AT_ONCE);
    for Change { set, verb, elements } in changes {
        for part in elements.chunks(MOST_IN_MESSAGE) {
            if part.len() > room {
                all.push(Vec::new());
                room = MOST_AT_ONCE;
            }
            room -= part.len();
            if let Some(last) = all.last_mut() {
                last.push(Change { set, verb, elements: part.into() });
            }
        }
    }
    all
}

/// Each set with its elements: those of a link that all remotes share, or of links of their own.
pub fn sets(contents: &Contents, shared: bool) -> Vec<(&'static str, Vec<Entry>)> {
    let remotes = |remotes: &BTreeSet<SocketAddrV4>| -> Vec<_> {
        remotes.iter().map(|remote| Entry::key(remote_key(*remote))).collect()
    };
    let addresses = |addresses: &BTreeSet<Ipv4Addr>| -> Vec<_> {
        addresses.iter().map(|address| Entry::key(address.octets())).collect()
    };
    if shared {
        let remotes = (SET_SHARING, remotes(&contents.known));
        let gateways = (SET_GATEWAYS, addresses(&contents.known_addresses));
        let quoted = (SET_QUOTED, remotes.1.clone());
        let quoted_addresses = (SET_QUOTED_ADDRESSES, gateways.1.clone());
        let by_remote = [remotes, gateways, quoted, quoted_addresses];
        return behind(contents).into_iter().chain(by_remote).collect();
    }
    let alternate = |(remote, alternate): (&SocketAddrV4, &Ipv4Addr)| {
        Entry::key(remote_key(*remote)).to(alternate.octets())
    };
    vec![
        (SET_REMOTES, remotes(&contents.remotes)),
        (SET_ADDRESSES, addresses(&contents.addresses)),
        (SET_ALTERNATES, contents.alternates.iter().map(alternate).collect()),
        (SET_KNOWN, remotes(&contents.known)),
        (SET_KNOWN_ADDRESSES, addresses(&contents.known_addresses)),
    ]
}

/// The sets by which remotes on one link are told apart, with their elements.
fn behind(contents: &Contents) -> Vec<(&'static str, Vec<Entry>)> {
    let all = || {
        let of_remote = |(remote, networks): (&SocketAddrV4, &BTreeSet<Ipv4Net>)| {
            let parts = networks.iter().copied().flat_map(parts);
            parts.map(|network| (*remote, network)).collect::<Vec<_>>()
        };
        contents.behind.iter().flat_map(of_remote)
    };
    let of_length = |length: u8| all().filter(move |(_, network)| network.prefix_len() == length);
    let sender = |(remote, network): (SocketAddrV4, Ipv4Net)| {
        Entry::key([&remote_key(remote)[..], &network.network().octets()].concat())
    };
    let port = |(remote, network): (SocketAddrV4, Ipv4Net)| {
        let to = [remote.ip().octets(), network.network().octets()].concat();
        Entry::key(to).to(remote.port().to_be_bytes())
    };
    let senders = SETS_SENDERS
        .into_iter()
        .map(|(length, set)| (set, of_length(length).map(sender).collect()));
    let ports =
        SETS_PORTS.into_iter().map(|(length, set)| (set, of_length(length).map(port).collect()));
    senders.chain(ports).collect()
}

/// The key of a concatenation: every part takes a whole number of 32-bit words, in network byte order.
pub fn remote_key(remote: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d] = remote.ip().octets();
    let [high, low] = remote.port().to_be_bytes();
    [a, b, c, d, high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_and_every_transaction_can_be_sent() {
        let elements: Vec<Entry> = (0..25_600u32).map(|n| Entry::key(n.to_be_bytes())).collect();
        let of = |set, verb| Change { set, verb, elements: elements.clone() };
        let changes = [of(SET_SHARING, Verb::Delete), of(SET_QUOTED, Verb::Add)];
        let all = transactions(changes.clone());
        let count =
            |one: &Vec<Change>| one.iter().map(|change| change.elements.len()).sum::<usize>();
        assert!(all.iter().all(|one| count(one) <= MOST_AT_ONCE));
        let messages: Vec<&Change> = all.iter().flatten().collect();
        assert!(messages.iter().all(|change| change.elements.len() <= MOST_IN_MESSAGE));
        for wanted in changes {
            let of_set = messages.iter().filter(|change| change.set == wanted.set);
            let sent: Vec<Entry> = of_set.flat_map(|change| change.elements.clone()).collect();
            assert!(sent == wanted.elements);
        }
        // One remote that moves.
        let few = |verb| {
            SETS_SENDERS.map(|(_, set)| Change { set, verb, elements: elements[..9].into() })
        };
        assert_eq!(transactions([few(Verb::Delete), few(Verb::Add)].concat()).len(), 1);
    }

    #[test]
    fn a_network_has_an_element_for_each_part_of_whole_bytes() {
        let at: SocketAddrV4 = "198.51.100.7:4500".parse().unwrap();
        for (network, set, count) in [
            ("10.1.2.3/32", "senders32", 1),
            ("10.1.2.0/25", "senders32", 128),
            ("10.1.2.0/24", "senders24", 1),
            ("10.1.0.0/20", "senders24", 16),
            ("10.0.0.0/8", "senders8", 1),
            ("0.0.0.0/0", "senders8", 256),
        ] {
            let networks = [network.parse().unwrap()].into();
            let contents = Contents { behind: [(at, networks)].into(), ..Contents::default() };
            let filled = behind(&contents).into_iter().filter(|(_, all)| !all.is_empty());
            let filled: Vec<_> = filled.map(|(set, all)| (set, all.len())).collect();
            let ports = set.replace("senders", "ports");
            let wanted = [(set, count), (ports.as_str(), count)];
            assert_eq!(filled, wanted, "{network}");
        }
    }
}
