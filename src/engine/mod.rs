//! The engine: events in, actions out. It reads no clock, opens no socket and draws no random
//! number, so every situation can be played through in a test.

mod clients;
pub mod config;
mod event;
pub mod forwarding;
mod gateway;
pub mod host;
pub mod hosts;
mod hosts_json;
mod nodes;
mod peer;
pub mod plan;
pub mod socket;
mod wanted;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::auth::{Proof, Reject};
use crate::wire::auth_packet::{AUTH_PACKET_LEN, SALT_LEN};
use clients::Clients;
use config::{ClientConfig, Datapath, DeviceName, Outer, Role, ServerConfig};
pub use event::{Action, Counters, Event, Outgoing, Report, Status, Unusable};
use host::{Encapsulation, Family, Found, GatewaySpec, InterfaceKind};
use hosts::Node;
pub use peer::Memory;
use peer::{Accepted, End, Peer, RemoteClient, RemoteServer};
use plan::{Control, ControlShape, Owned, RuleSpec, Step};
use wanted::{Endpoint, Ends, OuterFound, find_outer, wanted};

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
    /// Of a server that many share.
    clients: Option<Clients>,
    /// Of a node: the table as it came.
    hosts: Vec<Node>,
    unusable: Vec<(Node, Unusable)>,
    /// Kept until the first reading shows whether there is something to adopt.
    memory: Memory,
    found: Option<Found>,
    /// As it is, or as it was before it went missing.
    outer: Option<OuterFound>,
    outer_missing: bool,
    installed: Option<RuleSpec>,
    installed_gateway: Option<GatewaySpec>,
    owned: Owned,
    counters: Counters,
    phase: Phase,
    reread_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Steps were asked for, and what they made was not seen yet.
    Settling,
    /// The host was as it should be, when it was read last.
    Settled,
    Ending,
}

impl Engine {
    /// `memory` is what an earlier process left with [`Action::Remember`].
    pub fn new(role: Role, datapath: Datapath, memory: Memory, now: &Moment) -> Self {
        let (mut control, mut clients, mut ends) = (Control::Refuse, None, Ends::Two);
        let (tunnel, end) = match role {
            Role::Server(config) => {
                control = Control::Queue { queue: config.queue, shape: control_shape(&config) };
                let tunnel = config.tunnel.clone();
                if let Some(learn) = config.learn {
                    ends = Ends::Many;
                    clients = Some(Clients::new(config, learn, &memory, now));
                    (tunnel, None)
                } else {
                    (tunnel, Some(End::Client(RemoteClient::new(config, memory.clone()))))
                }
            }
            Role::Client(config) => {
                let tunnel = config.tunnel.clone();
                (tunnel, Some(End::Server(RemoteServer::new(config, &memory, now))))
            }
            Role::Node(config) => {
                ends = Ends::Many;
                (config.tunnel, None)
            }
        };
        let peer = end.map(|end| Peer {
            device: tunnel.device.clone(),
            private: tunnel.private,
            networks: Vec::new(),
            end,
            taken_for: None,
        });
        Engine {
            endpoint: Endpoint { tunnel, datapath, control, ends },
            peers: peer.into_iter().collect(),
            clients,
            hosts: Vec::new(),
            unusable: Vec::new(),
            memory,
            found: None,
            outer: None,
            outer_missing: false,
            installed: None,
            installed_gateway: None,
            owned: Owned::default(),
            counters: Counters::default(),
            phase: Phase::Settling,
            reread_at: now.monotonic,
        }
    }

