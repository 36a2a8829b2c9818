//! The clients, the network between them and the server, and what happens to all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use ipipou::engine::control::{Client, ClientConfig, ClientHeard, State};
use ipipou::engine::{Event, Report};

use super::host::FakeHost;
use super::played::{Packet, Rng, SERVER_SEED, UNIX, public, secs, shared_secret};
use super::server::{Server, entry, peer_of, seed_of, set};
use ipipou::auth::Signer;

/// Two of these are as long as a cookie is good for.
pub const EPOCH: f64 = 60.0;

/// A host with the key of the peer of its number.
pub struct Host {
    pub client: Client,
    pub address: SocketAddr,
    pub is_on: bool,
    /// Every address that it had, and when it left that; `None`: it is there.
    pub own: BTreeMap<SocketAddr, Option<f64>>,
    /// When its packets were relayed last, or it took an answer that was injected.
    pub tricked: f64,
    /// Until when its packets are relayed.
    pub relayed_until: f64,
}

/// Who sent a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Host,
    Relay,
    Adversary,
}

pub enum Flight {
    ToServer {
        packet: Packet,
        from: SocketAddr,
        host: usize,
        by: By,
    },
    ToClient {
        answer: Vec<u8>,
        host: usize,
        is_injected: bool,
    },
    /// A client may have something to say.
    Wake(usize),
    /// Something happens.
    Happens,
}

pub struct World {
    pub rng: Rng,
    pub now: f64,
    pub server: Server,
    pub hosts: Vec<Host>,
    enabled: Vec<bool>,
    flights: HashMap<u64, Flight>,
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    next: u64,
    addresses: u32,
    pub recorded: Vec<(Packet, usize, SocketAddr)>,
    pub answers: Vec<(Vec<u8>, usize)>,
    /// Bytes from and to each address.
    bytes: HashMap<SocketAddr, (usize, usize)>,
    is_over: bool,
    pub notes: BTreeMap<&'static str, u32>,
}

fn client(peer: usize, now: f64) -> Client {
    let config = ClientConfig {
        signer: Signer::new(&seed_of(u32::try_from(peer).unwrap()), shared_secret()),
        server_key: public(&SERVER_SEED),
        keepalive: Duration::from_secs(20),
        mtu: None,
        wants_addresses: false,
    };
    Client::new(config, secs(now)).unwrap()
}

impl World {
    pub fn new(seed: u64, peers: u32, clients: u32) -> Self {
        let (rng, now) = (Rng(seed), 1000.0);
        let mut server = Server::new(Rng(!seed), FakeHost::new(), secs(now));
        let enabled = vec![true; peers as usize];
        server.handle(Event::Peers(set(text(&enabled))));
        server.look();
        let mut world = World {
            rng,
            now,
            server,
            hosts: Vec::new(),
            enabled,
            flights: HashMap::new(),
            order: BinaryHeap::new(),
            next: 0,
            addresses: 0,
            recorded: Vec::new(),
            answers: Vec::new(),
            bytes: HashMap::new(),
            is_over: false,
            notes: BTreeMap::new(),
        };
        for number in 0..clients as usize {
            let address = world.new_address();
            let start = now + world.rng.uniform(0.0, 10.0);
            world.hosts.push(Host {
                client: client(number, start),
                address,
                is_on: true,
                own: [(address, None)].into(),
                tricked: f64::MIN,
                relayed_until: f64::MIN,
            });
            world.later(start, Flight::Wake(number));
        }
        world
    }

