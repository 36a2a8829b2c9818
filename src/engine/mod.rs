//! The engine takes events and returns actions. It reads no clock, opens no socket and draws no random
//! number, so a test can play through every situation. [`Engine`] has the contract.

mod addresses;
mod admission;
mod adoption;
mod answers;
mod applied;
mod authenticate;
mod calendar;
pub mod config;
mod conflicts;
pub mod control;
pub mod datapath;
pub mod driver;
mod ending;
mod endpoint;
mod event;
pub mod given;
mod heard;
pub mod host;
pub mod hub;
mod learned;
pub mod limits;
pub mod links;
mod memory;
pub mod networks;
mod now;
mod peer;
mod peers;
pub mod peers_file;
mod persistence;
mod prover;
mod random;
mod reading;
mod reconcile;
mod repairs;
mod report;
mod rivals;
mod server;
mod servers;
mod sessions;
mod sources;
mod status;
pub mod table;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use adoption::has_leftovers;
use answers::Answers;
use applied::Applying;
use config::{Config, Datapath, PeerSource};
use datapath::{WithoutFastPath, by_route};
use endpoint::{Endpoint, OuterFound};
pub use endpoint::{OVERHEAD_V4, outer_address, outer_family};
pub use event::{Action, Counters, Event, Failed, Outgoing, Status};
pub use heard::Contact;
use heard::Heard;
use host::plan::Owned;
use host::undone::Undone;
use host::{Family, Found, Takes};
use hub::Hub;
pub use hub::ResumableSession;
pub use memory::{Memory, Record, Settings, TurnedOn, Writing};
pub use now::Now;
use peer::Peer;
use peers::Peers;
pub use prover::{Connection, Passed, Pong, first_packet};
use reconcile::Remotes;
use repairs::PolicyRules;
pub use report::{Report, Unusable};
use rivals::Rivals;
use sources::OwnAddresses;
pub use status::ServerStatus;
use table::Node;

/// How often the host is read although no notification came: the kernel sends none for FOU listeners.
const REREAD_EVERY: Duration = Duration::from_secs(3);

/// How long to wait after a failed step before the next try.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many actions wait for the next reading at most. A client that is not answered asks again.
const MOST_AFTER_STEPS: usize = 4096;

/// By how many seconds the wall clock has to differ from the monotonic one before it counts as set:
/// rounding and gradual adjustment stay below.
const CLOCK_JUMP: u64 = 3;

