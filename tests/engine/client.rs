//! Clients: when they authenticate, and what they do without answers.

use ipipou::engine::host::{Admitted, RulesFound};

use super::host::OUTER;
use super::situations::{SECOND, calling, serving};
use super::*;

#[test]
fn a_client_makes_its_tunnel_and_authenticates() {
    let play = calling(None);
    assert_eq!(play.sent.len(), 1);
    assert_eq!(play.sent[0].from, outer_at("203.0.113.1:10000"));
    assert_eq!(play.sent[0].to, outer_at("203.0.113.9:10000"));
    assert!(play.sent[0].payload.len() == 73 && play.sent[0].payload[0] >= 0x80);
    assert!(play.applied.contains(
        &"create ipipou0 local 203.0.113.1 remote 203.0.113.9:10000 on interface 2".to_owned()
    ));
}

#[test]
fn a_client_that_cannot_send_does_not_loop() {
    let mut host = FakeHost::new();
    host.found.addresses.retain(|a| a.value.local != OUTER);
    let server = HostName::Name("server.example".into());
    let config = Config::from(client(server, Some(SECOND)));
    let mut play = Play::start(config, host, Memory::default());
    for _ in 0..2 {
        assert!(play.engine.next_deadline() > play.now, "a deadline that has come stays due");
        play.pass(60 * SECOND);
        assert!(play.sent.is_empty());
        play.handle(Event::Resolved { server: 0, addresses: vec!["203.0.113.9".parse().unwrap()] });
    }
    let missing = |r: &&Report| matches!(r, Report::OuterMissing(_));
    assert_eq!(play.reports.iter().filter(missing).count(), 1, "said once");
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.sent.len(), 1);
}

#[test]
fn a_client_without_an_outer_address_sends_nothing_until_it_has_one() {
    let mut play = calling(Some(7 * SECOND));
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    play.handle(Event::ReauthRequested);
    play.handle(Event::SendFailed);
    play.pass(60 * SECOND);
    assert_eq!(play.sent.len(), 1, "the first one");
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.sent.len(), 2, "once, and not for every time that it was due");
    play.pass(7 * SECOND);
    assert_eq!(play.sent.len(), 3);
}

#[test]
fn a_client_that_ends_sends_nothing_more() {
    let mut play = calling(Some(SECOND));
    play.end();
    let steps = play.applied.len();
    play.handle(Event::ReauthRequested);
    play.read();
    play.pass(10 * SECOND);
    assert_eq!((play.sent.len(), play.applied.len()), (1, steps));
}

#[test]
fn a_packet_that_could_not_be_sent_is_tried_again() {
    let mut play = calling(None);
    play.handle(Event::SendFailed);
    assert_eq!(play.sent.len(), 1);
    play.pass(SECOND);
    assert_eq!(play.sent.len(), 2);
}

#[test]
fn a_client_without_keepalive_tries_again_until_something_comes_back() {
    let mut play = calling(None);
    let mut tries = Vec::new();
    for second in 1..=1000 {
        play.pass(SECOND);
        if play.sent.len() > 1 + tries.len() {
            tries.push(second);
        }
    }
    assert_eq!(tries, [1, 3, 7, 15, 31, 63, 123], "an idle tunnel is left alone then");
    let said = |r: &&Report| matches!(r, Report::NothingBack(_));
    assert_eq!(play.reports.iter().filter(said).count(), 1);
    // It sends, and nothing comes.
    let traffic = |play: &mut Play, received, sent| {
        play.host.change("ipipou0", |interface| {
            interface.traffic.rx_packets += received;
            interface.traffic.tx_packets += sent;
        });
    };
    for _ in 0..10 {
        traffic(&mut play, 0, 1);
        play.pass(60 * SECOND);
    }
    assert_eq!(play.sent.len(), 8 + 10);
    // Something comes back; it is answered from now on.
    for _ in 0..10 {
        traffic(&mut play, 1, 1);
        play.pass(60 * SECOND);
    }
    assert_eq!(play.sent.len(), 8 + 10);
    // And at the start as well.
    let mut play = calling(None);
    play.pass(2 * SECOND);
    assert_eq!(play.sent.len(), 2);
    traffic(&mut play, 1, 0);
    play.pass(1000 * SECOND);
    assert_eq!(play.sent.len(), 2);
}

#[test]
fn a_client_authenticates_again_after_a_clock_change_or_a_resume() {
    for keepalive in [None, Some(27 * SECOND), Some(3600 * SECOND)] {
        let mut play = calling(keepalive);
        let answered = |play: &mut Play| {
            play.host.change_last(|interface| interface.traffic.rx_packets += 1);
        };
        answered(&mut play);
        play.pass(5 * SECOND);
        assert_eq!(play.sent.len(), 1, "{keepalive:?}");
        for (skew, packets) in [(2, 1), (3602, 2), (3601, 2), (1, 3)] {
            play.skew = skew;
            answered(&mut play);
            play.pass(3 * SECOND);
            assert_eq!(play.sent.len(), packets, "{keepalive:?}");
        }
        assert!(play.reports.contains(&Report::ClockJumped(3600)), "{:?}", play.reports);
    }
}

