//! The fast path: who is on it, from when, and until when.

use super::host::{ETH0, OUTER};
use super::hub::{entry, guest, hub_on, place};
use super::*;
use ipipou::engine::Action;
use ipipou::engine::config::{FastPathChoice, Outer};
use ipipou::engine::datapath::WithoutFastPath;
use ipipou::engine::host::{Family, FastPathFound, InterfaceKind, LinkHeader, Master, Takes};

const A: &str = "198.51.100.7:4500";
const B: &str = "198.51.100.8:4501";

/// A host whose kernel takes the programs, and whose uplink takes superpackets.
fn fast_host() -> FakeHost {
    let mut host = FakeHost::new();
    host.found.fast_path = FastPathFound::Missing;
    host.found.superpackets = [ETH0].into();
    host.found.link_headers = [(ETH0, LinkHeader::Ethernet)].into();
    host
}

fn start(datapath: Datapath, change: impl FnOnce(&mut Server), host: FakeHost) -> Play {
    let mut config = server(Some(Duration::from_secs(60)));
    change(&mut config);
    Play::start_on(datapath, Config::from(config), host, Memory::default())
}

fn prove(play: &mut Play, from: &str) {
    let proof = play.proof();
    play.receive(at(from), &proof);
    play.read();
}

/// The steps since then.
fn since(play: &Play, before: usize) -> Vec<&str> {
    play.applied[before..].iter().map(String::as_str).collect()
}

#[test]
fn a_peer_is_on_it_last_and_off_it_first() {
    for (datapath, admits, gone) in [
        (Datapath::Tun, "forward to 198.51.100.8:4501", "forward to 198.51.100.8:4501"),
        (Datapath::Kernel, "admit 198.51.100.8:4501", "install rules ipipou-0"),
    ] {
        let mut play = start(datapath, |_| {}, fast_host());
        prove(&mut play, A);
        assert_eq!(
            play.applied.last().unwrap(),
            "install the fast path of 203.0.113.1:10000, for 198.51.100.7:4500"
        );
        let before = play.applied.len();
        prove(&mut play, B);
        let steps = since(&play, before);
        assert_eq!(steps[0], "take 198.51.100.7:4500 off the fast path");
        assert!(steps.contains(&admits), "{steps:?}");
        assert_eq!(
            steps.last(),
            Some(&"install the fast path of 203.0.113.1:10000, for 198.51.100.8:4501")
        );
        let before = play.applied.len();
        play.pass(Duration::from_secs(61));
        let steps = since(&play, before);
        assert_eq!(steps[0], "take 198.51.100.8:4501 off the fast path", "{datapath:?}");
        assert!(steps.iter().any(|step| step.starts_with(gone)), "{steps:?}");
    }
}

#[test]
fn the_end_removes_it_before_anything_else() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let mut play = start(datapath, |_| {}, fast_host());
        prove(&mut play, A);
        let before = play.applied.len();
        play.end();
        assert_eq!(since(&play, before)[0], "remove the fast path");
    }
}

#[test]
fn what_somebody_removed_and_what_an_earlier_process_left_is_made_again() {
    let mut left = fast_host();
    left.found.fast_path = FastPathFound::Unknown;
    let mut play = start(Datapath::Tun, |_| {}, left);
    assert_eq!(play.applied[0], "remove the fast path");
    prove(&mut play, A);
    let repaired = play.engine.counters().repaired;
    play.host.found.fast_path = FastPathFound::Unknown;
    play.read();
    assert!(matches!(play.host.found.fast_path, FastPathFound::Intact(_)));
    assert_eq!(play.engine.counters().repaired, repaired + 1);
}

#[test]
fn damage_right_behind_a_change_of_the_fast_path_is_told() {
    let mut play = start(Datapath::Kernel, |_| {}, fast_host());
    prove(&mut play, A);
    play.read();
    let repaired = play.engine.counters().repaired;
    // It has another address to leave out.
    play.host.add_address(ETH0, "192.0.2.7".parse().unwrap(), 24);
    let (found, now, mut actions) = (play.found(), play.moment(), Vec::new());
    play.engine.handle(Event::HostRead(found), &now, &mut actions);
    let Some(Action::Apply(steps)) = actions.pop() else { panic!("no change") };
    assert!(matches!(steps[..], [Step::Fast(_)]), "{steps:?}");
    play.host.apply(&steps[0]).unwrap();
    play.host.found.listeners.clear();
    play.handle(Event::Applied(Ok(())));
    assert_eq!(play.host.found.listeners.len(), 1);
    assert_eq!(play.engine.counters().repaired, repaired + 1);
}

