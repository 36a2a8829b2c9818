//! Nodes of a table of hosts, on both datapaths.

use std::collections::BTreeSet;

use super::host::OUTER;
use super::userspace::remotes;
use super::*;
use ipipou::engine::Unusable;
use ipipou::engine::config::{FastPathChoice, HostsSource, PeerSource};
use ipipou::engine::host::{
    Address, Interface, InterfaceKind, PolicyRuleKind, Route, RouteTarget, Way,
};
use ipipou::engine::table::Node;

const A: &str = "198.51.100.7:4500";
const B: &str = "198.51.100.8:4501";

fn node() -> Config {
    let mut tunnel = tunnel();
    tunnel.inner = "192.168.100.1".parse().unwrap();
    tunnel.inner_peer = "192.168.100.0/24".parse().unwrap();
    tunnel.gateway.mark = 0x6970_0000;
    Config { tunnel, peers: PeerSource::Table(HostsSource::File("hosts.json".into())) }
}

fn table(entries: &[(&str, &str)]) -> Vec<Node> {
    let one =
        |&(inner, remote): &(&str, &str)| Node { inner: net(inner), remote: outer_at(remote) };
    entries.iter().map(one).collect()
}

fn three_nodes() -> Vec<Node> {
    table(&[
        ("192.168.100.1/32", "203.0.113.1:10000"), // ourselves
        ("192.168.100.2/32", A),
        ("10.7.0.0/16", A),
        ("192.168.100.3/32", B),
        ("192.168.100.4/32", "203.0.113.1:10000"), // a loop
    ])
}

#[test]
fn a_node_forwards_by_its_table() {
    let mut play = Play::start_on(Datapath::Tun, node(), FakeHost::new(), Memory::default());
    assert!(play.applied.contains(&"add 192.168.100.1/24 to ipipou0".to_owned()));
    play.handle(Event::Hosts(three_nodes()));
    assert_eq!(remotes(&play), [outer_at(A), outer_at(B)]);
    let looping = |r: &Report| matches!(r, Report::NodeUnusable { why: Unusable::LeadsBack, .. });
    assert_eq!(play.reports.iter().filter(|r| looping(r)).count(), 1);
    let routes: Vec<_> = play.host.found.routes.iter().map(|r| r.destination).collect();
    assert_eq!(routes, [net("10.7.0.0/16")], "what is on the link needs no route");
    play.read();
    assert_eq!(play.reports.iter().filter(|r| looping(r)).count(), 1, "said once");
    play.handle(Event::Hosts(table(&[("192.168.100.3/32", B)])));
    assert_eq!(remotes(&play), [outer_at(B)]);
    assert!(play.host.found.routes.is_empty());
}

/// A prefix that holds our own inner address is ours, if nothing else is known; behind NAT its remote
/// is none of our addresses.
#[test]
fn a_prefix_with_the_nodes_own_address_is_left_out_and_reported() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let mut play = Play::start_on(datapath, node(), FakeHost::new(), Memory::default());
        play.handle(Event::Hosts(table(&[
            ("192.168.100.0/28", A),
            ("192.168.100.1/32", "192.0.2.99:10000"), // ourselves, behind NAT
            ("192.168.100.32/28", B),
            ("10.0.0.0/8", "203.0.113.1:10000"), // what we are the gateway of
        ])));
        let unusable: Vec<_> = play
            .reports
            .iter()
            .filter(|report| matches!(report, Report::NodeUnusable { .. }))
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            unusable,
            [format!(
                "node 192.168.100.0/28: our own inner address is in it, so it is taken for \
                 ourselves and left out; if it is behind {A}, split it around our address"
            )]
        );
    }
}

#[test]
fn a_route_around_outer_addresses_takes_only_unmarked_packets() {
    let mut play = Play::start_on(Datapath::Tun, node(), FakeHost::new(), Memory::default());
    let mark = play.host.found.userspace.socket.clone().unwrap().mark;
    assert!(mark.is_some(), "before any such network comes");
    let routes = |play: &Play| -> Vec<_> {
        play.host.found.routes.iter().map(|r| (r.destination, r.table)).collect()
    };
    const MAIN: u32 = 254;
    for around in ["198.51.100.0/24", "203.0.113.0/25"] {
        // The other end's, and our own.
        play.handle(Event::Hosts(table(&[(around, A), ("10.7.0.0/16", A)])));
        let tables = routes(&play);
        assert!(tables.contains(&(net("10.7.0.0/16"), MAIN)), "{tables:?}");
        assert!(tables.contains(&(net(around), mark.unwrap())), "{tables:?}");
        assert_eq!(tables.len(), 2);
        assert!(!play.host.found.policy_rules.is_empty());
    }
    play.handle(Event::Hosts(table(&[("10.7.0.0/16", A)])));
    assert_eq!(routes(&play), [(net("10.7.0.0/16"), MAIN)]);
    assert!(play.host.found.policy_rules.is_empty());
}

