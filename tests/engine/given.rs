//! A client whose inner addresses come from its server (`--tunl-ip auto`).

use ipipou::engine::control::Allowed;
use ipipou::engine::host::InterfaceKind;

use super::servers::{BOTH, Scene, config, host_that_reaches, place};
use super::situations::SECOND;
use super::*;

fn config_that_asks() -> Config {
    config_that_asks_one_of(1)
}

pub fn config_that_asks_one_of(servers: usize) -> Config {
    let mut config = config(servers);
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
pub fn inside(scene: &Scene) -> (Vec<String>, Vec<String>) {
    let found = &scene.play.host.found;
    let interface = found.interfaces.iter().find(|i| i.name == "ipipou0").unwrap();
    let on_link = found.addresses.iter().filter(|a| a.interface == interface.index);
    let mut routes: Vec<_> = found.routes.iter().map(ToString::to_string).collect();
    routes.sort();
    (on_link.map(|address| address.value.to_string()).collect(), routes)
}

/// What the server says now is heard, and addresses may change again.
fn hear_again(scene: &mut Scene) {
    scene.pass(11 * SECOND);
    hear(scene);
}

fn hear(scene: &mut Scene) {
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
fn ipv6_that_goes_past_a_full_tunnel_is_told_of() {
    let mut config = config_that_asks();
    config.tunnel.gateway.mark = 0x6970_0000;
    config.tunnel.gateway.default_route = true;
    let mut scene = Scene::of(Datapath::Tun, config, host_that_reaches([place(0)]), 1);
    scene.pass(60 * SECOND);
    assert_eq!(scene.told("our address inside"), 1);
    assert_eq!(scene.told("IPv6 goes past the tunnel"), 1);
    scene.servers[0].know(Allowed::Yes, &["10.8.0.7/24", "fd08::7/64"]);
    hear_again(&mut scene);
    assert_eq!(scene.told("our address inside"), 2);
    assert_eq!(scene.told("IPv6 goes past the tunnel"), 1);
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
            Datapath::Kernel | Datapath::KernelShared => {
                assert_eq!(addresses, ["10.8.0.7/24"]);
            }
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

/// A client with two servers, after the first has given these.
pub fn given(datapath: Datapath, config: Config, addresses: &[&str]) -> Scene {
    let host = host_that_reaches([place(0), place(1)]);
    let mut scene = Scene::of(datapath, config, host, 2);
    give(&mut scene, addresses);
    scene
}

pub fn give(scene: &mut Scene, addresses: &[&str]) {
    scene.servers[0].know(Allowed::Yes, addresses);
    hear_again(scene);
}

pub fn two_servers() -> Config {
    Config { tunnel: config_that_asks().tunnel, ..config(2) }
}

/// Another network of the host, a router and a name server.
fn surround(scene: &mut Scene) {
    let host = &mut scene.play.host;
    host.add_interface("eth1", 77, InterfaceKind::Other);
    host.add_address(77, [192, 168, 1, 10].into(), 24);
    let ways = host.found.way.iter_mut().chain(host.found.other_ways.values_mut());
    ways.for_each(|way| way.router = Some([10, 1, 2, 3].into()));
    host.found.asked.insert([10, 99, 0, 53].into());
    for address in ["10.77.0.9", "10.77.3.9", "10.66.0.9"] {
        let network = if address.starts_with("10.77") { "10.77.0.0/16" } else { "0.0.0.0/0" };
        let route = (net(network), Some(host::ETH0));
        host.found.routed.insert(address.parse().unwrap(), Some(route));
    }
}

/// The same tunnel with what it remembers, on the same host.
pub fn restarted(scene: Scene, config: Config) -> Scene {
    let Scene { play, servers, .. } = scene;
    let mut again = Play::stopped(Datapath::Tun, config, play.host, play.memory);
    again.now = play.now;
    again.host.remove_interface("ipipou0");
    let mut scene = Scene { play: again, servers, delivered: 0 };
    scene.pass(SECOND);
    scene
}

#[test]
fn what_the_host_has_or_needs_is_not_taken_from_a_server() {
    let cases = [
        ("198.51.100.1/32", "packets of the tunnel itself go to or from 198.51.100.1"),
        ("203.0.113.1/32", "packets of the tunnel itself go to or from 203.0.113.1"),
        ("192.168.1.10/32", "another interface of this host has 192.168.1.10"),
        (
            "192.168.1.77/32",
            "another interface has the network 192.168.1.0/24; --route 192.168.1.77",
        ),
        ("10.1.2.3/32", "10.1.2.3 is the router on the way to the server"),
        ("10.99.0.53/24", "10.99.0.53 is a name server of this host"),
        ("10.77.0.9/32", "this host has a route to 10.77.0.0/16; --route 10.77.0.9/32 takes"),
        ("10.77.3.9/24", "this host has a route to 10.77.0.0/16; --route 10.77.3.0/24 takes"),
        ("8.8.8.8/8", "it is not for private use; --route 8.0.0.0/8 takes it nevertheless"),
        (
            "2001:db8::1/64",
            "it is not for private use; --route 2001:db8::/64 takes it nevertheless",
        ),
    ];
    for (address, why) in cases {
        let mut scene = given(Datapath::Tun, two_servers(), &["10.8.0.7/24"]);
        surround(&mut scene);
        give(&mut scene, &[address]);
        assert_eq!(inside(&scene).0, ["10.8.0.7/24"], "{address}: the last good one stays");
        scene.pass(3600 * SECOND);
        assert_eq!(scene.told(why), 1, "{address}: {:?}", scene.play.log);
        assert_eq!(scene.told("is not taken"), 1, "{address}");
        assert!(scene.is_at(0));
        // Nor after a restart, from a memory that has it.
        scene.play.memory.inner = vec![net(address)];
        scene.servers[0].know(Allowed::Yes, &[]);
        let mut scene = restarted(scene, two_servers());
        assert_eq!(inside(&scene).0, Vec::<String>::new(), "{address}");
        assert!(scene.told(why) >= 1, "{address}: {:?}", scene.play.log);
        scene.pass(60 * SECOND);
        assert!(scene.is_at(0), "{:?}", scene.play.log);
    }
}

#[test]
fn a_network_that_the_host_has_or_needs_is_left_out() {
    let cases = [
        (
            "192.168.0.5/16",
            "another interface has the network 192.168.1.0/24; --route 192.168.0.0/16",
        ),
        ("10.1.2.4/24", "10.1.2.3 is the router on the way to the server"),
        ("10.99.0.7/8", "is the router on the way"),
        ("10.99.0.7/24", "10.99.0.53 is a name server of this host"),
        ("172.16.0.1/8", "it is not for private use; --route 172.0.0.0/8 takes it nevertheless"),
    ];
    for (address, why) in cases {
        let mut scene = given(Datapath::Kernel, two_servers(), &[]);
        surround(&mut scene);
        give(&mut scene, &[address]);
        let alone = format!("{}/32", net(address).addr());
        assert_eq!(inside(&scene).0, [alone], "{address}");
        scene.pass(3600 * SECOND);
        assert_eq!(scene.told(why), 1, "{address}: {:?}", scene.play.log);
        assert_eq!(scene.told("taken without its network"), 1, "{address}");
        assert!(scene.is_at(0));
    }
}

#[test]
fn what_the_user_names_is_taken_even_from_another_network() {
    for datapath in BOTH {
        let mut config = two_servers();
        config.tunnel.gateway.routes =
            vec![net("192.0.2.0/24"), net("192.168.1.64/26"), net("2000::/3")];
        let mut scene = given(datapath, config, &[]);
        surround(&mut scene);
        give(&mut scene, &["192.0.2.7/24"]);
        assert_eq!(inside(&scene).0, ["192.0.2.7/24"], "{datapath:?}");
        give(&mut scene, &["192.168.1.77/26", "2001:db8::1/64"]);
        assert_eq!(
            inside(&scene).0,
            ["192.168.1.77/26"],
            "{datapath:?}: half of all addresses names none"
        );
        give(&mut scene, &["10.66.0.9/26"]);
        assert_eq!(inside(&scene).0, ["10.66.0.9/26"], "{datapath:?}: by the default route");
        give(&mut scene, &["192.168.1.77/26"]);
        give(&mut scene, &["192.168.1.10/26"]);
        assert_eq!(inside(&scene).0, ["192.168.1.77/26"], "{datapath:?}: it would be on two");
    }
}

#[test]
fn a_network_around_the_server_does_not_lead_to_it_and_leaves_the_client_its_ears() {
    for datapath in BOTH {
        let mut config = two_servers();
        config.tunnel.gateway.routes = vec![net("198.51.100.0/24"), net("198.51.100.128/25")];
        let mut scene = given(datapath, config.clone(), &["198.51.100.200/24"]);
        assert_eq!(inside(&scene).0, ["198.51.100.200/32"], "{datapath:?}");
        let routes = inside(&scene).1.join(", ");
        assert!(routes.contains("198.51.100.128/25"), "{routes}");
        let heard = scene.servers[0].heard;
        scene.pass(3600 * SECOND);
        assert!(scene.is_at(0) && scene.servers[0].heard > heard, "{:?}", scene.play.log);
        assert_eq!(scene.play.engine.counters().rejected.len(), 0);
        if datapath == Datapath::Tun {
            let mut scene = restarted(scene, config);
            scene.pass(120 * SECOND);
            assert_eq!(inside(&scene).0, ["198.51.100.200/32"]);
            assert!(scene.is_at(0), "{:?}", scene.play.log);
        }
    }
}

#[test]
fn halves_of_all_addresses_are_not_a_network_of_the_host() {
    let mut scene = given(Datapath::Kernel, two_servers(), &[]);
    let half = Some((net("0.0.0.0/1"), Some(host::ETH0)));
    scene.play.host.found.routed.insert("10.9.0.7".parse().unwrap(), half);
    give(&mut scene, &["10.9.0.7/24"]);
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"]);
}

/// What the server gives before a test has it give others.
pub const FIRST: [&str; 1] = ["10.8.0.7/24"];

fn add_tunnel_beside(scene: &mut Scene) {
    let host = &mut scene.play.host;
    host.add_interface("ipipou1", 78, InterfaceKind::Tun);
    host.change("ipipou1", |interface| interface.label = Some("made by ipipou".to_owned()));
    host.add_address(78, [10, 9, 0, 8].into(), 24);
}

/// A server that waits for the moment in which the other one is restarted would have its network, and
/// its server's address.
#[test]
fn the_network_of_another_tunnel_is_not_taken_while_that_is_restarted() {
    let mut scene = given(Datapath::Kernel, two_servers(), &[]);
    add_tunnel_beside(&mut scene);
    for address in ["10.9.0.7/24", "10.9.0.1/32", "10.9.0.77/8"] {
        give(&mut scene, &[address]);
        assert_eq!(inside(&scene).0, FIRST, "{address}");
    }
    assert_eq!(scene.told("10.9.0.7/24 is not taken: another tunnel of this host has had"), 1);
    let why =
        "of several that are given one network, the first to start has it; --route 10.9.0.0/24";
    assert_eq!(scene.told(why), 1, "{:?}", scene.play.log);
    scene.play.host.remove_interface("ipipou1");
    for address in ["10.9.0.77/8", "10.9.0.77/32", "10.9.0.7/24"] {
        give(&mut scene, &[address]);
        assert_eq!(inside(&scene).0, FIRST, "{address}");
    }
    scene.pass(3600 * SECOND);
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"]);
}

#[test]
fn a_second_tunnel_to_the_same_network_takes_the_address_that_the_user_names() {
    let mut config = two_servers();
    config.tunnel.gateway.routes.push(net("10.9.0.7/32"));
    let mut scene = given(Datapath::Kernel, config, &[]);
    add_tunnel_beside(&mut scene);
    give(&mut scene, &["10.9.0.8/24"]);
    assert_eq!(inside(&scene).0, FIRST, "the other one has that");
    give(&mut scene, &["10.9.0.7/24"]);
    assert_eq!(inside(&scene).0, ["10.9.0.7/32"]);
    assert_eq!(scene.told("10.9.0.7 is taken without its network: another tunnel"), 1);
}

#[test]
fn addresses_whose_routes_were_not_asked_for_are_not_taken() {
    let mut scene = scene(Datapath::Tun, 1);
    scene.servers[0].know(Allowed::Yes, &["10.77.3.9/24"]);
    hear(&mut scene); // within 10 s of the first ones
    surround(&mut scene);
    scene.pass(20 * SECOND);
    assert_eq!(inside(&scene).0, ["10.8.0.7/24"], "{:?}", scene.play.log);
    assert_eq!(scene.told("this host has a route to 10.77.0.0/16"), 1);
}

#[test]
fn a_network_that_the_host_joins_later_is_given_up_and_comes_back() {
    let mut scene = given(Datapath::Kernel, two_servers(), &["10.9.0.7/24"]);
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"]);
    scene.play.host.add_interface("wlan0", 77, InterfaceKind::Other);
    scene.play.host.add_address(77, [10, 9, 0, 200].into(), 16);
    scene.pass(10 * SECOND);
    assert_eq!(inside(&scene).0, Vec::<String>::new());
    assert_eq!(scene.told("10.9.0.7/24 is not taken: another interface has the network"), 1);
    assert_eq!(scene.play.engine.counters().repaired, 0, "{:?}", scene.play.log);
    scene.play.host.remove_interface("wlan0");
    scene.pass(10 * SECOND);
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"]);
    assert!(scene.is_at(0));
}

#[test]
fn an_address_that_the_kernel_refuses_costs_its_family_alone() {
    let mut scene = scene(Datapath::Tun, 1);
    scene.play.host.broken = "fd08::7";
    give(&mut scene, &["10.8.0.7/24", "fd08::7/64"]);
    scene.pass(3000 * SECOND);
    let (addresses, routes) = inside(&scene);
    assert_eq!((&addresses[..], routes.len()), (&["10.8.0.7/24".to_owned()][..], 1), "{routes:?}");
    assert_eq!(scene.told("fd08::7/64 is not taken: the kernel refuses it"), 1);
    let refused = scene.play.log.iter().filter(|line| line.contains("refused: add fd08::7"));
    assert_eq!(refused.count(), 1, "{:?}", scene.play.log);
    // What the kernel wanted of it may have passed.
    scene.play.host.broken = "";
    scene.pass(1000 * SECOND);
    assert_eq!(inside(&scene).0, ["10.8.0.7/24", "fd08::7/64"]);
    scene.play.host.broken = "fd08::7";
    // It does not fail a start, either.
    assert_eq!(scene.play.memory.inner.len(), 2);
    let memory = scene.play.memory.clone();
    let mut again = Play::stopped(Datapath::Tun, config_that_asks(), scene.play.host, memory);
    again.host.remove_interface("ipipou0");
    again.read();
    let steps = again.applied.join("\n");
    assert!(steps.contains("add 10.8.0.7/24 to ipipou0"), "{steps}");
}

#[test]
fn a_server_that_gives_others_each_time_has_them_followed_now_and_then() {
    let mut scene = scene(Datapath::Tun, 1);
    for second in 0..=60u8 {
        scene.servers[0].know(Allowed::Yes, &[&format!("10.8.0.{second}/24")]);
        hear(&mut scene);
        scene.pass(SECOND);
    }
    let followed = scene.told("our address inside");
    assert!((5..=8).contains(&followed), "{followed}");
    scene.pass(20 * SECOND);
    assert_eq!(inside(&scene).0, ["10.8.0.60/24"], "the last one is not forgotten");
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
