//! Handles authentication packets: a server judges them, a client sends them.

use std::net::SocketAddr;
use std::time::Duration;

use super::admission::{Accepted, Arrival, Verdict};
use super::host::Control;
use super::host::step::is_made;
use super::memory::Writing;
use super::peer::DuePacket;
use super::prover::{Pong, Prover};
use super::{Action, Engine, Now, Outgoing, Phase, Report};
use crate::auth::Reject;

/// Authentications that refresh a session are written together, once in this time at most.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// What was learned within this time is written together.
const WRITE_LEARNED: Duration = Duration::from_secs(1);

/// How long clients that do not fit in are collected, so that one reading of the host serves all.
const ROOM_AFTER: Duration = Duration::from_millis(300);

impl Engine {
    pub(super) fn datagram(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        if self.cannot_be_remote(from) {
            return self.rejected(from, Reject::ImpossibleSource, payload.len(), actions);
        }
        if self.hub.is_some() {
            return self.hello(from, payload, now, actions);
        }
        if self.endpoint.control.is_client() {
            return self.answer(from, payload, now, actions);
        }
        let writing = self.writing.next();
        let Some(judged) = self.peers.receive(from, payload, writing, now) else { return };
        match judged {
            Ok(Verdict::Refreshed) => {
                self.write_soon(now);
                self.counters.accepted += 1;
                actions.push(Action::Report(Report::Refreshed(from)));
                let reply = self.peers.reply(payload, now);
                self.welcome(from, reply, now, actions);
            }
            Ok(Verdict::BeingWritten) => self.write_soon(now),
            Ok(Verdict::Arriving) => self.write(actions),
            Ok(Verdict::Waiting) => {
                self.reread_at = self.reread_at.min(now.monotonic + ROOM_AFTER);
            }
            Err(reason) => self.rejected(from, reason, payload.len(), actions),
        }
    }

    /// Takes a server's answer to our hello.
    fn answer(&mut self, from: SocketAddr, payload: &[u8], now: &Now, actions: &mut Vec<Action>) {
        let mut heard = Vec::new();
        for peer in self.peers.own_mut() {
            let servers = peer.servers_at(from);
            let Some(prover) = &mut peer.prover else { continue };
            for server in servers {
                let (is_answer, report) = prover.receive(server, from, payload, now);
                actions.extend(report.map(Action::Report));
                heard.extend(is_answer.then_some(server));
            }
        }
        self.follow_choice(actions);
        if !heard.is_empty() {
            self.take_inner(now, actions);
        }
        for server in heard {
            let Some(servers) = self.peers.servers_mut() else { continue };
            if server == servers.number_in_use() {
                self.heard.answered(now.unix);
            }
            if let Some(place) = servers.get_mut(server) {
                place.addresses.heard();
            }
        }
        self.send_due(now, actions);
    }

    /// Refreshes are written together: after a crash, the time of the start shows which may be lost.
    fn write_soon(&mut self, now: &Now) {
        self.write_at = self.write_at.min(now.monotonic + WRITE_EVERY);
    }

    /// Has it written which inner addresses were learned: not for every packet, and before long, because a
    /// restart that does not know it gives them to others.
    pub(super) fn note_learned(&mut self, now: &Now) {
        let Some(userspace) = self.found.as_ref().map(|found| &found.userspace) else { return };
        // Before there is a table, nothing was learned yet, and nothing is forgotten.
        if userspace.forwarding.learn.is_some()
            && let Some(shared) = self.peers.shared_mut()
            && shared.note_learned(&userspace.learned)
        {
            self.write_at = self.write_at.min(now.monotonic + WRITE_LEARNED);
        }
    }

    /// Asks for the memory to be written.
    pub(super) fn write(&mut self, actions: &mut Vec<Action>) {
        self.writing = self.writing.next();
        self.write_at = Duration::MAX;
        actions.push(Action::Write(self.writing));
    }

    /// Admits the remotes that waited for this writing.
    pub(super) fn written(&mut self, writing: Writing, now: &Now, actions: &mut Vec<Action>) {
        if self.phase == Phase::Ending {
            return;
        }
        let arrivals = self.peers.written(writing, now);
        if arrivals.is_empty() {
            return;
        }
        let steps = self.follow_peers(actions);
        let is_made = !self.is_old && is_made(&steps);
        actions.extend(Action::apply(steps));
        for Arrival { from, accepted, reply } in arrivals {
            self.counters.accepted += 1;
            match accepted {
                Accepted::Refreshed => actions.push(Action::Report(Report::Refreshed(from))),
                Accepted::Arrived => self.note_arrival(from, None),
                Accepted::Moved { from: before } => {
                    self.counters.moved += 1;
                    self.note_arrival(from, Some(before));
                    if self.rivals.moved(before, from, now.monotonic) {
                        let (one, other) = (before.min(from), before.max(from));
                        actions.push(Action::Report(Report::Rivals { one, other }));
                    }
                }
            }
            let mut then = Vec::new();
            self.welcome(from, reply, now, &mut then);
            self.once_made(then, actions);
        }
        let mut untold = std::mem::take(&mut self.untold);
        untold.retain(|remote, _| self.peers.admits(*remote));
        self.untold = untold;
        if is_made {
            self.tell_arrivals(actions);
        }
    }

