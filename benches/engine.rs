//! What a change of one of many peers costs the engine alone: `cargo bench --bench engine`.
//!
//! A server that hosts share, on the userspace datapath, with a host that exists in memory. Each figure
//! is the median time of one event with all that follows from it: the authentication of a remote that
//! is new (a move, or somebody who comes), one from where the host is already, and one that runs out; and
//! that of a regular reading of the host, which alone grows with the number of peers. Then: how long a
//! whole peers file takes, and what one of the peers of a server costs whose peers are named in files.
//! With a target missed, it ends with 1.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../tests/engine/host.rs"]
#[allow(dead_code)]
mod host;
#[path = "engine/hub.rs"]
mod hub;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use host::{FakeHost, tunnel};
use hub::Kind;
use ipipou::auth::{Policy, Proof, SharedSecret, Signer, Token, key_text};
use ipipou::engine::config::{Admits, Config, Datapath, Expects, LearnConfig, QueueConfig, Reply};
use ipipou::engine::driver::Driver;
use ipipou::engine::host::Found;
use ipipou::engine::host::step::{Refused, Step};
use ipipou::engine::peers_file::{Context, SourceFile, parse};
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
    expired: usize,
}

fn config() -> Config {
    let mut tunnel = tunnel();
    tunnel.inner = "10.9.0.1".parse().unwrap();
    tunnel.inner_peer = "10.9.0.0/16".parse().unwrap();
    let proof = Proof::Token(Token::new(TOKEN.to_vec()).unwrap());
    let expects = Expects {
        queue: QueueConfig { number: 0, max_len: 24 },
        policy: Policy { remote_ip: None, remote_port: None, proof },
        lifetime: Some(LIFETIME),
        reply: Reply::Reversed,
        admits: Admits::Shared(LearnConfig { lifetime: LIFETIME, limit: 65_536 }),
    };
    Config::server(tunnel, expects)
}

fn at(now: Duration) -> Now {
    Now {
        monotonic: now,
        boot: now,
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
        let mut server = Server { engine, host, now, unwritten: None, records: 0, expired: 0 };
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
        let samples = (0..SAMPLES).map(|sample| {
            self.now += Duration::from_millis(10);
            timed(|| event(self, sample))
        });
        median(samples.collect())
    }

    /// The median of the deadlines at which a remote runs out, as many as there are at most.
    fn expiry(&mut self, most: usize) -> f64 {
        let mut times = Vec::new();
        while times.len() < most {
            self.now = self.engine.next_deadline().max(self.now);
            let before = self.expired;
            let time = timed(|| self.handle(Event::Deadline));
            times.extend((self.expired == before + 1).then_some(time));
        }
        median(times)
    }
}

/// A peers file without faults.
fn peers_file(peers: u32) -> SourceFile {
    let peer = |number: u32| {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let key = key_text(&Signer::new(&seed, SharedSecret::new(Vec::new())).public());
        let [.., a, b] = (number + 2).to_be_bytes();
        format!(
            "[peer.shop-{number}]\npublic-key = \"{key}\"\naddress = [\"10.9.{a}.{b}\", \
             \"fd00:9::{number:x}:2\"]\nroute = \"172.16.{a}.{b}\"\nexpires = 2027-01-31\n\n"
        )
    };
    SourceFile { name: "peers.toml".to_owned(), text: (0..peers).map(peer).collect() }
}

/// Microseconds that it takes to read a number of peers: the median of a few times.
fn reading_a_file(peers: u32) -> f64 {
    let files = [peers_file(peers)];
    let context = Context {
        own_public_key: None,
        port: None,
        inner: "10.9.0.1".parse().unwrap(),
        network: "10.9.0.0/16".parse().unwrap(),
        inner6: Some("fd00:9::1/64".parse().unwrap()),
        default_secret: &SharedSecret::new(Vec::new()),
        read_secret: &|_| Err("no file".to_owned()),
    };
    let read = || assert_eq!(parse(&files, &context).map(|set| set.len()), Ok(peers as usize));
    median((0..9).map(|_| timed(read)).collect())
}

/// Microseconds.
fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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

    fn report(&mut self, report: &Report) {
        self.expired += usize::from(matches!(report, Report::Expired(_)));
    }
}

/// Prints whether a target is met.
fn judge(met: bool, what: &str, missed: &mut bool) {
    *missed |= !met;
    println!("{}: {what}", if met { "ok" } else { "MISSED" });
}

