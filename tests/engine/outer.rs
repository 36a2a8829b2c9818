//! Outer addresses, and what else of the host is in the way of a tunnel.

use ipipou::engine::host::{
    Address, AddressState, Admitted, InterfaceAddress, InterfaceKind, LinkForwarding, Master, Scope,
};

use super::host::OUTER;
use super::situations::{A, B, SECOND, guarded, serving};
use super::*;

#[test]
fn the_alternate_address_is_used_while_the_pair_is_taken() {
    let mut play = serving();
    play.host.add_strange_link(*at(A).ip());
    play.read();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let link = play.host.link("ipipou0").unwrap();
    assert_eq!(link.local, "172.29.0.0".parse::<std::net::Ipv4Addr>().unwrap());
    assert!(play.host.found.has_local(link.local.into()));
    assert_eq!(play.engine.status().alternate, Some(link.local.into()));
    assert_eq!(
        play.host.admitted(),
        [Admitted { alternate: Some(link.local), ..Admitted::direct(at(A)) }].into()
    );
    // Elsewhere the pair is free.
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.host.link("ipipou0").unwrap().local, OUTER);
    assert!(!play.host.found.has_local(link.local.into()));
    assert_eq!(play.engine.status().alternate, None);
}

#[test]
fn an_address_pair_taken_unnoticed_leads_to_the_alternate_address() {
    let mut play = serving();
    play.host.add_strange_link(*at(A).ip()); // not read yet
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(play.host.link("ipipou0").unwrap().local.to_string(), "172.29.0.0");
}

/// A step that was not tried, because one before it failed, is not taken for done.
#[test]
fn rules_follow_a_new_address_although_the_old_listener_stays() {
    let mut play = serving();
    play.host.broken = "remove FOU listener";
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    play.pass(3 * SECOND);
    assert_eq!(guarded(&play).as_deref(), Some("203.0.113.1"), "the old door is still there");
    play.host.broken = "";
    play.pass(SECOND);
    assert_eq!(guarded(&play).as_deref(), Some("203.0.113.77"));
    assert_eq!(play.host.found.listeners.len(), 1);
}

#[test]
fn an_outer_address_that_goes_away_is_waited_for() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    let steps = play.applied.len();
    play.read();
    assert_eq!(play.applied.len(), steps, "nothing is taken away in the meantime");
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    assert_eq!(play.host.link("ipipou0").unwrap().local.to_string(), "203.0.113.77");
    assert_eq!(play.engine.counters().repaired, 0, "a move is not a repair");
}

#[test]
fn a_fixed_outer_address_that_goes_away_is_waited_for() {
    let mut config = client(HostName::Address("203.0.113.9".parse().unwrap()), None);
    config.tunnel.outer = Outer::Address(OUTER.into());
    let mut play = Play::start(Config::from(config), FakeHost::new(), Memory::default());
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    assert!(matches!(play.reports.last(), Some(Report::OuterMissing(_))));
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.sent.len(), 2, "again");
}

/// What a process with `-b @eth0` takes, when the interface has these addresses from the start.
fn outer_of(addresses: &[(&str, Scope, AddressState)]) -> Option<String> {
    let mut host = FakeHost::new();
    host.found.addresses.retain(|a| a.value.local != OUTER);
    host.found.way = None;
    for (address, scope, state) in addresses {
        host.add_address(super::host::ETH0, address.parse().unwrap(), 24);
        host.change_addresses(|all| {
            let added = all.last_mut().unwrap();
            (added.scope, added.state) = (*scope, *state);
        });
    }
    let play = Play::start(Config::from(server(None)), host, Memory::default());
    play.engine.status().outer.map(|outer| outer.ip().to_string())
}

