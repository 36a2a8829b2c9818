//! The addresses that new peers are given when nobody says which.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::PeerSet;
use super::inside::is_for_hosts;

/// One network of each family at most, which free addresses are taken from (`--pool`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pool {
    /// Of IPv4; `None`: the server's network.
    pub v4: Option<Ipv4Net>,
    /// Of IPv6; `None`: new peers have no IPv6 address.
    pub v6: Option<Ipv6Net>,
}

/// A network in which no address is left for a new peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted(pub IpNet);

/// The networks inside the tunnel, and our own addresses in them.
#[derive(Debug, Clone, Copy)]
pub struct Networks {
    /// The server's address.
    pub inner: Ipv4Addr,
    /// The network of all IPv4 addresses.
    pub network: Ipv4Net,
    /// The server's IPv6 address, and the network of all others.
    pub inner6: Option<Ipv6Net>,
}

impl Pool {
    /// The networks that were given.
    pub fn given(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// The first free address of each network: neither the server's nor any peer's, nor behind one, and
    /// neither the first nor the last of the pool or of the server's network, which are no host's.
    ///
    /// # Errors
    /// Names the network that has none.
    pub fn free(&self, peers: &PeerSet, networks: &Networks) -> Result<Vec<IpAddr>, Exhausted> {
        let v4 = IpNet::V4(self.v4.unwrap_or(networks.network.trunc()));
        let all = [v4].into_iter().chain(self.v6.map(IpNet::V6));
        all.map(|pool| first_free(pool, peers, networks).ok_or(Exhausted(pool))).collect()
    }
}

fn first_free(pool: IpNet, peers: &PeerSet, networks: &Networks) -> Option<IpAddr> {
    let all = || peers.peers().iter();
    let taken: BTreeSet<IpAddr> = all()
        .flat_map(|peer| {
            let ours = peer.old().and_then(|old| old.server_address).map(IpAddr::V4);
            peer.addresses.iter().copied().chain(ours)
        })
        .collect();
    let behind: Vec<IpNet> = all().flat_map(|peer| peer.routes.iter().copied()).collect();
    let network = match (pool, networks.inner6) {
        (IpNet::V4(_), _) => IpNet::V4(networks.network.trunc()),
        (IpNet::V6(_), own) => IpNet::V6(own?.trunc()),
    };
    let is_ours = |address: IpAddr| {
        address == networks.inner || networks.inner6.is_some_and(|own| address == own.addr())
    };
    let is_free = |address: IpAddr| {
        is_for_hosts(address, pool)
            && is_for_hosts(address, network)
            && !is_ours(address)
            && !taken.contains(&address)
    };
    let (mut at, last) = (bits(pool.network()), bits(pool.broadcast()));
    while at <= last {
        let address = address(at, pool)?;
        let next = match behind.iter().find(|network| network.contains(&address)) {
            Some(network) => bits(network.broadcast()), // there may be 2^64 of them
            None if is_free(address) => return Some(address),
            None => at,
        };
        at = next.checked_add(1)?;
    }
    None
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address with these bits, of the family of `like`.
fn address(bits: u128, like: IpNet) -> Option<IpAddr> {
    match like {
        IpNet::V4(_) => Some(Ipv4Addr::from_bits(u32::try_from(bits).ok()?).into()),
        IpNet::V6(_) => Some(Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, SourceFile, parse};
    use super::*;
    use crate::auth::{SharedSecret, Signer, key_text};

    const NETWORKS: &str = "10.8.0.1/24 fd00:8::1/64";

    fn networks(text: &str) -> Networks {
        let (v4, v6) = text.split_once(' ').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
        let v4: Ipv4Net = v4.parse().unwrap();
        let inner6 = v6.map(|v6| v6.parse().unwrap());
        Networks { inner: v4.addr(), network: v4, inner6 }
    }

    /// Peers with these addresses; a network is behind the peer before it.
    fn peers(of: &str, networks: &Networks) -> PeerSet {
        let secret = SharedSecret::new(Vec::new());
        let mut text = String::new();
        for (number, peer) in of.split_whitespace().enumerate() {
            let key = Signer::new(&[u8::try_from(number).unwrap(); 32], secret.clone()).public();
            let (address, route) = peer.split_once('+').unwrap_or((peer, ""));
            text += &format!("[peer.p{number}]\npublic-key = \"{}\"\n", key_text(&key));
            text += &format!("address = \"{address}\"\n");
            if !route.is_empty() {
                text += &format!("route = \"{route}\"\n");
            }
        }
        let context = Context {
            own_public_key: None,
            port: None,
            inner: networks.inner,
            network: networks.network,
            inner6: networks.inner6,
            default_secret: &secret,
            read_secret: &|_| Err(String::new()),
        };
        parse(&[SourceFile { name: "f".to_owned(), text }], &context).unwrap()
    }

    fn pool(text: &str) -> Pool {
        let mut pool = Pool::default();
        for network in text.split(',').filter(|text| !text.is_empty()) {
            match network.parse().unwrap() {
                IpNet::V4(network) => pool.v4 = Some(network),
                IpNet::V6(network) => pool.v6 = Some(network),
            }
        }
        pool
    }

    fn free(from: &str, of: &str) -> String {
        let networks = networks(NETWORKS);
        match pool(from).free(&peers(of, &networks), &networks) {
            Ok(free) => free.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(Exhausted(network)) => format!("nothing in {network}"),
        }
    }

    #[test]
    fn the_first_free_address_is_nobodys_and_a_hosts() {
        for (from, of, expected) in [
            ("", "", "10.8.0.2"),
            ("", "10.8.0.2 10.8.0.4", "10.8.0.3"),
            ("10.8.0.0/24", "10.8.0.2", "10.8.0.3"),
            ("10.8.0.0/29", "10.8.0.3", "10.8.0.2"),
            ("10.8.0.64/26", "10.8.0.2", "10.8.0.65"),
            ("10.8.0.64/26", "10.8.0.65+10.8.0.66/31", "10.8.0.68"),
            ("10.8.0.1/32", "", "nothing in 10.8.0.1/32"),
            ("10.8.0.9/32", "", "10.8.0.9"),
            ("10.8.0.9/32", "10.8.0.9", "nothing in 10.8.0.9/32"),
            // First and last of the server's network, or of the pool, are no host's.
            ("10.8.0.254/31", "10.8.0.254", "nothing in 10.8.0.254/31"),
            ("10.8.0.0/31", "", "nothing in 10.8.0.0/31"),
            ("10.8.0.8/30", "10.8.0.9 10.8.0.10", "nothing in 10.8.0.8/30"),
            ("10.8.0.128/25,fd00:8::/64", "", "10.8.0.129 fd00:8::2"),
            ("10.8.0.128/25,fd00:8::a:0/112", "fd00:8::a:1", "10.8.0.129 fd00:8::a:2"),
            ("fd00:8::/64", "10.8.0.2", "10.8.0.3 fd00:8::2"),
        ] {
            assert_eq!(free(from, of), expected, "{from} beside {of}");
        }
    }

    #[test]
    fn a_large_network_behind_a_peer_is_stepped_over_at_once() {
        let behind = "10.8.0.2 fd00:8::9:2+fd00:8::10:0:0/93";
        assert_eq!(free("fd00:8::10:0:0/92", behind), "10.8.0.3 fd00:8::18:0:0");
        assert_eq!(free("fd00:8::10:0:0/96", behind), "nothing in fd00:8::10:0:0/96");
    }
}
