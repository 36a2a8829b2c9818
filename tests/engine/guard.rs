//! The rules of the kernel's datapath, and which remotes are possible.

use ipipou::auth::Reject;

use super::host::{OUTER, plain_ipip};
use super::situations::{A, B, SECOND, calling, serving};
use super::*;
use ipipou::engine::host::{Admitted, InterfaceKind, RulesFound};

fn rules(play: &Play) -> &ipipou::engine::host::RuleSpec {
    play.host.rules.as_ref().unwrap()
}

#[test]
fn the_rules_move_with_the_outer_address() {
    let mut play = serving();
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    assert_eq!(rules(&play).outer.to_string(), "203.0.113.77");
    let at: Vec<_> = play.host.found.listeners.iter().map(ToString::to_string).collect();
    assert_eq!(at, ["203.0.113.77:10000 on interface 2"]);
    play.host.check_guarded();
}

#[test]
fn there_is_no_listener_before_its_rules() {
    let mut host = FakeHost::new();
    host.broken = "install rules";
    let mut play = Play::start(Config::from(server(None)), host, Memory::default());
    assert!(play.host.found.listeners.is_empty());
    play.host.broken = "";
    play.pass(2 * SECOND);
    assert_eq!(play.host.found.listeners.len(), 1);
}

#[test]
fn nothing_is_sent_to_a_remote_whose_session_has_expired() {
    let config = Config::from(server(Some(10 * SECOND)));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert!(rules(&play).silenced.is_empty());
    play.pass(11 * SECOND);
    assert_eq!(rules(&play).silenced, [at(A)].into());
    assert!(play.host.link("ipipou0").is_some(), "the interface stays");
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert!(rules(&play).silenced.is_empty());
    assert_eq!(play.host.admitted(), [Admitted::direct(at(B))].into());
}

#[test]
fn a_clients_packets_are_tracked_and_a_servers_are_not() {
    let mut play = serving();
    assert!(!rules(&play).untracked, "nothing tracks them");
    play.host.found.tracks = true;
    play.read();
    assert!(rules(&play).untracked);
    assert_eq!(play.engine.counters().repaired, 0, "nobody broke anything");
    let mut play = calling(None);
    play.host.found.tracks = true;
    play.read();
    assert!(!rules(&play).untracked);
}

#[test]
fn alternate_addresses_are_guarded_while_they_are_there() {
    let mut play = serving();
    assert!(rules(&play).alternate.is_empty());
    play.host.add_strange_link(*at(A).ip());
    play.read();
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(rules(&play).alternate, ["172.29.0.0".parse().unwrap()].into());
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert!(rules(&play).alternate.is_empty());
    assert_eq!(play.engine.counters().repaired, 0);
}

#[test]
fn plain_ipip_of_others_between_the_same_hosts_is_left_alone() {
    use std::net::Ipv4Addr;
    let any = Ipv4Addr::UNSPECIFIED;
    let elsewhere: Ipv4Addr = "192.0.2.9".parse().unwrap();
    let here: Ipv4Addr = OUTER;
    let there = *at(A).ip();
    for (local, remote, up, alternate) in [
        (any, any, true, true),
        (any, any, false, false), // the module's own
        (here, any, true, true),
        (any, there, true, true),
        (elsewhere, any, true, false),
        (here, elsewhere, true, false),
        (here, there, false, true), // the very pair
    ] {
        let mut play = serving();
        let link = plain_ipip(local, remote);
        play.host.add_interface("tunl0", 500, InterfaceKind::Ipip(link));
        play.host.change_last(|interface| interface.up = up);
        play.read();
        let proof = play.proof();
        play.receive(at(A), &proof);
        let admitted = play.host.admitted().first().cloned().unwrap();
        assert_eq!(admitted.alternate.is_some(), alternate, "{link:?} up: {up}");
        // Ours follows when it comes up later.
        play.host.change_each(|i| i.up = true);
        play.read();
        let admitted = play.host.admitted().first().cloned().unwrap();
        let takes = [any, here].contains(&local) && [any, there].contains(&remote);
        assert_eq!(admitted.alternate.is_some(), takes, "{link:?}");
    }
}

#[test]
fn impossible_remotes_are_refused() {
    let sources = [
        "0.0.0.0:1",
        "0.1.2.3:1",
        "127.0.0.1:1",
        "224.0.0.5:1",
        "239.255.255.250:1900",
        "240.0.0.1:1",
        "255.255.255.255:1",
        "203.0.113.255:1",
        "203.0.113.0:1",
        "203.0.113.1:9",
        "172.28.0.0:1",
        "172.28.0.1:5555",
        "198.51.100.7:0",
    ];
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let config = Config::from(server(None));
        let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
        for (number, source) in (1..).zip(sources) {
            let proof = play.proof();
            play.receive(at(source), &proof);
            let refused = play.engine.counters().rejected.get(&Reject::ImpossibleSource);
            assert_eq!(refused, Some(&number), "{source}");
        }
        assert!(play.host.admitted().is_empty() && play.host.link("ipipou0").is_none());
        let proof = play.proof();
        play.receive(at(A), &proof);
        assert_eq!(play.engine.counters().accepted, 1);
    }
}

#[test]
fn packets_from_inside_a_tunnel_are_not_outer_packets() {
    let mut play = serving();
    let inside = |play: &Play| rules(play).inside.iter().cloned().collect::<Vec<_>>();
    assert_eq!(inside(&play), ["ipipou0"]);
    for (name, index, label) in [
        ("other", 600, Some("made by ipipou")),
        ("learns", 601, Some("made by ipipou, for many clients")),
        ("gateway", 602, Some("made by ipipou, a gateway")),
        ("stranger", 603, None),
    ] {
        play.host.add_interface(name, index, InterfaceKind::Tun);
        play.host.change_last(|interface| interface.label = label.map(str::to_owned));
    }
    play.read();
    assert_eq!(inside(&play), ["gateway", "ipipou0", "learns", "other"]);
    assert_eq!(play.engine.counters().repaired, 0, "nobody broke anything");

    // Of another server's peers each has an interface; they come and go, and our rules stay.
    for (name, index) in [("hub0-0001", 604), ("hub0-beef", 605)] {
        play.host.add_interface(name, index, InterfaceKind::Tun);
        play.host.change_last(|interface| interface.label = Some("made by ipipou".to_owned()));
    }
    play.read();
    let others = ["gateway", "ipipou0", "learns", "other"];
    assert_eq!(inside(&play), others);
    assert_eq!(rules(&play).inside_too, ["hub0-".to_owned()].into());
    // Unless what begins alike may be an uplink.
    play.host.add_interface("hub0-lan", 606, InterfaceKind::Other);
    play.read();
    assert_eq!(inside(&play), [&others[..1], &["hub0-0001", "hub0-beef"], &others[1..]].concat());
    assert!(rules(&play).inside_too.is_empty());
    for index in 604..=606 {
        play.host.found.interfaces.remove(index);
    }
    play.read();

    // A tunnel in a tunnel: the one that our outer address is on is the way in.
    let mut config = server(None);
    config.tunnel.device = "nested0".parse().unwrap();
    config.tunnel.outer = Outer::Device("other".parse().unwrap());
    let mut host = play.host.clone();
    host.found.rules = RulesFound::Missing;
    host.found.listeners.clear();
    host.add_address(600, "172.28.0.4".parse().unwrap(), 32);
    let play = Play::start(Config::from(config), host, Memory::default());
    assert_eq!(inside(&play), ["gateway", "learns", "nested0"]);
    assert!(rules(&play).bound);
}
