//! Decides what follows from a reading of the host: what of it is ours, and which steps lead to what
//! should be there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::config::{DeviceName, Outer};
use super::datapath::delta::{self, delta};
use super::datapath::kernel::renamed;
use super::datapath::{WithoutFastPath, fast_path};
use super::endpoint::{Endpoint, OuterFound, mtu};
use super::host::needs::needs;
use super::host::plan::{Start, plan};
use super::host::step::{FastStep, HostStep, KernelStep, NatStep, Step, is_made};
use super::host::undone::Verdict;
use super::host::wanted::{Wanted, WantedLink};
use super::host::{
    Encapsulation, Family, FastPathFound, Found, Interface, InterfaceKind, RulesFound, forget,
    is_labelled,
};
use super::peer::Peer;
use super::sources::OwnAddresses;
use super::table::{Node, nodes};
use super::wanted::wanted;
use super::{Action, Applying, Engine, MOST_AFTER_STEPS, Now, Phase, REREAD_EVERY, Report};

/// The peers as they were planned for.
#[derive(Debug, PartialEq, Eq)]
pub struct Remotes {
    outer: Option<OuterFound>,
    peers: Vec<Planned>,
    answering: BTreeSet<SocketAddr>,
}

/// The state of one peer that a plan depends on.
#[derive(Debug, PartialEq, Eq)]
struct Planned {
    /// Its remotes, and whether each is admitted.
    remotes: Vec<(SocketAddr, bool)>,
    conflicting_remote: Option<IpAddr>,
}

impl Engine {
    pub(super) fn host_read(&mut self, mut found: Found, now: &Now, actions: &mut Vec<Action>) {
        self.reread_at = now.monotonic + REREAD_EVERY;
        if self.phase == Phase::Ending {
            return;
        }
        let first = self.found.is_none();
        let devices = self.devices(&found);
        let leads_back = found.forget_way_into(&devices);
        self.choose_server(&mut found, now, actions);
        self.find_outer(&found, leads_back, now, actions);
        if let Some(outer) = self.outer {
            self.tell_mtu(mtu(&self.endpoint.tunnel, outer, &found).bytes);
        }
        // Behind another router our packets may have another address, which the server has to learn.
        if found.way.is_some() && self.found.as_ref().is_some_and(|last| last.way != found.way) {
            self.authenticate(now.monotonic);
        }
        if first {
            self.adopt(&found, now, actions);
        }
        self.own_addresses = OwnAddresses::of(&found);
        self.is_old = false;
        let before = self.found.replace(found);
        let is_as_planned = before.is_some_and(|before| self.is_as_planned(before));
        self.take_inner(now, actions);
        self.accept_inner(actions);
        self.judge_inner(actions);
        self.listen(now);
        if first {
            self.await_inner(actions);
            self.note_start(actions);
        }
        self.note_learned(now);
        self.make_room(now, actions);
        self.read_traffic(now, actions);
        if self.table.is_some() {
            self.take_nodes(actions); // our outer address may have changed
        }
        // What follows from our own changes is no repair (routes need the interface's index), and
        // neither is what follows from another outer address, which was reported, or from another address of
        // a server that answers besides.
        let settled = std::mem::replace(&mut self.phase, Phase::Settled) == Phase::Settled
            && self.answering_as_planned();
        let mut steps = Vec::new();
        if !(is_as_planned && self.needs_nothing == Some(self.remotes())) {
            steps = self.reconcile(actions);
        }
        if is_made(&steps) {
            self.tell_arrivals(actions);
        }
        self.judge_repairs(steps, settled, now, actions);
        actions.append(&mut self.after_steps);
        self.tell_conflicts(actions);
        self.send_due(now, actions);
        self.try_next_address(now, actions);
    }

    /// Whether nothing but counters has changed since the reading `before`: the host may have thousands
    /// of interfaces to plan for.
    fn is_as_planned(&self, mut before: Found) -> bool {
        let Some(found) = &self.found else { return false };
        before.answers = found.answers;
        before.userspace.silent.clone_from(&found.userspace.silent);
        before.userspace.learned.clone_from(&found.userspace.learned);
        for (then, now) in before.interfaces.iter_mut().zip(&found.interfaces) {
            if then.traffic != now.traffic {
                Arc::make_mut(then).traffic = now.traffic;
            }
        }
        before == *found
    }

