//! A client of control protocol v2 with one server or several, which are simulated by the server's end of the
//! protocol on the same clock.

use std::collections::BTreeSet;

use ipipou::auth::Ends;
use ipipou::engine::config::{AnsweringServer, PeerSource, StandbyServer};
use ipipou::engine::control::{Allowed, PeerId, Server as Answering, ServerPeer};
use ipipou::engine::host::Encapsulation;

use super::situations::SECOND;
use super::*;

pub const TICK: Duration = Duration::from_millis(100);
pub const ROUND_TRIP: Duration = Duration::from_millis(20);
const CLIENT: PeerId = PeerId(1);
pub const LEASE: Duration = Duration::from_secs(180);

fn seed(number: usize) -> [u8; 32] {
    [u8::try_from(40 + number).unwrap(); 32]
}

pub fn place(number: usize) -> SocketAddrV4 {
    SocketAddrV4::new([198, 51, 100, u8::try_from(number).unwrap()].into(), 10000)
}

fn secret() -> SharedSecret {
    SharedSecret::new(b"secret".to_vec())
}

/// A simulated server.
pub struct Played {
    answering: Answering,
    pub at: BTreeSet<SocketAddr>,
    pub is_alive: bool,
    pub heard: usize,
    lease: Duration,
}

impl Played {
    fn new(number: usize) -> Self {
        let mut played = Played {
            answering: Answering::new(&seed(number), Duration::ZERO, [1; 32]),
            at: [place(number).into()].into(),
            is_alive: true,
            heard: 0,
            lease: LEASE,
        };
        played.know(Allowed::Yes, &["10.8.0.7/24"]);
        played
    }

    pub fn know(&mut self, allowed: Allowed, inner: &[&str]) {
        let inner: Vec<IpNet> = inner.iter().map(|inner| net(inner)).collect();
        let public_key = signer().public();
        let peer = ServerPeer { public_key, secret: secret(), lease: self.lease, inner, allowed };
        self.answering.insert(CLIENT, peer);
    }

    /// It keeps the client for this long.
    pub fn lease(&mut self, lease: Duration) {
        self.lease = lease;
        self.know(Allowed::Yes, &["10.8.0.7/24"]);
    }

    /// It is started again, and knows no cookie.
    pub fn restart(&mut self, now: Duration) {
        self.answering = Answering::new(&seed(0), now, [2; 32]);
        self.know(Allowed::Yes, &["10.8.0.7/24"]);
        self.is_alive = true;
    }

    pub fn has_session(&self) -> bool {
        self.answering.session(CLIENT).is_some()
    }
}

/// A client and its servers.
pub struct Scene {
    pub play: Play,
    pub servers: Vec<Played>,
    pub delivered: usize,
}

pub fn config(servers: usize) -> Config {
    let name = |number| ServerName {
        host: HostName::Address((*place(number).ip()).into()),
        port: place(number).port().try_into().unwrap(),
    };
    let key = |number| Signer::new(&seed(number), secret()).public();
    let standby = (1..servers).map(|n| StandbyServer { at: name(n), key: key(n) }).collect();
    let queue = QueueConfig { number: 0, max_len: 24 };
    let server = Some(AnsweringServer { key: key(0), queue, standby });
    let shows = Shows { credential: Credential::Key(signer()), keepalive: None, server };
    Config::client(tunnel(), name(0), shows)
}

pub fn host_that_reaches(addresses: impl IntoIterator<Item = SocketAddrV4>) -> FakeHost {
    let mut host = FakeHost::new();
    let way = host.found.way.unwrap();
    host.found.other_ways =
        addresses.into_iter().map(|address| ((*address.ip()).into(), way)).collect();
    host
}

impl Scene {
    pub fn new(datapath: Datapath, servers: usize) -> Self {
        let host = host_that_reaches((0..servers).map(place));
        Scene::of(datapath, config(servers), host, servers)
    }

    pub fn of(datapath: Datapath, config: Config, host: FakeHost, servers: usize) -> Self {
        let play = Play::start_on(datapath, config, host, Memory::default());
        let servers = (0..servers).map(Played::new).collect();
        let mut scene = Scene { play, servers, delivered: 0 };
        scene.deliver();
        scene
    }

    /// Time passes, and what is sent arrives and is answered.
    pub fn pass(&mut self, time: Duration) {
        let end = self.play.now + time;
        while self.play.now < end {
            self.play.pass(TICK.min(end - self.play.now));
            self.deliver();
        }
    }

