//! What is remembered: by whom a packet was accepted, in which order that is written, and what a
//! restart makes of it.

use std::collections::BTreeMap;

use ipipou::auth::Reject;
use proptest::prelude::*;

use super::*;
use ipipou::engine::config::LearnConfig;

const A: &str = "198.51.100.7:4500";
const B: &str = "198.51.100.8:4501";
const STRANGER: &str = "192.0.2.66:1";
const SECOND: Duration = Duration::from_secs(1);
const YEAR: i64 = 31_536_000;

fn key(seed: u8) -> Signer {
    Signer::new(&[seed; 32], SharedSecret::new(b"secret".to_vec()))
}

fn server_of(seed: u8) -> Server {
    let secret = SharedSecret::new(b"secret".to_vec());
    let proof = Proof::Key(Verifier::new(&key(seed).public(), secret, None).unwrap());
    let mut config = server(None);
    config.policy.proof = proof;
    config
}

fn serving(memory: Memory) -> Play {
    Play::start(Config::from(server(None)), FakeHost::new(), memory)
}

pub fn learning(limit: usize) -> Server {
    let mut config = server(None);
    config.tunnel.inner = "10.9.0.1".parse().unwrap();
    config.tunnel.inner_peer = "10.9.0.0/16".parse().unwrap();
    config.learn = Some(LearnConfig { lifetime: 60 * SECOND, limit });
    config
}

fn learner(limit: usize, memory: Memory) -> Play {
    Play::start_on(Datapath::Tun, Config::from(learning(limit)), FakeHost::new(), memory)
}

/// Starts again after a kill, `later`, with what was on disk.
fn killed(play: Play, later: u64) -> Play {
    let config = Config::from(server(None));
    let (mut host, skew) =
        (play.host, play.skew + i64::try_from(play.now.as_secs() + later).unwrap());
    host.found.rules = ipipou::engine::host::RulesFound::Unknown;
    let mut again = Play::stopped_at(skew, Datapath::Kernel, config, host, play.memory);
    again.drawn = play.drawn + 1000;
    again.read();
    again
}

impl Play {
    /// A packet whose sender's clock is off by so many seconds.
    fn proof_off(&mut self, seconds: i64) -> Vec<u8> {
        self.skew += seconds;
        let proof = self.proof();
        self.skew -= seconds;
        proof
    }

    fn accepted(&self) -> u64 {
        self.engine.counters().accepted
    }

    fn refused(&self, reason: Reject) -> u64 {
        self.engine.counters().rejected.get(&reason).copied().unwrap_or(0)
    }

    fn remotes(&self) -> Vec<SocketAddr> {
        self.host.found.userspace.forwarding.remotes.keys().copied().collect()
    }
}

// -- clocks ---------------------------------------------------------------------------------

#[test]
fn a_client_with_a_wrong_clock_shuts_out_no_other_client() {
    let mut play = learner(8, Memory::default());
    for (off, accepted) in [(YEAR, false), (121, false), (-121, false), (120, true), (-120, true)] {
        let before = play.accepted();
        let proof = play.proof_off(off);
        play.receive(at(A), &proof);
        assert_eq!(play.accepted() > before, accepted, "{off}");
    }
    assert_eq!(play.refused(Reject::ClockDiffers), 3);
    let accepted = play.accepted();
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.accepted(), accepted + 1);
    // Nor after a restart.
    let mut again = learner(8, play.memory);
    again.drawn = 1000;
    let proof = again.proof_off(1);
    again.receive(at("192.0.2.3:3"), &proof);
    assert_eq!((again.accepted(), again.rejected()), (1, 0));
}

#[test]
fn a_client_from_a_wrong_year_is_admitted_once_its_clock_is_right() {
    let mut play = serving(Memory::default());
    let far = play.proof_off(YEAR);
    play.receive(at(A), &far);
    play.pass(SECOND);
    let right = play.proof();
    play.receive(at(B), &right);
    assert_eq!((play.accepted(), play.rejected()), (2, 0));
    // The same after a restart; and the packet of the wrong year is good at no time.
    let mut play = killed(play, 10);
    play.receive(at(STRANGER), &far);
    play.skew += YEAR - 12;
    play.receive(at(STRANGER), &far);
    play.skew -= YEAR - 12;
    assert_eq!(play.refused(Reject::Replayed), 2);
    let right = play.proof_off(5);
    play.receive(at(A), &right);
    assert_eq!(play.accepted(), 1);
}

