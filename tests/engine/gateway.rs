//! Gateways: routes into a tunnel, forwarding and masquerading, and that all is put back.

use std::collections::BTreeSet;

use super::host::{ETH0, OUTER};
use super::*;
use ipipou::engine::config::Masquerade;
use ipipou::engine::host::{
    Family, GatewayFound, GatewaySpec, InterfaceKind, NameServers, PolicyRuleKind,
};

const A: &str = "198.51.100.7:4500";
const SERVER: &str = "203.0.113.9";

fn calling(config: impl FnOnce(&mut Client)) -> Play {
    let mut client = client(HostName::Address(SERVER.parse().unwrap()), None);
    config(&mut client);
    let config = Config::from(client);
    Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default())
}

fn turned_on(spec: &GatewaySpec) -> &BTreeSet<String> {
    &spec.forwarding.as_ref().unwrap().turned_on
}

fn gateway(tunnel: &mut TunnelConfig) {
    tunnel.gateway.routes = vec![net("10.2.0.0/16")];
    tunnel.gateway.mark = 0x6970_0000;
}

#[test]
fn everything_but_outer_packets_goes_through_the_tunnel() {
    let mut host = FakeHost::new();
    host.found.rp_filter_of_all = 1;
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    gateway(&mut config.tunnel);
    config.tunnel.gateway.default_route = true;
    config.tunnel.gateway.dns = vec!["9.9.9.9".parse().unwrap()];
    let before = host.shape();
    let config = || Config::from(config.clone());
    let play = Play::start_on(Datapath::Tun, config(), host, Memory::default());
    let socket = play.host.found.userspace.socket.clone().unwrap();
    assert_eq!(socket.mark, Some(0x6970_0000));
    assert_eq!(play.sent[0].mark, Some(0x6970_0000));
    let kinds: Vec<_> = play.host.found.policy_rules.iter().map(|r| r.kind).collect();
    assert_eq!(
        kinds,
        [
            PolicyRuleKind::FromOwn(OUTER.into()),
            PolicyRuleKind::MainButDefault,
            PolicyRuleKind::UnlessMarked {
                mark: 0x6970_0000,
                mask: 0xffff_0000,
                table: 0x6970_0000
            }
        ]
    );
    assert_eq!(play.host.found.routes.len(), 2);
    assert_eq!(play.host.found.name_servers, NameServers::Ours);
    let eth0 = |play: &Play| play.host.found.interface_at(ETH0).unwrap().rp_filter;
    assert_eq!(eth0(&play), Some(2), "strict checks would drop what the server sends");
    // Killed: what was before is still known.
    let mut left = play.host.clone();
    left.remove_interface("ipipou0");
    left.found.userspace = ipipou::engine::host::Userspace::default();
    let mut again = Play::start_on(Datapath::Tun, config(), left, play.memory);
    assert_eq!(eth0(&again), Some(2));
    again.end();
    let after = again.host.shape();
    assert_eq!((after.routes, after.policy_rules), (before.routes, before.policy_rules));
    assert_eq!((after.interfaces, after.name_servers), (before.interfaces, before.name_servers));
}

/// A client of which an earlier process left all that leads the host into the tunnel, and which finds no way to its
/// server now: with `asked`, it is to lead everything there again.
fn without_a_way(asked: bool, is_there: bool) -> Play {
    let mut host = FakeHost::new();
    host.found.rp_filter_of_all = 1;
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    config.tunnel.outer = Outer::Route;
    gateway(&mut config.tunnel);
    config.tunnel.gateway.default_route = true;
    config.tunnel.gateway.dns = vec!["9.9.9.9".parse().unwrap()];
    let full = Config::from(config.clone());
    let Play { mut host, memory, .. } =
        Play::start_on(Datapath::Tun, full, host, Memory::default());
    assert_eq!(host.found.name_servers, NameServers::Ours);
    host.found.userspace.forwarding.remotes.clear();
    if !is_there {
        host.remove_interface("ipipou0");
        host.found.userspace = ipipou::engine::host::Userspace::default();
    }
    host.found.way = None;
    if !asked {
        let gateway = &mut config.tunnel.gateway;
        gateway.default_route = false;
        gateway.routes.clear();
        gateway.dns.clear();
        host.found.name_servers = NameServers::Changed;
    }
    Play::start_on(Datapath::Tun, Config::from(config), host, memory)
}

/// They may be what keeps the way unknown.
#[test]
fn what_an_earlier_process_left_and_nobody_asks_for_goes_without_a_way_to_the_server() {
    let play = without_a_way(false, true);
    let Found { policy_rules, routes, .. } = &play.host.found;
    assert!(policy_rules.is_empty() && routes.is_empty(), "{policy_rules:?} {routes:?}");
    assert_eq!(play.host.found.name_servers, NameServers::Theirs);
    assert_eq!(play.host.found.interface_at(ETH0).unwrap().rp_filter, Some(0));
    assert!(play.memory.settings.is_empty(), "{:?}", play.memory.settings);
    assert!(play.host.found.userspace.interface, "its packets wait in it");
}

