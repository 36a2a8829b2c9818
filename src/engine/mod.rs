//! The engine: events in, actions out. It reads no clock, opens no socket and draws no random
//! number, so every situation can be played through in a test.

pub mod config;
pub mod host;
mod peer;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::auth::{Proof, Reject};
use crate::wire::auth_packet::{AUTH_PACKET_LEN, SALT_LEN};
use config::{ClientConfig, Outer, PrivateAddress, Role, TunnelConfig};
use host::{Admitted, Encapsulation, Found, InterfaceKind, IpipLink, Listener, Traffic};
pub use peer::Memory;
use peer::{Accepted, End, Peer, RemoteClient, RemoteServer};
use plan::{Control, ControlShape, Owned, RuleSpec, Step, Wanted, WantedLink};

/// TTL of the outer packets. The kernel's default, the inner packet's TTL, would let a routing
/// protocol's packets (TTL 1) die at the first hop.
const OUTER_TTL: u8 = 64;

/// How often the host is read although nothing told of a change.
const REREAD_EVERY: Duration = Duration::from_secs(5);

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

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The host was read.
    HostRead(Found),
    /// A packet came through the queue.
    Datagram { from: SocketAddrV4, payload: &'a [u8] },
    /// The server's name was looked up.
    Resolved(Vec<Ipv4Addr>),
    /// The user asks for an authentication packet (SIGUSR1).
    ReauthRequested,
    /// All steps of the last batch were applied.
    Applied,
    /// A step failed, and those after it were not tried. `taken` when the kernel said `EEXIST`.
    StepFailed { step: Step, taken: bool },
    /// [`Engine::next_deadline`] has come.
    Deadline,
    /// The user asks for the end; the host was read for it.
    Shutdown(Found),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Apply(Step),
    Send(Outgoing),
    /// Read the host and come back with [`Event::HostRead`].
    ReadHost,
    Remember(Memory),
    Report(Report),
    /// Nothing more will come.
    Exit,
}

/// A datagram from the tunnel's own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: Vec<u8>,
    pub ttl: Option<u8>,
}

/// Something a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Arrived(SocketAddrV4),
    Moved { from: SocketAddrV4, to: SocketAddrV4 },
    Refreshed(SocketAddrV4),
    Rejected { from: SocketAddrV4, reason: Reject, length: usize },
    Expired(SocketAddrV4),
    Adopted(SocketAddrV4),
    ServerMoved(Ipv4Addr),
    Sent { to: SocketAddrV4, length: usize },
    OuterAddress(Ipv4Addr),
    OuterMissing(Outer),
    Repairing(Step),
    ReauthIgnored,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub accepted: u64,
    pub moved: u64,
    pub sent: u64,
    pub repaired: u64,
    pub rejected: BTreeMap<Reject, u64>,
}

/// A tunnel as it stands, for `show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub device: String,
    pub outer: Option<SocketAddrV4>,
    pub private: Option<Ipv4Addr>,
    pub remote: Option<SocketAddrV4>,
    pub admitted: bool,
    pub inner: Ipv4Addr,
    pub inner_peer: Ipv4Addr,
    pub up: bool,
    /// Unix time.
    pub last_authentication: Option<u64>,
    pub traffic: Traffic,
}

/// The state of one process: its end of the tunnels, and the host as last read.
#[derive(Debug)]
pub struct Engine {
    peers: Vec<Peer>,
    control: Control,
    /// Kept until the first reading shows whether there is something to adopt.
    memory: Memory,
    found: Option<Found>,
    outer: Option<OuterFound>,
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

/// Our side of the outer packets, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OuterFound {
    address: Ipv4Addr,
    bound_to: Option<u32>,
}

