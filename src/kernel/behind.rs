//! Reads back the elements of the sets that tell apart remotes which share a link.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use netlink_bindings::nftables::IterableSetelemAttrs;

use super::elements::Elements;
use super::entries::{Entry, sets};
use super::words::{SETS_SENDERS, elements};
use crate::engine::host::Admitted;

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
