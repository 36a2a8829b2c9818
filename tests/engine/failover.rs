//! A client with several servers, while something keeps it busy that must not keep it from the next one,
//! or that must not bring it back to the first one early.

use std::net::IpAddr;

use ipipou::engine::control::Allowed;
use ipipou::wire::control::{Hello, HelloKind};

use super::given::config_that_asks_one_of;
use super::servers::{BOTH, Scene, TICK, config, host_that_reaches, place};
use super::situations::SECOND;
use super::*;

/// A client that is connected to its first server, which is gone now.
fn outage(servers: usize) -> Scene {
    let mut scene = Scene::new(Datapath::Tun, servers);
    scene.pass(60 * SECOND);
    assert!(scene.is_at(0));
    scene.servers[0].is_alive = false;
    scene
}

/// Seconds until the client is at a server, while an event comes again and again.
fn seconds_with(scene: &mut Scene, event: &Event<'_>, every: Duration, number: usize) -> f64 {
    let begin = scene.play.now;
    while scene.play.now - begin < 120 * SECOND {
        scene.play.handle(event.clone());
        scene.deliver();
        let next = scene.play.now + every;
        while scene.play.now < next {
            if scene.is_at(number) {
                return (scene.play.now - begin).as_secs_f64();
            }
            scene.pass(TICK.min(next - scene.play.now));
        }
    }
    panic!("not at {number}: {:?}", scene.play.log);
}

#[test]
fn pings_of_a_silent_server_do_not_keep_a_client_from_the_next_one() {
    for millis in [1000, 1500, 2000, 3500] {
        let mut scene = outage(2);
        let every = Duration::from_millis(millis);
        let seconds = seconds_with(&mut scene, &Event::Ping(0), every, 1);
        assert!((2.0..=5.0).contains(&seconds), "every {every:?}: {seconds}");
        assert_eq!(scene.told("no answer from 198.51.100.0:10000"), 1);
    }
}

#[test]
fn pings_in_a_long_outage_neither_add_hellos_to_other_servers_nor_stop_the_rounds() {
    let mut scene = outage(2);
    scene.servers[1].is_alive = false;
    scene.pass(600 * SECOND);
    let told = scene.told("asking");
    for _ in 0..100 {
        scene.play.handle(Event::Ping(0));
        scene.deliver();
        scene.pass(2 * SECOND);
    }
    assert_eq!(scene.told("asking"), told, "no round begins again");
    scene.servers[1].is_alive = true;
    let seconds = seconds_with(&mut scene, &Event::Ping(0), 2 * SECOND, 1);
    assert!(seconds <= 70.0, "{seconds}");
}

#[test]
fn news_without_end_hold_a_client_up_once() {
    for millis in [10, 200, 900, 2000] {
        let mut scene = outage(2);
        let every = Duration::from_millis(millis);
        let seconds = seconds_with(&mut scene, &Event::ReauthRequested, every, 1);
        assert!((2.0..=7.0).contains(&seconds), "every {every:?}: {seconds}");
    }
}

#[test]
fn news_without_end_do_not_hide_that_nobody_answers() {
    let mut scene = outage(2);
    scene.servers[1].is_alive = false;
    for _ in 0..150 {
        scene.play.handle(Event::ReauthRequested);
        scene.pass(2 * SECOND);
    }
    assert_eq!(scene.told("not connected: no answer"), 1);
}

#[test]
fn hellos_that_cannot_be_sent_do_not_keep_a_client_from_the_next_server() {
    for datapath in BOTH {
        let mut scene = Scene::new(datapath, 2);
        scene.pass(10 * SECOND);
        scene.play.unsendable = [place(0).into()].into();
        scene.play.handle(Event::ReauthRequested);
        let seconds = scene.seconds_until_at(1, 20);
        assert!((2.0..=5.0).contains(&seconds), "{seconds}");
        // The first one is asked now and then, which fails, and moves nothing.
        scene.pass(300 * SECOND);
        assert!(scene.is_at(1));
        assert_eq!(scene.told("asking"), 1);
    }
}

#[test]
fn a_client_whose_host_refuses_every_hello_goes_through_its_servers_and_finds_the_one_that_it_may_reach()
 {
    let mut scene = Scene::new(Datapath::Tun, 3);
    scene.pass(10 * SECOND);
    scene.play.unsendable = [0, 1, 2].map(|number| place(number).into()).into();
    scene.pass(600 * SECOND);
    assert_eq!(scene.told("not connected: no answer"), 1);
    scene.play.unsendable.remove(&place(2).into());
    let seconds = scene.seconds_until_at(2, 120);
    assert!(seconds <= 90.0, "{seconds}");
}

#[test]
fn a_client_that_changed_over_for_want_of_a_way_goes_back_after_a_minute_of_answers() {
    let mut scene = Scene::new(Datapath::Tun, 2);
    scene.pass(600 * SECOND);
    assert!(scene.is_at(0));
    let first = IpAddr::from(*place(0).ip());
    let way = scene.play.host.found.other_ways.remove(&first).unwrap();
    scene.play.read();
    scene.seconds_until_at(1, 10);
    assert_eq!(scene.told("there is no way to 198.51.100.0:10000"), 1);
    scene.play.host.found.other_ways.insert(first, way);
    scene.play.read();
    scene.pass(55 * SECOND);
    assert!(scene.is_at(1), "{:?}", scene.play.log);
    scene.seconds_until_at(0, 40);
    assert_eq!(scene.told("198.51.100.0:10000, the first server, has answered for"), 1);
}

