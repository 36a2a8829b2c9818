//! Compares what is wanted with what was found, and plans the ordered steps that make the host what it
//! should be.
//!
//! The first start, a restart, a repair, a move and the end share this one mechanism, in four phases.
//! Their order leaves nothing unguarded: rules are installed before what they guard, and removed after
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use super::around;
use super::fast_path::FastPathFound;
use super::found::{Found, GatewayFound};
use super::interface::{Address, Interface, InterfaceKind};
use super::label::{LinkForwarding, forwards_by_us, is_labelled};
use super::routing::{GatewaySpec, KernelRoute, KernelRouteTo};
use super::rules::{Admitted, Listener, RuleSpec, RulesFound};
use super::step::{FastStep, HostStep, KernelLink, KernelStep, NatStep, Step, TunStep};
use super::wanted::{LinkKind, MtuFrom, Wanted, WantedLink, rp_filter};
use crate::engine::config::{DeviceName, SourceCheck, TunnelConfig};
use crate::engine::memory::Settings;

/// What this process made, or found and adopted: only this is ever removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    /// Another port at which an earlier process of this tunnel listened.
    pub former_port: Option<NonZeroU16>,
    /// The FOU listeners to remove when they are no longer wanted.
    pub listeners: BTreeSet<Listener>,
    /// The alternate addresses on the loopback interface to remove in the same way.
    pub alternate: BTreeSet<Ipv4Addr>,
    /// Addresses on our links that the server gave us before, to remove in the same way.
    pub given: BTreeSet<IpAddr>,
    /// Whether the nftables table of this tunnel is removed at the end.
    pub rules: bool,
    /// What the rules now in the kernel were made from.
    pub installed: Option<RuleSpec>,
    /// What the gateway's rules now in the kernel were made from.
    pub installed_gateway: Option<GatewaySpec>,
    /// The MTUs that our links were given last.
    pub mtus: BTreeMap<DeviceName, u32>,
}

impl Owned {
    /// Links of this tunnel from when it had another port, and perhaps another name: nothing guards them any
    /// longer.
    fn former_links<'a>(&self, found: &'a Found) -> impl Iterator<Item = &'a Interface> {
        let port = self.former_port.map(NonZeroU16::get);
        port.into_iter().flat_map(|port| {
            found.interfaces.iter().filter(move |i| is_labelled(i) && i.link_from(port).is_some())
        })
    }

    /// Notes a step that was planned for a few of many peers.
    pub(in crate::engine) fn note(&mut self, step: &Step) {
        match step {
            Step::Kernel(KernelStep::CreateLink(link)) => {
                self.mtus.insert(link.device.clone(), link.mtu);
            }
            Step::Host(HostStep::RemoveLink(device)) => drop(self.mtus.remove(device)),
            Step::Host(_)
            | Step::Kernel(_)
            | Step::Tun(_)
            | Step::Fast(_)
            | Step::Nat(_)
            | Step::Dns(_) => {}
        }
    }
}

/// What a plan starts from.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The tunnel as it is configured at this end.
    pub tunnel: &'a TunnelConfig,
    /// The host as it was read last.
    pub found: &'a Found,
    /// What may be removed.
    pub owned: &'a Owned,
}

/// The steps to `wanted`; at the end, nothing is wanted. `saved` holds the settings of other interfaces
/// as they were before ipipou changed them; the plan adds to it.
///
/// Applied to a host, the steps leave nothing to do: planning again gives no step, except for the rules
/// that guard an alternate address which the steps removed.
pub fn plan(wanted: &Wanted, start: Start, saved: &mut BTreeMap<String, Settings>) -> Vec<Step> {
    let mut steps = Vec::new();
    withdraw(wanted, start, &mut steps);
    guard(wanted, start, &mut steps);
    establish(wanted, start, saved, &mut steps);
    admit(wanted, start, &mut steps);
    steps
}

