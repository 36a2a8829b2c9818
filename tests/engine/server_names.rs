//! Clients whose server has a name, which stands for several addresses or for others later.

use ipipou::engine::host::RulesFound;

use super::host::OUTER;
use super::situations::{SECOND, calling};
use super::*;

#[test]
fn a_client_uses_the_tunnel_it_finds_until_the_name_is_resolved() {
    let client = || client(HostName::Name("server.example".into()), None);
    let config = || Config::from(client());
    let mut play = Play::start(config(), FakeHost::new(), Memory::default());
    let (one, two) = ("203.0.113.9".parse().unwrap(), "203.0.113.10".parse().unwrap());
    play.handle(Event::Resolved { server: 0, addresses: vec![one] });
    let left = play.host.clone();
    let mut again = Play::start(config(), left.clone(), play.memory.clone());
    let to = outer_at("203.0.113.9:10000");
    assert_eq!(again.reports[0], Report::Adopted(to));
    assert_eq!(again.sent.iter().map(|out| out.to).collect::<Vec<_>>(), [to]);
    again.handle(Event::Resolved { server: 0, addresses: vec![two, one] });
    assert_eq!(again.sent.len(), 1, "it is still one of its addresses");
    assert_eq!(again.host.link("ipipou0").unwrap().remote, one);
    // What leads to another port of the server is none of this tunnel.
    let mut client = client();
    client.server.port = 10001.try_into().unwrap();
    let other = Play::start(Config::from(client), left, play.memory);
    assert!(other.sent.is_empty());
}

#[test]
fn a_client_follows_a_server_that_moved() {
    let config = Config::from(client(HostName::Name("server.example".into()), None));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    assert!(play.sent.is_empty() && play.host.link("ipipou0").is_none());
    let one = "203.0.113.9".parse().unwrap();
    let two: std::net::IpAddr = "203.0.113.10".parse().unwrap();
    play.handle(Event::Resolved { server: 0, addresses: vec![one, two] });
    play.handle(Event::Resolved { server: 0, addresses: vec![two, one] }); // the order alone is not a move
    assert_eq!(play.sent.len(), 1);
    play.handle(Event::Resolved { server: 0, addresses: vec![two] });
    assert_eq!(play.sent.last().unwrap().to, outer_at("203.0.113.10:10000"));
    assert_eq!(play.host.link("ipipou0").unwrap().remote, two);
    assert_eq!(play.engine.counters().repaired, 0, "a move is not a repair");
}

#[test]
fn a_client_keeps_the_servers_address_until_its_name_is_resolved() {
    let mut play = calling(None);
    play.host.found.rules = RulesFound::Unknown;
    let start = |name: &str, port: u16| {
        let mut config = client(HostName::Name(name.into()), None);
        config.server.port = port.try_into().unwrap();
        Play::start(Config::from(config), play.host.clone(), Memory::default())
    };
    let again = start("server.example", 10000);
    assert_eq!(again.sent[0].to, outer_at("203.0.113.9:10000"));
    assert_eq!(again.reports[0], Report::Adopted(outer_at("203.0.113.9:10000")));
    // Another port is another server's.
    let other = start("server.example", 10001);
    assert!(other.sent.is_empty());
    // An address that is given counts more than what is found.
    let config = client(HostName::Address("203.0.113.10".parse().unwrap()), None);
    let moved = Play::start(Config::from(config), play.host.clone(), Memory::default());
    assert_eq!(moved.sent[0].to, outer_at("203.0.113.10:10000"));
    assert_eq!(moved.host.link("ipipou0").unwrap().remote.to_string(), "203.0.113.10");
}

