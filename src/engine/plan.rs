//! Wanted minus found: the ordered steps that make the host what it should be.
//!
//! One mechanism for the first start, a restart, a repair, a move and the end. The order keeps the
//! door shut: rules come before the listener they guard and go after it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use super::config::{DeviceName, QueueConfig, SourceCheck};
use super::host::{Address, Admitted, Found, InterfaceKind, IpipLink, Listener, RulesFound};

/// The mark on links we made (`IFLA_IFALIAS`, shown by `ip link`).
pub const LABEL: &str = "made by ipipou";

/// What the host should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub rules: Option<RuleSpec>,
    pub admitted: BTreeSet<Admitted>,
    /// Private local addresses, on the loopback interface.
    pub private: BTreeSet<Ipv4Addr>,
    pub listeners: BTreeSet<Listener>,
    pub links: Vec<WantedLink>,
    /// Links of ours that should not be: no remote is known for them.
    pub unwanted: Vec<DeviceName>,
}

/// A tunnel interface as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLink {
    pub device: DeviceName,
    pub link: IpipLink,
    pub inner: Ipv4Addr,
    pub inner_peer: Ipv4Addr,
    pub source_check: SourceCheck,
}

/// Everything the rules depend on, but for the remotes they let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    pub table: String,
    pub outer: Ipv4Addr,
    pub port: u16,
    /// Private local addresses that nothing from outside may reach.
    pub private: BTreeSet<Ipv4Addr>,
    pub control: Control,
    pub counters: bool,
}

/// What happens to packets that are no data of a known remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A client expects none.
    Refuse,
    /// A server looks at them in the queue.
    Queue { queue: QueueConfig, shape: ControlShape },
}

/// How an authentication packet is told from data, without knowing who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlShape {
    /// Anything whose first four bits are not 4; and packets of exactly this many payload bytes
    /// that could be taken for IPv4 but for their total length field.
    NotIpv4 { length: u16 },
    /// Anything at all from the remote that is let in by its address.
    FromRemote { ip: Option<Ipv4Addr>, port: Option<u16> },
}

/// What we made, or found and took over: only this is ever removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    pub listeners: BTreeSet<Listener>,
    pub private: BTreeSet<Ipv4Addr>,
    pub rules: bool,
}

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replaces our whole table in one transaction.
    InstallRules(RuleSpec, BTreeSet<Admitted>),
    /// Makes the remotes that are let in exactly these, in one transaction.
    Admit(BTreeSet<Admitted>),
    AddPrivateAddress(Ipv4Addr),
    AddListener(Listener),
    CreateLink(WantedLink),
    ChangeLink(WantedLink),
    /// Label, reverse path filter, up.
    DressLink(WantedLink),
    AddInnerAddress(WantedLink),
    RemoveInnerAddress(Address),
    RemoveLink(DeviceName),
    RemoveListener(Listener),
    RemovePrivateAddress(Ipv4Addr),
    RemoveRules,
}