    /// Takes one event and tells what to do, in order.
    pub fn handle(&mut self, event: Event<'_>, now: &Moment, actions: &mut Vec<Action>) {
        match event {
            Event::HostRead(found) => self.host_read(found, now, actions),
            Event::Datagram { from, payload } => self.datagram(from, payload, now, actions),
            Event::Hosts(nodes) => self.hosts_changed(nodes, now, actions),
            Event::Resolved(addresses) => self.resolved(&addresses, now, actions),
            Event::ReauthRequested => self.reauth(now, actions),
            Event::Applied => actions.push(Action::ReadHost),
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
            .chain(self.clients.as_ref().and_then(Clients::next_expiry))
            .fold(self.reread_at, Duration::min)
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where a client's server is, as far as its name was looked up.
    pub fn server_address(&self) -> Option<IpAddr> {
        let server = self.peers.iter().find(|peer| peer.is_server())?;
        server.remote().map(|remote| remote.ip())
    }

    /// What the host is asked for the way to, when it is read.
    pub fn way_to(&self) -> Option<IpAddr> {
        let tunnel = &self.endpoint.tunnel;
        let asked = tunnel.outer == Outer::Route || tunnel.gateway.mark().is_some();
        self.server_address().filter(|_| asked)
    }

    /// The family of the outer addresses.
    fn family(&self) -> Family {
        self.server_address().map_or(Family::V4, Family::of)
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
        if self.endpoint.ends == Ends::Many {
            self.take_nodes(actions); // our outer address may have changed
        }
        // What follows from our own changes is no repair: routes need the interface's number.
        let settled = std::mem::replace(&mut self.phase, Phase::Settled) == Phase::Settled;
        let first = actions.len();
        self.reconcile(actions);
        if settled {
            let repairs: Vec<_> = actions[first..].iter().filter_map(applied).cloned().collect();
            self.counters.repaired += repairs.len() as u64;
            let reports = repairs.into_iter().map(Report::Repairing).map(Action::Report);
            actions.splice(first..first, reports);
        }
        self.send_due(now, actions);
    }

    /// Works out our outer address. When it is gone, the last one is kept: it may come back.
    fn find_outer(&mut self, found: &Found, now: &Moment, actions: &mut Vec<Action>) {
        let outer = find_outer(&self.endpoint.tunnel.outer, self.family(), found);
        let was_missing = std::mem::replace(&mut self.outer_missing, outer.is_none());
        match outer {
            Some(outer) if self.outer != Some(outer) || was_missing => {
                if self.outer.replace(outer).is_some() {
                    actions.push(Action::Report(Report::OuterAddress(outer.address)));
                }
                self.authenticate(now.monotonic);
            }
            None if !was_missing => {
                actions.push(Action::Report(Report::OuterMissing(self.endpoint.tunnel.outer.clone())));
            }
            Some(_) | None => {}
        }
    }

    /// Takes over what an earlier process of this tunnel left running.
    fn adopt(&mut self, found: &Found, now: &Moment, actions: &mut Vec<Action>) {
        let port = self.endpoint.tunnel.port.get();
        for peer in &mut self.peers {
            let Some(interface) = found.interface(&peer.device) else { continue };
            let InterfaceKind::Ipip(link) = interface.kind else { continue };
            let Encapsulation::Fou { source_port, destination_port, .. } = link.encapsulation
            else {
                continue;
            };
            if source_port != port {
                // Ours from before the port was changed, and its listener with it: nothing guards
                // them any more.
                if plan::is_labelled(interface) {
                    let old = found.listeners.iter().filter(|l| l.port == source_port);
                    self.owned.listeners.extend(old.filter(|l| l.local == Some(link.local)));
                }
                continue;
            }
            let remote = SocketAddr::new(link.remote.into(), destination_port);
            match &mut peer.end {
                End::Client(client) => client.adopt(remote, &self.memory, now),
                End::Server(server) => server.adopt(remote),
                End::Node(_) => {}
            }
            actions.push(Action::Report(Report::Adopted(remote)));
        }
        // Whatever else was lost, by these marks ours is known: the table's name; a listener on our
        // port that is bound to an address; our private address as /32 of the loopback interface.
        self.owned.rules = true;
        let bound = found.listeners.iter().filter(|l| l.port == port && l.local.is_some());
        self.owned.listeners.extend(bound);
        let of_links = self.devices(found).into_iter().filter_map(|device| {
            match found.interface(&device)?.kind {
                InterfaceKind::Ipip(link) => Some(link.local),
                InterfaceKind::Tun | InterfaceKind::Other => None,
            }
        });
        let private = self.peers.iter().map(|peer| peer.private.address()).chain(of_links);
        self.owned.private.extend(private.filter(|private| {
            found.addresses.iter().any(|a| {
                Some(a.interface) == found.loopback()
                    && a.value.network == IpNet::from(IpAddr::V4(*private))
            })
        }));
    }

    /// Asks for what is missing on the host as last read; also notes what will be ours.
    fn reconcile(&mut self, actions: &mut Vec<Action>) {
        let (Some(found), Some(outer)) = (&self.found, self.outer) else { return };
        let mut before = self.memory.settings.clone();
        let clients = self.clients.as_ref();
        let wanted = wanted(&self.endpoint, outer, &self.peers, clients, found, &before);
        let mut steps = plan::plan(&wanted, found, self.installed.as_ref(), &self.owned);
        let tunnel = &self.endpoint.tunnel;
        let gateway = self.installed_gateway.as_ref();
        steps.extend(gateway::plan(&wanted.gateway, found, tunnel, gateway, &mut before));
        for step in &steps {
            match step {
                Step::InstallRules(spec, _) => self.installed = Some(spec.clone()),
                Step::InstallGateway(spec) => self.installed_gateway = Some(spec.clone()),
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
                | Step::AddInnerAddress(..)
                | Step::RemoveInnerAddress(_)
                | Step::RemoveLink(_)
                | Step::RemoveListener(_)
                | Step::RemovePrivateAddress(_)
                | Step::RemoveRules
                | Step::Bind(_)
                | Step::Forward(_)
                | Step::AddRoute(_)
                | Step::RemoveRoute(_)
                | Step::AddPolicyRule(_)
                | Step::RemovePolicyRule(_)
                | Step::RemoveGateway
                | Step::SetForwarding { .. }
                | Step::SetRpFilter { .. }
                | Step::UseNameServers
                | Step::RestoreNameServers => {}
            }
        }
        if !steps.is_empty() && self.phase != Phase::Ending {
            self.phase = Phase::Settling;
        }
        // How it was before is on disk before it is changed, or a crash would leave it changed.
        if before != self.memory.settings {
            self.memory.settings = before;
            actions.push(Action::Remember(self.memory()));
        }
        actions.extend(steps.into_iter().map(Action::Apply));
    }

    /// What a restart must not forget.
    fn memory(&self) -> Memory {
        let far = match (&self.clients, self.peers.first()) {
            (Some(clients), _) => clients.memory(),
            (None, Some(peer)) => peer.memory(),
            (None, None) => Memory::default(),
        };
        Memory { settings: self.memory.settings.clone(), ..far }
    }

    fn datagram(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Moment,
        actions: &mut Vec<Action>,
    ) {
        if let Some(clients) = &mut self.clients {
            match clients.receive(from, payload, now) {
                Ok(accepted) => {
                    let reply = clients.reply(payload, now);
                    self.accepted(from, accepted, actions);
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
                    self.accepted(from, accepted, actions);
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

    fn rejected(
        &mut self,
        from: SocketAddr,
        reason: Reject,
        length: usize,
        actions: &mut Vec<Action>,
    ) {
        *self.counters.rejected.entry(reason).or_default() += 1;
        actions.push(Action::Report(Report::Rejected { from, reason, length }));
    }

    fn accepted(&mut self, from: SocketAddr, accepted: Accepted, actions: &mut Vec<Action>) {
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
        actions.push(Action::Report(report));
    }

    fn send(&mut self, to: SocketAddr, payload: Vec<u8>, actions: &mut Vec<Action>) {
        let Some(outer) = self.outer else { return };
        let tunnel = &self.endpoint.tunnel;
        let from = SocketAddr::new(outer.address, tunnel.port.get());
        let mark = tunnel.gateway.mark();
        let length = payload.len();
        self.counters.sent += 1;
        actions.push(Action::Send(Outgoing { from, to, mark, payload, ttl: tunnel.auth_ttl }));
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
                actions.push(Action::Remember(self.memory()));
            }
            self.send(to, payload, actions);
        }
    }

    fn resolved(&mut self, addresses: &[IpAddr], now: &Moment, actions: &mut Vec<Action>) {
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

    fn step_failed(&mut self, step: &Step, taken: bool, now: &Moment, actions: &mut Vec<Action>) {
        if let (Step::CreateLink(wanted) | Step::ChangeLink(wanted), true) = (step, taken) {
            for peer in self.peers.iter_mut().filter(|p| p.device == wanted.device) {
                peer.taken_for = peer.remote().map(|remote| remote.ip());
            }
            actions.push(Action::ReadHost);
        }
        match step {
            Step::InstallRules(..) => self.installed = None,
            Step::InstallGateway(_) => self.installed_gateway = None,
            _ => {}
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
        for remote in self.clients.iter_mut().flat_map(|clients| clients.expire(now)) {
            actions.push(Action::Report(Report::Expired(remote)));
            expired = true;
        }
        self.send_due(now, actions);
        if expired {
            self.reconcile(actions);
        }
        if self.reread_at <= now.monotonic {
            self.reread_at = now.monotonic + REREAD_EVERY;
            actions.push(Action::ReadHost);
        }
    }

    fn shutdown(&mut self, found: &Found, actions: &mut Vec<Action>) {
        self.phase = Phase::Ending;
        let nothing = gateway::Wanted::default();
        let before = &mut self.memory.settings;
        let mut steps = gateway::plan(&nothing, found, &self.endpoint.tunnel, None, before);
        let devices = self.devices(found);
        steps.extend(plan::plan_removal(&devices, found, &self.owned));
        actions.extend(steps.into_iter().map(Action::Apply));
        actions.push(Action::Remember(self.memory()));
        actions.push(Action::Exit);
    }

    /// All interfaces of ours that there are or should be.
    fn devices(&self, found: &Found) -> Vec<DeviceName> {
        match (self.endpoint.ends, self.endpoint.datapath) {
            (Ends::Many, Datapath::Kernel) => nodes::interfaces(found, &self.endpoint.tunnel),
            (Ends::Two, _) | (_, Datapath::Tun) => vec![self.endpoint.tunnel.device.clone()],
        }
    }

    fn hosts_changed(&mut self, nodes: Vec<Node>, now: &Moment, actions: &mut Vec<Action>) {
        actions.push(Action::Report(Report::HostsChanged(nodes.len())));
        self.hosts = nodes;
        self.unusable.clear();
        self.take_nodes(actions);
        self.reconcile(actions);
        self.send_due(now, actions);
    }

    /// Makes peers of the table's nodes.
    fn take_nodes(&mut self, actions: &mut Vec<Action>) {
        let Some(outer) = self.outer.filter(|_| self.clients.is_none()) else { return };
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        let (mut peers, unusable) = nodes::peers(&self.hosts, tunnel, *datapath, outer.address);
        for peer in &mut peers {
            let same = self.peers.iter().find(|old| old.remote() == peer.remote());
            peer.taken_for = same.and_then(|old| old.taken_for);
        }
        self.peers = peers;
        for (node, why) in unusable.iter().filter(|one| !self.unusable.contains(one)) {
            actions.push(Action::Report(Report::NodeUnusable { node: node.clone(), why: *why }));
        }
        self.unusable = unusable;
    }

    /// The tunnel as it stands.
    pub fn status(&self) -> Status {
        let tunnel = &self.endpoint.tunnel;
        let found = self.found.as_ref();
        let devices = found.map(|found| self.devices(found)).unwrap_or_default();
        let interfaces = || devices.iter().filter_map(|device| found?.interface(device));
        let local = interfaces().find_map(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some(link.local),
            InterfaceKind::Tun | InterfaceKind::Other => None,
        });
        let only = self.peers.first().filter(|_| self.endpoint.ends == Ends::Two);
        let clients = self.clients.iter().flat_map(Clients::admitted);
        let nodes = self.peers.iter().filter_map(|p| Some((p.remote()?, p.networks.clone())));
        let remotes = match self.endpoint.ends {
            Ends::Two => None,
            Ends::Many => Some(nodes.chain(clients.map(|remote| (remote, Vec::new()))).collect()),
        };
        let mut traffic = host::Traffic::default();
        interfaces().for_each(|i| traffic += i.traffic);
        Status {
            device: tunnel.device.to_string(),
            outer: self.outer.map(|o| SocketAddr::new(o.address, tunnel.port.get())),
            private: local.filter(|&l| l == tunnel.private.address()).map(IpAddr::V4),
            remote: only.and_then(Peer::remote),
            remotes,
            admitted: only.is_none_or(|peer| peer.admitted().is_some()),
            inner: tunnel.inner.into(),
            inner_peer: tunnel.inner_peer.into(),
            inner6: tunnel.inner6.map(IpNet::V6),
            up: interfaces().any(|i| i.up),
            last_authentication: match &self.clients {
                Some(clients) => clients.last_authentication(),
                None => self.peers.iter().filter_map(Peer::last_authentication).max(),
            },
            traffic,
        }
    }
}

/// How a server tells authentication packets from data.
fn control_shape(config: &ServerConfig) -> ControlShape {
    // Both lengths are far below u16's end.
    let not_ipv4 = |length: usize| ControlShape::NotIpv4 {
        length: u16::try_from(length).unwrap_or(u16::MAX),
    };
    match &config.policy.proof {
        Proof::Key(_) => not_ipv4(AUTH_PACKET_LEN),
        Proof::Token(token) => not_ipv4(token.as_bytes().len()),
        Proof::Nothing => ControlShape::FromRemote {
            ip: config.policy.remote_ip,
            port: config.policy.remote_port,
        },
    }
}

fn applied(action: &Action) -> Option<&Step> {
    match action {
        Action::Apply(step) => Some(step),
        Action::Send(_)
        | Action::ReadHost
        | Action::Remember(_)
        | Action::Report(_)
        | Action::Exit => None,
    }
}

/// Our address on the outside, when there is one now.
pub fn outer_address(outer: &Outer, server: IpAddr, found: &Found) -> Option<IpAddr> {
    find_outer(outer, Family::of(server), found).map(|outer| outer.address)
}

/// The packet of a client that sends just one.
pub fn first_packet(client: &ClientConfig, memory: &Memory, now: &Moment) -> Vec<u8> {
    RemoteServer::new(client.clone(), memory, now).packet(now)
}