    /// The state besides the host that a plan depends on.
    fn remotes(&self) -> Remotes {
        let of_peer = |peer: &Peer| Planned {
            remotes: peer.remotes().collect(),
            conflicting_remote: peer.conflicting_remote,
        };
        Remotes {
            outer: self.outer,
            peers: self.peers.iter().map(of_peer).collect(),
            answering: self.peers.answering(),
        }
    }

    /// Whether the servers that may answer are where they were when nothing was missing for them: an
    /// address that became known since, or was exchanged for another, is no damage.
    fn answering_as_planned(&self) -> bool {
        let planned = self.needs_nothing.as_ref().map(|planned| &planned.answering);
        planned.is_none_or(|planned| *planned == self.peers.answering())
    }

    /// Reports the repairs among `steps`, or puts them off. If the host was not `settled`, a step
    /// counts as a repair only if the same thing was repaired a moment ago.
    fn judge_repairs(
        &mut self,
        mut steps: Vec<Step>,
        settled: bool,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let waits = |step: &Step| self.undone.wait(step, now.monotonic);
        if let Some(until) = steps.iter().filter_map(waits).max() {
            // One step may need another, which is put off, then, too; except for steps that guard.
            let (mut made, mut put_off) = (Vec::new(), Vec::new());
            for step in steps {
                let is_late = self.undone.wait(&step, now.monotonic).is_some()
                    || put_off.iter().any(|missing| needs(&step, missing));
                if is_late && !step.guards() { put_off.push(step) } else { made.push(step) }
            }
            put_off.iter().for_each(|step| self.not_made(step));
            steps = made;
            self.reread_at = self.reread_at.min(until);
        }
        if steps.is_empty() {
            self.phase = Phase::Settled;
        }
        let is_repair =
            |step: &&Step| self.mends(step) && (settled || self.undone.knows(step, now.monotonic));
        let repairs: Vec<Step> = steps.iter().filter(is_repair).cloned().collect();
        self.counters.repaired += repairs.len() as u64;
        for step in repairs {
            let report = match self.undone.made(&step, now.monotonic) {
                Verdict::Repair => Report::Repairing(step),
                Verdict::Last => Report::KeepsBeingUndone(step),
                Verdict::Again => continue,
            };
            actions.push(Action::Report(report));
        }
        actions.extend(Action::apply(steps));
    }

    /// Reports, when that has changed, which interfaces have the peers' addresses inside the tunnel,
    /// and what else keeps packets for them out of it. Our own addresses may be on several interfaces.
    fn tell_conflicts(&mut self, actions: &mut Vec<Action>) {
        let Some(found) = &self.found else { return };
        let (tunnel, devices) = (&self.endpoint.tunnel, self.devices(found));
        let is_ours = |interface: &Interface| devices.iter().any(|d| d.as_str() == interface.name);
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
        let in_vrf = |device: &&DeviceName| found.interface(device).is_some_and(|i| i.in_vrf);
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
        let new = conflicts.iter().filter(|conflict| !self.conflicts.contains(conflict));
        actions.extend(new.cloned().map(Action::Report));
        self.conflicts = conflicts;
    }

    /// Notes the start of this process. A server that does not end properly may have accepted more than
    /// it wrote: this note tells the next process.
    fn note_start(&mut self, actions: &mut Vec<Action>) {
        if self.peers.iter().any(|peer| peer.admission.is_some()) {
            self.memory.running = true;
            actions.push(Action::Remember(self.memory()));
        }
    }

    /// Clients learn from the counters whether their server admits them.
    fn read_traffic(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let Some(found) = &self.found else { return };
        for peer in self.peers.iter_mut() {
            let remote = peer.remote();
            let Some(prover) = &mut peer.prover else { continue };
            let mut traffic = found.interface(&peer.device).map(|i| i.traffic).unwrap_or_default();
            traffic.rx_packets += found.answers; // these came back, too
            let silent = prover.read_traffic(traffic, now);
            let silent = remote.filter(|_| silent).map(Report::NothingBack);
            actions.extend(silent.map(Action::Report));
        }
    }