#[test]
fn two_hundred_clients_of_one_key_in_the_same_second() {
    let mut play = learner(1024, Memory::default());
    let packets: Vec<_> = (0..200u16)
        .map(|i| (at(&format!("198.51.100.{}:{}", i % 250, 1000 + i)), play.proof()))
        .collect();
    for (from, packet) in &packets {
        play.receive(*from, packet);
    }
    assert_eq!((play.accepted(), play.rejected()), (200, 0));
    for (_, packet) in &packets {
        play.receive(at(STRANGER), packet);
    }
    assert_eq!((play.accepted(), play.refused(Reject::Replayed)), (200, 200));
}

fn seconds(payload: &[u8]) -> u64 {
    ipipou::wire::auth_packet::AuthPacket::parse(payload).unwrap().seconds
}

/// What happens to a client.
#[derive(Debug, Clone)]
enum Happening {
    Asked,
    Passes(u16),
    /// Its clock is set to this many seconds before or after the right time.
    Clock(i64),
    Ended,
    Killed,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        4 => Just(Asked),
        3 => (0..400u16).prop_map(Passes),
        1 => prop_oneof![
            Just(0), Just(-1), Just(-1_600_000_000), Just(YEAR), -100..100i64, -10_000..10_000i64
        ].prop_map(Clock),
        1 => Just(Ended),
        2 => Just(Killed),
    ]
}

fn calling(memory: Memory, skew: i64) -> Play {
    let host = HostName::Address("203.0.113.9".parse().unwrap());
    let config = Config::from(client(host, Some(27 * SECOND)));
    let mut play = Play::stopped_at(skew, Datapath::Kernel, config, FakeHost::new(), memory);
    play.read();
    play
}

proptest! {
    /// A client's time is never far ahead of what its clock has shown, and where its clock is behind
    /// what it used, it goes on from there and is on the disk first.
    #[test]
    fn a_client_is_two_minutes_ahead_of_its_clock_at_most(
        happenings in proptest::collection::vec(happening(), 0..60),
    ) {
        let (mut highest, mut latest, mut skew, mut was_killed) = (0, 0, 0, false);
        let mut play = calling(Memory::default(), skew);
        for happening in happenings.into_iter().chain([Happening::Asked]) {
            match happening {
                Happening::Asked => drop(play.handle(Event::ReauthRequested)),
                Happening::Passes(time) => play.pass(u32::from(time) * SECOND),
                Happening::Clock(off) => {
                    skew = off;
                    play.skew = off;
                }
                Happening::Ended | Happening::Killed => {
                    match happening {
                        Happening::Ended => play.end(),
                        _ => was_killed = true,
                    }
                    skew += i64::try_from(play.now.as_secs()).unwrap();
                    play = calling(play.memory, skew);
                }
            }
            for (clock, on_disk, payload) in std::mem::take(&mut play.dated) {
                let date = seconds(&payload);
                highest = highest.max(clock);
                prop_assert!(date <= highest + 120, "{date} when no clock was past {highest}");
                // A kill may come between this packet and what is written next.
                let behind = date > clock;
                prop_assert!(!behind || on_disk.reserved >= date, "sent and not written");
                // After a kill the clock is believed, unless it is behind what was written.
                let lead = if was_killed { 60 } else { 0 };
                prop_assert!(date + lead >= latest, "{date} after {latest}");
                latest = latest.max(date);
            }
        }
    }
}

#[test]
fn a_restarted_client_whose_clock_is_a_second_behind_continues_its_times() {
    let mut play = calling(Memory::default(), 0);
    play.pass(100 * SECOND);
    let last = seconds(&play.sent.last().unwrap().payload);
    play.end();
    // Again and again: no restart takes it further than one second.
    let mut memory = play.memory;
    for restart in 1..=20 {
        let skew = i64::try_from(last - START).unwrap() - 1;
        let mut play = calling(memory, skew);
        assert_eq!(seconds(&play.sent[0].payload), last + restart);
        play.end();
        memory = play.memory;
    }
}

#[test]
fn a_client_whose_clock_is_right_writes_once_a_minute() {
    let mut play = calling(Memory::default(), 0);
    play.pass(3600 * SECOND);
    assert!(play.writings <= 61, "{}", play.writings);
    assert_eq!(seconds(&play.sent.last().unwrap().payload), START + 3591);
}

// -- what is written, and when --------------------------------------------------------------