#[test]
fn a_client_with_a_long_keepalive_does_not_wait_for_it_when_nothing_comes_back() {
    let mut play = calling(Some(3600 * SECOND));
    play.pass(130 * SECOND);
    assert_eq!(play.sent.len(), 8);
    let mut play = calling(Some(27 * SECOND));
    play.pass(26 * SECOND);
    assert_eq!(play.sent.len(), 1);
}

#[test]
fn a_client_authenticates_again_behind_another_router() {
    let mut play = calling(None);
    for (router, packets) in [(None, 1), (Some("203.0.113.254"), 2), (Some("203.0.113.253"), 3)] {
        let way = play.host.found.way.as_mut().unwrap();
        way.router = router.map(|router| router.parse().unwrap());
        play.read();
        assert_eq!(play.sent.len(), packets, "{router:?}");
    }
    play.host.found.way = None;
    play.read();
    assert_eq!(play.sent.len(), 3);
}

#[test]
fn a_client_authenticates_regularly_and_on_request() {
    let mut play = calling(Some(27 * SECOND));
    play.pass(27 * 3 * SECOND);
    assert_eq!(play.sent.len(), 4);
    play.handle(Event::ReauthRequested);
    assert_eq!(play.sent.len(), 5);
}

#[test]
fn a_client_authenticates_again_from_a_new_address() {
    let mut play = calling(None);
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    assert_eq!(play.sent.len(), 2);
    assert_eq!(play.sent[1].from, outer_at("203.0.113.77:10000"));
}

fn seconds(payload: &[u8]) -> u64 {
    ipipou::wire::auth_packet::AuthPacket::parse(payload).unwrap().seconds
}

/// What a client that starts now, with this memory and this clock, puts in its first packet.
fn first_seconds(memory: &Memory, skew: i64) -> u64 {
    let shows = Shows { credential: Credential::Key(signer()), keepalive: None, server: None };
    seconds(&ipipou::engine::first_packet(&shows, memory, &moment(Duration::ZERO, skew, 1)))
}

#[test]
fn a_clients_time_never_goes_back() {
    let mut play = calling(Some(SECOND));
    play.pass(5 * SECOND);
    play.skew = -100_000_000;
    play.pass(5 * SECOND);
    let sent: Vec<_> = play.sent.iter().map(|out| seconds(&out.payload)).collect();
    assert!((11..=12).contains(&sent.len()), "{sent:?}");
    let later: Vec<_> = sent.windows(2).map(|two| two[1].checked_sub(two[0])).collect();
    assert!(later.iter().all(|step| *step == Some(1)), "strictly, and no faster: {sent:?}");
    // Nor across a restart with a clock that says 1970.
    assert!(first_seconds(&play.memory, -1_700_000_000) > *sent.last().unwrap());
}

#[test]
fn a_client_whose_clock_is_right_does_not_run_ahead_of_it() {
    let mut play = calling(Some(SECOND));
    play.pass(5 * SECOND);
    assert_eq!(seconds(&play.sent.last().unwrap().payload), START + 5);
    assert_eq!(first_seconds(&play.memory, 6), START + 6);
}

#[test]
fn nothing_is_sent_without_an_address_nor_after_the_end() {
    for keepalive in [None, Some(SECOND)] {
        let mut play = calling(keepalive);
        play.host.found.addresses.retain(|a| a.value.local != OUTER);
        play.read();
        play.handle(Event::ReauthRequested);
        play.pass(10 * SECOND);
        assert_eq!(play.sent.len(), 1, "there is no address");
        play.host.add_address(super::host::ETH0, OUTER, 24);
        play.read();
        assert_eq!(play.sent.len(), 2);
        play.end();
        play.now += 10 * SECOND;
        play.handle(Event::ReauthRequested);
        play.handle(Event::Deadline);
        play.read();
        assert_eq!(play.sent.len(), 2, "it has ended");
    }
}

#[test]
fn a_client_behind_nat_stays_connected_after_a_kill_of_its_server() {
    let foreign = "198.51.100.7:23456";
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(foreign), &proof);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown;
    let mut again = Play::start(Config::from(server(None)), left, play.memory);
    assert_eq!(again.host.admitted(), [Admitted::direct(at(foreign))].into());
    again.drawn = 1000;
    let proof = again.proof();
    again.receive(at(foreign), &proof);
    assert_eq!((again.engine.counters().accepted, again.engine.counters().moved), (1, 0));
}

#[test]
fn the_status_of_a_client_has_the_time_of_its_last_packet() {
    let server = HostName::Address("203.0.113.9".parse().unwrap());
    let keepalive = Some(Duration::from_secs(30));
    let config = Config::from(client(server, keepalive));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    assert_eq!(play.engine.status().last_authentication, Some(START));
    play.pass(Duration::from_secs(30));
    assert_eq!(play.engine.status().last_authentication, Some(START + 30));
}
