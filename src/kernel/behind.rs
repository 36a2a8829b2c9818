//! The elements of the sets that tell apart remotes which share a link.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use netlink_bindings::nftables::IterableSetelemAttrs;

use super::elements::{Elements, Entry, remote_key, sets};
use super::words::{
    Contents, SET_QUOTED, SET_QUOTED_ADDRESSES, SETS_PORTS, SETS_SENDERS, elements, parts,
};
use crate::engine::host::Admitted;

/// Each set with its elements.
pub(super) fn behind(contents: &Contents) -> Vec<(&'static str, Vec<Entry>)> {
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

impl Elements {
    /// The remotes on the shared link that are let in; `None` when the sets contradict each other.
    pub(super) fn admitted_shared(&mut self) -> io::Result<Option<BTreeSet<Admitted>>> {
        let mut behind: BTreeMap<SocketAddrV4, Vec<Ipv4Net>> = BTreeMap::new();
        for (remote, network) in self.senders()? {
            behind.entry(remote).or_default().push(network);
        }
        let admitted = |(remote, parts): (SocketAddrV4, Vec<Ipv4Net>)| Admitted {
            networks: Some(Ipv4Net::aggregate(&parts).into()),
            ..Admitted::direct(remote)
        };
        let admitted: BTreeSet<Admitted> = behind.into_iter().map(admitted).collect();
        for (set, wanted) in sets(&elements(&admitted), true) {
            let there: BTreeSet<Entry> = self.dump(set, read_entry)?;
            if there != wanted.into_iter().collect() {
                return Ok(None);
            }
        }
        Ok(Some(admitted))
    }

    /// The inner networks of the remotes on a shared link, or parts of them.
    pub(super) fn senders(&mut self) -> io::Result<Vec<(SocketAddrV4, Ipv4Net)>> {
        let mut senders = Vec::new();
        for (length, set) in SETS_SENDERS {
            let of_set: Vec<_> = self.dump(set, |element| {
                let key: &[u8; 12] = element.get_key().ok()?.get_value().ok()?.first_chunk()?;
                let [a, b, c, d, high, low, _, _, network @ ..] = *key;
                let port = u16::from_be_bytes([high, low]);
                let remote = SocketAddrV4::new([a, b, c, d].into(), port);
                Some((remote, Ipv4Net::new(network.into(), length).ok()?))
            })?;
            senders.extend(of_set);
        }
        Ok(senders)
    }
}

fn read_entry(element: &IterableSetelemAttrs<'_>) -> Option<Entry> {
    let key = element.get_key().ok()?.get_value().ok()?;
    let data = element.get_data().ok().and_then(|data| data.get_value().ok());
    Some(Entry { key: key.into(), data: data.map(Into::into) })
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
