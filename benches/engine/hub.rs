//! A server whose peers are named in files: what one of few and one of many costs the engine alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use ipipou::auth::{SharedSecret, Signer, key_text};
use ipipou::engine::config::{Config, Datapath, HubConfig, PeerSource, QueueConfig};
use ipipou::engine::control::{Client, ClientConfig, ClientHeard};
use ipipou::engine::driver::Driver;
use ipipou::engine::host::Found;
use ipipou::engine::host::step::{Refused, Step};
use ipipou::engine::peers_file::pool::Pool;
use ipipou::engine::peers_file::{Context, PeerSet, SourceFile, parse};
use ipipou::engine::{Engine, Event, Memory, Now, Outgoing, Report, Writing};

use super::host::{FakeHost, tunnel};
use super::{at, median, remote, timed};

const SEED: [u8; 32] = [9; 32];
const SAMPLES: u32 = 100;
/// How long those live that come while others stay.
const SHORT: Duration = Duration::from_secs(30);

/// Which peers there are.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub datapath: Datapath,
    pub routed: bool,
}

/// Microseconds for one of a number of peers: medians.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Both hellos of a peer that comes: the first one makes the keys between it and the server.
    pub comes: f64,
    /// Both hellos of a move, and the second alone, whose signature is checked.
    pub moves: f64,
    pub proves: f64,
    pub expires: f64,
    pub kicked: f64,
    pub keepalive: f64,
    /// A packet of random bytes that names the server.
    pub junk: f64,
    /// The files are taken again: nothing changed, and one peer did.
    pub reload: f64,
    pub reload_one: f64,
    /// What the loop does for a list of them all.
    pub listed: f64,
}

struct Server {
    engine: Engine,
    host: FakeHost,
    now: Duration,
    /// What the host took.
    outside: Duration,
    sent: Vec<Outgoing>,
    /// How long the last hello of a visit took.
    last: f64,
    /// It cannot read its host.
    is_blind: bool,
    ended: usize,
}

fn signer(number: u32) -> Signer {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    Signer::new(&seed, SharedSecret::new(Vec::new()))
}

/// The peers of a file: a number with a long lease, and more with a short one.
fn peers(config: &Config, count: u32, routed: bool, note: &str) -> PeerSet {
    let peer = |number: u32| {
        let key = key_text(&signer(number).public());
        let [.., a, b] = (number + 2).to_be_bytes();
        let life = if number < count { "24h" } else { "30s" };
        let route = if routed { format!("route = \"100.64.{a}.{b}\"\n") } else { String::new() };
        let note = if number == count { note } else { "" };
        format!(
            "[peer.p{number}]\npublic-key = \"{key}\"\naddress = \"10.9.{a}.{b}\"\n\
             lifetime = \"{life}\"\nnote = \"{note}\"\n{route}"
        )
    };
    let text = (0..count + SAMPLES).map(peer).collect();
    let secret = SharedSecret::new(Vec::new());
    let context = Context {
        own_public_key: None,
        port: None,
        inner: config.tunnel.inner,
        network: config.tunnel.inner_peer,
        inner6: None,
        default_secret: &secret,
        read_secret: &|_| Err("no file".to_owned()),
    };
    parse(&[SourceFile { name: "peers.toml".to_owned(), text }], &context).unwrap()
}

fn config() -> Config {
    let mut tunnel = tunnel();
    tunnel.inner = "10.9.0.1".parse().unwrap();
    tunnel.inner_peer = "10.9.0.0/16".parse().unwrap();
    let hub = HubConfig {
        peers: "/nowhere".into(),
        seed: Some(SEED.into()),
        pool: Pool::default(),
        secret: SharedSecret::new(Vec::new()),
        queue: QueueConfig { number: 0, max_len: 24 },
    };
    Config { tunnel, peers: PeerSource::Hub(hub) }
}

fn client(number: u32, now: Duration) -> Client {
    let config = ClientConfig {
        signer: signer(number),
        server_key: Signer::new(&SEED, SharedSecret::new(Vec::new())).public(),
        keepalive: Duration::from_secs(27),
        mtu: None,
        wants_addresses: false,
    };
    Client::new(config, now).unwrap()
}

fn hello(client: &mut Client, now: Duration) -> Vec<u8> {
    let mut fill = now.as_nanos().to_le_bytes()[0];
    let random = &mut |bytes: &mut [u8]| {
        for byte in bytes {
            fill = fill.wrapping_mul(13).wrapping_add(101);
            *byte = fill;
        }
    };
    client.poll(now, at(now).unix, random).expect("a hello is due").to_vec()
}

impl Server {
    fn with(kind: Kind, count: u32) -> (Self, Vec<Client>) {
        let config = config();
        let engine =
            Engine::new(config.clone(), kind.datapath, Memory::default(), &at(Duration::ZERO));
        let mut server = Server {
            engine,
            host: FakeHost::new(),
            now: Duration::ZERO,
            outside: Duration::ZERO,
            sent: Vec::new(),
            last: 0.0,
            is_blind: false,
            ended: 0,
        };
        server.handle(Event::Peers(peers(&config, count, kind.routed, "")));
        server.look();
        let mut clients = Vec::new();
        for number in 0..count {
            server.now += Duration::from_millis(10);
            let mut client = client(number, server.now);
            server.visits(&mut client, remote(number));
            clients.push(client);
        }
        server.look();
        server.look();
        (server, clients)
    }

    fn look(&mut self) {
        self.handle(Event::HostRead(self.host.found.clone()));
    }