/// The state of one process: its end of the tunnels, its peers, and the host as it was last read.
///
/// It is sans-I/O: it decides, and a caller does. The calls:
///
/// - [`new`](Self::new) takes the configuration, and the [`Memory`] that an earlier process left.
/// - [`handle`](Self::handle) takes one [`Event`] and appends the [`Action`]s that follow from it.
/// - [`next_deadline`](Self::next_deadline) says when [`Event::Deadline`] is due.
/// - [`server_address`](Self::server_address) and [`other_addresses`](Self::other_addresses) say to
///   which addresses a reading of the host has to ask for the way.
/// - [`memory`](Self::memory) is what the disk should have, whenever an action asks for a writing.
/// - [`status`](Self::status) and [`counters`](Self::counters) are for people; they change nothing.
///
/// The caller's loop has three steps:
///
/// 1. Wait for an event, or for the deadline. The deadline has to be asked for again after each event;
///    the first is due at once, and asks for the first reading of the host.
/// 2. Hand the event to `handle`, with a fresh [`Now`].
/// 3. Carry out the actions in order. Some of them answer with an event, which is handed over before
///    the next wait: [`Action`] says which.
///
/// [`Driver::handle`](driver::Driver::handle) does the second and the third; what is left is
///
/// ```
/// use std::time::Duration;
///
/// use ipipou::engine::Event;
/// use ipipou::engine::driver::Driver;
///
/// /// `wait` gives [`Event::Deadline`] when nothing else comes before the deadline.
/// async fn run(mut driver: impl Driver, mut wait: impl AsyncFnMut(Duration) -> Event<'static>) {
///     loop {
///         let event = wait(driver.engine().next_deadline()).await;
///         if driver.handle(event).await {
///             break; // after Event::Shutdown, once everything is removed
///         }
///     }
/// }
/// ```
///
/// `examples/engine_by_hand.rs` drives one on a host that exists in memory.
///
/// What the caller guarantees:
///
/// - [`Now::monotonic`] never goes back from one call to the next. [`Now::unix`] may jump, and
///   [`Now::started`] jumps with it: by this the engine knows that the clock was set.
/// - [`Now::random`] is 64 fresh bytes. Without them an event must not be handed over; it is lost,
///   and what matters of it comes again.
/// - A reading is whole, or it is not handed over. When one fails, the engine goes on with the last
///   one and asks again at the next deadline.
/// - [`Action::Apply`] is answered by [`Event::Applied`]. All steps are tried in order, but those that
///   [need](host::needs::needs) one that was refused or not tried. If a refused step changed something
///   nevertheless, the next reading has to show it.
/// - [`Action::Write`] is answered by [`Event::Written`], when the disk refuses, too: until then a
///   new remote is not admitted. [`Action::Remember`] is done when its memory is on the disk.
/// - After [`Action::Exit`] no event is handed over.
///
/// What the engine guarantees:
///
/// - No I/O, no clock, no randomness of its own: equal calls give equal actions.
/// - A packet that proves nothing raises a counter and leaves nothing else behind: an unproven source
///   costs no memory. How many packets are worth a signature check is the datapath's to limit, by
///   [`limits`].
/// - The steps lead to what is wanted, whatever the reading showed. For a host that has applied them,
///   planning again gives no step (a route may take one reading more: it needs the index of its
///   interface).
/// - The rules are installed before the listener that they guard, and removed after it.
/// - A remote is admitted only after its authentication is on the disk (or the disk has refused it), so
///   that a restart refuses a replay.
#[derive(Debug)]
pub struct Engine {
    endpoint: Endpoint,
    peers: Peers,
    /// The peers that files name, and their sessions.
    hub: Option<Hub>,
    /// The instant of the last event.
    last: Now,
    /// The table of hosts as it came; `None` where peers are configured.
    table: Option<Vec<Node>>,
    unusable: Vec<(Node, Unusable)>,
    /// What was reported about other interfaces with our inner addresses, once each.
    conflicts: Vec<Report>,
    /// The uplinks of the fast path, or why there is none, as reported last.
    fast_path: Option<Result<(BTreeSet<u32>, Takes), WithoutFastPath>>,
    why_no_fast_path: Option<WithoutFastPath>,
    /// Kept until the first reading shows whether there is something to adopt.
    memory: Memory,
    found: Option<Found>,
    /// A part of a plan was done since that reading, so nothing is planned by it any more.
    is_old: bool,
    /// Actions that come after steps which only the next reading brings.
    after_steps: Vec<Action>,
    /// The addresses of the host as found, to look sources up in.
    own_addresses: OwnAddresses,
    /// As it is, or as it was before it went missing.
    outer: Option<OuterFound>,
    outer_missing: bool,
    owned: Owned,
    policy_rules: PolicyRules,
    /// What the last plan was made for, if it had no steps.
    needs_nothing: Option<Remotes>,
    undone: Undone,
    counters: Counters,
    heard: Heard,
    /// The server may have moved: its name is to be looked up.
    may_have_moved: bool,
    rivals: Rivals,
    /// Remotes that came, and from where they moved, whose tunnel is not made yet.
    untold: BTreeMap<SocketAddr, Option<SocketAddr>>,
    phase: Phase,
    applying: Applying,
    reread_at: Duration,
    /// The last writing of the memory that was asked for.
    writing: Writing,
    /// When the memory is to be written next.
    write_at: Duration,
    /// Unix time at the start of the process, by the clock as it was at the last event.
    started: u64,
    /// The server has another address, which was not reported yet.
    server_moved: bool,
    /// The servers for which it was reported that their name has no usable address.
    names_unusable: BTreeSet<usize>,
    answers: Answers,
    given: given::Given,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Steps were asked for, or will be because of another address, and no reading has shown the result
    /// yet.
    Settling,
    /// The host was as it should be, when it was read last.
    Settled,
    Ending,
}

impl Engine {
    /// Makes the engine of a process that starts `now`; nothing is done before its first event.
    /// `memory` is what an earlier process left with [`Action::Remember`] or [`Action::Write`].
    pub fn new(config: Config, datapath: Datapath, mut memory: Memory, now: &Now) -> Self {
        let control = endpoint::control(&config);
        let Config { tunnel, peers } = config;
        let (peer, table, hub) = match peers {
            PeerSource::One(peer) => (Some(Peer::new(peer, &tunnel, &mut memory, now)), None, None),
            PeerSource::Table(_) => (None, Some(Vec::new()), None),
            PeerSource::Hub(hub) => (None, None, Hub::new(&hub, &tunnel, now)),
        };
        Engine {
            endpoint: Endpoint { tunnel, datapath, control },
            peers: Peers::new(peer),
            hub,
            last: *now,
            table,
            unusable: Vec::new(),
            conflicts: Vec::new(),
            fast_path: None,
            why_no_fast_path: None,
            memory,
            found: None,
            is_old: false,
            after_steps: Vec::new(),
            own_addresses: OwnAddresses::default(),
            outer: None,
            outer_missing: false,
            owned: Owned::default(),
            policy_rules: PolicyRules::default(),
            needs_nothing: None,
            undone: Undone::default(),
            counters: Counters::default(),
            heard: Heard::default(),
            may_have_moved: false,
            rivals: Rivals::default(),
            untold: BTreeMap::new(),
            phase: Phase::Settling,
            applying: Applying::default(),
            reread_at: now.monotonic,
            writing: Writing::default(),
            write_at: Duration::MAX,
            started: now.started,
            server_moved: false,
            names_unusable: BTreeSet::new(),
            answers: Answers::default(),
            given: given::Given::default(),
        }
    }