impl Engine {
    /// `memory` is what an earlier process left with [`Action::Remember`].
    pub fn new(role: Role, memory: Memory, now: &Moment) -> Self {
        let (control, tunnel, end) = match role {
            Role::Server(config) => {
                let shape = match &config.policy.proof {
                    Proof::Key(_) => ControlShape::NotIpv4 { length: AUTH_PACKET_LEN as u16 },
                    // At most MAX_TOKEN bytes, so it fits.
                    Proof::Token(token) => {
                        ControlShape::NotIpv4 { length: token.as_bytes().len() as u16 }
                    }
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
            peers: vec![Peer { tunnel, end, taken_for: None }],
            control,
            memory,
            found: None,
            outer: None,
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
        self.peers.iter().filter_map(Peer::next_deadline).fold(self.reread_at, Duration::min)
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where a client's server is, as far as its name was looked up.
    pub fn server_address(&self) -> Option<Ipv4Addr> {
        self.peers.iter().find_map(|peer| match &peer.end {
            End::Server(_) => peer.remote().map(|remote| *remote.ip()),
            End::Client(_) => None,
        })
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
        let wanted = &self.peers[0].tunnel.outer; // one endpoint for all peers, at least one peer
        match find_outer(wanted, found) {
            Some(outer) if self.outer != Some(outer) => {
                let changed = self.outer.replace(outer).is_some();
                if changed {
                    actions.push(Action::Report(Report::OuterAddress(outer.address)));
                }
                self.authenticate(now.monotonic);
            }
            None if self.outer.is_some() && self.found.as_ref().is_some_and(|f| f != found) => {
                actions.push(Action::Report(Report::OuterMissing(wanted.clone())));
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
        let port = self.peers[0].tunnel.port.get();
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
        let (Some(found), Some(_)) = (&self.found, self.outer) else { return Vec::new() };
        let wanted = self.wanted(found);
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

    /// What the host should have, given who proved what. Empty without an outer address.
    fn wanted(&self, found: &Found) -> Wanted {
        let Some(outer) = self.outer else { return Wanted::default() };
        let endpoint = &self.peers[0].tunnel;
        let port = endpoint.port.get();
        let mut wanted = Wanted {
            rules: Some(RuleSpec {
                table: endpoint.rules.table.clone(),
                outer: outer.address,
                port,
                private: self.peers.iter().map(|p| p.tunnel.private.address()).collect(),
                control: self.control,
                counters: endpoint.rules.counters,
            }),
            listeners: BTreeSet::from([Listener {
                port,
                local: Some(outer.address),
                bound_to: outer.bound_to,
            }]),
            ..Wanted::default()
        };
        for peer in &self.peers {
            let Some(remote) = peer.remote() else { continue };
            let private = self.private_for(peer, *remote.ip(), outer, found);
            if let Some(address) = private {
                wanted.private.insert(address);
                wanted.listeners.insert(Listener {
                    port,
                    local: Some(address),
                    bound_to: outer.bound_to,
                });
            }
            if let Some(remote) = peer.admitted() {
                wanted.admitted.insert(Admitted { remote, private });
            }
            wanted.links.push(wanted_link(&peer.tunnel, remote, outer, private));
        }
        wanted
    }

    /// The private address, when this peer's link needs one: the kernel tells `ipip` links apart
    /// by local and remote address only (`ip_tunnel_find` in net/ipv4/ip_tunnel.c).
    fn private_for(
        &self,
        peer: &Peer,
        remote: Ipv4Addr,
        outer: OuterFound,
        found: &Found,
    ) -> Option<Ipv4Addr> {
        let private = match peer.tunnel.private {
            PrivateAddress::Always(address) => return Some(address),
            PrivateAddress::WhenTaken(address) => address,
        };
        let mut ipip = found.interfaces.iter().filter_map(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some((i.name.as_str(), link)),
            InterfaceKind::Other => None,
        });
        // Once private, it stays so while the remote stays: no need to disturb a working tunnel.
        let needed = peer.taken_for == Some(remote)
            || ipip.any(|(name, link)| {
                let own = name == peer.tunnel.device.as_str();
                let local = if own { private } else { outer.address };
                link.remote == remote && link.local == local
            });
        needed.then_some(private)
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

    /// Clients send what is due, once there is an address to send it from.
    fn send_due(&mut self, now: &Moment, actions: &mut Vec<Action>) {
        if self.outer.is_none() || self.phase == Phase::Ending {
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
        match self.control {
            Control::Queue { .. } => actions.push(Action::Report(Report::ReauthIgnored)),
            Control::Refuse => {
                self.authenticate(now.monotonic);
                self.send_due(now, actions);
            }
        }
    }

    fn step_failed(&mut self, step: &Step, taken: bool, now: &Moment, actions: &mut Vec<Action>) {
        match step {
            Step::CreateLink(wanted) | Step::ChangeLink(wanted) if taken => {
                for peer in &mut self.peers {
                    if peer.tunnel.device == wanted.device {
                        peer.taken_for = Some(wanted.link.remote);
                    }
                }
                actions.push(Action::ReadHost);
            }
            Step::InstallRules(..) => self.installed = None,
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

fn find_outer(outer: &Outer, found: &Found) -> Option<OuterFound> {
    match outer {
        Outer::Address(address) => Some(OuterFound { address: *address, bound_to: None }),
        Outer::AddressOn(address, device) => {
            let bound_to = Some(found.interface(device)?.index);
            Some(OuterFound { address: *address, bound_to })
        }
        Outer::Device(device) => {
            let index = found.interface(device)?.index;
            let address = found.first_address(index)?;
            Some(OuterFound { address, bound_to: Some(index) })
        }
        Outer::Route => found.route_source.map(|address| OuterFound { address, bound_to: None }),
    }
}

/// The packet of a client that sends just one.
pub fn first_packet(client: &ClientConfig, memory: &Memory, now: &Moment) -> Vec<u8> {
    RemoteServer::new(client.clone(), memory, now).packet(now)
}

fn wanted_link(
    tunnel: &TunnelConfig,
    remote: SocketAddrV4,
    outer: OuterFound,
    private: Option<Ipv4Addr>,
) -> WantedLink {
    WantedLink {
        device: tunnel.device.clone(),
        link: IpipLink {
            local: private.unwrap_or(outer.address),
            remote: *remote.ip(),
            bound_to: outer.bound_to,
            ttl: OUTER_TTL,
            path_mtu_discovery: true,
            encapsulation: Encapsulation::Fou {
                source_port: tunnel.port.get(),
                destination_port: remote.port(),
                // Without the flag the kernel sends checksum 0.
                checksum: tunnel.checksum.unwrap_or(false),
            },
        },
        inner: tunnel.inner,
        inner_peer: tunnel.inner_peer,
        source_check: tunnel.source_check,
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Apply(step) => write!(f, "apply: {step}"),
            Action::Send(out) => {
                write!(f, "send {} bytes from {} to {}", out.payload.len(), out.from, out.to)
            }
            Action::ReadHost => f.write_str("read host"),
            Action::Remember(_) => f.write_str("remember"),
            Action::Report(report) => write!(f, "report: {report}"),
            Action::Exit => f.write_str("exit"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Arrived(remote) => write!(f, "{remote} authenticated: tunnel up"),
            Report::Moved { from, to } => write!(f, "moved from {from} to {to}"),
            Report::Refreshed(remote) => write!(f, "{remote} authenticated again"),
            Report::Rejected { from, reason, length } => {
                write!(f, "refused a packet of {length} bytes from {from}: {reason}")
            }
            Report::Expired(remote) => {
                write!(f, "the authentication of {remote} has run out: its packets are dropped")
            }
            Report::Adopted(remote) => write!(f, "took over the running tunnel to {remote}"),
            Report::ServerMoved(address) => write!(f, "the server is at {address}"),
            Report::Sent { to, length } => write!(f, "sent {length} bytes to {to}"),
            Report::OuterAddress(address) => write!(f, "our outer address is now {address}"),
            Report::OuterMissing(Outer::Device(device)) => {
                write!(f, "{device} has no IPv4 address: waiting for one")
            }
            Report::OuterMissing(Outer::AddressOn(_, device)) => {
                write!(f, "{device} is gone: waiting for it")
            }
            Report::OuterMissing(Outer::Address(address)) => write!(f, "{address} is gone"),
            Report::OuterMissing(Outer::Route) => {
                f.write_str("there is no route to the server: waiting for one")
            }
            Report::Repairing(step) => write!(f, "repairing: {step}"),
            Report::ReauthIgnored => {
                f.write_str("SIGUSR1 is for clients, a server has nothing to authenticate")
            }
        }
    }
}
