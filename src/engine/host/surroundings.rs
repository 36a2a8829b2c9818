//! What the userspace datapath has to know about the host around it: no packet from outside may come
//! from one of the host's own addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::interface::{Address, Interface};
use super::label::is_labelled;
use crate::wire::address::{is_link_local_v6, is_one_host};

/// Facts about the host as it was read last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's addresses, and the broadcast addresses of its networks.
    own: HashSet<IpAddr>,
    /// The tunnels of this and other ipipou processes, by the index of the link, with their addresses.
    tunnels: HashMap<u32, Vec<IpAddr>>,
}

impl Surroundings {
    /// `links` are those that may be ipipou tunnels, `addresses` are all of the host.
    pub fn of(links: &[Interface], addresses: &[Address]) -> Self {
        let mut own = HashSet::new();
        for address in addresses {
            own.insert(address.value.local);
            // The kernel adds this one too (`fib_add_ifaddr` in net/ipv4/fib_frontend.c).
            if let IpNet::V4(net) = address.value.network
                && net.prefix_len() < 31
            {
                own.insert(net.broadcast().into());
            }
        }
        let tunnels = links.iter().filter(|i| is_labelled(i)).map(|i| {
            let on_link = addresses.iter().filter(|a| a.interface == i.index);
            (i.index, on_link.map(|a| a.value.local).collect())
        });
        Surroundings { own, tunnels: tunnels.collect() }
    }

    /// Whether an inner packet from this address may come out of the tunnel, whatever else is allowed.
    ///
    /// The kernel has such a check for IPv4 (`__fib_validate_source`), most of which `rp_filter` 0
    /// turns off, and none for IPv6. It believes router advertisements, redirects and group queries
    /// from link-local addresses, which nobody has in a tunnel.
    #[inline]
    pub fn may_be_inside(&self, source: IpAddr) -> bool {
        is_one_host(source) && !is_link_local_v6(source) && !self.own.contains(&source)
    }

    /// Whether outer packets can come from this address.
    pub fn may_be_remote(&self, remote: IpAddr) -> bool {
        is_one_host(remote) && !self.own.contains(&remote)
    }

    /// Whether a packet to the address `to` that came in by the link with this index came out of a
    /// tunnel and is not for the end of that same tunnel. A host inside a tunnel must not reach the
    /// outside of this or another one; a tunnel in a tunnel ends at the address of the link.
    pub fn came_out_of_tunnel(&self, link: u32, to: IpAddr) -> bool {
        self.tunnels.get(&link).is_some_and(|addresses| !addresses.contains(&to))
    }

    /// Whether this is an address of the host.
    pub fn has(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::engine::host::{InterfaceAddress, InterfaceKind, Traffic};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn around() -> Surroundings {
        let interface = |index, label: Option<&str>| Interface {
            index,
            name: format!("link{index}"),
            up: true,
            loopback: false,
            label: label.map(str::to_owned),
            rp_filter: None,
            forwarding: None,
            promotes: None,
            mtu: 1500,
            master: None,
            queueing: None,
            kind: InterfaceKind::Other,
            traffic: Traffic::default(),
        };
        let mut links = vec![interface(2, None)];
        links.push(interface(3, Some("made by ipipou")));
        links.push(interface(4, Some("made by ipipou, a gateway")));
        links.push(interface(5, Some("made by somebody else")));
        let mut addresses = Vec::new();
        for (interface, address) in [
            (2, "203.0.113.1/24"),
            (2, "2001:db8::1/64"),
            (3, "172.28.0.0/32"),
            (4, "10.9.0.1/24"),
            (5, "10.5.0.1/31"),
        ] {
            let network: IpNet = address.parse().unwrap();
            let value = InterfaceAddress::new(network.addr(), network);
            addresses.push(Address::new(interface, value));
        }
        Surroundings::of(&links, &addresses)
    }

    #[test]
    fn impossible_inner_sources_are_recognised() {
        let around = around();
        let steering = ["fe80::bad", "febf::1", "ff02::1", "::", "::1", "::ffff:10.9.0.2"];
        let nobody = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"];
        let own = ["203.0.113.1", "2001:db8::1", "172.28.0.0", "10.9.0.1", "10.5.0.1"];
        let broadcast = ["203.0.113.255", "10.9.0.255"];
        for source in steering.into_iter().chain(nobody).chain(own).chain(broadcast) {
            assert!(!around.may_be_inside(ip(source)), "{source}");
        }
        for source in ["10.9.0.2", "172.28.0.1", "10.5.0.0", "fd00::2", "2001:db8::2", "240.1.2.3"]
        {
            assert!(around.may_be_inside(ip(source)), "{source}");
        }
    }

    #[test]
    fn possible_remotes_are_recognised() {
        let around = around();
        for remote in ["224.0.0.5", "127.0.0.1", "203.0.113.1", "203.0.113.255", "10.9.0.1", "::1"]
        {
            assert!(!around.may_be_remote(ip(remote)), "{remote}");
        }
        for remote in ["203.0.113.2", "2001:db8::2", "fe80::2"] {
            assert!(around.may_be_remote(ip(remote)), "{remote}");
        }
    }

    #[test]
    fn packets_from_a_tunnel_may_only_be_for_its_own_address() {
        let around = around();
        let came_out = |link, to| around.came_out_of_tunnel(link, ip(to));
        assert!(!came_out(2, "203.0.113.1") && !came_out(5, "203.0.113.1"));
        assert!(came_out(3, "203.0.113.1") && came_out(4, "203.0.113.1"));
        assert!(came_out(4, "172.28.0.0"), "the end of another one");
        assert!(!came_out(3, "172.28.0.0") && !came_out(4, "10.9.0.1"));
    }
}
