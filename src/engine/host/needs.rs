//! Says which steps of a batch need another one, so that a refused step for one peer costs no other
//! peer anything.

use std::net::IpAddr;

use super::gateway::MAIN;
use super::label::LinkForwarding;
use super::step::{DnsStep, FastStep, HostStep, KernelStep, NatStep, Step, TunStep};
use super::wanted::{LinkKind, WantedLink};
use crate::engine::config::DeviceName;

/// What cannot be done once a step was not done.
enum Costs<'a> {
    /// Everything after it: it guards, or the tunnel as a whole needs it.
    All,
    /// What is done to this link.
    Link(&'a DeviceName),
    /// What has this local address.
    Local(IpAddr),
    /// What lets an interface forward: the gateway's rules judge what it does.
    Forwarding,
    /// The gateway's rules stay while an interface forwards that should not.
    GatewayRules,
    /// The policy rules of a full tunnel, which without all they need would take what they must not, and the
    /// name servers behind it.
    WholeHost,
    /// Nothing else.
    Itself,
}

/// Whether `step`, which comes later in the batch, cannot be tried once `other` was not done.
pub fn needs(step: &Step, other: &Step) -> bool {
    if let Step::Fast(FastStep::Install(_) | FastStep::Add(..)) = step {
        // Its peers are those that the datapath lets in once all is done.
        return matches!(other, Step::Kernel(_) | Step::Tun(_) | Step::Fast(_))
            || matches!(costs(other), Costs::All);
    }
    match costs(other) {
        Costs::All => true,
        Costs::Link(device) => link(step) == Some(device) || lets_in(step, other),
        Costs::Local(address) => local(step) == Some(address),
        Costs::Forwarding => lets_forward(step),
        Costs::GatewayRules => matches!(step, Step::Nat(NatStep::Remove)),
        Costs::WholeHost => {
            matches!(step, Step::Host(HostStep::AddPolicyRule(_)) | Step::Dns(DnsStep::Use))
        }
        Costs::Itself => false,
    }
}

fn costs(step: &Step) -> Costs<'_> {
    match step {
        Step::Host(
            HostStep::AddRoute(route)
            | HostStep::ReplaceRoute(route)
            | HostStep::RemoveRoute(route),
        ) => {
            // Policy rules lead into other tables.
            if route.table == MAIN { Costs::Itself } else { Costs::WholeHost }
        }
        Step::Host(HostStep::RemoveInnerAddress(_) | HostStep::RestoreRoute(..))
        | Step::Kernel(
            KernelStep::AdmitToo(_)
            | KernelStep::AdmitNoMore(_)
            | KernelStep::AdmitInstead { .. }
            | KernelStep::RemoveAlternateAddress(_),
        )
        | Step::Tun(TunStep::AddRemote(..) | TunStep::RemoveRemote(_))
        | Step::Fast(_) => Costs::Itself,
        Step::Kernel(KernelStep::AddAlternateAddress(address)) => Costs::Local((*address).into()),
        Step::Kernel(KernelStep::AddListener(listener)) => match listener.local {
            Some(local) => Costs::Local(local.into()),
            None => Costs::All,
        },
        // With a strict check of sources the uplink would drop what the server sends.
        Step::Host(HostStep::AddPolicyRule(_) | HostStep::SetRpFilter { .. }) => Costs::WholeHost,
        Step::Host(HostStep::SetForwarding { on: false, .. }) => Costs::GatewayRules,
        Step::Nat(NatStep::Install(spec)) if spec.forwarding.is_some() => Costs::Forwarding,
        Step::Host(HostStep::SetForwarding { on: true, .. }) | Step::Nat(_) | Step::Dns(_) => {
            Costs::Itself
        }
        // Outer packets that lose their mark would enter the tunnel.
        Step::Host(HostStep::RemovePolicyRule(_))
        | Step::Kernel(
            KernelStep::InstallRules(..)
            | KernelStep::Admit(_)
            | KernelStep::RemoveRules
            | KernelStep::RemoveListener(_),
        )
        | Step::Tun(TunStep::Bind(_) | TunStep::Forward(_)) => Costs::All,
        Step::Host(
            HostStep::ConfigureLink(_)
            | HostStep::SetMtu(..)
            | HostStep::RemoveLink(_)
            | HostStep::AddInnerAddress(..),
        )
        | Step::Kernel(KernelStep::CreateLink(_) | KernelStep::ChangeLink(_))
        | Step::Tun(TunStep::CreateLink { .. }) => link(step).map_or(Costs::All, Costs::Link),
    }
}

/// Whether an interface may forward what comes in by it once `step` is done.
fn lets_forward(step: &Step) -> bool {
    match step {
        Step::Host(HostStep::SetForwarding { on, .. }) => *on,
        Step::Host(HostStep::ConfigureLink(link)) => link.forwards != LinkForwarding::HostDefault,
        Step::Host(_)
        | Step::Kernel(_)
        | Step::Tun(_)
        | Step::Fast(_)
        | Step::Nat(_)
        | Step::Dns(_) => false,
    }
}

/// Whether `step` lets in the remote to which the link `other` leads. Without its link, its packets would come
/// in by another one.
fn lets_in(step: &Step, other: &Step) -> bool {
    let remote = match other {
        Step::Kernel(KernelStep::CreateLink(link) | KernelStep::ChangeLink(link)) => {
            link.link.fou_remote()
        }
        Step::Host(HostStep::ConfigureLink(WantedLink { kind: LinkKind::Ipip(link), .. })) => {
            link.fou_remote()
        }
        Step::Host(_)
        | Step::Kernel(_)
        | Step::Tun(_)
        | Step::Fast(_)
        | Step::Nat(_)
        | Step::Dns(_) => None,
    };
    match step {
        // That of a tunnel with one peer.
        Step::Kernel(KernelStep::Admit(all)) if all.len() == 1 => {
            all.iter().any(|one| Some(one.remote.into()) == remote)
        }
        Step::Kernel(KernelStep::AdmitToo(one)) => Some(one.remote.into()) == remote,
        Step::Host(_)
        | Step::Kernel(_)
        | Step::Tun(_)
        | Step::Fast(_)
        | Step::Nat(_)
        | Step::Dns(_) => false,
    }
}

/// The link that a step makes or changes.
fn link(step: &Step) -> Option<&DeviceName> {
    match step {
        Step::Host(HostStep::ConfigureLink(link)) => Some(&link.device),
        Step::Host(
            HostStep::SetMtu(device, _)
            | HostStep::RemoveLink(device)
            | HostStep::AddInnerAddress(device, _)
            | HostStep::RestoreRoute(device, _),
        )
        | Step::Tun(TunStep::CreateLink { device, .. }) => Some(device),
        Step::Kernel(KernelStep::CreateLink(link) | KernelStep::ChangeLink(link)) => {
            Some(&link.device)
        }
        Step::Host(_)
        | Step::Kernel(_)
        | Step::Tun(_)
        | Step::Fast(_)
        | Step::Nat(_)
        | Step::Dns(_) => None,
    }
}

/// The local address of what a step makes.
fn local(step: &Step) -> Option<IpAddr> {
    match step {
        Step::Kernel(KernelStep::CreateLink(link) | KernelStep::ChangeLink(link)) => {
            Some(link.link.local.into())
        }
        Step::Kernel(KernelStep::AddListener(listener)) => listener.local.map(IpAddr::V4),
        Step::Host(_)
        | Step::Kernel(_)
        | Step::Tun(_)
        | Step::Fast(_)
        | Step::Nat(_)
        | Step::Dns(_) => None,
    }
}
