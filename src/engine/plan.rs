//! Wanted minus found: the ordered steps that make the host what it should be.
//!
//! One mechanism for the first start, a restart, a repair, a move and the end. The order keeps the
//! door shut: rules come before the listener they guard and go after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use super::config::{DeviceName, QueueConfig, SourceCheck};
use super::forwarding::PeerTable;
use super::gateway;
use super::host::{
    Address, Admitted, Found, GatewaySpec, Interface, InterfaceAddress, InterfaceKind, IpipLink,
    Listener, PolicyRule, Route, RulesFound,
};
use super::socket::SocketSpec;

/// The marks on links we made (`IFLA_IFALIAS`, shown by `ip link`), by [`LinkForwarding`]. What may go
/// into a gateway's, its own process judges, and nobody else's.
const LABEL: &str = "made by ipipou";
const AMONG_CLIENTS_LABEL: &str = "made by ipipou, for many clients";
const GATEWAY_LABEL: &str = "made by ipipou, a gateway";

/// What the host should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub rules: Option<RuleSpec>,
    pub admitted: BTreeSet<Admitted>,
    /// Alternate local addresses, on the loopback interface.
    pub alternate: BTreeSet<Ipv4Addr>,
    pub listeners: BTreeSet<Listener>,
    pub links: Vec<WantedLink>,
    /// Links of ours that should not be: no remote is known for them, or they have a wrong name.
    pub unwanted: Vec<DeviceName>,
    pub socket: Option<SocketSpec>,
    pub forwarding: PeerTable,
    pub gateway: gateway::Wanted,
}

/// A tunnel interface as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedLink {
    pub device: DeviceName,
    pub kind: LinkKind,
    pub mtu: Mtu,
    pub addresses: Vec<InterfaceAddress>,
    pub source_check: SourceCheck,
    pub forwards: LinkForwarding,
}

/// Where what comes out of a tunnel is forwarded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkForwarding {
    /// As the host has it for new interfaces.
    HostDefault,
    /// Clients reach each other.
    AmongClients,
    /// Other interfaces; the gateway's rules judge it.
    Gateway,
}

impl LinkForwarding {
    /// The label of such a link.
    pub fn label(self) -> &'static str {
        match self {
            LinkForwarding::HostDefault => LABEL,
            LinkForwarding::AmongClients => AMONG_CLIENTS_LABEL,
            LinkForwarding::Gateway => GATEWAY_LABEL,
        }
    }
}

/// What kind of interface a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Ipip(IpipLink),
    /// A TUN interface of this process.
    Tun,
}

/// How large packets inside a tunnel may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu {
    pub bytes: u32,
    pub from: MtuFrom,
}

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtuFrom {
    /// `--mtu`: nobody else may change it.
    Option,
    /// It follows the uplink's. If it is changed by hand, it stays so until the uplink's changes.
    Uplink,
}

/// Everything the rules depend on, but for the remotes they let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    pub table: String,
    pub outer: Ipv4Addr,
    pub port: u16,
    /// Alternate local addresses in use; nothing from outside may reach them.
    pub alternate: BTreeSet<Ipv4Addr>,
    /// Whether the listener takes only what comes in by one interface.
    pub bound: bool,
    /// Tunnel interfaces of this and other processes: what comes out of them is no outer packet of
    /// this tunnel.
    pub inside: BTreeSet<String>,
    /// Remotes that nothing is sent to: they are not admitted any more.
    pub silenced: BTreeSet<SocketAddrV4>,
    /// Whether outer packets of admitted remotes are kept from conntrack.
    pub untracked: bool,
    pub control: Control,
    pub counters: bool,
}

/// What happens to packets that are no data of a known remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A client expects none.
    Refuse,
    /// A server looks at them in the queue.
    Queue { queue: QueueConfig, shape: PacketShape },
}

impl Control {
    /// Whether there is no other proof than where a packet comes from.
    pub fn proof_is_address(&self) -> bool {
        matches!(self, Control::Queue { shape: PacketShape::FromRemote { .. }, .. })
    }
}

