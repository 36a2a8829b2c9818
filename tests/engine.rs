//! The engine against a played host: single situations, and random ones.

#[path = "engine/gateway.rs"]
mod gateway;
#[path = "engine/guard.rs"]
mod guard;
#[path = "engine/host.rs"]
mod host;
#[path = "engine/made.rs"]
mod made;
#[path = "engine/memory.rs"]
mod memory;
#[path = "engine/mtu.rs"]
mod mtu;
#[path = "engine/random.rs"]
mod random;
#[path = "engine/situations.rs"]
mod situations;
#[path = "engine/userspace.rs"]
mod userspace;

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use host::FakeHost;
use ipipou::auth::{Credential, Policy, Proof, SharedSecret, Signer, Verifier};
use ipipou::engine::config::{
    AlternateAddress, ClientConfig, Datapath, DatapathChoice, GatewayConfig, HostName, Outer,
    QueueConfig, Reply, Role, RulesConfig, ServerConfig, ServerName, SourceCheck, TunnelConfig,
};
use ipipou::engine::host::Found;
use ipipou::engine::{Action, Engine, Event, Memory, Moment, Outgoing, Report, Writing};
use ipnet::IpNet;

/// Unix time at the start of every play.
const START: u64 = 1_700_000_000;

fn signer() -> Signer {
    Signer::new(&[7; 32], SharedSecret::new(b"secret".to_vec()))
}

fn tunnel() -> TunnelConfig {
    TunnelConfig {
        device: "ipipou0".parse().unwrap(),
        inner: "172.28.0.0".parse().unwrap(),
        inner_peer: "172.28.0.1/32".parse().unwrap(),
        inner6: None,
        mtu: None,
        outer: Outer::Device("eth0".parse().unwrap()),
        port: 10000.try_into().unwrap(),
        alternate: AlternateAddress::WhenTaken("172.29.0.0".parse().unwrap()),
        checksum: None,
        source_check: SourceCheck::Strict,
        auth_ttl: None,
        rules: RulesConfig { table: "ipipou-0".to_owned(), counters: true },
        gateway: GatewayConfig::default(),
        datapath: DatapathChoice::Auto,
        queues: None,
    }
}

fn server(lifetime: Option<Duration>) -> ServerConfig {
    let secret = SharedSecret::new(b"secret".to_vec());
    let verifier = Verifier::new(&signer().public(), secret, None).unwrap();
    ServerConfig {
        tunnel: tunnel(),
        queue: QueueConfig { number: 0, max_len: 24 },
        policy: Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) },
        lifetime,
        reply: Reply::Silent,
        learn: None,
    }
}

fn client(host: HostName, keepalive: Option<Duration>) -> ClientConfig {
    ClientConfig {
        tunnel: tunnel(),
        server: ServerName { host, port: 10000.try_into().unwrap() },
        credential: Credential::Key(signer()),
        keepalive,
    }
}

/// One process of ours on a played host, with a clock that a test turns.
struct Play {
    engine: Engine,
    host: FakeHost,
    now: Duration,
    /// Grows with every moment: no salt comes twice.
    drawn: u64,
    /// What the wall clock is off by.
    skew: i64,
    sent: Vec<Outgoing>,
    /// Of each packet: the clock, what was on disk, and its payload.
    dated: Vec<(u64, Memory, Vec<u8>)>,
    reports: Vec<Report>,
    /// What was written to disk last.
    memory: Memory,
    writings: usize,
    /// What is to be written waits for [`Play::write`].
    slow_disk: bool,
    unwritten: Option<Writing>,
    applied: Vec<String>,
    /// Steps and reports as they came, and which steps were refused.
    log: Vec<String>,
}

impl Play {
    fn start(role: Role, host: FakeHost, memory: Memory) -> Self {
        Play::start_on(Datapath::Kernel, role, host, memory)
    }

    fn start_on(datapath: Datapath, role: Role, host: FakeHost, memory: Memory) -> Self {
        let mut play = Play::stopped(datapath, role, host, memory);
        play.read();
        play
    }

    /// Before the host is read.
    fn stopped(datapath: Datapath, role: Role, host: FakeHost, memory: Memory) -> Self {
        Play::stopped_at(0, datapath, role, host, memory)
    }

