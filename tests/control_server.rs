//! The server's end of the control protocol: its table of states, row by row, its limits, and what a
//! reload does.

#[path = "control/played.rs"]
mod played;

use std::collections::BTreeSet;
use std::time::Duration;

use ipipou::auth::{Ends, SharedSecret, hint};
use ipipou::engine::control::{Allowed, Ignored, Outcome, PeerId, Server, ServerPeer};
use ipipou::wire::control::{Answer, AnswerKind, HelloKind, Refusal};
use played::*;

const CHALLENGED: Outcome = Outcome::Challenged { peer: A };
const REFRESHED: Outcome = Outcome::Refreshed { peer: A };
const WRONG_SIGNATURE: Outcome = Outcome::Ignored(Ignored::WrongSignature { peer: A });

/// What a packet leads to, and its answer.
fn judged(
    world: &mut World,
    by: &ByHand,
    packet: &Packet,
    ends: Ends,
) -> (Outcome, Option<Answer>) {
    let heard = world.hear(packet, ends, NOW);
    (heard.outcome, heard.answer.map(|answer| by.open(packet, &answer)))
}

const NOW: f64 = 1010.0;

fn kind(answer: &Option<Answer>) -> AnswerKind {
    answer.as_ref().unwrap().kind
}

/// An accept of a goodbye.
fn is_farewell(answer: &Option<Answer>) -> bool {
    let answer = answer.as_ref().unwrap();
    answer.kind == AnswerKind::Accept && answer.lease == Some(0) && answer.inner.is_empty()
}

/// A, which came in at `a0` at second 1000.
fn inside() -> (World, ByHand) {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    by.enter(&mut world, to_l1(a0()), 1000.0);
    (world, by)
}

#[test]
fn a_peer_that_is_out_is_challenged_without_a_right_cookie() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    for kind_of in [HelloKind::Hello, HelloKind::Bye] {
        let packet = by.packet(kind_of, [5; 16]);
        let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
        assert_eq!((outcome, kind(&answer)), (CHALLENGED, AnswerKind::Challenge));
        let Some(Answer { lease: None, inner, mtu: None, .. }) = answer else { panic!("more") };
        assert!(inner.is_empty());
    }
    assert_eq!(world.server.session(A), None);
}

#[test]
fn a_peer_that_is_out_comes_in_by_cookie_and_signature() {
    let mut world = World::new(990.0);
    world.server.set_mtu(Some(1472));
    let mut by = ByHand::new(A);
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.hello(cookie);
    let bad = judged(&mut world, &by, &flipped(&packet), to_l1(a0()));
    assert_eq!(bad, (WRONG_SIGNATURE, None));
    let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
    assert_eq!(outcome, Outcome::Up { peer: A, evicted: None });
    let answer = answer.unwrap();
    assert_eq!((answer.kind, answer.lease), (AnswerKind::Accept, Some(180)));
    assert_eq!((answer.seen, answer.mtu), (Some(a0()), Some(1472)));
    assert_eq!(answer.inner, peer(A, LEASE, Allowed::Yes).inner);
    let session = world.server.session(A).unwrap();
    assert_eq!((session.remote, session.local, session.moves), (a0(), l1(), 0));
    assert_eq!((session.since, session.last_hello), (secs(NOW), Some(secs(NOW))));
    assert_eq!((session.until, session.mtu), (secs(NOW) + LEASE, Some(1472)));
}

#[test]
fn an_accept_has_inner_addresses_only_if_they_are_asked_for() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let mut fields = by.fields(HelloKind::Hello, cookie);
    fields.wants_addresses = false;
    let packet = by.sign(&fields);
    let (_, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
    assert_eq!(answer.map(|answer| answer.inner), Some(Vec::new()));
}

#[test]
fn a_goodbye_of_a_peer_that_is_out_is_answered() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.bye(cookie);
    let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
    assert_eq!(outcome, Outcome::WasOut { peer: A });
    assert!(is_farewell(&answer));
    assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, CHALLENGED, "its cookie is used");
}

