//! One situation a test.

use ipipou::auth::Reject;

use super::host::{OUTER, STRANGER};
use super::*;
use ipipou::engine::host::{
    Address, AddressState, Admitted, InterfaceAddress, InterfaceKind, RulesFound, Scope,
};

pub const A: &str = "198.51.100.7:4500";
pub const B: &str = "198.51.100.8:4501";
pub const SECOND: Duration = Duration::from_secs(1);

pub fn serving() -> Play {
    Play::start(Config::from(server(None)), FakeHost::new(), Memory::default())
}

pub fn calling(keepalive: Option<Duration>) -> Play {
    let host = HostName::Address("203.0.113.9".parse().unwrap());
    Play::start(Config::from(client(host, keepalive)), FakeHost::new(), Memory::default())
}

#[test]
fn a_server_guards_before_it_listens_and_makes_no_tunnel() {
    let play = serving();
    assert_eq!(
        play.applied,
        [
            "install rules ipipou-0 for 203.0.113.1:10000",
            "add FOU listener 203.0.113.1:10000 on interface 2"
        ]
    );
}

#[test]
fn one_authentication_makes_the_tunnel_and_another_moves_it() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(
        play.applied[2..],
        [
            "create ipipou0 local 203.0.113.1 remote 198.51.100.7:4500 on interface 2",
            "set ipipou0 up",
            "add 172.28.0.0 peer 172.28.0.1 to ipipou0",
            "admit 198.51.100.7:4500"
        ]
    );
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(
        play.applied[6..],
        [
            "change ipipou0 to local 203.0.113.1 remote 198.51.100.8:4501 on interface 2",
            "admit 198.51.100.8:4501"
        ]
    );
    assert_eq!(play.engine.counters().moved, 1);
}

#[test]
fn a_refused_packet_changes_nothing() {
    let mut play = serving();
    let before = play.host.clone();
    let good = play.proof();
    let mut wrong = good.clone();
    wrong[70] ^= 1;
    for (payload, reason) in [
        (&b""[..], Reject::Empty),
        (&good[..72], Reject::Truncated),
        (&wrong, Reject::WrongSignature),
        (&[0; 600], Reject::Oversized),
    ] {
        play.receive(at(A), payload);
        assert_eq!(play.engine.counters().rejected.get(&reason), Some(&1), "{reason}");
    }
    assert_eq!(play.host, before);
}

#[test]
fn a_replay_moves_nothing_even_after_a_restart() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.receive(at(B), &proof);
    assert_eq!(play.engine.counters().rejected.get(&Reject::Replayed), Some(&1));
    // Killed, and started again with what was on disk.
    let mut again = Play::start(Config::from(server(None)), play.host, play.memory);
    again.receive(at(B), &proof);
    assert_eq!(again.rejected(), 1);
    assert_eq!(again.host.link("ipipou0").unwrap().remote, *at(A).ip());
}

#[test]
fn a_start_after_a_kill_adopts_the_running_tunnel() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown; // their handles are not known any more
    let again = Play::start(Config::from(server(None)), left, play.memory);
    assert_eq!(again.reports, [Report::Adopted(outer_at(A))]);
    assert_eq!(
        again.applied,
        ["install rules ipipou-0 for 203.0.113.1:10000, admitting 198.51.100.7:4500"]
    );
    assert_eq!(again.host.admitted(), [Admitted { remote: at(A), alternate: None }].into());
}

