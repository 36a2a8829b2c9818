//! Reads the host. What is asked for depends on the tunnel, and not on how many links, addresses and
//! other routes there are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::kernel_routes::Asked;
use super::links::LOOPBACK;
use super::{Changed, HostAdapter, Links, WayTo, conntrack, rules_of_host};
use crate::engine::config::{DeviceName, TunnelConfig};
use crate::engine::host::{
    Addresses, Family, Found, GatewayFound, InterfaceKind, Interfaces, PolicyRule, Route,
    RulesOfHost,
};

/// The part of a request that changes from reading to reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// The route to the server.
    pub way_to: Option<WayTo>,
    /// The routes to the other addresses that the server may have.
    pub other_ways: Vec<WayTo>,
    /// The routes to remotes: only by which interface packets leave.
    pub uplinks: Vec<WayTo>,
    /// The peer's address inside the tunnel.
    pub inner: Option<IpAddr>,
    /// Addresses that the server gives: the routes to them are read.
    pub given: Vec<IpAddr>,
    /// Interfaces to read beside those of the tunnel.
    pub interfaces: BTreeSet<String>,
}

/// What is the same at every reading, and what is known since the last one.
#[derive(Debug)]
pub struct State {
    pub(super) tunnel: TunnelConfig,
    /// There may be `ipip` links of this tunnel, and of others in its way.
    pub(super) ipip_links: bool,
    /// Whether routes and gateway rules of this tunnel are wanted, or were there at the last reading. A
    /// tunnel without them reads them only once, which finds what a crash left. What concerns only
    /// these is not read otherwise.
    routing: bool,
    /// Routes and policy rules that ipipou made, unless something has happened that may have changed
    /// them. To list them, the kernel walks through all there are.
    routes: Option<(BTreeSet<Route>, BTreeSet<PolicyRule>)>,
    /// What the host's policy rules ask for, unless rules have changed. There may be thousands.
    rules_of_host: Option<Arc<RulesOfHost>>,
    /// Every address of the host, unless something has happened that may have changed them. A remote
    /// cannot have one of these.
    addresses: Option<Addresses>,
    /// Interfaces that are not this tunnel's.
    interfaces: KnownInterfaces,
    /// The interface by which packets would leave to an address that the server gives.
    ways_of_given: BTreeMap<IpAddr, u32>,
    /// Families whose connections were tracked at the last reading.
    tracked: BTreeSet<Family>,
    /// This tunnel's interfaces at the last reading. When one goes, its routes go without a
    /// notification (`fib_sync_down_dev` in net/ipv4/fib_semantics.c).
    ours: Vec<(u32, bool)>,
    /// Which routes that the kernel made are looked for.
    pub(super) kernel_routes: Asked,
}

impl State {
    pub fn new(tunnel: &TunnelConfig, ipip_links: bool) -> Self {
        State {
            tunnel: tunnel.clone(),
            ipip_links,
            routing: true,
            routes: None,
            rules_of_host: None,
            addresses: None,
            interfaces: KnownInterfaces::of(tunnel),
            ways_of_given: BTreeMap::new(),
            tracked: BTreeSet::new(),
            ours: Vec::new(),
            kernel_routes: Asked::default(),
        }
    }

    /// Notes that this process changed something.
    pub fn expect_changes(&mut self) {
        self.interfaces.known = None;
        self.expect_other_routes();
    }

    /// Notes that our routes and addresses may have changed.
    fn expect_other_routes(&mut self) {
        self.routes = None;
        self.addresses = None;
        self.kernel_routes.forget();
    }
}

/// Interfaces of the host as they were last read, without counters, and which of them may have changed
/// since. There may be thousands of them.
#[derive(Debug)]
struct KnownInterfaces {
    /// Whether all interfaces are read. A gateway turns on forwarding for all of them. Other tunnels
    /// matter to every tunnel: they may have the pair of addresses that this one is to have, what comes
    /// out of one must not go into this one, and a process of the other datapath may have left some.
    all: bool,
    known: Option<Interfaces>,
    changed: BTreeSet<u32>,
}

impl KnownInterfaces {
    /// If more than this many have changed, all are read.
    const A_FEW: usize = 50;

    fn of(tunnel: &TunnelConfig) -> Self {
        let all = tunnel.gateway.forward || tunnel.gateway.masquerade.is_some();
        KnownInterfaces { all, known: None, changed: BTreeSet::new() }
    }