/// How an authentication packet is told from data, without knowing who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketShape {
    /// Anything of at least `length` and at most `longest` payload bytes whose first four bits are not
    /// 4; and packets of exactly `length` bytes that could be taken for IPv4 but for their total
    /// length field.
    NotIpv4 { length: u16, longest: u16 },
    /// Anything at all from the remote that is let in by its address.
    FromRemote { ip: Option<IpAddr>, port: Option<u16> },
}

/// What we made, or found and took over: only this is ever removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    pub listeners: BTreeSet<Listener>,
    pub alternate: BTreeSet<Ipv4Addr>,
    pub rules: bool,
    /// The MTUs that our interfaces were given last.
    pub mtus: BTreeMap<DeviceName, u32>,
}

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replaces our whole table in one transaction.
    InstallRules(RuleSpec, BTreeSet<Admitted>),
    /// Makes the remotes that are let in exactly these, in one transaction.
    Admit(BTreeSet<Admitted>),
    AddAlternateAddress(Ipv4Addr),
    AddListener(Listener),
    CreateLink(WantedLink),
    ChangeLink(WantedLink),
    /// Label, reverse path filter, up.
    ConfigureLink(WantedLink),
    SetMtu(DeviceName, u32),
    AddInnerAddress(DeviceName, InterfaceAddress),
    RemoveInnerAddress(Address),
    RemoveLink(DeviceName),
    /// The userspace datapath's socket.
    Bind(SocketSpec),
    Forward(PeerTable),
    AddRoute(Route),
    RemoveRoute(Route),
    AddPolicyRule(PolicyRule),
    RemovePolicyRule(PolicyRule),
    InstallGateway(GatewaySpec),
    RemoveGateway,
    /// Whether an interface forwards what comes in by it.
    SetForwarding {
        interface: String,
        on: bool,
    },
    SetRpFilter {
        interface: String,
        value: u32,
    },
    /// The name servers of `--dns`.
    UseNameServers,
    RestoreNameServers,
    RemoveListener(Listener),
    RemoveAlternateAddress(Ipv4Addr),
    RemoveRules,
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
            steps.push(Step::AddAlternateAddress(*alternate));
        }
    }
    for listener in &wanted.listeners {
        if !found.listeners.iter().any(|f| f.serves(listener)) {
            steps.push(Step::AddListener(*listener));
        }
    }
    if let Some(socket) = &wanted.socket
        && found.userspace.socket.as_ref() != Some(socket)
    {
        steps.push(Step::Bind(socket.clone()));
    }
    if found.userspace.forwarding != wanted.forwarding {
        steps.push(Step::Forward(wanted.forwarding.clone()));
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
pub fn is_labelled(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(LABEL) || forwards_by_us(interface)
}

/// Whether an interface that we made forwards because we said so.
fn forwards_by_us(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(AMONG_CLIENTS_LABEL) || is_gateway(interface)
}

/// Whether this interface is the tunnel of a gateway, ours or another process'.
pub fn is_gateway(interface: &Interface) -> bool {
    interface.label.as_deref() == Some(GATEWAY_LABEL)
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
            steps.push(Step::InstallRules(spec, wanted.admitted.clone()));
        }
    }
}

fn plan_link(wanted: &WantedLink, found: &Found, owned: &Owned, steps: &mut Vec<Step>) {
    let add = |address| Step::AddInnerAddress(wanted.device.clone(), address);
    let is_tun = wanted.kind == LinkKind::Tun;
    // A TUN interface that is not this process' own can only be gone in a moment.
    let interface =
        found.interface(&wanted.device).filter(|_| !is_tun || found.userspace.interface);
    let Some(interface) = interface else {
        steps.push(Step::CreateLink(wanted.clone()));
        steps.push(Step::ConfigureLink(wanted.clone()));
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
            let mtu = Mtu { bytes: mtu, ..wanted.mtu };
            steps.push(Step::ChangeLink(WantedLink { mtu, ..wanted.clone() }));
        }
        LinkKind::Ipip(_) | LinkKind::Tun if interface.mtu != mtu => {
            steps.push(Step::SetMtu(wanted.device.clone(), mtu));
        }
        LinkKind::Ipip(_) | LinkKind::Tun => {}
    }
    if wanted.forwards == LinkForwarding::HostDefault
        && forwards_by_us(interface)
        && interface.forwarding == Some(true)
        && !found.ip_forward
    {
        steps.push(Step::SetForwarding { interface: interface.name.clone(), on: false });
    }
    if !interface.up
        || interface.label.as_deref() != Some(wanted.forwards.label())
        || !rp_filter_holds(wanted.source_check, interface.rp_filter)
        || (wanted.forwards != LinkForwarding::HostDefault && interface.forwarding == Some(false))
    {
        steps.push(Step::ConfigureLink(wanted.clone()));
    }
    let on_link = || found.addresses.iter().filter(|a| a.interface == interface.index);
    let wrong = on_link().filter(|found| {
        !wanted.addresses.contains(&found.value)
            && wanted.addresses.iter().any(|wanted| {
                wanted.local == found.value.local || wanted.network == found.value.network
            })
    });
    steps.extend(wrong.map(|address| Step::RemoveInnerAddress(*address)));
    let missing = wanted.addresses.iter().filter(|w| !on_link().any(|a| a.value == **w));
    steps.extend(missing.copied().map(add));
}

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