    /// Works out our outer address. If it is gone, the last one is kept, because it may come back.
    fn find_outer(
        &mut self,
        found: &Found,
        leads_back: Option<DeviceName>,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let outer = self.outer_towards((self.server_address(), found.way), found);
        let was_missing = std::mem::replace(&mut self.outer_missing, outer.is_none());
        match outer {
            Some(outer) if self.outer != Some(outer) || was_missing => {
                self.phase = Phase::Settling;
                if self.outer.replace(outer).is_some() {
                    actions.push(Action::Report(Report::OuterAddress(outer.address)));
                }
                self.authenticate(now.monotonic);
            }
            None if !was_missing => {
                actions.push(Action::Report(match (leads_back, &self.endpoint.tunnel.outer) {
                    (Some(device), Outer::Route) => Report::WayLeadsBack(device),
                    (_, Outer::Device(device))
                        if !self.endpoint.datapath.capabilities().outer_ipv6
                            && found.family_on(device) == Family::V6 =>
                    {
                        Report::OuterOnlyIpv6(device.clone())
                    }
                    (_, outer) => Report::OuterMissing(outer.clone()),
                }));
            }
            Some(_) | None => {}
        }
    }

    /// Whether a step puts right what somebody else did. Following the uplink is no repair. Nor is
    /// exchanging rules that are as they were installed, because another program began to track
    /// connections or made another tunnel; nor a fast path that follows the tunnel.
    fn mends(&self, step: &Step) -> bool {
        let rules = self.found.as_ref().map(|found| &found.rules);
        let follows =
            self.endpoint.tunnel.mtu.is_none() && matches!(step, Step::Host(HostStep::SetMtu(..)));
        let others = matches!(
            (step, rules),
            (Step::Kernel(KernelStep::InstallRules(..)), Some(RulesFound::Intact(_)))
        );
        let there = self.found.as_ref().map(|found| &found.fast_path);
        let grows = match step {
            Step::Fast(FastStep::Install(_)) => there != Some(&FastPathFound::Unknown),
            Step::Fast(FastStep::Withdraw(_) | FastStep::Add(..) | FastStep::Remove) => true,
            Step::Host(_) | Step::Kernel(_) | Step::Tun(_) | Step::Nat(_) | Step::Dns(_) => false,
        };
        !follows && !others && !grows
    }

    /// Adopts what an earlier process of this tunnel left running.
    fn adopt(&mut self, found: &Found, now: &Now, actions: &mut Vec<Action>) {
        if found.userspace.interface {
            self.adopt_userspace(now, actions);
        }
        self.adopt_members(found, now, actions);
        let port = self.endpoint.tunnel.port.get();
        for peer in self.peers.own_mut() {
            let Some(interface) = found.interface(&peer.device) else { continue };
            let InterfaceKind::Ipip(link) = interface.kind else { continue };
            let Encapsulation::Fou { source_port, destination_port, .. } = link.encapsulation
            else {
                continue;
            };
            if source_port != port {
                // This is ours from before the port was changed, and so is its listener: nothing guards
                // them any longer.
                if is_labelled(interface) {
                    let old = found.listeners.iter().filter(|l| l.port == source_port);
                    self.owned.listeners.extend(old.filter(|l| l.local == Some(link.local)));
                }
                continue;
            }
            let remote = SocketAddr::new(link.remote.into(), destination_port);
            peer.adopt(remote, &self.memory, now);
            report_adopted(peer, remote, actions);
        }
        // Even if everything else was lost, ours is recognised by these marks: the table's name; a
        // listener on our port that is bound to an address; our alternate address as /32 of the
        // loopback interface.
        self.owned.rules = true;
        let bound = found.listeners.iter().filter(|l| l.port == port && l.local.is_some());
        self.owned.listeners.extend(bound);
        let of_links = self.devices(found).into_iter().filter_map(|device| {
            match found.interface(&device)?.kind {
                InterfaceKind::Ipip(link) => Some(link.local),
                InterfaceKind::Tun | InterfaceKind::Other => None,
            }
        });
        let alternate = self.peers.iter().map(|peer| peer.alternate.address()).chain(of_links);
        self.owned.alternate.extend(alternate.filter(|alternate| {
            found.addresses.iter().any(|a| {
                Some(a.interface) == found.loopback()
                    && a.value.network == IpNet::from(IpAddr::V4(*alternate))
            })
        }));
    }