    pub fn deliver(&mut self) {
        while let Some(packet) = self.play.sent.get(self.delivered).cloned() {
            self.delivered += 1;
            let server = self.servers.iter_mut().find(|server| server.at.contains(&packet.to));
            let Some(server) = server.filter(|server| server.is_alive) else { continue };
            server.heard += 1;
            let ends = Ends { remote: packet.from, local: packet.to };
            let now = self.play.now;
            server.answering.expire(now);
            let mut fill = |bytes: &mut [u8]| bytes.fill(7);
            let heard = server.answering.receive(&packet.payload, ends, now, &mut fill);
            if let (Some(answer), SocketAddr::V4(from)) = (heard.answer, packet.to) {
                self.play.now += ROUND_TRIP;
                self.play.receive(from, &answer);
            }
        }
    }

    pub fn remote(&self) -> Option<SocketAddr> {
        self.play.engine.status().remote
    }

    pub fn is_at(&mut self, number: usize) -> bool {
        let now = self.play.moment();
        let connection = self.play.engine.connection(&now).unwrap();
        self.remote() == Some(place(number).into()) && connection.connected_for.is_some()
    }

    /// Seconds until the client is connected to this server.
    pub fn seconds_until_at(&mut self, number: usize, most: u32) -> f64 {
        let begin = self.play.now;
        for _ in 0..most * 10 {
            if self.is_at(number) {
                return (self.play.now - begin).as_secs_f64();
            }
            self.pass(TICK);
        }
        panic!("not at {number} after {most} s: {:?}", self.play.log);
    }

    pub fn told(&self, words: &str) -> usize {
        self.play.reports.iter().filter(|report| report.to_string().contains(words)).count()
    }

    /// Where the host sends data.
    pub fn data_goes_to(&self) -> Vec<SocketAddr> {
        let found = &self.play.host.found;
        match self.play.host.link("ipipou0") {
            Some(link) => {
                let Encapsulation::Fou { destination_port, .. } = link.encapsulation else {
                    panic!("{link:?}")
                };
                vec![SocketAddr::new(link.remote.into(), destination_port)]
            }
            None => found.userspace.forwarding.remotes.keys().copied().collect(),
        }
    }
}

pub const BOTH: [Datapath; 2] = [Datapath::Kernel, Datapath::Tun];

#[test]
fn the_next_server_is_asked_three_seconds_after_the_first_unanswered_hello() {
    for datapath in BOTH {
        let mut scene = Scene::new(datapath, 3);
        assert!(scene.is_at(0));
        assert_eq!(scene.told("connected to 198.51.100.0:10000"), 1);
        scene.pass(60 * SECOND);
        scene.servers[0].is_alive = false;
        scene.servers[1].is_alive = false;
        // The keepalive is what shows it: at most 29 s, then 3 s for each that is silent.
        let seconds = scene.seconds_until_at(2, 40);
        assert!((6.0 - 1.5..=29.0 + 6.5).contains(&seconds), "{seconds}");
        assert_eq!(scene.data_goes_to(), [place(2).into()], "{datapath:?}");
        assert_eq!(scene.told("no answer from 198.51.100.0:10000: asking 198.51.100.1:10000"), 1);
        assert_eq!(scene.told("no answer from 198.51.100.1:10000: asking 198.51.100.2:10000"), 1);
        assert_eq!(scene.told("connected to 198.51.100.2:10000"), 1);
        assert_eq!(scene.told("not connected"), 0);
        assert_eq!(scene.play.engine.counters().repaired, 0, "that is not a repair");
        let moves =
            scene.play.applied.iter().filter(|step| step.contains("change ipipou0")).count();
        assert!(moves <= 1, "{:?}", scene.play.applied);
    }
}

#[test]
fn a_busy_tunnel_notices_within_twelve_seconds() {
    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.pass(10 * SECOND);
    scene.servers[0].is_alive = false;
    let begin = scene.play.now;
    for _ in 0..12 {
        scene.play.host.change("ipipou0", |interface| interface.traffic.tx_packets += 1);
        scene.pass(SECOND);
        if scene.is_at(1) {
            break;
        }
    }
    let seconds = (scene.play.now - begin).as_secs();
    // The counters are read every 3 s: after 6 to 9 s it is asked, three times.
    assert!((8..=12).contains(&seconds) && scene.is_at(1), "{seconds}");
}