/// Removes what leads packets into the tunnel or lets them in, before the rules that guard it are
/// removed. The fast path comes first: whom it lets in, the datapath lets in as long.
fn withdraw(wanted: &Wanted, Start { tunnel, found, owned }: Start, steps: &mut Vec<Step>) {
    match (&wanted.fast_path, &found.fast_path) {
        (_, FastPathFound::Unavailable | FastPathFound::Missing) => {}
        (None, FastPathFound::Intact(_)) | (_, FastPathFound::Unknown) => {
            steps.push(FastStep::Remove.into());
        }
        (Some(wanted), FastPathFound::Intact(there)) if wanted.ends != there.ends => {
            steps.push(FastStep::Remove.into());
        }
        (Some(wanted), FastPathFound::Intact(there)) => {
            let going = there.without(wanted);
            steps.extend((!going.is_empty()).then(|| FastStep::Withdraw(going).into()));
        }
    }
    around::withdraw(&wanted.gateway, found, tunnel, steps);
    let stale = found.listeners.intersection(&owned.listeners);
    let stale = stale.filter(|listener| !wanted.listeners.iter().any(|w| listener.serves(w)));
    steps.extend(stale.map(|listener| Step::from(KernelStep::RemoveListener(*listener))));
}

/// Installs the rules that judge what the next phase makes.
fn guard(wanted: &Wanted, Start { found, owned, .. }: Start, steps: &mut Vec<Step>) {
    match (&wanted.gateway.rules, found.gateway) {
        (Some(spec), GatewayFound::Intact) if owned.installed_gateway.as_ref() == Some(spec) => {}
        (Some(spec), _) => steps.push(NatStep::Install(spec.clone()).into()),
        (None, GatewayFound::Missing | GatewayFound::Intact | GatewayFound::Unknown) => {}
    }
    plan_rules(wanted, found, owned, steps);
}

/// Makes the tunnel and what it needs around it.
fn establish(
    wanted: &Wanted,
    Start { tunnel, found, owned }: Start,
    saved: &mut BTreeMap<String, Settings>,
    steps: &mut Vec<Step>,
) {
    let missing = wanted.alternate.iter().filter(|a| !found.has_local(IpAddr::V4(**a)));
    steps.extend(missing.map(|a| Step::from(KernelStep::AddAlternateAddress(*a))));
    let is_served = |wanted: &&Listener| found.listeners.iter().any(|f| f.serves(wanted));
    let missing = wanted.listeners.iter().filter(|wanted| !is_served(wanted));
    steps.extend(missing.map(|listener| Step::from(KernelStep::AddListener(*listener))));
    if let Some(socket) = &wanted.socket
        && found.userspace.socket.as_ref() != Some(socket)
    {
        steps.push(TunStep::Bind(socket.clone()).into());
    }
    if wanted.socket.is_some() && found.userspace.forwarding != wanted.forwarding {
        steps.push(TunStep::Forward(wanted.forwarding.clone()).into());
    }
    // A new link may have the addresses of an old one.
    let unwanted = wanted.unwanted.iter();
    let unwanted = unwanted.filter(|device| found.interface(device).is_some_and(is_labelled));
    let mut unwanted: BTreeSet<DeviceName> = unwanted.cloned().collect();
    let stays = |device: &DeviceName| wanted.links.iter().any(|link| link.device == *device);
    let former = owned.former_links(found).filter_map(|link| link.name.parse().ok());
    unwanted.extend(former.filter(|device| !stays(device)));
    steps.extend(unwanted.into_iter().map(|device| Step::from(HostStep::RemoveLink(device))));
    for link in &wanted.links {
        plan_link(link, found, owned, steps);
    }
    around::establish(&wanted.gateway, found, tunnel, saved, steps);
}

/// Admits the peers, and removes what only former peers needed, and the rules that guarded what is
/// gone. The fast path comes last.
fn admit(wanted: &Wanted, Start { tunnel, found, owned }: Start, steps: &mut Vec<Step>) {
    plan_admitted(wanted, found, tunnel.is_network(), steps);
    let stale = owned.alternate.difference(&wanted.alternate);
    let stale = stale.filter(|alternate| found.has_local(IpAddr::V4(**alternate)));
    steps.extend(stale.map(|a| Step::from(KernelStep::RemoveAlternateAddress(*a))));
    let has_rules = matches!(found.rules, RulesFound::Unknown | RulesFound::Intact(_));
    if wanted.rules.is_none() && owned.rules && has_rules {
        steps.push(KernelStep::RemoveRules.into());
    }
    if wanted.gateway.rules.is_none() && found.gateway != GatewayFound::Missing {
        steps.push(NatStep::Remove.into());
    }
    match (&wanted.fast_path, &found.fast_path) {
        (None, _) | (Some(_), FastPathFound::Unavailable) => {}
        (Some(wanted), FastPathFound::Intact(there)) if wanted == there => {}
        (
            Some(wanted),
            FastPathFound::Intact(_) | FastPathFound::Missing | FastPathFound::Unknown,
        ) => steps.push(FastStep::Install(wanted.clone()).into()),
    }
}