/// Another process with this configuration, after one was killed that knows a client.
fn after_a_kill(first: Server, age: Duration, second: Server) -> Play {
    let mut play = Play::start(Config::from(first), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(age);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown;
    let skew = i64::try_from(age.as_secs()).unwrap();
    let config = Config::from(second);
    let mut again = Play::stopped_at(skew, Datapath::Kernel, config, left, play.memory);
    again.read();
    again
}

#[test]
fn a_peer_must_authenticate_again_after_a_change_of_key_or_address() {
    let mut other_key = server(None);
    let secret = SharedSecret::new(b"secret".to_vec());
    let other = Signer::new(&[8; 32], SharedSecret::new(b"secret".to_vec()));
    let verifier = Verifier::new(&other.public(), secret, None).unwrap();
    other_key.policy.proof = Proof::Key(verifier);
    let mut elsewhere = server(None);
    elsewhere.policy.remote_ip = Some("192.0.2.77".parse().unwrap());
    for config in [other_key, elsewhere] {
        let play = after_a_kill(server(None), SECOND, config.clone());
        assert!(play.host.admitted().is_empty());
        // Nor does another start let it in.
        let mut left = play.host.clone();
        left.found.rules = RulesFound::Unknown;
        let again = Play::start(Config::from(config), left, play.memory.clone());
        assert!(again.host.admitted().is_empty());
        assert!(play.host.link("ipipou0").is_some());
        assert_eq!(play.reports[..2], [Report::Adopted(outer_at(A)), Report::Expired(outer_at(A))]);
    }
}

#[test]
fn a_restart_does_not_renew_an_authentication() {
    let config = || server(Some(600 * SECOND));
    let mut play = after_a_kill(config(), 590 * SECOND, config());
    assert_eq!(play.host.admitted().len(), 1);
    play.pass(9 * SECOND);
    assert_eq!(play.host.admitted().len(), 1);
    play.pass(2 * SECOND);
    assert!(play.host.admitted().is_empty());
}

#[test]
fn a_start_on_another_port_removes_the_old_listener() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown;
    let mut config = server(None);
    config.tunnel.port = 10005.try_into().unwrap();
    let again = Play::start(Config::from(config), left, play.memory);
    assert!(again.host.link("ipipou0").is_none());
    let ports: Vec<_> = again.host.found.listeners.iter().map(|l| l.port).collect();
    assert_eq!(ports, [10005]);
}

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
        [Admitted { remote: at(A), alternate: Some(link.local) }].into()
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

#[test]
fn a_renamed_link_is_made_again_with_the_same_addresses() {
    for foreign in [false, true] {
        let mut play = serving();
        if foreign {
            play.host.add_strange_link(*at(A).ip()); // ours has the alternate address
            play.read();
        }
        let proof = play.proof();
        play.receive(at(A), &proof);
        let whole = play.host.link("ipipou0");
        play.host.rename("ipipou0", "uplink7");
        play.read();
        assert_eq!(play.host.link("ipipou0"), whole);
        assert_eq!(play.host.link("uplink7"), None);
        assert_eq!(play.host.link(STRANGER).is_some(), foreign);
        play.host.rename("ipipou0", "uplink7");
        play.end();
        assert_eq!(play.host.link("uplink7"), None);
        assert_eq!(play.host.link(STRANGER).is_some(), foreign);
    }
}

#[test]
fn an_authentication_runs_out_and_is_renewed() {
    let config = Config::from(server(Some(10 * SECOND)));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(9 * SECOND);
    assert_eq!(play.host.admitted().len(), 1);
    play.pass(2 * SECOND);
    assert!(play.host.admitted().is_empty());
    assert!(play.reports.contains(&Report::Expired(outer_at(A))));
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(play.host.admitted().len(), 1);
}

#[test]
fn missing_parts_are_repaired() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let whole = play.host.admitted();
    type Breakage = fn(&mut FakeHost);
    let breakages: [Breakage; 6] = [
        |h| h.found.rules = RulesFound::Missing,
        |h| h.found.rules = RulesFound::Intact([].into()),
        |h| h.remove_interface("ipipou0"),
        |h| h.found.listeners.clear(),
        |h| h.found.addresses.retain(|a| a.value.network.prefix_len() != 32),
        |h| h.last_interface().up = false,
    ];
    for (i, break_it) in breakages.into_iter().enumerate() {
        break_it(&mut play.host);
        let repaired = play.engine.counters().repaired;
        play.read();
        assert!(play.engine.counters().repaired > repaired, "{i}");
        assert_eq!(play.host.admitted(), whole, "{i}");
        assert!(play.host.found.has_local("172.28.0.0".parse().unwrap()), "{i}");
        assert_eq!(play.host.found.listeners.len(), 1, "{i}");
    }
}

/// Whether there are rules, and for which address.
fn guarded(play: &Play) -> Option<String> {
    let listens = !play.host.found.listeners.is_empty();
    let rules = play.host.rules.as_ref().filter(|_| !play.host.admitted().is_empty() || listens);
    rules.map(|rules| rules.outer.to_string())
}