#[test]
fn a_client_goes_back_after_a_minute_of_answers_and_moves_nothing_before() {
    for datapath in BOTH {
        let mut scene = Scene::new(datapath, 2);
        scene.servers[0].is_alive = false;
        scene.seconds_until_at(1, 40);
        scene.pass(300 * SECOND);
        let now = scene.play.now;
        scene.servers[0].restart(now);
        scene.pass(55 * SECOND);
        assert!(scene.is_at(1));
        assert!(scene.servers[0].heard >= 5, "it is asked");
        assert!(!scene.servers[0].has_session(), "and holds nothing");
        let seconds = scene.seconds_until_at(0, 40);
        assert!(seconds <= 30.0, "{seconds}");
        assert_eq!(scene.told("198.51.100.0:10000, the first server, has answered for"), 1);
        assert_eq!(scene.told("connected to 198.51.100.0:10000"), 2);
        scene.pass(SECOND);
        assert_eq!(scene.data_goes_to(), [place(0).into()]);
        assert!(!scene.servers[1].has_session(), "it heard the goodbye");
        scene.pass(300 * SECOND);
        assert!(scene.is_at(0));
        assert_eq!(scene.told("no answer from"), 1);
    }
}

#[test]
fn a_server_that_answers_now_and_then_is_not_gone_back_to() {
    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.servers[0].is_alive = false;
    scene.seconds_until_at(1, 40);
    for _ in 0..20 {
        let now = scene.play.now;
        scene.servers[0].restart(now);
        scene.pass(40 * SECOND);
        scene.servers[0].is_alive = false;
        scene.pass(40 * SECOND);
    }
    assert!(scene.is_at(1));
    assert_eq!(scene.told("going back"), 0);
}

#[test]
fn a_first_server_that_refuses_is_asked_more_and_more_rarely() {
    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.servers[0].know(Allowed::Disabled, &[]);
    scene.pass(10 * SECOND);
    scene.play.handle(Event::ReauthRequested);
    scene.deliver();
    let seconds = scene.seconds_until_at(1, 5);
    assert!(seconds < 2.0, "a refusal is followed at once: {seconds}");
    assert_eq!(scene.told("198.51.100.0:10000 does not let us in: asking 198.51.100.1:10000"), 1);
    let data = scene.play.applied.len();
    scene.pass(3600 * SECOND);
    assert!(scene.is_at(1));
    // After 1, 2, 4, 8, 16 and 32 minutes, of which each begins with a first answer.
    let tries = scene.told("going back to it");
    assert!((4..=6).contains(&tries), "{tries}");
    assert_eq!(scene.play.applied.len(), data, "data stays where it is");
    let now = scene.play.now;
    scene.servers[0].restart(now);
    scene.seconds_until_at(0, 3600);
}

#[test]
fn an_outage_changes_nothing_on_the_host_and_the_first_server_that_answers_is_used() {
    for datapath in BOTH {
        let mut scene = Scene::new(datapath, 2);
        scene.pass(5 * SECOND);
        scene.servers.iter_mut().for_each(|server| server.is_alive = false);
        let (applied, sent) = (scene.play.applied.len(), scene.play.sent.len());
        scene.pass(3600 * SECOND);
        assert_eq!(scene.play.applied.len(), applied);
        assert_eq!(scene.told("not connected: no answer from"), 1);
        assert_eq!(scene.told("asking"), 1, "the first round is told");
        let sent = scene.play.sent.len() - sent;
        assert!((100..200).contains(&sent), "{sent} hellos in an hour");
        scene.servers[1].is_alive = true;
        scene.seconds_until_at(1, 70);
        assert_eq!(scene.data_goes_to(), [place(1).into()]);
    }
}

#[test]
fn a_route_that_changes_makes_every_server_have_three_quick_hellos() {
    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.servers.iter_mut().for_each(|server| server.is_alive = false);
    scene.pass(3600 * SECOND);
    scene.servers[1].is_alive = true;
    scene.play.handle(Event::ReauthRequested);
    scene.deliver();
    let seconds = scene.seconds_until_at(1, 10);
    assert!(seconds <= 4.0, "{seconds}");
}

#[test]
fn a_server_to_which_there_is_no_way_is_passed_over() {
    let host = host_that_reaches([place(1), place(2)]);
    let mut scene = Scene::of(Datapath::Kernel, config(3), host, 3);
    scene.play.read();
    let seconds = scene.seconds_until_at(1, 10);
    assert!((2.0..=4.5).contains(&seconds), "{seconds}");
    assert_eq!(scene.told("there is no way to 198.51.100.0:10000: asking 198.51.100.1:10000"), 1);
    // There is one again.
    let way = scene.play.host.found.way.unwrap();
    scene.play.host.found.other_ways.insert((*place(0).ip()).into(), way);
    scene.seconds_until_at(0, 120);
}

