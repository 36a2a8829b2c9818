//! Full tunnels leave alone who reaches the host at an address of its own.

use super::host::{ETH0, LOOPBACK, OUTER};
use super::*;
use ipipou::engine::host::own_addresses::{MOST, MOST_OF_ONE};
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

#[test]
fn every_address_outside_of_tunnels_is_left_alone() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let play = full_tunnel(datapath, |host| {
            host.add_interface("eth1", ETH1, InterfaceKind::Other);
            add(host, ETH1, &["10.0.0.10/24", "2001:db8::10/64", "fe80::10/64"]);
            add(host, LOOPBACK, &["192.0.2.7/32", "::1/128"]);
            let value = InterfaceAddress::new(ip("172.29.0.5"), net("172.29.0.5/32"));
            let alternate = Address { scope: Scope::Host, ..Address::new(LOOPBACK, value) };
            host.found.addresses.add(alternate);
            host.add_interface("ipipou7", 17, InterfaceKind::Tun);
            host.change("ipipou7", |link| link.label = Some("made by ipipou".to_owned()));
            add(host, 17, &["172.28.0.9/31", "fd07::1/64"]);
        });
        let mut expected = BTreeSet::from([OUTER.into(), ip("10.0.0.10"), ip("192.0.2.7")]);
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
        assert_eq!((answers.uplink, answers.addresses), (None, [ip("203.0.113.2")].into()));
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

/// One interface has thousands of addresses, as that of kube-proxy has.
#[test]
fn too_many_addresses_do_not_take_the_place_of_others() {
    let mut play = full_tunnel(Datapath::Tun, |host| {
        host.add_interface("kube-ipvs0", 5, InterfaceKind::Other);
        many(96, 20_000).for_each(|address| host.add_address(5, address, 32));
        host.add_interface("eth1", ETH1, InterfaceKind::Other);
        add(host, ETH1, &["10.0.0.10/24", "10.0.0.11/24"]);
    });
    let first = left_alone(&play);
    let others = [OUTER.into(), ip("10.0.0.10"), ip("10.0.0.11")];
    let of_many: BTreeSet<IpAddr> = many(96, 64).map(IpAddr::from).collect();
    assert_eq!(first, others.into_iter().chain(of_many).collect());
    assert_eq!(first.len(), MOST_OF_ONE + others.len());
    play.read();
    assert_eq!(told_of_many(&play), 1);

    // What an operator adds later has room, and the place of one that goes is given to the next.
    add(&mut play.host, ETH1, &["10.0.0.12/24"]);
    play.host.found.addresses.retain(|address| address.value.local != ip("10.96.0.1"));
    play.read();
    let now = left_alone(&play);
    assert!(now.contains(&ip("10.0.0.12")) && now.contains(&ip("10.96.0.64")));
    let gone: Vec<_> = first.difference(&now).collect();
    assert_eq!((gone, told_of_many(&play)), (vec![&ip("10.96.0.1")], 1));
}

/// There is room for what comes later at the uplink.
#[test]
fn many_interfaces_leave_room_for_the_uplink() {
    let mut play = full_tunnel(Datapath::Kernel, |host| {
        for (index, address) in (20..).zip(many(1, 500)) {
            host.add_interface(&format!("br{index}"), index, InterfaceKind::Other);
            host.add_address(index, address, 24);
        }
    });
    assert_eq!(left_alone(&play).len(), MOST);
    play.host.add_address(ETH0, [203, 0, 113, 2].into(), 24);
    play.read();
    let now = left_alone(&play);
    assert!(now.contains(&ip("203.0.113.2")) && now.len() == MOST + 1);
}

/// While an address is there, its rule is: those of another uplink do not take its place.
#[test]
fn a_rule_stays_as_long_as_its_address() {
    let mut play = full_tunnel(Datapath::Tun, |host| {
        many(1, 400).for_each(|address| host.add_address(ETH0, address, 32));
        host.add_interface("eth1", ETH1, InterfaceKind::Other);
        many(2, 400).for_each(|address| host.add_address(ETH1, address, 32));
    });
    let first = left_alone(&play);
    assert_eq!(first.len(), 401, "all of the uplink");
    play.host.found.way = Some(Way { source: ip("10.2.0.0"), interface: ETH1, router: None });
    play.read();
    let now = left_alone(&play);
    assert!(now.is_superset(&first) && now.len() == 2 * MOST);
    assert_eq!(told_of_many(&play), 1);
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
