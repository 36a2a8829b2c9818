//! What is remembered: by whom a packet was accepted, in which order that is written, and what a
//! restart makes of it.

use ipipou::auth::Reject;

use super::*;
use ipipou::engine::config::LearnConfig;

pub const A: &str = "198.51.100.7:4500";
pub const B: &str = "198.51.100.8:4501";
pub const STRANGER: &str = "192.0.2.66:1";
pub const SECOND: Duration = Duration::from_secs(1);
pub const YEAR: i64 = 31_536_000;

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

pub fn serving(memory: Memory) -> Play {
    Play::start(Config::from(server(None)), FakeHost::new(), memory)
}

pub fn learning(limit: usize) -> Server {
    let mut config = server(None);
    config.tunnel.inner = "10.9.0.1".parse().unwrap();
    config.tunnel.inner_peer = "10.9.0.0/16".parse().unwrap();
    config.learn = Some(LearnConfig { lifetime: 60 * SECOND, limit });
    config
}

pub fn learner(limit: usize, memory: Memory) -> Play {
    Play::start_on(Datapath::Tun, Config::from(learning(limit)), FakeHost::new(), memory)
}

/// Starts again after a kill, `later`, with what was on disk.
pub fn killed(play: Play, later: u64) -> Play {
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
    /// A packet whose sender's clock is off by this many seconds.
    pub fn proof_off(&mut self, seconds: i64) -> Vec<u8> {
        self.skew += seconds;
        let proof = self.proof();
        self.skew -= seconds;
        proof
    }

    pub fn accepted(&self) -> u64 {
        self.engine.counters().accepted
    }

    pub fn refused(&self, reason: Reject) -> u64 {
        self.engine.counters().rejected.get(&reason).copied().unwrap_or(0)
    }

    pub fn remotes(&self) -> Vec<SocketAddr> {
        self.host.found.userspace.forwarding.remotes.keys().copied().collect()
    }
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
