//! Notes in the last reading of the host what a step leaves there, so that the next reading shows nothing
//! unexpected, and the next change can be planned before it.

use std::sync::Arc;

use super::fast_path::FastPathFound;
use super::found::Found;
use super::interface::{
    Address, Interface, InterfaceAddress, InterfaceKind, Traffic, UNKNOWN_INDEX,
};
use super::label::LinkForwarding;
use super::rules::RulesFound;
use super::step::{FastStep, HostStep, KernelLink, KernelStep, Step, TunStep};
use super::wanted::{WantedLink, rp_filter};
use crate::engine::config::DeviceName;

impl Found {
    /// Notes a step that was applied for a few of many peers.
    pub(in crate::engine) fn note(&mut self, step: &Step) {
        match step {
            Step::Tun(step) => self.note_tun(step),
            Step::Kernel(step) => self.note_kernel(step),
            Step::Host(step) => self.note_host(step),
            Step::Fast(step) => self.note_fast(step),
            Step::Nat(_) | Step::Dns(_) => {}
        }
    }

    fn note_fast(&mut self, step: &FastStep) {
        if *step == FastStep::Remove {
            self.fast_path = FastPathFound::Missing;
        }
        let FastPathFound::Intact(path) = &mut self.fast_path else { return };
        match step {
            FastStep::Withdraw(remotes) => {
                let peers = Arc::make_mut(&mut path.peers);
                remotes.iter().for_each(|remote| drop(peers.remove(remote)));
            }
            FastStep::Add(remote, peer) => {
                Arc::make_mut(&mut path.peers).insert(*remote, peer.clone());
            }
            FastStep::Install(_) | FastStep::Remove => {}
        }
    }

    fn note_tun(&mut self, step: &TunStep) {
        let remotes = &mut self.userspace.forwarding.remotes;
        match step {
            TunStep::AddRemote(remote, spec) => drop(remotes.insert(*remote, spec.clone())),
            TunStep::RemoveRemote(remote) => drop(remotes.remove(remote)),
            TunStep::Bind(_) | TunStep::Forward(_) | TunStep::CreateLink { .. } => {}
        }
    }

    fn note_kernel(&mut self, step: &KernelStep) {
        match (step, &mut self.rules) {
            (KernelStep::AdmitToo(one), RulesFound::Intact(all)) => drop(all.insert(one.clone())),
            (KernelStep::AdmitNoMore(one), RulesFound::Intact(all)) => drop(all.remove(one)),
            (KernelStep::AdmitInstead { old, new }, RulesFound::Intact(all)) => {
                all.remove(old);
                all.insert(new.clone());
            }
            (KernelStep::CreateLink(link), _) => self.note_new_link(link),
            (KernelStep::ChangeLink(link), _) => self.note_of(&link.device, |interface| {
                (interface.kind, interface.mtu) = (InterfaceKind::Ipip(link.link), link.mtu);
            }),
            (
                KernelStep::AdmitToo(_)
                | KernelStep::AdmitNoMore(_)
                | KernelStep::AdmitInstead { .. }
                | KernelStep::InstallRules(..)
                | KernelStep::Admit(_)
                | KernelStep::RemoveRules
                | KernelStep::AddAlternateAddress(_)
                | KernelStep::RemoveAlternateAddress(_)
                | KernelStep::AddListener(_)
                | KernelStep::RemoveListener(_),
                _,
            ) => {}
        }
    }

    fn note_host(&mut self, step: &HostStep) {
        match step {
            HostStep::RestoreRoute(_, route) => drop(self.lost_routes.remove(route)),
            HostStep::AddRoute(route) => drop(self.routes.insert(*route)),
            HostStep::ReplaceRoute(route) => {
                let before = route.exchanged(&self.routes).copied();
                before.map(|before| self.routes.remove(&before));
                self.routes.insert(*route);
            }
            HostStep::RemoveRoute(route) => drop(self.routes.remove(route)),
            HostStep::RemoveLink(device) => self.note_no_link(device),
            HostStep::AddInnerAddress(device, address) => self.note_address(device, *address),
            HostStep::RemoveInnerAddress(address) => self.addresses.retain(|a| a != address),
            HostStep::SetMtu(device, mtu) => self.note_of(device, |i| i.mtu = *mtu),
            HostStep::ConfigureLink(link) => self.note_configured(link),
            HostStep::AddPolicyRule(_)
            | HostStep::RemovePolicyRule(_)
            | HostStep::SetForwarding { .. }
            | HostStep::SetRpFilter { .. } => {}
        }
    }

    /// The kernel gives it a number that the next reading tells.
    fn note_new_link(&mut self, KernelLink { device, link, mtu }: &KernelLink) {
        let last = self.interfaces.iter().next_back().map_or(0, |last| last.index);
        self.interfaces.insert(Interface {
            index: last.saturating_add(1).max(UNKNOWN_INDEX),
            name: device.to_string(),
            up: false,
            loopback: false,
            label: None,
            rp_filter: None,
            forwarding: None,
            promotes: None,
            mtu: *mtu,
            master: None,
            queueing: None,
            kind: InterfaceKind::Ipip(*link),
            traffic: Traffic::default(),
        });
    }

    fn note_configured(&mut self, link: &WantedLink) {
        self.note_of(&link.device, |interface| {
            interface.up = true;
            interface.promotes = Some(true);
            interface.label = Some(link.forwards.label().to_owned());
            interface.rp_filter = rp_filter(link.source_check).or(interface.rp_filter);
            if link.forwards != LinkForwarding::HostDefault {
                interface.forwarding = Some(true);
            }
        });
    }

    fn note_no_link(&mut self, device: &DeviceName) {
        let Some(gone) = self.interface(device).map(|interface| interface.index) else { return };
        self.interfaces.remove(gone);
        self.addresses.remove_all_on(gone);
        self.routes.retain(|route| route.target.interface() != Some(gone));
        self.lost_routes.retain(|route| route.interface != gone);
    }

    fn note_address(&mut self, device: &DeviceName, address: InterfaceAddress) {
        let index = self.interface(device).map(|interface| interface.index);
        index.into_iter().for_each(|index| self.addresses.add(Address::new(index, address)));
    }

    fn note_of(&mut self, device: &DeviceName, change: impl FnOnce(&mut Interface)) {
        if let Some(index) = self.interface(device).map(|interface| interface.index) {
            self.interfaces.change(index, change);
        }
    }
}
