//! The steps around a tunnel: routes, policy rules, settings of other interfaces, name servers.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::found::{Found, NameServers};
use super::gateway::LOOSE;
use super::routing::{Family, PolicyRule, PolicyRuleKind, Route, RouteTarget};
use super::step::{DnsStep, HostStep, Step};
use super::wanted::WantedAround;
use crate::engine::config::TunnelConfig;
use crate::engine::memory::{Settings, TurnedOn};

/// Takes away what is not wanted any more, before the tunnel changes: first nothing leads into it, then
/// its outer packets lose the mark that keeps them out of it.
pub fn withdraw(
    wanted: &WantedAround,
    found: &Found,
    tunnel: &TunnelConfig,
    steps: &mut Vec<Step>,
) {
    if !wanted.name_servers && found.name_servers != NameServers::Theirs {
        steps.push(DnsStep::Restore.into());
    }
    let ours = found.policy_rules.iter().filter(|rule| is_our_rule(rule, tunnel, found));
    let stale = ours.filter(|rule| {
        !wanted.policy_rules.contains(rule) && !is_moved(rule, &wanted.policy_rules)
    });
    // The one that leads into the tunnel goes first: without the other it would take all.
    steps.extend(stale.rev().map(|rule| Step::from(HostStep::RemovePolicyRule(*rule))));
    let ours = found.routes.iter().filter(|route| is_ours(route, tunnel, found));
    let stale = ours.filter(|route| !wanted.routes.contains(route));
    // Without any, packets would go the way around the tunnel for a moment.
    let stale = stale.filter(|route| route.exchanged(&wanted.routes).is_none());
    steps.extend(stale.map(|route| Step::from(HostStep::RemoveRoute(*route))));
}

/// Adds what is missing once the tunnel is there, and puts settings right. What has to be put back one
/// day is added to `saved`.
pub fn establish(
    wanted: &WantedAround,
    found: &Found,
    tunnel: &TunnelConfig,
    saved: &mut BTreeMap<String, Settings>,
    steps: &mut Vec<Step>,
) {
    steps.extend(plan_settings(wanted, found, tunnel, saved));
    // Routes before the policy rules that ask for them: at no time does a packet of the tunnel enter
    // the tunnel.
    let missing = wanted.routes.difference(&found.routes);
    steps.extend(missing.map(|route| {
        let is_there = route.exchanged(&found.routes).is_some();
        let step = if is_there { HostStep::ReplaceRoute } else { HostStep::AddRoute };
        Step::from(step(*route))
    }));
    // A rule is added behind those that are there, of which one leads into a tunnel and has to be asked
    // after it: that one is added again, behind it.
    let missing = wanted.policy_rules.difference(&found.policy_rules);
    let exceptions = missing.clone().filter(|rule| !rule.leads_into_tunnel());
    let families: BTreeSet<Family> = exceptions.map(|rule| rule.family).collect();
    let stays =
        |rule: &PolicyRule| wanted.policy_rules.contains(rule) || !is_our_rule(rule, tunnel, found);
    let again = found
        .policy_rules
        .iter()
        .filter(|rule| rule.leads_into_tunnel() && families.contains(&rule.family) && stays(rule));
    let added: BTreeSet<&PolicyRule> = missing.chain(again).collect();
    steps.extend(added.into_iter().map(|rule| Step::from(HostStep::AddPolicyRule(*rule))));
    let ours = found.policy_rules.iter().filter(|rule| is_our_rule(rule, tunnel, found));
    let moved = ours.filter(|rule| is_moved(rule, &wanted.policy_rules));
    steps.extend(moved.map(|rule| Step::from(HostStep::RemovePolicyRule(*rule))));
    if wanted.name_servers && found.name_servers != NameServers::Ours {
        steps.push(DnsStep::Use.into());
    }
}

/// Takes away what an earlier process left and this tunnel is not asked for, while our outer address is not
/// known: it may be what keeps that unknown, or the host from its name servers. Of a tunnel that leads nowhere,
/// as it is not `known` where its server is, or there is no interface, nothing is asked for.
pub fn give_back(
    found: &Found,
    tunnel: &TunnelConfig,
    known: bool,
    saved: &mut BTreeMap<String, Settings>,
) -> Vec<Step> {
    let leads = known && found.interface(&tunnel.device).is_some();
    let name_servers = !tunnel.gateway.dns.is_empty() && leads;
    let mut wanted = WantedAround { name_servers, ..WantedAround::default() };
    if known && tunnel.mark().is_some() {
        wanted.policy_rules.clone_from(&found.policy_rules);
        wanted.routes.clone_from(&found.routes);
    }
    let mut steps = Vec::new();
    withdraw(&wanted, found, tunnel, &mut steps);
    if !tunnel.asks_for_routing() {
        steps.extend(plan_settings(&wanted, found, tunnel, saved));
    }
    steps
}