#[test]
fn the_outer_address_is_usable_beyond_the_link() {
    use AddressState::{Deprecated, Preferred, Secondary, Tentative};
    let first = ("192.0.2.1", Scope::Global, Preferred);
    for (addresses, taken) in [
        (vec![first, ("192.0.2.2", Scope::Global, Preferred)], Some("192.0.2.1")),
        (vec![("10.0.0.1", Scope::Link, Preferred), first], Some("192.0.2.1")),
        (vec![("169.254.7.7", Scope::Global, Preferred), first], Some("192.0.2.1")),
        (vec![("192.0.2.9", Scope::Global, Secondary), first], Some("192.0.2.1")),
        (vec![("192.0.2.9", Scope::Global, Deprecated), first], Some("192.0.2.1")),
        (vec![("192.0.2.9", Scope::Global, Tentative), first], Some("192.0.2.1")),
        (vec![("10.0.0.1", Scope::Host, Preferred), first], Some("192.0.2.1")),
        (vec![("192.0.2.9", Scope::Global, Deprecated)], Some("192.0.2.9")),
        (vec![("127.0.0.1", Scope::Host, Preferred)], Some("127.0.0.1")),
        (vec![("192.0.2.9", Scope::Global, Tentative)], None),
        (vec![("10.0.0.1", Scope::Link, Preferred)], None),
        (vec![("169.254.7.7", Scope::Link, Preferred)], None),
    ] {
        assert_eq!(outer_of(&addresses).as_deref(), taken, "{addresses:?}");
    }
}

#[test]
fn the_outer_address_in_use_stays_while_it_is_there() {
    let mut play = serving();
    let other = |scope| {
        let mut host = FakeHost::new();
        host.add_address(super::host::ETH0, "192.0.2.7".parse().unwrap(), 24);
        let address = *host.found.addresses.last().unwrap();
        Address { scope, ..address }
    };
    let be = |play: &mut Play, state| {
        play.host.change_addresses(|all| {
            all.iter_mut().find(|a| a.value.local == OUTER).unwrap().state = state;
        });
    };
    let before = play.applied.len();
    for scope in [Scope::Link, Scope::Host, Scope::Global] {
        // The kernel puts an address of a narrower scope before the others.
        play.host.change_addresses(|all| all.insert(1, other(scope)));
        play.read();
        for state in [AddressState::Secondary, AddressState::Deprecated, AddressState::Preferred] {
            be(&mut play, state);
            play.read();
        }
        assert_eq!(play.applied.len(), before, "{scope:?}: {:?}", &play.applied[before..]);
    }
    be(&mut play, AddressState::Tentative);
    play.read();
    assert_eq!(play.reports, [Report::OuterAddress("192.0.2.7".parse().unwrap())]);
}

#[test]
fn the_kernels_route_decides_a_clients_outer_address() {
    let mut host = FakeHost::new();
    let routed = "192.0.2.7".parse().unwrap();
    host.add_address(super::host::ETH0, routed, 24);
    host.found.way.as_mut().unwrap().source = routed.into();
    let server = HostName::Address("203.0.113.9".parse().unwrap());
    let config = Config::from(client(server, None));
    let mut play = Play::start(config, host, Memory::default());
    assert_eq!(play.sent[0].from, outer_at("192.0.2.7:10000"));
    // Without a route it stays as it is, and an address of another interface is none of this one.
    for source in [None, Some("127.0.0.1".parse().unwrap())] {
        play.host.found.way.as_mut().unwrap().source = source.unwrap_or(routed.into());
        play.host.found.way = source.and(play.host.found.way);
        play.read();
        assert_eq!(play.engine.status().outer, Some(outer_at("192.0.2.7:10000")));
        play.host.found.way = FakeHost::new().found.way;
    }
    play.read();
    assert!(play.reports.contains(&Report::OuterAddress(OUTER.into())));
    assert_eq!(play.sent.last().map(|out| out.from), Some(outer_at("203.0.113.1:10000")));
}

/// A container runtime takes the next free network, and gives its second address to the first container.
#[test]
fn a_network_of_others_around_our_addresses_is_reported_once() {
    let mut play = serving();
    let add = |play: &mut Play, name: &str, index: u32, address: &str, prefix: u8| {
        play.host.add_interface(name, index, InterfaceKind::Other);
        play.host.add_address(index, address.parse().unwrap(), prefix);
        play.read();
        play.read();
    };
    add(&mut play, "br-1", 50, "172.28.255.1", 16);
    let taken = |inner: &str, network: &str, interface: &str| Report::NetworkOfOthers {
        inner: inner.parse().unwrap(),
        network: network.parse().unwrap(),
        interface: interface.to_owned(),
    };
    assert_eq!(play.reports, [taken("172.28.0.0", "172.28.0.0/16", "br-1")]);
    play.reports.clear();
    add(&mut play, "br-2", 51, "172.27.0.1", 16);
    add(&mut play, "host-route", 52, "172.28.0.9", 32);
    assert_eq!(play.reports, []);
}

