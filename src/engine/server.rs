//! Chooses the address of a client's server among those of its name: one that there is a way to, and
//! that is not silent while packets go there.

use std::net::IpAddr;
use std::time::Duration;

use super::addresses::Addresses;
use super::config::Outer;
use super::endpoint::{Endpoint, OuterFound, find_outer};
use super::host::{Family, Found, Way};
use super::prover::{Access, Passed, Prover, Turn};
use super::servers::{Place, Servers};
use super::{Action, Engine, Now, Phase, Report, outer_family};

/// Whether packets get to an address of the server, as far as this host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Nowhere,
    /// No route; by the interface that we are bound to, as if it were a neighbour.
    Unrouted,
    Routed,
}

impl Engine {
    /// Where a client's server is, as far as its name was looked up. The host is asked for the way
    /// there when it is read.
    pub fn server_address(&self) -> Option<IpAddr> {
        self.peers.named()?.in_use()
    }

    /// Where else it may be, and where its other servers are: the host is asked for the ways there, too.
    pub fn other_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let standby = self.peers.servers().into_iter().flat_map(Servers::standby_addresses);
        self.peers.named().into_iter().flat_map(Addresses::others).chain(standby)
    }

    /// The server's address, and the way to it: that in use while there is a way, else the next.
    pub(super) fn server_in(&self, found: &Found) -> (Option<IpAddr>, Option<Way>) {
        let in_use = (self.server_address(), found.way);
        let mut best = (self.reach(in_use, found), in_use);
        if best.0 == Reach::Unrouted && self.peers.named().is_some_and(Addresses::has_answered) {
            return in_use; // so it is a neighbour
        }
        for other in self.other_servers(found) {
            let reach = self.reach(other, found);
            if reach > best.0 {
                best = (reach, other);
            }
        }
        best.1
    }

    /// The server's other addresses, in the order in which they come next.
    fn other_servers(&self, found: &Found) -> impl Iterator<Item = (Option<IpAddr>, Option<Way>)> {
        let others = self.peers.named().into_iter().flat_map(Addresses::others);
        others.map(|a| (Some(a), found.other_ways.get(&a).copied()))
    }

    /// What is known of the way to an address of the server.
    fn reach(&self, server: (Option<IpAddr>, Option<Way>), found: &Found) -> Reach {
        let (Some(address), Some(_)) = server else { return Reach::Nowhere };
        match self.outer_towards(server, found) {
            None => Reach::Nowhere,
            Some(_) if found.unrouted.contains(&address) => Reach::Unrouted,
            Some(_) => Reach::Routed,
        }
    }

    /// Our outer address as it would be with the server at `server`, `way` being the way there.
    pub(super) fn outer_towards(
        &self,
        (server, way): (Option<IpAddr>, Option<Way>),
        found: &Found,
    ) -> Option<OuterFound> {
        let in_use = self.outer.map(|outer| outer.address);
        let inside = self.devices(found);
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        let family =
            server.map_or_else(|| outer_family(&tunnel.outer, *datapath, found), Family::of);
        find_outer(&tunnel.outer, (family, way), in_use, &inside, found)
    }

    /// How packets get to each of several servers, by the last reading of the host. Nothing where there is
    /// only one.
    fn access(&self) -> Vec<Access> {
        let Some((servers, found)) =
            self.peers.servers().filter(|servers| servers.are_several()).zip(self.found.as_ref())
        else {
            return Vec::new();
        };
        let in_use = servers.number_in_use();
        let access = |(number, place): (usize, &Place)| {
            let address = place.addresses.in_use();
            let way = match number == in_use {
                true => found.way,
                false => address.and_then(|address| found.other_ways.get(&address).copied()),
            };
            if self.reach((address, way), found) == Reach::Nowhere {
                return Access::Nowhere;
            }
            match self.outer.filter(|_| !self.outer_missing) {
                Some(outer) if self.outer_towards((address, way), found) == Some(outer) => {
                    Access::Beside
                }
                Some(_) | None => Access::Instead,
            }
        };
        servers.iter().enumerate().map(access).collect()
    }

    /// Asks another of several servers, when the turn of the one that is asked is over; how packets get to
    /// each of them.
    pub(super) fn take_turns(&mut self, now: &Now, actions: &mut Vec<Action>) -> Vec<Access> {
        if self.phase == Phase::Ending {
            return Vec::new();
        }
        self.choose_standby_addresses(now);
        if self.peers.provers().any(Prover::first_is_silent) {
            self.next_address_of(0, false, now, actions);
        }
        let access = self.access();
        let turn = self.peers.provers().find_map(|prover| prover.take_turns(&access, now));
        let name = |number: usize| Some(self.peers.servers()?.get(number)?.name.clone());
        match turn {
            None => return access,
            Some(Turn::Back(answers_for)) => {
                let report = name(0).map(|to| Report::BackToFirst { to, answers_for });
                actions.extend(report.map(Action::Report));
            }
            Some(Turn::Next { from, to, why, is_news }) => {
                if let (Some(from), Some(to), true) = (name(from), name(to), is_news) {
                    actions.push(Action::Report(Report::NextServer { from, to, why }));
                }
                if why == Passed::Silent {
                    self.next_address_of(from, is_news, now, actions);
                }
            }
        }
        self.follow_choice(actions);
        self.access()
    }

    /// A server was silent: its next turn is at another address. That of the one that has our data is
    /// exchanged only when all are silent.
    fn next_address_of(
        &mut self,
        number: usize,
        is_first_round: bool,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let Some((servers, found)) = self.peers.servers().zip(self.found.as_ref()) else { return };
        let is_in_use = number == servers.number_in_use();
        let Some(place) = servers.get(number).filter(|_| !(is_in_use && is_first_round)) else {
            return;
        };
        let ways = place.addresses.others().map(|a| (Some(a), found.other_ways.get(&a).copied()));
        let reachable = ways.filter(|other| self.reach(*other, found) > Reach::Nowhere);
        let reachable: Vec<IpAddr> = reachable.filter_map(|(address, _)| address).collect();
        let place = self.peers.servers_mut().and_then(|servers| servers.get_mut(number));
        let next = place.and_then(|place| place.addresses.next(|a| reachable.contains(&a)));
        self.may_have_moved = true;
        match next {
            None => {}
            Some(_) if is_in_use => {
                self.follow_server(now);
                actions.push(Action::ReadHost);
            }
            Some(_) => self.peers.provers().for_each(|prover| prover.start_over(number, now)),
        }
    }

    /// Exchanges the addresses of servers that do not have our data for others, where there is no way.
    fn choose_standby_addresses(&mut self, now: &Now) {
        let Some((servers, found)) = self.peers.servers().zip(self.found.as_ref()) else { return };
        let in_use = servers.number_in_use();
        let reach = |a: IpAddr| self.reach((Some(a), found.other_ways.get(&a).copied()), found);
        let standby = servers.iter().enumerate().filter(|(number, _)| *number != in_use);
        let better: Vec<(usize, IpAddr)> = standby
            .filter_map(|(number, place)| {
                let address = place.addresses.in_use()?;
                let is_lost = reach(address) == Reach::Nowhere;
                let other = place.addresses.others().find(|a| reach(*a) > Reach::Nowhere)?;
                is_lost.then_some((number, other))
            })
            .collect();
        for (number, address) in better {
            if let Some(place) = self.peers.servers_mut().and_then(|s| s.get_mut(number)) {
                place.addresses.use_one(address);
            }
            self.peers.provers().for_each(|prover| prover.start_over(number, now));
        }
    }

    /// Sends data to the server that let us in.
    pub(super) fn follow_choice(&mut self, actions: &mut Vec<Action>) {
        let Some(chosen) = self.peers.provers().next().map(|prover| prover.server()) else {
            return;
        };
        let Some(servers) = self.peers.servers_mut() else { return };
        if servers.number_in_use() == chosen || servers.get(chosen).is_none() {
            return;
        }
        let before = servers.in_use().addresses.in_use();
        servers.use_one(chosen);
        let address = servers.in_use().addresses.in_use();
        if let Some(found) = &mut self.found {
            // Until the host is read again.
            let way = address.and_then(|address| found.other_ways.remove(&address));
            let former = std::mem::replace(&mut found.way, way);
            found.other_ways.extend(before.zip(former));
        }
        self.moves_to_server();
        actions.push(Action::ReadHost);
    }

    /// A server's name was looked up.
    pub(super) fn resolved(
        &mut self,
        number: usize,
        addresses: &[IpAddr],
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        // What we can send to, IPv4 first. To which of these there is a way, the host tells.
        let (outer, datapath) = (&self.endpoint.tunnel.outer, self.endpoint.datapath);
        let families = match outer {
            Outer::Address(own) | Outer::AddressOn(own, _) => vec![Family::of(*own)],
            Outer::Device(_) | Outer::Route if datapath.capabilities().outer_ipv6 => {
                vec![Family::V4, Family::V6]
            }
            Outer::Device(_) | Outer::Route => vec![Family::V4],
        };
        let of = |family| addresses.iter().copied().filter(move |a| Family::of(*a) == family);
        let usable: Vec<IpAddr> = families.into_iter().flat_map(of).collect();
        let unusable = addresses.first().filter(|_| usable.is_empty());
        if let Some(address) = unusable.filter(|_| !self.names_unusable.contains(&number)) {
            let (address, outer) = (*address, outer.clone());
            actions.push(Action::Report(Report::NameUnusable { address, outer }));
        }
        match unusable {
            Some(_) => self.names_unusable.insert(number),
            None => self.names_unusable.remove(&number),
        };
        let Some(servers) = self.peers.servers_mut() else { return };
        let is_in_use = servers.number_in_use() == number;
        let Some(place) = servers.get_mut(number) else { return };
        let before: Vec<IpAddr> = place.addresses.others().collect();
        let is_moved = place.addresses.resolved(&usable).is_some();
        let has_others = !is_in_use && !place.addresses.others().eq(before);
        if is_moved && is_in_use {
            self.follow_server(now);
        } else if is_moved {
            self.peers.provers().for_each(|prover| prover.start_over(number, now));
        }
        if is_moved || has_others {
            actions.push(Action::ReadHost);
        }
    }

    /// The server is at another address now; the next reading of the host tells the way there.
    fn follow_server(&mut self, now: &Now) {
        let number = self.peers.servers().map_or(0, Servers::number_in_use);
        self.peers.provers().for_each(|prover| prover.start_over(number, now));
        self.moves_to_server();
        self.server_moved = true;
    }

    /// Data goes elsewhere now. The steps that follow are not repairs.
    fn moves_to_server(&mut self) {
        if self.phase == Phase::Settled {
            self.phase = Phase::Settling;
        }
        self.heard.at_another();
    }

    /// How long nothing has come from the server in use, where that is long enough to try the next address of its
    /// name. What is sent may not need an answer; hellos do, and three are enough in the first round.
    pub(super) fn silent_for(&mut self, now: &Now) -> Option<Duration> {
        let is_new = self.endpoint.tunnel.inner_from_server; // it gives addresses
        let hellos = self
            .peers
            .provers()
            .find_map(|prover| Some((prover.silent_for(now)?, is_new || prover.has_answered())));
        let server = self.peers.named()?;
        let data = Some(self.heard.silent_for()).filter(|silent| *silent >= server.patience());
        let are_several = self.peers.servers().is_some_and(Servers::are_several);
        let hellos = hellos.filter(|(silent, answers)| {
            // One that never answered may be an old server, which lets us in all the same: each address is
            // tried once, and then the first one is kept.
            let quiet = if *answers { (*silent).min(server.patience()) } else { *silent };
            let again = *answers && *silent >= server.patience();
            !are_several && !self.heard.came_within(quiet) && (again || !server.is_round_over())
        });
        data.max(hellos.map(|(silent, _)| silent))
    }

    /// Tries the next address of the server's name, when this one has been silent for long.
    /// True when it has changed: what is sent has to wait for the next reading, which finds the way there.
    pub(super) fn try_next_address(&mut self, now: &Now, actions: &mut Vec<Action>) -> bool {
        let Some(silent) = self.silent_for(now).filter(|_| self.can_send()) else { return false };
        let Some(found) = self.found.as_ref() else { return false };
        // No worse than this one, or the next reading would come back to it.
        let least = self.reach((self.server_address(), found.way), found).max(Reach::Unrouted);
        let others = self.other_servers(found).filter(|other| self.reach(*other, found) >= least);
        let reachable: Vec<IpAddr> = others.filter_map(|(address, _)| address).collect();
        let Some(server) = self.peers.named_mut() else { return false };
        let before = server.in_use();
        if let (Some(from), Some(to)) = (before, server.next(|a| reachable.contains(&a))) {
            actions.push(Action::Report(Report::NextAddress { from, to, silent }));
            self.follow_server(now);
            self.server_moved = false; // this says it
            self.may_have_moved = true;
            actions.push(Action::ReadHost);
            return true;
        }
        false
    }

    /// Takes another address of the server when there is no way to the one in use.
    pub(super) fn choose_server(
        &mut self,
        found: &mut Found,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let (Some(address), way) = self.server_in(found) else { return };
        if self.server_address() != Some(address) {
            found.way = way;
            if let Some(server) = self.peers.named_mut() {
                server.use_one(address);
            }
            self.follow_server(now);
        }
        if std::mem::take(&mut self.server_moved) {
            actions.push(Action::Report(Report::ServerMoved(address)));
        }
    }

    /// Notes whether packets or answers have come from the other end since the last reading.
    pub(super) fn listen(&mut self, now: &Now) {
        let answers = self.found.as_ref().map_or(0, |found| found.answers);
        let came = self.heard.read(self.traffic(), answers, now.unix, now.monotonic);
        if let Some(server) = self.peers.named_mut().filter(|_| came) {
            server.heard();
        }
    }
}