    /// Takes one event, and appends to `actions` what to do, in order.
    pub fn handle(&mut self, event: Event<'_>, now: &Now, actions: &mut Vec<Action>) {
        self.compare_clocks(now, actions);
        self.last = *now;
        match event {
            Event::HostRead(found) => self.host_read(found, now, actions),
            Event::Datagram { from, payload } => self.datagram(from, payload, now, actions),
            Event::Hosts(nodes) => self.hosts_changed(nodes, now, actions),
            Event::Kick(name) => self.kick(&name, actions),
            Event::Peers(set) => self.members_changed(set, now, actions),
            Event::Resolved { server, addresses } => {
                self.resolved(server, &addresses, now, actions);
            }
            Event::ReauthRequested => self.reauth(now, actions),
            Event::Written(writing) => self.written(writing, now, actions),
            Event::Applied(Ok(())) => self.applied(actions),
            Event::Applied(Err(failed)) => self.failed(&failed, now, actions),
            Event::TornDown { failed } => self.torn_down(failed, actions),
            Event::SendFailed => self.peers.provers().for_each(|prover| prover.send_failed(now)),
            Event::Deadline => self.deadline(now, actions),
            Event::Ping(server) => self.ping(server, now, actions),
            Event::Leaving => self.say_goodbye(now, actions),
            Event::Shutdown(found) => self.shutdown(&found, now, actions),
        }
    }

    /// The clock was set, or the machine slept (the monotonic clock stands still then): a client's
    /// packet may have been too old, and its server may have forgotten it.
    fn compare_clocks(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.started, now.started);
        let jump = self.started.abs_diff(before);
        if jump < CLOCK_JUMP {
            return;
        }
        if self.peers.has_prover() {
            actions.push(Action::Report(Report::ClockJumped(jump)));
            self.authenticate(now.monotonic);
        }
        self.reckon_members(now, actions);
    }

    /// When [`Event::Deadline`] is due, as [`Now::monotonic`]. It may have passed already, and every
    /// event may change it.
    pub fn next_deadline(&self) -> Duration {
        let of_peers = self.peers.next_deadline(self.can_send()).unwrap_or(Duration::MAX);
        let of_hub = self.hub.as_ref().and_then(|hub| hub.next_deadline(&self.last));
        self.reread_at.min(self.write_at).min(of_peers).min(of_hub.unwrap_or(Duration::MAX))
    }

    /// What was accepted, refused, sent and repaired since the start of this process.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The outer address that the tunnel would have by this reading of the host.
    pub fn outer_in(&self, found: &Found) -> Option<IpAddr> {
        self.outer_towards(self.server_in(found), found).map(|outer| outer.address)
    }

    /// Names of the interfaces whose settings were changed and have to be put back at the end.
    pub fn changed_interfaces(&self) -> impl Iterator<Item = &String> {
        self.memory.settings.keys()
    }

    /// Why the last plan had no fast path.
    pub fn why_no_fast_path(&self) -> Option<&WithoutFastPath> {
        self.why_no_fast_path.as_ref()
    }

    /// The remotes, as far as the routes tell by which interface packets from our outer address leave for
    /// them, and a fast path has to know.
    pub fn by_route(&self) -> Option<(IpAddr, BTreeSet<IpAddr>)> {
        let outer = self.outer.filter(|_| self.endpoint.tunnel.has_uplinks_by_route())?;
        Some((outer.address, by_route(outer, &self.peers)))
    }

    /// The family of the outer addresses; IPv4 as long as none is known.
    pub fn family(&self) -> Family {
        let found = self.outer.map(|outer| outer.address);
        found.or(self.endpoint.tunnel.outer.address()).map_or(Family::V4, Family::of)
    }

    fn deadline(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let expired = self.peers.expire(now);
        self.expire_members(now, actions);
        if self.can_send() {
            for prover in self.peers.provers() {
                if prover.asks_for_traffic(now) {
                    self.reread_at = now.monotonic;
                }
            }
        }
        self.send_due(now, actions);
        if !expired.is_empty() {
            let steps = self.follow_peers(actions);
            actions.extend(Action::apply(steps));
        }
        actions.extend(expired.into_iter().map(Report::Expired).map(Action::Report));
        if self.write_at <= now.monotonic {
            self.write(actions);
        }
        if self.reread_at <= now.monotonic {
            self.reread_at = now.monotonic + REREAD_EVERY;
            actions.push(Action::ReadHost);
        }
    }
}
