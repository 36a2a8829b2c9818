//! The inner addresses that one remote may send from.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::engine::networks::Networks;

/// Up to this many are looked at one after the other. With a table of its own, each of thousands of
/// remotes would take a kilobyte.
const A_FEW: usize = 8;

/// Its networks.
#[derive(Debug)]
pub enum Sources {
    Few(Arc<[IpNet]>),
    Many(Box<Networks<()>>),
}

impl Sources {
    pub fn of(networks: &Arc<[IpNet]>) -> Self {
        if networks.len() <= A_FEW {
            return Sources::Few(Arc::clone(networks));
        }
        let mut many = Networks::default();
        networks.iter().for_each(|network| many.insert(*network, ()));
        Sources::Many(Box::new(many))
    }

    /// Whether an address is in one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        match self {
            Sources::Few(networks) => networks.iter().any(|network| network.contains(&address)),
            Sources::Many(networks) => networks.get(address).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_networks_contain_the_same() {
        let own = ["10.1.0.0/16", "10.2.3.4/32", "fd00:1::/64", "192.0.2.9/24"];
        let few: Vec<IpNet> = own.iter().map(|net| net.parse().unwrap()).collect();
        let more = (0..20).map(|n| format!("172.20.{n}.0/24").parse().unwrap());
        let many: Vec<IpNet> = few.iter().copied().chain(more).collect();
        let (few, many) = (Sources::of(&few.into()), Sources::of(&many.into()));
        assert!(matches!((&few, &many), (Sources::Few(_), Sources::Many(_))));
        let in_one = ["10.1.255.255", "10.2.3.4", "fd00:1::ffff", "192.0.2.1"];
        let in_none = ["10.2.3.5", "10.0.0.1", "fd00:2::1", "::ffff:10.1.0.1", "192.0.3.9"];
        let contain = |address: &str| {
            let address = address.parse().unwrap();
            assert_eq!(few.contain(address), many.contain(address), "{address}");
            few.contain(address)
        };
        assert!(in_one.into_iter().all(contain));
        assert!(!in_none.into_iter().any(contain));
    }
}