/// The kernel refuses a link whose pair of addresses another has, here one in another network namespace.
#[test]
fn only_the_node_whose_addresses_are_taken_gets_an_alternate_one() {
    let mut host = FakeHost::new();
    host.taken_elsewhere = Some(*at(A).ip());
    let mut play = Play::start_on(Datapath::Kernel, node(), host, Memory::default());
    play.handle(Event::Hosts(three_nodes()));
    let alternate: Vec<_> = play
        .host
        .admitted()
        .into_iter()
        .map(|admitted| (admitted.remote, admitted.alternate.is_some()))
        .collect();
    assert_eq!(alternate, [(at(A), true), (at(B), false)]);
}

/// The kernel's links lead there by addresses of theirs, and a network around outer addresses by a route
/// of its own.
#[test]
fn a_link_never_carries_its_own_outer_packets() {
    let mut play = Play::start(node(), FakeHost::new(), Memory::default());
    const MARK: u32 = 0x6970_0000;
    let index = |play: &Play, remote: &str| {
        let leads_there = |i: &&Interface| match i.kind {
            InterfaceKind::Ipip(link) => link.remote == *at(remote).ip(),
            InterfaceKind::Tun | InterfaceKind::Other => false,
        };
        play.host.found.interfaces.iter().find(leads_there).unwrap().index
    };
    let addresses = |play: &Play, index: u32| -> Vec<IpNet> {
        let on_link = play.host.found.addresses.iter().filter(|a| a.interface == index);
        on_link.map(|a| a.value.network).collect()
    };
    for (around, of) in [("198.51.100.0/24", A), ("203.0.113.0/25", B), ("198.51.100.7/32", B)] {
        let beside = ("192.168.100.2/32", if of == A { B } else { A });
        play.handle(Event::Hosts(table(&[beside, (around, of), ("10.7.0.0/16", of)])));
        let leads_there = index(&play, of);
        assert_eq!(
            addresses(&play, leads_there),
            [net("192.168.100.1/32"), net("10.7.0.0/16")],
            "{around}"
        );
        assert_eq!(addresses(&play, index(&play, beside.1)), [net(beside.0)]);
        let expected = Route {
            destination: net(around),
            table: MARK,
            target: RouteTarget::Interface(leads_there),
            source: Some("192.168.100.1".parse().unwrap()),
        };
        assert!(play.host.found.routes.contains(&expected), "{:?}", play.host.found.routes);
        let own = PolicyRuleKind::FromOwn(OUTER.into());
        assert!(play.host.found.policy_rules.iter().any(|rule| rule.kind == own));
        assert_eq!(play.host.found.policy_rules.len(), 3);
        assert!(
            play.host.found.interfaces.iter().all(|i| match i.kind {
                InterfaceKind::Ipip(link) => link.mark == MARK,
                InterfaceKind::Tun | InterfaceKind::Other => true,
            }),
            "before any such network comes"
        );
    }
    play.handle(Event::Hosts(table(&[("10.7.0.0/16", A)])));
    assert_eq!(addresses(&play, index(&play, A)), [net("10.7.0.0/16")]);
    assert!(play.host.found.policy_rules.is_empty());
    assert_eq!(play.host.found.routes.len(), 1, "what is in no table");
    play.end();
    assert_eq!(play.host.shape(), FakeHost::new().shape());
}