    /// Microseconds that the engine takes.
    fn handle(&mut self, event: Event<'_>) -> f64 {
        self.outside = Duration::ZERO;
        let all = timed(|| {
            Driver::handle(self, event).now_or_never().expect("nothing here waits");
        });
        all - self.outside.as_secs_f64() * 1e6
    }

    fn receive(&mut self, from: SocketAddr, payload: &[u8]) -> f64 {
        self.sent.clear();
        self.handle(Event::Datagram { from, payload })
    }

    /// A client says hello from here until it is in: microseconds of the server.
    fn visits(&mut self, client: &mut Client, from: SocketAddr) -> f64 {
        let mut took = 0.0;
        client.say_now(self.now);
        for _ in 0..3 {
            let hello = hello(client, self.now);
            self.last = self.receive(from, &hello);
            took += self.last;
            let answer = self.sent.first().expect("an answer").payload.clone();
            if client.receive(&answer, self.now) == ClientHeard::Accepted {
                return took;
            }
        }
        panic!("it is not let in");
    }

    /// Time goes on until `end`, with what is due; how long the last of that took.
    fn pass(&mut self, end: Duration) -> f64 {
        let mut last = 0.0;
        while self.engine.next_deadline() <= end {
            self.now = self.now.max(self.engine.next_deadline());
            last = self.handle(Event::Deadline);
        }
        self.now = end;
        last
    }
}

/// What one of `count` costs.
pub fn costs(kind: Kind, count: u32) -> Costs {
    let (mut server, mut clients) = Server::with(kind, count);
    let (mut comes, mut moves, mut kicked, mut expires) = (vec![], vec![], vec![], vec![]);
    let mut proves = vec![];
    for sample in 0..SAMPLES {
        let number = count + sample;
        let mut one = client(number, server.now);
        let (here, there) = (remote(1_000_000 + sample), remote(2_000_000 + sample));
        comes.push(server.visits(&mut one, here));
        server.now += Duration::from_millis(10);
        moves.push(server.visits(&mut one, there));
        proves.push(server.last);
        let name = format!("p{number}").parse().unwrap();
        kicked.push(server.handle(Event::Kick(name)));
        server.visits(&mut one, here);
        let (until, before) = (server.now + SHORT, server.ended);
        // A reading, which looks at all of them, is not what is measured.
        server.is_blind = true;
        server.pass(until - Duration::from_millis(1));
        let took = server.pass(until);
        server.is_blind = false;
        assert_eq!(server.ended, before + 1);
        expires.push(took);
    }
    let mut keepalives = Vec::new();
    for number in (0..count).cycle().take(2 * SAMPLES as usize) {
        server.now += Duration::from_millis(10);
        let client = &mut clients[number as usize];
        server.visits(client, remote(number)); // with a cookie of this epoch
        client.say_now(server.now);
        let hello = hello(client, server.now);
        keepalives.push(server.receive(remote(number), &hello));
        let answer = server.sent.first().expect("an answer").payload.clone();
        assert_eq!(client.receive(&answer, server.now), ClientHeard::Accepted);
    }
    let mut packet = [0xb5; 128];
    let junk = (0..10 * SAMPLES).map(|sample| {
        packet[76..80].copy_from_slice(&sample.to_be_bytes());
        server.receive(remote(3_000_000), &packet)
    });
    let junk = median(junk.collect());
    let list = |server: &Server| {
        let members = server.engine.members(&at(server.now)).expect("a hub").collect::<Vec<_>>();
        assert_eq!(members.len(), (count + SAMPLES) as usize);
        members // a list is dropped elsewhere
    };
    let listed = (0..9).map(|_| {
        let mut members = Vec::new();
        timed(|| members = list(&server))
    });
    let listed = median(listed.collect());
    let mut reload = |note: &str| {
        let config = config();
        let sets: Vec<_> =
            (0..9).map(|time| peers(&config, count, kind.routed, &note.repeat(time % 2))).collect();
        median(sets.into_iter().map(|set| server.handle(Event::Peers(set))).collect())
    };
    Costs {
        comes: median(comes),
        moves: median(moves),
        proves: median(proves),
        expires: median(expires),
        kicked: median(kicked),
        keepalive: median(keepalives),
        junk,
        reload: reload(""),
        reload_one: reload("another"),
        listed,
    }
}

/// Microseconds of one strict signature check, without an engine.
pub fn signature_check() -> f64 {
    use ed25519_dalek::{Signer as _, SigningKey};
    let key = SigningKey::from_bytes(&[3; 32]);
    let message = [5; 64];
    let (signature, public) = (key.sign(&message), key.verifying_key());
    let check = || assert!(public.verify_strict(&message, &signature).is_ok());
    median((0..10 * SAMPLES).map(|_| timed(check)).collect())
}

impl Driver for Server {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        Some(at(self.now))
    }

    async fn read(&mut self) -> Option<Found> {
        let begin = Instant::now();
        let found = (!self.is_blind).then(|| self.host.found.clone());
        self.outside += begin.elapsed();
        found
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        let begin = Instant::now();
        let result = self.host.apply(step);
        self.outside += begin.elapsed();
        result
    }

    async fn remember(&mut self, _memory: &Memory) {}

    fn write(&mut self, _writing: Writing) {
        panic!("a hub writes nothing");
    }

    fn send(&mut self, packet: &Outgoing) -> bool {
        self.sent.push(packet.clone());
        true
    }

    fn peer_alive(&mut self, _remote: SocketAddr) {}

    fn report(&mut self, report: &Report) {
        self.ended += usize::from(matches!(report, Report::PeerDown { .. }));
    }
}
