//! Takes a reading of the host, and does everything that follows from it in one order.

use super::config::{DeviceName, Outer};
use super::endpoint::mtu;
use super::host::step::is_made;
use super::host::{Family, Found};
use super::servers::Servers;
use super::sources::OwnAddresses;
use super::{Action, Engine, Now, Phase, REREAD_EVERY, Report};

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
        self.adopt_members(&found, now, actions);
        if first {
            self.adopt(&found, now, actions);
        }
        self.resume_members(&found, now, actions);
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
        // Steps that follow from our own changes are not repairs (routes need the interface's index). Nor are
        // those that follow from another outer address, which was reported, or from another address of a
        // standby server.
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
        self.note_server(actions);
        actions.append(&mut self.after_steps);
        self.tell_conflicts(actions);
        self.send_due(now, actions);
    }

    /// Whether nothing but counters has changed since the reading `before`: the host may have thousands
    /// of interfaces to plan for.
    pub(super) fn is_as_planned(&self, mut before: Found) -> bool {
        let Some(found) = &self.found else { return false };
        before.answers = found.answers;
        before.userspace.silent.clone_from(&found.userspace.silent);
        before.userspace.learned.clone_from(&found.userspace.learned);
        before.interfaces.take_traffic(&found.interfaces);
        before == *found
    }

    /// Notes the start of this process. A server that does not end properly may have accepted more than
    /// it wrote: this note tells the next process.
    pub(super) fn note_start(&mut self, actions: &mut Vec<Action>) {
        if self.peers.iter().any(|peer| peer.admission.is_some()) {
            self.memory.running = true;
            actions.push(Action::Remember(self.memory()));
        }
    }

    /// Notes which server has our data, for a process that goes on with the tunnel before it has looked a name up.
    fn note_server(&mut self, actions: &mut Vec<Action>) {
        let server = self.peers.servers().and_then(Servers::to_remember);
        if server.is_some() && self.memory.server != server {
            self.memory.server = server;
            actions.push(Action::Remember(self.memory()));
        }
    }

    /// Clients learn from the counters whether their server admits them.
    pub(super) fn read_traffic(&mut self, now: &Now, actions: &mut Vec<Action>) {
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
    pub(super) fn find_outer(
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
}
