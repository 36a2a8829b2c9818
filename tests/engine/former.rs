//! The configuration was edited while no process ran: what the former one has on the host is given back.

use std::net::{IpAddr, Ipv4Addr};

use super::host::{LOOPBACK, OUTER};
use super::*;
use ipipou::engine::config::{AlternateAddress, HostsSource, PeerSource};
use ipipou::engine::host::{Family, Identity, PolicyRule, PolicyRuleKind, RouteTarget, RulesFound};

const SERVER: &str = "203.0.113.9";

fn full_tunnel(number: u16) -> Config {
    let mut config = client(HostName::Address(SERVER.parse().unwrap()), None);
    config.tunnel.device = format!("ipipou{number}").parse().unwrap();
    config.tunnel.port = (10000 + number).try_into().unwrap();
    config.tunnel.rules.table = format!("ipipou-{number}");
    config.tunnel.alternate =
        AlternateAddress::Always(Ipv4Addr::new(172, 29, 0, 7 * u8::from(number > 0)));
    config.tunnel.gateway.mark = 0x6970_0000 + u32::from(number);
    config.tunnel.gateway.default_route = true;
    Config::from(config)
}

/// The host as a process that was killed left it.
fn left_by(play: &Play, datapath: Datapath) -> FakeHost {
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Missing; // the new ones have another name
    left.rules = None;
    if datapath == Datapath::Tun {
        left.remove_interface("ipipou0");
        left.found.userspace = ipipou::engine::host::Userspace::default();
    }
    left
}

fn tables(play: &Play) -> Vec<u32> {
    let rules = play.host.found.policy_rules.iter();
    let tables = rules.filter_map(|rule| match rule.kind {
        PolicyRuleKind::UnlessMarked { table, .. } => Some(table),
        PolicyRuleKind::MainButDefault | PolicyRuleKind::FromOwn(_) => None,
    });
    tables.collect()
}

#[test]
fn a_full_tunnel_with_another_number_gives_back_what_it_was() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let host = FakeHost::new();
        let before = host.shape();
        let first = Play::start_on(datapath, full_tunnel(0), host, Memory::default());
        assert_eq!(tables(&first), [0x6970_0000], "{datapath:?}");
        let left = left_by(&first, datapath);
        let was = vec![Identity::of(&full_tunnel(0).tunnel)];
        let mut again = Play::stopped(datapath, full_tunnel(7), left, first.memory.clone());
        again.engine.had_port(full_tunnel(0).tunnel.port.into());
        again.engine.was(was);
        assert!(again.engine.may_have_former_parts());
        again.read();
        again.read();
        assert!(!again.engine.may_have_former_parts(), "{datapath:?}");
        assert_eq!(tables(&again), [0x6970_0007], "{datapath:?}");
        let routes = &again.host.found.routes;
        assert!(routes.iter().all(|route| route.table == 0x6970_0007), "{routes:?}");
        assert!(again.host.found.interfaces.iter().all(|i| i.name != "ipipou0"));
        assert!(!again.host.found.is_on(IpAddr::from([172, 29, 0, 0]), LOOPBACK));
        again.end();
        let after = again.host.shape();
        assert_eq!((after.routes, after.policy_rules), (before.routes, before.policy_rules));
        assert_eq!((after.interfaces, after.addresses), (before.interfaces, before.addresses));
    }
}

/// They may be what keeps the way to the server unknown.
#[test]
fn what_a_tunnel_was_goes_without_a_way_to_the_server() {
    let first = Play::start_on(Datapath::Tun, full_tunnel(0), FakeHost::new(), Memory::default());
    let mut left = left_by(&first, Datapath::Tun);
    left.found.way = None;
    let mut config = full_tunnel(7);
    config.tunnel.outer = Outer::Route;
    let mut again = Play::stopped(Datapath::Tun, config, left, first.memory);
    again.engine.was(vec![Identity::of(&full_tunnel(0).tunnel)]);
    again.read();
    assert_eq!(tables(&again), [0; 0]);
}

#[test]
fn the_unreachable_network_of_before_is_given_back() {
    let node = |network: &str| {
        let mut tunnel = tunnel();
        let network: ipnet::Ipv4Net = network.parse().unwrap();
        (tunnel.inner, tunnel.inner_peer) = (network.addr(), network.trunc());
        Config { tunnel, peers: PeerSource::Table(HostsSource::File("hosts.json".into())) }
    };
    let first = Play::start(node("192.168.100.1/24"), FakeHost::new(), Memory::default());
    let mut left = first.host.clone();
    left.found.rules = RulesFound::Unknown;
    let mut again = Play::stopped(Datapath::Kernel, node("10.77.0.1/24"), left, first.memory);
    again.engine.was(vec![Identity::of(&node("192.168.100.1/24").tunnel)]);
    again.read();
    let routes: Vec<_> = again.host.found.routes.iter().collect();
    assert_eq!(routes.len(), 1);
    assert_eq!(
        (routes[0].destination, routes[0].target),
        (net("10.77.0.0/24"), RouteTarget::Unreachable)
    );
    again.end();
    assert!(again.host.found.routes.is_empty());
}

/// Both read the host before either has taken its rule away.
#[test]
fn of_full_tunnels_that_end_together_the_last_one_gives_back_what_they_share() {
    let into = |number: u32| PolicyRule {
        family: Family::V4,
        priority: 32765,
        kind: PolicyRuleKind::UnlessMarked {
            mark: 0x6970_0000,
            mask: 0xffff_0000,
            table: 0x6970_0000 + number,
        },
    };
    for other_goes in [true, false] {
        let mut play =
            Play::start_on(Datapath::Tun, full_tunnel(0), FakeHost::new(), Memory::default());
        let other = into(1);
        play.host.policy_rules.push(other);
        play.host.found.policy_rules.insert(other);
        let found = play.found();
        if other_goes {
            play.host.lose_policy_rule(&other);
        }
        assert!(play.handle(Event::Shutdown(found)));
        let left: Vec<_> = play.host.found.policy_rules.iter().map(|rule| rule.kind).collect();
        match other_goes {
            true => assert!(left.is_empty(), "{left:?}"),
            false => assert_eq!(
                left,
                [PolicyRuleKind::FromOwn(OUTER.into()), PolicyRuleKind::MainButDefault, other.kind]
            ),
        }
    }
}