#[test]
fn without_a_way_to_the_server_nothing_leaks_past_a_full_tunnel_that_is_asked_for() {
    let play = without_a_way(true, true);
    let kinds = play.host.found.policy_rules.iter().map(|rule| rule.kind);
    let leads_in = kinds.filter(|kind| matches!(kind, PolicyRuleKind::UnlessMarked { .. }));
    assert_eq!(leads_in.count(), 1);
    assert_eq!(play.host.found.routes.len(), 2);
    assert_eq!(play.host.found.name_servers, NameServers::Ours);
}

/// After a power cut: the name of the server could not be looked up any more.
#[test]
fn name_servers_behind_an_interface_that_is_gone_are_put_back_without_a_way_to_the_server() {
    let play = without_a_way(true, false);
    assert_eq!(play.host.found.name_servers, NameServers::Theirs);
}

/// Connection tracking is asked where it is in use, from the reading on that finds it so.
#[test]
fn answers_of_forwarded_connections_take_the_uplink() {
    let mut play = calling(|config| {
        gateway(&mut config.tunnel);
        config.tunnel.gateway.default_route = true;
    });
    assert_eq!(play.host.found.gateway, GatewayFound::Missing);
    play.host.found.tracked = [Family::V4, Family::V6].into();
    play.read();
    let [spec] = play.host.gateways.as_slice() else { panic!("{:?}", play.host.gateways) };
    assert_eq!(spec.forwarding, None);
    let families: Vec<_> = spec.answers.keys().collect();
    assert_eq!(families, [&Family::V4], "no IPv6 goes through the tunnel");
    let answers = &spec.answers[&Family::V4];
    assert_eq!((answers.mark, answers.uplink.as_deref()), (0x6970_0000, Some("eth0")));
    assert_eq!(answers.addresses, [OUTER.into()].into());
    play.host.found.tracked.clear();
    play.read();
    assert_eq!(play.host.found.gateway, GatewayFound::Missing);
    play.host.found.tracked = [Family::V4].into();
    play.read();
    play.end();
    assert_eq!(play.host.found.gateway, GatewayFound::Missing);
}

#[test]
fn a_full_tunnel_is_removed_once_its_option_is_left_out() {
    let play = calling(|config| {
        gateway(&mut config.tunnel);
        config.tunnel.gateway.default_route = true;
    });
    let mut left = play.host.clone();
    left.remove_interface("ipipou0");
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    config.tunnel.gateway.mark = 0x6970_0000;
    let again = Play::start_on(Datapath::Tun, Config::from(config), left, play.memory);
    assert!(again.host.found.policy_rules.is_empty());
    assert!(again.host.found.routes.is_empty());
}

/// The place of a step among those applied.
fn position(play: &Play, what: &str) -> usize {
    let position = play.applied.iter().position(|step| step.contains(what));
    position.unwrap_or_else(|| panic!("{what}: not in {:?}", play.applied))
}

#[test]
fn a_gateway_forwards_and_leaves_the_host_as_it_was() {
    for masquerade in [None, Some(Masquerade::By("eth0".parse().unwrap()))] {
        for datapath in [Datapath::Kernel, Datapath::Tun] {
            let mut config = server(None);
            gateway(&mut config.tunnel);
            config.tunnel.gateway.forward = masquerade.is_none();
            config.tunnel.gateway.masquerade = masquerade.clone();
            let config = Config::from(config);
            let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
            assert_eq!(play.host.found.gateway, GatewayFound::Missing, "no tunnel yet");
            let proof = play.proof();
            play.receive(at(A), &proof);
            assert_eq!(play.host.found.gateway, GatewayFound::Intact);
            let forwarding = |play: &Play| -> Vec<_> {
                play.host.found.interfaces.iter().map(|i| (i.name.clone(), i.forwarding)).collect()
            };
            let expected = [("lo", false), ("eth0", true), ("ipipou0", true)];
            let expected = expected.map(|(name, on)| (name.to_owned(), Some(on)));
            assert_eq!(forwarding(&play), expected);
            assert!(position(&play, "install gateway rules") < position(&play, "create ipipou0"));
            play.applied.clear();
            play.end();
            assert!(position(&play, "remove gateway rules") > position(&play, "remove ipipou0"));
            let off = "turn forwarding of eth0 off";
            assert!(position(&play, "remove gateway rules") > position(&play, off));
            assert_eq!(play.host.found.gateway, GatewayFound::Missing);
            assert_eq!(forwarding(&play), expected.map(|(name, _)| (name, Some(false)))[..2]);
            assert!(play.host.found.has_local(OUTER.into()));
            assert!(play.memory.settings.is_empty());
        }
    }
}

