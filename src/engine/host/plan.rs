//! Wanted minus found: the ordered steps that make the host what it should be.
//!
//! One mechanism for the first start, a restart, a repair, a move and the end. The order keeps the
//! door shut: rules come before the listener they guard and go after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::found::Found;
use super::interface::InterfaceKind;
use super::label::{LinkForwarding, forwards_by_us, is_labelled};
use super::rules::{Listener, RuleSpec, RulesFound};
use super::step::{HostStep, KernelLink, KernelStep, Step, TunStep};
use super::wanted::{LinkKind, MtuFrom, Wanted, WantedLink, rp_filter};
use crate::engine::config::{DeviceName, SourceCheck};

/// What we made, or found and took over: only this is ever removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    pub listeners: BTreeSet<Listener>,
    pub alternate: BTreeSet<Ipv4Addr>,
    pub rules: bool,
    /// The MTUs that our interfaces were given last.
    pub mtus: BTreeMap<DeviceName, u32>,
}

/// The steps from `found` to `wanted`. `installed` is the spec of the rules now in the kernel.
///
/// Applied to a host, they leave nothing to do: planning again gives no step, but for the guard of a
/// alternate address that they removed.
pub fn plan(
    wanted: &Wanted,
    found: &Found,
    installed: Option<&RuleSpec>,
    owned: &Owned,
) -> Vec<Step> {
    // Old doors go before the rules do that guard them.
    let mut steps: Vec<_> = plan_unwanted_listeners(wanted, found, owned).collect();
    plan_rules(wanted, found, installed, owned, &mut steps);
    for alternate in &wanted.alternate {
        if !found.has_local(IpAddr::V4(*alternate)) {
            steps.push(KernelStep::AddAlternateAddress(*alternate).into());
        }
    }
    for listener in &wanted.listeners {
        if !found.listeners.iter().any(|f| f.serves(listener)) {
            steps.push(KernelStep::AddListener(*listener).into());
        }
    }
    if let Some(socket) = &wanted.socket
        && found.userspace.socket.as_ref() != Some(socket)
    {
        steps.push(TunStep::Bind(socket.clone()).into());
    }
    if found.userspace.forwarding != wanted.forwarding {
        steps.push(TunStep::Forward(wanted.forwarding.clone()).into());
    }
    // A new link may have the addresses of an old one.
    steps.extend(plan_unwanted(&wanted.unwanted, found));
    for link in &wanted.links {
        plan_link(link, found, owned, &mut steps);
    }
    plan_admitted(wanted, found, &mut steps);
    steps.extend(plan_unwanted_alternate(wanted, found, owned));
    steps
}

/// The steps that take everything of ours away, in reverse. `devices` are our tunnel interfaces.
pub fn plan_removal<'a>(
    devices: impl IntoIterator<Item = &'a DeviceName>,
    found: &Found,
    owned: &Owned,
) -> Vec<Step> {
    let mut steps: Vec<_> = plan_unwanted(devices, found).collect();
    let nothing = Wanted::default();
    steps.extend(plan_unwanted_listeners(&nothing, found, owned));
    steps.extend(plan_unwanted_alternate(&nothing, found, owned));
    if owned.rules && matches!(found.rules, RulesFound::Unknown | RulesFound::Intact(_)) {
        steps.push(KernelStep::RemoveRules.into());
    }
    steps
}

fn plan_unwanted<'a>(
    devices: impl IntoIterator<Item = &'a DeviceName>,
    found: &Found,
) -> impl Iterator<Item = Step> {
    devices
        .into_iter()
        .filter(|device| found.interface(device).is_some_and(is_labelled))
        .map(|device| HostStep::RemoveLink(device.clone()).into())
}

fn plan_rules(
    wanted: &Wanted,
    found: &Found,
    installed: Option<&RuleSpec>,
    owned: &Owned,
    steps: &mut Vec<Step>,
) {
    let Some(spec) = &wanted.rules else { return };
    let mut spec = spec.clone();
    // A link still has the alternate address that is about to go; when it is gone, so is its guard.
    let going = owned.alternate.iter().filter(|alternate| found.has_local(IpAddr::V4(**alternate)));
    spec.alternate.extend(going);
    match &found.rules {
        RulesFound::Unavailable => {}
        RulesFound::Intact(_) if installed == Some(&spec) => {}
        RulesFound::Intact(_) | RulesFound::Missing | RulesFound::Unknown => {
            steps.push(KernelStep::InstallRules(spec, wanted.admitted.clone()).into());
        }
    }
}

fn plan_link(wanted: &WantedLink, found: &Found, owned: &Owned, steps: &mut Vec<Step>) {
    let device = || wanted.device.clone();
    let add = |address| HostStep::AddInnerAddress(device(), address).into();
    let is_tun = wanted.kind == LinkKind::Tun;
    // A TUN interface that is not this process' own can only be gone in a moment.
    let interface =
        found.interface(&wanted.device).filter(|_| !is_tun || found.userspace.interface);
    let Some(interface) = interface else {
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
    if !interface.up
        || interface.label.as_deref() != Some(wanted.forwards.label())
        || !rp_filter_holds(wanted.source_check, interface.rp_filter)
        || (wanted.forwards != LinkForwarding::HostDefault && interface.forwarding == Some(false))
    {
        steps.push(HostStep::ConfigureLink(wanted.clone()).into());
    }
    let on_link = || found.addresses.iter().filter(|a| a.interface == interface.index);
    let wrong = on_link().filter(|found| {
        !wanted.addresses.contains(&found.value)
            && wanted.addresses.iter().any(|wanted| {
                wanted.local == found.value.local || wanted.network == found.value.network
            })
    });
    steps.extend(wrong.map(|address| HostStep::RemoveInnerAddress(*address).into()));
    let missing = wanted.addresses.iter().filter(|w| !on_link().any(|a| a.value == **w));
    steps.extend(missing.copied().map(add));
}

fn rp_filter_holds(check: SourceCheck, found: Option<u32>) -> bool {
    // A kernel that does not tell cannot be compared with; it was asked when the link was made.
    rp_filter(check).is_none_or(|wanted| found.is_none_or(|found| found == wanted))
}

fn plan_admitted(wanted: &Wanted, found: &Found, steps: &mut Vec<Step>) {
    let installs = steps.iter().any(|s| matches!(s, Step::Kernel(KernelStep::InstallRules(..))));
    match &found.rules {
        RulesFound::Intact(admitted) if !installs && *admitted != wanted.admitted => {
            steps.push(KernelStep::Admit(wanted.admitted.clone()).into());
        }
        RulesFound::Intact(_)
        | RulesFound::Missing
        | RulesFound::Unknown
        | RulesFound::Unavailable => {}
    }
}

/// Listeners of ours on an address, a port or an interface that is not wanted, or not any more.
fn plan_unwanted_listeners<'a>(
    wanted: &'a Wanted,
    found: &'a Found,
    owned: &'a Owned,
) -> impl Iterator<Item = Step> + 'a {
    found
        .listeners
        .intersection(&owned.listeners)
        .filter(|listener| !wanted.listeners.iter().any(|w| listener.serves(w)))
        .map(|listener| KernelStep::RemoveListener(*listener).into())
}

fn plan_unwanted_alternate<'a>(
    wanted: &'a Wanted,
    found: &'a Found,
    owned: &'a Owned,
) -> impl Iterator<Item = Step> + 'a {
    owned
        .alternate
        .difference(&wanted.alternate)
        .filter(|alternate| found.has_local(IpAddr::V4(**alternate)))
        .map(|alternate| KernelStep::RemoveAlternateAddress(*alternate).into())
}
