//! Random events of many hosts that share a key: what changes for one of them is what a whole plan
//! would have made, and what is added to the memory is what a restart finds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::memory::learning;
use super::*;

#[derive(Debug, Clone)]
enum Happening {
    /// A valid packet from one of the hosts.
    Proof(u8),
    /// The last valid packet once more.
    Replay(u8),
    Pass(u8),
    Read,
    /// The disk takes nothing until the next writing.
    DiskIsSlow,
    /// Steps with these words fail at what happens next.
    Refusing(&'static str),
    InterfaceGoes,
    Killed,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        8 => (0..32u8).prop_map(Proof),
        1 => (0..32u8).prop_map(Replay),
        2 => (1..30u8).prop_map(Pass),
        2 => (0..3u8).prop_map(Pass),
        1 => Just(Read),
        1 => Just(DiskIsSlow),
        2 => prop::sample::select(vec!["too", "stop", "forward", "TUN"]).prop_map(Refusing),
        1 => Just(InterfaceGoes),
        1 => Just(Killed),
    ]
}

/// Half of them are behind one address.
fn host(number: u8) -> SocketAddrV4 {
    let ip = [198, 51, 100, number.saturating_sub(16)].into();
    SocketAddrV4::new(ip, 1000 + u16::from(number))
}

fn server(lifetime: u64) -> Config {
    let mut config = learning(1000);
    config.lifetime = Some(Duration::from_secs(lifetime));
    Config::from(config)
}

impl Play {
    fn carried(&self) -> Vec<SocketAddr> {
        self.host.found.userspace.forwarding.remotes.keys().copied().collect()
    }

    /// Starts again a second after a kill, with what is on the disk and the interface that is left.
    fn killed_and_started(mut self, lifetime: u64) -> Play {
        self.host.found.userspace.forwarding.remotes.clear();
        let skew = self.skew + i64::try_from(self.now.as_secs() + 1).unwrap();
        let mut again =
            Play::stopped_at(skew, Datapath::Tun, server(lifetime), self.host, self.memory);
        again.drawn = self.drawn + 1000;
        again.read();
        // What is as old as the start may have been accepted before it.
        again.pass(Duration::from_secs(2));
        again
    }
}

fn play_all(happenings: Vec<Happening>, lifetime: u64) {
    let mut play =
        Play::start_on(Datapath::Tun, server(lifetime), FakeHost::new(), Memory::default());
    // When each proved itself last, by the wall clock.
    let mut proven: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    let mut last = Vec::new();
    let mut refused = "";
    for happening in happenings {
        play.host.broken = std::mem::take(&mut refused);
        match happening {
            Happening::Proof(number) => {
                last = play.proof();
                play.receive(host(number), &last);
                if play.unwritten.is_some() {
                    play.write();
                    play.slow_disk = false;
                }
                proven.insert(host(number).into(), play.moment().unix);
            }
            Happening::Replay(number) => {
                let carried = play.carried();
                play.receive(host(number), &last);
                assert_eq!(play.carried(), carried, "a replay made a change");
            }
            Happening::Pass(time) => play.pass(Duration::from_secs(time.into())),
            Happening::Read => {
                let steps = play.applied.len();
                play.read();
                assert_eq!(play.applied.len(), steps, "{:?}", play.applied.last());
            }
            Happening::DiskIsSlow => play.slow_disk = true,
            Happening::Refusing(words) => {
                refused = words;
            }
            Happening::InterfaceGoes => {
                play.host.remove_interface("ipipou0");
                // It is made again, and its routes then.
                (0..3).for_each(|_| play.read());
            }
            Happening::Killed => {
                // Refreshes that were not written yet are lost: they are sooner at their end.
                let written = play.memory.clients.clone();
                proven.retain(|remote, at| {
                    written.get(remote).is_some_and(|unix| {
                        *at = *unix;
                        true
                    })
                });
                // So is what was seen of them: one may refresh once more, which `memory` has tests of.
                last.clear();
                play = play.killed_and_started(lifetime);
            }
        }
        if !play.host.broken.is_empty() {
            play.host.broken = "";
            play.pass(Duration::from_secs(4)); // it is tried again
        }
        check(&mut play, &proven, lifetime);
    }
}

/// The table has those whose proof is good.
fn check(play: &mut Play, proven: &BTreeMap<SocketAddr, u64>, lifetime: u64) {
    let now = play.moment().unix;
    let good = proven.iter().filter(|(_, at)| now < **at + lifetime);
    assert_eq!(play.carried(), good.map(|(remote, _)| *remote).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_steps_for_one_peer_equal_those_of_a_whole_plan(
        happenings in proptest::collection::vec(happening(), 0..60),
        lifetime in 1..60u64,
    ) {
        play_all(happenings, lifetime);
    }
}

/// The tests above are about steps for one remote: these are made.
#[test]
fn an_arrival_and_an_expiry_are_one_step_each() {
    let mut play = Play::start_on(Datapath::Tun, server(40), FakeHost::new(), Memory::default());
    let came = |play: &mut Play, number| {
        let (proof, before) = (play.proof(), play.applied.len());
        play.receive(host(number), &proof);
        play.applied[before..].to_vec()
    };
    came(&mut play, 20);
    play.pass(Duration::from_secs(10));
    assert_eq!(came(&mut play, 21), ["forward to 198.51.100.5:1021 too"]);
    assert_eq!(came(&mut play, 21), [""; 0]);
    let before = play.applied.len();
    play.pass(Duration::from_secs(35));
    assert_eq!(play.applied[before..], ["stop forwarding to 198.51.100.4:1020"]);
}

#[test]
fn many_hosts_at_once_are_one_step() {
    for (count, steps) in [(16, 16), (17, 1)] {
        let mut play =
            Play::start_on(Datapath::Tun, server(40), FakeHost::new(), Memory::default());
        let first = play.proof();
        play.receive(host(31), &first);
        play.pass(Duration::from_secs(10));
        play.slow_disk = true;
        for number in 0..count {
            let proof = play.proof();
            play.receive(host(number), &proof);
        }
        let before = play.applied.len();
        while play.unwritten.is_some() {
            play.write();
        }
        assert_eq!(play.applied.len() - before, steps, "{count}");
        assert_eq!(play.carried().len(), usize::from(count) + 1);
    }
}
