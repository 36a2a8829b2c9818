//! Acts on hellos, on another set of files, and on the passing of time: which peers are let in, which go,
//! and what is reported.

use std::fmt;
use std::net::SocketAddr;

use super::entry::networks;
use super::gone::Gone;
use super::members::Followed;
use super::{Hub, LastRefusal, Loaded, Member, SAID_AGAIN_AFTER};
use crate::auth::Ends;
use crate::engine::config::Datapath;
use crate::engine::control::{Heard, Ignored, Outcome, PeerId};
use crate::engine::endpoint::Endpoint;
use crate::engine::host::{Found, Route, RouteTarget, gateway};
use crate::engine::links;
use crate::engine::networks::v4;
use crate::engine::peer::{Locator, Peer};
use crate::engine::peers_file::{PeerName, PeerSet};
use crate::engine::random::Random;
use crate::engine::{Action, Engine, Now, Report};
use crate::wire::control::Refusal;

impl Engine {
    /// Answers a hello. The datapath lets the peer in before the answer is sent, and before it is reported.
    pub(in crate::engine) fn hello(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let (Some(outer), Some(hub)) = (self.outer, &mut self.hub) else { return };
        let local = SocketAddr::new(outer.address, self.endpoint.tunnel.port.get());
        let mut random = Random::of(now);
        let ends = Ends { remote: from, local };
        let heard = hub.server.receive(payload, ends, now.boot, &mut |bytes| random.fill(bytes));
        let Heard { answer, outcome } = heard;
        let is_let_in = matches!(outcome, Outcome::Up { .. } | Outcome::Moved { .. });
        let mut said = Vec::new();
        match outcome {
            Outcome::Challenged { .. } => hub.answered.challenged += 1,
            Outcome::Refreshed { peer } => {
                hub.answered.refreshed += 1;
                hub.note_hello(peer, now);
                self.counters.accepted += 1;
            }
            Outcome::Up { peer, evicted } => {
                said = self.admit_member((peer, from), None, evicted, now, actions);
            }
            Outcome::Moved { peer, from: before, evicted } => {
                said = self.admit_member((peer, from), Some(before), evicted, now, actions);
            }
            Outcome::Left { peer, remote } => {
                hub.answered.left += 1;
                self.end_session(peer, remote, Gone::Left, actions);
                let steps = self.follow_peers(actions);
                actions.extend(Action::apply(steps));
            }
            Outcome::WasOut { .. } => hub.answered.left += 1,
            Outcome::Refused { peer, why } => {
                hub.answered.refused += 1;
                hub.note_refusal(peer, why, now);
                let name = hub.names.get(&peer).cloned();
                let report = name.map(|name| Report::PeerRefused { name, remote: from, why });
                actions.extend(report.map(Action::Report));
            }
            Outcome::Ignored(why) => {
                *hub.ignored.entry(why.name()).or_default() += 1;
                actions.extend(hub.say_unproven(why, from, now).map(Action::Report));
            }
        }
        if let Some(answer) = answer {
            self.send(from, answer, &mut said);
        }
        match is_let_in {
            true => self.once_made(said, actions),
            false => actions.append(&mut said),
        }
    }

    /// Lets a member in at a remote that it proved; what there is to say then.
    fn admit_member(
        &mut self,
        (id, remote): (PeerId, SocketAddr),
        before: Option<SocketAddr>,
        evicted: Option<PeerId>,
        now: &Now,
        actions: &mut Vec<Action>,
    ) -> Vec<Action> {
        let Some(hub) = &mut self.hub else { return Vec::new() };
        hub.answered.admitted += 1;
        let was_in = hub.member(id).is_some_and(|(_, member)| member.since.is_some());
        hub.note_hello(id, now);
        self.counters.accepted += 1;
        let Some(name) = hub.names.get(&id).cloned() else { return Vec::new() };
        let moved = before.filter(|before| *before != remote);
        let rivals = moved.and_then(|before| hub.note_move(id, before, remote, now));
        if let Some(other) = evicted {
            self.end_session(other, remote, Gone::TakenOver(name.clone()), actions);
        }
        if let Some(before) = moved {
            self.counters.moved += 1;
            self.peers.remove_member(before);
        }
        self.put_member(id, remote);
        let steps = self.follow_peers(actions);
        actions.extend(Action::apply(steps));
        let said = match moved {
            Some(from) => Some(Report::PeerMoved { name, from, to: remote }),
            None if !was_in => Some(Report::PeerUp { name, remote }),
            // It talks to another local address, or its entry was changed.
            None => None,
        };
        said.into_iter().chain(rivals).map(Action::Report).collect()
    }