    fn changed(&mut self, interfaces: impl IntoIterator<Item = u32>) {
        if self.known.is_some() {
            self.changed.extend(interfaces);
        }
    }

    async fn read(&mut self, links: &Links) -> io::Result<Interfaces> {
        let changed = std::mem::take(&mut self.changed);
        let mut known = match self.known.take() {
            Some(known) if changed.len() <= KnownInterfaces::A_FEW => known,
            Some(_) | None => {
                let read = match self.all {
                    true => links.interfaces()?,
                    false => links.tunnels()?.into_iter().collect(),
                };
                return Ok(self.known.insert(read).clone());
            }
        };
        for index in changed {
            match links.at(index).await?.filter(|i| self.all || i.kind != InterfaceKind::Other) {
                Some(interface) => known.insert(interface),
                None => drop(known.remove(index)),
            }
        }
        Ok(self.known.insert(known).clone())
    }
}

impl HostAdapter {
    /// Notes what has changed since the last reading.
    pub fn note(&mut self, changed: &Changed) {
        let ours = self.reading.ours.iter().any(|(index, _)| changed.interfaces.contains(index));
        if changed.lost || changed.our_routes || ours {
            self.reading.expect_other_routes();
        }
        if changed.lost || changed.our_routes {
            self.reading.rules_of_host = None;
        }
        if changed.lost {
            self.reading.interfaces.known = None;
        }
        self.reading.interfaces.changed(changed.interfaces.union(&changed.settings).copied());
        if changed.lost || !changed.interfaces.is_empty() {
            self.reading.addresses = None;
        }
    }

    /// Notes that this process changed something: what the last reading found may no longer be true.
    pub fn expect_changes(&mut self) {
        self.reading.expect_changes();
    }

