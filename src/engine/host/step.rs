//! One change to the host. Each adapter has an enum of its own, so that it matches all of its steps and
//! none of the others'; their `Display` is what logs and golden files show.

use std::collections::BTreeSet;
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::fast_path::{FastPath, FastPeer};
use super::interface::{Address, InterfaceAddress, IpipLink};
use super::routing::{GatewaySpec, KernelRoute, PolicyRule, Route};
use super::rules::{Admitted, Listener, RuleSpec};
use super::userspace::{PeerTable, RemoteSpec, SocketSpec};
use super::wanted::WantedLink;
use crate::engine::config::DeviceName;

/// One change, by the adapter that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Links, addresses, routes or settings.
    Host(HostStep),
    /// The kernel's datapath.
    Kernel(KernelStep),
    /// The userspace datapath.
    Tun(TunStep),
    /// The fast path.
    Fast(FastStep),
    /// The nftables table of a gateway.
    Nat(NatStep),
    /// The name servers.
    Dns(DnsStep),
}

/// Links, addresses, routes and settings, whatever the datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostStep {
    /// Sets label, reverse path filter and forwarding of a link, and brings it up.
    ConfigureLink(WantedLink),
    /// Sets the MTU of an interface, in bytes.
    SetMtu(DeviceName, u32),
    /// Removes a link; its addresses and routes go with it.
    RemoveLink(DeviceName),
    /// Adds an address to a link.
    AddInnerAddress(DeviceName, InterfaceAddress),
    /// Removes an address from the interface that it is on.
    RemoveInnerAddress(Address),
    /// Makes a route again that the kernel made with an address of a link.
    RestoreRoute(DeviceName, KernelRoute),
    /// Adds a route of protocol [`ROUTE_PROTOCOL`](super::ROUTE_PROTOCOL).
    AddRoute(Route),
    /// Adds a route of that protocol in the place of another of our own to the same destination.
    ReplaceRoute(Route),
    /// Removes a route of that protocol.
    RemoveRoute(Route),
    /// Adds a policy rule of the same protocol.
    AddPolicyRule(PolicyRule),
    /// Removes a policy rule of that protocol.
    RemovePolicyRule(PolicyRule),
    /// Whether an interface forwards what comes in by it.
    SetForwarding {
        /// Its name.
        interface: String,
        /// The value for `net.ipv4.conf.INTERFACE.forwarding`.
        on: bool,
    },
    /// Sets how strictly an interface checks the sources of inner packets.
    SetRpFilter {
        /// Its name.
        interface: String,
        /// The value for `net.ipv4.conf.INTERFACE.rp_filter`: 0 off, 1 strict, 2 loose.
        value: u32,
    },
}

/// The kernel's datapath: FOU listeners, `ipip` links, and the rules that guard them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelStep {
    /// Replaces the whole table of this tunnel in one transaction.
    InstallRules(RuleSpec, BTreeSet<Admitted>),
    /// Makes the admitted remotes exactly these, in one transaction.
    Admit(BTreeSet<Admitted>),
    /// Admits one remote beside the others, in one transaction.
    AdmitToo(Admitted),
    /// Stops admitting one remote, in one transaction.
    AdmitNoMore(Admitted),
    /// Admits a peer on a shared link where it is now, and no more where it was, in one transaction.
    AdmitInstead {
        /// Where it is let in.
        old: Admitted,
        /// Where it will be.
        new: Admitted,
    },
    /// Deletes the whole table of this tunnel.
    RemoveRules,
    /// Adds a /32 to the loopback interface.
    AddAlternateAddress(Ipv4Addr),
    /// Removes that /32.
    RemoveAlternateAddress(Ipv4Addr),
    /// Opens a FOU listener (`FOU_CMD_ADD`).
    AddListener(Listener),
    /// Closes a FOU listener (`FOU_CMD_DEL`); links keep sending without one.
    RemoveListener(Listener),
    /// Makes an `ipip` link, which is still down.
    CreateLink(KernelLink),
    /// Gives an `ipip` link another remote, local address or MTU, without removing it.
    ChangeLink(KernelLink),
}

/// An `ipip` link of the kernel's datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLink {
    /// Name of the interface.
    pub device: DeviceName,
    /// What it is made of.
    pub link: IpipLink,
    /// Bytes of the largest inner packet.
    pub mtu: u32,
}

/// The userspace datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunStep {
    /// Opens the UDP socket, in the place of one at another address.
    Bind(SocketSpec),
    /// Replaces the table of remotes.
    Forward(PeerTable),
    /// Adds one remote to the table, or exchanges what it has of it.
    AddRemote(SocketAddr, RemoteSpec),
    /// Takes one remote out of the table, and what was learned behind it.
    RemoveRemote(SocketAddr),
    /// Opens a TUN interface whose largest packet has `mtu` bytes.
    CreateLink {
        /// Name for the interface.
        device: DeviceName,
        /// Bytes of the largest inner packet.
        mtu: u32,
    },
}