#[test]
fn a_wrong_cookie_does_not_refresh() {
    let (mut world, mut by) = inside();
    for kind_of in [HelloKind::Hello, HelloKind::Bye] {
        let packet = by.packet(kind_of, [5; 16]);
        assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, CHALLENGED);
    }
    let session = world.server.session(A).unwrap();
    assert_eq!((session.until, session.last_hello), (secs(1180.0), Some(secs(1000.0))));
}

#[test]
fn a_peer_that_is_where_it_was_is_refreshed_without_a_signature() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = flipped(&by.hello(cookie));
    let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
    assert_eq!((outcome, kind(&answer)), (REFRESHED, AnswerKind::Accept));
    let session = world.server.session(A).unwrap();
    assert_eq!((session.since, session.until), (secs(1000.0), secs(NOW) + LEASE));
    assert_eq!((session.last_hello, session.moves), (Some(secs(NOW)), 0));
    assert_eq!(world.server.next_deadline(), Some(secs(NOW) + LEASE));
    assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, CHALLENGED, "its cookie is used");
    // The cookie of the accept leads to the next.
    let packet = by.hello(answer.unwrap().cookie);
    assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, REFRESHED);
}

#[test]
fn a_goodbye_from_where_the_peer_is_ends_the_session() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = flipped(&by.bye(cookie));
    let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
    assert_eq!(outcome, Outcome::Left { peer: A, remote: a0() });
    assert!(is_farewell(&answer));
    assert_eq!((world.server.session(A), world.server.at(a0())), (None, None));
    assert_eq!(world.server.next_deadline(), None);
    assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, CHALLENGED, "its cookie is used");
}

#[test]
fn another_remote_or_local_address_is_a_move_and_needs_a_signature() {
    for ends in [to_l1(b0()), to_l2(a0()), to_l2(b0())] {
        let (mut world, mut by) = inside();
        let packet = by.hello([5; 16]);
        assert_eq!(judged(&mut world, &by, &packet, ends).0, CHALLENGED);
        let cookie = by.cookie(&mut world, ends, NOW);
        let bye = by.bye(cookie);
        let foreign = (Outcome::Ignored(Ignored::ForeignBye), None);
        assert_eq!(judged(&mut world, &by, &bye, ends), foreign);
        let packet = by.hello(cookie);
        assert_eq!(judged(&mut world, &by, &flipped(&packet), ends), (WRONG_SIGNATURE, None));
        assert_eq!(world.remote(A), Some(a0()));
        let (outcome, answer) = judged(&mut world, &by, &packet, ends);
        assert_eq!(outcome, Outcome::Moved { peer: A, from: a0(), evicted: None });
        assert_eq!(kind(&answer), AnswerKind::Accept);
        let session = world.server.session(A).unwrap();
        assert_eq!((session.remote, session.local, session.moves), (ends.remote, ends.local, 1));
        assert_eq!(session.since, secs(1000.0));
        assert_eq!(world.server.at(ends.remote), Some(A));
        assert_eq!(world.server.at(a0()), (ends.remote == a0()).then_some(A));
        assert_eq!(judged(&mut world, &by, &packet, ends).0, CHALLENGED, "its cookie is used");
    }
}

#[test]
fn a_peer_that_may_not_come_in_is_refused_once_its_address_is_proved() {
    for (allowed, why) in
        [(Allowed::Disabled, Refusal::Disabled), (Allowed::Expired, Refusal::Expired)]
    {
        let (mut world, mut by) = inside();
        assert_eq!(world.server.insert(A, peer(A, LEASE, allowed)), Some(a0()));
        let packet = by.hello([5; 16]);
        assert_eq!(judged(&mut world, &by, &packet, to_l1(a0())).0, CHALLENGED);
        let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
        let packet = by.hello(cookie);
        let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
        assert_eq!(outcome, Outcome::Refused { peer: A, why });
        assert_eq!(kind(&answer), AnswerKind::Refuse(why));
        let packet = by.bye(cookie);
        let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
        assert_eq!(outcome, Outcome::WasOut { peer: A });
        assert!(is_farewell(&answer));
        assert_eq!(world.server.session(A), None);
    }
}

