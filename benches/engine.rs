//! What a change of one of many peers costs the engine alone: `cargo bench --bench engine`.
//!
//! A server that hosts share, on the userspace datapath, with a host that exists in memory. Each figure
//! is the median time of one event with all that follows from it: the authentication of a remote that
//! is new (a move, or somebody who comes), one from where the host is already, and one that runs out.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../tests/engine/host.rs"]
#[allow(dead_code)]
mod host;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use host::FakeHost;
use ipipou::auth::{Policy, Proof, Token};
use ipipou::engine::config::{
    Admits, AlternateAddress, Config, Datapath, DatapathChoice, Expects, GatewayConfig,
    LearnConfig, Outer, QueueConfig, Reply, RulesConfig, SourceCheck, TunnelConfig,
};
use ipipou::engine::driver::Driver;
use ipipou::engine::host::Found;
use ipipou::engine::host::step::{Refused, Step};
use ipipou::engine::{Engine, Event, Memory, Now, Outgoing, Report, Writing};

const POPULATIONS: [u32; 4] = [5, 500, 5_000, 10_000];
const SAMPLES: u32 = 200;
const TOKEN: &[u8] = b"a token";
const LIFETIME: Duration = Duration::from_secs(600);

/// A server and its host.
struct Server {
    engine: Engine,
    host: FakeHost,
    now: Duration,
    unwritten: Option<Writing>,
    records: usize,
}

fn config() -> Config {
    let tunnel = TunnelConfig {
        device: "ipipou0".parse().unwrap(),
        inner: "10.9.0.1".parse().unwrap(),
        inner_peer: "10.9.0.0/16".parse().unwrap(),
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
    };
    let proof = Proof::Token(Token::new(TOKEN.to_vec()).unwrap());
    let expects = Expects {
        queue: QueueConfig { number: 0, max_len: 24 },
        policy: Policy { remote_ip: None, remote_port: None, proof },
        lifetime: Some(LIFETIME),
        reply: Reply::Silent,
        admits: Admits::Shared(LearnConfig { lifetime: LIFETIME, limit: 65_536 }),
    };
    Config::server(tunnel, expects)
}

fn at(now: Duration) -> Now {
    Now {
        monotonic: now,
        unix: 1_700_000_000 + now.as_secs(),
        started: 1_700_000_000,
        random: [7; 64],
    }
}

fn remote(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([198, 18 + a, b, c], 10000))
}

impl Server {
    /// With as many clients, each of which came at another time.
    fn with(clients: u32) -> Self {
        let engine = Engine::new(config(), Datapath::Tun, Memory::default(), &at(Duration::ZERO));
        let (host, now) = (FakeHost::new(), Duration::ZERO);
        let mut server = Server { engine, host, now, unwritten: None, records: 0 };
        server.handle(Event::HostRead(server.host.found.clone()));
        for client in 0..clients {
            server.now += Duration::from_millis(10);
            server.authenticate(client);
        }
        server.handle(Event::HostRead(server.host.found.clone()));
        server.handle(Event::HostRead(server.host.found.clone()));
        server
    }

    fn handle(&mut self, event: Event<'_>) {
        Driver::handle(self, event).now_or_never().expect("nothing here waits");
        while let Some(writing) = self.unwritten.take() {
            self.records += self.engine.take_records().map_or(0, |records| records.len());
            Driver::handle(self, Event::Written(writing)).now_or_never().expect("nothing waits");
        }
    }

    fn authenticate(&mut self, client: u32) {
        self.handle(Event::Datagram { from: remote(client), payload: TOKEN });
    }

    /// Microseconds, the median of all samples.
    fn median(&mut self, mut event: impl FnMut(&mut Self, u32)) -> f64 {
        let mut times: Vec<f64> = (0..SAMPLES)
            .map(|sample| {
                self.now += Duration::from_millis(10);
                let start = Instant::now();
                event(self, sample);
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }
}

impl Driver for Server {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        Some(at(self.now))
    }

    async fn read(&mut self) -> Option<Found> {
        Some(self.host.found.clone())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        self.host.apply(step)
    }

    async fn remember(&mut self, _memory: &Memory) {}

    fn write(&mut self, writing: Writing) {
        self.unwritten = Some(writing);
    }

    fn send(&mut self, _packet: &Outgoing) -> bool {
        true
    }

    fn peer_alive(&mut self, _remote: SocketAddr) {}

    fn report(&mut self, _report: &Report) {}
}

fn main() {
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>8}",
        "peers", "comes, µs", "again, µs", "goes, µs", "records"
    );
    let mut first = None;
    for clients in POPULATIONS {
        let mut server = Server::with(clients);
        let before = server.records;
        let comes = server.median(|server, sample| server.authenticate(1_000_000 + sample));
        let records =
            f64::from(u32::try_from(server.records - before).unwrap()) / f64::from(SAMPLES);
        let again = server.median(|server, sample| server.authenticate(sample % clients));
        let goes = server.median(|server, _| {
            server.now = server.engine.next_deadline().max(server.now);
            server.handle(Event::Deadline);
        });
        println!("{clients:>8} {comes:>12.2} {again:>12.2} {goes:>12.2} {records:>8.2}");
        let first = first.get_or_insert([comes, again, goes]);
        let ratios =
            [comes / first[0], again / first[1], goes / first[2]].map(|r| format!("{r:.2}"));
        println!("{:>8} {:>12} {:>12} {:>12}", "ratio", ratios[0], ratios[1], ratios[2]);
    }
}
