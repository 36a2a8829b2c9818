//! Who says to be a peer of a server and does not prove it.

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