    /// Puts a member where it is into the population.
    pub(super) fn put_member(&mut self, id: PeerId, remote: SocketAddr) {
        let Some((_, member)) = self.hub.as_mut().and_then(|hub| hub.member(id)) else { return };
        self.peers.put_member(remote, peer(member, remote, &self.endpoint));
    }

    /// Ends the session of a member; its steps are still to be planned.
    fn end_session(
        &mut self,
        id: PeerId,
        remote: SocketAddr,
        why: Gone,
        actions: &mut Vec<Action>,
    ) {
        self.peers.remove_member(remote);
        let Some((name, member)) = self.hub.as_mut().and_then(|hub| hub.member(id)) else { return };
        member.since = None;
        let name = name.clone();
        actions.push(Action::Report(Report::PeerDown { name, remote, why }));
    }

    /// Takes another set of members.
    pub(in crate::engine) fn members_changed(
        &mut self,
        set: PeerSet,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(hub) = &mut self.hub else { return };
        let (loaded, followed) = hub.replace(set, now);
        actions.push(Action::Report(Report::PeersLoaded(loaded)));
        if self.peers.name_networks(hub.named_networks()) {
            self.needs_nothing = None; // it is for the table as a whole
        }
        // A network may go from one to another.
        for change in &followed {
            let (Followed::Ended(_, remote, _) | Followed::Changed(_, remote)) = change;
            self.peers.remove_member(*remote);
        }
        for change in followed {
            match change {
                Followed::Ended(name, remote, why) => {
                    actions.push(Action::Report(Report::PeerDown { name, remote, why }));
                }
                Followed::Changed(name, remote) => {
                    let id = self.hub.as_ref().and_then(|hub| Some(hub.members.get(&name)?.id));
                    id.into_iter().for_each(|id| self.put_member(id, remote));
                }
            }
        }
        let steps = self.follow_peers(actions);
        actions.extend(Action::apply(steps));
    }

    /// Takes over the links to members that an earlier process left running, as soon as our address is known:
    /// each member has one lease from then to say hello.
    pub(in crate::engine) fn adopt_members(
        &mut self,
        found: &Found,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let tunnel = &self.endpoint.tunnel;
        let (Some(outer), Some(hub)) = (self.outer, &mut self.hub) else { return };
        if !std::mem::take(&mut hub.awaits_address) {
            return;
        }
        let port = tunnel.port.get();
        let local = SocketAddr::new(outer.address, port);
        // The earlier process may have had links of another kind.
        let by_link = |member: &Member| {
            let device = links::device(tunnel, Datapath::Kernel, member.mark);
            found.interface(&device)?.link_from(port)?.fou_remote()
        };
        let by_rules = |member: &Member| {
            let network = v4(&networks(&member.entry)).next()?;
            let remote = found.admitted_before(network)?;
            // The rules may be an older dump that somebody loaded. The route is not in it.
            let route = Route::of_remote(&found.routes, network.into(), gateway::MAIN)?;
            let goes_there =
                matches!(route.target, RouteTarget::Remote(_, to) if to == *remote.ip());
            goes_there.then_some(SocketAddr::V4(remote))
        };
        let link = |member: &Member| {
            let remote = by_link(member).or_else(|| by_rules(member))?;
            Some((member.id, remote)).filter(|_| hub.has_own_mark(member))
        };
        let links: Vec<_> = hub.members.values().map(Box::as_ref).filter_map(link).collect();
        let mut adopted = Vec::new();
        for (id, remote) in links {
            if hub.server.adopt(id, Ends { remote, local }, now.boot) {
                adopted.push((id, remote));
            }
        }
        for (id, remote) in adopted {
            self.adopt_member((id, remote), now, actions);
        }
    }