/// What one of the peers costs that are named in files, and the targets. False when one is missed.
fn named_peers() -> bool {
    const MOST: f64 = 1.5;
    let tun = |name, routed| Kind { name, datapath: Datapath::Tun, routed };
    let kernel = Kind { name: "kernel", datapath: Datapath::Kernel, routed: false };
    let kinds = [
        (tun("tun", false), [5, 5_000, 10_000].as_slice()),
        (tun("tun, route", true), &[5, 5_000]),
        (kernel, &[5, 500]),
    ];
    println!("\npeers that are named in files: median µs of one, and its ratio to one of 5");
    let heads =
        ["comes", "moves", "expires", "kicked", "keepalive", "reload", "one changes", "list"];
    let head: String = heads.iter().map(|head| format!(" {head:>15}")).collect();
    println!("{:>11} {:>7}{head} {:>9}", "", "peers", "junk");
    let mut missed = false;
    let check = hub::signature_check();
    for (kind, populations) in kinds {
        let mut first = None;
        for peers in populations {
            let costs = hub::costs(kind, *peers);
            let hub::Costs { comes, moves, expires, kicked, keepalive, .. } = costs;
            let hub::Costs { reload, reload_one, listed, .. } = costs;
            let figures = [comes, moves, expires, kicked, keepalive, reload, reload_one, listed];
            let first = *first.get_or_insert(figures);
            let ratios: Vec<f64> =
                figures.iter().zip(first).map(|(now, then)| now / then).collect();
            let cells: String = figures
                .iter()
                .zip(&ratios)
                .map(|(figure, ratio)| format!(" {:>15}", format!("{figure:.2} ({ratio:.2})")))
                .collect();
            println!("{:>11} {peers:>7}{cells} {:>9.3}", kind.name, costs.junk);
            for (what, ratio) in heads.iter().zip(&ratios).take(3) {
                let what = format!("{}: {what}, one of {peers}: {ratio:.2}", kind.name);
                if *ratio > MOST {
                    judge(false, &what, &mut missed);
                }
            }
            if kind.datapath == Datapath::Tun && !kind.routed {
                let held = reload.max(reload_one) / 1000.0;
                judge(
                    held <= 5.0,
                    &format!("a reload holds the loop for {held:.2} ms"),
                    &mut missed,
                );
                let moved = check / costs.proves;
                judge(
                    keepalive <= 4.0,
                    &format!("a keepalive takes {keepalive:.2} µs"),
                    &mut missed,
                );
                let cheaper = check / costs.junk;
                let what = format!("junk is {cheaper:.0} times cheaper than a signature check");
                judge(cheaper >= 40.0, &what, &mut missed);
                let what =
                    format!("moves are as many as {:.0} % of signature checks", 100.0 * moved);
                judge(moved >= 0.8, &what, &mut missed);
            }
        }
    }
    println!("a strict signature check alone: {check:.2} µs");
    !missed
}

fn main() -> ExitCode {
    println!("median µs of an event, and its ratio to that with {} peers", POPULATIONS[0]);
    let [comes, again, goes, reads] = ["comes", "again", "goes", "reading"];
    println!("{:>8} {comes:>16} {again:>16} {goes:>16} {reads:>16} {:>8}", "peers", "records");
    let mut first = None;
    for clients in POPULATIONS {
        let mut server = Server::with(clients);
        let before = server.records;
        let comes = server.median(|server, sample| server.authenticate(1_000_000 + sample));
        let records =
            f64::from(u32::try_from(server.records - before).unwrap()) / f64::from(SAMPLES);
        let again = server.median(|server, _| server.authenticate(1_000_000));
        let reads = server.median(|server, _| {
            server.handle(Event::HostRead(server.host.found.clone()));
        });
        let goes = server.expiry(usize::try_from(SAMPLES / 2).unwrap());
        let figures = [comes, again, goes, reads];
        let first = first.get_or_insert(figures);
        let cells =
            figures.iter().zip(first).map(|(now, first)| format!("{now:.2} ({:.2})", now / *first));
        let cells: String = cells.map(|cell| format!(" {cell:>16}")).collect();
        println!("{clients:>8}{cells} {records:>8.2}");
    }
    println!("\nms of reading a peers file");
    for peers in POPULATIONS {
        println!("{peers:>8} {:>16.2}", reading_a_file(peers) / 1000.0);
    }
    match named_peers() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