/// The fast path on top of a datapath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FastStep {
    /// Lets nothing pass from and to these remotes: it goes by the datapath again.
    Withdraw(BTreeSet<SocketAddrV4>),
    /// Makes it, or changes it to this.
    Install(FastPath),
    /// Puts a remote on it, beside the others.
    Add(SocketAddrV4, FastPeer),
    /// Removes it.
    Remove,
}

/// The nftables table of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatStep {
    /// Replaces the gateway's whole table in one transaction.
    Install(GatewaySpec),
    /// Deletes it.
    Remove,
}

/// The name servers of `--dns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsStep {
    /// Makes the host use those of `--dns`.
    Use,
    /// Gives the host back those that it had.
    Restore,
}

/// The kind of a step, whatever its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// A step of the host, whatever the datapath.
    Host(Discriminant<HostStep>),
    /// A step of the kernel's datapath.
    Kernel(Discriminant<KernelStep>),
    /// A step of the userspace datapath.
    Tun(Discriminant<TunStep>),
    /// A step of the fast path.
    Fast(Discriminant<FastStep>),
    /// A step of a gateway's rules.
    Nat(Discriminant<NatStep>),
    /// A step of the name servers.
    Dns(Discriminant<DnsStep>),
}

impl Step {
    /// What all steps of this kind have in common.
    pub fn kind(&self) -> StepKind {
        match self {
            Step::Host(step) => StepKind::Host(discriminant(step)),
            Step::Kernel(step) => StepKind::Kernel(discriminant(step)),
            Step::Tun(step) => StepKind::Tun(discriminant(step)),
            Step::Fast(step) => StepKind::Fast(discriminant(step)),
            Step::Nat(step) => StepKind::Nat(discriminant(step)),
            Step::Dns(step) => StepKind::Dns(discriminant(step)),
        }
    }

    /// Whether it keeps out what did not authenticate. Such a step is never put off.
    pub fn guards(&self) -> bool {
        match self {
            Step::Host(step) => matches!(step, HostStep::RemoveLink(_)),
            Step::Kernel(step) => match step {
                KernelStep::InstallRules(..)
                | KernelStep::Admit(_)
                | KernelStep::AdmitNoMore(_)
                | KernelStep::AdmitInstead { .. }
                | KernelStep::RemoveListener(_) => true,
                KernelStep::RemoveRules
                | KernelStep::AdmitToo(_)
                | KernelStep::AddAlternateAddress(_)
                | KernelStep::RemoveAlternateAddress(_)
                | KernelStep::AddListener(_)
                | KernelStep::CreateLink(_)
                | KernelStep::ChangeLink(_) => false,
            },
            Step::Tun(step) => match step {
                TunStep::Forward(_) | TunStep::AddRemote(..) | TunStep::RemoveRemote(_) => true,
                TunStep::Bind(_) | TunStep::CreateLink { .. } => false,
            },
            Step::Fast(step) => match step {
                FastStep::Withdraw(_) | FastStep::Remove => true,
                FastStep::Install(_) | FastStep::Add(..) => false,
            },
            Step::Nat(step) => matches!(step, NatStep::Install(_)),
            Step::Dns(DnsStep::Use | DnsStep::Restore) => false,
        }
    }

    /// Whether the tunnel is there without it. Routes and what else is around a tunnel may fail for
    /// reasons of their own.
    pub fn is_around(&self) -> bool {
        match self {
            Step::Host(step) => match step {
                HostStep::RestoreRoute(..)
                | HostStep::AddRoute(_)
                | HostStep::ReplaceRoute(_)
                | HostStep::RemoveRoute(_)
                | HostStep::AddPolicyRule(_)
                | HostStep::RemovePolicyRule(_)
                | HostStep::SetForwarding { .. }
                | HostStep::SetRpFilter { .. } => true,
                HostStep::ConfigureLink(_)
                | HostStep::SetMtu(..)
                | HostStep::RemoveLink(_)
                | HostStep::AddInnerAddress(..)
                | HostStep::RemoveInnerAddress(_) => false,
            },
            Step::Kernel(_) | Step::Tun(_) => false,
            Step::Fast(_) | Step::Nat(_) | Step::Dns(_) => true,
        }
    }
}

/// Whether the tunnel is there while these are still to be done.
pub fn is_made(steps: &[Step]) -> bool {
    steps.iter().all(Step::is_around)
}

/// Why a step was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The kernel said `EEXIST`.
    Taken,
    /// Any other error; the driver keeps and logs it.
    Otherwise,
}

impl From<HostStep> for Step {
    fn from(step: HostStep) -> Self {
        Step::Host(step)
    }
}

impl From<KernelStep> for Step {
    fn from(step: KernelStep) -> Self {
        Step::Kernel(step)
    }
}

impl From<TunStep> for Step {
    fn from(step: TunStep) -> Self {
        Step::Tun(step)
    }
}

impl From<FastStep> for Step {
    fn from(step: FastStep) -> Self {
        Step::Fast(step)
    }
}

