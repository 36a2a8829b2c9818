//! What a tunnel asks of the host around it: routes into it, forwarding, address translation, name
//! servers. Wanted against found, as in `plan`.
//!
//! Settings of other interfaces are changed only with the value of before in our memory, so that
//! they can be put back, after a crash too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{DeviceName, GatewayConfig, Masquerade, TunnelConfig};
use super::host::{
    Family, Found, GatewayFound, GatewaySpec, Interface, NameServers, PolicyRule, PolicyRuleKind,
    Route, RouteTarget,
};
use super::peer::Settings;
use super::plan::{Step, is_gateway};

/// The routing table that everybody uses (`RT_TABLE_MAIN` in linux/rtnetlink.h).
const MAIN: u32 = 254;

/// Just before the rule for the main table (32766). The one with the lower number is asked first.
const MAIN_BUT_DEFAULT_PRIORITY: u32 = 32764;
const UNLESS_MARKED_PRIORITY: u32 = 32765;

/// What the marks of all tunnels have in common: the outer packets of one must not enter another,
/// whose outer packets would enter the first.
const COMMON_BITS: u32 = 0xffff_0000;

/// Values of `rp_filter` (ip-sysctl.rst).
const STRICT: u32 = 1;
const LOOSE: u32 = 2;

/// What the host around the tunnel should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeSet<Route>,
    pub policy_rules: BTreeSet<PolicyRule>,
    pub rules: Option<GatewaySpec>,
    /// Interfaces that should forward, and that should check sources loosely.
    pub forwarding: BTreeSet<String>,
    pub loose: BTreeSet<String>,
    pub name_servers: bool,
}

