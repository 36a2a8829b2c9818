//! The engine: events in, actions out. It reads no clock, opens no socket and draws no random
//! number, so every situation can be played through in a test.

pub mod config;
mod event;
pub mod forwarding;
pub mod host;
mod peer;
pub mod plan;
pub mod socket;
mod wanted;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::auth::Proof;
use crate::wire::auth_packet::{AUTH_PACKET_LEN, SALT_LEN};
use config::{ClientConfig, Outer, Role};
pub use event::{Action, Counters, Event, Outgoing, Report, Status};
use host::{Encapsulation, Found, InterfaceKind};
pub use peer::Memory;
use peer::{Accepted, End, Peer, RemoteClient, RemoteServer};
use plan::{Control, ControlShape, Owned, RuleSpec, Step};
use wanted::{Endpoint, OuterFound, find_outer, wanted};

/// How often the host is read although nothing told of a change: of FOU listeners the kernel never
/// tells.
const REREAD_EVERY: Duration = Duration::from_secs(3);

/// How long after a failed step the next try is.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One instant: both clocks, and fresh random bytes.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Time since the process started.
    pub monotonic: Duration,
    /// Seconds since 1970.
    pub unix: u64,
    /// Random bytes that nobody else has seen.
    pub random: [u8; 64],
}

impl Moment {
    /// Salts to choose from.
    pub(crate) fn salts(&self) -> impl Iterator<Item = [u8; SALT_LEN]> {
        self.random.as_chunks().0.iter().copied()
    }
}

/// The state of one process: its end of the tunnels, and the host as last read.
#[derive(Debug)]
pub struct Engine {
    endpoint: Endpoint,
    peers: Vec<Peer>,
    /// Kept until the first reading shows whether there is something to adopt.
    memory: Memory,
    found: Option<Found>,
    /// As it is, or as it was before it went missing.
    outer: Option<OuterFound>,
    outer_missing: bool,
    installed: Option<RuleSpec>,
    owned: Owned,
    counters: Counters,
    phase: Phase,
    reread_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was applied yet.
    Starting,
    Running,
    Ending,
}

impl Engine {
    /// `memory` is what an earlier process left with [`Action::Remember`].
    pub fn new(role: Role, memory: Memory, now: &Moment) -> Self {
        let (control, tunnel, end) = match role {
            Role::Server(config) => {
                // Both lengths are far below u16's end.
                let not_ipv4 = |length: usize| ControlShape::NotIpv4 {
                    length: u16::try_from(length).unwrap_or(u16::MAX),
                };
                let shape = match &config.policy.proof {
                    Proof::Key(_) => not_ipv4(AUTH_PACKET_LEN),
                    Proof::Token(token) => not_ipv4(token.as_bytes().len()),
                    Proof::Nothing => ControlShape::FromRemote {
                        ip: config.policy.remote_ip,
                        port: config.policy.remote_port,
                    },
                };
                let control = Control::Queue { queue: config.queue, shape };
                let tunnel = config.tunnel.clone();
                (control, tunnel, End::Client(RemoteClient::new(config, memory.clone())))
            }
            Role::Client(config) => {
                let tunnel = config.tunnel.clone();
                let end = End::Server(RemoteServer::new(config, &memory, now));
                (Control::Refuse, tunnel, end)
            }
        };
        Engine {
            endpoint: Endpoint {
                outer: tunnel.outer.clone(),
                port: tunnel.port.get(),
                rules: tunnel.rules.clone(),
                control,
            },
            peers: vec![Peer { tunnel, end, taken_for: None }],
            memory,
            found: None,
            outer: None,
            outer_missing: false,
            installed: None,
            owned: Owned::default(),
            counters: Counters::default(),
            phase: Phase::Starting,
            reread_at: now.monotonic,
        }
    }

