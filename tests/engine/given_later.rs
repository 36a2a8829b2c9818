//! What a server gives (`--tunl-ip auto`), when what stood in its way goes.

use ipipou::engine::host::InterfaceKind;

use super::given::{FIRST, give, given, inside, two_servers};
use super::situations::SECOND;
use super::*;

/// Whoever is refused would have it when the manager of a bridge is restarted, which then finds that its
/// network is taken.
#[test]
fn what_was_refused_is_not_taken_in_the_moment_in_which_a_bridge_has_no_address() {
    for (refused, left) in [("10.9.0.7/24", None), ("10.9.0.77/8", Some("10.9.0.77/32"))] {
        let mut scene = given(Datapath::Kernel, two_servers(), &[]);
        scene.play.host.add_interface("docker0", 77, InterfaceKind::Other);
        let network = if left.is_none() { 16 } else { 30 };
        scene.play.host.add_address(77, [10, 9, 0, 1].into(), network);
        give(&mut scene, &[refused]);
        let expected = left.unwrap_or(FIRST[0]);
        assert_eq!(inside(&scene).0, [expected], "{refused}");
        scene.play.host.found.addresses.retain(|address| address.interface != 77);
        scene.pass(3590 * SECOND);
        assert_eq!(inside(&scene).0, [expected], "{:?}", scene.play.log);
        assert_eq!(scene.told("this host has had the network 10.9.0.0/"), 1, "{refused}");
        scene.pass(60 * SECOND);
        assert_eq!(inside(&scene).0, [refused], "{:?}", scene.play.log);
    }
}

/// As behind a router that has the same network inside.
#[test]
fn what_was_refused_is_taken_when_the_host_has_left_the_network_of_its_uplink() {
    let mut scene = given(Datapath::Kernel, two_servers(), &[]);
    scene.play.host.add_address(host::ETH0, [10, 9, 0, 200].into(), 16);
    give(&mut scene, &["10.9.0.7/24"]);
    assert_eq!(inside(&scene).0, FIRST);
    scene.play.host.found.addresses.retain(|a| a.value.local != IpAddr::from([10, 9, 0, 200]));
    scene.pass(10 * SECOND);
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"], "{:?}", scene.play.log);
}

#[test]
fn what_was_refused_for_a_route_waits_too_and_a_restart_takes_it() {
    let mut scene = given(Datapath::Tun, two_servers(), &[]);
    scene.play.host.add_interface("wg0", 77, InterfaceKind::Other);
    let address: IpAddr = [10, 9, 0, 7].into();
    scene.play.host.found.routed.insert(address, Some((net("10.9.0.0/16"), Some(77))));
    give(&mut scene, &["10.9.0.7/24"]);
    assert_eq!(inside(&scene).0, FIRST);
    scene.play.host.found.routed.remove(&address);
    scene.pass(600 * SECOND);
    assert_eq!(inside(&scene).0, FIRST);
    scene.play.memory.inner = vec![net("10.9.0.7/24")];
    let scene = super::given::restarted(scene, two_servers());
    assert_eq!(inside(&scene).0, ["10.9.0.7/24"]);
}
