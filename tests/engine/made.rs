//! A tunnel is said to be up, or to have moved, once it is made.

use super::situations::{A, B, SECOND, serving};
use super::*;

/// Which peers came and which moved, as the reports say.
fn told(play: &Play) -> Vec<String> {
    let is_of_interest = |r: &&Report| matches!(r, Report::Arrived(_) | Report::Moved { .. });
    play.reports.iter().filter(is_of_interest).map(ToString::to_string).collect()
}

#[test]
fn a_tunnel_whose_addresses_are_taken_uses_the_alternate_one() {
    let mut play = serving();
    play.host.add_strange_link(*at(A).ip()); // another server took the pair at the same moment
    let proof = play.proof();
    let before = play.log.len();
    play.receive(at(A), &proof);
    assert_eq!(
        play.log[before..],
        [
            "refused: create ipipou0 local 203.0.113.1 remote 198.51.100.7:4500 on interface 2",
            "install rules ipipou-0 for 203.0.113.1:10000, \
             admitting 198.51.100.7:4500 as 172.29.0.0",
            "add alternate address 172.29.0.0",
            "add FOU listener 172.29.0.0:10000 on interface 2",
            "create ipipou0 local 172.29.0.0 remote 198.51.100.7:4500 on interface 2",
            "set ipipou0 up",
            "add 172.28.0.0 peer 172.28.0.1 to ipipou0",
            "told: 198.51.100.7:4500 authenticated: tunnel up",
        ]
    );
}

/// Whatever step of the first tunnel, or of its move, the kernel refuses for a while.
#[test]
fn a_tunnel_that_the_kernel_refuses_is_not_reported_up() {
    for broken in ["create", "set ipipou0 up", "add 172.28.0.0", "admit"] {
        let mut play = serving();
        play.host.broken = broken;
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.pass(5 * SECOND);
        assert_eq!(told(&play), [""; 0], "{broken}");
        play.host.broken = "";
        play.pass(SECOND);
        assert_eq!(told(&play), ["198.51.100.7:4500 authenticated: tunnel up"], "{broken}");
        assert!(play.log.last().unwrap().starts_with("told: "), "{broken}: {:?}", play.log);
    }
    for broken in ["change", "admit"] {
        let mut play = serving();
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.host.broken = broken;
        let proof = play.proof();
        play.receive(at(B), &proof);
        play.pass(5 * SECOND);
        assert_eq!(told(&play).len(), 1, "{broken}");
        play.host.broken = "";
        play.pass(60 * SECOND);
        let moved = "moved from 198.51.100.7:4500 to 198.51.100.8:4501";
        assert_eq!(told(&play)[1..], [moved], "{broken}");
    }
}

/// Where no tunnel was made is not told of.
#[test]
fn moves_before_the_tunnel_follows_are_reported_once() {
    let third = "198.51.100.9:1";
    let cases: [(&[&str], &[&str]); 3] = [
        (&[B, third], &["moved from 198.51.100.7:4500 to 198.51.100.9:1"]),
        (&[B, third, A], &[]),
        (&[B, A, B], &["moved from 198.51.100.7:4500 to 198.51.100.8:4501"]),
    ];
    for (remotes, expected) in cases {
        let mut play = serving();
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.host.broken = "change";
        for remote in remotes {
            let proof = play.proof();
            play.receive(at(remote), &proof);
            play.pass(2 * SECOND);
        }
        play.host.broken = "";
        play.pass(2 * SECOND);
        assert_eq!(told(&play)[1..], *expected, "{remotes:?}");
        assert_eq!(play.engine.counters().moved, remotes.len() as u64);
    }
    let mut play = serving();
    play.host.broken = "create";
    for remote in [A, B] {
        let proof = play.proof();
        play.receive(at(remote), &proof);
    }
    play.host.broken = "";
    play.pass(2 * SECOND);
    assert_eq!(told(&play), ["198.51.100.8:4501 authenticated: tunnel up"]);
}

#[test]
fn a_session_that_expired_before_its_tunnel_was_made_is_not_reported_up() {
    let config = Config::from(server(Some(10 * SECOND)));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    play.host.broken = "create";
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(11 * SECOND);
    play.host.broken = "";
    play.pass(3 * SECOND);
    assert!(play.host.link("ipipou0").is_some());
    assert_eq!(told(&play), [""; 0]);
}

#[test]
fn a_tunnel_is_reported_up_although_its_routes_fail() {
    let mut config = server(None);
    config.tunnel.gateway.routes = vec![net("10.8.0.0/16")];
    let mut host = FakeHost::new();
    host.broken = "add route";
    let mut play = Play::start(Config::from(config), host, Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(2 * SECOND);
    assert!(play.log.iter().any(|line| line.starts_with("refused: add route")), "{:?}", play.log);
    assert_eq!(told(&play), ["198.51.100.7:4500 authenticated: tunnel up"]);
}

#[test]
fn each_client_of_a_shared_server_is_reported_once_its_packets_pass() {
    let config = Config::from(super::memory::learning(8));
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    play.host.broken = "forward to";
    for remote in [A, B] {
        let proof = play.proof();
        play.receive(at(remote), &proof);
    }
    assert_eq!(told(&play), [""; 0]);
    play.host.broken = "";
    play.pass(2 * SECOND);
    let up = [A, B].map(|remote| format!("{remote} authenticated: tunnel up"));
    assert_eq!(told(&play), up);
}