/// The steps from `found` to `wanted`. `installed` is the spec of the rules now in the kernel.
///
/// Applied to a host, they leave nothing to do: planning again gives no step.
pub fn plan(
    wanted: &Wanted,
    found: &Found,
    installed: Option<&RuleSpec>,
    owned: &Owned,
) -> Vec<Step> {
    // Old doors go before the rules do that guard them.
    let mut steps: Vec<_> = plan_unwanted_listeners(wanted, found, owned).collect();
    plan_rules(wanted, found, installed, &mut steps);
    for private in &wanted.private {
        if !found.has_local(*private) {
            steps.push(Step::AddPrivateAddress(*private));
        }
    }
    for listener in &wanted.listeners {
        if !found.listeners.iter().any(|f| f.serves(listener)) {
            steps.push(Step::AddListener(*listener));
        }
    }
    for link in &wanted.links {
        plan_link(link, found, &mut steps);
    }
    steps.extend(plan_unwanted(&wanted.unwanted, found));
    plan_admitted(wanted, found, &mut steps);
    steps.extend(plan_unwanted_private(wanted, found, owned));
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
    steps.extend(plan_unwanted_private(&nothing, found, owned));
    if owned.rules && matches!(found.rules, RulesFound::Unknown | RulesFound::Intact(_)) {
        steps.push(Step::RemoveRules);
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
        .map(|device| Step::RemoveLink(device.clone()))
}

/// Whether we made this interface.
pub fn is_labelled(interface: &super::host::Interface) -> bool {
    interface.label.as_deref() == Some(LABEL)
}

fn plan_rules(wanted: &Wanted, found: &Found, installed: Option<&RuleSpec>, steps: &mut Vec<Step>) {
    let Some(spec) = &wanted.rules else { return };
    match &found.rules {
        RulesFound::Unavailable => {}
        RulesFound::Intact(_) if installed == Some(spec) => {}
        RulesFound::Intact(_) | RulesFound::Missing | RulesFound::Unknown => {
            steps.push(Step::InstallRules(spec.clone(), wanted.admitted.clone()));
        }
    }
}

fn plan_link(wanted: &WantedLink, found: &Found, steps: &mut Vec<Step>) {
    let Some(interface) = found.interface(&wanted.device) else {
        steps.push(Step::CreateLink(wanted.clone()));
        steps.push(Step::DressLink(wanted.clone()));
        steps.push(Step::AddInnerAddress(wanted.clone()));
        return;
    };
    if interface.kind != InterfaceKind::Ipip(wanted.link) {
        steps.push(Step::ChangeLink(wanted.clone()));
    }
    if !interface.up
        || !is_labelled(interface)
        || !rp_filter_holds(wanted.source_check, interface.rp_filter)
    {
        steps.push(Step::DressLink(wanted.clone()));
    }
    let (right, wrong): (Vec<&Address>, Vec<&Address>) = found
        .addresses
        .iter()
        .filter(|a| a.interface == interface.index)
        .filter(|a| a.local == wanted.inner || a.peer == wanted.inner_peer)
        .partition(|a| {
            a.local == wanted.inner && a.peer == wanted.inner_peer && a.prefix == POINT_TO_POINT
        });
    steps.extend(wrong.into_iter().map(|a| Step::RemoveInnerAddress(*a)));
    if right.is_empty() {
        steps.push(Step::AddInnerAddress(wanted.clone()));
    }
}

/// Prefix length of a point-to-point address.
const POINT_TO_POINT: u8 = 32;

/// The value of `rp_filter` that a check asks for (ip-sysctl.rst); `None` leaves it alone.
pub fn rp_filter(check: SourceCheck) -> Option<u32> {
    match check {
        SourceCheck::Off => None,
        SourceCheck::Strict => Some(1),
        SourceCheck::Loose => Some(2),
    }
}

fn rp_filter_holds(check: SourceCheck, found: Option<u32>) -> bool {
    // A kernel that does not tell cannot be compared with; it was asked when the link was made.
    rp_filter(check).is_none_or(|wanted| found.is_none_or(|found| found == wanted))
}

fn plan_admitted(wanted: &Wanted, found: &Found, steps: &mut Vec<Step>) {
    let installs = steps.iter().any(|s| matches!(s, Step::InstallRules(..)));
    match &found.rules {
        RulesFound::Intact(admitted) if !installs && *admitted != wanted.admitted => {
            steps.push(Step::Admit(wanted.admitted.clone()));
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
        .map(|listener| Step::RemoveListener(*listener))
}

fn plan_unwanted_private<'a>(
    wanted: &'a Wanted,
    found: &'a Found,
    owned: &'a Owned,
) -> impl Iterator<Item = Step> + 'a {
    owned
        .private
        .difference(&wanted.private)
        .filter(|private| found.has_local(**private))
        .map(|private| Step::RemovePrivateAddress(*private))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::InstallRules(spec, admitted) => {
                write!(f, "install rules {} for {}:{}", spec.table, spec.outer, spec.port)?;
                list(f, ", admitting", admitted)
            }
            Step::Admit(admitted) if admitted.is_empty() => f.write_str("admit nobody"),
            Step::Admit(admitted) => list(f, "admit", admitted),
            Step::AddPrivateAddress(address) => write!(f, "add private address {address}"),
            Step::AddListener(listener) => write!(f, "add FOU listener {listener}"),
            Step::CreateLink(w) => write!(f, "create {} {}", w.device, w.link),
            Step::ChangeLink(w) => write!(f, "change {} to {}", w.device, w.link),
            Step::DressLink(w) => write!(f, "set {} up", w.device),
            Step::AddInnerAddress(w) => {
                write!(f, "add {} peer {} to {}", w.inner, w.inner_peer, w.device)
            }
            Step::RemoveInnerAddress(a) => write!(f, "remove {} peer {}", a.local, a.peer),
            Step::RemoveLink(device) => write!(f, "remove {device}"),
            Step::RemoveListener(listener) => write!(f, "remove FOU listener {listener}"),
            Step::RemovePrivateAddress(address) => write!(f, "remove private address {address}"),
            Step::RemoveRules => f.write_str("remove rules"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, verb: &str, admitted: &BTreeSet<Admitted>) -> fmt::Result {
    for (i, one) in admitted.iter().enumerate() {
        write!(f, "{} {one}", if i == 0 { verb } else { "," })?;
    }
    Ok(())
}