fn plan_unwanted_alternate<'a>(
    wanted: &'a Wanted,
    found: &'a Found,
    owned: &'a Owned,
) -> impl Iterator<Item = Step> + 'a {
    owned
        .alternate
        .difference(&wanted.alternate)
        .filter(|alternate| found.has_local(IpAddr::V4(**alternate)))
        .map(|alternate| Step::RemoveAlternateAddress(*alternate))
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
            Step::AddAlternateAddress(address) => write!(f, "add alternate address {address}"),
            Step::AddListener(listener) => write!(f, "add FOU listener {listener}"),
            Step::CreateLink(w) => match w.kind {
                LinkKind::Ipip(_) => write!(f, "create {} {}", w.device, w.kind),
                LinkKind::Tun => {
                    write!(f, "create {} {}, MTU {}", w.device, w.kind, w.mtu.bytes)
                }
            },
            Step::SetMtu(device, mtu) => write!(f, "set the MTU of {device} to {mtu}"),
            Step::ChangeLink(w) => write!(f, "change {} to {}", w.device, w.kind),
            Step::ConfigureLink(w) => write!(f, "set {} up", w.device),
            Step::AddInnerAddress(device, address) => write!(f, "add {address} to {device}"),
            Step::RemoveInnerAddress(address) => write!(f, "remove {}", address.value),
            Step::Bind(socket) => write!(f, "open UDP socket {socket}"),
            Step::Forward(spec) if spec.remotes.is_empty() => f.write_str("forward to nobody"),
            Step::Forward(spec) => {
                let to: Vec<_> = spec.remotes.keys().map(ToString::to_string).collect();
                write!(f, "forward to {}", to.join(", "))
            }
            Step::AddRoute(route) => write!(f, "add {route}"),
            Step::RemoveRoute(route) => write!(f, "remove {route}"),
            Step::AddPolicyRule(rule) => write!(f, "add {rule}"),
            Step::RemovePolicyRule(rule) => write!(f, "remove {rule}"),
            Step::InstallGateway(spec) => write!(f, "install gateway rules {}", spec.table),
            Step::RemoveGateway => f.write_str("remove gateway rules"),
            Step::SetForwarding { interface, on } => {
                write!(f, "turn forwarding of {interface} {}", if *on { "on" } else { "off" })
            }
            Step::SetRpFilter { interface, value } => {
                write!(f, "set rp_filter of {interface} to {value}")
            }
            Step::UseNameServers => f.write_str("use our name servers"),
            Step::RestoreNameServers => f.write_str("restore the name servers"),
            Step::RemoveLink(device) => write!(f, "remove {device}"),
            Step::RemoveListener(listener) => write!(f, "remove FOU listener {listener}"),
            Step::RemoveAlternateAddress(address) => {
                write!(f, "remove alternate address {address}")
            }
            Step::RemoveRules => f.write_str("remove rules"),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkKind::Ipip(link) => write!(f, "{link}"),
            LinkKind::Tun => f.write_str("as a TUN interface"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, verb: &str, admitted: &BTreeSet<Admitted>) -> fmt::Result {
    for (i, one) in admitted.iter().enumerate() {
        write!(f, "{} {one}", if i == 0 { verb } else { "," })?;
    }
    Ok(())
}