impl From<NatStep> for Step {
    fn from(step: NatStep) -> Self {
        Step::Nat(step)
    }
}

impl From<DnsStep> for Step {
    fn from(step: DnsStep) -> Self {
        Step::Dns(step)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Host(step) => step.fmt(f),
            Step::Kernel(step) => step.fmt(f),
            Step::Tun(step) => step.fmt(f),
            Step::Fast(FastStep::Withdraw(remotes)) => {
                let from: Vec<_> = remotes.iter().map(ToString::to_string).collect();
                write!(f, "take {} off the fast path", from.join(", "))
            }
            Step::Fast(FastStep::Add(remote, _)) => write!(f, "put {remote} on the fast path"),
            Step::Fast(FastStep::Install(path)) => write!(f, "install the {path}"),
            Step::Fast(FastStep::Remove) => f.write_str("remove the fast path"),
            Step::Nat(NatStep::Install(spec)) => write!(f, "install gateway rules {}", spec.table),
            Step::Nat(NatStep::Remove) => f.write_str("remove gateway rules"),
            Step::Dns(DnsStep::Use) => f.write_str("use our name servers"),
            Step::Dns(DnsStep::Restore) => f.write_str("restore the name servers"),
        }
    }
}

impl fmt::Display for HostStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostStep::ConfigureLink(link) => write!(f, "set {} up", link.device),
            HostStep::SetMtu(device, mtu) => write!(f, "set the MTU of {device} to {mtu}"),
            HostStep::RemoveLink(device) => write!(f, "remove {device}"),
            HostStep::AddInnerAddress(device, address) => write!(f, "add {address} to {device}"),
            HostStep::RemoveInnerAddress(address) => write!(f, "remove {}", address.value),
            HostStep::RestoreRoute(device, route) => write!(f, "put back the {route} by {device}"),
            HostStep::AddRoute(route) => write!(f, "add {route}"),
            HostStep::ReplaceRoute(route) => write!(f, "change the {route}"),
            HostStep::RemoveRoute(route) => write!(f, "remove {route}"),
            HostStep::AddPolicyRule(rule) => write!(f, "add {rule}"),
            HostStep::RemovePolicyRule(rule) => write!(f, "remove {rule}"),
            HostStep::SetForwarding { interface, on } => {
                write!(f, "turn forwarding of {interface} {}", if *on { "on" } else { "off" })
            }
            HostStep::SetRpFilter { interface, value } => {
                write!(f, "set rp_filter of {interface} to {value}")
            }
        }
    }
}

impl fmt::Display for KernelStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelStep::InstallRules(spec, admitted) => {
                write!(f, "install rules {} for {}:{}", spec.table, spec.outer, spec.port)?;
                list(f, ", admitting", admitted)
            }
            KernelStep::Admit(admitted) if admitted.is_empty() => f.write_str("admit nobody"),
            KernelStep::Admit(admitted) => list(f, "admit", admitted),
            KernelStep::AdmitToo(one) => write!(f, "admit {one} too"),
            KernelStep::AdmitNoMore(one) => write!(f, "stop admitting {one}"),
            KernelStep::AdmitInstead { old, new } => write!(f, "admit {new} instead of {old}"),
            KernelStep::RemoveRules => f.write_str("remove rules"),
            KernelStep::AddAlternateAddress(address) => {
                write!(f, "add alternate address {address}")
            }
            KernelStep::RemoveAlternateAddress(address) => {
                write!(f, "remove alternate address {address}")
            }
            KernelStep::AddListener(listener) => write!(f, "add FOU listener {listener}"),
            KernelStep::RemoveListener(listener) => write!(f, "remove FOU listener {listener}"),
            KernelStep::CreateLink(KernelLink { device, link, .. }) => {
                write!(f, "create {device} {link}")
            }
            KernelStep::ChangeLink(KernelLink { device, link, .. }) => {
                write!(f, "change {device} to {link}")
            }
        }
    }
}

impl fmt::Display for TunStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TunStep::Bind(socket) => write!(f, "open UDP socket {socket}"),
            TunStep::Forward(table) if table.remotes.is_empty() => f.write_str("forward to nobody"),
            TunStep::Forward(table) => {
                let to: Vec<_> = table.remotes.keys().map(ToString::to_string).collect();
                write!(f, "forward to {}", to.join(", "))
            }
            TunStep::AddRemote(remote, _) => write!(f, "forward to {remote} too"),
            TunStep::RemoveRemote(remote) => write!(f, "stop forwarding to {remote}"),
            TunStep::CreateLink { device, mtu } => {
                write!(f, "create {device} as a TUN interface, MTU {mtu}")
            }
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, verb: &str, admitted: &BTreeSet<Admitted>) -> fmt::Result {
    for (i, one) in admitted.iter().enumerate() {
        write!(f, "{} {one}", if i == 0 { verb } else { "," })?;
    }
    Ok(())
}
