//! Random events in any order: what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::host::{ETH0, OUTER, STRANGER};
use super::*;
use ipipou::engine::host::plan::{Owned, Start, plan};
use ipipou::engine::host::wanted::Wanted;
use ipipou::engine::host::{
    Encapsulation, FastPathFound, KernelRoute, LinkHeader, Listener, RulesFound,
};

#[derive(Debug, Clone)]
enum Happening {
    /// A valid packet from one of a few sources.
    Proof(u8),
    /// The last valid packet once more.
    Replay(u8),
    Garbage(u8, Vec<u8>),
    FlushRules,
    FlushAdmitted,
    DeleteLink,
    DeleteFilter,
    DeleteListeners,
    FlushAddresses,
    FlushRoutes,
    LinkDown,
    OuterAddressGoes,
    OuterAddressComes(u8),
    PairIsTaken(u8),
    PairIsFree,
    /// The next steps with these words fail.
    Refusing(&'static str),
    Read,
    Pass(u16),
    Reauth,
    KilledAndStarted,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        4 => (0..4u8).prop_map(Proof),
        2 => (0..4u8).prop_map(Replay),
        2 => (0..4u8, proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(from, bytes)| Garbage(from, bytes)),
        1 => Just(FlushRules),
        1 => Just(FlushAdmitted),
        1 => Just(DeleteLink),
        1 => Just(DeleteFilter),
        1 => Just(DeleteListeners),
        1 => Just(FlushAddresses),
        1 => Just(FlushRoutes),
        1 => Just(LinkDown),
        1 => Just(OuterAddressGoes),
        2 => (0..3u8).prop_map(OuterAddressComes),
        1 => (0..4u8).prop_map(PairIsTaken),
        1 => Just(PairIsFree),
        2 => prop::sample::select(vec![
            "install rules", "admit", "add FOU", "remove FOU", "create", "change", "remove alternate",
        ]).prop_map(Refusing),
        3 => Just(Read),
        2 => (0..30u16).prop_map(Pass),
        1 => Just(Reauth),
        1 => Just(KilledAndStarted),
    ]
}

fn source(i: u8) -> SocketAddrV4 {
    // Two ports of one address, as behind a NAT, and two more addresses.
    [at("198.51.100.7:4500"), at("198.51.100.7:4501"), at("198.51.100.8:1"), at("192.0.2.1:65535")]
        [usize::from(i)]
}

fn outer(i: u8) -> Ipv4Addr {
    [OUTER, Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 3)][usize::from(i)]
}

/// Who proved himself last, and when, by the wall clock.
#[derive(Debug, Clone, Copy)]
struct LastProof {
    from: SocketAddrV4,
    at: u64,
}

