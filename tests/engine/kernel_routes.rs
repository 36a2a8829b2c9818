//! Routes that the kernel makes with an address, and that somebody takes away without it.

use ipipou::engine::host::{Address, InterfaceAddress, KernelRoute};

use super::situations::{A, SECOND};
use super::*;

#[test]
fn a_route_that_the_kernel_made_is_made_again_and_counts_only_if_somebody_removed_it() {
    for datapath in [Datapath::Kernel, Datapath::Tun] {
        let mut play = Play::start_on(
            datapath,
            Config::from(server(None)),
            FakeHost::new(),
            Memory::default(),
        );
        let proof = play.proof();
        play.receive(at(A), &proof);
        let index = play.host.last_index();
        let address = *play.host.found.addresses.iter().find(|a| a.interface == index).unwrap();
        let lost: BTreeSet<_> = KernelRoute::of(&address).collect();
        let (repaired, before) = (play.engine.counters().repaired, play.applied.len());
        play.host.found.lost_routes.clone_from(&lost);
        play.read();
        let expected = [
            "put back the local route to 172.28.0.0 by ipipou0",
            "put back the route to 172.28.0.1/32 by ipipou0",
        ];
        assert_eq!(play.applied[before..], expected);
        assert_eq!(play.engine.counters().repaired, repaired + 2);
        assert!(play.log.contains(&format!("told: repairing: {}", expected[1])), "{:?}", play.log);
        // Those of an address that is not this tunnel's are none of its business.
        let other = InterfaceAddress::new("10.9.0.1".parse().unwrap(), net("10.9.0.1/24"));
        play.host.found.addresses.add(Address::new(index, other));
        play.host.found.lost_routes = KernelRoute::of(&Address::new(index, other)).collect();
        play.read();
        assert_eq!(play.applied.len(), before + 2);

        // What the next process finds so is not what was undone under its eyes.
        let Play { mut host, memory, .. } = play;
        host.found.lost_routes = lost;
        let config = Config::from(server(None));
        let mut play = Play::start_on(datapath, config, host, memory);
        play.pass(5 * SECOND);
        assert!(play.applied.iter().any(|step| step == expected[1]), "{:?}", play.applied);
        assert_eq!(play.engine.counters().repaired, 0, "{:?}", play.log);
    }
}

/// It is a part of the address, and another one beside it would outlive that.
#[test]
fn an_ipv6_address_without_its_local_route_is_made_again() {
    let mut config = server(None);
    config.tunnel.inner6 = Some("fd08::1/64".parse().unwrap());
    let mut play =
        Play::start_on(Datapath::Tun, Config::from(config), FakeHost::new(), Memory::default());
    let proof = play.proof();
    play.receive(at(A), &proof);
    let address = *play.host.found.addresses.iter().find(|a| a.value.local.is_ipv6()).unwrap();
    let before = play.applied.len();
    play.host.found.lost_routes = KernelRoute::of(&address).collect();
    play.read();
    assert_eq!(play.applied[before..], ["remove fd08::1/64", "add fd08::1/64 to ipipou0"]);
    assert!(play.host.found.addresses.contains(&address));
}
