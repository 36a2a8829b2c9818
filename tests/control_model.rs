//! The real server and real clients against an adversary who records, delays, drops, repeats, changes,
//! injects and relays packets, while hosts move, restart, sleep, go away and share keys and addresses.
//!
//! Whatever breaks a promise of the protocol fails the test at once. What the protocol leaves to an
//! adversary is counted, and allowed only within its bounds:
//!
//! - A hello that was held back restores a former address, or refreshes a session after the last word of
//!   its peer, for two epochs at most.
//! - For two epochs after a snapshot of the server's machine was started again, the same holds for what
//!   was held back since the snapshot.
//! - Who relays, or reads and injects, has a session at an address whose packets he reads, until a hello
//!   of the client comes through.
//!
//! `IPIPOU_SEEDS=1000 cargo test --test control_model` plays more of them.

#[path = "control/played.rs"]
mod played;
#[path = "control/promises.rs"]
mod promises;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use ipipou::engine::control::{
    Allowed, Client, ClientHeard, Ignored, Outcome, PeerId, Server, State,
};
use played::*;
use promises::{By, Path};

const STEPS: usize = 1500;
const EPOCH: f64 = 60.0;

/// What the adversary can do beside recording, delaying, dropping, repeating and changing hellos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    None,
    /// Answers that he read are sent again to the client that they were for.
    Injects,
    /// For a while, all of A's packets go by way of him.
    Relays,
}

/// A host with one of the keys.
struct Host {
    peer: PeerId,
    client: Client,
    address: SocketAddr,
    is_on: bool,
    /// It was accepted since it was started.
    was_accepted: bool,
    /// When it said anything last.
    last_word: f64,
    /// When it sent its last hellos, and when something made it send one out of turn.
    said: Vec<f64>,
    pushed: Vec<f64>,
}

/// A packet on its way.
enum Flight {
    ToServer { packet: Packet, from: SocketAddr, host: usize },
    ToClient { answer: Vec<u8>, host: usize, is_injected: bool },
}

/// The server's machine as it was.
struct Snapshot {
    server: Server,
    /// The server's clock.
    boot: f64,
    taken_at: f64,
}

struct Play {
    power: Power,
    seed: u64,
    step: usize,
    rng: Rng,
    now: f64,
    lease: f64,
    server: Server,
    /// How far the server's clock is behind ours, since it was started from a snapshot.
    behind: f64,
    /// The server's clock when that happened last.
    restored: f64,
    allowed: HashMap<PeerId, Allowed>,
    hosts: Vec<Host>,
    /// For each peer, the addresses that were its own, and when it left them; `None`: it is there.
    own: HashMap<PeerId, BTreeMap<SocketAddr, Option<f64>>>,
    addresses: u16,
    air: Vec<(f64, Flight)>,
    recorded: Vec<(Packet, PeerId, SocketAddr)>,
    answers: Vec<(Vec<u8>, usize)>,
    /// Who made the hello with a tag, and when.
    made: HashMap<[u8; 16], (usize, f64)>,
    bytes: HashMap<SocketAddr, (usize, usize)>,
    snapshot: Option<Snapshot>,
    relays_until: f64,
    /// When a hello of each peer was last relayed, or its client took an answer that was injected.
    tricked: HashMap<PeerId, f64>,
    notes: BTreeMap<&'static str, u32>,
}

const FORMER: &str = "moved back to a former address, two epochs or less";
const LATE: &str = "refreshed after the last word, two epochs or less";
const IMAGE: &str = "by what was held back since a snapshot";
const TRICK: &str = "at an address that the adversary reads";
const SIGNATURES: &str = "signatures checked for the adversary";