    /// Adopts the interface and socket of the userspace datapath, in which its packets wait. A remote
    /// that authenticated to the earlier process is still there.
    fn adopt_userspace(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let Some((remote, _)) = self.memory.authenticated else { return };
        for peer in self.peers.iter_mut().filter(|p| p.admission.is_some() && !p.is_shared()) {
            peer.adopt(remote, &self.memory, now);
            report_adopted(peer, remote, actions);
        }
    }

    /// The steps that follow from a change of the peers. They cover only the peers that changed, where
    /// nothing else depends on these and the host was as it should be.
    #[must_use]
    pub(super) fn follow_peers(&mut self, actions: &mut Vec<Action>) -> Vec<Step> {
        let changed = self.peers.take_changed();
        let outer = self.outer.filter(|_| {
            self.phase == Phase::Settled && !self.outer_missing && self.needs_nothing.is_some()
        });
        let delta = outer.zip(self.found.as_ref()).and_then(|(outer, found)| {
            let Engine { endpoint, peers, owned, .. } = &*self;
            delta(delta::Start { endpoint, outer, peers, changed: &changed, found, owned })
        });
        match delta {
            Some(steps) => {
                steps.iter().for_each(|step| self.owned.note(step));
                self.applying = Applying::Delta(steps.clone());
                steps
            }
            None => self.reconcile(actions),
        }
    }

    /// Does what has to come after the steps that were planned: they may come with the next reading only.
    pub(super) fn once_made(&mut self, then: Vec<Action>, actions: &mut Vec<Action>) {
        let room = MOST_AFTER_STEPS.saturating_sub(self.after_steps.len());
        match self.is_old {
            true => self.after_steps.extend(then.into_iter().take(room)),
            false => actions.extend(then),
        }
    }

    /// The steps that add what is missing on the host as last read; also notes what will be owned.
    /// `actions` receives what has to come before them.
    #[must_use]
    pub(super) fn reconcile(&mut self, actions: &mut Vec<Action>) -> Vec<Step> {
        if self.is_old {
            actions.push(Action::ReadHost);
            return Vec::new();
        }
        self.applying = Applying::Plan;
        self.judge_inner(actions);
        let (Some(found), Some(outer)) = (&self.found, self.outer) else { return Vec::new() };
        let mut before = self.memory.settings.clone();
        forget(&mut before, found);
        let mut wanted = wanted(&self.endpoint, outer, &self.peers, found, &before);
        let path = fast_path(&self.endpoint, outer, &wanted, &self.peers, found);
        let told = path.as_ref().map(|path| path.uplinks.clone()).map_err(WithoutFastPath::clone);
        let is_news = !matches!(&told, Err(why) if why.is_known());
        if is_news && self.fast_path.replace(told.clone()) != Some(told) {
            let name = |uplink: &u32| found.interface_at(*uplink).map(|i| i.name.clone());
            let on = path.as_ref().map(|path| path.uplinks.iter().filter_map(name).collect());
            actions.push(Action::Report(Report::FastPath(on.map_err(WithoutFastPath::clone))));
        }
        self.why_no_fast_path = path.as_ref().err().cloned();
        wanted.fast_path = path.ok();
        let start = Start { tunnel: &self.endpoint.tunnel, found, owned: &self.owned };
        let steps = plan(&wanted, start, &mut before);
        for step in &steps {
            match step {
                Step::Kernel(KernelStep::InstallRules(spec, _)) => {
                    self.owned.installed = Some(spec.clone());
                }
                Step::Kernel(KernelStep::AddListener(listener)) => {
                    self.owned.listeners.insert(*listener);
                }
                Step::Kernel(KernelStep::AddAlternateAddress(alternate)) => {
                    self.owned.alternate.insert(*alternate);
                    // This is reported before the steps, which may fail because of it.
                    if let Some(uplink) = outer.bound_to.and_then(|bound| found.interface_at(bound))
                        && uplink.in_vrf
                    {
                        let (alternate, uplink) = (*alternate, uplink.name.clone());
                        actions.push(Action::Report(Report::AlternateInVrf { alternate, uplink }));
                    }
                }
                Step::Nat(NatStep::Install(spec)) => {
                    self.owned.installed_gateway = Some(spec.clone())
                }
                Step::Host(_)
                | Step::Kernel(_)
                | Step::Tun(_)
                | Step::Fast(_)
                | Step::Nat(_)
                | Step::Dns(_) => {}
            }
        }
        let mtu = |link: &WantedLink| (link.device.clone(), link.mtu.bytes);
        self.owned.mtus = wanted.links.iter().map(mtu).collect();
        // Nothing follows from a change of the fast path, which is made of what was found.
        let changes_datapath = steps.iter().any(|step| !matches!(step, Step::Fast(_)));
        if changes_datapath && self.phase != Phase::Ending {
            self.phase = Phase::Settling;
        }
        let needs_nothing = steps.is_empty() && before == self.memory.settings;
        self.needs_nothing = needs_nothing.then(|| self.remotes());
        if needs_nothing {
            self.forget_given();
        }
        // The former state is written to disk before it is changed, or a crash would leave it changed.
        if before != self.memory.settings {
            self.memory.settings = before;
            actions.push(Action::Remember(self.memory()));
        }
        steps
    }