/// What is around a tunnel may be refused for as long as a file is read-only.
#[test]
fn a_refusal_around_a_tunnel_costs_what_needs_it_and_not_the_tunnel() {
    let cases: [(&str, &[&str]); 6] = [
        ("use our name servers", &[]),
        ("add rule: from", &["add rule: not fwmark", "use our name servers"]),
        ("add route to 0.0.0.0/0", &["add rule", "use our name servers"]),
        ("set rp_filter of eth0", &["add rule", "use our name servers"]),
        ("turn forwarding of eth0 on", &[]),
        ("install gateway rules", &["turn forwarding of eth0 on", "set ipipou0 up"]),
    ];
    for (broken, untried) in cases {
        for datapath in [Datapath::Kernel, Datapath::Tun] {
            let mut config = server(None);
            config.tunnel.gateway.mark = 0x6970_0000;
            config.tunnel.gateway.default_route = true;
            config.tunnel.gateway.forward = true;
            config.tunnel.gateway.dns = vec!["9.9.9.9".parse().unwrap()];
            let mut host = FakeHost::new();
            host.found.rp_filter_of_all = 1;
            host.broken = broken;
            let config = Config::from(config);
            let mut play = Play::start_on(datapath, config, host, Memory::default());
            let proof = play.proof();
            play.receive(at(A), &proof);
            play.pass(Duration::from_secs(2));
            let log = &play.log;
            let does = |what: &str| log.iter().any(|line| line.starts_with(what));
            assert!(does(&format!("refused: {broken}")), "{broken}: {log:?}");
            for what in
                ["use our name servers", "add rule: not fwmark", "turn forwarding of eth0 on"]
            {
                let is_tried = !untried.iter().any(|untried| what.starts_with(untried));
                assert_eq!(does(what), is_tried && what != broken, "{broken}, {what}: {log:?}");
            }
            let is_up = does("told: 198.51.100.7:4500 authenticated: tunnel up");
            assert_eq!(is_up, !untried.contains(&"set ipipou0 up"), "{broken}: {log:?}");
            let proof = play.proof();
            play.receive(at("198.51.100.8:4501"), &proof);
            play.pass(Duration::from_secs(2));
            let moved = "told: moved from 198.51.100.7:4500 to 198.51.100.8:4501";
            assert_eq!(
                play.log.iter().any(|line| line == moved),
                is_up,
                "{broken}: {:?}",
                play.log
            );
        }
    }
}

/// The tunnel of a process that was killed goes on when its name servers cannot be put back.
#[test]
fn name_servers_that_cannot_be_put_back_keep_nobody_out() {
    let with = |dns: &[&str]| {
        let mut config = server(None);
        config.tunnel.gateway.dns = dns.iter().map(|server| server.parse().unwrap()).collect();
        Config::from(config)
    };
    let mut play = Play::start(with(&["9.9.9.9"]), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(play.host.found.name_servers, NameServers::Ours);
    let mut left = play.host;
    left.broken = "restore the name servers";
    let play = Play::start(with(&[]), left, play.memory);
    assert!(play.log.iter().any(|line| line == "refused: restore the name servers"));
    let admitting = "install rules ipipou-0 for 203.0.113.1:10000, admitting 198.51.100.7:4500";
    assert!(play.log.iter().any(|line| line == admitting), "{:?}", play.log);
}

#[test]
fn a_route_around_the_server_does_not_catch_outer_packets() {
    let play = calling(|config| {
        gateway(&mut config.tunnel);
        config.tunnel.gateway.routes.push(net("203.0.113.0/24"));
    });
    let routes = &play.host.found.routes;
    let table = |text: &str| routes.iter().find(|r| r.destination == net(text)).unwrap().table;
    assert_eq!((table("10.2.0.0/16"), table("203.0.113.0/24")), (254, 0x6970_0000));
    assert_eq!(play.host.found.policy_rules.len(), 3);
}

/// A server that masquerades and the client it knows, on a host with a second interface.
fn serving_gateway(datapath: Datapath) -> Play {
    let mut host = FakeHost::new();
    host.add_interface("eth1", 9, InterfaceKind::Other);
    let mut config = server(None);
    config.tunnel.gateway.masquerade = Some(Masquerade::Anywhere);
    let mut play = Play::start_on(datapath, Config::from(config), host, Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert!(forwards(&play, "eth0") && forwards(&play, "eth1") && forwards(&play, "ipipou0"));
    play
}

fn forwards(play: &Play, name: &str) -> bool {
    let interfaces = &play.host.found.interfaces;
    interfaces.iter().find(|i| i.name == name).unwrap().forwarding == Some(true)
}

/// Another process with these options, after one was killed.
fn again(killed: Play, datapath: Datapath, config: Server, broken: &'static str) -> Play {
    let mut left = killed.host;
    left.found.gateway = GatewayFound::Unknown;
    left.broken = broken;
    Play::start_on(datapath, Config::from(config), left, killed.memory)
}

#[test]
fn a_restart_without_gateway_options_ends_forwarding() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let play = again(serving_gateway(datapath), datapath, server(None), "");
        assert!(!["eth0", "eth1", "ipipou0"].iter().any(|name| forwards(&play, name)));
        assert_eq!(play.host.found.gateway, GatewayFound::Missing);
        let off = position(&play, "turn forwarding of ipipou0 off");
        assert!(position(&play, "remove gateway rules") > off);
    }
}