#[test]
fn nothing_is_sent_from_an_address_that_is_gone() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let mut play = start(datapath, |_| {}, fast_host());
        prove(&mut play, A);
        let before = play.applied.len();
        let addresses = play.host.found.addresses.clone();
        play.host.found.addresses.retain(|address| address.value.local != IpAddr::V4(OUTER));
        play.read();
        assert_eq!(since(&play, before)[0], "remove the fast path", "{datapath:?}");
        play.host.found.addresses = addresses;
        play.read();
        assert!(matches!(play.host.found.fast_path, FastPathFound::Intact(_)), "{datapath:?}");
    }
}

#[test]
fn an_interface_that_came_again_gets_it_again() {
    let mut play = start(Datapath::Tun, |_| {}, fast_host());
    prove(&mut play, A);
    let index = |play: &Play| {
        let FastPathFound::Intact(path) = &play.host.found.fast_path else { panic!("none") };
        path.links.clone()
    };
    let before = index(&play);
    play.host.remove_interface("ipipou0");
    play.host.found.userspace.interface = false;
    (0..3).for_each(|_| play.read());
    assert_ne!(index(&play), before);
    assert!(play.host.found.interfaces.iter().any(|i| i.kind == InterfaceKind::Tun));
}

#[test]
fn where_it_would_be_slower_or_wrong_there_is_none() {
    let segments = |host: &mut FakeHost| host.found.superpackets.clear();
    let nothing = |_: &mut FakeHost| {};
    type Change<'a> = &'a dyn Fn(&mut Server);
    type Break<'a> = &'a dyn Fn(&mut FakeHost);
    type Case<'a> = (Datapath, Change<'a>, Break<'a>, Option<WithoutFastPath>);
    let cases: [Case; 9] = [
        (
            Datapath::Tun,
            &|c| c.tunnel.fast_path = FastPathChoice::On,
            &|host| host.found.ipsec = true,
            Some(WithoutFastPath::Ipsec),
        ),
        (Datapath::Kernel, &|_| {}, &|host| host.found.ipsec = true, Some(WithoutFastPath::Ipsec)),
        (
            Datapath::Kernel,
            &|_| {},
            &|host| host.found.link_headers.clear(),
            Some(WithoutFastPath::UnknownHeader("eth0".to_owned())),
        ),
        (
            Datapath::Kernel,
            &|_| {},
            &|host| host.found.link_headers = [(ETH0, LinkHeader::Bare)].into(),
            None,
        ),
        (Datapath::Kernel, &|_| {}, &segments, None),
        (Datapath::Tun, &|c| c.tunnel.fast_path = FastPathChoice::On, &segments, None),
        (
            Datapath::Tun,
            &|c| c.tunnel.checksum = Some(true),
            &nothing,
            Some(WithoutFastPath::Checksums),
        ),
        (
            Datapath::Kernel,
            &|c| c.tunnel.checksum = Some(true),
            &nothing,
            Some(WithoutFastPath::Checksums),
        ),
        (Datapath::Tun, &|c| c.tunnel.checksum = Some(false), &nothing, None),
    ];
    for (datapath, change, break_host, why) in cases {
        let mut host = fast_host();
        break_host(&mut host);
        let mut play = start(datapath, change, host);
        prove(&mut play, A);
        let is_on = matches!(play.host.found.fast_path, FastPathFound::Intact(_));
        assert_eq!(is_on, why.is_none(), "{datapath:?} {why:?}");
        let told = why.map_or(Ok((vec!["eth0".to_owned()], Takes::All)), Err);
        assert_eq!(
            play.reports.iter().filter(|r| **r == Report::FastPath(told.clone())).count(),
            1
        );
    }
    let mut play = start(Datapath::Tun, |c| c.tunnel.fast_path = FastPathChoice::Off, fast_host());
    prove(&mut play, A);
    assert_eq!(play.host.found.fast_path, FastPathFound::Missing);
    assert!(!play.reports.iter().any(|report| matches!(report, Report::FastPath(_))));
}

#[test]
fn the_tunnel_itself_is_no_uplink() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let unbound = |c: &mut Server| {
            c.tunnel.outer = Outer::Address(OUTER.into());
            c.tunnel.fast_path = FastPathChoice::On;
        };
        let mut play = start(datapath, unbound, fast_host());
        prove(&mut play, A);
        let (index, name) = {
            let link = play.host.found.interfaces.at(play.host.last_index()).unwrap();
            (link.index, link.name.clone())
        };
        play.host.found.link_headers.insert(index, LinkHeader::Bare);
        let ip = IpAddr::from(*at(A).ip());
        for (uplink, is_on) in [(ETH0, true), (index, false), (ETH0, true)] {
            play.host.found.uplinks = [(ip, uplink)].into();
            play.read();
            let on = matches!(play.host.found.fast_path, FastPathFound::Intact(_));
            assert_eq!(on, is_on, "{datapath:?}: by {uplink}");
        }
        let why = WithoutFastPath::IntoTunnel(name);
        assert!(play.reports.contains(&Report::FastPath(Err(why))));
    }
}