#[test]
fn an_arrival_and_a_move_count_once_they_are_written() {
    let mut play = serving(Memory::default());
    play.slow_disk = true;
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert!(play.host.link("ipipou0").is_none() && play.host.admitted().is_empty());
    // A copy that overtakes the disk is refused.
    play.receive(at(STRANGER), &proof);
    assert_eq!(play.refused(Reject::Replayed), 1);
    play.write();
    assert_eq!(play.memory.authenticated, Some((outer_at(A), START)));
    assert_eq!(*play.reports.last().unwrap(), Report::Arrived(outer_at(A)));
    assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(A).ip());

    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(A).ip());
    play.write();
    assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(B).ip());
    assert_eq!((play.accepted(), play.engine.counters().moved), (2, 1));

    // More packets of one that is being written do not keep it waiting.
    let (first, second) = (play.proof(), play.proof());
    play.receive(at(A), &first);
    let writing = play.unwritten;
    play.receive(at(A), &second);
    assert_eq!(play.unwritten, writing);
    play.write();
    assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(A).ip());
    let proof = play.proof();
    play.receive(at(B), &proof);
    play.write();

    // Back before the move was written: it does not happen.
    let (there, back) = (play.proof(), play.proof());
    play.receive(at(A), &there);
    play.receive(at(B), &back);
    play.write();
    assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(B).ip());
    assert_eq!(play.engine.counters().moved, 3);
}

#[test]
fn one_write_covers_many_arrivals() {
    let mut play = learner(1024, Memory::default());
    play.slow_disk = true;
    let steps = play.applied.len();
    for i in 0..100 {
        let proof = play.proof();
        play.receive(at(&format!("198.51.100.7:{}", 1000 + i)), &proof);
    }
    assert!(play.remotes().is_empty());
    play.write();
    assert_eq!((play.remotes().len(), play.accepted()), (100, 100));
    let forwards = play.applied[steps..].iter().filter(|s| s.starts_with("forward")).count();
    assert_eq!(forwards, 1, "{:?}", &play.applied[steps..]);
}

#[test]
fn refreshes_are_written_together() {
    let mut play = learner(1024, Memory::default());
    for i in 0..100 {
        let proof = play.proof();
        play.receive(at(&format!("198.51.100.7:{}", 1000 + i)), &proof);
    }
    let before = play.writings;
    for _ in 0..60 {
        play.pass(SECOND);
        for i in 0..100 {
            let proof = play.proof();
            play.receive(at(&format!("198.51.100.7:{}", 1000 + i)), &proof);
        }
    }
    play.pass(20 * SECOND);
    assert!((5..=7).contains(&(play.writings - before)), "{}", play.writings - before);
    let newest = play.memory.clients.values().max();
    assert_eq!(newest, Some(&(START + 60)));
    // And at the end.
    let proof = play.proof();
    play.receive(at("198.51.100.7:1000"), &proof);
    play.end();
    assert!(!play.memory.running);
    assert_eq!(play.memory.clients[&outer_at("198.51.100.7:1000")], START + 80);
}

// -- what is lost ---------------------------------------------------------------------------

#[test]
fn after_a_loss_no_earlier_packet_makes_a_tunnel() {
    let mut play = serving(Memory::default());
    let captured = play.proof();
    play.receive(at(A), &captured);
    play.pass(5 * SECOND);
    let skew = i64::try_from(play.now.as_secs()).unwrap();
    let fresh = play.proof_off(1);
    for memory in [Memory::lost(), Memory::default()] {
        let first = memory == Memory::default();
        let config = Config::from(server(None));
        let mut play = Play::stopped_at(skew, Datapath::Kernel, config, FakeHost::new(), memory);
        play.read();
        play.receive(at(STRANGER), &captured);
        assert_eq!(play.refused(Reject::OlderThanStart), u64::from(!first));
        assert_eq!(play.accepted(), u64::from(first), "a first start takes any time");
        play.receive(at(B), &fresh);
        assert_eq!(play.accepted(), 1 + u64::from(first));
        // The next start remembers that there was a loss.
        let mut again = killed(play, 100);
        again.receive(at(STRANGER), &captured);
        assert_eq!(again.accepted(), 0);
    }
}

#[test]
fn after_a_loss_the_remote_of_the_running_tunnel_can_refresh() {
    let mut play = serving(Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.memory = Memory::lost();
    let mut play = killed(play, 100);
    // Its clock is an hour behind.
    let slow = play.proof_off(-3600);
    play.receive(at(A), &slow);
    assert_eq!((play.accepted(), play.rejected()), (1, 0));
    let slow = play.proof_off(-3599);
    play.receive(at(B), &slow);
    assert_eq!(play.refused(Reject::OlderThanStart), 1);
}

#[test]
fn a_refresh_cannot_be_replayed_after_a_crash() {
    for off in [0, -3600] {
        let mut play = serving(Memory::default());
        let proof = play.proof_off(off);
        play.receive(at(A), &proof);
        play.pass(5 * SECOND);
        let refresh = play.proof_off(off);
        play.receive(at(A), &refresh);
        assert_eq!(play.accepted(), 2);
        // Killed before it was written; the same second goes on.
        let mut play = killed(play, 0);
        play.receive(at(STRANGER), &refresh);
        assert_eq!(play.refused(Reject::OlderThanStart), 1, "{off}");
        assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(A).ip());
        // A packet of after the start moves the tunnel, however wrong the clock.
        play.pass(3 * SECOND);
        let fresh = play.proof_off(off);
        play.receive(at(B), &fresh);
        assert_eq!(play.accepted(), 1, "{off}");
        assert_eq!(play.host.link("ipipou0").unwrap().remote, *at(B).ip());
    }
}

