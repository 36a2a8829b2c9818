//! What a tunnel needs of the host around it: routes into it, forwarding, address translation, name
//! servers.
//!
//! Settings of other interfaces are changed only once their former value is in the memory, so that they
//! can be put back, after a crash too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::found::Found;
use super::interface::Interface;
use super::label::is_gateway;
use super::own_addresses::left_alone;
use super::routing::{
    Answers, Family, ForwardingRules, GatewaySpec, PolicyRule, PolicyRuleKind, Route, RouteTarget,
};
use super::wanted::WantedAround;
use crate::engine::config::{DeviceName, GatewayConfig, Masquerade, TunnelConfig};
use crate::engine::memory::Settings;
use crate::engine::networks::v4;

/// The main routing table (`RT_TABLE_MAIN` in linux/rtnetlink.h).
pub const MAIN: u32 = 254;

/// The last one before the rule for the main table (32766), for all of ours. The kernel gives it to the
/// first rule that somebody adds without a priority, and smaller numbers to the next ones
/// (`fib_default_rule_pref` in net/core/fib_rules.c); of rules with the same one, those that were added
/// first are asked first. So none of ours overtakes one of the host's.
const PRIORITY: u32 = 32765;

/// The bits that the marks of all tunnels have in common: the outer packets of one tunnel must not
/// enter another whose outer packets would enter the first.
const COMMON_BITS: u32 = 0xffff_0000;

/// A source is good if the route to it leads out by the interface by which the packet came in
/// (`rp_filter` 1).
const STRICT: u32 = 1;
/// A source is good if any route leads to it (ip-sysctl.rst, `rp_filter` 2).
pub const LOOSE: u32 = 2;

/// The parts of the tunnel, and what is behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    /// Its interfaces.
    pub devices: BTreeSet<DeviceName>,
    /// Its interfaces that are to be removed and are still there.
    pub going: BTreeSet<DeviceName>,
    /// Outer addresses: the peers', and with many peers our own.
    pub outer: BTreeSet<IpAddr>,
    /// The inner networks of the peers.
    pub through: Vec<IpNet>,
    /// Those inner networks to which no address of an interface leads, with the interface to which a
    /// route has to lead, and the outer address of the remote, if others share the interface.
    pub routed: Vec<(IpNet, DeviceName, Option<Ipv4Addr>)>,
    /// The network of addresses that no interface leads to.
    pub unreachable: Option<Ipv4Net>,
    /// The interface by which outer packets leave, or that has our outer address while there is no way to the
    /// server; `None` when that address is gone, too.
    pub uplink: Option<u32>,
}

/// Whether a network contains one of these addresses.
pub fn holds_any(network: &IpNet, addresses: &BTreeSet<IpAddr>) -> bool {
    addresses.range(network.network()..=network.broadcast()).next().is_some()
}