#[test]
fn another_tunnel_is_an_uplink_if_the_outer_address_is_in_it() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        const WITHIN: u32 = 9;
        let mut host = fast_host();
        host.add_interface("blue", WITHIN, InterfaceKind::Other);
        host.change_last(|interface| interface.label = Some("made by ipipou".to_owned()));
        host.found.link_headers.insert(WITHIN, LinkHeader::Bare);
        let unbound = |c: &mut Server| {
            c.tunnel.outer = Outer::Address(OUTER.into());
            c.tunnel.fast_path = FastPathChoice::On;
        };
        let mut play = start(datapath, unbound, host);
        prove(&mut play, A);
        play.host.found.uplinks = [(IpAddr::from(*at(A).ip()), WITHIN)].into();
        play.read();
        assert_eq!(play.host.found.fast_path, FastPathFound::Missing, "{datapath:?}");
        let why = WithoutFastPath::IntoTunnel("blue".to_owned());
        assert!(play.reports.contains(&Report::FastPath(Err(why))));
        play.host.add_address(WITHIN, OUTER, 32);
        play.read();
        let FastPathFound::Intact(path) = &play.host.found.fast_path else { panic!("none") };
        assert_eq!(path.uplinks, [(WITHIN, LinkHeader::Bare)].into());
    }
}

#[test]
fn in_userspace_an_uplink_that_segments_has_it_for_what_comes_without_checksums() {
    let takes = |play: &Play| {
        let FastPathFound::Intact(path) = &play.host.found.fast_path else { panic!("none") };
        path.ends.takes
    };
    let mut play = start(Datapath::Tun, |_| {}, fast_host());
    prove(&mut play, A);
    assert_eq!(takes(&play), Takes::All);
    play.host.found.superpackets.clear();
    play.read();
    assert_eq!(takes(&play), Takes::Unchecked);
    let told = Ok((vec!["eth0".to_owned()], Takes::Unchecked));
    assert_eq!(play.reports.last(), Some(&Report::FastPath(told)));
    let told = play.reports.len();
    play.read();
    assert_eq!((play.reports.len(), takes(&play)), (told, Takes::Unchecked));
}

#[test]
fn where_connections_are_tracked_a_client_on_it_says_hello_often() {
    for (keepalive, choice, tracks, is_on) in [
        (None, FastPathChoice::Auto, true, false),
        (Some(28), FastPathChoice::Auto, true, false),
        (Some(27), FastPathChoice::Auto, true, true),
        (None, FastPathChoice::On, true, true),
        (None, FastPathChoice::Auto, false, true),
    ] {
        let mut host = fast_host();
        host.found.tracked = tracks.then_some(Family::V4).into_iter().collect();
        let at = HostName::Address("198.51.100.7".parse().unwrap());
        let mut config = client(at, keepalive.map(Duration::from_secs));
        config.tunnel.fast_path = choice;
        let mut play = Play::start_on(Datapath::Tun, Config::from(config), host, Memory::default());
        play.read();
        let on = matches!(play.host.found.fast_path, FastPathFound::Intact(_));
        assert_eq!(on, is_on, "{keepalive:?} {choice:?} {tracks}");
        let why = Report::FastPath(Err(WithoutFastPath::Tracked));
        assert_eq!(play.reports.contains(&why), !is_on);
    }
    // It is the client's firewall that lets in answers only.
    let mut host = fast_host();
    host.found.tracked = [Family::V4].into();
    let mut play = start(Datapath::Tun, |_| {}, host);
    prove(&mut play, A);
    assert!(matches!(play.host.found.fast_path, FastPathFound::Intact(_)));
}

#[test]
fn what_is_shaped_at_the_tunnel_waits_there() {
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        let change = |c: &mut Server| c.tunnel.fast_path = FastPathChoice::On;
        let mut play = start(datapath, change, fast_host());
        prove(&mut play, A);
        for kind in ["tbf", "fq_codel", "cake", "mq", "prio", "noqueue"] {
            let before = play.applied.len();
            play.host.change_last(|link| link.queueing = Some(kind.to_owned()));
            let link = play.host.found.interfaces.at(play.host.last_index()).unwrap();
            let name = link.name.clone();
            play.read();
            match kind {
                "tbf" | "cake" | "prio" => {
                    assert_eq!(since(&play, before), ["remove the fast path"]);
                    let why = WithoutFastPath::Shaped(name, kind.to_owned());
                    assert_eq!(play.reports.last(), Some(&Report::FastPath(Err(why))));
                }
                _ => assert!(matches!(play.host.found.fast_path, FastPathFound::Intact(_))),
            }
        }
    }
}

