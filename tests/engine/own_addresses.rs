//! Full tunnels leave alone who reaches the host at an address of its own.

use super::host::{ETH0, LOOPBACK, OUTER};
use super::*;
use ipipou::engine::host::own_addresses::MOST;
use ipipou::engine::host::step::HostStep;
use ipipou::engine::host::{
    Address, Family, InterfaceAddress, InterfaceKind, PolicyRule, PolicyRuleKind, Scope, Way,
};
use std::net::Ipv4Addr;

const ETH1: u32 = 9;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A full tunnel of both families, on a host that a test furnishes first.
fn full_tunnel(datapath: Datapath, furnish: impl FnOnce(&mut FakeHost)) -> Play {
    let mut client = client(HostName::Address(ip("203.0.113.9")), None);
    client.tunnel.gateway.mark = 0x6970_0000;
    client.tunnel.gateway.default_route = true;
    if datapath == Datapath::Tun {
        client.tunnel.inner6 = Some("fd00::1/64".parse().unwrap());
    }
    let mut host = FakeHost::new();
    furnish(&mut host);
    Play::start_on(datapath, Config::from(client), host, Memory::default())
}

fn add(host: &mut FakeHost, interface: u32, addresses: &[&str]) {
    addresses.iter().for_each(|address| host.add_address_of(interface, net(address)));
}

/// The addresses that are left alone.
fn left_alone(play: &Play) -> BTreeSet<IpAddr> {
    let kinds = play.host.found.policy_rules.iter().map(|rule| rule.kind);
    kinds
        .filter_map(|kind| match kind {
            PolicyRuleKind::FromOwn(address) => Some(address),
            PolicyRuleKind::MainButDefault | PolicyRuleKind::UnlessMarked { .. } => None,
        })
        .collect()
}

fn repairs(play: &Play) -> usize {
    play.reports.iter().filter(|report| matches!(report, Report::Repairing(_))).count()
}

/// What comes to an address of another interface may come through the tunnel, and is answered there. Links of other
/// tunnels have alternate addresses.
#[test]
fn the_addresses_of_the_uplink_are_left_alone() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let play = full_tunnel(datapath, |host| {
            add(host, ETH0, &["192.0.2.7/32", "2001:db8::10/64", "fe80::10/64"]);
            host.add_interface("eth1", ETH1, InterfaceKind::Other);
            add(host, ETH1, &["10.0.0.10/24", "2001:db8:1::10/64"]);
            add(host, LOOPBACK, &["192.0.2.8/32", "::1/128"]);
            let value = InterfaceAddress::new(ip("172.29.0.5"), net("172.29.0.5/32"));
            let alternate = Address { scope: Scope::Host, ..Address::new(LOOPBACK, value) };
            host.found.addresses.add(alternate);
            // Other addresses of this scope, as service addresses may have it, are reached through the tunnel.
            let value = InterfaceAddress::new(ip("172.29.0.6"), net("172.29.0.6/32"));
            let service = Address { scope: Scope::Host, ..Address::new(LOOPBACK, value) };
            host.found.addresses.add(service);
            host.add_link_of_tunnel("ipipou5", 55, [172, 29, 0, 5].into());
        });
        let mut expected = BTreeSet::from([OUTER.into(), ip("192.0.2.7"), ip("172.29.0.5")]);
        if datapath == Datapath::Tun {
            expected.insert(ip("2001:db8::10"));
        }
        assert_eq!(left_alone(&play), expected, "{datapath:?}");
        let order: Vec<_> = play.host.policy_rules.iter().map(|r| (r.family, r.kind)).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[test]
fn addresses_stay_left_alone_without_a_way_to_the_server() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut play = full_tunnel(datapath, |host| host.found.tracked = [Family::V4].into());
        play.host.add_address(ETH0, [203, 0, 113, 2].into(), 24);
        play.read();
        assert_eq!(left_alone(&play), [OUTER.into(), ip("203.0.113.2")].into());
        play.applied.clear();
        play.host.found.addresses.retain(|address| address.value.local != OUTER);
        play.host.found.way = None;
        play.read();
        assert_eq!(left_alone(&play), [ip("203.0.113.2")].into(), "{datapath:?}");
        let answers = play.host.gateways.last().unwrap().answers[&Family::V4].clone();
        let uplink = Some("eth0".to_owned());
        assert_eq!((answers.uplink, answers.addresses), (uplink, [ip("203.0.113.2")].into()));
        let into = |rule: &PolicyRule| rule.leads_into_tunnel();
        assert!(play.host.found.policy_rules.iter().any(into), "nothing leaks meanwhile");
        assert!(!play.applied.iter().any(|step| step.contains("203.0.113.2 lookup")));
        assert_eq!(repairs(&play), 0, "{:?}", play.reports);
        play.end();
        assert!(play.host.policy_rules.is_empty());
    }
}