/// The network of the inner addresses may itself be around outer ones.
#[test]
fn an_inner_network_around_outer_addresses_takes_only_unmarked_packets() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut config = node();
        config.tunnel.inner = "198.51.1.1".parse().unwrap();
        config.tunnel.inner_peer = "198.51.0.0/16".parse().unwrap();
        let config = config;
        let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
        play.handle(Event::Hosts(table(&[("198.51.1.2/32", A), ("198.51.1.3/32", B)])));
        let whole: Vec<_> = play
            .host
            .found
            .routes
            .iter()
            .filter(|route| route.destination == net("198.51.0.0/16"))
            .map(|route| (route.table, matches!(route.target, RouteTarget::Unreachable)))
            .collect();
        assert_eq!(whole, [(0x6970_0000, datapath == Datapath::Kernel)], "{datapath:?}");
        assert_eq!(play.host.found.policy_rules.len(), 3, "{datapath:?}");
        let wide = |address: &&Address| address.value.network.prefix_len() == 16;
        assert_eq!(play.host.found.addresses.iter().find(wide), None, "{datapath:?}");
        play.end();
        let left = &play.host.found;
        assert_eq!(left.addresses, FakeHost::new().found.addresses, "{datapath:?}");
        assert!(left.routes.is_empty() && left.policy_rules.is_empty(), "{datapath:?}");
    }
}

#[test]
fn the_outer_address_is_never_one_of_the_tunnel() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let mut config = client(HostName::Address("198.51.100.9".parse().unwrap()), None);
        config.tunnel.outer = Outer::Route;
        config.tunnel.fast_path = FastPathChoice::Off;
        config.tunnel.inner = "172.28.0.1".parse().unwrap();
        config.tunnel.inner_peer = "172.28.0.0/32".parse().unwrap();
        let config = Config::from(config);
        let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
        let before = (play.host.clone(), play.sent.len());
        let tunnel = "ipipou0".parse().unwrap();
        let interface = play.host.found.interface(&tunnel).unwrap().index;
        let outside = play.host.found.way;
        // Somebody moves the default route into the tunnel.
        let source = "172.28.0.1".parse().unwrap();
        play.host.found.way = Some(Way { source, interface, router: None });
        for _ in 0..2 {
            play.read();
        }
        assert_eq!(play.reports.last(), Some(&Report::WayLeadsBack(tunnel)), "{datapath:?}");
        assert_eq!(play.reports.len(), 2, "said once, behind what was sent");
        play.host.found.way = outside;
        assert_eq!(play.host, before.0, "nothing follows it");
        play.read();
        assert_eq!(play.sent.len(), before.1 + 1, "the server may have to learn of it");
        assert_eq!(play.host, before.0);
    }
}

#[test]
fn a_node_has_a_link_for_every_remote_in_the_kernels_datapath() {
    let mut play = Play::start(node(), FakeHost::new(), Memory::default());
    let unreachable: Vec<_> = play.host.found.routes.iter().collect();
    assert_eq!(unreachable.len(), 1);
    assert_eq!(unreachable[0].destination, net("192.168.100.0/24"));
    assert_eq!(unreachable[0].target, RouteTarget::Unreachable);
    let mut nodes = three_nodes();
    // Another port at an address that is taken: the kernel wants another pair of addresses.
    nodes.extend(table(&[("192.168.100.5/32", "198.51.100.7:4999")]));
    nodes.extend(table(&[("2001:db8::/64", B)]));
    play.handle(Event::Hosts(nodes.clone()));
    let links = |play: &Play| -> BTreeSet<String> {
        let ours = play.host.found.interfaces.iter().filter(|i| i.name.starts_with("ipipou0-"));
        ours.map(|i| i.name.clone()).collect()
    };
    assert_eq!(links(&play).len(), 3);
    let pairs: BTreeSet<_> = links(&play)
        .iter()
        .filter_map(|name| play.host.link(name))
        .map(|link| (link.local.to_string(), link.remote.to_string()))
        .collect();
    assert_eq!(pairs.len(), 3, "{pairs:?}");
    let admitted: Vec<_> = play.host.admitted().iter().map(|a| a.remote.to_string()).collect();
    assert_eq!(admitted, [A, "198.51.100.7:4999", B]);
    let not_ipv4 = |r: &Report| matches!(r, Report::NodeUnusable { why: Unusable::NotIpv4, .. });
    assert_eq!(play.reports.iter().filter(|r| not_ipv4(r)).count(), 1);
    // The same table after a restart: the same names, and nothing is made again.
    let before = links(&play);
    let mut left = play.host.clone();
    left.found.rules = ipipou::engine::host::RulesFound::Unknown;
    let mut again = Play::start(node(), left, play.memory.clone());
    again.handle(Event::Hosts(nodes));
    assert_eq!(links(&again), before);
    again.handle(Event::Hosts(table(&[("192.168.100.3/32", B)])));
    assert_eq!(links(&again).len(), 1);
    again.end();
    assert_eq!(again.host.shape(), FakeHost::new().shape());
}
