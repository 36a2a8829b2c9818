//! The server: an engine and its host, driven by the rules of every driver.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use ipipou::auth::{SharedSecret, key_text};
use ipipou::engine::config::{Config, Datapath, HubConfig, PeerSource, QueueConfig};
use ipipou::engine::driver::Driver;
use ipipou::engine::host::Found;
use ipipou::engine::host::step::{Refused, Step};
use ipipou::engine::hub::MemberState;
use ipipou::engine::peers_file::pool::Pool;
use ipipou::engine::peers_file::{Context, PeerSet, SourceFile, parse};
use ipipou::engine::{Engine, Event, Memory, Now, Outgoing, Report, Writing};

use super::host::{FakeHost, tunnel};
use super::played::{Rng, SERVER_SEED, public, shared_secret};

pub struct Server {
    pub engine: Engine,
    pub host: FakeHost,
    rng: Rng,
    pub now: Duration,
    /// What its wall clock is off by.
    pub skew: i64,
    pub sent: Vec<Outgoing>,
    pub reports: Vec<Report>,
    pub steps: usize,
    /// Where its peers are, as its reports say.
    pub sessions: HashMap<u32, SocketAddr>,
}

/// The seed of a peer's key.
pub fn seed_of(peer: u32) -> [u8; 32] {
    let mut seed = [77; 32];
    seed[..4].copy_from_slice(&peer.to_be_bytes());
    seed
}

fn config() -> Config {
    let mut tunnel = tunnel();
    tunnel.inner = "10.8.0.1".parse().unwrap();
    tunnel.inner_peer = "10.8.0.0/16".parse().unwrap();
    let hub = HubConfig {
        peers: "/nowhere".into(),
        seed: Some(SERVER_SEED.into()),
        pool: Pool::default(),
        secret: SharedSecret::new(Vec::new()),
        queue: QueueConfig { number: 0, max_len: 24 },
    };
    Config { tunnel, peers: PeerSource::Hub(hub) }
}

/// The entry of a peer, as a file has it.
pub fn entry(peer: u32, is_enabled: bool) -> String {
    let [.., a, b] = (peer + 2).to_be_bytes();
    let key = key_text(&public(&seed_of(peer)));
    let route = match peer % 3 {
        0 => format!("route = \"172.20.{a}.{b}\"\n"),
        _ => String::new(),
    };
    format!(
        "[peer.p{peer}]\npublic-key = \"{key}\"\naddress = \"10.8.{a}.{b}\"\nlifetime = \"60s\"\n\
         enabled = {is_enabled}\n{route}"
    )
}

pub fn set(text: String) -> PeerSet {
    let config = config();
    let context = Context {
        own_public_key: Some(public(&SERVER_SEED)),
        port: None,
        inner: config.tunnel.inner,
        network: config.tunnel.inner_peer,
        inner6: None,
        default_secret: &shared_secret(),
        read_secret: &|_| Err("there are none".to_owned()),
    };
    parse(&[SourceFile { name: "peers.toml".to_owned(), text }], &context).unwrap()
}

impl Server {
    pub fn new(mut rng: Rng, host: FakeHost, now: Duration) -> Self {
        let at = moment(&mut rng, now, 0);
        let mut server = Server {
            engine: Engine::new(config(), Datapath::Tun, Memory::default(), &at),
            host,
            rng,
            now,
            skew: 0,
            sent: Vec::new(),
            reports: Vec::new(),
            steps: 0,
            sessions: HashMap::new(),
        };
        server.look();
        server
    }

    pub fn look(&mut self) {
        let found = self.host.found.clone();
        self.handle(Event::HostRead(found));
    }

    pub fn handle(&mut self, event: Event<'_>) {
        Driver::handle(self, event).now_or_never().expect("nothing here waits");
    }

    /// What the engine says of itself is what its reports said and what the host does.
    pub fn check(&mut self) {
        let now = moment(&mut self.rng, self.now, self.skew);
        let members = self.engine.members(&now).unwrap();
        let connected: BTreeMap<_, _> = members
            .filter(|member| member.state == MemberState::Connected)
            .map(|member| (member.remote.unwrap(), peer_of(member.entry.name.as_str())))
            .collect();
        let told: BTreeMap<_, _> = self.sessions.iter().map(|(peer, at)| (*at, *peer)).collect();
        assert_eq!(told.len(), self.sessions.len(), "two peers have one remote");
        assert_eq!(connected, told, "the reports say something else");
        let carried = self.host.found.userspace.forwarding.remotes.keys();
        assert!(carried.eq(connected.keys()), "data goes to others than those who are in");
        let routed = self.host.found.routes.len();
        let with_route = connected.values().filter(|peer| *peer % 3 == 0).count();
        assert_eq!(routed, with_route, "networks behind others than those who are in");
    }
}

fn moment(rng: &mut Rng, now: Duration, skew: i64) -> Now {
    let mut random = [0; 64];
    rng.fill(&mut random);
    let started = 1_700_000_000_u64.saturating_add_signed(skew);
    Now { monotonic: now, boot: now, unix: started + now.as_secs(), started, random }
}

pub fn peer_of(name: &str) -> u32 {
    name.strip_prefix('p').unwrap().parse().unwrap()
}

impl Driver for Server {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        Some(moment(&mut self.rng, self.now, self.skew))
    }

    /// Of thousands this takes long; a reading may fail.
    async fn read(&mut self) -> Option<Found> {
        (self.rng.below(8) == 0).then(|| self.host.found.clone())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        self.steps += 1;
        self.host.apply(step)
    }

    async fn remember(&mut self, _memory: &Memory) {}

    fn write(&mut self, _writing: Writing) {
        panic!("nothing is kept on the disk");
    }

    fn send(&mut self, packet: &Outgoing) -> bool {
        self.sent.push(packet.clone());
        true
    }

    fn peer_alive(&mut self, _remote: SocketAddr) {}

    fn report(&mut self, report: &Report) {
        match report {
            Report::PeerUp { name, remote } => {
                let before = self.sessions.insert(peer_of(name.as_str()), *remote);
                assert_eq!(before, None, "{report}");
            }
            Report::PeerMoved { name, from, to } => {
                let before = self.sessions.insert(peer_of(name.as_str()), *to);
                assert_eq!(before, Some(*from), "{report}");
            }
            Report::PeerDown { name, remote, .. } => {
                let before = self.sessions.remove(&peer_of(name.as_str()));
                assert_eq!(before, Some(*remote), "{report}");
            }
            Report::Repairing(_) | Report::KeepsBeingUndone(_) => panic!("{report}"),
            _ => {}
        }
        self.reports.push(report.clone());
    }
}