impl Play {
    fn new(power: Power, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let lease = rng.choice(&[20.0, 60.0, 180.0]);
        let now = 1000.0;
        let host = |id, address, is_on| Host {
            peer: id,
            client: client(id, secs(now)),
            address,
            is_on,
            was_accepted: false,
            last_word: 0.0,
            said: Vec::new(),
            pushed: vec![now],
        };
        Play {
            server: server(&mut rng, secs(now), secs(lease)),
            power,
            seed,
            step: 0,
            rng,
            now,
            lease,
            behind: 0.0,
            restored: f64::MIN,
            allowed: [A, B].map(|id| (id, Allowed::Yes)).into(),
            hosts: vec![host(A, a0(), true), host(B, b0(), true), host(A, twin(), false)],
            own: [(A, [(a0(), None), (twin(), None)].into()), (B, [(b0(), None)].into())].into(),
            addresses: 0,
            air: Vec::new(),
            recorded: Vec::new(),
            answers: Vec::new(),
            made: HashMap::new(),
            bytes: HashMap::new(),
            snapshot: None,
            relays_until: f64::MIN,
            tricked: HashMap::new(),
            notes: BTreeMap::new(),
        }
    }

    fn broken(&self, what: &str) -> ! {
        let Play { power, seed, step, now, .. } = self;
        panic!("adversary {power:?}, seed {seed}, step {step}, second {now:.2}: {what}");
    }

    fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
    }

    fn boot(&self) -> f64 {
        self.now - self.behind
    }

    /// Sends what a host has to say.
    fn say(&mut self, host: usize) {
        while self.hosts[host].is_on {
            let rng = &mut self.rng;
            let now = secs(self.now);
            let hello = self.hosts[host].client.poll(now, UNIX, &mut |bytes| rng.fill(bytes));
            let Some(packet) = hello else { break };
            self.send(host, packet);
        }
    }

    fn send(&mut self, host: usize, packet: Packet) {
        let now = self.now;
        let from = &mut self.hosts[host];
        from.last_word = now;
        from.said.retain(|at| now - at <= 1.0);
        from.said.push(now);
        from.pushed.retain(|at| now - at <= 2.0);
        // In a second there are two tries at most, and one for each push; each has three hellos.
        let (said, most) = (from.said.len(), 3 * (2 + from.pushed.len()));
        let (peer, address) = (from.peer, from.address);
        if said > most {
            self.broken(&format!("{said} hellos of one client in a second"));
        }
        self.made.insert(*packet.last_chunk().unwrap(), (host, now));
        self.recorded.push((packet, peer, address));
        if self.rng.unit() < 0.75 {
            for _ in 0..self.copies() {
                let arrival = now + self.rng.uniform(0.01, 0.4);
                let flight = Flight::ToServer { packet, from: address, host };
                self.air.push((arrival, flight));
            }
        }
    }

    /// Some packets arrive twice.
    fn copies(&mut self) -> usize {
        1 + usize::from(self.rng.unit() < 0.05)
    }

    fn arrivals(&mut self) {
        let now = self.now;
        let (arrived, air) = std::mem::take(&mut self.air).into_iter().partition(|f| f.0 <= now);
        self.air = air;
        let arrived: Vec<(f64, Flight)> = arrived;
        for (_, flight) in arrived {
            if self.rng.unit() < 0.08 {
                continue;
            }
            match flight {
                Flight::ToServer { packet, from, host } => {
                    let peer = self.hosts[host].peer;
                    if peer == A && now < self.relays_until {
                        self.tricked.insert(peer, now);
                        self.server_hears(&packet, peer, m(), Path::of(By::Relay));
                    } else {
                        self.server_hears(&packet, peer, from, Path::of(By::Host));
                    }
                }
                Flight::ToClient { answer, host, is_injected } => {
                    self.client_hears(host, &answer, is_injected);
                }
            }
        }
    }

    fn play(&mut self) {
        for step in 0..STEPS {
            self.step = step;
            self.now += self.rng.uniform(0.05, 1.0);
            self.check_places();
            self.arrivals();
            (0..self.hosts.len()).for_each(|host| self.say(host));
            let lot = self.rng.unit();
            self.happen(lot);
        }
    }

    fn happen(&mut self, lot: f64) {
        let host = self.rng.below(2);
        match lot {
            ..0.010 => self.move_host(host),
            ..0.012 => self.restart_server(),
            ..0.018 if self.hosts[host].is_on => self.say_goodbye(host),
            ..0.018 => self.switch_on(host),
            ..0.0195 if self.hosts[host].is_on => self.switch_off(host),
            ..0.0195 => {}
            ..0.021 if self.hosts[2].is_on => self.switch_off(2),
            ..0.021 => self.switch_on(2),
            // All the world is quiet: the machine sleeps, or nobody has anything to say.
            ..0.023 => {
                self.now += self.rng.choice(&[30.0, 100.0, 300.0, 15300.0, 15330.0, 15360.0]);
            }
            ..0.0235 => {
                let (boot, taken_at) = (self.boot(), self.now);
                let server = self.server.clone();
                self.snapshot = Some(Snapshot { server, boot, taken_at });
            }
            ..0.0245 => self.start_snapshot(),
            ..0.028 => {
                let id = self.rng.choice(&[A, B]);
                self.server.kick(id);
            }
            ..0.033 => self.switch_peer(),
            ..0.035 if self.power == Power::Relays => {
                self.relays_until = self.now + self.rng.uniform(5.0, 60.0);
            }
            ..0.6 => self.attack(),
            _ => {}
        }
    }

    fn attack(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let recent = self.recorded.len().min(300);
        let among = if self.rng.unit() < 0.7 { recent } else { self.recorded.len() };
        let of = self.recorded.len() - 1 - self.rng.below(among);
        let (mut packet, peer, from) = self.recorded[of];
        if self.rng.unit() < 0.3 {
            packet = flipped(&packet);
        }
        let own: Vec<_> = self.own[&peer].keys().copied().collect();
        let former = self.rng.choice(&own);
        let (a, b) = (self.hosts[0].address, self.hosts[1].address);
        let from = self.rng.choice(&[from, from, m(), victim(), a, b, former]);
        let is_second = self.rng.below(3) == 2;
        self.server_hears(&packet, peer, from, Path { by: By::Adversary, is_second });
        if self.power == Power::Injects && self.rng.unit() < 0.1 && !self.answers.is_empty() {
            let recent = self.answers.len().min(60);
            let of = self.answers.len() - 1 - self.rng.below(recent);
            let (answer, host) = self.answers[of].clone();
            self.air.push((self.now, Flight::ToClient { answer, host, is_injected: true }));
        }
    }

    fn move_host(&mut self, host: usize) {
        let (now, from) = (self.now, self.hosts[host].address);
        let peer = self.hosts[host].peer;
        let lot = self.rng.unit();
        let to = match lot {
            ..0.5 => None,
            // Back to where it was before.
            ..0.8 => {
                let own = self.own[&peer].keys().copied().filter(|at| *at != twin());
                let own: Vec<_> = own.collect();
                Some(self.rng.choice(&own))
            }
            // A NAT gives it what the other one had.
            _ => {
                let other = self.own[&if peer == A { B } else { A }].keys().copied();
                let is_free = |at: &SocketAddr| !self.is_on(A, *at) && !self.is_on(B, *at);
                let free: Vec<_> = other.filter(is_free).collect();
                (!free.is_empty()).then(|| self.rng.choice(&free))
            }
        };
        let to = to.unwrap_or_else(|| self.new_address());
        let own = self.own.get_mut(&peer).unwrap();
        own.insert(from, Some(now));
        own.insert(to, None);
        let moved = &mut self.hosts[host];
        moved.address = to;
        moved.client.say_now(secs(now));
        moved.pushed.push(now);
    }

    fn new_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        let [high, low] = self.addresses.to_be_bytes();
        SocketAddr::from(([100, 64, high, low], 4000))
    }

    fn restart_server(&mut self) {
        let boot = secs(self.boot());
        self.server = Server::new(&SERVER_SEED, boot, self.rng.secret());
        for id in [A, B] {
            self.server.insert(id, peer(id, secs(self.lease), self.allowed[&id]));
        }
    }

    fn start_snapshot(&mut self) {
        let Some(snapshot) = &self.snapshot else { return };
        if self.now - snapshot.taken_at > 3000.0 {
            return;
        }
        self.server = snapshot.server.clone();
        // Its clock goes on from the image, or is set right.
        if self.rng.unit() < 0.5 {
            self.behind = self.now - snapshot.boot;
        }
        self.restored = self.boot();
        for id in [A, B] {
            self.server.insert(id, peer(id, secs(self.lease), self.allowed[&id]));
        }
    }

    fn switch_peer(&mut self) {
        let id = self.rng.choice(&[A, B]);
        let allowed = match self.allowed[&id] {
            Allowed::Yes => self.rng.choice(&[Allowed::Disabled, Allowed::Expired]),
            Allowed::Disabled | Allowed::Expired => Allowed::Yes,
        };
        self.allowed.insert(id, allowed);
        self.server.insert(id, peer(id, secs(self.lease), allowed));
    }

    fn say_goodbye(&mut self, host: usize) {
        let rng = &mut self.rng;
        let now = secs(self.now);
        let bye = self.hosts[host].client.bye(now, UNIX, &mut |bytes| rng.fill(bytes));
        bye.into_iter().for_each(|bye| self.send(host, bye));
        self.reset(host);
        if self.rng.unit() < 0.4 {
            self.switch_off(host);
        }
    }

    fn reset(&mut self, host: usize) {
        let now = self.now;
        let host = &mut self.hosts[host];
        host.client = client(host.peer, secs(now));
        host.was_accepted = false;
        host.pushed.push(now);
    }

    fn switch_off(&mut self, host: usize) {
        self.reset(host);
        let now = self.now;
        let host = &mut self.hosts[host];
        host.is_on = false;
        self.own.get_mut(&host.peer).unwrap().insert(host.address, Some(now));
    }

    fn switch_on(&mut self, host: usize) {
        self.reset(host);
        let host = &mut self.hosts[host];
        host.is_on = true;
        self.own.get_mut(&host.peer).unwrap().insert(host.address, None);
    }
}

