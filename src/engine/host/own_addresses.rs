//! The addresses of this host that a full tunnel leaves alone: connections to them, an administrator's over
//! ssh for one, get their answers by the main table as before.
//!
//! They are those of the uplink. What reaches another address of this host may come through the tunnel, as
//! from a headquarters to the address of a branch's own network, and its answers have to go back there.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use super::found::Found;
use super::interface::{Address, InterfaceKind, Scope};
use super::label::is_labelled;
use super::routing::{Family, PolicyRuleKind};
use crate::engine::config::DeviceName;

/// How many addresses of a family are left alone. The kernel goes through the rules one by one for each
/// packet whose way it looks up, and a host may have thousands of addresses. There is no shorter rule for
/// them: one for a network would match what this host forwards for its neighbours in it.
pub const MOST: usize = 256;

/// The addresses that are left alone, beside those of the tunnel's `devices` and of other tunnels: those of
/// the `uplink`, and those that have a rule: while the rule that leads all else into the tunnel is there, none
/// loses it, though there may be no way to the server now, or another uplink.
pub fn left_alone(
    found: &Found,
    family: Family,
    devices: &BTreeSet<DeviceName>,
    uplink: Option<u32>,
) -> BTreeSet<IpAddr> {
    let with_rule = with_rule(found, family);
    let (mut chosen, mut new) = (BTreeSet::new(), Vec::new());
    for address in outside(found, family, devices) {
        let local = address.value.local;
        if with_rule.contains(&local) {
            chosen.insert(local);
        } else if Some(address.interface) == uplink {
            new.push(local);
        }
    }
    let room = MOST.saturating_sub(chosen.len());
    chosen.extend(new.into_iter().take(room));
    // What their links send has these while the kernel looks for its way. They take nobody's room.
    chosen.extend(alternate(found).into_iter().filter(|own| Family::of(*own) == family));
    chosen
}

/// An address that has no rule because there are too many at its interface.
pub fn left_out(found: &Found, family: Family, devices: &BTreeSet<DeviceName>) -> Option<IpAddr> {
    let mut with_rule = with_rule(found, family);
    let alternate = alternate(found);
    with_rule.retain(|address| !alternate.contains(address));
    if with_rule.len() < MOST {
        return None;
    }
    let all = || outside(found, family, devices);
    let has_rule = |address: &&Address| with_rule.contains(&address.value.local);
    let uplinks: HashSet<u32> = all().filter(has_rule).map(|address| address.interface).collect();
    let mut without = all().filter(|address| !has_rule(address));
    without.find(|address| uplinks.contains(&address.interface)).map(|address| address.value.local)
}

fn with_rule(found: &Found, family: Family) -> HashSet<IpAddr> {
    let rules = found.policy_rules.iter().filter(|rule| rule.family == family);
    let addresses = rules.filter_map(|rule| match rule.kind {
        PolicyRuleKind::FromOwn(address) => Some(address),
        PolicyRuleKind::MainButDefault | PolicyRuleKind::UnlessMarked { .. } => None,
    });
    addresses.collect()
}

/// The alternate addresses of this host's tunnels: the local ones of their links that are on no uplink.
fn alternate(found: &Found) -> HashSet<IpAddr> {
    let links = found.interfaces.iter().filter(|interface| is_labelled(interface));
    let own: HashSet<IpAddr> = links
        .filter_map(|interface| match interface.kind {
            InterfaceKind::Ipip(link) => Some(link.local.into()),
            InterfaceKind::Tun | InterfaceKind::Other => None,
        })
        .collect();
    let of_host = found.addresses.iter().filter(|address| address.scope == Scope::Host);
    of_host.map(|address| address.value.local).filter(|local| own.contains(local)).collect()
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