#[test]
fn nothing_listens_before_the_rules_are_installed() {
    let mut host = FakeHost::new();
    host.broken = "install rules";
    let mut play = Play::start(Config::from(server(None)), host, Memory::default());
    play.pass(3 * SECOND);
    assert!(play.host.found.listeners.is_empty() && play.applied.len() > 2, "{:?}", play.applied);
    assert!(play.applied.iter().all(|step| step.starts_with("install rules")));
    play.host.broken = "";
    play.pass(SECOND);
    assert_eq!(guarded(&play).as_deref(), Some("203.0.113.1"));
    assert_eq!(play.host.found.listeners.len(), 1);
    // So it is after a move, and when the table was flushed meanwhile.
    for flushed in [false, true] {
        let address = if flushed { "203.0.113.78" } else { "203.0.113.77" };
        play.host.broken = "install rules";
        play.host.found.addresses.retain(|a| a.interface != super::host::ETH0);
        play.host.add_address(super::host::ETH0, address.parse().unwrap(), 24);
        if flushed {
            play.host.found.rules = RulesFound::Missing;
        }
        play.read();
        play.pass(3 * SECOND);
        assert!(play.host.found.listeners.is_empty(), "{address}");
        play.host.broken = "";
        play.pass(SECOND);
        assert_eq!(guarded(&play).as_deref(), Some(address));
        assert_eq!(play.host.found.listeners.len(), 1);
    }
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
    assert_eq!(play.applied.len(), steps, "nothing is taken away meanwhile");
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    assert_eq!(play.host.link("ipipou0").unwrap().local.to_string(), "203.0.113.77");
    assert_eq!(play.engine.counters().repaired, 0, "a move is no repair");
}

#[test]
fn a_client_makes_its_tunnel_and_authenticates() {
    let play = calling(None);
    assert_eq!(play.sent.len(), 1);
    assert_eq!(play.sent[0].from, outer_at("203.0.113.1:10000"));
    assert_eq!(play.sent[0].to, outer_at("203.0.113.9:10000"));
    assert!(play.sent[0].payload.len() == 73 && play.sent[0].payload[0] >= 0x80);
    assert!(play.applied.contains(
        &"create ipipou0 local 203.0.113.1 remote 203.0.113.9:10000 on interface 2".to_owned()
    ));
}

#[test]
fn a_client_that_cannot_send_does_not_loop() {
    let mut host = FakeHost::new();
    host.found.addresses.retain(|a| a.value.local != OUTER);
    let server = HostName::Name("server.example".into());
    let config = Config::from(client(server, Some(SECOND)));
    let mut play = Play::start(config, host, Memory::default());
    for _ in 0..2 {
        assert!(play.engine.next_deadline() > play.now, "a deadline that has come stays due");
        play.pass(60 * SECOND);
        assert!(play.sent.is_empty());
        play.handle(Event::Resolved { server: 0, addresses: vec!["203.0.113.9".parse().unwrap()] });
    }
    let missing = |r: &&Report| matches!(r, Report::OuterMissing(_));
    assert_eq!(play.reports.iter().filter(missing).count(), 1, "said once");
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.sent.len(), 1);
}

#[test]
fn a_client_without_an_outer_address_sends_nothing_until_it_has_one() {
    let mut play = calling(Some(7 * SECOND));
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    play.handle(Event::ReauthRequested);
    play.handle(Event::SendFailed);
    play.pass(60 * SECOND);
    assert_eq!(play.sent.len(), 1, "the first one");
    play.host.add_address(super::host::ETH0, OUTER, 24);
    play.read();
    assert_eq!(play.sent.len(), 2, "once, and not for every time that it was due");
    play.pass(7 * SECOND);
    assert_eq!(play.sent.len(), 3);
}

#[test]
fn a_client_that_ends_sends_nothing_more() {
    let mut play = calling(Some(SECOND));
    play.end();
    let steps = play.applied.len();
    play.handle(Event::ReauthRequested);
    play.read();
    play.pass(10 * SECOND);
    assert_eq!((play.sent.len(), play.applied.len()), (1, steps));
}

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
fn a_packet_that_could_not_be_sent_is_tried_again() {
    let mut play = calling(None);
    play.handle(Event::SendFailed);
    assert_eq!(play.sent.len(), 1);
    play.pass(SECOND);
    assert_eq!(play.sent.len(), 2);
}