    /// Reads what is there, except what the datapath and the name servers know themselves.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn read(&mut self, question: &Question) -> io::Result<Found> {
        let mut found = Found::default();
        self.read_links(question, &mut found).await?;
        found.lost_routes = self.lost_routes(&found).await?;
        let State { tunnel, ipip_links, tracked, rules_of_host, .. } = &mut self.reading;
        if tunnel.may_have_fast_path() || *ipip_links {
            let read = || rules_of_host::read().ok().map(Arc::new);
            *rules_of_host = rules_of_host.take().or_else(read);
            let unknown = || Arc::new(RulesOfHost::unknown());
            found.rules_of_host = rules_of_host.clone().unwrap_or_else(unknown);
        }
        // Needed only where other routes than those of the main table can lead into the tunnel, and where
        // data may go past what tracks connections.
        if tunnel.gateway.mark().is_some() || tunnel.may_have_fast_path() {
            let is_tracked = |family: &Family| {
                conntrack::is_known_to_be_in_use(*family, tracked.contains(family))
            };
            *tracked = [Family::V4, Family::V6].into_iter().filter(is_tracked).collect();
            found.tracked.clone_from(tracked);
        }
        if self.reading.routing {
            self.read_routing(&mut found).await?;
        }
        Ok(found)
    }

    /// Interfaces, the routes out by them, and addresses.
    async fn read_links(&mut self, question: &Question, found: &mut Found) -> io::Result<()> {
        let State { tunnel, ipip_links, addresses, interfaces: others, ways_of_given, .. } =
            &mut self.reading;
        let (links, outer_device) = (&self.links, tunnel.outer.device());
        found.addresses = match addresses {
            Some(known) => known.clone(),
            None => addresses.insert(links.addresses()?.into_iter().collect()).clone(),
        };
        let mut interfaces = others.read(links).await?;
        if *ipip_links {
            interfaces.extend(links.ipip()?);
        }
        let own = [Some(&tunnel.device), outer_device].into_iter().flatten();
        let named = question.interfaces.iter().filter(|_| !others.all).map(String::as_str);
        for name in own.map(|name| name.as_str()).chain(named) {
            interfaces.extend(links.named(name).await?);
        }
        let index = |device: &DeviceName| interfaces.named(device.as_str()).map(|i| i.index);
        let (own, outer_index) = (index(&tunnel.device), outer_device.and_then(index));
        // Packets that are bound to an interface have no route while it is not there.
        if outer_device.is_some() == outer_index.is_some() {
            if let Some(way_to) = &question.way_to {
                found.way = links.way(way_to, outer_index).await?;
            }
            for way_to in &question.other_ways {
                if let Some(way) = links.way(way_to, outer_index).await? {
                    found.other_ways.insert(way_to.destination, way);
                }
            }
        }
        for way_to in &question.uplinks {
            if let Some(way) = links.way(way_to, None).await? {
                found.uplinks.insert(way_to.destination, way.interface);
            }
        }
        // Where there is a choice of addresses, those that a route leads to come first.
        let choice = question.way_to.iter().filter(|_| !question.other_ways.is_empty());
        for way_to in choice.chain(&question.other_ways) {
            if outer_index.is_some() && !links.is_routed(way_to, outer_index).await? {
                found.unrouted.insert(way_to.destination);
            }
        }
        if let Some(inner) = question.inner {
            found.inner_way = links.matching_route(inner).await?;
        }
        ways_of_given.retain(|address, _| question.given.contains(address));
        for address in &question.given {
            let mut route = links.route_of(*address, None).await?;
            let by = route.and_then(|(_, interface)| interface);
            // Once the address is ours, so is the route. How packets would leave without it is asked of
            // the interfaces by which they may.
            if by.is_some() && by == own {
                let ways = found.way.iter().chain(found.other_ways.values());
                let before = ways_of_given.get(address).copied();
                let all = ways.map(|way| way.interface).chain(before).collect();
                route = links.route_by(*address, all).await?;
            } else if let Some(by) = by {
                ways_of_given.insert(*address, by);
            }
            found.routed.insert(*address, route);
        }
        let outer_ways = || found.way.into_iter().chain(found.other_ways.values().copied());
        let ways: Vec<u32> = outer_ways().chain(found.inner_way).map(|way| way.interface).collect();
        let sources: Vec<IpAddr> = outer_ways().map(|way| way.source).collect();
        let is_of_interest = |local: IpAddr| {
            Some(local) == tunnel.outer.address()
                || sources.contains(&local)
                || IpNet::V4(tunnel.inner_peer).contains(&local)
        };
        let holders = found.addresses.iter().filter(|a| is_of_interest(a.value.local));
        let holders = holders.map(|address| address.interface);
        let uplinks: BTreeSet<u32> = found.uplinks.values().copied().collect();
        for index in ways.into_iter().chain(holders).chain(uplinks).chain([LOOPBACK]) {
            if interfaces.at(index).is_none() {
                interfaces.extend(links.at(index).await?);
            }
        }
        found.interfaces = interfaces;
        Ok(())
    }

    /// Routes, policy rules, and what else a gateway needs.
    async fn read_routing(&mut self, found: &mut Found) -> io::Result<()> {
        found.rp_filter_of_all = setting(Path::new("/proc/sys/net/ipv4/conf/all/rp_filter"))?;
        found.ip_forward = setting(Path::new("/proc/sys/net/ipv4/ip_forward"))? != 0;
        found.gateway = match self.nat.read() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            // A kernel without nftables cannot have our rules.
            read => read.unwrap_or(GatewayFound::Missing),
        };
        let State { tunnel, ours, routes, .. } = &mut self.reading;
        let labelled = found
            .interfaces
            .iter()
            .filter(|i| i.name == tunnel.device.as_str() || i.label.is_some());
        let now: Vec<_> = labelled.map(|i| (i.index, i.up)).collect();
        let known = if now == *ours { routes.take() } else { None };
        *ours = now;
        let (routes, policy_rules) = match known {
            Some(known) => known,
            None => (self.routes.routes()?, self.routes.policy_rules()?),
        };
        self.reading.routing = tunnel.asks_for_routing()
            || !routes.is_empty()
            || !policy_rules.is_empty()
            || found.gateway != GatewayFound::Missing;
        (found.routes, found.policy_rules) = (routes.clone(), policy_rules.clone());
        self.reading.routes = Some((routes, policy_rules));
        Ok(())
    }
}

/// A setting that belongs to no interface (ip-sysctl.rst); 0, where this process cannot see any.
///
/// # Errors
/// When it is there and cannot be read now, as without a free descriptor. That does not count as 0, because the
/// setting would be put back to it one day.
fn setting(path: &Path) -> io::Result<u32> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(0)
        }
        Err(e) => Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_read_now_is_not_off() {
        assert!(setting(Path::new("/proc/sys/net/ipv4")).is_err()); // a directory
        assert_eq!(setting(Path::new("/proc/sys/net/ipv4/absent")).unwrap(), 0);
        assert_eq!(setting(Path::new("/proc/sys/net/ipv4/ip_default_ttl")).unwrap() & !0xff, 0);
    }
}