/// Plays it all to a server and checks after every event.
fn play_all(happenings: Vec<Happening>, lifetime: Option<Duration>) {
    let config = || Config::from(server(lifetime));
    let mut host = FakeHost::new();
    host.found.fast_path = FastPathFound::Missing;
    host.found.link_headers = [(ETH0, LinkHeader::Ethernet)].into();
    let mut play = Play::start(config(), host, Memory::default());
    let mut proven: Option<LastProof> = None;
    let mut last_proof = Vec::new();
    // The peers that the process before left in the memory.
    let mut remembered = None;
    // Until it has had an outer address, a process makes nothing.
    let mut outer_seen = true;
    for happening in happenings {
        play.host.broken = "";
        match happening {
            Happening::Proof(from) => {
                last_proof = play.proof();
                let accepted = play.engine.counters().accepted;
                play.receive(source(from), &last_proof);
                assert_eq!(play.engine.counters().accepted, accepted + 1, "a good proof refused");
                proven = Some(LastProof { from: source(from), at: play.moment().unix });
            }
            Happening::Replay(from) => {
                let (rejected, moved) = (play.rejected(), play.engine.counters().moved);
                play.receive(source(from), &last_proof);
                if play.rejected() == rejected {
                    // A refresh that a crash lost refreshes once more, from where the client was.
                    let was_here = proven.is_some_and(|last| last.from == source(from));
                    let was_last = proven.is_none() && remembered == Some(source(from).into());
                    assert!(was_here || was_last, "a replay was accepted");
                    assert!(was_last || play.engine.counters().moved == moved, "a replay moved it");
                    proven = Some(LastProof { from: source(from), at: play.moment().unix });
                } else {
                    assert_eq!(play.rejected(), rejected + 1);
                }
            }
            Happening::Garbage(from, bytes) => {
                let accepted = play.engine.counters().accepted;
                play.receive(source(from), &bytes);
                assert_eq!(play.engine.counters().accepted, accepted);
            }
            Happening::FlushRules => play.host.found.rules = RulesFound::Missing,
            Happening::FlushAdmitted => {
                if let RulesFound::Intact(admitted) = &mut play.host.found.rules {
                    admitted.clear();
                }
            }
            Happening::DeleteLink => play.host.remove_interface("ipipou0"),
            Happening::DeleteFilter => {
                if let FastPathFound::Intact(_) = play.host.found.fast_path {
                    play.host.found.fast_path = FastPathFound::Unknown;
                }
            }
            Happening::DeleteListeners => play.host.found.listeners.clear(),
            Happening::FlushAddresses => {
                play.host.found.addresses.retain(|a| a.value.network.prefix_len() != 32);
                play.host.found.lost_routes.clear();
            }
            Happening::FlushRoutes => {
                let found = &mut play.host.found;
                let own = found.interfaces.iter().find(|i| i.name == "ipipou0").map(|i| i.index);
                let on_link = found.addresses.iter().filter(|a| Some(a.interface) == own);
                found.lost_routes = on_link.flat_map(KernelRoute::of).collect();
            }
            Happening::LinkDown => {
                play.host.change_each(|i| i.up &= i.name != "ipipou0");
            }
            Happening::OuterAddressGoes => {
                play.host.found.addresses.retain(|a| a.interface != ETH0);
            }
            Happening::OuterAddressComes(i) => {
                play.host.found.addresses.retain(|a| a.interface != ETH0);
                play.host.add_address(ETH0, outer(i), 24);
            }
            Happening::PairIsTaken(i) => {
                let taken = play
                    .host
                    .link("ipipou0")
                    .is_some_and(|l| (l.local, l.remote) == (OUTER, *source(i).ip()));
                if play.host.link(STRANGER).is_none() && !taken {
                    play.host.add_strange_link(*source(i).ip());
                }
            }
            Happening::PairIsFree => play.host.remove_interface(STRANGER),
            Happening::Refusing(words) => play.host.broken = words,
            Happening::Read => {}
            Happening::Pass(seconds) => play.pass(Duration::from_secs(seconds.into())),
            Happening::Reauth => {
                play.handle(Event::ReauthRequested);
            }
            Happening::KilledAndStarted => {
                let (mut host, memory) = (play.host, play.memory);
                if host.found.rules != RulesFound::Missing {
                    host.found.rules = RulesFound::Unknown;
                }
                if host.found.fast_path != FastPathFound::Missing {
                    host.found.fast_path = FastPathFound::Unknown;
                }
                // Without its link nobody knows who is at the other end of a tunnel, and who is there
                // although another came after him has to prove himself again.
                // The last refreshes may not have been written.
                remembered = memory.authenticated.map(|(remote, _)| remote);
                proven = proven.filter(|last| remote_of(&host) == Some(last.from));
                if let (Some(last), Some((_, at))) = (&mut proven, memory.authenticated) {
                    last.at = at;
                }
                outer_seen = false;
                let (drawn, skew) = (play.drawn + 1000, play.skew + seconds(play.now));
                // The clock goes on; the engine counts from the process' start. What is dated in the
                // second of a start may be from before it.
                play = Play::stopped_at(skew, Datapath::Kernel, config(), host, memory);
                (play.drawn, play.now) = (drawn, Duration::from_secs(1));
            }
        }
        play.read();
        outer_seen |= play.host.found.addresses.iter().any(|a| a.interface == ETH0);
        if play.host.broken.is_empty() {
            if outer_seen {
                check(&mut play, proven, lifetime);
            }
            // The fast path needs the index of a new link.
            play.read();
            let steps = play.applied.len();
            play.read();
            assert_eq!(play.applied.len(), steps, "not all was done at once");
        } else {
            // As long as it is refused, and when it is not any more.
            play.pass(Duration::from_secs(2));
            play.host.broken = "";
            play.pass(Duration::from_secs(4));
            if outer_seen {
                check(&mut play, proven, lifetime);
            }
        }
    }
    play.host.broken = "";
    play.end();
    play.host.remove_interface(STRANGER);
    let left = play.host.shape();
    assert!(left.interfaces.iter().all(|i| i.name == "lo" || i.name == "eth0"), "{left:?}");
    assert_eq!(left.listeners, BTreeSet::new());
    assert_eq!(left.rules, RulesFound::Missing);
    assert!(left.addresses.iter().all(|a| a.value.network.prefix_len() != 32), "{left:?}");
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap()
}

