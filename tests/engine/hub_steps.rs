//! The steps that one peer of a server costs: its own and nothing else, also where some are refused.

use ipipou::auth::Reject;
use ipipou::engine::control::ClientHeard;
use ipipou::engine::host::{Encapsulation, InterfaceKind};

use super::hub::{entry, guest, hub, hub_on, peers, place};
use super::situations::SECOND;
use super::*;

#[test]
fn a_peer_with_a_route_costs_its_entry_and_its_route_and_nothing_else() {
    let route = "route = \"192.168.7.0/24\"";
    let mut play = hub(&(entry(7, route) + &entry(8, "")));
    play.visit(&mut guest(8), place(2));
    let mut seven = guest(7);
    let is_in = |heard| heard == ClientHeard::Accepted;
    let applied = |play: &mut Play, what: &mut dyn FnMut(&mut Play)| {
        let before = play.applied.len();
        what(play);
        play.applied[before..].to_vec()
    };
    assert_eq!(
        applied(&mut play, &mut |play| assert!(is_in(play.visit(&mut seven, place(1))))),
        ["forward to 198.51.100.1:4000 too", "add route to 192.168.7.0/24"]
    );
    assert_eq!(
        applied(&mut play, &mut |play| assert!(is_in(play.visit(&mut seven, place(3))))),
        ["forward to 198.51.100.3:4000 too", "stop forwarding to 198.51.100.1:4000"]
    );
    assert_eq!(
        applied(&mut play, &mut |play| {
            play.handle(Event::Kick("p7".parse().unwrap()));
        }),
        ["remove route to 192.168.7.0/24", "stop forwarding to 198.51.100.3:4000"]
    );
}

#[test]
fn a_peer_of_the_kernels_datapath_costs_its_link_and_what_lets_it_in() {
    let mut play = hub_on(Datapath::Kernel, &(entry(7, "") + &entry(8, "")));
    play.visit(&mut guest(8), place(2));
    let mut seven = guest(7);
    let before = play.applied.len();
    play.visit(&mut seven, place(1));
    let made = play.applied[before..].to_vec();
    let device = made[0].split(' ').nth(1).unwrap().to_owned();
    assert_eq!(
        made[1..],
        [
            format!("set {device} up"),
            format!("add 10.8.0.1 peer 10.8.0.7 to {device}"),
            "admit 198.51.100.1:4000 too".to_owned(),
        ]
    );
    let before = play.applied.len();
    play.visit(&mut seven, place(3));
    let moved = &play.applied[before..];
    assert!(moved[0].starts_with(&format!("change {device} to local 203.0.113.1")), "{moved:?}");
    assert_eq!(moved[1..], ["admit 198.51.100.3:4000 too", "stop admitting 198.51.100.1:4000"]);
    let before = play.applied.len();
    play.handle(Event::Kick("p7".parse().unwrap()));
    assert_eq!(
        play.applied[before..],
        [format!("remove {device}"), "stop admitting 198.51.100.3:4000".to_owned()]
    );
}

#[test]
fn what_a_step_for_one_peer_did_before_another_was_refused_is_known() {
    let mut play = hub_on(Datapath::Kernel, &(entry(7, "") + &entry(8, "")));
    play.visit(&mut guest(8), place(2));
    play.host.broken = "admit 198.51.100.1:4000";
    play.visit(&mut guest(7), place(1));
    play.host.broken = "";
    // The next change comes before the next reading.
    let before = play.log.len();
    play.handle(Event::Kick("p8".parse().unwrap()));
    play.pass(2 * SECOND);
    assert!(!play.log[before..].iter().any(|line| line.starts_with("refused")), "{:?}", play.log);
    assert_eq!(play.members_carried(), [place(1).into()]);
}

#[test]
fn what_is_refused_for_one_peer_costs_no_other_peer_anything() {
    let route = |number: u8| format!("route = \"192.168.{number}.0/24\"");
    let text = |numbers: &[u8]| -> String {
        numbers.iter().map(|number| entry(*number, &route(*number))).collect()
    };
    for (datapath, broken) in [
        (Datapath::Tun, "add route to 192.168.2.0/24"),
        (Datapath::Kernel, "peer 192.168.2.0/24"),
        (Datapath::Kernel, "remote 198.51.100.2:4000"),
        (Datapath::Kernel, "add FOU listener 172.30"),
        (Datapath::Kernel, "add 172.30"),
        (Datapath::KernelShared, "route to 192.168.2.0/24"),
        (Datapath::KernelShared, "admit 198.51.100.2:4000"),
    ] {
        let mut play = hub_on(datapath, &text(&[2, 3, 4, 9]));
        let mut guests = [2, 3, 4, 9].map(|number| (number, guest(number)));
        let [second, third, fourth, ninth] = &mut guests;
        play.visit(&mut fourth.1, place(4));
        play.read();
        play.host.broken = broken;
        play.visit(&mut second.1, place(2));
        play.visit(&mut ninth.1, place(9)); // at the same address as number 2
        play.visit(&mut third.1, place(3));
        play.read();
        play.read();
        let routes: Vec<_> = play.host.found.routes.iter().map(ToString::to_string).collect();
        let is_routed = routes.iter().any(|r| r.contains("192.168.3.0/24"));
        assert!(is_routed || datapath == Datapath::Kernel, "{broken}: {routes:?}");
        let admitted = |play: &Play, number: u8| {
            let by_rule = play.host.admitted().iter().any(|one| one.remote == place(number));
            by_rule || play.let_in().iter().any(|(remote, _)| *remote == place(number).into())
        };
        assert!(admitted(&play, 3), "{broken}: {:?}", play.log);
        // A peer that is gone is out at once.
        play.handle(Event::Peers(peers(&text(&[2, 3, 9]))));
        assert!(!admitted(&play, 4), "{broken}: {:?}", play.log);
        play.handle(Event::Kick("p3".parse().unwrap()));
        assert!(!admitted(&play, 3), "{broken}: {:?}", play.log);
        // And who comes back is in at once.
        play.visit(&mut third.1, place(3));
        assert!(admitted(&play, 3), "{broken}: {:?}", play.log);
    }
}

