//! The elements of the sets that tell apart remotes which share a link.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::Ipv4Net;
use netlink_bindings::nftables::IterableSetelemAttrs;

use super::elements::{Elements, Entry, read_key_end, remote_key, sets};
use super::words::{Contents, SET_PORTS, SET_QUOTED, SET_QUOTED_ADDRESSES, SET_SENDERS, elements};
use crate::engine::host::Admitted;

/// Each set with its elements.
pub(super) fn behind(contents: &Contents) -> [(&'static str, Vec<Entry>); 4] {
    let all = || {
        let of_remote = |(remote, networks): (&SocketAddrV4, &BTreeSet<_>)| {
            networks_of(*remote, networks).collect::<Vec<_>>()
        };
        contents.behind.iter().flat_map(of_remote)
    };
    let sender = |(remote, network): (SocketAddrV4, Ipv4Net)| Entry {
        key: with(&remote_key(remote), network.network()),
        end: Some(with(&remote_key(remote), network.broadcast())),
        data: None,
    };
    let port = |(remote, network): (SocketAddrV4, Ipv4Net)| Entry {
        key: with(&remote.ip().octets(), network.network()),
        end: Some(with(&remote.ip().octets(), network.broadcast())),
        data: Some(remote.port().to_be_bytes().into()),
    };
    let quoted = |remote: &SocketAddrV4| Entry::key(remote_key(*remote));
    let address = |address: &Ipv4Addr| Entry::key(address.octets());
    [
        (SET_SENDERS, all().map(sender).collect()),
        (SET_PORTS, all().map(port).collect()),
        (SET_QUOTED, contents.behind.keys().map(quoted).collect()),
        (SET_QUOTED_ADDRESSES, contents.known_addresses.iter().map(address).collect()),
    ]
}

fn networks_of(
    remote: SocketAddrV4,
    networks: &BTreeSet<Ipv4Net>,
) -> impl Iterator<Item = (SocketAddrV4, Ipv4Net)> {
    networks.iter().map(move |network| (remote, *network))
}

fn with(first: &[u8], address: Ipv4Addr) -> Vec<u8> {
    [first, &address.octets()].concat()
}

impl Elements {
    /// The remotes on the shared link that are let in; `None` when the sets contradict each other.
    pub(super) fn admitted_shared(&mut self) -> io::Result<Option<BTreeSet<Admitted>>> {
        let mut behind: BTreeMap<SocketAddrV4, BTreeSet<Ipv4Net>> = BTreeMap::new();
        for (remote, network) in self.senders()? {
            behind.entry(remote).or_default().insert(network);
        }
        let admitted = |(remote, networks): (SocketAddrV4, BTreeSet<Ipv4Net>)| {
            let networks: Arc<[Ipv4Net]> = networks.into_iter().collect();
            Admitted { networks: Some(networks), ..Admitted::direct(remote) }
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

    /// The inner networks of the remotes on a shared link.
    pub(super) fn senders(&mut self) -> io::Result<Vec<(SocketAddrV4, Ipv4Net)>> {
        self.dump(SET_SENDERS, |element| read_sender(&read_entry(element)?))
    }
}

fn read_entry(element: &IterableSetelemAttrs<'_>) -> Option<Entry> {
    let key = element.get_key().ok()?.get_value().ok()?;
    let end = read_key_end(element);
    let data = element.get_data().ok().and_then(|data| data.get_value().ok());
    Some(Entry { key: key.into(), end: end.map(Into::into), data: data.map(Into::into) })
}

fn read_sender(entry: &Entry) -> Option<(SocketAddrV4, Ipv4Net)> {
    let [a, b, c, d, high, low, _, _, first @ ..] = entry.key.first_chunk::<12>()?;
    let [.., last0, last1, last2, last3] = entry.end.as_ref()?.first_chunk::<12>()?;
    let first = u32::from_be_bytes(*first);
    let last = u32::from_be_bytes([*last0, *last1, *last2, *last3]);
    let length = u8::try_from((first ^ last).leading_zeros()).ok()?;
    let network = Ipv4Net::new(first.into(), length).ok()?;
    let port = u16::from_be_bytes([*high, *low]);
    Some((SocketAddrV4::new([*a, *b, *c, *d].into(), port), network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_networks_is_read() {
        for network in ["10.1.2.3/32", "10.0.0.0/8", "0.0.0.0/0", "172.28.0.0/31"] {
            let network: Ipv4Net = network.parse().unwrap();
            let remote = "198.51.100.7:4500".parse().unwrap();
            let contents =
                Contents { behind: [(remote, [network].into())].into(), ..Contents::default() };
            let [(_, senders), ..] = behind(&contents);
            let read: Vec<_> = senders.iter().filter_map(read_sender).collect();
            assert_eq!(read, [(remote, network)]);
        }
    }
}
