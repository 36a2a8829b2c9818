//! The MTU of a tunnel follows the uplink's, or is what was asked for.

use super::host::ETH0;
use super::*;

const UPLINK: &str = "eth0";
const TUNNEL: &str = "ipipou0";

fn set(play: &mut Play, name: &str, mtu: u32) {
    play.host.change(name, |interface| interface.mtu = mtu);
    play.read();
}

fn mtu(play: &Play) -> u32 {
    play.host.found.interfaces.iter().find(|i| i.name == TUNNEL).unwrap().mtu
}

/// A server whose client has proved itself, in both datapaths.
fn with_client(change: impl Fn(&mut Server), check: impl Fn(&mut Play)) {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut config = server(None);
        change(&mut config);
        let mut play =
            Play::start_on(datapath, Config::from(config), FakeHost::new(), Memory::default());
        let proof = play.proof();
        play.receive(at("198.51.100.7:4500"), &proof);
        check(&mut play);
    }
}

#[test]
fn the_mtu_follows_the_uplink() {
    with_client(
        |_| {},
        |play| {
            assert_eq!(mtu(play), 1472);
            let before = play.applied.len();
            set(play, UPLINK, 1400);
            assert_eq!(play.applied[before..], ["set the MTU of ipipou0 to 1372"]);
            assert_eq!(play.engine.counters().repaired, 0);
            assert_eq!(mtu(play), 1372);
            set(play, UPLINK, 1500);
            assert_eq!(mtu(play), 1472);
            set(play, UPLINK, 60);
            assert_eq!(mtu(play), 68, "the smallest there is");
        },
    );
}

#[test]
fn an_mtu_set_by_hand_stays_until_the_uplink_changes() {
    with_client(
        |_| {},
        |play| {
            set(play, TUNNEL, 1300);
            play.pass(Duration::from_secs(60));
            play.read();
            assert_eq!(mtu(play), 1300);
            // The client moves: that is not a reason.
            let proof = play.proof();
            play.receive(at("198.51.100.8:4501"), &proof);
            assert_eq!(mtu(play), 1300);
            set(play, UPLINK, 1400);
            assert_eq!(mtu(play), 1372);
        },
    );
}

#[test]
fn a_configured_mtu_stays() {
    with_client(
        |config| config.tunnel.mtu = Some(1234),
        |play| {
            assert_eq!(mtu(play), 1234);
            set(play, UPLINK, 1400);
            assert_eq!(mtu(play), 1234);
            set(play, TUNNEL, 1300);
            assert_eq!(mtu(play), 1234);
            assert_eq!(play.engine.counters().repaired, 1);
        },
    );
}

#[test]
fn a_refused_mtu_is_tried_again() {
    with_client(
        |_| {},
        |play| {
            play.host.broken = "set the MTU";
            set(play, UPLINK, 1400);
            assert_eq!(mtu(play), 1472);
            play.host.broken = "";
            play.pass(Duration::from_secs(5));
            play.read();
            assert_eq!(mtu(play), 1372);
        },
    );
}

#[test]
fn with_ipv6_inside_the_mtu_is_at_least_1280() {
    let mut config = server(None);
    config.tunnel.inner6 = Some("fd00::1/64".parse().unwrap());
    let config = Config::from(config);
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at("198.51.100.7:4500"), &proof);
    set(&mut play, UPLINK, 1300);
    assert_eq!(mtu(&play), 1280);
}

#[test]
fn another_uplink_changes_the_mtu() {
    for (outer, datapath) in
        [(Outer::Route, Datapath::Kernel), (Outer::Address(host::OUTER.into()), Datapath::Tun)]
    {
        let mut config = client(HostName::Address("198.51.100.7".parse().unwrap()), None);
        config.tunnel.outer = outer;
        let config = Config::from(config);
        let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
        assert_eq!(mtu(&play), 1472);
        let kind = ipipou::engine::host::InterfaceKind::Other;
        play.host.add_interface("wlan0", 900, kind);
        play.host.change_last(|wlan| wlan.mtu = 1420);
        play.read();
        assert_eq!(mtu(&play), 1472, "not the way to the server");
        play.host.found.way.as_mut().unwrap().interface = 900;
        play.read();
        assert_eq!(mtu(&play), 1392);
        play.host.found.way.as_mut().unwrap().interface = ETH0;
        play.read();
        assert_eq!(mtu(&play), 1472);
        // A route into the tunnel itself tells nothing.
        let own = play.host.found.interfaces.iter().find(|i| i.name == TUNNEL).unwrap().index;
        play.host.found.way.as_mut().unwrap().interface = own;
        play.read();
        play.read();
        assert_eq!(mtu(&play), 1472);
    }
}