/// What is needed while the tunnel is up.
pub fn wanted(
    tunnel: &TunnelConfig,
    extent: &Extent,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> WantedAround {
    let config = &tunnel.gateway;
    let mut wanted = WantedAround::default();
    if !extent.devices.is_empty() && (config.forward || config.masquerade.is_some()) {
        wanted.forwarding = forwarding(config, extent, found);
        let forwarding = rules(config, extent, &wanted.forwarding, found, before);
        wanted.rules =
            Some(GatewaySpec { forwarding: Some(forwarding), ..no_rules(tunnel, extent) });
    }
    // The index of the interface is known once the interface is there: its routes come with the next
    // reading.
    let index_of = |device: &DeviceName| found.interface(device)?.known_index();
    let via = |destination, index| route_into(tunnel, destination, RouteTarget::Interface(index));
    let routed = extent.routed.iter().filter_map(|(net, device, remote)| {
        let index = index_of(device)?;
        let target = match remote {
            Some(remote) => RouteTarget::Remote(index, *remote),
            None => RouteTarget::Interface(index),
        };
        Some(route_into(tunnel, *net, target))
    });
    let mut routes: Vec<_> = routed.chain(extent.unreachable.map(unreachable)).collect();
    let mut whole = Vec::new();
    if let Some(interface) = extent.devices.iter().find_map(index_of) {
        wanted.name_servers = !config.dns.is_empty();
        let led = config.routes.iter().filter(|net| has_source(tunnel, net));
        let led = led.filter(|net| !is_given(tunnel, net));
        routes.extend(led.map(|net| via(*net, interface)));
        if config.default_route {
            let v4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
            let v6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
            whole.extend(has_source(tunnel, &v4.into()).then(|| via(v4.into(), interface)));
            whole.extend(tunnel.inner6.map(|_| via(v6.into(), interface)));
        }
    }
    // A network that contains a remote must not catch our outer packets.
    let (around, beside): (Vec<_>, Vec<_>) =
        routes.into_iter().partition(|route| holds_any(&route.destination, &extent.outer));
    wanted.routes.extend(beside);
    for route in around.into_iter().chain(whole) {
        wanted.routes.insert(Route { table: config.mark, ..route });
        let family = Family::of(route.destination.addr());
        wanted.policy_rules.extend(full_tunnel(family, config.mark));
    }
    let led: BTreeSet<Family> = wanted.policy_rules.iter().map(|rule| rule.family).collect();
    if !led.is_empty() {
        wanted.loose.extend(strict_uplinks(extent, found, before));
    }
    for family in led {
        let own = left_alone(found, family, &extent.devices, extent.uplink);
        wanted.policy_rules.extend(own.iter().map(|address| from_own(family, *address)));
        if let Some(answers) = forwarded_answers(family, config.mark, own, extent, found) {
            let rules = wanted.rules.get_or_insert_with(|| no_rules(tunnel, extent));
            rules.answers.insert(family, answers);
        }
    }
    wanted
}

/// The route to a network behind a tunnel.
pub fn route_into(tunnel: &TunnelConfig, destination: IpNet, target: RouteTarget) -> Route {
    Route { destination, table: MAIN, target, source: source(tunnel, destination) }
}

/// The unreachable route of a tunnel with many links: it covers addresses to which no link leads.
fn unreachable(network: Ipv4Net) -> Route {
    Route {
        destination: IpNet::V4(network.trunc()),
        table: MAIN,
        target: RouteTarget::Unreachable,
        source: None,
    }
}

/// Our inner address that packets to `destination` should have as their source.
fn source(tunnel: &TunnelConfig, destination: IpNet) -> Option<IpAddr> {
    match destination {
        IpNet::V4(_) => Some(tunnel.inner.into()).filter(|inner: &IpAddr| !inner.is_unspecified()),
        IpNet::V6(_) => tunnel.inner6.map(|net| net.addr().into()),
    }
}

/// Whether packets to `destination` have an address of this host to come from.
fn has_source(tunnel: &TunnelConfig, destination: &IpNet) -> bool {
    !tunnel.inner_from_server || source(tunnel, *destination).is_some()
}

/// Whether the address that the server gave us leads there already.
fn is_given(tunnel: &TunnelConfig, destination: &IpNet) -> bool {
    let own = [IpNet::V4(tunnel.inner_peer)].into_iter().chain(tunnel.inner6.map(IpNet::V6));
    tunnel.inner_from_server && own.into_iter().any(|net| net.contains(destination))
}

fn full_tunnel(family: Family, mark: u32) -> [PolicyRule; 2] {
    let into_tunnel =
        PolicyRuleKind::UnlessMarked { mark: mark & COMMON_BITS, mask: COMMON_BITS, table: mark };
    let rule = |kind| PolicyRule { family, priority: PRIORITY, kind };
    [rule(PolicyRuleKind::MainButDefault), rule(into_tunnel)]
}

fn from_own(family: Family, address: IpAddr) -> PolicyRule {
    PolicyRule { family, priority: PRIORITY, kind: PolicyRuleKind::FromOwn(address) }
}

/// Rules for connections that have another address behind this host, one of its `own` in front. The packets
/// on their way back do not show it, but connection tracking knows. A rule that asks it would turn it on;
/// where it is off, nothing translates addresses, so there is no such rule.
fn forwarded_answers(
    family: Family,
    mark: u32,
    own: BTreeSet<IpAddr>,
    extent: &Extent,
    found: &Found,
) -> Option<Answers> {
    let uplink = extent.uplink.and_then(|index| found.interface_at(index));
    found.tracked.contains(&family).then(|| Answers {
        mark,
        uplink: uplink.map(|interface| interface.name.clone()),
        addresses: own,
    })
}

/// The interface by which outer packets come in, if it checks sources strictly: the check looks up a
/// route back without our mark, finds the tunnel, and drops what the server sends, and what is forwarded to
/// others behind this host. The one that was loosened stays so while it is not known which that is.
fn strict_uplinks(
    extent: &Extent,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> Vec<String> {
    let loosened =
        |interface: &Interface| before.get(&interface.name).is_some_and(|b| b.rp_filter.is_some());
    let is_strict = |interface: &Interface| {
        interface.rp_filter.unwrap_or(0).max(found.rp_filter_of_all) == STRICT
    };
    let strict: Vec<&Interface> = match extent.uplink.map(|index| found.interface_at(index)) {
        Some(uplink) => {
            uplink.filter(|uplink| loosened(uplink) || is_strict(uplink)).into_iter().collect()
        }
        None => found.interfaces.iter().filter(|interface| loosened(interface)).collect(),
    };
    strict.into_iter().map(|interface| interface.name.clone()).collect()
}

fn forwarding(config: &GatewayConfig, extent: &Extent, found: &Found) -> BTreeSet<String> {
    // The tunnels of other gateways turn on forwarding themselves.
    let others = found.interfaces.iter().filter(|i| !i.loopback && !extent.has(i));
    let others = others.filter(|i| !is_gateway(i));
    let wanted = others.filter(|i| match (&config.masquerade, config.forward) {
        (Some(Masquerade::By(device)), false) => i.name == device.as_str(),
        (Some(_) | None, _) => true,
    });
    wanted.map(|i| i.name.clone()).collect()
}

fn no_rules(tunnel: &TunnelConfig, extent: &Extent) -> GatewaySpec {
    GatewaySpec {
        table: tunnel.gateway_table(),
        devices: extent.all().cloned().collect(),
        forwarding: None,
        answers: BTreeMap::new(),
    }
}

fn rules(
    config: &GatewayConfig,
    extent: &Extent,
    forwarding: &BTreeSet<String>,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> ForwardingRules {
    let inner = v4(&extent.through).chain(v4(&config.routes));
    let masquerade = config.masquerade.as_ref().map(|by| match by {
        Masquerade::Anywhere => (inner.collect(), None),
        Masquerade::By(device) => (inner.collect(), Some(device.clone())),
    });
    // This includes interfaces that need no forwarding any longer, as long as it is on.
    let turned_on = found.interfaces.iter().filter(|i| match i.forwarding {
        Some(false) => forwarding.contains(&i.name),
        Some(true) | None => before.get(&i.name).is_some_and(|b| b.turned_on.is_some()),
    });
    let gateways = found.interfaces.iter().filter(|i| is_gateway(i) && !extent.has(i));
    ForwardingRules {
        masquerade,
        turned_on: turned_on.map(|i| i.name.clone()).collect(),
        gateways: gateways.map(|i| i.name.clone()).collect(),
        into_tunnel: config.forward,
    }
}

impl Extent {
    fn all(&self) -> impl Iterator<Item = &DeviceName> {
        self.devices.iter().chain(&self.going)
    }

    fn has(&self, interface: &Interface) -> bool {
        self.all().any(|device| device.as_str() == interface.name)
    }
}
