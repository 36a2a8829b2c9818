//! Clocks that are wrong, of servers and of clients: whom they shut out, and which times a client uses.

use ipipou::auth::Reject;
use proptest::prelude::*;

use super::memory::{A, B, SECOND, STRANGER, YEAR, killed, learner, serving};
use super::*;

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