/// The next process reads the host before it has looked the name up.
#[test]
fn a_tunnel_of_userspace_goes_on_before_its_servers_name_is_looked_up() {
    for is_lost in [false, true] {
        let config = || {
            let mut config = client(HostName::Name("server.example".into()), None);
            config.tunnel.gateway.default_route = true;
            Config::from(config)
        };
        let mut play = Play::start_on(Datapath::Tun, config(), FakeHost::new(), Memory::default());
        let address: std::net::IpAddr = "203.0.113.9".parse().unwrap();
        play.handle(Event::Resolved { server: 0, addresses: vec![address] });
        play.read();
        let mut host = play.host.clone();
        host.found.userspace.forwarding.remotes.clear();
        let memory = if is_lost { Memory::lost() } else { play.memory.clone() };
        let mut again = Play::start_on(Datapath::Tun, config(), host, memory);
        assert!(!again.applied.iter().any(|step| step == "remove ipipou0"), "{:?}", again.applied);
        assert!(again.host.found.userspace.interface);
        // What would be led into it could not be sent: nor could the question for the name.
        assert_eq!(again.host.found.policy_rules.is_empty(), is_lost);
        let to = outer_at("203.0.113.9:10000");
        assert_eq!(userspace::remotes(&again), if is_lost { vec![] } else { vec![to] });
        again.handle(Event::Resolved { server: 0, addresses: vec![address] });
        again.read();
        assert_eq!(userspace::remotes(&again), [to]);
        assert_eq!(again.host.found.policy_rules, play.host.found.policy_rules);
        // Another server is not the one that had it.
        let mut other = client(HostName::Name("other.example".into()), None);
        other.server.port = 10000.try_into().unwrap();
        let other =
            Play::start_on(Datapath::Tun, other.into(), play.host.clone(), play.memory.clone());
        assert_eq!(userspace::remotes(&other), []);
    }
}

/// A client whose server's name stands for these addresses, which there is a way to.
fn calling_one_of(datapath: Datapath, addresses: &[&str]) -> Play {
    let config = Config::from(client(HostName::Name("server.example".into()), Some(27 * SECOND)));
    let mut host = FakeHost::new();
    let way = host.found.way.unwrap();
    let all: Vec<std::net::IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    host.found.other_ways = all.iter().map(|address| (*address, way)).collect();
    let mut play = Play::start_on(datapath, config, host, Memory::default());
    play.handle(Event::Resolved { server: 0, addresses: all });
    play
}

/// The other end's address after a number of seconds, in each of which a number of packets went through.
fn server_after(play: &mut Play, seconds: u32, received: u64, sent: u64) -> String {
    for _ in 0..seconds {
        play.host.change("ipipou0", |interface| {
            interface.traffic.rx_packets += received;
            interface.traffic.tx_packets += sent;
        });
        play.pass(SECOND);
    }
    play.engine.server_address().unwrap().to_string()
}

#[test]
fn a_client_whose_server_is_silent_tries_the_next_address_of_its_name() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut play = calling_one_of(datapath, &["203.0.113.9", "203.0.113.10"]);
        // Authentication packets go out all the time, and no server has to answer them.
        assert_eq!(server_after(&mut play, 1000, 0, 0), "203.0.113.9", "an idle tunnel");
        assert_eq!(server_after(&mut play, 10, 0, 1), "203.0.113.9");
        let packets = play.sent.len();
        assert_eq!(server_after(&mut play, 6, 0, 1), "203.0.113.10");
        assert_eq!(play.sent.len(), packets + 1, "it is authenticated to at once");
        assert_eq!(play.sent.last().unwrap().to, outer_at("203.0.113.10:10000"));
        assert_eq!(play.engine.status().remote, Some(outer_at("203.0.113.10:10000")));
        // It answers: nothing is missed, whatever pauses there are.
        assert_eq!(server_after(&mut play, 100, 1, 1), "203.0.113.10");
        assert_eq!(server_after(&mut play, 9, 0, 1), "203.0.113.10");
        assert_eq!(server_after(&mut play, 1, 1, 1), "203.0.113.10");
        assert_eq!(server_after(&mut play, 1000, 0, 0), "203.0.113.10");
        // Another lookup alone is not a reason.
        let order = ["203.0.113.9", "203.0.113.10"].map(|a| a.parse().unwrap());
        play.handle(Event::Resolved { server: 0, addresses: order.to_vec() });
        assert_eq!(server_after(&mut play, 1, 0, 0), "203.0.113.10");
        assert_eq!(server_after(&mut play, 16, 0, 1), "203.0.113.9", "it is gone, too");
        assert_eq!(play.engine.counters().repaired, 0, "that is not a repair");
        let said = |r: &&Report| matches!(r, Report::NextAddress { .. });
        assert_eq!(play.reports.iter().filter(said).count(), 2);
    }
}