    /// Takes over a member whose session goes on: for this process it is connected since now.
    pub(super) fn adopt_member(
        &mut self,
        (id, remote): (PeerId, SocketAddr),
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some((_, member)) = self.hub.as_mut().and_then(|hub| hub.member(id)) {
            member.since = Some(now.unix);
        }
        self.put_member(id, remote);
        actions.push(Action::Report(Report::Adopted(remote)));
    }

    /// Ends the session of a member, which may come back.
    pub(in crate::engine) fn kick(&mut self, name: &PeerName, actions: &mut Vec<Action>) {
        let Some(hub) = &mut self.hub else { return };
        let Some(id) = hub.members.get(name).map(|member| member.id) else { return };
        let Some(remote) = hub.server.kick(id) else { return };
        self.end_session(id, remote, Gone::Kicked, actions);
        let steps = self.follow_peers(actions);
        actions.extend(Action::apply(steps));
    }

    /// Ends leases that are over, and lets members expire.
    pub(in crate::engine) fn expire_members(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let gone = self.hub.as_mut().map(|hub| hub.expire(now)).unwrap_or_default();
        self.end_sessions(gone, actions);
    }

    /// The clock was set, so other peers may have expired.
    pub(in crate::engine) fn reckon_members(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let gone = self.hub.as_mut().map(|hub| hub.reckon(now)).unwrap_or_default();
        self.end_sessions(gone, actions);
    }

    fn end_sessions(&mut self, gone: Vec<(PeerId, SocketAddr, Gone)>, actions: &mut Vec<Action>) {
        if gone.is_empty() {
            return;
        }
        for (id, remote, why) in gone {
            self.end_session(id, remote, why, actions);
        }
        let steps = self.follow_peers(actions);
        actions.extend(Action::apply(steps));
    }

    /// Tells accepted clients the MTU of the tunnel.
    pub(in crate::engine) fn tell_mtu(&mut self, mtu: u32) {
        if let Some(hub) = &mut self.hub {
            hub.server.set_mtu(u16::try_from(mtu).ok());
        }
    }
}

impl Hub {
    fn note_hello(&mut self, id: PeerId, now: &Now) {
        if let Some((_, member)) = self.member(id) {
            member.last_hello = Some(now.unix);
            member.since = member.since.or(Some(now.unix));
        }
    }

    /// Notes that a member moved. Returns what there is to say if two hosts have its key.
    fn note_move(
        &mut self,
        id: PeerId,
        from: SocketAddr,
        to: SocketAddr,
        now: &Now,
    ) -> Option<Report> {
        let (name, member) = self.member(id)?;
        let is_found = member.rivals.get_or_insert_default().moved(from, to, now.boot);
        is_found.then(|| Report::PeerRivals {
            name: name.clone(),
            one: from.min(to),
            other: from.max(to),
        })
    }

    fn note_refusal(&mut self, id: PeerId, why: Refusal, now: &Now) {
        if let Some((_, member)) = self.member(id) {
            member.refused = Some(LastRefusal { at: now.unix, why });
        }
    }

    /// Reports a hello of a known peer that proves nothing, but not often.
    fn say_unproven(&mut self, why: Ignored, from: SocketAddr, now: &Now) -> Option<Report> {
        let (Ignored::WrongMac { peer } | Ignored::WrongSignature { peer }) = why else {
            return None;
        };
        let (name, member) = self.member(peer)?;
        let is_news =
            member.said.is_none_or(|said| now.boot.saturating_sub(said) >= SAID_AGAIN_AFTER);
        if !is_news {
            return None;
        }
        member.said = Some(now.boot);
        Some(Report::PeerUnproven { name: name.clone(), from })
    }
}

/// A connected member in the population of peers.
fn peer(member: &Member, remote: SocketAddr, endpoint: &Endpoint) -> Peer {
    Peer {
        device: links::device(&endpoint.tunnel, endpoint.datapath, member.mark),
        alternate: links::alternate(member.mark),
        networks: networks(&member.entry).into(),
        isolated: member.entry.isolate,
        conflicting_remote: None,
        locator: Locator::Fixed(remote),
        admission: None,
        prover: None,
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loaded { at: _, added, changed, removed, untouched } = self;
        write!(f, "{added} added, {changed} changed, {removed} removed, {untouched} untouched")
    }
}