fn config_with_a_named_standby() -> Config {
    let mut config = config(2);
    let PeerSource::One(peer) = &mut config.peers else { panic!() };
    let server = peer.shows.as_mut().unwrap().server.as_mut().unwrap();
    server.standby[0].at.host = HostName::Name("b.example".into());
    config
}

#[test]
fn a_standby_server_with_several_addresses_is_asked_at_each() {
    let config = config_with_a_named_standby();
    let other: SocketAddrV4 = at("198.51.100.9:10000");
    let host = host_that_reaches([place(0), place(1), other]);
    let mut scene = Scene::of(Datapath::Tun, config, host, 2);
    let addresses = vec![(*place(1).ip()).into(), (*other.ip()).into()];
    scene.play.handle(Event::Resolved { server: 1, addresses });
    assert!(scene.is_at(0), "a name that is looked up moves nothing");
    scene.servers[0].is_alive = false;
    scene.servers[1].at = [other.into()].into();
    let begin = scene.play.now;
    while scene.remote() != Some(other.into()) {
        assert!(scene.play.now - begin < 60 * SECOND, "{:?}", scene.play.log);
        scene.pass(SECOND);
    }
    // What a restart finds is kept.
    let name = scene.play.engine.servers()[1].name.to_string();
    assert_eq!(name, "b.example:10000");
}

#[test]
fn an_address_of_a_standby_server_that_becomes_known_or_changes_is_not_damage() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let config = config_with_a_named_standby();
        let other: SocketAddrV4 = at("198.51.100.9:10000");
        let host = host_that_reaches([place(0), place(1), other]);
        let mut scene = Scene::of(datapath, config, host, 2);
        for address in [place(1), other] {
            scene.pass(10 * SECOND);
            let before = scene.play.applied.len();
            let addresses = vec![(*address.ip()).into()];
            scene.play.handle(Event::Resolved { server: 1, addresses });
            scene.play.read();
            scene.pass(10 * SECOND);
            assert!(scene.play.applied.len() > before, "{datapath:?}: its answers are let in");
            assert_eq!(scene.play.engine.counters().repaired, 0, "{datapath:?}");
            assert_eq!(scene.told("repairing"), 0, "{datapath:?}");
        }
    }
}

#[test]
fn answers_of_all_servers_are_heard_and_data_of_one() {
    let scene = Scene::new(Datapath::Kernel, 2);
    let rules = scene.play.host.rules.as_ref().unwrap();
    assert_eq!(rules.answering, [place(0), place(1)].into());
    let ipipou::engine::host::RulesFound::Intact(admitted) = &scene.play.host.found.rules else {
        panic!()
    };
    let admitted: Vec<_> = admitted.iter().map(|admitted| admitted.remote).collect();
    assert_eq!(admitted, [place(0)]);
    let scene = Scene::new(Datapath::Tun, 2);
    let table = &scene.play.host.found.userspace.forwarding;
    assert_eq!(table.answering, [place(0).into(), place(1).into()].into());
    assert_eq!(table.remotes.len(), 1);
    // A client with one server has no such rules.
    let scene = Scene::new(Datapath::Kernel, 1);
    assert!(scene.play.host.rules.as_ref().unwrap().answering.is_empty());
}

#[test]
fn a_restart_goes_on_with_the_server_that_has_the_tunnel() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut scene = Scene::new(datapath, 2);
        scene.servers[0].is_alive = false;
        scene.seconds_until_at(1, 40);
        let Scene { play, servers, .. } = scene;
        let mut again = Play::stopped(datapath, config(2), play.host, play.memory);
        again.now = play.now;
        let mut scene = Scene { play: again, servers, delivered: 0 };
        let applied = scene.play.applied.len();
        scene.play.read();
        scene.deliver();
        assert_eq!(scene.remote(), Some(place(1).into()), "{datapath:?}");
        let moved = |step: &String| step.contains("change ipipou0") || step.starts_with("forward");
        let moved = scene.play.applied[applied..].iter().any(moved);
        assert!(!moved, "{:?}", scene.play.applied);
        assert!(scene.is_at(1), "{:?}", scene.play.log);
    }
}

