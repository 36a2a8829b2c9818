//! The userspace datapath.

use super::*;

const A: &str = "198.51.100.7:4500";
const B: &str = "198.51.100.8:4501";
const SECOND: Duration = Duration::from_secs(1);

pub fn remotes(play: &Play) -> Vec<SocketAddr> {
    play.host.found.userspace.forwarding.remotes.keys().copied().collect()
}

#[test]
fn a_server_forwards_to_nobody_until_a_peer_authenticates() {
    let config = Config::from(server(None));
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    assert_eq!(play.applied, ["open UDP socket 203.0.113.1:10000 on eth0", "forward to nobody"]);
    let proof = play.proof();
    play.receive(at(A), &proof);
    assert_eq!(
        play.applied[2..],
        [
            "forward to 198.51.100.7:4500",
            "create ipipou0 as a TUN interface, MTU 1472",
            "set ipipou0 up",
            "add 172.28.0.0 peer 172.28.0.1 to ipipou0",
        ]
    );
    let proof = play.proof();
    play.receive(at(B), &proof);
    assert_eq!(play.applied[6..], ["forward to 198.51.100.8:4501"]);
    play.end();
    assert_eq!(play.host.link("ipipou0"), None);
}

#[test]
fn an_authentication_that_has_run_out_lets_nothing_in_or_out() {
    let config = Config::from(server(Some(10 * SECOND)));
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    play.pass(11 * SECOND);
    let remote = &play.host.found.userspace.forwarding.remotes[&outer_at(A)];
    assert!(remote.sources.is_empty() && remote.destinations.is_empty());
    let proof = play.proof();
    play.receive(at(A), &proof);
    let remote = &play.host.found.userspace.forwarding.remotes[&outer_at(A)];
    assert!(!remote.sources.is_empty() && !remote.destinations.is_empty());
}

#[test]
fn a_tun_interface_that_was_deleted_is_made_again() {
    let config = client(HostName::Address("203.0.113.9".parse().unwrap()), None);
    let config = Config::from(config);
    let mut play = Play::start_on(Datapath::Tun, config, FakeHost::new(), Memory::default());
    play.host.remove_interface("ipipou0");
    play.read();
    assert!(play.host.found.userspace.interface);
    assert!(play.engine.counters().repaired > 0);
}

#[test]
fn a_process_that_inherits_the_interface_continues_the_tunnel() {
    let config = || Config::from(server(None));
    let mut play = Play::start_on(Datapath::Tun, config(), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    // The forwarding table was the process' own.
    let mut left = play.host.clone();
    left.found.userspace.forwarding = ipipou::engine::host::PeerTable::default();
    let again = Play::start_on(Datapath::Tun, config(), left, play.memory.clone());
    assert_eq!(again.applied, ["forward to 198.51.100.7:4500"]);
    // Without the interface nobody knows who is at that address now.
    let mut left = play.host.clone();
    left.remove_interface("ipipou0");
    left.found.userspace = ipipou::engine::host::Userspace::default();
    let again = Play::start_on(Datapath::Tun, config(), left, play.memory);
    assert!(remotes(&again).is_empty());
}

/// Peers with the old program may exchange their ports while the server is dead. What is left at a port is
/// no tunnel to whom another one was his.
#[test]
fn a_session_at_another_port_of_ours_is_not_taken_over() {
    let at_port = |port: u16| {
        let mut config = server(None);
        config.tunnel.port = port.try_into().unwrap();
        Config::from(config)
    };
    let mut play =
        Play::start_on(Datapath::Tun, at_port(10_000), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    let mut left = play.host.clone();
    left.found.userspace.forwarding = ipipou::engine::host::PeerTable::default();
    // At the next start, too, and at the old port again: it may have gone on to the new one meanwhile.
    let older = Memory { port: None, ..play.memory.clone() };
    let mut memory = play.memory;
    for port in [10_001, 10_001, 10_000] {
        let again = Play::start_on(Datapath::Tun, at_port(port), left.clone(), memory);
        assert!(remotes(&again).is_empty(), "{port}: {:?}", again.log);
        let is_there = again.host.found.interfaces.iter().any(|i| i.name == "ipipou0");
        assert!(!is_there, "{port}: its addresses may be another one's");
        assert!(!again.reports.iter().any(|report| matches!(report, Report::Adopted(_))), "{port}");
        memory = again.memory;
    }
    // What older versions left says no port.
    let again = Play::start_on(Datapath::Tun, at_port(10_001), left, older);
    assert_eq!(remotes(&again), [outer_at(A)]);
}

/// Whether a datapath was asked for or is chosen, it has to carry all that the configuration has.
#[test]
fn a_configuration_names_what_a_datapath_cannot_carry() {
    let kernel = |config: &Config| config.exceeds(Datapath::Kernel);
    let plain = Config::from(server(None));
    assert_eq!(kernel(&plain), None);
    let mut six = plain.clone();
    six.tunnel.inner6 = Some("fd00::1/64".parse().unwrap());
    assert_eq!(kernel(&six), Some("the kernel's carries IPv4 only (--ip6)"));
    let mut over = plain.clone();
    over.tunnel.outer = Outer::Address("2001:db8::1".parse().unwrap());
    assert_eq!(kernel(&over), Some("the kernel's goes over IPv4 only"));
    let learner = Config::from(super::memory::learning(8));
    assert_eq!(kernel(&learner), Some("the kernel's cannot learn addresses (--learn)"));
    for config in [&plain, &six, &over, &learner] {
        assert_eq!(config.exceeds(Datapath::Tun), None);
    }
}
