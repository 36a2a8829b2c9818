//! A server of many clients that share a key and whose inner addresses are learned (`--learn`): room for
//! them, their lifetimes, and what a restart knows of them.

use std::collections::BTreeMap;

use ipipou::auth::Reject;
use ipipou::engine::config::LearnConfig;
use ipipou::tun::Forwarding;

use super::memory::{A, B, SECOND, learner, learning};
use super::*;

fn learning_from(from_anybody: bool) -> Server {
    let mut config = server(None);
    config.tunnel.inner = "10.9.0.1".parse().unwrap();
    config.tunnel.inner_peer = "10.9.0.0/24".parse().unwrap();
    config.learn = Some(LearnConfig { lifetime: 60 * SECOND, limit: 2 });
    if from_anybody {
        config.policy.proof = Proof::Nothing;
    }
    config
}

#[test]
fn many_clients_share_a_server_that_learns() {
    let config = Config::from(learning_from(false));
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    assert!(play.applied.contains(&"add 10.9.0.1/24 to ipipou0".to_owned()), "{:?}", play.applied);
    assert!(play.remotes().is_empty());
    // The clocks of clients with one key differ, and their packets come in any order.
    play.skew = 30;
    let ahead = play.proof();
    play.skew = 0;
    let behind = play.proof();
    play.receive(at(A), &ahead);
    play.receive(at(B), &behind);
    assert_eq!(play.remotes(), [outer_at(A), outer_at(B)]);
    play.receive(at("192.0.2.66:1"), &behind);
    assert_eq!(play.rejected(), 1, "a replay from elsewhere");
    // Two at most: the one that was silent longest goes.
    play.pass(SECOND);
    let third = play.proof();
    play.receive(at("192.0.2.3:3"), &third);
    assert_eq!(play.remotes().len(), 2);
    // A restart lets them in again, without a new packet.
    let known = play.remotes();
    let config = Config::from(learning_from(false));
    let again = Play::start_on(Datapath::Tun, config, FakeHost::new(), play.memory);
    assert_eq!(again.remotes(), known);
}

fn learning_until(lifetime: u64, reply: Reply) -> Config {
    Config::from(Server {
        lifetime: Some(Duration::from_secs(lifetime)),
        reply,
        ..learning_from(false)
    })
}

