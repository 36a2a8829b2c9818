//! Reports what on the host keeps packets for the peers out of the tunnel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::config::DeviceName;
use super::host::own_addresses::left_out;
use super::host::{Found, Interface, PolicyRuleKind, is_labelled};
use super::links::is_of_server;
use super::{Action, Engine, Phase, Report};

impl Engine {
    /// Reports, when that has changed, which interfaces have the peers' addresses inside the tunnel,
    /// and what else keeps packets for them out of it. Our own addresses may be on several interfaces.
    pub(super) fn tell_conflicts(&mut self, actions: &mut Vec<Action>) {
        let Some(found) = &self.found else { return };
        let (tunnel, devices) = (&self.endpoint.tunnel, self.devices(found));
        let server = tunnel.beside.as_ref().unwrap_or(&tunnel.device);
        let is_ours = |interface: &Interface| {
            devices.iter().any(|d| d.as_str() == interface.name)
                || (is_labelled(interface) && is_of_server(&interface.name, server))
        };
        let is_theirs = |address: &IpAddr| {
            *address != IpAddr::V4(tunnel.inner) && IpNet::V4(tunnel.inner_peer).contains(address)
        };
        let others = found.addresses.iter().filter(|a| is_theirs(&a.value.local));
        let mut conflicts: Vec<Report> = others
            .filter_map(|address| {
                let interface = found.interface_at(address.interface).filter(|i| !is_ours(i))?;
                let (inner, interface) = (address.value.local, interface.name.clone());
                Some(Report::InnerTaken { inner, interface })
            })
            .collect();
        conflicts.extend(self.networks_of_others(found, is_ours));
        let in_vrf = |device: &&DeviceName| found.interface(device).is_some_and(|i| i.in_vrf());
        conflicts.extend(devices.iter().filter(in_vrf).cloned().map(Report::InVrf));
        // Before our own steps are done, there may be no route yet.
        let up =
            self.phase == Phase::Settled && devices.iter().any(|d| found.interface(d).is_some());
        if let (Some(way), true) = (found.inner_way, up && conflicts.is_empty())
            && let Some(interface) = found.interface_at(way.interface).filter(|i| !is_ours(i))
        {
            let inner = tunnel.inner_peer.addr().into();
            conflicts.push(Report::LedAstray { inner, interface: interface.name.clone() });
        }
        conflicts.extend(self.too_many_addresses(found));
        conflicts.extend(self.routed_by_source(found));
        let new = conflicts.iter().filter(|conflict| !self.conflicts.contains(conflict));
        actions.extend(new.cloned().map(Action::Report));
        self.conflicts = conflicts;
    }

    /// Addresses that are added for the tunnel, and are in a network on another interface: who has them there is
    /// cut off. Where that interface has one of them, this was chosen so, or is reported as that.
    fn networks_of_others(
        &self,
        found: &Found,
        is_ours: impl Fn(&Interface) -> bool,
    ) -> Vec<Report> {
        let tunnel = &self.endpoint.tunnel;
        let inside = [IpAddr::V4(tunnel.inner), tunnel.inner_peer.addr().into()];
        // What the server gives is judged before it is taken.
        let inside = inside.into_iter().filter(|_| !tunnel.inner_from_server);
        let alternates = self.owned.alternate.iter().map(|alternate| IpAddr::V4(*alternate));
        let added: BTreeSet<IpAddr> = inside.chain(alternates).collect();
        let has_one = |interface: u32| {
            found.addresses.on(interface).iter().any(|a| added.contains(&a.value.local))
        };
        let of_others = found.addresses.iter().filter_map(|address| {
            let network = address.value.network.trunc();
            let is_wide = network.prefix_len() < network.max_prefix_len();
            let inner = *added.range(network.network()..=network.broadcast()).next()?;
            let interface =
                found.interface_at(address.interface).filter(|i| is_wide && !is_ours(i))?;
            let interface = interface.name.clone();
            (!has_one(address.interface)).then_some(Report::NetworkOfOthers {
                inner,
                network,
                interface,
            })
        });
        of_others.collect()
    }

    /// An alternate address of ours, where the host's rules may tell it from the outer one.
    fn routed_by_source(&self, found: &Found) -> Option<Report> {
        let alternate = *self.owned.alternate.first()?;
        let outer = self.outer.and_then(|outer| match outer.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let own = self.owned.alternate.iter().copied().chain(outer);
        found.rules_of_host.ask_for(own).then_some(Report::RoutedBySource(alternate))
    }

    /// What was reported of too many addresses stays, though the host may get others and lose some.
    fn too_many_addresses(&self, found: &Found) -> Option<Report> {
        let is_such = |report: &&Report| matches!(report, Report::TooManyAddresses { .. });
        let before = self.conflicts.iter().find(is_such).cloned();
        if self.phase != Phase::Settled {
            return before;
        }
        let ours = found.policy_rules.iter().filter(|rule| match rule.kind {
            PolicyRuleKind::UnlessMarked { table, .. } => {
                table == self.endpoint.tunnel.gateway.mark
            }
            PolicyRuleKind::FromOwn(_) | PolicyRuleKind::MainButDefault => false,
        });
        let devices = self.devices(found).into_iter().collect();
        let mut without = ours.filter_map(|rule| left_out(found, rule.family, &devices));
        let report = Report::TooManyAddresses { without: without.next()? };
        Some(before.unwrap_or(report))
    }
}
