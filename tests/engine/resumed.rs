//! A server with the userspace datapath that was killed: the next one goes on with its sessions, and with no
//! other.

use super::hub::{SEED, entry, guest, hub_on, peers, place, stopped, stopped_on};
use super::situations::SECOND;
use super::*;

/// As `LIFETIME` of the peers, which say nothing else.
const LEASE: Duration = Duration::from_secs(180);

/// A server that is asked what its sessions are, and has these peers.
fn asked(text: &str) -> Play {
    next(stopped(text, FakeHost::new()), Vec::new(), Duration::ZERO)
}

fn next(mut play: Play, left: Vec<ResumableSession>, now: Duration) -> Play {
    play.now = now;
    play.engine.resume_sessions(left);
    play.read();
    play.read();
    play
}

/// The next process, after the last one was killed, and some time; it has these peers.
fn killed(play: Play, later: Duration, text: &str) -> Play {
    killed_then(play, later, |host| stopped(text, host))
}

fn killed_then(play: Play, later: Duration, again: impl Fn(FakeHost) -> Play) -> Play {
    let Play { mut host, now, drawn, kept, .. } = play;
    // The interface and the socket are there; whom to let in, the threads knew.
    host.found.userspace.forwarding.remotes.clear();
    let mut again = again(host);
    again.drawn = drawn + 1000;
    next(again, kept.into_values().collect(), now + later)
}

fn both() -> String {
    entry(7, "") + &entry(8, "")
}

#[test]
fn the_next_process_lets_in_who_was_connected_and_nobody_else() {
    let mut play = asked(&both());
    let mut seven = guest(7);
    play.visit(&mut seven, place(1));
    let before = play.let_in();
    let mut again = killed(play, SECOND, &both());
    assert_eq!(again.let_in(), before);
    assert_eq!(before.len(), 1);
    // A hello from there needs no proof, as before.
    again.visit(&mut seven, place(1));
    assert_eq!(again.let_in(), before);
    // The third process as well, and the fourth.
    let third = killed(again, SECOND, &both());
    assert_eq!(killed(third, SECOND, &both()).let_in(), before);
}

#[test]
fn who_is_let_in_without_a_hello_is_connected_since_then() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let mut again = killed(play, SECOND, &both());
    let now = again.now.as_secs() + START;
    assert_eq!(since(&mut again), [Some(now), None]);
    // That it moves is no news of its coming.
    again.visit(&mut guest(7), place(2));
    assert_eq!(again.let_in().len(), 1);
    assert!(!again.log.iter().any(|line| line.contains("is connected, at")), "{:?}", again.log);
}

#[test]
fn whose_link_is_taken_over_is_connected_since_then() {
    let mut play = hub_on(Datapath::Kernel, &both());
    play.visit(&mut guest(7), place(1));
    let mut again = stopped_on(Datapath::Kernel, SEED, &both(), play.host);
    again.read();
    again.read();
    assert_eq!(since(&mut again), [Some(START), None]);
}

/// The link does not tell when its lease ends, nor by which keys its peer came in.
#[test]
fn a_link_that_is_taken_over_has_one_lease_from_then() {
    for seed in [SEED, [8; 32]] {
        let mut play = hub_on(Datapath::Kernel, &both());
        play.visit(&mut guest(7), place(1));
        play.pass(LEASE / 2);
        let mut again = stopped_on(Datapath::Kernel, seed, &both(), play.host);
        again.now = play.now;
        again.read();
        again.read();
        again.pass(LEASE - SECOND);
        assert_eq!(again.members_carried(), [place(1).into()]);
        again.pass(2 * SECOND);
        assert_eq!(again.members_carried(), []);
    }
}

fn since(play: &mut Play) -> Vec<Option<u64>> {
    let now = play.moment();
    play.engine.members(&now).unwrap().map(|member| member.since).collect()
}

#[test]
fn a_lease_is_not_longer_because_processes_were_killed() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let mut again = killed(play, LEASE / 2, &both());
    assert_eq!(again.let_in().len(), 1);
    again.pass(LEASE / 2 - 2 * SECOND);
    assert_eq!(again.let_in().len(), 1);
    let again = killed(again, SECOND, &both());
    assert_eq!(again.let_in().len(), 1);
    let mut again = killed(again, Duration::ZERO, &both());
    again.pass(2 * SECOND);
    assert_eq!(again.let_in(), []);
    assert_eq!(killed(again, Duration::ZERO, &both()).let_in(), []);
}

/// A wireless network card, or a lease of DHCP that is renewed.
#[test]
fn sessions_wait_for_an_uplink_that_is_away_as_long_as_their_leases_last() {
    for (away, remains) in [(LEASE / 2, true), (LEASE, false)] {
        let mut play = asked(&both());
        play.visit(&mut guest(7), place(1));
        let before = play.let_in();
        let with_uplink = play.host.found.clone();
        play.host.remove_interface("eth0");
        let mut again = killed(play, SECOND, &both());
        assert_eq!(again.let_in(), []);
        again.pass(away);
        assert_eq!(again.engine.changed_sessions().map(|changed| changed.count()), None);
        let userspace = again.host.found.userspace.clone();
        again.host.found = Found { userspace, ..with_uplink };
        again.read();
        again.read();
        assert_eq!(again.let_in() == before, remains);
    }
}