/// Each ends a session.
type Ending = fn(&mut Server) -> Vec<(PeerId, std::net::SocketAddr)>;

#[test]
fn the_end_of_a_session_ends_its_cookies() {
    let endings: [Ending; 5] = [
        |server| server.expire(secs(1180.0)),
        |server| server.kick(A).map(|remote| (A, remote)).into_iter().collect(),
        |server| {
            let ended = server.insert(A, peer(A, LEASE, Allowed::Disabled));
            ended.map(|remote| (A, remote)).into_iter().collect()
        },
        |server| {
            let other = SharedSecret::new(b"another".to_vec());
            let changed = ServerPeer { secret: other, ..peer(A, LEASE, Allowed::Yes) };
            let ended = server.insert(A, changed);
            ended.map(|remote| (A, remote)).into_iter().collect()
        },
        |server| server.remove(A).map(|remote| (A, remote)).into_iter().collect(),
    ];
    for (n, end) in endings.into_iter().enumerate() {
        let (mut world, mut by) = inside();
        let cookie = by.cookie(&mut world, to_l1(a0()), 1175.0);
        assert_eq!(end(&mut world.server), [(A, a0())], "{n}");
        assert_eq!((world.server.session(A), world.server.at(a0())), (None, None), "{n}");
        assert_eq!(world.server.next_deadline(), None, "{n}");
        assert_eq!(end(&mut world.server), [], "{n}: it ended before");
        world.server.insert(A, peer(A, LEASE, Allowed::Yes));
        let packet = by.hello(cookie);
        assert_eq!(world.outcome(&packet, to_l1(a0()), 1180.0), CHALLENGED, "{n}");
    }
}

#[test]
fn leases_end_one_after_the_other() {
    let (mut world, mut a) = inside();
    let mut b = ByHand::new(B);
    b.enter(&mut world, to_l1(b0()), 1005.0);
    assert_eq!(world.server.next_deadline(), Some(secs(1180.0)));
    a.enter(&mut world, to_l1(a0()), 1020.0);
    assert_eq!(world.server.next_deadline(), Some(secs(1185.0)));
    assert_eq!(world.server.expire(secs(1184.9)), []);
    assert_eq!(world.server.expire(secs(1185.0)), [(B, b0())]);
    assert_eq!(world.server.expire(secs(5000.0)), [(A, a0())]);
    assert_eq!(world.server.next_deadline(), None);
}

/// The caller has not asked for the end of leases since.
#[test]
fn a_lease_that_is_over_gives_no_right_even_before_that_is_asked_for() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), 1179.0);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&packet, to_l1(a0()), 1180.0), CHALLENGED);
    let cookie = by.cookie(&mut world, to_l1(a0()), 1180.0);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&flipped(&packet), to_l1(a0()), 1180.0), WRONG_SIGNATURE);
    // For the datapath it was there all the time.
    let moved = Outcome::Moved { peer: A, from: a0(), evicted: None };
    assert_eq!(world.outcome(&packet, to_l1(a0()), 1180.0), moved);
    let session = world.server.session(A).unwrap();
    assert_eq!((session.since, session.moves), (secs(1180.0), 0));
    assert_eq!(world.server.expire(secs(1180.0)), []);
    // Another peer gets the remote of one whose lease is over.
    let mut other = ByHand::new(B);
    let cookie = other.cookie(&mut world, to_l1(a0()), 1400.0);
    let packet = other.hello(cookie);
    let up = Outcome::Up { peer: B, evicted: Some(A) };
    assert_eq!(world.outcome(&packet, to_l1(a0()), 1400.0), up);
    assert_eq!(world.server.expire(secs(1400.0)), []);
}

#[test]
fn the_second_wrong_signature_makes_the_cookie_useless() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.hello(cookie);
    for _ in 0..2 {
        assert_eq!(world.outcome(&flipped(&packet), to_l1(a0()), NOW), WRONG_SIGNATURE);
    }
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), CHALLENGED);
    // They are counted again for the next cookie.
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&flipped(&packet), to_l1(a0()), NOW), WRONG_SIGNATURE);
    let up = Outcome::Up { peer: A, evicted: None };
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), up);
}

