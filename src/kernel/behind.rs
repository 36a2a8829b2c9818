//! The elements of the sets that tell apart remotes which share a link: changed where they differ, and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use netlink_bindings::nftables::IterableSetelemAttrs;

use super::elements::Elements;
use super::entries::{Change, Entry, Verb, sets};
use super::words::{Contents, SETS_SENDERS, elements};
use crate::engine::host::Admitted;

impl Elements {
    /// Lets exactly these remotes in that share a link. There may be many: those that are let in already stay so
    /// all the time.
    pub(super) fn admit_shared(&mut self, admitted: &BTreeSet<Admitted>) -> io::Result<()> {
        let there = self.contents()?;
        let (mut changes, mut coming) = (Vec::new(), Vec::new());
        for ((set, wanted), (_, there)) in sets(&elements(admitted), true).into_iter().zip(there) {
            let wanted: BTreeSet<Entry> = wanted.into_iter().collect();
            let gone = there.difference(&wanted).cloned().collect();
            changes.push(Change { set, verb: Verb::Delete, elements: gone });
            let come = wanted.difference(&there).cloned().collect();
            coming.push(Change { set, verb: Verb::Add, elements: come });
        }
        changes.extend(coming);
        self.change(changes, &[], &[])?;
        self.let_in.clone_from(admitted);
        Ok(())
    }

    /// The remotes on the shared link that are let in; `None` when the sets contradict each other.
    pub(super) fn admitted_shared(&mut self) -> io::Result<Option<BTreeSet<Admitted>>> {
        let there = self.contents()?;
        let mut behind: BTreeMap<SocketAddrV4, Vec<Ipv4Net>> = BTreeMap::new();
        for (length, name) in SETS_SENDERS {
            let of_length = there.iter().filter(|(set, _)| *set == name);
            let senders = of_length.flat_map(|(_, entries)| entries);
            for (remote, network) in senders.filter_map(|entry| sender(length, &entry.key)) {
                behind.entry(remote).or_default().push(network);
            }
        }
        let admitted = |(remote, parts): (SocketAddrV4, Vec<Ipv4Net>)| Admitted {
            networks: Some(Ipv4Net::aggregate(&parts).into()),
            ..Admitted::direct(remote)
        };
        let admitted: BTreeSet<Admitted> = behind.into_iter().map(admitted).collect();
        let wanted = sets(&elements(&admitted), true).into_iter();
        let is_whole = wanted.zip(there).all(|((_, wanted), (_, there))| {
            wanted.len() == there.len() && wanted.iter().all(|entry| there.contains(entry))
        });
        Ok(Some(admitted).filter(|_| is_whole))
    }

    /// All sets of such a link, in the order of [`sets`], with the elements that are there.
    fn contents(&mut self) -> io::Result<Vec<(&'static str, BTreeSet<Entry>)>> {
        let names = sets(&Contents::default(), true).into_iter();
        names.map(|(set, _)| Ok((set, self.dump(set, read_entry)?))).collect()
    }

    /// The inner networks of the remotes on a shared link, or parts of them.
    pub(super) fn senders(&mut self) -> io::Result<Vec<(SocketAddrV4, Ipv4Net)>> {
        let mut senders = Vec::new();
        for (length, set) in SETS_SENDERS {
            let of_set: Vec<_> = self
                .dump(set, |element| sender(length, element.get_key().ok()?.get_value().ok()?))?;
            senders.extend(of_set);
        }
        Ok(senders)
    }
}

/// The remote and the inner network that are a key of the set for networks of this length.
fn sender(length: u8, key: &[u8]) -> Option<(SocketAddrV4, Ipv4Net)> {
    let [a, b, c, d, high, low, _, _, network @ ..] = *key.first_chunk::<12>()?;
    let port = u16::from_be_bytes([high, low]);
    let remote = SocketAddrV4::new([a, b, c, d].into(), port);
    Some((remote, Ipv4Net::new(network.into(), length).ok()?))
}

fn read_entry(element: &IterableSetelemAttrs<'_>) -> Option<Entry> {
    let key = element.get_key().ok()?.get_value().ok()?;
    let data = element.get_data().ok().and_then(|data| data.get_value().ok());
    Some(Entry { key: key.into(), data: data.map(Into::into) })
}
