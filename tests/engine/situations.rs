//! One situation a test.

use ipipou::auth::Reject;
use ipipou::engine::host::{Admitted, InterfaceAddress, RulesFound};

use super::host::STRANGER;
use super::*;

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
    assert_eq!(again.host.admitted(), [Admitted::direct(at(A))].into());
}

/// Another process with this configuration, after one was killed that knows a client.
fn after_a_kill(first: Server, age: Duration, second: Server) -> Play {
    let skew = i64::try_from(age.as_secs()).unwrap();
    after_a_kill_by_a_clock(skew, first, age, second)
}

/// The clock of the second process is off by `skew` from that of the first one's start.
fn after_a_kill_by_a_clock(skew: i64, first: Server, age: Duration, second: Server) -> Play {
    let mut play = Play::start(Config::from(first), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(age);
    let mut left = play.host.clone();
    left.found.rules = RulesFound::Unknown;
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

/// Its age is not known then, and could be renewed again and again.
#[test]
fn a_restart_by_a_clock_that_went_back_renews_no_authentication() {
    let play =
        |skew, lifetime| after_a_kill_by_a_clock(skew, server(lifetime), SECOND, server(lifetime));
    assert!(play(-1000, Some(600 * SECOND)).host.admitted().is_empty());
    // A correction, and where nothing runs out.
    assert_eq!(play(-100, Some(600 * SECOND)).host.admitted().len(), 1);
    assert_eq!(play(-1000, None).host.admitted().len(), 1);
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

/// Nobody was let in, or who was is on a link that all share: by the record alone the old port is known.
#[test]
fn a_start_on_another_port_removes_a_listener_without_a_link() {
    let mut left = serving().host;
    left.found.rules = RulesFound::Unknown;
    let mut config = server(None);
    config.tunnel.port = 10005.try_into().unwrap();
    let mut again = Play::stopped(Datapath::Kernel, Config::from(config), left, Memory::default());
    again.engine.had_port(10000.try_into().ok());
    again.read(); // nothing listens unguarded: the host is looked at after each step
    let ports: Vec<_> = again.host.found.listeners.iter().map(|l| l.port).collect();
    assert_eq!(ports, [10005]);
}

/// What was edited is the tunnel's number, or its name and its port.
#[test]
fn a_start_with_another_number_removes_the_link_of_before() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut play = serving();
        let proof = play.proof();
        play.receive(at(A), &proof);
        let mut left = play.host.clone();
        left.found.rules = RulesFound::Missing;
        let mut config = server(None);
        config.tunnel.port = 10001.try_into().unwrap();
        config.tunnel.device = "ipipou1".parse().unwrap();
        let mut again = Play::stopped(datapath, Config::from(config), left, Memory::default());
        again.engine.had_port(10000.try_into().ok());
        again.read();
        assert!(again.host.link("ipipou0").is_none(), "{datapath:?}");
        // What is at that port later is another tunnel's.
        again.read();
        let local = Some(super::host::OUTER);
        let theirs = ipipou::engine::host::Listener { port: 10000, local, bound_to: None };
        again.host.found.listeners.insert(theirs);
        again.read();
        assert!(again.host.found.listeners.contains(&theirs), "{datapath:?}");
    }
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

/// Without one, there is a moment in which no packet finds its way into the tunnel.
#[test]
fn an_address_is_there_before_the_one_that_it_replaces_goes() {
    // As an older version left the link, and as this one makes it.
    for promotes in [false, true] {
        let mut play = serving();
        let proof = play.proof();
        play.receive(at(A), &proof);
        play.host.change("ipipou0", |link| link.promotes = Some(promotes));
        let index = play.host.found.interfaces.named("ipipou0").unwrap().index;
        let InterfaceAddress { local: former, network } =
            play.host.found.addresses.on(index)[0].value;
        play.host.change_addresses(|all| {
            let address = all.iter_mut().find(|a| a.interface == index).unwrap();
            address.value.local = "172.28.0.77".parse().unwrap();
        });
        let before = play.applied.len();
        play.read();
        let at = |step: &str| play.applied[before..].iter().position(|s| s.starts_with(step));
        assert!(at("add ").unwrap() < at("remove ").unwrap(), "{:?}", &play.applied[before..]);
        let on_link = play.host.found.addresses.iter().filter(|a| a.interface == index);
        let now: Vec<_> = on_link.map(|a| (a.value.local, a.value.network)).collect();
        assert_eq!(now, [(former, network)], "{:?}", &play.applied[before..]);
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
        |h| h.change_last(|interface| interface.up = false),
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
pub fn guarded(play: &Play) -> Option<String> {
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
    // So it is after a move, and when the table was flushed in the meantime.
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
            play.host.change("ipipou0", |interface| interface.rp_filter = Some(wrong));
            play.read();
            let expected = if check == SourceCheck::Off { wrong } else { value };
            assert_eq!(filter(&play), Some(expected), "{check:?} from {wrong}");
        }
    }
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
