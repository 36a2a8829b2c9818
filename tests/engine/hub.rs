//! A server whose peers are named in files: what comes, moves, goes and changes there is what the host
//! follows, and nothing else.

use super::situations::SECOND;
use super::*;
use ipipou::auth::key_text;
use ipipou::engine::config::{HubConfig, PeerSource};
use ipipou::engine::control::{Client as Guest, ClientConfig, ClientHeard};
use ipipou::engine::host::{Address, Admitted, Route, RouteTarget};
use ipipou::engine::hub::MemberState;
use ipipou::engine::peers_file::pool::Pool;
use ipipou::engine::peers_file::{Context, PeerName, PeerSet, SourceFile, parse};
use ipnet::IpNet;

pub const SEED: [u8; 32] = [9; 32];

pub fn secret() -> SharedSecret {
    SharedSecret::new(b"secret".to_vec())
}

fn key(number: u8) -> Signer {
    Signer::new(&[number + 100; 32], secret())
}

fn tunnel_of_hub() -> TunnelConfig {
    TunnelConfig {
        inner: "10.8.0.1".parse().unwrap(),
        inner_peer: "10.8.0.0/24".parse().unwrap(),
        ..tunnel()
    }
}

fn config(seed: [u8; 32]) -> Config {
    let hub = HubConfig {
        peers: "/nowhere".into(),
        seed: Some(seed.into()),
        pool: Pool::default(),
        secret: secret(),
        queue: QueueConfig { number: 0, max_len: 24 },
    };
    Config { tunnel: tunnel_of_hub(), peers: PeerSource::Hub(hub) }
}

/// The peers of this text; `KEY1` is the key of number 1. A file /other has another secret than the usual.
pub fn peers(text: &str) -> PeerSet {
    let mut text = text.to_owned();
    for number in (0..40).rev() {
        let key = key_text(&key(number).public());
        text = text.replace(&format!("KEY{number}\""), &format!("{key}\""));
    }
    let context = Context {
        own_public_key: Some(Signer::new(&SEED, secret()).public()),
        port: std::num::NonZeroU16::new(10000),
        inner: tunnel_of_hub().inner,
        network: tunnel_of_hub().inner_peer,
        inner6: None,
        default_secret: &secret(),
        read_secret: &|path| match path.to_str() {
            Some("/other") => Ok(b"other".to_vec()),
            Some(_) | None => Err("there are none".to_owned()),
        },
    };
    parse(&[SourceFile { name: "peers.toml".to_owned(), text }], &context).unwrap()
}

/// A peer with this number, whose address ends in it, and more lines.
pub fn entry(number: u8, more: &str) -> String {
    format!(
        "[peer.p{number}]\npublic-key = \"KEY{number}\"\naddress = \"10.8.0.{number}\"\n{more}\n"
    )
}

pub fn hub(text: &str) -> Play {
    hub_on(Datapath::Tun, text)
}

/// A server in userspace with these peers that has not read its host yet.
pub fn stopped(text: &str, host: FakeHost) -> Play {
    stopped_on(Datapath::Tun, SEED, text, host)
}

/// The same with either datapath and this private key.
pub fn stopped_on(datapath: Datapath, seed: [u8; 32], text: &str, host: FakeHost) -> Play {
    let mut play = Play::stopped(datapath, config(seed), host, Memory::default());
    play.handle(Event::Peers(peers(text)));
    play
}

pub fn hub_on(datapath: Datapath, text: &str) -> Play {
    let mut play = stopped_on(datapath, SEED, text, FakeHost::new());
    play.read();
    play.read();
    play
}

pub fn guest(number: u8) -> Guest {
    let config = ClientConfig {
        signer: key(number),
        server_key: Signer::new(&SEED, secret()).public(),
        keepalive: 20 * SECOND,
        mtu: None,
        wants_addresses: false,
    };
    Guest::new(config, Duration::ZERO).unwrap()
}

/// Numbers that differ by 7 are at one address.
pub fn place(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new([198, 51, 100, number % 7].into(), 4000 + u16::from(number / 7))
}

