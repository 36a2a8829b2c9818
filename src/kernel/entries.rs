//! What our sets have to contain, as the kernel has it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use super::words::{
    Contents, SET_ADDRESSES, SET_ALTERNATES, SET_KNOWN, SET_KNOWN_ADDRESSES, SET_QUOTED,
    SET_QUOTED_ADDRESSES, SET_REMOTES, SETS_PORTS, SETS_SENDERS, parts,
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

/// Each set with its elements: those of a link that all remotes share, or of links of their own.
pub fn sets(contents: &Contents, shared: bool) -> Vec<(&'static str, Vec<Entry>)> {
    let remotes = |remotes: &BTreeSet<SocketAddrV4>| -> Vec<_> {
        remotes.iter().map(|remote| Entry::key(remote_key(*remote))).collect()
    };
    let addresses = |addresses: &BTreeSet<Ipv4Addr>| -> Vec<_> {
        addresses.iter().map(|address| Entry::key(address.octets())).collect()
    };
    let known = (SET_KNOWN, remotes(&contents.known));
    if shared {
        return behind(contents).into_iter().chain([known]).collect();
    }
    let alternate = |(remote, alternate): (&SocketAddrV4, &Ipv4Addr)| {
        Entry::key(remote_key(*remote)).to(alternate.octets())
    };
    vec![
        (SET_REMOTES, remotes(&contents.remotes)),
        (SET_ADDRESSES, addresses(&contents.addresses)),
        (SET_ALTERNATES, contents.alternates.iter().map(alternate).collect()),
        known,
        (SET_KNOWN_ADDRESSES, addresses(&contents.known_addresses)),
    ]
}

/// Each set of a link that all remotes share, with its elements.
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
    let quoted = |remote: &SocketAddrV4| Entry::key(remote_key(*remote));
    let address = |address: &Ipv4Addr| Entry::key(address.octets());
    let senders = SETS_SENDERS
        .into_iter()
        .map(|(length, set)| (set, of_length(length).map(sender).collect()));
    let ports =
        SETS_PORTS.into_iter().map(|(length, set)| (set, of_length(length).map(port).collect()));
    let quoted = [
        (SET_QUOTED, contents.behind.keys().map(quoted).collect()),
        (SET_QUOTED_ADDRESSES, contents.known_addresses.iter().map(address).collect()),
    ];
    senders.chain(ports).chain(quoted).collect()
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
            let wanted = [(set, count), (ports.as_str(), count), (SET_QUOTED, 1)];
            assert_eq!(filled, wanted, "{network}");
        }
    }
}