#[test]
fn a_client_without_keepalive_tries_again_until_something_comes_back() {
    let mut play = calling(None);
    let mut tries = Vec::new();
    for second in 1..=1000 {
        play.pass(SECOND);
        if play.sent.len() > 1 + tries.len() {
            tries.push(second);
        }
    }
    assert_eq!(tries, [1, 3, 7, 15, 31, 63, 123], "an idle tunnel is left alone then");
    let said = |r: &&Report| matches!(r, Report::NothingBack(_));
    assert_eq!(play.reports.iter().filter(said).count(), 1);
    // It sends, and nothing comes.
    let traffic = |play: &mut Play, received, sent| {
        let interface = play.host.named("ipipou0");
        interface.traffic.rx_packets += received;
        interface.traffic.tx_packets += sent;
    };
    for _ in 0..10 {
        traffic(&mut play, 0, 1);
        play.pass(60 * SECOND);
    }
    assert_eq!(play.sent.len(), 8 + 10);
    // Something comes back; it is answered from now on.
    for _ in 0..10 {
        traffic(&mut play, 1, 1);
        play.pass(60 * SECOND);
    }
    assert_eq!(play.sent.len(), 8 + 10);
    // And at the start as well.
    let mut play = calling(None);
    play.pass(2 * SECOND);
    assert_eq!(play.sent.len(), 2);
    traffic(&mut play, 1, 0);
    play.pass(1000 * SECOND);
    assert_eq!(play.sent.len(), 2);
}

#[test]
fn a_client_authenticates_again_after_a_clock_change_or_a_resume() {
    for keepalive in [None, Some(27 * SECOND), Some(3600 * SECOND)] {
        let mut play = calling(keepalive);
        let answered = |play: &mut Play| {
            play.host.last_interface().traffic.rx_packets += 1;
        };
        answered(&mut play);
        play.pass(5 * SECOND);
        assert_eq!(play.sent.len(), 1, "{keepalive:?}");
        for (skew, packets) in [(2, 1), (3602, 2), (3601, 2), (1, 3)] {
            play.skew = skew;
            answered(&mut play);
            play.pass(3 * SECOND);
            assert_eq!(play.sent.len(), packets, "{keepalive:?}");
        }
        assert!(play.reports.contains(&Report::ClockJumped(3600)), "{:?}", play.reports);
    }
}

#[test]
fn a_client_with_a_long_keepalive_does_not_wait_for_it_when_nothing_comes_back() {
    let mut play = calling(Some(3600 * SECOND));
    play.pass(130 * SECOND);
    assert_eq!(play.sent.len(), 8);
    let mut play = calling(Some(27 * SECOND));
    play.pass(26 * SECOND);
    assert_eq!(play.sent.len(), 1);
}

#[test]
fn a_client_authenticates_again_behind_another_router() {
    let mut play = calling(None);
    for (router, packets) in [(None, 1), (Some("203.0.113.254"), 2), (Some("203.0.113.253"), 3)] {
        let way = play.host.found.way.as_mut().unwrap();
        way.router = router.map(|router| router.parse().unwrap());
        play.read();
        assert_eq!(play.sent.len(), packets, "{router:?}");
    }
    play.host.found.way = None;
    play.read();
    assert_eq!(play.sent.len(), 3);
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
    assert_eq!(play.sent.len(), 2, "anew");
}

#[test]
fn a_client_authenticates_regularly_and_on_request() {
    let mut play = calling(Some(27 * SECOND));
    play.pass(27 * 3 * SECOND);
    assert_eq!(play.sent.len(), 4);
    play.handle(Event::ReauthRequested);
    assert_eq!(play.sent.len(), 5);
}

#[test]
fn a_client_authenticates_again_from_a_new_address() {
    let mut play = calling(None);
    play.host.found.addresses.retain(|a| a.value.local != OUTER);
    play.read();
    play.host.add_address(super::host::ETH0, "203.0.113.77".parse().unwrap(), 24);
    play.read();
    assert_eq!(play.sent.len(), 2);
    assert_eq!(play.sent[1].from, outer_at("203.0.113.77:10000"));
}