impl Play {
    /// The guest says hello until it has its answer.
    pub fn visit(&mut self, guest: &mut Guest, from: SocketAddrV4) -> ClientHeard {
        guest.say_now(self.now);
        let mut heard = ClientHeard::Nothing;
        for _ in 0..3 {
            let mut number = self.drawn;
            let mut random = |bytes: &mut [u8]| {
                for byte in bytes {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = number.to_be_bytes()[0];
                }
            };
            let Some(hello) = guest.poll(self.now, START, &mut random) else { break };
            let before = self.sent.len();
            self.receive(from, &hello);
            let answer = self.sent[before..].iter().find(|out| out.to == from.into());
            let Some(answer) = answer.map(|out| out.payload.clone()) else { break };
            heard = guest.receive(&answer, self.now);
        }
        heard
    }

    pub fn let_in(&self) -> Vec<(SocketAddr, Vec<String>)> {
        let remotes = &self.host.found.userspace.forwarding.remotes;
        let one = |(remote, spec): (&SocketAddr, &ipipou::engine::host::RemoteSpec)| {
            assert_eq!(spec.destinations, spec.sources);
            (*remote, spec.sources.iter().map(ToString::to_string).collect())
        };
        remotes.iter().map(one).collect()
    }

    /// The remotes that are let in, by either datapath: all that it has says the same.
    pub fn members_carried(&self) -> Vec<SocketAddr> {
        let found = &self.host.found;
        let links = found.interfaces.iter().filter_map(|i| Some((i, i.link_from(10000)?)));
        let mut remotes: Vec<SocketAddr> = links
            .filter_map(|(interface, link)| {
                let inner = |a: &&Address| a.interface == interface.index;
                assert!(found.addresses.iter().any(|a| inner(&a)), "{} without", interface.name);
                assert!(interface.up && interface.label.is_some(), "{}", interface.name);
                link.fou_remote().filter(|remote| !remote.ip().is_unspecified())
            })
            .collect();
        remotes.extend(self.routed().iter().map(|one| SocketAddr::V4(one.remote)));
        remotes.sort_unstable();
        let admitted: Vec<SocketAddr> =
            self.host.admitted().iter().map(|one| one.remote.into()).collect();
        assert_eq!(remotes, admitted);
        remotes.extend(self.let_in().iter().map(|(remote, _)| *remote));
        remotes
    }

    /// Those on a shared link to whose networks, and only these, routes lead.
    fn routed(&self) -> Vec<Admitted> {
        let mut routes = self.host.found.routes.clone();
        let let_in = self.host.admitted();
        let shared = let_in.iter().filter(|one| one.networks.is_some());
        let shared: Vec<Admitted> = shared.cloned().collect();
        for one in &shared {
            for network in one.networks.iter().flat_map(|all| all.iter()) {
                let to = (IpNet::V4(*network), *one.remote.ip());
                let is_to = |route: &Route| match route.target {
                    RouteTarget::Remote(_, remote) => (route.destination, remote) == to,
                    RouteTarget::Interface(_) | RouteTarget::Unreachable => false,
                };
                let route = routes.iter().find(|route| is_to(route)).copied();
                routes.remove(&route.unwrap_or_else(|| panic!("no route to {network} at {one}")));
            }
        }
        let others = routes.iter().find(|route| matches!(route.target, RouteTarget::Remote(..)));
        assert_eq!(others, None);
        shared
    }

    pub fn states(&mut self) -> Vec<(String, MemberState)> {
        let now = self.moment();
        let members = self.engine.members(&now).unwrap();
        members.map(|member| (member.entry.name.to_string(), member.state)).collect()
    }

