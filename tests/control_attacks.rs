//! Single attacks on the control protocol, each by what an attacker on the path can do: read, hold back,
//! repeat, change and inject packets.

#[path = "control/played.rs"]
mod played;

use std::time::Duration;

use ipipou::engine::control::{Allowed, ClientHeard, Ignored, Outcome, Server, State};
use played::*;

const CHALLENGED: Outcome = Outcome::Challenged { peer: A };
const REFRESHED: Outcome = Outcome::Refreshed { peer: A };

#[test]
fn a_hello_that_was_held_back_is_dead_after_hours() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1020.0);
    let refresh = world.hello(&mut client, 1030.0);
    // As well one that is signed: the client has not been accepted at its new address.
    let challenge = world.hear(&refresh, to_l1(b0()), 1030.0).answer.unwrap();
    client.receive(&challenge, secs(1030.0));
    let signed = world.due(&mut client, 1030.0).unwrap();
    // The low byte of the epoch is the same again.
    let later = 1030.0 + 256.0 * 60.0;
    assert_eq!(world.server.expire(secs(later)), [(A, a0())]);
    assert_eq!(world.outcome(&refresh, to_l1(a0()), later), CHALLENGED);
    assert_eq!(world.outcome(&signed, to_l1(b0()), later), CHALLENGED);
    assert_eq!(world.remote(A), None);
}

#[test]
fn a_session_ends_while_the_server_is_suspended() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1020.0);
    let held_back = world.hello(&mut client, 1030.0);
    let awake = 1040.0 + 8.0 * 3600.0;
    assert_eq!(world.outcome(&held_back, to_l1(a0()), awake), CHALLENGED);
    assert_eq!(world.server.expire(secs(awake)), [(A, a0())]);
    assert_eq!(world.outcome(&held_back, to_l1(a0()), awake), CHALLENGED);
}

#[test]
fn a_snapshot_that_is_started_again_takes_held_back_hellos_for_two_epochs() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1020.0);
    let image: Server = world.server.clone();
    let held_back = world.hello(&mut client, 1021.0);
    // The clock goes on from the image, whenever that is started.
    let mut outcomes = Vec::new();
    for late in [30.0, 90.0, 150.0] {
        world.server = image.clone();
        outcomes.push(world.outcome(&held_back, to_l1(a0()), 1021.0 + late));
    }
    assert_eq!(outcomes, [REFRESHED, REFRESHED, CHALLENGED]);
}

#[test]
fn no_hello_from_before_counts_once_a_peer_was_disabled() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1020.0);
    let held_back = world.hello(&mut client, 1030.0);
    assert_eq!(world.server.insert(A, peer(A, LEASE, Allowed::Disabled)), Some(a0()));
    assert_eq!(world.outcome(&held_back, to_l1(a0()), 1031.0), CHALLENGED);
    assert_eq!(world.server.insert(A, peer(A, LEASE, Allowed::Yes)), None);
    for _ in 0..3 {
        assert_eq!(world.outcome(&held_back, to_l1(a0()), 1050.0), CHALLENGED);
    }
    assert_eq!(world.remote(A), None);
}

#[test]
fn the_first_hello_of_all_does_not_count_once_its_peer_was_disabled() {
    let mut world = World::new(1000.0);
    let mut client = client(A, secs(1000.0));
    let first = world.hello(&mut client, 1000.0);
    world.exchange(&mut client, &first, to_l1(a0()), 1000.0);
    let held_back = world.due(&mut client, 1000.0).unwrap();
    world.server.insert(A, peer(A, LEASE, Allowed::Disabled));
    world.server.insert(A, peer(A, LEASE, Allowed::Yes));
    assert_eq!(world.outcome(&held_back, to_l1(a0()), 1050.0), CHALLENGED);
}

#[test]
fn the_first_hello_of_all_does_not_count_once_its_peer_was_removed_and_added() {
    let mut world = World::new(1000.0);
    let mut client = client(A, secs(1000.0));
    let first = world.hello(&mut client, 1000.0);
    world.exchange(&mut client, &first, to_l1(a0()), 1000.0);
    let held_back = world.due(&mut client, 1000.0).unwrap();
    world.server.remove(A);
    world.server.insert(A, peer(A, LEASE, Allowed::Yes));
    assert_eq!(world.outcome(&held_back, to_l1(a0()), 1050.0), CHALLENGED);
}