/// After a refused step the host is read again before anything is planned.
#[test]
fn a_peer_is_told_after_its_steps_although_a_reading_comes_before_them() {
    for (datapath, lets_in) in [
        (Datapath::Tun, "forward to"),
        (Datapath::Kernel, "admit"),
        (Datapath::KernelShared, "admit"),
    ] {
        let mut play = hub_on(datapath, &(entry(2, "") + &entry(3, "")));
        play.host.broken = lets_in;
        play.visit(&mut guest(2), place(2));
        play.read(); // a whole plan, of which a part is refused
        play.host.broken = "";
        let before = play.log.len();
        assert_eq!(play.visit(&mut guest(3), place(3)), ClientHeard::Accepted);
        let log = &play.log[before..];
        let line = |begin: &str, words: &str| {
            let is_it = |line: &String| line.starts_with(begin) && line.contains(words);
            log.iter().rposition(is_it).unwrap_or_else(|| panic!("{begin} {words}: {log:#?}"))
        };
        let made = line(lets_in, "198.51.100.3:4000");
        assert!(made < line("", "sent 128 bytes to 198.51.100.3"), "{log:#?}");
        assert!(made < line("", "p3 is connected"), "{log:#?}");
    }
}

#[test]
fn links_of_others_whose_names_begin_alike_are_left_alone() {
    let mut play = hub_on(Datapath::Kernel, &entry(2, ""));
    play.visit(&mut guest(2), place(2));
    let links = |play: &Play| -> Vec<String> {
        play.host.found.interfaces.iter().map(|i| i.name.clone()).collect()
    };
    let own = links(&play).last().unwrap().clone();
    let one = play.host.found.interface(&own.parse().unwrap()).unwrap().clone();
    let others = ["ipipou0-bak", "ipipou0-cafe1", "ipipou0-cafe"];
    for (number, name) in (500..).zip(others) {
        let mut other = one.clone();
        (other.index, other.name) = (number, name.to_owned());
        if let InterfaceKind::Ipip(link) = &mut other.kind
            && let Encapsulation::Fou { source_port, .. } = &mut link.encapsulation
        {
            *source_port = 10001; // another process' port
            link.remote = [192, 0, 2, name.len().try_into().unwrap()].into();
        }
        play.host.found.interfaces.insert(other);
    }
    let before = play.applied.len();
    play.pass(10 * SECOND);
    assert_eq!(play.applied[before..], Vec::<String>::new());
    for name in others {
        assert!(links(&play).contains(&name.to_owned()), "{name}");
    }
    play.end();
    assert!(!links(&play).contains(&own));
    assert!(others.iter().all(|name| links(&play).contains(&(*name).to_owned())));
}

/// Its packets may wait in the interface when it leaves, and whoever is away is no stranger to the table.
#[test]
fn the_table_knows_who_is_isolated_while_nobody_is_connected() {
    let mut play = hub(&(entry(7, "isolate = true") + &entry(8, "")));
    let named = |play: &Play| {
        let named = play.host.found.userspace.forwarding.named.iter();
        named.map(|(net, isolated)| (net.to_string(), *isolated)).collect::<Vec<_>>()
    };
    let both = [("10.8.0.7/32".to_owned(), true), ("10.8.0.8/32".to_owned(), false)];
    assert_eq!(named(&play), both);
    play.visit(&mut guest(7), place(1));
    play.handle(Event::Kick("p7".parse().unwrap()));
    assert_eq!(named(&play), both);
    // Where nobody is, nothing has to be looked up.
    play.handle(Event::Peers(peers(&(entry(7, "") + &entry(8, "")))));
    assert_eq!(named(&play), []);
    play.handle(Event::Peers(peers(&(entry(7, "isolate = true") + &entry(8, "")))));
    assert_eq!(named(&play), both);
}

/// The broadcast address of a network is on the host as soon as the address in it is.
#[test]
fn what_came_beside_a_refused_step_is_no_remote() {
    let mut play = hub_on(Datapath::Kernel, &entry(7, "route = \"192.168.7.0/24\""));
    play.host.broken = "admit 198.51.100.1:4000";
    play.visit(&mut guest(7), place(1));
    play.receive("192.168.7.255:4000".parse().unwrap(), b"anything");
    let refused = play.engine.counters().rejected.get(&Reject::ImpossibleSource);
    assert_eq!(refused, Some(&1));
}