/// Forgets what is not ours to put back any more.
pub fn forget(before: &mut BTreeMap<String, Settings>, found: &Found) {
    // There may be thousands of both.
    let there: BTreeSet<&str> = found.interfaces.iter().map(|i| i.name.as_str()).collect();
    before.retain(|name, saved| {
        // Somebody has made the host a router since: it forwards for them now.
        saved.turned_on = saved.turned_on.filter(|then| then.ip_forward || !found.ip_forward);
        // An interface's settings disappear with it; a new one of that name has its own.
        there.contains(name.as_str()) && *saved != Settings::default()
    });
}

/// A value to put back is forgotten when it has been seen to be back: a step may fail.
fn plan_settings(
    wanted: &WantedAround,
    found: &Found,
    tunnel: &TunnelConfig,
    before: &mut BTreeMap<String, Settings>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for interface in found.interfaces.iter().filter(|i| i.name != tunnel.device.as_str()) {
        let mut saved = before.remove(&interface.name).unwrap_or_default();
        let set = |on| HostStep::SetForwarding { interface: interface.name.clone(), on }.into();
        match (wanted.forwarding.contains(&interface.name), interface.forwarding) {
            (true, Some(false)) => {
                saved.turned_on.get_or_insert(TurnedOn { ip_forward: found.ip_forward });
                steps.push(set(true));
            }
            (true, Some(true) | None) => {}
            (false, Some(true)) if saved.turned_on.is_some() => steps.push(set(false)),
            (false, _) => saved.turned_on = None,
        }
        let set = |value| HostStep::SetRpFilter { interface: interface.name.clone(), value }.into();
        match (wanted.loose.contains(&interface.name), interface.rp_filter, saved.rp_filter) {
            (true, Some(now), _) if now != LOOSE => {
                saved.rp_filter.get_or_insert(now);
                steps.push(set(LOOSE));
            }
            (true, _, _) => {}
            (false, Some(now), Some(old)) if now != old => steps.push(set(old)),
            (false, _, _) => saved.rp_filter = None,
        }
        if saved != Settings::default() {
            before.insert(interface.name.clone(), saved);
        }
    }
    steps
}

/// Whether the same is wanted at another priority, where an earlier version did not have it: it is taken away
/// only when that is there.
fn is_moved(rule: &PolicyRule, wanted: &BTreeSet<PolicyRule>) -> bool {
    let is_same = |other: &PolicyRule| (other.family, other.kind) == (rule.family, rule.kind);
    !wanted.contains(rule) && wanted.iter().any(is_same)
}

fn is_ours(route: &Route, tunnel: &TunnelConfig, found: &Found) -> bool {
    let own = found.interface(&tunnel.device).map(|i| i.index);
    match route.target {
        RouteTarget::Interface(index) | RouteTarget::Remote(index, _) => {
            Some(index) == own || route.table == tunnel.gateway.mark
        }
        RouteTarget::Unreachable => route.destination == IpNet::V4(tunnel.inner_peer.trunc()),
    }
}

/// The rules that ask the main table serve every full tunnel of the host; they are ours with the
/// other one.
fn is_our_rule(rule: &PolicyRule, tunnel: &TunnelConfig, found: &Found) -> bool {
    match rule.kind {
        PolicyRuleKind::UnlessMarked { table, .. } => table == tunnel.gateway.mark,
        PolicyRuleKind::MainButDefault | PolicyRuleKind::FromOwn(_) => {
            let tables = || {
                let same_family = found.policy_rules.iter().filter(|r| r.family == rule.family);
                same_family.filter_map(|r| match r.kind {
                    PolicyRuleKind::UnlessMarked { table, .. } => Some(table),
                    PolicyRuleKind::MainButDefault | PolicyRuleKind::FromOwn(_) => None,
                })
            };
            let own = tunnel.gateway.mark;
            let asked_for = tunnel.gateway.default_route || tables().any(|table| table == own);
            asked_for && tables().all(|table| table == own)
        }
    }
}