#[test]
fn a_failed_restoration_is_tried_again() {
    let mut play = again(
        serving_gateway(Datapath::Kernel),
        Datapath::Kernel,
        server(None),
        "turn forwarding of eth1 off",
    );
    assert!(forwards(&play, "eth1") && play.host.found.gateway != GatewayFound::Missing);
    play.host.broken = "";
    play.pass(Duration::from_secs(2));
    assert!(!forwards(&play, "eth1") && play.host.found.gateway == GatewayFound::Missing);
    assert!(play.memory.settings.is_empty());
}

#[test]
fn interfaces_are_guarded_until_their_forwarding_is_off() {
    let play = serving_gateway(Datapath::Kernel);
    let mut config = server(None);
    config.tunnel.gateway.masquerade = Some(Masquerade::By("eth0".parse().unwrap()));
    let play = again(play, Datapath::Kernel, config, "");
    assert!(forwards(&play, "eth0") && !forwards(&play, "eth1"));
    let judged: Vec<_> = play.host.gateways.iter().map(|spec| turned_on(spec).len()).collect();
    assert_eq!(judged, [2, 2, 1], "at first, again, and without eth1");
}

#[test]
fn forwarding_that_others_turned_on_stays_on() {
    let mut play = serving_gateway(Datapath::Tun);
    play.host.found.ip_forward = true; // sets all that there are as well
    play.read();
    assert!(turned_on(play.host.gateways.last().unwrap()).is_empty());
    play.end();
    assert!(forwards(&play, "eth0") && forwards(&play, "eth1"));

    // A router before us, which did not forward from one network.
    let mut host = FakeHost::new();
    host.found.ip_forward = true;
    let mut config = server(None);
    config.tunnel.gateway.forward = true;
    let mut play = Play::start_on(Datapath::Tun, Config::from(config), host, Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert!(forwards(&play, "eth0"));
    assert!(turned_on(play.host.gateways.last().unwrap()).contains("eth0"));
    play.end();
    assert!(!forwards(&play, "eth0"));
}

#[test]
fn routes_into_the_tunnel_are_removed_before_its_packets_lose_their_mark() {
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    gateway(&mut config.tunnel);
    config.tunnel.gateway.default_route = true;
    let config = Config::from(config);
    let play = Play::start_on(Datapath::Kernel, config, FakeHost::new(), Memory::default());
    assert_eq!(play.host.link("ipipou0").unwrap().mark, 0x6970_0000);
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    config.tunnel.gateway.mark = 0x6970_0000; // as the tunnel's number gives it, used or not
    let play = Play::start_on(Datapath::Kernel, Config::from(config), play.host, play.memory);
    assert_eq!(play.host.link("ipipou0").unwrap().mark, 0);
    let changed = position(&play, "change ipipou0");
    assert!(position(&play, "remove rule: not fwmark") < changed);
}

#[test]
fn outer_packets_are_marked_and_routes_read_where_the_gateway_needs_it() {
    type Ask<'a> = &'a dyn Fn(&mut ipipou::engine::config::GatewayConfig);
    let asked: [(Ask<'_>, bool, bool); 5] = [
        (&|_| {}, false, false),
        (&|gateway| gateway.default_route = true, true, true),
        (&|gateway| gateway.routes = vec![net("10.2.0.0/16")], true, true),
        (&|gateway| gateway.forward = true, false, true),
        (&|gateway| gateway.masquerade = Some(Masquerade::Anywhere), false, true),
    ];
    for (number, (ask, marks, asks_for_routing)) in asked.into_iter().enumerate() {
        let mut tunnel = tunnel();
        tunnel.gateway.mark = 7;
        ask(&mut tunnel.gateway);
        assert_eq!(tunnel.mark(), marks.then_some(7), "{number}");
        assert_eq!(tunnel.asks_for_routing(), asks_for_routing, "{number}");
    }
}