/// The peer at the other end of the tunnel.
fn remote_of(host: &FakeHost) -> Option<SocketAddrV4> {
    let link = host.link("ipipou0")?;
    match link.encapsulation {
        Encapsulation::Fou { destination_port, .. } => {
            Some(SocketAddrV4::new(link.remote, destination_port))
        }
        Encapsulation::NoneOrOther => None,
    }
}

/// Who proved himself last is let in as long as that is good for, and nobody else; the tunnel leads
/// to him; no listener is unguarded.
fn check(play: &mut Play, proven: Option<LastProof>, lifetime: Option<Duration>) {
    let now = play.moment().unix;
    let is_good = |last: &LastProof| lifetime.is_none_or(|time| now < last.at + time.as_secs());
    let admitted: Vec<_> = play.host.admitted().into_iter().map(|a| a.remote).collect();
    let expected: Vec<_> = proven.filter(is_good).map(|last| last.from).into_iter().collect();
    assert_eq!(admitted, expected, "{proven:?} at {now}");
    if let Some(last) = proven {
        assert_eq!(remote_of(&play.host), Some(last.from));
    }
    let local = play.engine.status().outer.map(|outer| outer.ip());
    let listens = |l: &Listener| l.local.map(Into::into) == local;
    assert!(play.host.found.listeners.iter().any(listens), "nothing listens");
    play.host.check_guarded();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_server_stays_correct_after_any_events(
        happenings in proptest::collection::vec(happening(), 0..40),
        lifetime in proptest::option::of(1..60u64),
    ) {
        play_all(happenings, lifetime.map(Duration::from_secs));
    }

    #[test]
    fn a_correct_host_is_left_alone(
        happenings in proptest::collection::vec(happening(), 0..20),
    ) {
        let mut play = Play::start(Config::from(server(None)), FakeHost::new(), Memory::default());
        for happening in &happenings {
            if let Happening::Proof(from) = happening {
                let proof = play.proof();
                play.receive(source(*from), &proof);
            }
        }
        let steps = play.applied.len();
        play.read();
        play.pass(Duration::from_secs(60));
        prop_assert_eq!(play.applied.len(), steps);
    }

    /// Whatever is found, removing twice is removing once.
    #[test]
    fn removal_is_complete(proofs in proptest::collection::vec(0..4u8, 0..5)) {
        let mut play = Play::start(Config::from(server(None)), FakeHost::new(), Memory::default());
        for from in proofs {
            let proof = play.proof();
            play.receive(source(from), &proof);
        }
        play.end();
        let nothing = Wanted { unwanted: vec!["ipipou0".parse().unwrap()], ..Wanted::default() };
        let owned = Owned { rules: true, ..Owned::default() };
        let start = Start { tunnel: &tunnel(), found: &play.host.found, owned: &owned };
        prop_assert!(plan(&nothing, start, &mut BTreeMap::new()).is_empty());
    }
}
