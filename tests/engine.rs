//! The engine against a simulated host: single situations, and random ones.

#[path = "engine/client.rs"]
mod client;
#[path = "engine/clocks.rs"]
mod clocks;
#[path = "engine/failover.rs"]
mod failover;
#[path = "engine/fast.rs"]
mod fast;
#[path = "engine/gateway.rs"]
mod gateway;
#[path = "engine/given.rs"]
mod given;
#[path = "engine/given_later.rs"]
mod given_later;
#[path = "engine/guard.rs"]
mod guard;
#[path = "engine/host.rs"]
mod host;
#[path = "engine/hub.rs"]
mod hub;
#[path = "engine/hub_claims.rs"]
mod hub_claims;
#[path = "engine/hub_steps.rs"]
mod hub_steps;
#[path = "engine/kernel_routes.rs"]
mod kernel_routes;
#[path = "engine/learners.rs"]
mod learners;
#[path = "engine/made.rs"]
mod made;
#[path = "engine/memory.rs"]
mod memory;
#[path = "engine/mtu.rs"]
mod mtu;
#[path = "engine/nodes.rs"]
mod nodes;
#[path = "engine/one_of_many.rs"]
mod one_of_many;
#[path = "engine/outer.rs"]
mod outer;
#[path = "engine/own_addresses.rs"]
mod own_addresses;
#[path = "engine/random.rs"]
mod random;
#[path = "engine/resumed.rs"]
mod resumed;
#[path = "engine/server_addresses.rs"]
mod server_addresses;
#[path = "engine/server_names.rs"]
mod server_names;
#[path = "engine/servers.rs"]
mod servers;
#[path = "engine/shared.rs"]
mod shared;
#[path = "engine/situations.rs"]
mod situations;
#[path = "engine/userspace.rs"]
mod userspace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use futures_util::FutureExt as _;
use host::{FakeHost, tunnel};
use ipipou::auth::{Credential, Policy, Proof, SharedSecret, Signer, Verifier};
use ipipou::engine::config::{
    Admits, Config, Datapath, Expects, HostName, LearnConfig, Outer, QueueConfig, Reply,
    ServerName, Shows, SourceCheck, TunnelConfig,
};
use ipipou::engine::control::PeerId;
use ipipou::engine::driver::Driver;
use ipipou::engine::host::Found;
use ipipou::engine::host::step::{Refused, Step};
use ipipou::engine::{Engine, Event, Memory, Now, Outgoing, Report, ResumableSession, Writing};
use ipnet::IpNet;

/// Unix time at the start of every play.
const START: u64 = 1_700_000_000;

fn signer() -> Signer {
    Signer::new(&[7; 32], SharedSecret::new(b"secret".to_vec()))
}

/// A server as a test asks for it.
#[derive(Debug, Clone)]
struct Server {
    tunnel: TunnelConfig,
    queue: QueueConfig,
    policy: Policy,
    lifetime: Option<Duration>,
    reply: Reply,
    learn: Option<LearnConfig>,
}

/// A client as a test asks for it.
#[derive(Debug, Clone)]
struct Client {
    tunnel: TunnelConfig,
    server: ServerName,
    credential: Credential,
    keepalive: Option<Duration>,
}

impl From<Server> for Config {
    fn from(server: Server) -> Self {
        let Server { tunnel, queue, policy, lifetime, reply, learn } = server;
        let admits = learn.map_or(Admits::One, Admits::Shared);
        Config::server(tunnel, Expects { queue, policy, lifetime, reply, admits })
    }
}

impl From<Client> for Config {
    fn from(client: Client) -> Self {
        let Client { tunnel, server, credential, keepalive } = client;
        Config::client(tunnel, server, Shows { credential, keepalive, server: None })
    }
}

fn server(lifetime: Option<Duration>) -> Server {
    let secret = SharedSecret::new(b"secret".to_vec());
    let verifier = Verifier::new(&signer().public(), secret, None).unwrap();
    Server {
        tunnel: tunnel(),
        queue: QueueConfig { number: 0, max_len: 24 },
        policy: Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) },
        lifetime,
        reply: Reply::Silent,
        learn: None,
    }
}