/// What forwards to others behind this host is not dropped by a check either.
#[test]
fn a_source_check_stays_loose_without_a_way_to_the_server() {
    let mut play =
        full_tunnel(Datapath::Tun, |host| host.change("eth0", |i| i.rp_filter = Some(1)));
    let check = |play: &Play| play.host.found.interface_at(ETH0).unwrap().rp_filter;
    assert_eq!(check(&play), Some(2));
    play.host.found.way = None;
    play.read();
    assert_eq!(check(&play), Some(2));
    play.end();
    assert_eq!(check(&play), Some(1));
}

#[test]
fn an_exception_comes_before_the_rule_into_the_tunnel_again() {
    let mut play = full_tunnel(Datapath::Tun, |_| {});
    let whole = play.host.policy_rules.clone();
    for rule in &whole {
        let before = repairs(&play);
        play.host.lose_policy_rule(rule);
        play.read();
        let sorted = |rules: &[PolicyRule]| rules.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(sorted(&play.host.policy_rules), sorted(&whole), "{rule}");
        for family in [Family::V4, Family::V6] {
            let mut rules = play.host.policy_rules.iter().filter(|rule| rule.family == family);
            assert!(rules.next_back().unwrap().leads_into_tunnel(), "{rule}");
        }
        assert_eq!(repairs(&play), before + 1, "{rule}: {:?}", play.reports);
    }
}

/// The addresses `10.N.0.0` and up, as many as these.
fn many(n: u8, count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(move |i| Ipv4Addr::from(u32::from_be_bytes([10, n, 0, 0]) + i))
}

fn told_of_many(play: &Play) -> usize {
    let is_such = |report: &&Report| matches!(report, Report::TooManyAddresses { .. });
    play.reports.iter().filter(is_such).count()
}

/// What comes first keeps its place; who comes too late is told of once.
#[test]
fn too_many_addresses_of_the_uplink_are_told_of() {
    let mut play = full_tunnel(Datapath::Tun, |host| {
        many(96, 20_000).for_each(|address| host.add_address(ETH0, address, 32));
    });
    let first = left_alone(&play);
    assert_eq!(first.len(), MOST);
    play.read();
    assert_eq!(told_of_many(&play), 1);
    play.host.found.addresses.retain(|address| address.value.local != ip("10.96.0.1"));
    play.read();
    let now = left_alone(&play);
    let gone: Vec<_> = first.difference(&now).collect();
    assert_eq!((gone, now.len(), told_of_many(&play)), (vec![&ip("10.96.0.1")], MOST, 1));
}

/// While an address is there, its rule is, though another interface is the uplink.
#[test]
fn a_rule_stays_as_long_as_its_address() {
    let mut play = full_tunnel(Datapath::Tun, |host| {
        host.add_interface("eth1", ETH1, InterfaceKind::Other);
        add(host, ETH1, &["10.2.0.1/24"]);
    });
    assert_eq!(left_alone(&play), [OUTER.into()].into());
    play.host.found.way = Some(Way { source: ip("10.2.0.1"), interface: ETH1, router: None });
    play.read();
    assert_eq!(left_alone(&play), [OUTER.into(), ip("10.2.0.1")].into());
    assert_eq!(told_of_many(&play), 0);
}

/// An earlier version had the exceptions at priorities of their own.
#[test]
fn exceptions_of_an_earlier_version_go_when_those_of_this_one_are_there() {
    let mut play = full_tunnel(Datapath::Tun, |_| {});
    let before = play.host.policy_rules.clone();
    let older = |rule: &PolicyRule| PolicyRule {
        priority: if rule.leads_into_tunnel() { rule.priority } else { 32763 },
        ..*rule
    };
    let mut rules: Vec<_> = before.iter().map(older).collect();
    rules.sort_by_key(|rule| rule.priority);
    play.host.found.policy_rules = rules.iter().copied().collect();
    play.host.policy_rules = rules;
    play.applied.clear();
    play.read();
    assert_eq!(play.host.found.policy_rules, before.into_iter().collect());
    let last_added = play.applied.iter().rposition(|step| step.starts_with("add rule")).unwrap();
    let removed = play.applied.iter().position(|step| step.starts_with("remove rule")).unwrap();
    assert!(last_added < removed, "{:?}", play.applied);
}

/// A host step for a rule of ours is no repair when the address is new.
#[test]
fn following_an_address_is_no_repair() {
    let mut play = full_tunnel(Datapath::Kernel, |_| {});
    for _ in 0..20 {
        play.host.add_address(ETH0, [203, 0, 113, 2].into(), 24);
        play.read();
        assert!(left_alone(&play).contains(&ip("203.0.113.2")));
        play.host.found.addresses.retain(|address| address.value.local != ip("203.0.113.2"));
        play.read();
        assert!(!left_alone(&play).contains(&ip("203.0.113.2")));
    }
    assert_eq!(repairs(&play), 0);
    let rule = play.host.policy_rules[0];
    play.host.lose_policy_rule(&rule);
    play.read();
    assert!(play.reports.contains(&Report::Repairing(HostStep::AddPolicyRule(rule).into())));
}