#[test]
fn packets_that_are_not_for_us_are_ignored() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    let good = by.hello([5; 16]);
    let mut changed = |at: usize, value: u8| {
        let mut packet = good;
        packet[at] = value;
        world.hear(&packet, to_l1(a0()), NOW)
    };
    let not_for_us = Outcome::Ignored(Ignored::NotForUs);
    for (at, value) in [(0, 0x45), (0, 0x8f), (73, 1), (74, 9), (76, 0), (84, 0)] {
        let heard = changed(at, value);
        assert_eq!((heard.outcome, heard.answer), (not_for_us, None), "{at}");
    }
    let heard = changed(127, good[127] ^ 1);
    let wrong_mac = Outcome::Ignored(Ignored::WrongMac { peer: A });
    assert_eq!((heard.outcome, heard.answer), (wrong_mac, None));
    for packet in [&good[..73], &good[..127], &[]] {
        assert_eq!(world.outcome(packet, to_l1(a0()), NOW), not_for_us);
    }
    let mut stranger = ByHand::new(PeerId(3));
    let packet = stranger.hello([5; 16]);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), not_for_us);
}

#[test]
fn a_remote_belongs_to_the_peer_that_proved_it_last() {
    let (mut world, mut a) = inside();
    let mut b = ByHand::new(B);
    let held_back = a.cookie(&mut world, to_l1(a0()), NOW);
    let cookie = b.cookie(&mut world, to_l1(a0()), NOW);
    let packet = b.hello(cookie);
    let up = Outcome::Up { peer: B, evicted: Some(A) };
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), up);
    assert_eq!((world.server.session(A), world.server.at(a0())), (None, Some(B)));
    let packet = a.hello(held_back);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), CHALLENGED, "it lost its remote");
    // It comes back somewhere else, and B stays.
    a.enter(&mut world, to_l1(b0()), NOW);
    assert_eq!((world.remote(A), world.remote(B)), (Some(b0()), Some(a0())));
}

/// A's way to us, as a socket for both families has it.
fn mapped() -> Ends {
    Ends { remote: at("[::ffff:198.51.100.1]:4000"), local: at("[::ffff:203.0.113.1]:10000") }
}

#[test]
fn one_address_in_two_notations_is_one_remote() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&packet, mapped(), NOW), REFRESHED);
    assert_eq!(world.server.at(a0()), Some(A));
    let link_local = |scope| Ends { remote: at(&format!("[fe80::1%{scope}]:1")), local: l1() };
    by.enter(&mut world, link_local(1), NOW);
    let moved = by.enter(&mut world, link_local(2), NOW);
    assert_eq!(world.server.session(A).map(|session| session.moves), Some(2));
    let packet = by.hello(moved);
    assert_eq!(world.outcome(&packet, link_local(2), NOW), REFRESHED);
}

#[test]
fn a_peer_that_is_as_it_was_notices_no_reload() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    assert_eq!(world.server.insert(A, peer(A, LEASE, Allowed::Yes)), None);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), REFRESHED);
}

#[test]
fn other_addresses_or_another_lease_do_not_end_a_session_but_its_cookies() {
    let changes: [fn(ServerPeer) -> ServerPeer; 2] = [
        |peer| ServerPeer { inner: Vec::new(), ..peer },
        |peer| ServerPeer { lease: Duration::from_secs(60), ..peer },
    ];
    for change in changes {
        let (mut world, mut by) = inside();
        let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
        assert_eq!(world.server.insert(A, change(peer(A, LEASE, Allowed::Yes))), None);
        assert_eq!(world.remote(A), Some(a0()));
        let packet = by.hello(cookie);
        assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), CHALLENGED);
        let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
        let packet = by.hello(cookie);
        let (outcome, answer) = judged(&mut world, &by, &packet, to_l1(a0()));
        let answer = answer.unwrap();
        assert_eq!(outcome, REFRESHED);
        assert!(answer.inner.is_empty() || answer.lease == Some(60), "{answer:?}");
    }
}