/// What is asked for while the tunnel to `remote` is up, whose interfaces are `devices`. `through`
/// are the inner networks of the other ends, `routed` those of them that no address of the interface
/// leads to.
pub fn wanted(
    tunnel: &TunnelConfig,
    devices: &BTreeSet<DeviceName>,
    remote: Option<IpAddr>,
    through: &[IpNet],
    routed: &[IpNet],
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> Wanted {
    // The interface's number is known once it is there: its routes come with the next reading.
    let Some(interface) = devices.iter().find_map(|device| found.interface(device)) else {
        return Wanted::default();
    };
    let config = &tunnel.gateway;
    let via = |destination, table| Route {
        destination,
        table,
        target: RouteTarget::Interface(interface.index),
        source: source(tunnel, destination),
    };
    let mut wanted = Wanted { name_servers: !config.dns.is_empty(), ..Wanted::default() };
    // A network that the remote itself is in must not catch our outer packets.
    let takes_in_remote = |net: &&IpNet| remote.is_some_and(|remote| net.contains(&remote));
    let (around, beside): (Vec<&IpNet>, Vec<&IpNet>) =
        routed.iter().chain(&config.routes).partition(takes_in_remote);
    wanted.routes.extend(beside.into_iter().map(|net| via(*net, MAIN)));
    let mut around: Vec<_> = around.into_iter().copied().collect();
    if config.default_route {
        around.push(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into());
        if tunnel.inner6.is_some() {
            around.push(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into());
        }
    }
    for net in around {
        wanted.routes.insert(via(net, config.mark));
        wanted.policy_rules.extend(full_tunnel(Family::of(net.addr()), config.mark));
        wanted.loose.extend(strict_uplink(found, before));
    }
    if config.forward || config.masquerade.is_some() {
        wanted.forwarding = forwarding(config, interface, found);
        wanted.rules = Some(rules(tunnel, devices, through, &wanted.forwarding, found, before));
    }
    wanted
}

/// The unreachable route of a tunnel with many links: addresses that no link leads to.
pub fn unreachable(network: Ipv4Net) -> Route {
    Route {
        destination: IpNet::V4(network.trunc()),
        table: MAIN,
        target: RouteTarget::Unreachable,
        source: None,
    }
}

/// Our address inside the tunnel that packets to there should have.
fn source(tunnel: &TunnelConfig, destination: IpNet) -> Option<IpAddr> {
    match destination {
        IpNet::V4(_) => Some(tunnel.inner.into()),
        IpNet::V6(_) => tunnel.inner6.map(|net| net.addr().into()),
    }
}

fn full_tunnel(family: Family, mark: u32) -> [PolicyRule; 2] {
    [
        PolicyRule {
            family,
            priority: MAIN_BUT_DEFAULT_PRIORITY,
            kind: PolicyRuleKind::MainButDefault,
        },
        PolicyRule {
            family,
            priority: UNLESS_MARKED_PRIORITY,
            kind: PolicyRuleKind::UnlessMarked {
                mark: mark & COMMON_BITS,
                mask: COMMON_BITS,
                table: mark,
            },
        },
    ]
}

/// The interface that outer packets come in by, if it checks sources strictly: the check looks for
/// a route back without our mark, finds the tunnel, and drops what the server sends.
fn strict_uplink(found: &Found, before: &BTreeMap<String, Settings>) -> Option<String> {
    let uplink = found.interface_at(found.way?.interface)?;
    let already = before.get(&uplink.name).is_some_and(|b| b.rp_filter.is_some());
    let effective = uplink.rp_filter.unwrap_or(0).max(found.rp_filter_of_all);
    (already || effective == STRICT).then(|| uplink.name.clone())
}

fn forwarding(config: &GatewayConfig, tunnel: &Interface, found: &Found) -> BTreeSet<String> {
    // The tunnels of other gateways forward by themselves.
    let others = found.interfaces.iter().filter(|i| !i.loopback && i.index != tunnel.index);
    let others = others.filter(|i| !is_gateway(i));
    let wanted = others.filter(|i| match (&config.masquerade, config.forward) {
        (Some(Masquerade::By(device)), false) => i.name == device.as_str(),
        (Some(_) | None, _) => true,
    });
    wanted.map(|i| i.name.clone()).collect()
}

fn rules(
    tunnel: &TunnelConfig,
    devices: &BTreeSet<DeviceName>,
    through: &[IpNet],
    forwarding: &BTreeSet<String>,
    found: &Found,
    before: &BTreeMap<String, Settings>,
) -> GatewaySpec {
    let config = &tunnel.gateway;
    let inner = through.iter().chain(&config.routes).filter_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    });
    let masquerade = config.masquerade.as_ref().map(|by| match by {
        Masquerade::Anywhere => (inner.collect(), None),
        Masquerade::By(device) => (inner.collect(), Some(device.clone())),
    });
    let turned_on = found.interfaces.iter().filter(|i| forwarding.contains(&i.name)).filter(|i| {
        i.forwarding == Some(false)
            || before.get(&i.name).is_some_and(|b| b.forwarding == Some(false))
    });
    let is_own = |i: &Interface| devices.iter().any(|device| device.as_str() == i.name);
    let gateways = found.interfaces.iter().filter(|i| is_gateway(i) && !is_own(i));
    GatewaySpec {
        table: tunnel.gateway_table(),
        devices: devices.clone(),
        masquerade,
        turned_on: turned_on.map(|i| i.name.clone()).collect(),
        gateways: gateways.map(|i| i.name.clone()).collect(),
        into_tunnel: config.forward,
    }
}

