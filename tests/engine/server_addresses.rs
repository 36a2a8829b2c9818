//! A client of control protocol v2 whose server's name stands for several addresses, of which one is silent: its
//! hellos show that, whether data is sent or not.

use ipipou::engine::config::PeerSource;

use super::given::config_that_asks_one_of;
use super::servers::{BOTH, Scene, config, host_that_reaches, place};
use super::situations::SECOND;
use super::*;

const DEAD: &str = "198.51.100.9";

fn dead() -> SocketAddrV4 {
    SocketAddrV4::new(DEAD.parse().unwrap(), 10000)
}

/// The first server has a name, which stands for an address where nobody is and for that of the played one.
fn scene(datapath: Datapath, mut config: Config, servers: usize) -> Scene {
    let PeerSource::One(peer) = &mut config.peers else { panic!() };
    peer.at.as_mut().unwrap().host = HostName::Name("server.example".into());
    let reached = (0..servers.max(1)).map(place).chain([dead()]);
    Scene::of(datapath, config, host_that_reaches(reached), servers)
}

fn look_up(scene: &mut Scene, addresses: &[SocketAddrV4]) {
    let addresses = addresses.iter().map(|address| (*address.ip()).into()).collect();
    scene.play.handle(Event::Resolved { server: 0, addresses });
    scene.play.read();
    scene.deliver();
}

/// It takes less than 40 seconds.
fn pass_until_at_the_other(scene: &mut Scene) {
    let begin = scene.play.now;
    while scene.remote() != Some(dead().into()) {
        assert!(scene.play.now - begin < 40 * SECOND, "{:?}", scene.play.log);
        scene.pass(SECOND);
    }
}

#[test]
fn the_next_address_is_asked_though_no_data_is_sent() {
    for datapath in BOTH {
        for config in [config(1), config_that_asks_one_of(1)] {
            let mut scene = scene(datapath, config, 1);
            look_up(&mut scene, &[dead(), place(0)]);
            assert_eq!(scene.remote(), Some(dead().into()));
            let seconds = scene.seconds_until_at(0, 20);
            assert!((2.0..=9.0).contains(&seconds), "{datapath:?}: {seconds}");
            assert_eq!(scene.told("trying 198.51.100.0"), 1, "{:?}", scene.play.log);
            // It answers, and is kept: at rest, and when the name is looked up again.
            scene.pass(300 * SECOND);
            look_up(&mut scene, &[dead(), place(0)]);
            scene.pass(300 * SECOND);
            assert!(scene.is_at(0));
            assert_eq!(scene.told("trying"), 1);
            assert_eq!(scene.play.engine.counters().repaired, 0, "that is not a repair");
        }
    }
}

#[test]
fn an_address_that_goes_while_the_tunnel_is_at_rest_is_left() {
    for datapath in BOTH {
        let mut scene = scene(datapath, config(1), 1);
        look_up(&mut scene, &[place(0), dead()]);
        scene.pass(60 * SECOND);
        assert!(scene.is_at(0));
        scene.servers[0].at = [dead().into()].into();
        pass_until_at_the_other(&mut scene);
        // Where nobody answers anywhere, all are asked ever more rarely.
        scene.servers[0].is_alive = false;
        let before = scene.told("trying");
        scene.pass(3600 * SECOND);
        let moves = scene.told("trying") - before;
        assert!((40..=70).contains(&moves), "{moves}");
    }
}

/// It lets us in by a hello, and says nothing to it. Each address is tried once, and the first is kept.
#[test]
fn an_old_server_is_kept_while_the_tunnel_is_at_rest() {
    for datapath in BOTH {
        let mut scene = scene(datapath, config(1), 0);
        look_up(&mut scene, &[place(0), dead()]);
        scene.pass(3600 * SECOND);
        assert_eq!(scene.remote(), Some(place(0).into()));
        assert_eq!(scene.told("trying"), 2, "{datapath:?}");
        // What is sent and not answered counts as ever.
        for _ in 0..30 {
            scene.play.host.change("ipipou0", |interface| interface.traffic.tx_packets += 1);
            scene.pass(SECOND);
        }
        assert_eq!(scene.remote(), Some(dead().into()));
    }
}

/// One packet after the first hello that is lost does not keep us there.
#[test]
fn an_address_that_data_came_from_once_is_left() {
    for datapath in BOTH {
        let mut scene = scene(datapath, config(1), 1);
        look_up(&mut scene, &[place(0), dead()]);
        scene.pass(SECOND);
        assert!(scene.is_at(0));
        scene.servers[0].is_alive = false;
        scene.pass(35 * SECOND - Duration::from_millis(500));
        scene.play.host.change("ipipou0", |interface| interface.traffic.rx_packets += 1);
        pass_until_at_the_other(&mut scene);
    }
}

/// Data that comes in shows more than hellos that are lost.
#[test]
fn an_address_that_data_comes_from_is_kept() {
    for datapath in BOTH {
        let mut scene = scene(datapath, config(1), 1);
        look_up(&mut scene, &[place(0), dead()]);
        scene.pass(SECOND);
        scene.servers[0].is_alive = false;
        for _ in 0..100 {
            scene.play.host.change("ipipou0", |interface| interface.traffic.rx_packets += 1);
            scene.pass(SECOND);
        }
        assert_eq!(scene.remote(), Some(place(0).into()));
    }
}

#[test]
fn the_first_server_is_gone_back_to_at_whichever_address_it_answers() {
    for datapath in BOTH {
        let mut scene = scene(datapath, config(2), 2);
        look_up(&mut scene, &[dead(), place(0)]);
        scene.seconds_until_at(1, 20);
        let seconds = scene.seconds_until_at(0, 200);
        assert!(seconds > 60.0, "{seconds}");
        scene.pass(300 * SECOND);
        assert!(scene.is_at(0));
    }
}