fn client(host: HostName, keepalive: Option<Duration>) -> Client {
    Client {
        tunnel: tunnel(),
        server: ServerName { host, port: 10000.try_into().unwrap() },
        credential: Credential::Key(signer()),
        keepalive,
    }
}

/// One process on a simulated host, with a clock that the test turns.
struct Play {
    engine: Engine,
    host: FakeHost,
    now: Duration,
    /// Grows with every moment: no salt comes twice.
    drawn: u64,
    /// What the wall clock is off by.
    skew: i64,
    /// How long the machine slept.
    slept: Duration,
    sent: Vec<Outgoing>,
    /// How many steps were applied before each of them.
    steps_before: Vec<usize>,
    /// Packets to these are refused by the host.
    unsendable: BTreeSet<SocketAddr>,
    /// Of each packet: the clock, what was on disk, and its payload.
    dated: Vec<(u64, Memory, Vec<u8>)>,
    reports: Vec<Report>,
    /// What was written to disk last.
    memory: Memory,
    /// That was this process: what it writes next is added to it.
    in_step: bool,
    writings: usize,
    /// What is to be written waits for [`Play::write`].
    slow_disk: bool,
    unwritten: Option<Writing>,
    /// Sessions that the next process may take over.
    kept: BTreeMap<PeerId, ResumableSession>,
    applied: Vec<String>,
    /// Steps and reports as they came, and which steps were refused.
    log: Vec<String>,
}

impl Play {
    fn start(config: Config, host: FakeHost, memory: Memory) -> Self {
        Play::start_on(Datapath::Kernel, config, host, memory)
    }

    fn start_on(datapath: Datapath, config: Config, host: FakeHost, memory: Memory) -> Self {
        let mut play = Play::stopped(datapath, config, host, memory);
        play.read();
        play
    }

    /// Before the host is read.
    fn stopped(datapath: Datapath, config: Config, host: FakeHost, memory: Memory) -> Self {
        Play::stopped_at(0, datapath, config, host, memory)
    }

    /// With a wall clock that is off by `skew` from the start.
    fn stopped_at(
        skew: i64,
        datapath: Datapath,
        config: Config,
        host: FakeHost,
        memory: Memory,
    ) -> Self {
        let at_start = moment(Duration::ZERO, skew, 0);
        let engine = Engine::new(config, datapath, memory.clone(), &at_start);
        Play {
            engine,
            host,
            now: Duration::ZERO,
            drawn: 0,
            skew,
            slept: Duration::ZERO,
            sent: Vec::new(),
            steps_before: Vec::new(),
            unsendable: BTreeSet::new(),
            dated: Vec::new(),
            reports: Vec::new(),
            memory,
            in_step: false,
            writings: 0,
            slow_disk: false,
            unwritten: None,
            kept: BTreeMap::new(),
            applied: Vec::new(),
            log: Vec::new(),
        }
    }

    fn moment(&mut self) -> Now {
        self.drawn += 1;
        let now = moment(self.now, self.skew, self.drawn);
        Now { boot: now.boot + self.slept, ..now }
    }

    /// The machine sleeps: only one of the clocks of the kernel goes on.
    fn sleep(&mut self, time: Duration) {
        self.slept += time;
        self.skew += i64::try_from(time.as_secs()).unwrap();
        self.handle(Event::Deadline);
    }

    /// Hands over an event, and writes what a quick disk writes; true at the end.
    fn handle(&mut self, event: Event<'_>) -> bool {
        let mut ended = self.drive(event);
        while let Some(writing) = self.unwritten.take_if(|_| !self.slow_disk) {
            self.write_down();
            ended |= self.drive(Event::Written(writing));
        }
        ended
    }

    /// The disk takes what was not to be forgotten since it took anything, which makes it what the engine
    /// remembers.
    fn write_down(&mut self) {
        let in_step = std::mem::replace(&mut self.in_step, true);
        let records = self.engine.take_records().filter(|_| in_step);
        let whole = self.engine.memory();
        let Some(records) = records else {
            self.memory = whole;
            return;
        };
        records.into_iter().for_each(|record| self.memory.apply(record));
        assert_eq!(self.memory, whole, "what was added to the memory is not what has changed");
    }