/// What a process with `-b @eth0` takes, when the interface has these addresses from the start.
fn outer_of(addresses: &[(&str, Scope, AddressState)]) -> Option<String> {
    let mut host = FakeHost::new();
    host.found.addresses.retain(|a| a.value.local != OUTER);
    host.found.way = None;
    for (address, scope, state) in addresses {
        host.add_address(super::host::ETH0, address.parse().unwrap(), 24);
        let added = host.found.addresses.last_mut().unwrap();
        (added.scope, added.state) = (*scope, *state);
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
        let mut address = host.found.addresses.pop().unwrap();
        address.scope = scope;
        address
    };
    let before = play.applied.len();
    for scope in [Scope::Link, Scope::Host, Scope::Global] {
        // The kernel puts an address of a narrower scope before the others.
        play.host.found.addresses.insert(1, other(scope));
        play.read();
        for state in [AddressState::Secondary, AddressState::Deprecated, AddressState::Preferred] {
            let used = play.host.found.addresses.iter_mut().find(|a| a.value.local == OUTER);
            used.unwrap().state = state;
            play.read();
        }
        assert_eq!(play.applied.len(), before, "{scope:?}: {:?}", &play.applied[before..]);
    }
    let used = play.host.found.addresses.iter_mut().find(|a| a.value.local == OUTER);
    used.unwrap().state = AddressState::Tentative;
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

#[test]
fn a_client_follows_a_server_that_moved() {
    let config = Config::from(client(HostName::Name("server.example".into()), None));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    assert!(play.sent.is_empty() && play.host.link("ipipou0").is_none());
    let one = "203.0.113.9".parse().unwrap();
    let two: std::net::IpAddr = "203.0.113.10".parse().unwrap();
    play.handle(Event::Resolved { server: 0, addresses: vec![one, two] });
    play.handle(Event::Resolved { server: 0, addresses: vec![two, one] }); // the order alone is no move
    assert_eq!(play.sent.len(), 1);
    play.handle(Event::Resolved { server: 0, addresses: vec![two] });
    assert_eq!(play.sent.last().unwrap().to, outer_at("203.0.113.10:10000"));
    assert_eq!(play.host.link("ipipou0").unwrap().remote, two);
    assert_eq!(play.engine.counters().repaired, 0, "a move is no repair");
}

fn seconds(payload: &[u8]) -> u64 {
    ipipou::wire::auth_packet::AuthPacket::parse(payload).unwrap().seconds
}

/// What a client that starts now, with this memory and this clock, puts in its first packet.
fn first_seconds(memory: &Memory, skew: i64) -> u64 {
    let shows = Shows { credential: Credential::Key(signer()), keepalive: None, server: None };
    seconds(&ipipou::engine::first_packet(&shows, memory, &moment(Duration::ZERO, skew, 1)))
}

#[test]
fn a_clients_time_never_goes_back() {
    let mut play = calling(Some(SECOND));
    play.pass(5 * SECOND);
    play.skew = -100_000_000;
    play.pass(5 * SECOND);
    let sent: Vec<_> = play.sent.iter().map(|out| seconds(&out.payload)).collect();
    assert!((11..=12).contains(&sent.len()), "{sent:?}");
    let later: Vec<_> = sent.windows(2).map(|two| two[1].checked_sub(two[0])).collect();
    assert!(later.iter().all(|step| *step == Some(1)), "strictly, and no faster: {sent:?}");
    // Nor across a restart with a clock that says 1970.
    assert!(first_seconds(&play.memory, -1_700_000_000) > *sent.last().unwrap());
}

#[test]
fn a_client_whose_clock_is_right_does_not_run_ahead_of_it() {
    let mut play = calling(Some(SECOND));
    play.pass(5 * SECOND);
    assert_eq!(seconds(&play.sent.last().unwrap().payload), START + 5);
    assert_eq!(first_seconds(&play.memory, 6), START + 6);
}

#[test]
fn the_end_leaves_the_host_as_it_was() {
    let before = FakeHost::new();
    let mut play = serving();
    let proof = play.proof();
    play.host.add_strange_link(*at(A).ip());
    play.read();
    play.receive(at(A), &proof);
    play.end();
    play.host.remove_interface(super::host::STRANGER);
    assert_eq!(play.host.shape(), before.shape());
    let mut play = calling(None);
    play.end();
    assert_eq!(play.host.shape(), before.shape());
}

#[test]
fn a_server_does_not_authenticate_itself() {
    let mut play = serving();
    play.handle(Event::ReauthRequested);
    assert_eq!(play.reports, [Report::ReauthIgnored]);
    assert!(play.sent.is_empty());
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
    play.host.each_interface(|i| i.up &= i.name != "ipipou0");
    play.host.broken = "set ipipou0 up";
    play.read();
    assert!(!play.reports.contains(&astray));
    play.host.broken = "";
    play.pass(Duration::from_secs(5));
    assert!(play.reports.contains(&astray));
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
            play.host.last_interface().in_vrf = true;
            play.host.found.inner_way = elsewhere;
            play.read();
            play.read();
            assert_eq!(told(&play), times, "{datapath:?}");
            play.host.last_interface().in_vrf = false;
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
            play.host.last_interface().label.clone_from(&label);
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
fn the_source_check_sets_the_reverse_path_filter() {
    for (check, value) in [
        (SourceCheck::Off, 0), // as it was
        (SourceCheck::Strict, 1),
        (SourceCheck::Loose, 2),
    ] {
        let mut config = server(None);
        config.tunnel.source_check = check;
        let mut play = Play::start(Config::from(config), FakeHost::new(), Memory::default());
        let proof = play.proof();
        play.receive(at(A), &proof);
        let filter = |play: &Play| {
            play.host.found.interfaces.iter().find(|i| i.name == "ipipou0").unwrap().rp_filter
        };
        assert_eq!(filter(&play), Some(value), "{check:?}");
        // Somebody turns it off, and on the wrong way.
        for wrong in [0, 1, 2] {
            play.host.named("ipipou0").rp_filter = Some(wrong);
            play.read();
            let expected = if check == SourceCheck::Off { wrong } else { value };
            assert_eq!(filter(&play), Some(expected), "{check:?} from {wrong}");
        }
    }
}

#[test]
fn nothing_is_sent_without_an_address_nor_after_the_end() {
    for keepalive in [None, Some(SECOND)] {
        let mut play = calling(keepalive);
        play.host.found.addresses.retain(|a| a.value.local != OUTER);
        play.read();
        play.handle(Event::ReauthRequested);
        play.pass(10 * SECOND);
        assert_eq!(play.sent.len(), 1, "there is no address");
        play.host.add_address(super::host::ETH0, OUTER, 24);
        play.read();
        assert_eq!(play.sent.len(), 2);
        play.end();
        play.now += 10 * SECOND;
        play.handle(Event::ReauthRequested);
        play.handle(Event::Deadline);
        play.read();
        assert_eq!(play.sent.len(), 2, "it has ended");
    }
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

#[test]
fn a_client_behind_nat_stays_connected_after_a_kill_of_its_server() {
    let foreign = "198.51.100.7:23456";
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(foreign), &proof);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown;
    let mut again = Play::start(Config::from(server(None)), left, play.memory);
    assert_eq!(again.host.admitted(), [Admitted { remote: at(foreign), alternate: None }].into());
    again.drawn = 1000;
    let proof = again.proof();
    again.receive(at(foreign), &proof);
    assert_eq!((again.engine.counters().accepted, again.engine.counters().moved), (1, 0));
}

#[test]
fn two_servers_do_not_answer_each_other_endlessly() {
    let mut config = server(None);
    config.reply = Reply::Reversed;
    let mut play = Play::start(Config::from(config), FakeHost::new(), Memory::default());
    for _ in 0..100 {
        let proof = play.proof();
        play.receive(at(A), &proof);
    }
    assert_eq!((play.engine.counters().accepted, play.sent.len()), (100, 3));
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.sent.len(), 4, "another remote");
    play.pass(5 * SECOND);
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.sent.len(), 5);
    assert_eq!(play.sent[4].payload, proof.iter().rev().copied().collect::<Vec<_>>());
}

