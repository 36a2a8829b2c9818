//! The addresses of this host that a full tunnel leaves alone: connections to them, an administrator's over
//! ssh for one, get their answers by the main table as before.
//!
//! Whether there is a way to the server, and by which uplink, does not matter: the rule that leads all else
//! into the tunnel stays without one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::found::Found;
use super::interface::{Address, Scope};
use super::label::is_labelled;
use super::routing::{Family, PolicyRuleKind};
use crate::engine::config::DeviceName;

/// How many addresses of a family are left alone. The kernel goes through the rules one by one for each
/// packet whose way it looks up, and a node of Kubernetes may have 20000 addresses. There is no shorter
/// rule for them: one for a network would match what this host forwards for its neighbours in it. With those
/// of the uplink, there may be twice as many.
pub const MOST: usize = 256;
/// How many of one interface, unless it is the uplink: the many are on one, and others have room, those
/// too that an operator adds later.
pub const MOST_OF_ONE: usize = 64;

/// The addresses that are left alone, beside those of the tunnel's `devices` and of other tunnels. Where
/// there are too many, those with a rule keep it, those of the uplink come first, and then the first ones of
/// each interface.
pub fn left_alone(
    found: &Found,
    family: Family,
    devices: &BTreeSet<DeviceName>,
    uplink: Option<u32>,
) -> BTreeSet<IpAddr> {
    let with_rule = with_rule(found, family);
    let mut of_interface: HashMap<u32, usize> = HashMap::new();
    let mut candidates = Vec::new();
    for address in outside(found, family, devices) {
        let rank = of_interface.entry(address.interface).or_default();
        *rank += 1;
        let local = address.value.local;
        let is_new = !with_rule.contains(&local);
        let is_of_other = Some(address.interface) != uplink;
        if !(is_new && is_of_other && *rank > MOST_OF_ONE) {
            candidates.push((is_new, is_of_other, *rank, local));
        }
    }
    candidates.sort_unstable();
    let mut chosen = BTreeSet::new();
    for (is_new, is_of_other, _, address) in candidates {
        let most = if is_new && is_of_other { MOST } else { 2 * MOST };
        if chosen.len() < most {
            chosen.insert(address);
        }
    }
    chosen
}

/// An address that has no rule. Once all is as it should be, there are too many.
pub fn left_out(found: &Found, family: Family, devices: &BTreeSet<DeviceName>) -> Option<IpAddr> {
    let with_rule = with_rule(found, family);
    let mut all = outside(found, family, devices).map(|address| address.value.local);
    all.find(|address| !with_rule.contains(address))
}

fn with_rule(found: &Found, family: Family) -> HashSet<IpAddr> {
    let rules = found.policy_rules.iter().filter(|rule| rule.family == family);
    let addresses = rules.filter_map(|rule| match rule.kind {
        PolicyRuleKind::FromOwn(address) => Some(address),
        PolicyRuleKind::MainButDefault | PolicyRuleKind::UnlessMarked { .. } => None,
    });
    addresses.collect()
}

/// The addresses of a family that others can reach outside of tunnels. Of the loopback interface that is
/// none of host scope: alternate addresses have it.
fn outside<'a>(
    found: &'a Found,
    family: Family,
    devices: &BTreeSet<DeviceName>,
) -> impl Iterator<Item = &'a Address> {
    let tunnels = found.interfaces.iter().filter(|interface| {
        is_labelled(interface) || devices.iter().any(|d| d.as_str() == interface.name)
    });
    let tunnels: HashSet<u32> = tunnels.map(|interface| interface.index).collect();
    let on_tunnels = found.addresses.iter().filter(|a| tunnels.contains(&a.interface));
    let inner: HashSet<IpAddr> = on_tunnels.map(|address| address.value.local).collect();
    found.addresses.iter().filter(move |address| {
        let local = address.value.local;
        let is_reached = match local {
            IpAddr::V4(v4) => family == Family::V4 && !v4.is_loopback(),
            IpAddr::V6(v6) => {
                family == Family::V6 && !v6.is_loopback() && !v6.is_unicast_link_local()
            }
        };
        is_reached && address.scope != Scope::Host && !inner.contains(&local)
    })
}