fn plan_rules(wanted: &Wanted, found: &Found, owned: &Owned, steps: &mut Vec<Step>) {
    let Some(spec) = &wanted.rules else { return };
    let mut spec = spec.clone();
    // A link still has the alternate address that is about to be removed; its guard goes once it is
    // gone.
    let going = owned.alternate.iter().filter(|alternate| found.has_local(IpAddr::V4(**alternate)));
    spec.alternate.extend(going);
    match &found.rules {
        RulesFound::Unavailable => {}
        RulesFound::Intact(_) if owned.installed.as_ref() == Some(&spec) => {}
        RulesFound::Intact(_) | RulesFound::Missing | RulesFound::Unknown => {
            steps.push(KernelStep::InstallRules(spec, wanted.admitted.clone()).into());
        }
    }
}

/// What one link needs.
pub fn plan_link(wanted: &WantedLink, found: &Found, owned: &Owned, steps: &mut Vec<Step>) {
    let device = || wanted.device.clone();
    let add = |address| HostStep::AddInnerAddress(device(), address).into();
    let is_tun = wanted.kind == LinkKind::Tun;
    // A TUN interface that this process does not hold must be one that is about to vanish.
    let interface =
        found.interface(&wanted.device).filter(|_| !is_tun || found.userspace.interface);
    let is_wrong = |found: &Address| {
        !wanted.addresses.contains(&found.value)
            && (owned.given.contains(&found.value.local)
                || wanted.addresses.iter().any(|wanted| {
                    wanted.local == found.value.local || wanted.network == found.value.network
                }))
    };
    // An address is removed by the number of its interface.
    let is_to_be_made_again = |interface: &&Interface| {
        interface.known_index().is_none()
            && found.addresses.on(interface.index).iter().any(is_wrong)
    };
    if interface.is_some_and(|interface| is_to_be_made_again(&interface)) {
        steps.push(HostStep::RemoveLink(device()).into());
    }
    let Some(interface) = interface.filter(|interface| !is_to_be_made_again(interface)) else {
        let (device, mtu) = (device(), wanted.mtu.bytes);
        steps.push(match wanted.kind {
            LinkKind::Ipip(link) => KernelStep::CreateLink(KernelLink { device, link, mtu }).into(),
            LinkKind::Tun => TunStep::CreateLink { device, mtu }.into(),
        });
        steps.push(HostStep::ConfigureLink(wanted.clone()).into());
        steps.extend(wanted.addresses.iter().copied().map(add));
        return;
    };
    let is_unchanged = owned.mtus.get(&wanted.device) == Some(&wanted.mtu.bytes);
    let mtu = match wanted.mtu.from {
        MtuFrom::Uplink if is_unchanged => interface.mtu,
        MtuFrom::Uplink | MtuFrom::Option => wanted.mtu.bytes,
    };
    match wanted.kind {
        LinkKind::Ipip(link) if interface.kind != InterfaceKind::Ipip(link) => {
            steps.push(KernelStep::ChangeLink(KernelLink { device: device(), link, mtu }).into());
        }
        LinkKind::Ipip(_) | LinkKind::Tun if interface.mtu != mtu => {
            steps.push(HostStep::SetMtu(device(), mtu).into());
        }
        LinkKind::Ipip(_) | LinkKind::Tun => {}
    }
    if wanted.forwards == LinkForwarding::HostDefault
        && forwards_by_us(interface)
        && interface.forwarding == Some(true)
        && !found.ip_forward
    {
        let interface = interface.name.clone();
        steps.push(HostStep::SetForwarding { interface, on: false }.into());
    }
    let on_link = || found.addresses.on(interface.index).iter();
    let wrong = || on_link().filter(|found| is_wrong(found));
    let missing = || wanted.addresses.iter().filter(|w| !on_link().any(|a| a.value == **w));
    let replaces = wrong().next().is_some() && missing().next().is_some();
    if !interface.up
        || (replaces && interface.promotes == Some(false))
        || interface.label.as_deref() != Some(wanted.forwards.label())
        || !rp_filter_holds(wanted.source_check, interface.rp_filter)
        || (wanted.forwards != LinkForwarding::HostDefault && interface.forwarding == Some(false))
    {
        steps.push(HostStep::ConfigureLink(wanted.clone()).into());
    }
    // With its last address a link loses all its routes (`fib_disable_ip` in net/ipv4/fib_frontend.c), and
    // until there is another one packets take the way around the tunnel: the new address comes first.
    // But an IPv6 address cannot be there twice, with two prefixes (`ipv6_add_addr`).
    let is_in_the_way = |found: &&Address| {
        found.value.local.is_ipv6() && missing().any(|wanted| wanted.local == found.value.local)
    };
    let (first, last): (Vec<_>, Vec<_>) = wrong().partition(is_in_the_way);
    let remove = |address: &Address| HostStep::RemoveInnerAddress(*address).into();
    steps.extend(first.into_iter().map(remove));
    steps.extend(missing().copied().map(add));
    steps.extend(last.into_iter().map(remove));
    let kept = on_link().filter(|found| wanted.addresses.contains(&found.value));
    kept.for_each(|address| plan_kernel_routes(&wanted.device, address, found, steps));
}