#[test]
fn an_interface_with_the_inner_addresses_is_reported_once() {
    let mut play = serving();
    play.host.add_interface("br-1", 50, InterfaceKind::Other);
    play.host.add_address(50, "172.28.0.0".parse().unwrap(), 16); // our own: no matter
    play.read();
    assert_eq!(play.reports, []);
    let inner: std::net::IpAddr = "172.28.0.1".parse().unwrap();
    play.host.add_address(50, "172.28.0.1".parse().unwrap(), 16);
    let taken = Report::InnerTaken { inner, interface: "br-1".to_owned() };
    for _ in 0..3 {
        play.read();
        assert_eq!(play.reports, std::slice::from_ref(&taken));
    }
    play.host.remove_interface("br-1");
    play.read();
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.reports.clear();
    // The kernel says that the way there is another one, once it could be ours.
    let mut way = play.host.found.way;
    way.as_mut().unwrap().interface = super::host::ETH0;
    play.host.found.inner_way = way;
    play.read();
    play.read();
    let astray = Report::LedAstray { inner, interface: "eth0".to_owned() };
    assert_eq!(play.reports, std::slice::from_ref(&astray));
    // As long as our own steps are not done, its routes may be missing.
    play.host.found.inner_way = None;
    play.read();
    play.reports.clear();
    play.host.found.inner_way = way;
    play.host.change_each(|i| i.up &= i.name != "ipipou0");
    play.host.broken = "set ipipou0 up";
    play.read();
    assert!(!play.reports.contains(&astray));
    play.host.broken = "";
    play.pass(Duration::from_secs(5));
    assert!(play.reports.contains(&astray));
}

/// Addresses go from one link of a server to another, and one of these may have an address that the others'
/// peers have as the server's.
#[test]
fn the_links_of_the_same_server_are_in_nobodys_way() {
    for (own, beside) in [("ipipou0", None), ("ipipou0_10003", Some("ipipou0"))] {
        let mut config = server(None);
        config.tunnel.device = own.parse().unwrap();
        config.tunnel.beside = beside.map(|hub| hub.parse().unwrap());
        let mut play = Play::start(Config::from(config), FakeHost::new(), Memory::default());
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.reports.clear();
        let labelled = LinkForwarding::AmongClients.label().to_owned();
        for (index, name) in [(50, "ipipou0_10004"), (51, "ipipou1_10004")] {
            play.host.add_interface(name, index, InterfaceKind::Tun);
            play.host.change(name, |interface| interface.label = Some(labelled.clone()));
            play.host.add_address(index, "172.28.0.1".parse().unwrap(), 32);
            play.read();
            let mut way = play.host.found.way;
            way.as_mut().unwrap().interface = index;
            play.host.found.inner_way = way;
            play.read();
            assert_eq!(play.reports.is_empty(), index == 50, "{own}: {:?}", play.reports);
        }
    }
}

#[test]
fn an_interface_in_a_vrf_is_reported_once_and_left_there() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let config = Config::from(server(None));
        let mut play = Play::start_on(datapath, config, FakeHost::new(), Memory::default());
        let proof = play.proof();
        play.receive(at(A), &proof);
        let steps = play.applied.len();
        let told =
            |play: &Play| play.reports.iter().filter(|r| matches!(r, Report::InVrf(_))).count();
        // The main table leads elsewhere then.
        let mut elsewhere = play.host.found.way;
        elsewhere.as_mut().unwrap().interface = super::host::ETH0;
        for times in [1, 2] {
            play.host.change_last(|interface| interface.master = Some(Master::Vrf));
            play.host.found.inner_way = elsewhere;
            play.read();
            play.read();
            assert_eq!(told(&play), times, "{datapath:?}");
            play.host.change_last(|interface| interface.master = None);
            play.host.found.inner_way = None;
            play.read();
        }
        assert!(!play.reports.iter().any(|r| matches!(r, Report::LedAstray { .. })));
        assert_eq!(play.applied.len(), steps, "{datapath:?}");
    }
}