#[test]
fn a_former_remote_is_not_refreshed_by_a_packet_lost_in_a_crash() {
    let mut play = serving(Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    // The tunnel cannot follow.
    play.host.found.addresses.retain(|a| a.interface != super::host::ETH0);
    let mut play = killed(play, 1);
    play.pass(SECOND);
    let proof = play.proof();
    play.receive(at(B), &proof);
    let lost = play.proof();
    play.receive(at(B), &lost);
    let mut play = killed(play, 1);
    play.receive(at(A), &lost);
    assert_eq!((play.accepted(), play.refused(Reject::OlderThanStart)), (0, 1));
    play.receive(at(B), &lost);
    assert_eq!(play.accepted(), 1);
}

#[test]
fn a_refresh_by_a_clock_that_went_ahead_is_written_before_it_counts() {
    for ahead in [5, YEAR] {
        let mut play = serving(Memory::default());
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.slow_disk = true;
        let refresh = play.proof_off(ahead);
        play.receive(at(A), &refresh);
        assert_eq!(play.accepted(), 1);
        play.write();
        assert_eq!((play.accepted(), play.engine.counters().moved), (2, 0));
        // From then on it is steady.
        for _ in 0..20 {
            play.pass(SECOND);
            let refresh = play.proof_off(ahead);
            play.receive(at(A), &refresh);
        }
        assert_eq!(play.accepted(), 22);
        let lost = play.proof_off(ahead);
        play.receive(at(A), &lost);
        let mut play = killed(play, 1);
        for packet in [refresh, lost] {
            play.receive(at(STRANGER), &packet);
        }
        assert_eq!((play.accepted(), play.rejected()), (0, 2), "{ahead}");
    }
}

#[test]
fn after_a_clean_end_only_replays_are_refused() {
    let mut play = serving(Memory::default());
    let first = play.proof();
    play.receive(at(A), &first);
    play.pass(5 * SECOND);
    let (refresh, held_back) = (play.proof(), play.proof());
    play.receive(at(A), &refresh);
    play.end();
    let mut again = killed(play, 0);
    again.receive(at(STRANGER), &refresh);
    assert_eq!(again.refused(Reject::Replayed), 1);
    again.receive(at(B), &held_back);
    assert_eq!(again.accepted(), 1);
}

#[test]
fn every_key_has_its_own_memory() {
    let mut memory = Memory::default();
    let packet = |seed| key(seed).packet(START, [1, 2, 3, 4]);
    let with = |config: Server, memory: &Memory, payload: &[u8]| {
        let config = Config::from(config);
        let mut play = Play::start(config, FakeHost::new(), memory.clone());
        play.receive(at(A), payload);
        (play.accepted(), play.refused(Reject::Replayed), play.memory)
    };
    let token = || {
        let mut config = server(None);
        config.policy.proof = Proof::Token(ipipou::auth::Token::new(b"token".to_vec()).unwrap());
        config
    };
    for (config, payload) in [
        (server_of(1), packet(1)),
        (server_of(2), packet(2)),
        (token(), b"token".to_vec()),
        (server_of(3), packet(3)),
    ] {
        let (accepted, _, written) = with(config, &memory, &payload);
        assert_eq!(accepted, 1);
        memory = written;
    }
    for seed in [1, 2, 3] {
        let (accepted, replayed, written) = with(server_of(seed), &memory, &packet(seed));
        assert_eq!((accepted, replayed), (0, 1), "key {seed}");
        memory = written;
    }
}

/// A part of the second of the start was before it, whichever key it was that was in use then.
#[test]
fn after_a_loss_a_packet_of_the_same_second_is_refused_of_each_key() {
    let with = |seed, memory| {
        let mut play = Play::start(Config::from(server_of(seed)), FakeHost::new(), memory);
        play.receive(at(A), &key(seed).packet(START, [1, 2, 3, 4]));
        assert_eq!((play.accepted(), play.refused(Reject::OlderThanStart)), (0, 1), "key {seed}");
        play.memory
    };
    let memory = with(1, Memory::lost());
    let memory = with(2, memory);
    with(3, memory);
}

// -- room for many --------------------------------------------------------------------------

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
fn who_sends_from_ever_other_inner_addresses_causes_a_write_a_second_at_most() {
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