    /// Takes one event and tells what to do, in order.
    pub fn handle(&mut self, event: Event<'_>, now: &Moment, actions: &mut Vec<Action>) {
        match event {
            Event::HostRead(found) => self.host_read(found, now, actions),
            Event::Datagram { from, payload } => self.datagram(from, payload, now, actions),
            Event::Resolved(addresses) => self.resolved(&addresses, now, actions),
            Event::ReauthRequested => self.reauth(now, actions),
            Event::Applied => {
                if self.phase == Phase::Starting {
                    self.phase = Phase::Running;
                }
                actions.push(Action::ReadHost);
            }
            Event::StepFailed { step, taken } => self.step_failed(&step, taken, now, actions),
            Event::Deadline => self.deadline(now, actions),
            Event::Shutdown(found) => self.shutdown(&found, actions),
        }
    }

    /// When [`Event::Deadline`] is due, as time since the process started.
    pub fn next_deadline(&self) -> Duration {
        self.peers
            .iter()
            .filter(|peer| self.can_send() || !peer.is_server())
            .filter_map(Peer::next_deadline)
            .fold(self.reread_at, Duration::min)
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where a client's server is, as far as its name was looked up.
    pub fn server_address(&self) -> Option<Ipv4Addr> {
        let server = self.peers.iter().find(|peer| peer.is_server())?;
        server.remote().map(|remote| *remote.ip())
    }

    /// Every tunnel as it stands.
    pub fn status(&self) -> Vec<Status> {
        self.peers.iter().map(|peer| self.peer_status(peer)).collect()
    }

    fn host_read(&mut self, found: Found, now: &Moment, actions: &mut Vec<Action>) {
        self.reread_at = now.monotonic + REREAD_EVERY;
        if self.phase == Phase::Ending {
            return;
        }
        let first = self.found.is_none();
        self.find_outer(&found, now, actions);
        if first {
            self.adopt(&found, now, actions);
        }
        self.found = Some(found);
        let steps = self.reconcile();
        if self.phase == Phase::Running {
            self.counters.repaired += steps.len() as u64;
            actions.extend(steps.iter().cloned().map(Report::Repairing).map(Action::Report));
        }
        actions.extend(steps.into_iter().map(Action::Apply));
        self.send_due(now, actions);
    }

    /// Works out our outer address. When it is gone, the last one is kept: it may come back.
    fn find_outer(&mut self, found: &Found, now: &Moment, actions: &mut Vec<Action>) {
        let outer = find_outer(&self.endpoint.outer, found);
        let was_missing = std::mem::replace(&mut self.outer_missing, outer.is_none());
        match outer {
            Some(outer) if self.outer != Some(outer) || was_missing => {
                if self.outer.replace(outer).is_some() {
                    actions.push(Action::Report(Report::OuterAddress(outer.address)));
                }
                self.authenticate(now.monotonic);
            }
            None if !was_missing => {
                actions.push(Action::Report(Report::OuterMissing(self.endpoint.outer.clone())));
            }
            Some(_) | None => {}
        }
    }

    /// Takes over what an earlier process of this tunnel left running.
    fn adopt(&mut self, found: &Found, now: &Moment, actions: &mut Vec<Action>) {
        for peer in &mut self.peers {
            let Some(interface) = found.interface(&peer.tunnel.device) else { continue };
            let InterfaceKind::Ipip(link) = interface.kind else { continue };
            let Encapsulation::Fou { source_port, destination_port, .. } = link.encapsulation
            else {
                continue;
            };
            if source_port != peer.tunnel.port.get() {
                // Ours from before the port was changed, and its listener with it: nothing guards
                // them any more.
                if plan::is_labelled(interface) {
                    let old = found.listeners.iter().filter(|l| l.port == source_port);
                    self.owned.listeners.extend(old.filter(|l| l.local == Some(link.local)));
                }
                continue;
            }
            let remote = SocketAddrV4::new(link.remote, destination_port);
            match &mut peer.end {
                End::Client(client) => client.adopt(remote, &self.memory, now),
                End::Server(server) => server.adopt(remote),
            }
            actions.push(Action::Report(Report::Adopted(remote)));
        }
        // Whatever else was lost, by these marks ours is known: the table's name; a listener on our
        // port that is bound to an address; our private address as /32 of the loopback interface.
        self.owned.rules = true;
        let port = self.endpoint.port;
        let bound = found.listeners.iter().filter(|l| l.port == port && l.local.is_some());
        self.owned.listeners.extend(bound);
        for peer in &self.peers {
            let private = peer.tunnel.private.address();
            if found.addresses.iter().any(|a| {
                a.local == private && Some(a.interface) == found.loopback() && a.prefix == 32
            }) {
                self.owned.private.insert(private);
            }
        }
    }

    /// What is missing on the host as last read; also notes what will be ours.
    fn reconcile(&mut self) -> Vec<Step> {
        let (Some(found), Some(outer)) = (&self.found, self.outer) else { return Vec::new() };
        let wanted = wanted(&self.endpoint, outer, &self.peers, found);
        let steps = plan::plan(&wanted, found, self.installed.as_ref(), &self.owned);
        for step in &steps {
            match step {
                Step::InstallRules(spec, _) => self.installed = Some(spec.clone()),
                Step::AddListener(listener) => {
                    self.owned.listeners.insert(*listener);
                }
                Step::AddPrivateAddress(private) => {
                    self.owned.private.insert(*private);
                }
                Step::Admit(_)
                | Step::CreateLink(_)
                | Step::ChangeLink(_)
                | Step::DressLink(_)
                | Step::AddInnerAddress(_)
                | Step::RemoveInnerAddress(_)
                | Step::RemoveLink(_)
                | Step::RemoveListener(_)
                | Step::RemovePrivateAddress(_)
                | Step::RemoveRules => {}
            }
        }
        steps
    }

    fn datagram(
        &mut self,
        from: SocketAddrV4,
        payload: &[u8],
        now: &Moment,
        actions: &mut Vec<Action>,
    ) {
        // Whoever was last at that address is the likeliest sender.
        let mut order: Vec<usize> = (0..self.peers.len()).collect();
        order.sort_by_key(|&i| self.peers[i].remote() != Some(from));
        let mut refused = None;
        for i in order {
            let End::Client(client) = &mut self.peers[i].end else { continue };
            match client.receive(from, payload, now) {
                Ok(accepted) => {
                    let reply = client.reply(payload, now);
                    self.accepted(i, from, accepted, actions);
                    if let Some(payload) = reply {
                        self.send(i, from, payload, actions);
                    }
                    actions.push(Action::Remember(self.peers[i].memory()));
                    return;
                }
                Err(reason) => refused = refused.or(Some(reason)),
            }
        }
        if let Some(reason) = refused {
            *self.counters.rejected.entry(reason).or_default() += 1;
            let length = payload.len();
            actions.push(Action::Report(Report::Rejected { from, reason, length }));
        }
    }

    fn accepted(
        &mut self,
        i: usize,
        from: SocketAddrV4,
        accepted: Accepted,
        actions: &mut Vec<Action>,
    ) {
        self.counters.accepted += 1;
        let report = match accepted {
            Accepted::Refreshed => Report::Refreshed(from),
            Accepted::Arrived => Report::Arrived(from),
            Accepted::Moved { from: before } => {
                self.counters.moved += 1;
                self.peers[i].taken_for = None;
                Report::Moved { from: before, to: from }
            }
        };
        let steps = self.reconcile();
        actions.extend(steps.into_iter().map(Action::Apply));
        actions.push(Action::Report(report));
    }

    fn send(&mut self, i: usize, to: SocketAddrV4, payload: Vec<u8>, actions: &mut Vec<Action>) {
        let Some(outer) = self.outer else { return };
        let tunnel = &self.peers[i].tunnel;
        let from = SocketAddrV4::new(outer.address, tunnel.port.get());
        let length = payload.len();
        self.counters.sent += 1;
        actions.push(Action::Send(Outgoing { from, to, payload, ttl: tunnel.auth_ttl }));
        actions.push(Action::Report(Report::Sent { to, length }));
    }

    fn can_send(&self) -> bool {
        self.outer.is_some() && !self.outer_missing
    }

    /// Clients send what is due, once there is an address to send it from.
    fn send_due(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        if !self.can_send() || self.phase == Phase::Ending {
            return;
        }
        for i in 0..self.peers.len() {
            let End::Server(server) = &mut self.peers[i].end else { continue };
            let Some((to, payload)) = server.due_packet(now) else { continue };
            if server.reserve() {
                actions.push(Action::Remember(self.peers[i].memory()));
            }
            self.send(i, to, payload, actions);
        }
    }

    fn resolved(&mut self, addresses: &[Ipv4Addr], now: &Moment, actions: &mut Vec<Action>) {
        let mut moved = None;
        for peer in &mut self.peers {
            if let End::Server(server) = &mut peer.end {
                moved = server.resolved(addresses).or(moved);
            }
        }
        if let Some(address) = moved {
            self.authenticate(now.monotonic);
            actions.push(Action::Report(Report::ServerMoved(address)));
            actions.push(Action::ReadHost);
        }
    }

    /// Clients authenticate at `when`, unless they do so earlier anyway.
    fn authenticate(&mut self, when: Duration) {
        for peer in &mut self.peers {
            if let End::Server(server) = &mut peer.end {
                server.authenticate_at(when);
            }
        }
    }

    fn reauth(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        match self.endpoint.control {
            Control::Queue { .. } => actions.push(Action::Report(Report::ReauthIgnored)),
            Control::Refuse => {
                self.authenticate(now.monotonic);
                self.send_due(now, actions);
            }
        }
    }

    fn step_failed(&mut self, step: &Step, taken: bool, now: &Moment, actions: &mut Vec<Action>) {
        if let (Step::CreateLink(wanted) | Step::ChangeLink(wanted), true) = (step, taken) {
            for peer in self.peers.iter_mut().filter(|p| p.tunnel.device == wanted.device) {
                peer.taken_for = Some(wanted.link.remote);
            }
            actions.push(Action::ReadHost);
        }
        if let Step::InstallRules(..) = step {
            self.installed = None;
        }
        self.reread_at = self.reread_at.min(now.monotonic + RETRY_AFTER);
    }

    fn deadline(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        let mut expired = false;
        for peer in &mut self.peers {
            if let End::Client(client) = &mut peer.end
                && let Some(remote) = client.expire(now)
            {
                actions.push(Action::Report(Report::Expired(remote)));
                expired = true;
            }
        }
        self.send_due(now, actions);
        if expired {
            let steps = self.reconcile();
            actions.extend(steps.into_iter().map(Action::Apply));
        }
        if self.reread_at <= now.monotonic {
            self.reread_at = now.monotonic + REREAD_EVERY;
            actions.push(Action::ReadHost);
        }
    }

    fn shutdown(&mut self, found: &Found, actions: &mut Vec<Action>) {
        self.phase = Phase::Ending;
        let devices = self.peers.iter().map(|p| &p.tunnel.device);
        let steps = plan::plan_removal(devices, found, &self.owned);
        actions.extend(steps.into_iter().map(Action::Apply));
        actions.push(Action::Exit);
    }

    fn peer_status(&self, peer: &Peer) -> Status {
        let interface = self.found.as_ref().and_then(|f| f.interface(&peer.tunnel.device));
        let local = interface.and_then(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some(link.local),
            InterfaceKind::Other => None,
        });
        Status {
            device: peer.tunnel.device.to_string(),
            outer: self.outer.map(|o| SocketAddrV4::new(o.address, peer.tunnel.port.get())),
            private: local.filter(|&l| l == peer.tunnel.private.address()),
            remote: peer.remote(),
            admitted: peer.admitted().is_some(),
            inner: peer.tunnel.inner,
            inner_peer: peer.tunnel.inner_peer,
            up: interface.is_some_and(|i| i.up),
            last_authentication: peer.last_authentication(),
            traffic: interface.map(|i| i.traffic).unwrap_or_default(),
        }
    }
}

/// Our address on the outside, when there is one now.
pub fn outer_address(outer: &Outer, found: &Found) -> Option<Ipv4Addr> {
    find_outer(outer, found).map(|outer| outer.address)
}

/// The packet of a client that sends just one.
pub fn first_packet(client: &ClientConfig, memory: &Memory, now: &Moment) -> Vec<u8> {
    RemoteServer::new(client.clone(), memory, now).packet(now)
}
