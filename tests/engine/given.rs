//! A client whose inner addresses come from its server (`--tunl-ip auto`).

use ipipou::engine::control::Allowed;

use super::servers::{BOTH, Scene, config, host_that_reaches, place};
use super::situations::SECOND;
use super::*;

fn config_that_asks() -> Config {
    let mut config = config(1);
    config.tunnel.inner = std::net::Ipv4Addr::UNSPECIFIED;
    config.tunnel.inner_peer = std::net::Ipv4Addr::UNSPECIFIED.into();
    config.tunnel.inner_from_server = true;
    config.tunnel.gateway.routes = vec![net("192.168.7.0/24"), net("10.8.0.0/24")];
    config
}

fn scene(datapath: Datapath, servers: usize) -> Scene {
    Scene::of(datapath, config_that_asks(), host_that_reaches([place(0)]), servers)
}

/// The addresses of the tunnel's interface, and the routes into it.
fn inside(scene: &Scene) -> (Vec<String>, Vec<String>) {
    let found = &scene.play.host.found;
    let interface = found.interfaces.iter().find(|i| i.name == "ipipou0").unwrap();
    let on_link = found.addresses.iter().filter(|a| a.interface == interface.index);
    let mut routes: Vec<_> = found.routes.iter().map(ToString::to_string).collect();
    routes.sort();
    (on_link.map(|address| address.value.to_string()).collect(), routes)
}

fn hear_again(scene: &mut Scene) {
    scene.play.handle(Event::ReauthRequested);
    scene.deliver();
    scene.play.read();
    scene.play.read();
}

#[test]
fn there_is_no_inner_address_and_no_route_before_the_server_gives_one() {
    for datapath in BOTH {
        let mut alone = scene(datapath, 0);
        alone.pass(10 * SECOND);
        assert_eq!(inside(&alone), (vec![], vec![]), "{datapath:?}");
        assert_eq!(alone.told("no address inside the tunnel yet"), 1);
        assert!(!alone.play.applied.iter().any(|step| step.contains("0.0.0.0 ")));

        let mut scene = scene(datapath, 1);
        scene.pass(10 * SECOND);
        let (addresses, routes) = inside(&scene);
        assert_eq!(addresses, ["10.8.0.7/24"], "{datapath:?}");
        // What the address leads to needs no route.
        let [route] = &routes[..] else { panic!("{routes:?}") };
        assert!(route.contains("192.168.7.0/24"), "{route}");
        let source = scene.play.host.found.routes.first().unwrap().source;
        assert_eq!(source, Some("10.8.0.7".parse().unwrap()));
        assert_eq!(scene.told("our address inside the tunnel, from the server: 10.8.0.7/24"), 1);
        assert_eq!(scene.play.engine.counters().repaired, 0);
        scene.pass(3600 * SECOND);
        assert_eq!(scene.told("our address inside"), 1, "it is said once");
    }
}

#[test]
fn another_address_is_followed_without_another_interface() {
    for datapath in BOTH {
        let mut scene = scene(datapath, 1);
        scene.pass(10 * SECOND);
        let applied = scene.play.applied.len();
        scene.servers[0].know(Allowed::Yes, &["10.9.0.8/16"]);
        hear_again(&mut scene);
        let (addresses, routes) = inside(&scene);
        assert_eq!(addresses, ["10.9.0.8/16"], "{datapath:?}");
        assert_eq!(routes.len(), 2, "{routes:?}");
        let steps = scene.play.applied[applied..].join("\n");
        assert!(!steps.contains("create") && !steps.contains("change ipipou0"), "{steps}");
        assert_eq!(scene.play.engine.counters().repaired, 0, "{steps}");
        // Another one of the same network, too.
        scene.servers[0].know(Allowed::Yes, &["10.9.0.9/16"]);
        hear_again(&mut scene);
        assert_eq!(inside(&scene).0, ["10.9.0.9/16"]);
        scene.play.end();
        assert!(!scene.play.host.found.interfaces.iter().any(|i| i.name == "ipipou0"));
    }
}

#[test]
fn ipv6_is_taken_where_it_is_carried() {
    for datapath in BOTH {
        let mut scene = scene(datapath, 1);
        scene.servers[0].know(Allowed::Yes, &["10.8.0.7/24", "fd08::7/64"]);
        hear_again(&mut scene);
        let (addresses, _) = inside(&scene);
        match datapath {
            Datapath::Kernel => assert_eq!(addresses, ["10.8.0.7/24"]),
            Datapath::Tun => assert_eq!(addresses, ["10.8.0.7/24", "fd08::7/64"]),
        }
    }
}

#[test]
fn addresses_that_no_host_can_have_are_not_taken() {
    for given in ["0.0.0.0/8", "255.255.255.255/32", "127.0.0.1/8", "224.0.0.1/8", "10.0.0.1/7"] {
        let mut scene = scene(Datapath::Tun, 1);
        scene.servers[0].know(Allowed::Yes, &["10.8.0.7/24"]);
        hear_again(&mut scene);
        scene.servers[0].know(Allowed::Yes, &[given, "fe80::1/64", "::1/128"]);
        hear_again(&mut scene);
        assert_eq!(inside(&scene).0, ["10.8.0.7/24"], "{given}: the last good one stays");
        assert_eq!(scene.told("the server gives us no address"), 1, "{given}");
    }
}

#[test]
fn a_network_around_the_server_does_not_lead_to_it() {
    let mut scene = scene(Datapath::Kernel, 1);
    scene.servers[0].know(Allowed::Yes, &["198.51.100.200/24"]);
    hear_again(&mut scene);
    assert_eq!(inside(&scene).0, ["198.51.100.200/32"]);
}

#[test]
fn a_restart_begins_with_the_address_that_was_given_last() {
    for datapath in BOTH {
        let mut scene = scene(datapath, 1);
        scene.pass(10 * SECOND);
        let memory = scene.play.memory.clone();
        assert_eq!(memory.inner, [net("10.8.0.7/24")]);
        let mut again = Play::start_on(
            datapath,
            config_that_asks(),
            host_that_reaches([place(0)]),
            memory.clone(),
        );
        again.read();
        let steps = again.applied.join("\n");
        assert!(steps.contains("add 10.8.0.7/24 to ipipou0"), "{steps}");
        // A tunnel that is configured does not look there.
        let again = Play::start_on(datapath, config(1), FakeHost::new(), memory);
        assert!(again.applied.join("\n").contains("add 172.28.0.0 peer 172.28.0.1"));
    }
}