#[test]
fn packets_from_many_ports_of_one_address_get_three_answers() {
    let mut config = server(None);
    config.reply = Reply::Reversed;
    config.policy.proof = Proof::Nothing;
    config.policy.remote_ip = Some((*at(A).ip()).into());
    let mut play = Play::start(Config::from(config), FakeHost::new(), Memory::default());
    for port in 1..=100 {
        play.receive(SocketAddrV4::new(*at(A).ip(), port), b"hello");
    }
    assert_eq!((play.engine.counters().accepted, play.sent.len()), (100, 3));
}

#[test]
fn an_alternate_address_in_a_vrf_is_reported() {
    let mut host = FakeHost::new();
    host.named("eth0").in_vrf = true;
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

/// The other end's address after so many seconds, in each of which so many packets went through.
fn server_after(play: &mut Play, seconds: u32, received: u64, sent: u64) -> String {
    for _ in 0..seconds {
        let interface = play.host.named("ipipou0");
        interface.traffic.rx_packets += received;
        interface.traffic.tx_packets += sent;
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
        // Another lookup alone is no reason.
        let order = ["203.0.113.9", "203.0.113.10"].map(|a| a.parse().unwrap());
        play.handle(Event::Resolved { server: 0, addresses: order.to_vec() });
        assert_eq!(server_after(&mut play, 1, 0, 0), "203.0.113.10");
        assert_eq!(server_after(&mut play, 16, 0, 1), "203.0.113.9", "it is gone, too");
        assert_eq!(play.engine.counters().repaired, 0, "that is no repair");
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
    // As a neighbour it answers: a route to the other is no reason.
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

#[test]
fn links_and_rules_of_the_tunnel_count_as_leftovers() {
    let left = |found: &Found| ipipou::engine::has_leftovers(&tunnel(), found);
    let mut play = serving();
    play.host.found.rules = RulesFound::Missing;
    assert!(!left(&play.host.found), "nothing");
    play.host.found.rules = RulesFound::Unknown;
    assert!(left(&play.host.found), "a table of our name");
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.host.found.rules = RulesFound::Missing;
    assert!(left(&play.host.found), "a link");
}

#[test]
fn the_status_has_the_time_of_the_last_authentication() {
    let mut play = Play::start(Config::from(server(None)), FakeHost::new(), Memory::default());
    assert_eq!(play.engine.status().last_authentication, None);
    for second in [5, 10] {
        play.pass(Duration::from_secs(5));
        let proof = play.proof();
        play.receive(at("198.51.100.7:4500"), &proof);
        assert_eq!(play.engine.status().last_authentication, Some(START + second));
    }
}

/// By the old memory the next start puts back what could not be removed.
#[test]
fn a_memory_says_that_it_runs_until_everything_is_removed() {
    for (broken, is_running) in [("", false), ("remove", true)] {
        let mut play = Play::start(Config::from(server(None)), FakeHost::new(), Memory::default());
        let proof = play.proof();
        play.receive(at("198.51.100.7:4500"), &proof);
        play.host.broken = broken;
        play.end();
        assert_eq!(play.memory.running, is_running, "{broken:?}");
    }
}

#[test]
fn the_status_of_a_client_has_the_time_of_its_last_packet() {
    let server = HostName::Address("203.0.113.9".parse().unwrap());
    let keepalive = Some(Duration::from_secs(30));
    let config = Config::from(client(server, keepalive));
    let mut play = Play::start(config, FakeHost::new(), Memory::default());
    assert_eq!(play.engine.status().last_authentication, Some(START));
    play.pass(Duration::from_secs(30));
    assert_eq!(play.engine.status().last_authentication, Some(START + 30));
}

/// Ours are those with our address or our network; what else somebody adds to the interface stays.
#[test]
fn only_addresses_that_share_something_with_ours_are_removed() {
    let mut play = serving();
    let proof = play.proof();
    play.receive(at(A), &proof);
    let index = play.host.last_interface().index;
    let ours = play.host.shape().addresses;
    let mut add = |local: &str, network: &str| {
        let value = InterfaceAddress::new(local.parse().unwrap(), network.parse().unwrap());
        play.host.found.addresses.push(Address::new(index, value));
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