#[test]
fn links_wait_for_an_uplink_that_is_away() {
    let mut play = hub_on(Datapath::Kernel, &both());
    play.visit(&mut guest(7), place(1));
    let with_uplink = play.host.found.clone();
    play.host.remove_interface("eth0");
    let mut again = stopped_on(Datapath::Kernel, SEED, &both(), play.host);
    again.read();
    again.read();
    again.host.found = with_uplink;
    again.read();
    again.read();
    assert_eq!(again.members_carried(), [place(1).into()]);
    let removed = again.applied.iter().any(|step| step.starts_with("remove ipipou0-"));
    assert!(!removed, "{:?}", again.applied);
}

#[test]
fn a_lease_that_is_over_meanwhile_is_over() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    assert_eq!(killed(play, LEASE, &both()).let_in(), []);
}

#[test]
fn a_lease_that_files_made_shorter_is_as_they_say() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let mut again = killed(play, SECOND, &(entry(7, "lifetime = \"30s\"") + &entry(8, "")));
    again.pass(29 * SECOND);
    assert_eq!(again.let_in().len(), 1);
    again.pass(2 * SECOND);
    assert_eq!(again.let_in(), []);
}

#[test]
fn who_left_moved_was_kicked_or_taken_out_is_not_where_it_was() {
    let all = both() + &entry(9, "") + &entry(10, "");
    let mut play = asked(&all);
    let (mut seven, mut eight) = (guest(7), guest(8));
    play.visit(&mut seven, place(1));
    play.visit(&mut eight, place(2));
    play.visit(&mut guest(9), place(3));
    play.visit(&mut guest(10), place(4));
    assert_eq!(play.let_in().len(), 4);
    play.handle(Event::Kick("p9".parse().unwrap()));
    play.visit(&mut eight, place(5));
    play.handle(Event::Peers(peers(&(both() + &entry(9, "")))));
    let again = killed(play, SECOND, &all);
    let remotes: Vec<_> = again.let_in().into_iter().map(|(remote, _)| remote).collect();
    assert_eq!(remotes, [place(1).into(), place(5).into()]);
}

#[test]
fn files_that_changed_meanwhile_say_who_may_come_in_and_what_it_has() {
    let mut play = asked(&(both() + &entry(9, "")));
    for number in [7, 8, 9] {
        play.visit(&mut guest(number), place(number));
    }
    let other_key = entry(9, "").replace("KEY9", "KEY10");
    let moved = entry(8, "").replace("10.8.0.8", "10.8.0.18");
    let again = killed(play, SECOND, &(entry(7, "enabled = false") + &moved + &other_key));
    assert_eq!(again.let_in(), [(place(8).into(), vec!["10.8.0.18/32".to_owned()])]);
}

#[test]
fn a_secret_that_was_exchanged_meanwhile_ends_the_session() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    play.visit(&mut guest(8), place(2));
    let seven = entry(7, "secret-file = \"/other\"");
    let again = killed(play, SECOND, &(seven + &entry(8, "")));
    let remotes: Vec<_> = again.let_in().into_iter().map(|(remote, _)| remote).collect();
    assert_eq!(remotes, [place(2).into()]);
}

#[test]
fn a_server_with_another_key_takes_over_nobody() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let again = killed_then(play, SECOND, |host| stopped_on(Datapath::Tun, [8; 32], &both(), host));
    assert_eq!(again.let_in(), []);
}

#[test]
fn sessions_without_the_interface_are_not_taken_over() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let kept = play.kept.into_values().collect();
    let again = next(stopped(&both(), FakeHost::new()), kept, SECOND);
    assert_eq!(again.let_in(), []);
    assert!(again.kept.is_empty());
}

#[test]
fn a_list_that_begins_again_has_all_sessions() {
    let mut play = asked(&both());
    play.visit(&mut guest(7), place(1));
    let before = std::mem::take(&mut play.kept);
    // Part of it was lost, and somebody comes.
    play.engine.tell_all_sessions();
    play.visit(&mut guest(8), place(2));
    assert_eq!(play.kept.len(), 2);
    assert!(before.iter().all(|(id, session)| play.kept.get(id) == Some(session)));
}

#[test]
fn nothing_is_told_unless_it_is_asked_for() {
    let mut play = next(stopped(&both(), FakeHost::new()), Vec::new(), Duration::ZERO);
    play.visit(&mut guest(7), place(1));
    assert_eq!(play.kept.len(), 1);
    let mut silent = stopped(&both(), FakeHost::new());
    silent.read();
    silent.visit(&mut guest(7), place(1));
    assert_eq!((silent.let_in().len(), silent.kept.len()), (1, 0));
}

#[test]
fn a_server_whose_interface_comes_late_tells_its_sessions() {
    let mut host = FakeHost::new();
    host.remove_interface("eth0");
    let mut play = next(stopped(&both(), host), Vec::new(), Duration::ZERO);
    play.host = FakeHost::new();
    play.read();
    play.read();
    play.visit(&mut guest(7), place(1));
    assert_eq!((play.let_in().len(), play.kept.len()), (1, 1));
}