#[test]
fn another_secret_makes_the_macs_of_before_wrong() {
    let (mut world, mut by) = inside();
    let other = SharedSecret::new(b"another".to_vec());
    world.server.insert(A, ServerPeer { secret: other, ..peer(A, LEASE, Allowed::Yes) });
    let packet = by.hello([5; 16]);
    let wrong_mac = Outcome::Ignored(Ignored::WrongMac { peer: A });
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), wrong_mac);
}

#[test]
fn two_peers_can_exchange_their_keys_in_one_reload() {
    let (mut world, mut by) = inside();
    world.server.insert(A, peer(B, LEASE, Allowed::Yes));
    world.server.insert(B, peer(A, LEASE, Allowed::Yes));
    let packet = by.hello([5; 16]);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), Outcome::Challenged { peer: B });
    let packet = ByHand::new(B).hello([5; 16]);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), CHALLENGED);
    // A new peer has the key of one that is removed only then.
    world.server.insert(PeerId(3), peer(B, LEASE, Allowed::Yes));
    world.server.remove(A);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), Outcome::Challenged { peer: PeerId(3) });
}

#[test]
fn a_former_key_identifies_no_peer() {
    let (mut world, mut by) = inside();
    let not_for_us = Outcome::Ignored(Ignored::NotForUs);
    let new = PeerId(3);
    assert_eq!(world.server.insert(A, peer(new, LEASE, Allowed::Yes)), Some(a0()));
    assert_eq!(world.outcome(&by.hello([5; 16]), to_l1(a0()), NOW), not_for_us);
    let mut by = ByHand::new(new);
    assert_eq!(world.outcome(&by.hello([5; 16]), to_l1(a0()), NOW), CHALLENGED);
    world.server.remove(A);
    assert_eq!(world.outcome(&by.hello([5; 16]), to_l1(a0()), NOW), not_for_us);
}

#[test]
fn an_adopted_session_has_one_lease() {
    let mut world = World::new(990.0);
    assert!(world.server.adopt(A, mapped(), secs(1000.0)));
    let session = world.server.session(A).unwrap();
    assert_eq!((session.remote, session.local, session.last_hello), (a0(), l1(), None));
    assert_eq!((session.since, session.until), (secs(1000.0), secs(1000.0) + LEASE));
    assert!(!world.server.adopt(B, to_l1(a0()), secs(1000.0)), "another has the remote");
    assert!(!world.server.adopt(A, to_l1(b0()), secs(1000.0)), "it is here");
    world.server.insert(B, peer(B, LEASE, Allowed::Expired));
    assert!(!world.server.adopt(B, to_l1(b0()), secs(1000.0)), "it may not come in");
    assert!(!world.server.adopt(PeerId(3), to_l1(b0()), secs(1000.0)), "nobody knows it");
    // Its next hello needs no signature: it is where it was.
    let mut by = ByHand::new(A);
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW), REFRESHED);
    assert_eq!(world.server.session(A).and_then(|session| session.last_hello), Some(secs(NOW)));
    assert_eq!(world.server.expire(secs(NOW) + LEASE), [(A, a0())]);
}

#[test]
fn a_peer_moves_five_times_at_once_and_then_once_in_two_seconds() {
    let mut world = World::new(990.0);
    let mut by = ByHand::new(A);
    let mut try_it = |n: u16, boot: f64| {
        let ends = to_l1(std::net::SocketAddr::from(([100, 64, 0, 1], n)));
        let cookie = by.cookie(&mut world, ends, boot);
        let packet = by.hello(cookie);
        // A wrong signature does not count.
        let wrong = world.outcome(&flipped(&packet), ends, boot);
        let right = world.outcome(&packet, ends, boot);
        let too_many = Outcome::Ignored(Ignored::TooManyMoves);
        assert_eq!(wrong, if right == too_many { too_many } else { WRONG_SIGNATURE });
        right != too_many
    };
    let moved = |done: [bool; 7]| done.iter().filter(|done| **done).count();
    assert_eq!(moved([1, 2, 3, 4, 5, 6, 7].map(|n| try_it(n, 1000.0))), 5);
    assert_eq!(moved([11, 12, 13, 14, 15, 16, 17].map(|n| try_it(n, 1001.9))), 0);
    assert_eq!(moved([21, 22, 23, 24, 25, 26, 27].map(|n| try_it(n, 1002.0))), 1);
    assert_eq!(moved([31, 32, 33, 34, 35, 36, 37].map(|n| try_it(n, 1006.5))), 2);
    // Where it is, it is refreshed as often as it likes.
    let here = to_l1(std::net::SocketAddr::from(([100, 64, 0, 1], 32)));
    for _ in 0..20 {
        let cookie = by.cookie(&mut world, here, 1006.5);
        let packet = by.hello(cookie);
        assert_eq!(world.outcome(&packet, here, 1006.5), REFRESHED);
    }
}