    fn drive(&mut self, event: Event<'_>) -> bool {
        Driver::handle(self, event).now_or_never().expect("nothing here waits")
    }

    /// As the kernel is asked: for the way to the server's address, and for those to the others.
    fn found(&self) -> Found {
        let mut found = self.host.found.clone();
        if let (Some(server), false) = (self.engine.server_address(), found.other_ways.is_empty()) {
            found.way = found.other_ways.remove(&server);
        }
        let asked = self.engine.given_addresses();
        let route = |address: &IpAddr| self.host.found.routed.get(address).copied().flatten();
        found.routed = asked.map(|address| (address, route(&address))).collect();
        found
    }

    fn read(&mut self) {
        let found = self.found();
        self.handle(Event::HostRead(found));
    }

    /// Turns the clock, and fires every deadline on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let (mut at_once, mut fired) = (0, 0);
        while self.engine.next_deadline() <= end {
            fired += 1;
            assert!(fired < 100_000, "deadlines without end, at {:?}", self.now);
            let due = self.now.max(self.engine.next_deadline());
            at_once = if due == self.now { at_once + 1 } else { 0 };
            assert!(at_once < 10, "a deadline that has come stays due, at {due:?}");
            self.now = due;
            self.handle(Event::Deadline);
        }
        self.now = end;
    }

    fn receive(&mut self, from: SocketAddrV4, payload: &[u8]) {
        self.handle(Event::Datagram { from: from.into(), payload });
    }

    /// The slow disk has written.
    fn write(&mut self) {
        let writing = self.unwritten.take().expect("something to write");
        self.write_down();
        self.handle(Event::Written(writing));
    }

    /// A packet that the client's key signs now.
    fn proof(&mut self) -> Vec<u8> {
        let now = self.moment();
        signer().packet(now.unix, *now.random.first_chunk().unwrap())
    }

    fn end(&mut self) {
        let found = self.found();
        assert!(self.handle(Event::Shutdown(found)));
    }

    fn rejected(&self) -> u64 {
        self.engine.counters().rejected.values().sum()
    }
}

impl Driver for Play {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        Some(self.moment())
    }

    async fn read(&mut self) -> Option<Found> {
        Some(self.found())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        self.applied.push(step.to_string());
        let result = self.host.apply(step);
        self.log.push(match result {
            Ok(()) => step.to_string(),
            Err(_) => format!("refused: {step}"),
        });
        result
    }

    async fn remember(&mut self, memory: &Memory) {
        self.engine.take_records();
        self.in_step = true;
        self.memory = memory.clone();
        self.writings += 1;
    }

    fn write(&mut self, writing: Writing) {
        self.writings += 1;
        self.unwritten = Some(writing);
    }

    fn send(&mut self, packet: &Outgoing) -> bool {
        if self.unsendable.contains(&packet.to) {
            return false;
        }
        self.steps_before.push(self.applied.len());
        let clock = moment(self.now, self.skew, 0).unix;
        self.dated.push((clock, self.memory.clone(), packet.payload.clone()));
        self.sent.push(packet.clone());
        true
    }

    fn peer_alive(&mut self, _remote: SocketAddr) {}

    fn report(&mut self, report: &Report) {
        self.log.push(format!("told: {report}"));
        self.reports.push(report.clone());
    }

    fn keep_sessions(&mut self) {
        for (peer, session) in self.engine.changed_sessions().into_iter().flatten() {
            match session {
                Some(session) => drop(self.kept.insert(peer, session)),
                None => drop(self.kept.remove(&peer)),
            }
        }
    }

    fn found_no_rest(&mut self) {
        panic!("the engine finds no rest: {:?}", self.applied.last_chunk::<9>());
    }
}

fn moment(now: Duration, skew: i64, drawn: u64) -> Now {
    let mut random = [0; 64];
    for (i, chunk) in random.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(
            &(drawn * 8 + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes(),
        );
    }
    let unix = (START + now.as_secs()).saturating_add_signed(skew);
    let started = START.saturating_add_signed(skew);
    Now { monotonic: now, boot: now, unix, started, random }
}

fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn outer_at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