#[test]
fn a_port_that_a_nat_gives_to_another_peer_is_the_other_peers() {
    let mut world = World::new(1000.0);
    world.connected(A, a0(), 1000.0);
    let mut other = world.connected(B, b0(), 1000.0);
    let hello = world.hello(&mut other, 1060.0);
    world.exchange(&mut other, &hello, to_l1(a0()), 1060.0);
    let hello = world.due(&mut other, 1060.0).unwrap();
    let (outcome, _) = world.exchange(&mut other, &hello, to_l1(a0()), 1060.0);
    assert_eq!(outcome, Outcome::Moved { peer: B, from: b0(), evicted: Some(A) });
    assert_eq!((world.remote(A), world.remote(B)), (None, Some(a0())));
    assert_eq!(world.server.at(a0()), Some(B));
}

#[test]
fn a_copy_of_a_keepalive_to_another_local_address_changes_nothing() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1000.0);
    let keepalive = world.hello(&mut client, 1027.0);
    assert_eq!(world.outcome(&keepalive, to_l2(a0()), 1027.0), CHALLENGED);
    assert_eq!(world.outcome(&keepalive, to_l1(a0()), 1027.0), REFRESHED);
    assert_eq!(world.outcome(&keepalive, to_l2(a0()), 1028.0), CHALLENGED);
    assert_eq!(world.server.session(A).map(|session| session.local), Some(l1()));
}

/// The servers have the same key, and no cookie of one is good at the other.
#[test]
fn a_balancer_that_alternates_between_two_servers_causes_three_hellos_for_each_try() {
    let mut worlds = [World::new(1000.0), World::new(1000.0)];
    worlds[1].server = server(&mut Rng(2), secs(1000.0), LEASE);
    let mut client = client(A, secs(1000.0));
    let (mut at, mut sent) = (1000.0, Vec::new());
    while at < 1120.0 {
        let world = &mut worlds[sent.len() % 2];
        let Some(hello) = world.due(&mut client, at) else {
            at = client.next_deadline().as_secs_f64();
            continue;
        };
        sent.push(at);
        world.exchange(&mut client, &hello, to_l1(a0()), at);
        at += 0.01;
    }
    let tries = |from: f64, to: f64| sent.iter().filter(|at| (from..to).contains(*at)).count();
    assert_eq!(tries(1000.0, 1000.7), 3);
    // After 1, 1 again because the first challenge shows that somebody is there, 2, 4, 8, 16, 27, 27 s.
    assert!((18..=33).contains(&sent.len()), "{sent:?}");
    assert!(tries(1060.0, 1120.0) <= 12, "{sent:?}");
    assert!(matches!(client.state(secs(1120.0)), State::Trying { .. }));
}

#[test]
fn copies_with_other_signatures_cost_two_checks() {
    let mut world = World::new(1000.0);
    let mut client = client(A, secs(1000.0));
    let hello = world.hello(&mut client, 1000.0);
    world.exchange(&mut client, &hello, to_l1(a0()), 1000.0);
    let hello = world.due(&mut client, 1000.0).unwrap();
    let mut wrong = 0;
    for n in 0..20_000 {
        let outcome = world.outcome(&flipped(&hello), to_l1(a0()), 1000.0 + f64::from(n) * 0.005);
        match outcome {
            Outcome::Ignored(Ignored::WrongSignature { peer: A }) => wrong += 1,
            other => assert_eq!(other, CHALLENGED),
        }
    }
    assert_eq!(wrong, 2);
    assert_eq!(world.outcome(&hello, to_l1(a0()), 1100.0), CHALLENGED, "it died with its copies");
}

#[test]
fn two_hosts_with_one_key_cost_a_signature_for_each_keepalive() {
    let mut world = World::new(1000.0);
    let mut hosts = [(client(A, secs(1000.0)), a0()), (client(A, secs(1000.0)), b0())];
    let (mut hellos, mut moves) = (0, 0);
    for keepalive in 0..20 {
        for (n, (host, remote)) in (0..).zip(&mut hosts) {
            let at = f64::from(1000 + keepalive * 27 + n * 13);
            host.say_now(secs(at));
            while let Some(hello) = world.due(host, at) {
                hellos += 1;
                let (outcome, _) = world.exchange(host, &hello, to_l1(*remote), at);
                match outcome {
                    Outcome::Up { .. } | Outcome::Moved { .. } => moves += 1,
                    other => assert_eq!(other, CHALLENGED),
                }
            }
        }
    }
    assert_eq!((hellos, moves), (80, 40));
}