    /// All interfaces of this tunnel that exist or should exist.
    pub(super) fn devices(&self, found: &Found) -> Vec<DeviceName> {
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        match tunnel.is_network() && datapath.capabilities().link_per_remote {
            true => nodes::interfaces(found, tunnel),
            false => vec![tunnel.device.clone()],
        }
    }

    pub(super) fn hosts_changed(&mut self, nodes: Vec<Node>, now: &Now, actions: &mut Vec<Action>) {
        actions.push(Action::Report(Report::HostsChanged(nodes.len())));
        self.table = Some(nodes);
        self.unusable.clear();
        self.take_nodes(actions);
        let steps = self.reconcile(actions);
        actions.extend(Action::apply(steps));
        self.send_due(now, actions);
    }

    /// Makes peers of the table's nodes.
    pub(super) fn take_nodes(&mut self, actions: &mut Vec<Action>) {
        let (Some(outer), Some(table)) = (self.outer, &self.table) else { return };
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        let (peers, unusable) = nodes::peers(table, tunnel, *datapath, outer.address);
        self.peers.replace(peers);
        for (node, why) in unusable.iter().filter(|one| !self.unusable.contains(one)) {
            actions.push(Action::Report(Report::NodeUnusable { node: node.clone(), why: *why }));
        }
        self.unusable = unusable;
    }

    pub(super) fn shutdown(&mut self, found: &Found, now: &Now, actions: &mut Vec<Action>) {
        self.say_goodbye(now, actions);
        self.phase = Phase::Ending;
        let tunnel = &self.endpoint.tunnel;
        let mut unwanted = self.devices(found);
        if let Some(OuterFound { address: IpAddr::V4(outer), .. }) = self.outer {
            unwanted.extend(renamed(tunnel, outer, &self.peers, found));
        }
        let nothing = Wanted { unwanted, ..Wanted::default() };
        let mut before = std::mem::take(&mut self.memory.settings);
        forget(&mut before, found);
        let start = Start { tunnel, found, owned: &self.owned };
        let steps = plan(&nothing, start, &mut before);
        actions.push(Action::TearDown(steps));
        self.memory.running = false;
    }

    /// Whether a client's server has still to hear that we go, or to answer that.
    pub fn says_goodbye(&self, now: &Now) -> bool {
        let mut provers = self.peers.iter().filter_map(|peer| peer.prover.as_ref());
        self.can_send() && provers.any(|prover| prover.says_goodbye(now))
    }

    /// Tells the server that we go, before the way there is taken away.
    pub(super) fn say_goodbye(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let to_server = |peer: &mut Peer| {
            let to = peer.remote();
            Some((to?, peer.prover.as_mut()?.close(now)?))
        };
        let goodbyes: Vec<_> = self.peers.own_mut().filter_map(to_server).collect();
        if self.can_send() {
            goodbyes.into_iter().for_each(|(to, payload)| self.send(to, payload, actions));
        }
    }

    /// Ends the process. If something could not be removed, the old memory is kept, by which the next
    /// start puts it back.
    pub(super) fn torn_down(&mut self, failed: usize, actions: &mut Vec<Action>) {
        if failed == 0 {
            actions.push(Action::Remember(self.memory()));
        }
        actions.push(Action::Exit);
    }
}

fn report_adopted(peer: &Peer, remote: SocketAddr, actions: &mut Vec<Action>) {
    actions.push(Action::Report(Report::Adopted(remote)));
    if peer.admitted().is_none() {
        actions.push(Action::Report(Report::Expired(remote)));
    }
}