/// Where the second host with A's key is.
fn twin() -> SocketAddr {
    at("198.51.100.3:4000")
}

/// Somebody who has nothing to do with it, and whose packets the adversary cannot read.
fn victim() -> SocketAddr {
    at("192.0.2.1:7")
}

fn play_all(power: Power) {
    let seeds = std::env::var("IPIPOU_SEEDS").ok().map_or(50, |n| n.parse().unwrap());
    let mut notes: BTreeMap<&str, u32> = BTreeMap::new();
    let first = std::env::var("IPIPOU_FIRST_SEED").ok().map_or(0, |n| n.parse().unwrap());
    for seed in first..first + seeds {
        let mut play = Play::new(power, seed);
        play.play();
        play.end();
        play.notes.iter().for_each(|(what, n)| *notes.entry(what).or_default() += n);
    }
    println!("adversary {power:?}, {seeds} seeds: {notes:#?}");
    let signatures = notes.get(SIGNATURES).copied().unwrap_or(0);
    assert!(u64::from(signatures) <= 3 * seeds, "{signatures} signatures in {seeds} seeds");
}

#[test]
fn an_adversary_who_records_and_repeats_gains_nothing() {
    play_all(Power::None);
}

#[test]
fn an_adversary_who_also_injects_answers_gains_an_address_that_he_reads_and_no_more() {
    play_all(Power::Injects);
}

#[test]
fn an_adversary_who_also_relays_gains_his_own_address_for_as_long_as_he_relays() {
    play_all(Power::Relays);
}