    /// Notes a peer that came, or moved from `before`, until the tunnel is made.
    fn note_arrival(&mut self, from: SocketAddr, before: Option<SocketAddr>) {
        // Where it was before it moved on, no tunnel was made.
        let before = match before.and_then(|before| self.untold.remove(&before)) {
            Some(earlier) => earlier,
            None => before,
        };
        if before != Some(from) {
            self.untold.insert(from, before);
        }
    }

    /// Reports the peers that came or moved, now that the tunnel is made.
    pub(super) fn tell_arrivals(&mut self, actions: &mut Vec<Action>) {
        let untold = std::mem::take(&mut self.untold);
        let there = untold.into_iter().filter(|(remote, _)| self.peers.admits(*remote));
        actions.extend(there.map(|(from, before)| {
            Action::Report(match before {
                None => Report::Arrived(from),
                Some(before) => Report::Moved { from: before, to: from },
            })
        }));
    }

    /// What every accepted packet brings about.
    fn welcome(
        &mut self,
        from: SocketAddr,
        reply: Option<Vec<u8>>,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        if self.peers.shared().is_some() {
            actions.push(Action::PeerAlive(from));
        }
        let Some(payload) = reply else { return };
        // Where the address is the only proof, a sender that forges it can choose any port.
        let asked = match self.endpoint.control.proof_is_address() {
            true => SocketAddr::new(from.ip(), 0),
            false => from,
        };
        if self.answers.allow(asked, now.monotonic) {
            self.send(from, payload, actions);
        }
    }

    /// Finds room for clients that proved themselves, now that it is known who is alive.
    pub(super) fn make_room(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let (Some(shared), Some(found)) = (self.peers.shared_mut(), &self.found) else { return };
        let room = shared.make_room(&found.userspace.silent, self.writing.next(), now);
        for (from, length) in room.refused {
            self.rejected(from, Reject::NoRoom, length, actions);
        }
        actions.extend(room.removed.into_iter().map(Report::MadeRoom).map(Action::Report));
        if room.arriving {
            self.write(actions);
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
    pub(super) fn send_due(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let access = self.take_turns(now, actions);
        if self.try_next_address(now, actions) || !self.can_send() {
            return;
        }
        for peer in self.peers.own_mut() {
            let (Some(server), Some(prover)) = (peer.remote(), &mut peer.prover) else { continue };
            actions.extend(prover.tell(server, now).map(Action::Report));
        }
        // By the last reading; one that comes after a change of the server is awaited.
        if self.phase == Phase::Settled && self.needs_nothing.is_some() {
            self.peers.provers().for_each(Prover::data_has_moved);
        }
        let due: Vec<_> =
            self.peers.own_mut().flat_map(|peer| peer.due_packets(&access, now)).collect();
        self.may_have_moved |= !due.is_empty() && self.silent_for(now).is_some();
        for DuePacket { to, payload, must_write } in due {
            if must_write {
                actions.push(Action::Remember(self.memory()));
            }
            self.send(to, payload, actions);
        }
    }

    /// Asks a server whether it is there.
    pub(super) fn ping(&mut self, server: usize, now: &Now, actions: &mut Vec<Action>) {
        self.peers.provers().for_each(|prover| prover.ping(server, now));
        self.send_due(now, actions);
    }

    /// What the server said that [`Event::Ping`](super::Event::Ping) was about.
    pub fn take_pong(&mut self) -> Option<Pong> {
        self.peers.provers().find_map(Prover::take_pong)
    }

    /// Whether a server may have moved since this was asked last: something changed at this host, or one that has not
    /// answered for long was asked once more.
    pub fn take_may_have_moved(&mut self) -> bool {
        std::mem::take(&mut self.may_have_moved)
    }

    /// Clients authenticate at `when`, unless they do so earlier anyway.
    pub(super) fn authenticate(&mut self, when: Duration) {
        self.may_have_moved = true;
        self.peers.provers().for_each(|prover| prover.authenticate_at(when));
    }

    pub(super) fn reauth(&mut self, now: &Now, actions: &mut Vec<Action>) {
        match self.endpoint.control {
            Control::Refuse if !self.peers.has_prover() => {
                actions.push(Action::Report(Report::ReauthIgnored));
            }
            Control::Queue { .. } if !self.endpoint.control.is_client() => {
                actions.push(Action::Report(Report::ReauthIgnored));
            }
            Control::Refuse | Control::Queue { .. } => {
                self.authenticate(now.monotonic);
                self.send_due(now, actions);
            }
        }
    }
}