#[test]
fn a_thousand_signatures_are_checked_in_a_second_and_twenty_wrong_ones_of_one_peer() {
    let mut world = World::new(990.0);
    let mut all: Vec<_> = (10..70).map(|number| ByHand::new(PeerId(number))).collect();
    for id in (10..70).map(PeerId) {
        world.server.insert(id, peer(id, LEASE, Allowed::Yes));
    }
    let mut checked = |numbers: std::ops::Range<usize>, boot: f64, tries: u32| {
        let mut checked = 0;
        for by in &mut all[numbers] {
            for _ in 0..tries {
                let cookie = by.cookie(&mut world, to_l1(a0()), boot);
                let packet = flipped(&by.hello(cookie));
                match world.outcome(&packet, to_l1(a0()), boot) {
                    Outcome::Ignored(Ignored::WrongSignature { .. }) => checked += 1,
                    other => assert_eq!(other, Outcome::Ignored(Ignored::TooManySignatures)),
                }
            }
        }
        checked
    };
    assert_eq!([checked(0..1, 1000.0, 30), checked(0..1, 1000.01, 20)], [20, 0]);
    assert_eq!(checked(0..1, 1001.0, 10), 2);
    assert_eq!([checked(1..60, 1003.0, 20), checked(55..60, 1003.01, 20)], [1000, 10]);
}

#[test]
fn a_flood_of_captured_hellos_costs_20_000_challenges_a_second_and_no_right_cookie() {
    let (mut world, mut by) = inside();
    let cookie = by.cookie(&mut world, to_l1(a0()), NOW);
    let captured = by.hello([5; 16]);
    let mut answered = 0;
    // Three times as many as there may be, for two seconds; at the start the bucket is full.
    for n in 0..120_000 {
        let boot = NOW + f64::from(n) / 60_000.0;
        let outcome = world.outcome(&captured, to_l1(m()), boot);
        answered += u32::from(outcome == CHALLENGED);
        let limited = Outcome::Ignored(Ignored::TooManyChallenges);
        assert!(outcome == CHALLENGED || outcome == limited, "{outcome:?}");
    }
    assert!((45_000..=60_000).contains(&answered), "{answered}");
    let packet = by.hello(cookie);
    assert_eq!(world.outcome(&packet, to_l1(a0()), NOW + 2.0), REFRESHED);
}

#[test]
fn reasons_to_ignore_a_packet_have_names_of_their_own() {
    let reasons = [
        Ignored::NotForUs,
        Ignored::WrongMac { peer: A },
        Ignored::WrongSignature { peer: A },
        Ignored::ForeignBye,
        Ignored::TooManyChallenges,
        Ignored::TooManySignatures,
        Ignored::TooManyMoves,
    ];
    assert_eq!(reasons.map(Ignored::name), Ignored::NAMES);
    assert_eq!(BTreeSet::from(Ignored::NAMES).len(), reasons.len());
    assert_eq!(Ignored::WrongMac { peer: A }.name(), "wrong_mac");
}

#[test]
fn a_server_tells_the_public_half_of_its_key() {
    let world = World::new(990.0);
    assert_eq!(*world.server.public_key(), public(&SERVER_SEED));
    assert_eq!(hint(world.server.public_key()), public(&SERVER_SEED)[..8]);
}