    /// With a wall clock that is off by `skew` from the start.
    fn stopped_at(
        skew: i64,
        datapath: Datapath,
        role: Role,
        host: FakeHost,
        memory: Memory,
    ) -> Self {
        let at_start = moment(Duration::ZERO, skew, 0);
        let engine = Engine::new(role, datapath, memory.clone(), &at_start);
        Play {
            engine,
            host,
            now: Duration::ZERO,
            drawn: 0,
            skew,
            sent: Vec::new(),
            dated: Vec::new(),
            reports: Vec::new(),
            memory,
            writings: 0,
            slow_disk: false,
            unwritten: None,
            applied: Vec::new(),
            log: Vec::new(),
        }
    }

    fn moment(&mut self) -> Moment {
        self.drawn += 1;
        moment(self.now, self.skew, self.drawn)
    }

    /// As the daemon does: the steps of a batch in order, then read the host, until all is quiet.
    fn handle(&mut self, event: Event<'_>) -> bool {
        let mut work = VecDeque::new();
        self.feed(event, &mut work);
        let (mut applied, mut failed) = (false, false);
        for _ in 0..1000 {
            match work.pop_front() {
                None => return false,
                Some(Action::Exit) => return true,
                Some(Action::Apply(step)) if failed => {
                    self.feed(Event::StepFailed { step, taken: false }, &mut work);
                }
                Some(Action::Apply(step)) => {
                    self.applied.push(step.to_string());
                    match self.host.apply(&step) {
                        Ok(()) => {
                            applied = true;
                            self.log.push(step.to_string());
                        }
                        Err(refused) => {
                            failed = true;
                            self.log.push(format!("refused: {step}"));
                            let taken = refused == host::Refused::Taken;
                            self.feed(Event::StepFailed { step, taken }, &mut work);
                        }
                    }
                }
                Some(Action::Send(out)) => {
                    let clock = moment(self.now, self.skew, 0).unix;
                    self.dated.push((clock, self.memory.clone(), out.payload.clone()));
                    self.sent.push(out);
                }
                Some(Action::PeerAlive(_)) => {}
                Some(Action::ReadHost) => {
                    (applied, failed) = (false, false);
                    let found = self.found();
                    self.feed(Event::HostRead(found), &mut work);
                }
                Some(Action::Remember(memory)) => {
                    self.memory = memory;
                    self.writings += 1;
                }
                Some(Action::Write(writing)) => {
                    self.writings += 1;
                    if self.slow_disk {
                        self.unwritten = Some(writing);
                    } else {
                        self.memory = self.engine.memory();
                        self.feed(Event::Written(writing), &mut work);
                    }
                }
                Some(Action::Report(report)) => {
                    self.log.push(format!("told: {report}"));
                    self.reports.push(report);
                }
            }
            if applied && !failed && !work.iter().any(|a| matches!(a, Action::Apply(_))) {
                applied = false;
                self.feed(Event::Applied, &mut work);
            }
        }
        panic!(
            "the engine finds no rest; last steps: {:?}",
            &self.applied[self.applied.len() - 9..]
        );
    }

    fn feed(&mut self, event: Event<'_>, work: &mut VecDeque<Action>) {
        let now = self.moment();
        let mut actions = Vec::new();
        self.engine.handle(event, &now, &mut actions);
        work.extend(actions);
    }

    /// As the kernel is asked: for the way to the server's address, and for those to the others.
    fn found(&self) -> Found {
        let mut found = self.host.found.clone();
        if let (Some(server), false) = (self.engine.server_address(), found.other_ways.is_empty()) {
            found.way = found.other_ways.remove(&server);
        }
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
        self.memory = self.engine.memory();
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

fn moment(now: Duration, skew: i64, drawn: u64) -> Moment {
    let mut random = [0; 64];
    for (i, chunk) in random.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(
            &(drawn * 8 + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes(),
        );
    }
    let unix = (START + now.as_secs()).saturating_add_signed(skew);
    let started = START.saturating_add_signed(skew);
    Moment { monotonic: now, unix, started, random }
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
