//! Authentication packets: judged by a server, sent by a client.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::config::{Datapath, Outer};
use super::host::Family;
use super::peer::{Accepted, End};
use super::plan::Control;
use super::{Action, Engine, Moment, Outgoing, Phase, Report};
use crate::auth::Reject;

impl Engine {
    pub(super) fn datagram(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.cannot_be_remote(from) {
            return self.rejected(from, Reject::ImpossibleSource, payload.len(), actions);
        }
        if let Some(clients) = &mut self.clients {
            match clients.receive(from, payload, now) {
                Ok(accepted) => {
                    let reply = clients.reply(payload, now);
                    actions.push(Action::HeardOf(from));
                    self.accepted(from, accepted, now, actions);
                    if let Some(payload) = reply {
                        self.send(from, payload, actions);
                    }
                    actions.push(Action::Remember(self.memory()));
                }
                Err(reason) => self.rejected(from, reason, payload.len(), actions),
            }
            return;
        }
        // Whoever was last at that address is the likeliest sender.
        let mut order: Vec<usize> = (0..self.peers.len()).collect();
        order.sort_by_key(|&i| self.peers[i].remote() != Some(from));
        let mut refused = None;
        for i in order {
            let End::Client(client) = &mut self.peers[i].end else { continue };
            match client.receive(from, payload, now) {
                Ok(accepted) => {
                    let reply = client.reply(payload, now);
                    if let Accepted::Moved { .. } = accepted {
                        self.peers[i].taken_for = None;
                    }
                    self.accepted(from, accepted, now, actions);
                    if let Some(payload) = reply {
                        self.send(from, payload, actions);
                    }
                    actions.push(Action::Remember(self.memory()));
                    return;
                }
                Err(reason) => refused = refused.or(Some(reason)),
            }
        }
        if let Some(reason) = refused {
            self.rejected(from, reason, payload.len(), actions);
        }
    }

    pub(super) fn rejected(
        &mut self,
        from: SocketAddr,
        reason: Reject,
        length: usize,
        actions: &mut Vec<Action>,
    ) {
        *self.counters.rejected.entry(reason).or_default() += 1;
        actions.push(Action::Report(Report::Rejected { from, reason, length }));
    }

    pub(super) fn accepted(
        &mut self,
        from: SocketAddr,
        accepted: Accepted,
        now: &Moment,
        actions: &mut Vec<Action>,
    ) {
        self.counters.accepted += 1;
        let report = match accepted {
            Accepted::Refreshed => Report::Refreshed(from),
            Accepted::Arrived => Report::Arrived(from),
            Accepted::Moved { from: before } => {
                self.counters.moved += 1;
                Report::Moved { from: before, to: from }
            }
        };
        self.reconcile(actions);
        let rivals = match accepted {
            Accepted::Moved { from: before } if self.rivals.moved(before, from, now.monotonic) => {
                Some(Report::Rivals { one: before.min(from), other: before.max(from) })
            }
            Accepted::Moved { .. } | Accepted::Refreshed | Accepted::Arrived => None,
        };
        actions.extend([Some(report), rivals].into_iter().flatten().map(Action::Report));
    }

    pub(super) fn send(&mut self, to: SocketAddr, payload: Vec<u8>, actions: &mut Vec<Action>) {
        let Some(outer) = self.outer else { return };
        let tunnel = &self.endpoint.tunnel;
        let from = SocketAddr::new(outer.address, tunnel.port.get());
        let mark = tunnel.mark();
        let length = payload.len();
        self.counters.sent += 1;
        actions.push(Action::Send(Outgoing { from, to, mark, payload, ttl: tunnel.auth_ttl }));
        actions.push(Action::Report(Report::Sent { to, length }));
    }

    pub(super) fn can_send(&self) -> bool {
        self.outer.is_some() && !self.outer_missing && self.phase != Phase::Ending
    }

    /// Clients send what is due, once there is an address to send it from.
    pub(super) fn send_due(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        if !self.can_send() {
            return;
        }
        for i in 0..self.peers.len() {
            let End::Server(server) = &mut self.peers[i].end else { continue };
            let Some((to, payload)) = server.due_packet(now) else { continue };
            if server.reserve() {
                actions.push(Action::Remember(self.memory()));
            }
            self.send(to, payload, actions);
        }
    }

    pub(super) fn resolved(
        &mut self,
        addresses: &[IpAddr],
        now: &Moment,
        actions: &mut Vec<Action>,
    ) {
        // What can be reached from here; IPv4 where there is a choice.
        let usable = |family| {
            let of_family = addresses.iter().filter(move |a| Family::of(**a) == family);
            of_family.copied().collect::<Vec<_>>()
        };
        let addresses = match (&self.endpoint.tunnel.outer, self.endpoint.datapath) {
            (Outer::Address(own) | Outer::AddressOn(own, _), _) => usable(Family::of(*own)),
            (Outer::Device(_) | Outer::Route, Datapath::Kernel) => usable(Family::V4),
            (Outer::Device(_) | Outer::Route, Datapath::Tun) => match usable(Family::V4) {
                none if none.is_empty() => usable(Family::V6),
                some => some,
            },
        };
        let mut moved = None;
        for peer in &mut self.peers {
            if let End::Server(server) = &mut peer.end {
                moved = server.resolved(&addresses).or(moved);
            }
        }
        if let Some(address) = moved {
            self.authenticate(now.monotonic);
            if self.phase == Phase::Settled {
                self.phase = Phase::Settling;
            }
            actions.push(Action::Report(Report::ServerMoved(address)));
            actions.push(Action::ReadHost);
        }
    }

    /// Clients authenticate at `when`, unless they do so earlier anyway.
    pub(super) fn authenticate(&mut self, when: Duration) {
        for peer in &mut self.peers {
            if let End::Server(server) = &mut peer.end {
                server.authenticate_at(when);
            }
        }
    }

    pub(super) fn reauth(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        match self.endpoint.control {
            Control::Refuse if self.peers.iter().all(|peer| !peer.is_server()) => {
                actions.push(Action::Report(Report::ReauthIgnored));
            }
            Control::Queue { .. } => actions.push(Action::Report(Report::ReauthIgnored)),
            Control::Refuse => {
                self.authenticate(now.monotonic);
                self.send_due(now, actions);
            }
        }
    }
}