#[test]
fn a_client_that_only_sends_changes_servers_rarely() {
    let mut play = calling_one_of(Datapath::Kernel, &["203.0.113.9", "203.0.113.10"]);
    server_after(&mut play, 3600, 0, 1);
    let said = |r: &&Report| matches!(r, Report::NextAddress { .. });
    let moves = play.reports.iter().filter(said).count();
    assert!((50..=62).contains(&moves), "{moves}");
}

#[test]
fn a_reply_to_an_authentication_packet_shows_that_the_server_is_there() {
    let mut play = calling_one_of(Datapath::Tun, &["203.0.113.9", "203.0.113.10"]);
    for _ in 0..20 {
        play.host.found.answers += 1;
        assert_eq!(server_after(&mut play, 9, 0, 1), "203.0.113.9");
    }
    assert_eq!(server_after(&mut play, 16, 0, 1), "203.0.113.10");
}

#[test]
fn an_unreachable_address_of_the_server_is_skipped() {
    let (v4, v6) = ("203.0.113.9", "2001:db8::9");
    let own: std::net::IpAddr = "2001:db8::1".parse().unwrap();
    let mut play = calling_one_of(Datapath::Tun, &[v6, v4]);
    assert_eq!(server_after(&mut play, 1, 0, 0), v4, "IPv4 where there is a choice");
    // IPv4 goes away, and IPv6 is there.
    play.host.add_address_of(super::host::ETH0, net("2001:db8::1/64"));
    play.host.found.other_ways.remove(&v4.parse().unwrap());
    play.host.found.other_ways.get_mut(&v6.parse().unwrap()).unwrap().source = own;
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    assert_eq!(play.engine.status().outer, Some(outer_at("[2001:db8::1]:10000")));
    assert_eq!(play.engine.status().remote, Some(outer_at("[2001:db8::9]:10000")));
    let moved = Report::ServerMoved(v6.parse().unwrap());
    assert_eq!(play.reports.iter().filter(|r| **r == moved).count(), 1);
    assert_eq!(play.sent.last().unwrap().to, outer_at("[2001:db8::9]:10000"));
    // The silent one is left only for where there is a way.
    assert_eq!(server_after(&mut play, 60, 0, 1), v6);
    assert!(!play.reports.iter().any(|r| matches!(r, Report::OuterMissing(_))));
}

#[test]
fn an_unrouted_address_of_the_server_is_the_last_resort() {
    let (one, two) = ("203.0.113.9", "203.0.113.10");
    let mut play = calling_one_of(Datapath::Kernel, &[one, two]);
    play.host.found.unrouted.insert(one.parse().unwrap());
    assert_eq!(server_after(&mut play, 4, 0, 0), two);
    // Silent as it is, it is better than one that no route leads to.
    assert_eq!(server_after(&mut play, 60, 0, 1), two);
    play.host.found.unrouted.insert(two.parse().unwrap());
    assert_eq!(server_after(&mut play, 16, 0, 1), one);
    // As a neighbour it answers: a route to the other is not a reason.
    assert_eq!(server_after(&mut play, 4, 1, 1), one);
    play.host.found.unrouted.remove(&two.parse().unwrap());
    assert_eq!(server_after(&mut play, 60, 0, 0), one);
}

#[test]
fn an_address_the_kernel_datapath_cannot_use_is_reported_once() {
    let config = Config::from(client(HostName::Name("server.example".into()), None));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    for _ in 0..3 {
        play.handle(Event::Resolved { server: 0, addresses: vec!["2001:db8::9".parse().unwrap()] });
    }
    let said: Vec<_> = play.reports.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "the server's name stands for 2001:db8::9, and the kernel's datapath goes over IPv4 only: \
          waiting for an IPv4 one; --datapath tun goes over both"
        ]
    );
    play.handle(Event::Resolved { server: 0, addresses: vec!["203.0.113.9".parse().unwrap()] });
    assert_eq!(play.sent.len(), 1);
}