/// Makes the kernel's routes of an address again that are gone although the address is there.
fn plan_kernel_routes(
    device: &DeviceName,
    address: &Address,
    found: &Found,
    steps: &mut Vec<Step>,
) {
    let is_lost = |route: &KernelRoute| found.lost_routes.contains(route);
    for route in KernelRoute::of(address).filter(is_lost) {
        // Of IPv6, this one is a part of the address, and would stay without it (`ip6_del_rt` of `ifp->rt` in
        // net/ipv6/addrconf.c).
        if route.to == KernelRouteTo::Address && address.value.local.is_ipv6() {
            steps.push(HostStep::RemoveInnerAddress(*address).into());
            steps.push(HostStep::AddInnerAddress(device.clone(), address.value).into());
            return;
        }
        steps.push(HostStep::RestoreRoute(device.clone(), route).into());
    }
}

fn rp_filter_holds(check: SourceCheck, found: Option<u32>) -> bool {
    // If the kernel does not report the setting, there is nothing to compare; it was requested when the
    // link was made.
    rp_filter(check).is_none_or(|wanted| found.is_none_or(|found| found == wanted))
}

/// Where there are `many` peers, each goes and comes by itself: one whose link is refused must not be
/// admitted, and must not keep the others out, or in.
fn plan_admitted(wanted: &Wanted, found: &Found, many: bool, steps: &mut Vec<Step>) {
    let installs = steps.iter().any(|s| matches!(s, Step::Kernel(KernelStep::InstallRules(..))));
    match &found.rules {
        RulesFound::Intact(admitted) if !installs && *admitted != wanted.admitted && many => {
            let gone = admitted.difference(&wanted.admitted).cloned();
            let come = wanted.admitted.difference(admitted).cloned();
            steps.extend(exchange(gone.collect(), come.collect()));
        }
        RulesFound::Intact(admitted) if !installs && *admitted != wanted.admitted => {
            steps.push(KernelStep::Admit(wanted.admitted.clone()).into());
        }
        RulesFound::Intact(_)
        | RulesFound::Missing
        | RulesFound::Unknown
        | RulesFound::Unavailable => {}
    }
}

/// The steps that let some in and others no more. A peer on a shared link that moves is let in at any time. Whoever
/// goes goes first: an element of its may be another's then.
pub fn exchange(gone: Vec<Admitted>, come: Vec<Admitted>) -> impl Iterator<Item = Step> {
    let peer = |one: &Admitted| one.networks.as_ref()?.first().copied();
    let (known, others): (Vec<_>, Vec<_>) = gone.into_iter().partition(|one| peer(one).is_some());
    let mut known: BTreeMap<_, _> = known.into_iter().map(|one| (peer(&one), one)).collect();
    let come: Vec<KernelStep> = come
        .into_iter()
        .map(|new| match known.remove(&peer(&new)) {
            Some(old) => KernelStep::AdmitInstead { old, new },
            None => KernelStep::AdmitToo(new),
        })
        .collect();
    let gone = others.into_iter().chain(known.into_values()).map(KernelStep::AdmitNoMore);
    gone.chain(come).map(Step::from)
}
