//! The interfaces that a reading found. There may be thousands, of which each event concerns a few: these
//! are looked up, and not looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::interface::{Interface, InterfaceKind, IpipLink};

/// Interfaces, in the order of their indexes, which are looked up by index, by name, and by remote.
#[derive(Debug, Clone, Default)]
pub struct Interfaces {
    /// Shared: from one reading to the next few change.
    all: BTreeMap<u32, Arc<Interface>>,
    by_name: BTreeMap<u128, u32>,
    /// The `ipip` links.
    by_remote: BTreeSet<(Ipv4Addr, u32)>,
}

impl Interfaces {
    /// All of them, in the order of their indexes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Interface> {
        self.all.values().map(Arc::as_ref)
    }

    /// The one of this index (`ifi_index` of rtnetlink(7)).
    pub fn at(&self, index: u32) -> Option<&Interface> {
        self.all.get(&index).map(Arc::as_ref)
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<&Interface> {
        let index = self.by_name.get(&key(name))?;
        self.at(*index).filter(|interface| interface.name == name)
    }

    /// The `ipip` links with this remote; 0.0.0.0 is that of links that take from any.
    pub fn ipip_to(&self, remote: Ipv4Addr) -> impl Iterator<Item = (&Interface, IpipLink)> {
        let alike = self.by_remote.range((remote, 0)..=(remote, u32::MAX));
        alike.filter_map(|(_, index)| match self.at(*index)? {
            interface @ Interface { kind: InterfaceKind::Ipip(link), .. } => {
                Some((interface, *link))
            }
            Interface { kind: InterfaceKind::Tun | InterfaceKind::Other, .. } => None,
        })
    }

    /// Adds one, or exchanges that of its index.
    pub fn insert(&mut self, interface: impl Into<Arc<Interface>>) {
        let interface = interface.into();
        self.remove(interface.index);
        self.by_name.insert(key(&interface.name), interface.index);
        if let InterfaceKind::Ipip(link) = interface.kind {
            self.by_remote.insert((link.remote, interface.index));
        }
        self.all.insert(interface.index, interface);
    }

    /// Removes the one of this index.
    pub fn remove(&mut self, index: u32) -> Option<Arc<Interface>> {
        let gone = self.all.remove(&index)?;
        let name = key(&gone.name);
        // One that has its name since, in a reading of both, keeps it.
        if self.by_name.get(&name) == Some(&index) {
            self.by_name.remove(&name);
        }
        if let InterfaceKind::Ipip(link) = gone.kind {
            self.by_remote.remove(&(link.remote, index));
        }
        Some(gone)
    }

    /// Changes the one of this index.
    pub fn change(&mut self, index: u32, change: impl FnOnce(&mut Interface)) {
        if let Some(mut interface) = self.remove(index) {
            change(Arc::make_mut(&mut interface));
            self.insert(interface);
        }
    }

    /// Takes over the counters of a later reading of the same interfaces.
    pub fn take_traffic(&mut self, later: &Interfaces) {
        for (then, now) in self.all.values_mut().zip(later.iter()) {
            if then.traffic != now.traffic {
                Arc::make_mut(then).traffic = now.traffic;
            }
        }
    }
}

/// The rest follows from `all`.
impl PartialEq for Interfaces {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for Interfaces {}

impl<T: Into<Arc<Interface>>> Extend<T> for Interfaces {
    fn extend<I: IntoIterator<Item = T>>(&mut self, interfaces: I) {
        interfaces.into_iter().for_each(|interface| self.insert(interface));
    }
}

impl<T: Into<Arc<Interface>>> FromIterator<T> for Interfaces {
    fn from_iter<I: IntoIterator<Item = T>>(interfaces: I) -> Self {
        let mut all = Interfaces::default();
        all.extend(interfaces);
        all
    }
}

/// A name in the form that it is looked up in: a number, as `IFNAMSIZ` in linux/if.h allows. Longer ones do
/// not exist.
fn key(name: &str) -> u128 {
    let mut key = [0; size_of::<u128>()];
    key.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    u128::from_be_bytes(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::{Encapsulation, Traffic};

    fn interface(index: u32, name: &str, remote: Option<[u8; 4]>) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            up: true,
            loopback: false,
            label: None,
            rp_filter: None,
            forwarding: None,
            promotes: None,
            mtu: 1500,
            master: None,
            queueing: None,
            kind: remote.map_or(InterfaceKind::Other, |remote| InterfaceKind::Ipip(link(remote))),
            traffic: Traffic::default(),
        }
    }

    fn link(remote: [u8; 4]) -> IpipLink {
        IpipLink {
            local: Ipv4Addr::LOCALHOST,
            remote: remote.into(),
            bound_to: None,
            ttl: 0,
            path_mtu_discovery: true,
            mark: 0,
            encapsulation: Encapsulation::NoneOrOther,
        }
    }

    fn to(interfaces: &Interfaces, remote: [u8; 4]) -> Vec<u32> {
        interfaces.ipip_to(remote.into()).map(|(interface, _)| interface.index).collect()
    }

    const HERE: [u8; 4] = [192, 0, 2, 7];
    const THERE: [u8; 4] = [192, 0, 2, 8];

    #[test]
    fn they_are_found_by_index_name_and_remote() {
        let mut all: Interfaces = [
            interface(9, "ipip9", Some(HERE)),
            interface(2, "eth0", None),
            interface(5, "ipip5", Some(HERE)),
        ]
        .into_iter()
        .collect();
        assert_eq!(all.iter().map(|i| i.index).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(all.at(9).unwrap().name, "ipip9");
        assert_eq!(all.named("eth0").unwrap().index, 2);
        assert_eq!((all.at(3), all.named("eth"), all.named("eth01")), (None, None, None));
        assert_eq!((to(&all, HERE), to(&all, THERE)), (vec![5, 9], vec![]));

        all.change(5, |i| {
            (i.name, i.kind) = ("moved".to_owned(), InterfaceKind::Ipip(link(THERE)))
        });
        assert_eq!((all.named("moved").unwrap().index, all.named("ipip5")), (5, None));
        assert_eq!((to(&all, HERE), to(&all, THERE)), (vec![9], vec![5]));

        all.insert(interface(9, "other", None));
        assert_eq!((all.named("other").unwrap().index, all.named("ipip9")), (9, None));
        assert_eq!(to(&all, HERE), Vec::<u32>::new());
        assert!(all.remove(5).is_some() && all.remove(5).is_none());
        assert_eq!((all.named("moved"), to(&all, THERE)), (None, vec![]));
    }

    /// One was renamed to a name of before while the host was read.
    #[test]
    fn two_of_one_name_do_not_lose_each_other() {
        let mut all: Interfaces =
            [interface(2, "eth0", None), interface(3, "eth0", None)].into_iter().collect();
        all.remove(2);
        assert_eq!(all.named("eth0").unwrap().index, 3);
    }

    #[test]
    fn counters_are_taken_over_without_what_else_changed() {
        let mut before: Interfaces = [interface(2, "eth0", None)].into_iter().collect();
        let mut now = before.clone();
        now.change(2, |i| i.traffic.rx_packets = 7);
        assert_ne!(before, now);
        before.take_traffic(&now);
        assert_eq!(before, now);
        now.change(2, |i| (i.mtu, i.traffic.rx_packets) = (1400, 8));
        before.take_traffic(&now);
        assert_ne!(before, now);
    }
}