/// The link tells where its server is, and not which of them that is.
#[test]
fn a_link_belongs_to_the_server_that_had_it_although_no_name_is_looked_up() {
    let mut several = config(2);
    let PeerSource::One(peer) = &mut several.peers else { panic!("it is a client") };
    peer.at.as_mut().unwrap().host = HostName::Name("a.example".into());
    let server = peer.shows.as_mut().unwrap().server.as_mut().unwrap();
    server.standby[0].at.host = HostName::Name("b.example".into());
    let remembered = ("b.example:10000".to_owned(), place(1).into());
    for (server, first) in [(Some(remembered), 1), (None, 0)] {
        let mut scene = Scene::new(Datapath::Kernel, 2);
        scene.servers[0].is_alive = false;
        scene.seconds_until_at(1, 40);
        let memory = Memory { server, ..scene.play.memory };
        let mut again = Play::stopped(Datapath::Kernel, several.clone(), scene.play.host, memory);
        again.now = scene.play.now;
        again.read();
        let [.., last] = place(1).ip().octets();
        let other = std::net::IpAddr::from([198, 51, 100, 100 + last]);
        again.handle(Event::Resolved { server: 1 - first, addresses: vec![other] });
        assert_eq!(again.host.link("ipipou0").unwrap().remote, *place(1).ip());
    }
}

/// How long a client that ends says goodbye, and how many times.
fn goodbyes(scene: &mut Scene) -> (Duration, usize) {
    let (begin, sent) = (scene.play.now, scene.play.sent.len());
    scene.play.handle(Event::Leaving);
    scene.deliver();
    loop {
        let now = scene.play.moment();
        if !scene.play.engine.says_goodbye(&now) {
            return (scene.play.now - begin, scene.play.sent.len() - sent);
        }
        assert!(scene.play.now - begin <= SECOND, "{:?}", scene.play.log);
        scene.pass(TICK);
    }
}

#[test]
fn a_goodbye_is_said_until_the_server_has_heard_it_and_for_less_than_a_second() {
    for datapath in BOTH {
        let mut scene = Scene::new(datapath, 1);
        scene.pass(10 * SECOND);
        assert_eq!(goodbyes(&mut scene), (ROUND_TRIP, 1));
        assert!(!scene.servers[0].has_session());
        scene.play.end();
        assert_eq!(scene.delivered, scene.play.sent.len(), "nothing more is said");

        let mut scene = Scene::new(datapath, 2);
        scene.servers[0].is_alive = false;
        let lost = Duration::from_millis(900);
        assert_eq!(goodbyes(&mut scene), (lost, 3));
        scene.pass(60 * SECOND);
        assert_eq!(scene.play.sent.len(), scene.delivered);
        scene.play.end();
    }
}

#[test]
fn a_goodbye_that_is_lost_is_said_again() {
    let mut scene = Scene::new(Datapath::Tun, 1);
    scene.servers[0].is_alive = false;
    scene.play.handle(Event::Leaving);
    scene.deliver();
    scene.servers[0].is_alive = true;
    scene.pass(Duration::from_millis(400));
    assert!(!scene.servers[0].has_session());
    let now = scene.play.moment();
    assert!(!scene.play.engine.says_goodbye(&now));
}

#[test]
fn a_client_that_no_server_ever_answered_ends_at_once() {
    let mut scene = Scene::of(Datapath::Tun, config(1), host_that_reaches([place(0)]), 0);
    scene.pass(10 * SECOND);
    assert_eq!(goodbyes(&mut scene), (Duration::ZERO, 0));
}

#[test]
fn a_server_that_is_pinged_answers_and_one_that_is_not_in_use_moves_nothing() {
    use ipipou::engine::Pong;

    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.pass(10 * SECOND);
    let ping = |scene: &mut Scene, server: usize| {
        scene.play.handle(Event::Ping(server));
        scene.deliver();
        scene.play.engine.take_pong()
    };
    let seen = Some(SocketAddr::new(host::OUTER.into(), 10000));
    let answered = |server, seen| {
        Some(Pong::Answered { from: place(server).into(), round_trip: ROUND_TRIP, seen })
    };
    assert_eq!(ping(&mut scene, 0), answered(0, seen));
    assert_eq!(ping(&mut scene, 1), answered(1, None));
    assert!(scene.is_at(0) && !scene.servers[1].has_session());
    assert_eq!(scene.play.engine.take_pong(), None, "it is told once");
    scene.servers[1].is_alive = false;
    assert_eq!(ping(&mut scene, 1), None);
    scene.pass(60 * SECOND);
    assert!(scene.is_at(0));
    assert_eq!(scene.play.engine.take_pong(), None, "a keepalive does not answer that");
    scene.servers[0].know(Allowed::Disabled, &[]);
    let pong = ping(&mut scene, 0);
    assert!(matches!(pong, Some(Pong::Refused { .. })), "{pong:?}");
    assert!(pong.unwrap().to_string().contains("we are disabled there"));
}