#[test]
fn each_of_many_clients_has_its_own_lifetime() {
    let config = || learning_until(60, Reply::Silent);
    let mut play = Play::start_on(Datapath::Tun, config(), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(30 * SECOND);
    let proof = play.proof();
    play.receive(at(B), &proof);
    play.pass(29 * SECOND);
    assert_eq!(play.remotes(), [outer_at(A), outer_at(B)]);
    let (left, memory) = (play.host.clone(), play.memory.clone());
    play.pass(SECOND);
    assert_eq!(play.remotes(), [outer_at(B)]);
    let expired = |play: &Play| -> Vec<_> {
        play.reports.iter().filter(|r| matches!(r, Report::Expired(_))).cloned().collect()
    };
    assert_eq!(expired(&play), [Report::Expired(outer_at(A))]);
    // A new proof lengthens it, and it is the same client.
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert!(play.sent.is_empty(), "nobody is answered");
    play.pass(59 * SECOND);
    assert_eq!(play.remotes(), [outer_at(B)]);
    play.pass(SECOND);
    assert!(play.remotes().is_empty());
    // Killed one second before A ran out: what was left of the lifetimes is left of them.
    let mut again = Play::stopped_at(59, Datapath::Tun, config(), left, memory);
    again.read();
    assert_eq!(again.remotes(), [outer_at(A), outer_at(B)]);
    again.pass(SECOND);
    assert_eq!(again.remotes(), [outer_at(B)]);
    again.pass(30 * SECOND);
    assert!(again.remotes().is_empty());
}

#[test]
fn each_of_many_clients_is_answered() {
    for (reply, length) in [(Reply::Signed(signer()), 73), (Reply::Reversed, 73)] {
        let signed = matches!(reply, Reply::Signed(_));
        let config = learning_until(60, reply);
        let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
        for (from, count) in [(A, 1), (B, 2), (A, 3)] {
            let proof = play.proof();
            play.receive(at(from), &proof);
            assert_eq!(play.sent.len(), count);
            let answer = play.sent.last().unwrap();
            assert_eq!((answer.to, answer.payload.len()), (outer_at(from), length));
            let reversed: Vec<_> = proof.iter().rev().copied().collect();
            assert_eq!(answer.payload == reversed, !signed);
            assert_eq!(answer.from, outer_at("203.0.113.1:10000"));
        }
        play.receive(at("192.0.2.66:1"), b"proves nothing");
        assert_eq!(play.sent.len(), 3);
    }
}

#[test]
fn a_session_that_expired_while_the_server_was_down_is_not_admitted() {
    let mut config = learning_from(false);
    config.lifetime = Some(10 * SECOND);
    let start = |memory| {
        let config = Config::from(config.clone());
        Play::start_on(Datapath::Tun, config, FakeHost::new(), memory)
    };
    let mut play = start(Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    for (seconds, let_in) in [(9, "forward to 198.51.100.7:4500"), (10, "forward to nobody")] {
        let mut memory = play.memory.clone();
        memory.clients.values_mut().for_each(|unix| *unix -= seconds);
        let again = start(memory);
        let forwards: Vec<_> =
            again.applied.iter().filter(|step| step.starts_with("forward")).collect();
        assert_eq!(forwards, [let_in], "at once");
    }
}

#[test]
fn a_server_that_demands_no_proof_learns_from_anybody() {
    for anybody in [false, true] {
        let config = Config::from(learning_from(anybody));
        let play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
        let mut table = Forwarding::new(play.host.found.userspace.forwarding);
        let inner = "10.9.0.7".parse().unwrap();
        let judged = table.judge(outer_at(A), inner, SECOND);
        assert_eq!(judged == ipipou::tun::Judgement::Learn, anybody);
        assert!(!table.learn(outer_at(A), "10.9.0.1".parse().unwrap(), SECOND), "our own address");
    }
}

fn silences(play: &mut Play, silent: &[(&str, u32)]) {
    play.host.found.userspace.silent =
        silent.iter().map(|(remote, seconds)| (outer_at(remote), *seconds * SECOND)).collect();
}

fn learned(of: &[(&str, &str)]) -> BTreeMap<IpAddr, SocketAddr> {
    of.iter().map(|(inner, remote)| (inner.parse().unwrap(), outer_at(remote))).collect()
}

/// What a start gives to the datapath.
fn given(play: &Play) -> BTreeMap<IpAddr, SocketAddr> {
    let learn = play.host.found.userspace.forwarding.learn.as_ref();
    learn.unwrap().before.as_ref().clone()
}

#[test]
fn a_start_knows_whose_the_inner_addresses_are_that_were_learned() {
    let mut play = learner(3, Memory::default());
    for from in [A, B] {
        let proof = play.proof();
        play.receive(at(from), &proof);
    }
    assert!(given(&play).is_empty());
    let both = learned(&[("10.9.0.7", A), ("10.9.0.8", B)]);
    play.host.found.userspace.learned = both.clone();
    play.pass(5 * SECOND);
    assert_eq!(play.memory.learned, both, "on the disk soon, although nobody proves anything");
    let restarted = learner(3, play.memory.clone());
    assert_eq!(given(&restarted), both);
    assert_eq!(restarted.memory.learned, both, "what the start writes has it still");
    // Of those whose sessions do not count any more, and of another key, nothing is.
    let mut late = play.memory.clone();
    late.clients.insert(outer_at(A), START - 601);
    assert_eq!(given(&learner(3, late)), learned(&[("10.9.0.8", B)]));
    let other = Memory { key: Some([7; 32]), ..play.memory.clone() };
    assert!(given(&learner(3, other)).is_empty());
    // It went: it is forgotten with the next write.
    play.host.found.userspace.learned = learned(&[("10.9.0.8", B)]);
    play.pass(5 * SECOND);
    let proof = play.proof();
    play.receive(at(B), &proof);
    play.pass(15 * SECOND);
    assert_eq!(play.memory.learned, learned(&[("10.9.0.8", B)]));
}

#[test]
fn a_client_with_ever_new_inner_addresses_causes_a_write_a_second_at_most() {
    let mut play = learner(1000, Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(15 * SECOND);
    let before = play.writings;
    for number in 0..100 {
        let inner = format!("10.9.1.{number}");
        play.host.found.userspace.learned.extend(learned(&[(&inner, A)]));
        play.read();
        play.pass(SECOND / 20); // five seconds in all
    }
    play.pass(SECOND);
    assert_eq!(play.memory.learned.len(), 100);
    assert!((1..=6).contains(&(play.writings - before)), "{}", play.writings - before);
    // What stays as it is causes none.
    let before = play.writings;
    play.pass(20 * SECOND);
    assert_eq!(play.writings, before);
}

#[test]
fn only_a_silent_client_makes_room() {
    const C: &str = "192.0.2.3:3";
    let mut play = learner(2, Memory::default());
    for from in [A, B] {
        let proof = play.proof();
        play.receive(at(from), &proof);
        play.pass(SECOND);
    }
    let both = play.remotes();
    // Both authenticated within the lifetime.
    let proof = play.proof();
    play.receive(at(C), &proof);
    play.pass(SECOND);
    assert_eq!(play.remotes(), both);
    assert_eq!(play.refused(Reject::NoRoom), 1);
    // Neither authenticates, and one sends data: the other makes room.
    play.pass(100 * SECOND);
    silences(&mut play, &[(A, 5)]);
    let proof = play.proof();
    play.receive(at(C), &proof);
    play.pass(SECOND);
    assert_eq!(
        play.remotes(),
        [outer_at(C), outer_at(A)]
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    assert!(play.reports.contains(&Report::MadeRoom(outer_at(B))));
    // The longest silent goes first.
    play.pass(100 * SECOND);
    silences(&mut play, &[(A, 70), (C, 80)]);
    let proof = play.proof();
    play.receive(at(B), &proof);
    play.pass(SECOND);
    assert!(play.remotes().contains(&outer_at(A)) && play.remotes().contains(&outer_at(B)));
    // As many newcomers at once as there are places, and one more.
    play.pass(100 * SECOND);
    silences(&mut play, &[]);
    play.slow_disk = true;
    for from in ["192.0.2.10:1", "192.0.2.11:1", "192.0.2.12:1"] {
        let proof = play.proof();
        play.receive(at(from), &proof);
    }
    play.pass(SECOND);
    play.write();
    assert_eq!(play.remotes().len(), 2);
    assert_eq!(play.refused(Reject::NoRoom), 2);
}

#[test]
fn each_of_many_clients_has_its_own_lifetime_and_answer() {
    let mut config = learning(8);
    config.lifetime = Some(10 * SECOND);
    config.reply = ipipou::engine::config::Reply::Reversed;
    let config = Config::from(config);
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    let first = play.proof();
    play.receive(at(A), &first);
    play.pass(6 * SECOND);
    let second = play.proof();
    play.receive(at(B), &second);
    let answers: Vec<_> = play.sent.iter().map(|out| (out.to, out.payload.clone())).collect();
    let reversed = |packet: &[u8]| packet.iter().rev().copied().collect::<Vec<_>>();
    assert_eq!(answers, [(outer_at(A), reversed(&first)), (outer_at(B), reversed(&second))]);
    play.pass(3 * SECOND);
    assert_eq!(play.remotes(), [outer_at(A), outer_at(B)]);
    play.pass(SECOND);
    assert_eq!(play.remotes(), [outer_at(B)]);
    assert_eq!(play.reports.last(), Some(&Report::Expired(outer_at(A))));
    let again = play.proof();
    play.receive(at(B), &again);
    play.pass(9 * SECOND);
    assert_eq!(play.remotes(), [outer_at(B)]);
    play.pass(SECOND);
    assert!(play.remotes().is_empty());
}