/// Somebody else's interface has the name of our tunnel: it is never changed.
#[test]
fn a_foreign_interface_of_our_name_is_never_removed() {
    let label = |text: &str| Some(text.to_owned());
    for label in [None, label(""), label("made by hand"), label("made by ipipou, too")] {
        for known in [false, true] {
            let mut play = serving();
            if known {
                let proof = play.proof();
                play.receive(at(A), &proof);
                play.host.remove_interface("ipipou0");
            }
            play.host.broken = "ipipou0"; // the kernel refuses to change what is of another kind
            play.host.add_interface("ipipou0", 77, InterfaceKind::Other);
            play.host.change_last(|interface| interface.label.clone_from(&label));
            play.read();
            play.pass(10 * SECOND);
            play.host.broken = "";
            play.end();
            let left = play.host.found.interfaces.iter().find(|i| i.name == "ipipou0");
            assert_eq!(left.map(|i| i.index), Some(77), "{label:?} {known}");
            let removed = play.applied.iter().any(|step| step.contains("remove ipipou0"));
            assert!(!removed, "{label:?} {known}: {:?}", play.applied);
        }
    }
}

#[test]
fn an_alternate_address_in_a_vrf_is_reported() {
    let mut host = FakeHost::new();
    host.change("eth0", |interface| interface.master = Some(Master::Vrf));
    host.add_strange_link(*at(A).ip());
    let mut play = Play::start(Config::from(server(None)), host, Memory::default());
    let proof = play.proof();
    play.receive(at(B), &proof);
    let told = |play: &Play| {
        play.reports.iter().filter(|r| matches!(r, Report::AlternateInVrf { .. })).count()
    };
    assert_eq!(told(&play), 0, "it needs none there");
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.read();
    play.read();
    assert_eq!(told(&play), 1);
}

#[test]
fn a_server_on_a_host_without_ipv4_takes_ipv6_or_says_why_not() {
    let host = || {
        let mut host = FakeHost::new();
        host.found.addresses.retain(|a| a.value.local != OUTER);
        host.add_address_of(super::host::ETH0, net("2001:db8::1/64"));
        host.found.way = None;
        host
    };
    let config = || Config::from(server(None));
    let mut play = Play::start_on(Datapath::Tun, config(), host(), Memory::default());
    assert_eq!(play.engine.status().outer, Some(outer_at("[2001:db8::1]:10000")));
    let from = outer_at("[2001:db8::7]:4500");
    let proof = play.proof();
    play.handle(Event::Datagram { from, payload: &proof });
    let forwards = |play: &Play| play.host.found.userspace.forwarding.remotes.contains_key(&from);
    assert!(forwards(&play));
    // IPv4 comes late; the socket for it sends nothing to IPv6 addresses.
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.engine.status().outer, Some(outer_at("203.0.113.1:10000")));
    assert!(!forwards(&play));
    let kernel = Play::start(config(), host(), Memory::default());
    assert_eq!(kernel.reports, [Report::OuterOnlyIpv6("eth0".parse().unwrap())]);
    assert!(kernel.applied.is_empty());
}

/// Ours are those with our address or our network; what else somebody adds to the interface stays.
#[test]
fn only_addresses_that_share_something_with_ours_are_removed() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let index = play.host.last_index();
    let ours = play.host.shape().addresses;
    let mut add = |local: &str, network: &str| {
        let value = InterfaceAddress::new(local.parse().unwrap(), network.parse().unwrap());
        play.host.found.addresses.add(Address::new(index, value));
    };
    add("172.28.0.9", "172.28.0.1/32"); // our network
    add("172.28.0.0", "172.28.0.7/32"); // our address
    add("10.99.0.1", "10.99.0.1/24");
    play.read();
    let foreign = "10.99.0.1".parse::<std::net::IpAddr>().unwrap();
    let left = play.host.shape().addresses;
    assert!(left.iter().any(|address| address.value.local == foreign));
    assert_eq!(left.len(), ours.len() + 1, "{left:?}");
}

#[test]
fn an_ipv6_address_counts_as_global_if_others_than_neighbours_can_answer_it() {
    for (address, is_global) in [
        ("2001:db8::1/64", true),
        ("fd00::1/64", true),
        ("fe80::1/64", false),
        ("::1/128", false),
        ("203.0.113.7/24", false),
    ] {
        let mut host = FakeHost::new();
        host.add_address_of(super::host::ETH0, address.parse().unwrap());
        assert_eq!(host.found.has_global_ipv6(), is_global, "{address}");
    }
}