#[test]
fn repeating_the_last_keepalive_does_not_prolong_the_session() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1020.0);
    let last = world.connect(&mut client, to_l1(a0()), 1027.0);
    assert_eq!(last.len(), 1);
    let mut ended = Vec::new();
    for second in 1028..1627 {
        assert_eq!(world.outcome(&last[0], to_l1(a0()), f64::from(second)), CHALLENGED);
        let now = Duration::from_secs(u64::try_from(second).unwrap());
        ended.extend(world.server.expire(now).iter().map(|_| second));
    }
    assert_eq!(ended, [1027 + 180]);
}

#[test]
fn an_adversary_who_reads_and_injects_once_has_the_session_until_the_next_retry() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1000.0);
    let keepalive = world.hello(&mut client, 1027.0);
    // The attacker copies it from where he is, and injects the answer.
    let (_, heard) = world.exchange(&mut client, &keepalive, to_l1(m()), 1027.0);
    assert_eq!(heard, ClientHeard::Challenged);
    let hello = world.due(&mut client, 1027.0).unwrap();
    assert_eq!(
        world.outcome(&hello, to_l1(m()), 1027.0),
        Outcome::Moved { peer: A, from: a0(), evicted: None }
    );
    // His answer is lost on the client, which says hello again and is back.
    let retry = client.next_deadline().as_secs_f64();
    assert!((1027.8..=1028.2).contains(&retry), "{retry}");
    world.converse(&mut client, to_l1(a0()), retry);
    assert_eq!(world.remote(A), Some(a0()));
}

#[test]
fn a_lost_accept_costs_two_more_hellos() {
    let mut world = World::new(1000.0);
    let mut client = client(A, secs(1000.0));
    let hello = world.hello(&mut client, 1000.0);
    world.exchange(&mut client, &hello, to_l1(a0()), 1000.0);
    let hello = world.due(&mut client, 1000.0).unwrap();
    assert_eq!(world.outcome(&hello, to_l1(a0()), 1000.0), Outcome::Up { peer: A, evicted: None });
    let retry = client.next_deadline().as_secs_f64();
    assert_eq!(world.converse(&mut client, to_l1(a0()), retry).len(), 2);
    assert_eq!(client.state(secs(retry)), State::Connected { since: secs(retry) });
}

#[test]
fn a_goodbye_that_was_held_back_does_not_end_the_next_session() {
    let mut world = World::new(1000.0);
    let mut client = world.connected(A, a0(), 1000.0);
    let held_back = world.bye(&mut client, 1010.0);
    world.connected(A, a0(), 1012.0);
    assert_eq!(world.outcome(&held_back, to_l1(a0()), 1013.0), CHALLENGED);
    assert_eq!(world.remote(A), Some(a0()));
}

#[test]
fn wrong_signatures_of_one_peer_leave_those_of_others_their_checks() {
    let mut world = World::new(1000.0);
    let mut evil = client(A, secs(1000.0));
    let mut first = world.hello(&mut evil, 1000.0);
    let (mut wrong, mut tried) = (0, 0);
    for tick in 0..20_000u32 {
        let at = 1000.0 + f64::from(tick) * 0.0005;
        for _ in 0..2 {
            let Some(answer) = world.hear(&first, to_l1(a0()), at).answer else { continue };
            evil.receive(&answer, secs(at));
            if let Some(signed) = world.due(&mut evil, at) {
                for _ in 0..2 {
                    let outcome = world.outcome(&flipped(&signed), to_l1(a0()), at);
                    wrong += u32::from(format!("{outcome:?}").contains("WrongSignature"));
                }
            }
            evil = client(A, secs(at));
            first = world.due(&mut evil, at).unwrap_or(first);
        }
        if tick % 2500 == 2499 {
            let mut good = client(B, secs(at));
            let hello = world.hello(&mut good, at);
            world.exchange(&mut good, &hello, to_l1(b0()), at);
            let signed = world.due(&mut good, at).expect("an answer to a challenge");
            let outcome = world.outcome(&signed, to_l1(b0()), at);
            assert!(matches!(outcome, Outcome::Up { .. }), "{outcome:?} at {at}");
            world.server.kick(B);
            tried += 1;
        }
    }
    assert!(tried == 8 && (20..=60).contains(&wrong), "{tried} tries beside {wrong}");
}