    pub fn told(&self) -> String {
        self.reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_peer_that_comes_is_one_entry_of_the_table_and_is_answered_after_that() {
    let mut play = hub(&(entry(7, "") + &entry(8, "")));
    let mut seven = guest(7);
    let before = play.applied.len();
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
    assert_eq!(play.applied[before..], [format!("forward to {} too", place(1))]);
    assert_eq!(play.let_in(), [(place(1).into(), vec!["10.8.0.7/32".to_owned()])]);
    let line = |words: &str| play.log.iter().position(|line| line.contains(words)).unwrap();
    assert!(
        line("forward to 198.51.100.1:4000 too") < line("p7 is connected, at 198.51.100.1:4000")
    );
    let sent = |line: &String| line.contains("sent 128 bytes to 198.51.100.1:4000");
    assert!(play.log.iter().rposition(sent).unwrap() > line("forward to 198.51.100.1:4000 too"));
    // A keepalive changes nothing, and nothing is written for any of it.
    let before = (play.applied.len(), play.writings);
    play.pass(20 * SECOND);
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
    assert_eq!((play.applied.len(), play.writings), before);
    assert_eq!(play.states()[0], ("p7".to_owned(), MemberState::Connected));
    assert_eq!(play.states()[1], ("p8".to_owned(), MemberState::New));
}

#[test]
fn a_move_adds_the_new_remote_before_the_former_one_goes() {
    let mut play = hub(&entry(7, ""));
    let mut seven = guest(7);
    play.visit(&mut seven, place(2));
    let before = play.applied.len();
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
    assert_eq!(
        play.applied[before..],
        ["forward to 198.51.100.1:4000 too", "stop forwarding to 198.51.100.2:4000"]
    );
    assert!(play.told().contains("p7 moved from 198.51.100.2:4000 to 198.51.100.1:4000"));
}

#[test]
fn a_session_ends_by_goodbye_lease_kick_and_another_peer_at_its_place() {
    let mut play = hub(&(entry(7, "lifetime = \"60s\"") + &entry(8, "")));
    let mut seven = guest(7);
    let last = |play: &Play, why: &str| {
        let told = play.told();
        assert!(told.lines().last().unwrap().ends_with(why), "{told}");
        assert_eq!(play.let_in(), []);
    };
    play.visit(&mut seven, place(1));
    let bye = seven.bye(play.now, START, &mut |bytes| bytes.fill(3)).unwrap();
    play.receive(place(1), &bye);
    let is_down = |report: &&Report| matches!(report, Report::PeerDown { .. });
    let goodbye = play.reports.iter().find(is_down).unwrap().to_string();
    assert!(goodbye.ends_with("it said goodbye"), "{goodbye}");
    assert_eq!(play.let_in(), []);

    let mut seven = guest(7);
    play.visit(&mut seven, place(1));
    play.pass(61 * SECOND);
    last(&play, "no hello came for its lifetime");

    play.visit(&mut seven, place(1));
    play.handle(Event::Kick("p7".parse().unwrap()));
    last(&play, "it was kicked");

    play.visit(&mut seven, place(1));
    assert_eq!(play.visit(&mut guest(8), place(1)), ClientHeard::Accepted);
    assert!(play.told().contains("p8 is at this address and port now"));
    assert_eq!(play.let_in(), [(place(1).into(), vec!["10.8.0.8/32".to_owned()])]);
}

#[test]
fn networks_behind_a_peer_are_routed_while_it_is_connected() {
    let mut play = hub(&entry(7, "route = \"192.168.7.0/24\""));
    let routed =
        |play: &Play| play.host.found.routes.iter().any(|r| r.to_string().contains("168.7.0"));
    let mut seven = guest(7);
    play.visit(&mut seven, place(1));
    assert!(routed(&play), "{:?}", play.host.found.routes);
    play.handle(Event::Kick("p7".parse().unwrap()));
    assert!(!routed(&play));
}

#[test]
fn a_remote_inside_of_the_tunnel_is_refused() {
    let mut play = hub(&entry(7, ""));
    let inside = SocketAddrV4::new([10, 8, 0, 9].into(), 4000);
    assert_eq!(play.visit(&mut guest(7), inside), ClientHeard::Nothing);
    assert_eq!((play.sent.len(), play.rejected()), (0, 1));
}

#[test]
fn a_peer_that_is_disabled_or_expired_goes_at_once_and_hears_why() {
    let mut play = hub(&(entry(7, "") + &entry(8, "")));
    let (mut seven, mut eight) = (guest(7), guest(8));
    play.visit(&mut seven, place(1));
    play.visit(&mut eight, place(2));
    // The tests begin at 2023-11-14 22:13:20 UTC.
    let expires = "expires = 2023-11-14T22:14:00Z";
    play.handle(Event::Peers(peers(&(entry(7, "enabled = false") + &entry(8, expires)))));
    assert!(
        play.told()
            .contains("p7 is not connected any more, was at 198.51.100.1:4000: it is disabled")
    );
    assert_eq!(play.let_in().len(), 1);
    assert!(matches!(play.visit(&mut seven, place(1)), ClientHeard::Refused(_)));
    play.pass(41 * SECOND);
    assert!(
        play.told()
            .contains("p8 is not connected any more, was at 198.51.100.2:4000: it has expired")
    );
    assert_eq!(play.let_in(), []);
    assert!(matches!(play.visit(&mut eight, place(2)), ClientHeard::Refused(_)));
    assert_eq!(
        play.states(),
        [("p7".to_owned(), MemberState::Disabled), ("p8".to_owned(), MemberState::Expired)]
    );
    // Enabled again it may come back.
    play.handle(Event::Peers(peers(&entry(7, ""))));
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
}

#[test]
fn a_clock_that_is_set_right_expires_and_admits_the_right_peers() {
    // The tests begin at 2023-11-14 22:13:20 UTC.
    let mut play = hub(&entry(7, "expires = 2023-11-14T23:00:00Z"));
    let mut seven = guest(7);
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
    play.skew = 100_000;
    play.pass(4 * SECOND);
    assert!(play.told().ends_with("it has expired"), "{}", play.told());
    assert_eq!(play.let_in(), []);
    play.skew = 0;
    play.pass(4 * SECOND);
    assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
}

#[test]
fn a_peer_may_be_in_a_network_that_is_behind_it() {
    let mut play = hub(&entry(7, "route = \"198.51.100.0/28\""));
    let mut seven = guest(7);
    for _ in 0..3 {
        assert_eq!(play.visit(&mut seven, place(1)), ClientHeard::Accepted);
        play.pass(20 * SECOND);
    }
    assert_eq!(play.rejected(), 0);
}

#[test]
fn a_network_goes_from_a_peer_that_is_removed_to_one_that_is_connected() {
    let route = "route = \"192.168.7.0/24\"";
    let mut play = hub(&(entry(7, route) + &entry(8, "")));
    play.visit(&mut guest(7), place(1));
    play.visit(&mut guest(8), place(2));
    play.handle(Event::Peers(peers(&entry(8, route))));
    let networks = ["10.8.0.8/32", "192.168.7.0/24"].map(str::to_owned).to_vec();
    assert_eq!(play.let_in(), [(place(2).into(), networks)]);
    // One more hello from where it is does not change that.
    play.read();
    assert_eq!(play.let_in().len(), 1);
}

#[test]
fn two_connected_peers_exchange_their_addresses() {
    let mut play = hub(&(entry(7, "") + &entry(8, "")));
    play.visit(&mut guest(7), place(1));
    play.visit(&mut guest(8), place(2));
    let swapped = entry(7, "").replace("10.8.0.7", "10.8.0.9")
        + &entry(8, "").replace("10.8.0.8", "10.8.0.7");
    play.handle(Event::Peers(peers(&swapped.replace("10.8.0.9", "10.8.0.8"))));
    assert!(play.told().contains("0 added, 2 changed, 0 removed, 0 untouched"));
    assert_eq!(
        play.let_in(),
        [
            (place(1).into(), vec!["10.8.0.8/32".to_owned()]),
            (place(2).into(), vec!["10.8.0.7/32".to_owned()])
        ]
    );
}

#[test]
fn members_are_listed_in_parts_as_at_once() {
    let mut play = hub(&(7..12).map(|number| entry(number, "")).collect::<String>());
    let now = play.moment();
    let names = |after: Option<&PeerName>| -> Vec<PeerName> {
        let members = play.engine.members_after(after, &now).unwrap();
        members.map(|member| member.entry.name.clone()).collect()
    };
    let all = names(None);
    assert_eq!(all.len(), 5);
    for (number, name) in all.iter().enumerate() {
        assert_eq!(names(Some(name)), all[number + 1..]);
    }
    // One of the last part may have gone since.
    assert_eq!(names(Some(&"aaa".parse().unwrap())), all);
    assert_eq!(names(Some(&"zzz".parse().unwrap())), []);
}