/// The steps from `found` to `wanted`. `installed` are the rules now in the kernel. What has to be
/// put back one day is added to `before`.
pub fn plan(
    wanted: &Wanted,
    found: &Found,
    tunnel: &TunnelConfig,
    installed: Option<&GatewaySpec>,
    before: &mut BTreeMap<String, Settings>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if !wanted.name_servers && found.name_servers != NameServers::Theirs {
        steps.push(Step::RestoreNameServers);
    }
    // Rules before routes on the way in, and the other way round on the way out: at no time does a
    // packet of the tunnel enter the tunnel.
    let ours = found.routes.iter().filter(|route| is_ours(route, tunnel, found));
    let stale_rules = found.policy_rules.iter().filter(|rule| is_our_rule(rule, tunnel, found));
    let stale = stale_rules.filter(|rule| !wanted.policy_rules.contains(rule));
    // The one that leads into the tunnel goes first: without the other it would take all.
    steps.extend(stale.rev().map(|rule| Step::RemovePolicyRule(*rule)));
    let stale = ours.filter(|route| !wanted.routes.contains(route));
    steps.extend(stale.map(|route| Step::RemoveRoute(*route)));
    match (&wanted.rules, found.gateway) {
        (Some(spec), GatewayFound::Intact) if installed == Some(spec) => {}
        (Some(spec), _) => steps.push(Step::InstallGateway(spec.clone())),
        (None, GatewayFound::Missing) => {}
        (None, GatewayFound::Intact | GatewayFound::Unknown) => steps.push(Step::RemoveGateway),
    }
    plan_settings(wanted, found, tunnel, before, &mut steps);
    let missing = wanted.routes.difference(&found.routes);
    steps.extend(missing.map(|route| Step::AddRoute(*route)));
    let missing = wanted.policy_rules.difference(&found.policy_rules);
    steps.extend(missing.map(|rule| Step::AddPolicyRule(*rule)));
    if wanted.name_servers && found.name_servers != NameServers::Ours {
        steps.push(Step::UseNameServers);
    }
    steps
}

fn plan_settings(
    wanted: &Wanted,
    found: &Found,
    tunnel: &TunnelConfig,
    before: &mut BTreeMap<String, Settings>,
    steps: &mut Vec<Step>,
) {
    // With an interface its settings go; another one of that name starts anew.
    before.retain(|name, _| found.interfaces.iter().any(|i| i.name == *name));
    for interface in found.interfaces.iter().filter(|i| i.name != tunnel.device.as_str()) {
        let mut saved = before.get(&interface.name).copied().unwrap_or_default();
        let set = |on| Step::SetForwarding { interface: interface.name.clone(), on };
        match (wanted.forwarding.contains(&interface.name), interface.forwarding) {
            (true, Some(false)) => {
                saved.forwarding = Some(false);
                steps.push(set(true));
            }
            (true, Some(true) | None) => {}
            (false, now) => {
                if let Some(old) = saved.forwarding.take()
                    && now != Some(old)
                {
                    steps.push(set(old));
                }
            }
        }
        let set = |value| Step::SetRpFilter { interface: interface.name.clone(), value };
        match (wanted.loose.contains(&interface.name), interface.rp_filter) {
            (true, Some(now)) if now != LOOSE => {
                saved.rp_filter.get_or_insert(now);
                steps.push(set(LOOSE));
            }
            (true, Some(_) | None) => {}
            (false, now) => {
                if let Some(old) = saved.rp_filter.take()
                    && now != Some(old)
                {
                    steps.push(set(old));
                }
            }
        }
        match saved == Settings::default() {
            true => drop(before.remove(&interface.name)),
            false => drop(before.insert(interface.name.clone(), saved)),
        }
    }
}

fn is_ours(route: &Route, tunnel: &TunnelConfig, found: &Found) -> bool {
    let own = found.interface(&tunnel.device).map(|i| i.index);
    match route.target {
        RouteTarget::Interface(index) => Some(index) == own || route.table == tunnel.gateway.mark,
        RouteTarget::Unreachable => route.destination == IpNet::V4(tunnel.inner_peer.trunc()),
    }
}

/// The rule that asks the main table serves every full tunnel of the host; it is ours with the
/// other.
fn is_our_rule(rule: &PolicyRule, tunnel: &TunnelConfig, found: &Found) -> bool {
    match rule.kind {
        PolicyRuleKind::UnlessMarked { table, .. } => table == tunnel.gateway.mark,
        PolicyRuleKind::MainButDefault => {
            let tables = || {
                let same_family = found.policy_rules.iter().filter(|r| r.family == rule.family);
                same_family.filter_map(|r| match r.kind {
                    PolicyRuleKind::UnlessMarked { table, .. } => Some(table),
                    PolicyRuleKind::MainButDefault => None,
                })
            };
            let own = tunnel.gateway.mark;
            let asked_for = tunnel.gateway.default_route || tables().any(|table| table == own);
            asked_for && tables().all(|table| table == own)
        }
    }
}