#[test]
fn of_several_links_only_those_that_shape_are_off_it() {
    let mut play = hub_on(Datapath::Kernel, &(entry(7, "") + &entry(8, "")));
    play.host.found.fast_path = FastPathFound::Missing;
    play.host.found.link_headers = [(ETH0, LinkHeader::Ethernet)].into();
    (7..9).for_each(|number| {
        play.visit(&mut guest(number), place(number));
    });
    play.read();
    let on_it = |play: &Play| -> Vec<SocketAddrV4> {
        let FastPathFound::Intact(path) = &play.host.found.fast_path else { panic!("none") };
        path.peers.keys().copied().collect()
    };
    assert_eq!(on_it(&play), [place(7), place(8)]);
    play.host.change_last(|link| link.queueing = Some("htb".to_owned()));
    play.read();
    assert_eq!(on_it(&play), [place(7)]);
}

#[test]
fn what_comes_in_by_a_port_of_a_switch_is_the_switchs() {
    let unbound = |c: &mut Server| c.tunnel.outer = Outer::Address(OUTER.into());
    for datapath in [Datapath::Tun, Datapath::Kernel] {
        for bound in [true, false] {
            let change = |c: &mut Server| {
                c.tunnel.fast_path = FastPathChoice::On;
                if !bound {
                    unbound(c);
                }
            };
            let mut play = start(datapath, change, fast_host());
            prove(&mut play, A);
            play.host.found.uplinks = [(IpAddr::from(*at(A).ip()), ETH0)].into();
            play.read();
            let is_on = |play: &Play| matches!(play.host.found.fast_path, FastPathFound::Intact(_));
            for (master, on) in
                [(Some(Master::Switch), false), (Some(Master::Vrf), true), (None, true)]
            {
                play.host.change("eth0", |interface| interface.master = master);
                play.read();
                assert_eq!(is_on(&play), on, "{datapath:?} {bound} {master:?}");
            }
            let why = WithoutFastPath::Port("eth0".to_owned());
            assert!(play.reports.contains(&Report::FastPath(Err(why))));
        }
    }
}

#[test]
fn a_fast_path_that_comes_back_after_a_refusal_is_told() {
    let mut play = start(Datapath::Tun, |_| {}, fast_host());
    prove(&mut play, A);
    let on = Report::FastPath(Ok((vec!["eth0".to_owned()], Takes::All)));
    let told = |play: &Play| play.reports.iter().filter(|report| **report == on).count();
    play.read();
    assert_eq!(told(&play), 1);
    play.host.found.fast_path = FastPathFound::Unavailable;
    (0..2).for_each(|_| play.read());
    assert_eq!(told(&play), 1);
    play.host.found.fast_path = FastPathFound::Missing;
    (0..2).for_each(|_| play.read());
    assert_eq!(told(&play), 2);
}

#[test]
fn who_is_bound_to_no_interface_follows_the_way_to_each_remote() {
    const ETH1: u32 = 9;
    let mut host = fast_host();
    host.add_interface("eth1", ETH1, InterfaceKind::Other);
    host.found.link_headers.insert(ETH1, LinkHeader::Bare);
    host.found.superpackets.insert(ETH1);
    let unbound = |c: &mut Server| {
        c.tunnel.outer = Outer::Address(OUTER.into());
        c.tunnel.fast_path = FastPathChoice::On;
    };
    let mut play = start(Datapath::Tun, unbound, host);
    prove(&mut play, A);
    let ip = IpAddr::from(*at(A).ip());
    let here = (OUTER.into(), BTreeSet::from([ip]));
    assert_eq!(play.engine.by_route(), Some(here), "the way that is to be read");
    assert_eq!(play.host.found.fast_path, FastPathFound::Missing, "as long as it was not");
    for (uplink, name, header, first) in [
        (
            ETH0,
            "eth0",
            LinkHeader::Ethernet,
            "install the fast path of 203.0.113.1:10000, for 198.51.100.7:4500",
        ),
        (ETH1, "eth1", LinkHeader::Bare, "take 198.51.100.7:4500 off the fast path"),
    ] {
        let before = play.applied.len();
        play.host.found.uplinks = [(ip, uplink)].into();
        play.read();
        assert_eq!(since(&play, before)[0], first);
        let FastPathFound::Intact(path) = &play.host.found.fast_path else { panic!("none") };
        assert_eq!(path.uplinks, [(uplink, header)].into());
        assert!(path.peers.values().all(|peer| peer.uplink == uplink) && path.peers.len() == 1);
        assert!(play.reports.contains(&Report::FastPath(Ok((vec![name.to_owned()], Takes::All)))));
    }
    play.host.found.link_headers.remove(&ETH1);
    play.read();
    assert_eq!(play.host.found.fast_path, FastPathFound::Missing);
    let why = WithoutFastPath::UnknownHeader("eth1".to_owned());
    assert!(play.reports.contains(&Report::FastPath(Err(why))));
}
