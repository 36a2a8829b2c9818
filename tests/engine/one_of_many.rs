//! What changes for one peer of a server is what a whole plan would have made, whatever happens, on both
//! datapaths.

use std::fmt::Write as _;

use ipipou::engine::control::Client as Guest;
use ipipou::engine::host::{PeerTable, RulesFound};
use ipipou::engine::hub::MemberState;
use proptest::prelude::*;

use super::hub::{entry, guest, hub_on, peers, place};
use super::situations::SECOND;
use super::*;

#[derive(Debug, Clone)]
enum Happening {
    /// This peer is at this place.
    Visit(u8, u8),
    Bye,
    Kick(u8),
    Pass(u8),
    /// The files name these peers: which, with a network behind them, isolated, disabled, another
    /// address, and one of them a network around places.
    Reload(Vec<(u8, u8)>),
    /// Steps with these words fail at what happens next.
    Refusing(&'static str),
    /// Somebody takes away a part of what is there.
    Damage(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let peers = prop::collection::btree_map(0..8u8, 0..32u8, 0..8);
    let words = vec!["too", "stop", "forward", "route", "create", "change", "remove", "set"];
    prop_oneof![
        10 => (0..8u8, 0..10u8).prop_map(|(peer, at)| Visit(peer, at)),
        1 => Just(Bye),
        2 => (0..8u8).prop_map(Kick),
        2 => (1..90u8).prop_map(Pass),
        2 => peers.prop_map(|peers| Reload(peers.into_iter().collect())),
        1 => prop::sample::select(words).prop_map(Refusing),
        1 => (0..4u8).prop_map(Damage),
    ]
}

fn text(datapath: Datapath, named: &[(u8, u8)]) -> String {
    named.iter().fold(String::new(), |text, (number, how)| {
        let mut more = "lifetime = \"60s\"\n".to_owned();
        match (how & 1, how & 8, number) {
            (1, 8, 3) => more += "route = \"198.51.100.0/30\"\n",
            (1, ..) => drop(writeln!(more, "route = \"192.168.{number}.0/24\"")),
            _ => {}
        }
        if how & 2 == 2 && datapath == Datapath::Tun {
            more += "isolate = true\n";
        }
        if how & 4 == 4 {
            more += "enabled = false\n";
        }
        let number = 10 + number;
        let entry = entry(number, &more);
        text + &match how & 16 {
            16 => {
                entry.replace(&format!("10.8.0.{number}\""), &format!("10.8.0.{}\"", number + 100))
            }
            _ => entry,
        }
    })
}

/// Takes something away that a plan would make.
fn damage(host: &mut FakeHost, what: u8) {
    match what {
        0 => host.found.routes.clear(),
        1 => {
            let links = host.found.interfaces.iter().filter(|i| i.label.is_some());
            let name = links.map(|i| i.name.clone()).next_back();
            name.into_iter().for_each(|name| host.remove_interface(&name));
        }
        2 if host.found.rules != RulesFound::Missing => host.found.rules = RulesFound::Unknown,
        _ => {
            let table = PeerTable::default();
            host.found.userspace.forwarding.remotes = table.remotes;
        }
    }
}

fn play(datapath: Datapath, happenings: Vec<(Happening, bool)>) {
    let all: Vec<_> = (0..8).map(|number| (number, 0)).collect();
    let mut play = hub_on(datapath, &text(datapath, &all));
    let mut guests: Vec<Guest> = (0..8).map(|number| guest(10 + number)).collect();
    for (happening, then_read) in happenings {
        let was_broken = !std::mem::take(&mut play.host.broken).is_empty();
        let mut then_read = then_read;
        match happening {
            Happening::Visit(peer, at) => {
                play.visit(&mut guests[usize::from(peer)], place(at));
            }
            Happening::Bye => {
                if let Some(SocketAddr::V4(at)) = play.members_carried().first().copied() {
                    for guest in &guests {
                        let mut leaving = guest.clone();
                        let bye = leaving.bye(play.now, START, &mut |bytes| bytes.fill(3));
                        bye.into_iter().for_each(|bye| play.receive(at, &bye));
                    }
                }
            }
            Happening::Kick(peer) => {
                play.handle(Event::Kick(format!("p{}", 10 + peer).parse().unwrap()));
            }
            Happening::Pass(seconds) => play.pass(u32::from(seconds) * SECOND),
            Happening::Reload(named) => {
                play.handle(Event::Peers(peers(&text(datapath, &named))));
            }
            Happening::Refusing(words) => play.host.broken = words,
            Happening::Damage(what) => {
                damage(&mut play.host, what);
                play.read();
                then_read = true;
            }
        }
        if was_broken {
            play.pass(2 * SECOND);
        }
        if !play.host.broken.is_empty() {
            continue;
        }
        // Every peer that is carried is connected, and the other way round.
        let connected = play.states().iter().filter(|(_, s)| *s == MemberState::Connected).count();
        assert_eq!(play.members_carried().len(), connected, "{:#?}", play.log);
        if then_read {
            let before = play.applied.len();
            play.read();
            assert_eq!(play.applied[before..], [] as [String; 0], "{:#?}", play.log);
        }
    }
    play.host.broken = "";
    play.pass(2 * SECOND);
    let before = play.applied.len();
    play.read();
    assert_eq!(play.applied[before..], [] as [String; 0], "{:#?}", play.log);
}

fn happenings() -> impl Strategy<Value = Vec<(Happening, bool)>> {
    prop::collection::vec((happening(), prop::bool::weighted(0.4)), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn one_of_many_changes_as_a_whole_plan_would(happenings in happenings()) {
        play(Datapath::Tun, happenings);
    }

    #[test]
    fn one_of_many_links_changes_as_a_whole_plan_would(happenings in happenings()) {
        play(Datapath::Kernel, happenings);
    }

    #[test]
    fn one_of_many_on_a_shared_link_changes_as_a_whole_plan_would(happenings in happenings()) {
        play(Datapath::KernelShared, happenings);
    }
}
