//! Who says to be a peer of a server and does not prove it, and two hosts that prove to be the same peer.

use super::hub::{SEED, entry, guest, hub, peers, place, secret};
use super::situations::SECOND;
use super::*;
use ipipou::engine::control::{Client as Guest, ClientConfig, ClientHeard};

/// One that knows who peer 7 is, and not its secret.
fn thief() -> Guest {
    let signer = Signer::new(&[107; 32], SharedSecret::new(b"another".to_vec()));
    let server_key = Signer::new(&SEED, secret()).public();
    let (keepalive, mtu, wants_addresses) = (SECOND, None, false);
    let config = ClientConfig { signer, server_key, keepalive, mtu, wants_addresses };
    Guest::new(config, Duration::ZERO).unwrap()
}

/// How often it was said that somebody is not peer 7.
fn unproven(play: &Play) -> usize {
    play.told().matches("says that it is p7, and does not prove it").count()
}

#[test]
fn a_hello_that_proves_nothing_is_said_once_an_hour() {
    let mut play = hub(&entry(7, ""));
    let mut thief = thief();
    for _ in 0..5 {
        assert_eq!(play.visit(&mut thief, place(3)), ClientHeard::Nothing);
        play.pass(60 * SECOND);
    }
    assert_eq!((unproven(&play), play.sent.len()), (1, 0));
    play.pass(3600 * SECOND);
    play.visit(&mut thief, place(3));
    assert_eq!(unproven(&play), 2);
}

#[test]
fn a_hello_that_proves_nothing_is_said_once_an_hour_of_a_connected_peer_too() {
    let mut play = hub(&entry(7, ""));
    let (mut seven, mut thief) = (guest(7), thief());
    for number in 0..5 {
        // From where it was, and from another remote.
        assert_eq!(play.visit(&mut seven, place(1 + number / 3)), ClientHeard::Accepted);
        assert_eq!(play.visit(&mut thief, place(3)), ClientHeard::Nothing);
        play.pass(60 * SECOND);
    }
    assert_eq!(unproven(&play), 1);
    // What was said of its entry may not be so of another one.
    play.handle(Event::Peers(peers(&entry(7, "note = \"Eva\""))));
    play.visit(&mut thief, place(3));
    assert_eq!(unproven(&play), 2);
}

#[test]
fn two_hosts_with_the_key_of_one_peer_are_named() {
    let mut play = hub(&(entry(7, "") + &entry(8, "")));
    let (mut one, mut other) = (guest(7), guest(7));
    let told = |play: &Play| {
        let line = "198.51.100.1:4000 and 198.51.100.2:4000 take the tunnel of p7 from each other";
        play.told().matches(line).count()
    };
    play.visit(&mut one, place(1));
    // Another peer that moves in between is none of its moves.
    let mut eight = guest(8);
    play.visit(&mut eight, place(3));
    for (moves, expected) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)] {
        let (guest, from) = match moves % 2 {
            1 => (&mut other, place(2)),
            _ => (&mut one, place(1)),
        };
        assert_eq!(play.visit(guest, from), ClientHeard::Accepted);
        assert_eq!(told(&play), expected, "after {moves} moves: {}", play.told());
        play.visit(&mut eight, place(3 + moves % 2));
        play.pass(20 * SECOND);
    }
    let moved = play.told().matches("p7 moved from").count();
    assert_eq!(moved, 5);
}