#[test]
fn time_asleep_does_not_count_as_time_of_answers() {
    for asleep in [30, 7200] {
        let mut scene = outage(2);
        scene.seconds_until_at(1, 40);
        let now = scene.play.now;
        scene.servers[0].restart(now);
        scene.pass(35 * SECOND);
        scene.play.sleep(asleep * SECOND);
        scene.deliver();
        scene.pass(50 * SECOND);
        assert!(scene.is_at(1), "{asleep}: {:?}", scene.play.log);
        scene.seconds_until_at(0, 60);
    }
}

#[test]
fn one_lost_answer_does_not_restart_the_count() {
    let mut scene = outage(2);
    scene.seconds_until_at(1, 40);
    let now = scene.play.now;
    scene.servers[0].restart(now);
    let before = scene.servers[0].heard;
    while scene.servers[0].heard < before + 3 {
        scene.pass(SECOND);
    }
    scene.servers[0].is_alive = false;
    scene.pass(13 * SECOND);
    scene.servers[0].is_alive = true;
    let seconds = scene.seconds_until_at(0, 120);
    assert!(seconds < 45.0, "{seconds}");
}

#[test]
fn another_inner_address_of_the_next_server_is_planned_once() {
    for datapath in BOTH {
        let host = host_that_reaches([place(0), place(1)]);
        let mut scene = Scene::of(datapath, config_that_asks_one_of(2), host, 2);
        scene.servers[1].know(Allowed::Yes, &["10.9.0.8/16"]);
        scene.pass(60 * SECOND);
        let applied = scene.play.applied.len();
        scene.servers[0].is_alive = false;
        scene.seconds_until_at(1, 40);
        scene.pass(10 * SECOND);
        let steps = &scene.play.applied[applied..];
        let unlike: BTreeSet<_> = steps.iter().collect();
        assert_eq!(unlike.len(), steps.len(), "{datapath:?}: {steps:?}");
        assert!(steps.iter().any(|step| step.contains("add 10.9.0.8/16")), "{steps:?}");
        assert!(!scene.play.log.iter().any(|line| line.starts_with("refused")));
        assert_eq!(scene.play.engine.counters().repaired, 0, "{steps:?}");
    }
}

/// The goodbyes to a server, each by how many steps had been applied before it.
fn goodbyes_to(scene: &Scene, number: usize) -> Vec<usize> {
    let sent = scene.play.sent.iter().zip(&scene.play.steps_before);
    let to = sent.filter(|(packet, _)| packet.to == place(number).into());
    let goodbye = |payload: &[u8]| Hello::parse(payload).unwrap().fields.kind == HelloKind::Bye;
    to.filter(|(packet, _)| goodbye(&packet.payload)).map(|(_, steps)| *steps).collect()
}

#[test]
fn a_server_gets_a_goodbye_once_data_goes_to_the_next() {
    for datapath in BOTH {
        let mut scene = outage(2);
        if datapath == Datapath::Kernel {
            scene = Scene::new(datapath, 2);
            scene.pass(60 * SECOND);
            scene.servers[0].is_alive = false;
        }
        let before = scene.play.applied.len();
        scene.seconds_until_at(1, 40);
        scene.pass(SECOND);
        let moved = 1
            + before
            + scene.play.applied[before..]
                .iter()
                .position(|step| step.contains("198.51.100.1:10000") || step.contains("forward"))
                .unwrap();
        let [steps] = goodbyes_to(&scene, 0)[..] else { panic!("{:?}", scene.play.log) };
        assert!(steps >= moved, "{datapath:?}: {steps}, {:?}", scene.play.applied);
    }
}

#[test]
fn a_goodbye_waits_for_a_host_that_refuses_to_send_data_elsewhere() {
    let mut scene = Scene::new(Datapath::Kernel, 2);
    scene.pass(60 * SECOND);
    scene.servers[0].is_alive = false;
    scene.play.host.broken = "change ipipou0";
    scene.pass(60 * SECOND);
    assert_eq!(goodbyes_to(&scene, 0), [] as [usize; 0]);
    scene.play.host.broken = "";
    scene.pass(10 * SECOND);
    assert!(scene.is_at(1));
    assert_eq!(goodbyes_to(&scene, 0).len(), 1);
}

#[test]
fn a_ping_of_the_server_that_was_in_use_does_not_cost_its_goodbye() {
    let mut scene = outage(2);
    while scene.told("asking 198.51.100.1:10000") == 0 {
        scene.play.handle(Event::Deadline);
        scene.play.pass(TICK);
    }
    scene.play.handle(Event::Ping(0));
    scene.deliver();
    scene.seconds_until_at(1, 10);
    scene.pass(SECOND);
    assert_eq!(goodbyes_to(&scene, 0).len(), 1);
}

#[test]
fn servers_of_one_second_are_asked_no_more_often_than_those_of_thirty() {
    let mut scene = Scene::of(Datapath::Tun, config(1), host_that_reaches([place(0)]), 1);
    scene.servers[0].lease(SECOND);
    scene.pass(60 * SECOND);
    let sent = scene.play.sent.len();
    scene.pass(600 * SECOND);
    let hellos = scene.play.sent.len() - sent;
    assert!((50..=150).contains(&hellos), "{hellos} hellos in ten minutes");
}