    pub fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
    }

    /// A port of one of the addresses that have four each: several clients are behind one NAT.
    fn new_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        let [_, a, b, c] = (self.addresses / 4).to_be_bytes();
        let port = 4000 + u16::try_from(self.addresses % 4).unwrap();
        SocketAddr::from(([100, 64 + a, b, c], port))
    }

    pub fn later(&mut self, at: f64, flight: Flight) {
        self.next += 1;
        self.flights.insert(self.next, flight);
        self.order.push(Reverse((secs(at.max(self.now)), self.next)));
    }

    pub fn play(&mut self, seconds: f64) {
        let end = self.now + seconds;
        self.later(self.now + 5.0, Flight::Happens);
        let mut check_at = self.now;
        while self.run_one(secs(end)) {
            if self.now >= check_at {
                self.server.check();
                check_at = self.now + seconds / 30.0;
            }
        }
        self.now = end;
    }

    /// The next thing that is due, if it is before `end`.
    fn run_one(&mut self, end: Duration) -> bool {
        let due = self.server.engine.next_deadline();
        let flight = self.order.peek().map(|Reverse((at, _))| *at);
        if due.min(flight.unwrap_or(Duration::MAX)) > end {
            return false;
        }
        if flight.is_none_or(|flight| due < flight) {
            self.now = self.now.max(due.as_secs_f64());
            self.server.now = due.max(self.server.now);
            self.server.handle(Event::Deadline);
            return true;
        }
        let Some(Reverse((at, number))) = self.order.pop() else { return false };
        self.now = self.now.max(at.as_secs_f64());
        self.server.now = at.max(self.server.now);
        match self.flights.remove(&number).unwrap() {
            Flight::ToServer { packet, from, host, by } => {
                self.server_hears(&packet, from, host, by);
            }
            Flight::ToClient { answer, host, is_injected } => {
                self.client_hears(host, &answer, is_injected);
            }
            Flight::Wake(host) => self.say(host),
            Flight::Happens if self.is_over => {}
            Flight::Happens => {
                self.happens();
                let pause = self.rng.uniform(0.0, 40.0 / self.hosts.len().max(40) as f64);
                self.later(self.now + pause, Flight::Happens);
            }
        }
        true
    }

    /// Sends what a client has to say, and wakes it when it has more.
    fn say(&mut self, host: usize) {
        let now = secs(self.now);
        let rng = &mut self.rng;
        while self.hosts[host].is_on {
            let hello = self.hosts[host].client.poll(now, UNIX, &mut |bytes| rng.fill(bytes));
            let Some(packet) = hello else { break };
            let from = self.hosts[host].address;
            self.recorded.push((packet, host, from));
            let lost = !self.is_over && rng.unit() < 0.1;
            let copies = usize::from(!lost) + usize::from(!lost && rng.unit() < 0.05);
            for _ in 0..copies {
                self.next += 1;
                let delay = rng.uniform(0.01, if self.is_over { 0.05 } else { 0.4 });
                let flight = Flight::ToServer { packet, from, host, by: By::Host };
                self.flights.insert(self.next, flight);
                self.order.push(Reverse((secs(self.now + delay), self.next)));
            }
        }
        if self.hosts[host].is_on {
            let next = self.hosts[host].client.next_deadline().as_secs_f64();
            self.later(next.max(self.now + 0.001), Flight::Wake(host));
        }
    }

    fn client_hears(&mut self, host: usize, answer: &[u8], is_injected: bool) {
        let to = &mut self.hosts[host];
        if !to.is_on || to.client.receive(answer, secs(self.now)) == ClientHeard::Nothing {
            return;
        }
        if is_injected {
            to.tricked = self.now;
        }
        self.say(host);
    }

    /// A packet with the key of `host` reaches the server.
    pub fn server_hears(&mut self, packet: &[u8], from: SocketAddr, host: usize, by: By) {
        let (from, by) = match by {
            By::Host if self.now < self.hosts[host].relayed_until => {
                self.hosts[host].tricked = self.now;
                (super::adversary::place(), By::Relay)
            }
            By::Host | By::Relay | By::Adversary => (from, by),
        };
        self.server.sent.clear();
        self.server.reports.clear();
        self.server.handle(Event::Datagram { from, payload: packet });
        for report in std::mem::take(&mut self.server.reports) {
            match report {
                Report::PeerUp { name, remote } => self.is_at(&name, remote, (host, by)),
                Report::PeerMoved { name, to, .. } => self.is_at(&name, to, (host, by)),
                Report::PeerDown { .. }
                | Report::PeerRefused { .. }
                | Report::PeerUnproven { .. }
                // A relay moves a session to and fro as two hosts with one key do.
                | Report::PeerRivals { .. }
                | Report::Sent { .. } => {}
                other => panic!("{other}"),
            }
        }
        let bytes = self.bytes.entry(from).or_default();
        bytes.0 += packet.len();
        for answer in std::mem::take(&mut self.server.sent) {
            assert_eq!(answer.to, from, "an answer to somebody else");
            assert!(matches!(answer.payload[..2], [0x81..=0x83, 2]), "no answer of protocol 2");
            bytes.1 += answer.payload.len();
            assert!(
                bytes.1 <= bytes.0 && answer.payload.len() <= packet.len(),
                "{from} is flooded"
            );
            let is_there = self.hosts[host].address == from || by == By::Relay;
            self.answers.push((answer.payload.clone(), host));
            if is_there && (self.is_over || self.rng.unit() >= 0.1) {
                let (answer, is_injected) = (answer.payload, by == By::Relay);
                self.next += 1;
                let delay = self.rng.uniform(0.01, if self.is_over { 0.05 } else { 0.4 });
                self.order.push(Reverse((secs(self.now + delay), self.next)));
                self.flights.insert(self.next, Flight::ToClient { answer, host, is_injected });
            }
        }
    }

    /// A session began at `remote`, or moved there, by a packet.
    fn is_at(
        &mut self,
        name: &ipipou::engine::peers_file::PeerName,
        at: SocketAddr,
        by: (usize, By),
    ) {
        let (host, by) = by;
        let peer = peer_of(name.as_str()) as usize;
        assert_eq!(peer, host, "another peer's session followed");
        assert!(self.enabled[peer], "{name} is disabled");
        let is_tricked = self.now - self.hosts[host].tricked <= 2.0 * EPOCH;
        match self.hosts[host].own.get(&at) {
            None if at == super::adversary::place() && is_tricked => self.note("tricked"),
            None => panic!("{name} at {at}, where it never was, by {by:?}, second {}", self.now),
            Some(Some(left)) if by == By::Adversary => {
                assert!(self.now - left <= 2.0 * EPOCH, "{name} back at {at} too late");
                self.note("at a former address");
            }
            Some(_) => self.note("came or moved"),
        }
    }

    fn happens(&mut self) {
        let host = self.rng.below(self.hosts.len());
        match self.rng.unit() {
            ..0.04 => self.moves(host),
            ..0.06 => self.goes_or_comes(host),
            ..0.07 => self.server.handle(Event::Kick(format!("p{host}").parse().unwrap())),
            ..0.075 if self.enabled.len() < 100 => {
                self.enabled[host] = !self.enabled[host];
                self.server.handle(Event::Peers(set(text(&self.enabled))));
            }
            ..0.08 => self.server.skew = self.rng.choice(&[-900_000_000, -4000, 0, 5, 800_000_000]),
            ..0.085 => self.hosts[host].relayed_until = self.now + self.rng.uniform(5.0, 40.0),
            _ => self.attack(),
        }
    }

    fn moves(&mut self, host: usize) {
        let to = match self.rng.unit() {
            // A NAT gives what a host had that is not there any more.
            ..0.2 => {
                let other = self.rng.below(self.hosts.len());
                let free = self.hosts[other].own.iter().find(|(_, left)| left.is_some());
                free.map(|(address, _)| *address)
            }
            // Back to where it was.
            ..0.5 => self.hosts[host].own.keys().next().copied(),
            _ => None,
        };
        let is_taken = |at: &SocketAddr| self.hosts.iter().any(|h| h.is_on && h.address == *at);
        let to = to.filter(|at| !is_taken(at));
        let to = to.unwrap_or_else(|| self.new_address());
        let (now, moved) = (self.now, &mut self.hosts[host]);
        moved.own.insert(moved.address, Some(now));
        moved.own.insert(to, None);
        moved.address = to;
        moved.client.say_now(secs(now));
        self.say(host);
    }

    fn goes_or_comes(&mut self, host: usize) {
        let now = self.now;
        let rng = &mut self.rng;
        let one = &mut self.hosts[host];
        if one.is_on {
            let bye = one.client.bye(secs(now), UNIX, &mut |bytes| rng.fill(bytes));
            one.own.insert(one.address, Some(now));
            one.is_on = false;
            let from = one.address;
            if let Some(packet) = bye {
                self.recorded.push((packet, host, from));
                self.later(now + 0.2, Flight::ToServer { packet, from, host, by: By::Host });
            }
            return;
        }
        let is_taken = self.hosts.iter().any(|h| h.is_on && h.address == self.hosts[host].address);
        let address = if is_taken { self.new_address() } else { self.hosts[host].address };
        let one = &mut self.hosts[host];
        (one.client, one.is_on, one.address) = (client(host, now), true, address);
        one.own.insert(address, None);
        self.say(host);
    }

    /// The adversary is gone and nothing is lost: everybody who runs is in, and knows it.
    pub fn end(&mut self) {
        self.is_over = true;
        self.enabled.fill(true);
        self.server.handle(Event::Peers(set(text(&self.enabled))));
        self.hosts.iter_mut().for_each(|host| host.relayed_until = f64::MIN);
        // What is on its way may still be a refusal.
        let arrived = secs(self.now + 1.0);
        while self.run_one(arrived) {}
        self.now += 1.0;
        for host in 0..self.hosts.len() {
            self.hosts[host].client.say_now(secs(self.now));
            self.later(self.now, Flight::Wake(host));
        }
        let end = secs(self.now + 45.0);
        while self.run_one(end) {}
        self.now = end.as_secs_f64();
        self.server.now = end;
        self.server.look();
        self.server.check();
        for (number, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.is_on) {
            let peer = u32::try_from(number).unwrap();
            let (is_at, state) = (self.server.sessions.get(&peer), host.client.state(end));
            assert_eq!(is_at, Some(&host.address), "p{number} is {state:?}");
            assert!(matches!(state, State::Connected { .. }), "p{number} is {state:?}");
        }
    }
}

fn text(enabled: &[bool]) -> String {
    (0..).zip(enabled).map(|(peer, is_enabled)| entry(peer, *is_enabled)).collect()
}
