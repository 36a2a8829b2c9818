//! Chooses the address of a client's server among those of its name: one that there is a way to, and
//! that is not silent while packets go there.

use std::net::IpAddr;

use super::addresses::Addresses;
use super::config::Outer;
use super::endpoint::{Endpoint, OuterFound, find_outer};
use super::host::{Family, Found, Way};
use super::{Action, Engine, Now, Phase, Report, outer_family};

/// Whether packets get to an address of the server, as far as this host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Nowhere,
    /// By the interface that we are bound to, as if it were a neighbour.
    Unrouted,
    Routed,
}

impl Engine {
    /// Where a client's server is, as far as its name was looked up. The host is asked for the way
    /// there when it is read.
    pub fn server_address(&self) -> Option<IpAddr> {
        self.peers.named()?.in_use()
    }

    /// Where else it may be: the host is asked for the ways there, too.
    pub fn other_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.named().into_iter().flat_map(Addresses::others)
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
        self.other_addresses().map(|a| (Some(a), found.other_ways.get(&a).copied()))
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

    /// The server's name was looked up.
    pub(super) fn resolved(&mut self, addresses: &[IpAddr], now: &Now, actions: &mut Vec<Action>) {
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
        if let Some(address) = unusable.filter(|_| !self.name_unusable) {
            let (address, outer) = (*address, outer.clone());
            actions.push(Action::Report(Report::NameUnusable { address, outer }));
        }
        self.name_unusable = unusable.is_some();
        if self.peers.named_mut().is_some_and(|server| server.resolved(&usable).is_some()) {
            self.follow_server(now);
            actions.push(Action::ReadHost);
        }
    }

    /// The server is at another address now; the next reading of the host tells the way there.
    fn follow_server(&mut self, now: &Now) {
        self.peers.provers().for_each(|prover| prover.start_over(now));
        if self.phase == Phase::Settled {
            self.phase = Phase::Settling;
        }
        self.heard.at_another();
        self.server_moved = true;
    }

    /// Tries the next address of the server's name, when this one has been silent for long.
    pub(super) fn try_next_address(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let silent = self.heard.silent_for();
        let due = self.peers.named().is_some_and(|server| silent >= server.patience());
        let Some(found) = self.found.as_ref().filter(|_| due && self.can_send()) else { return };
        // No worse than this one, or the next reading would come back to it.
        let least = self.reach((self.server_address(), found.way), found).max(Reach::Unrouted);
        let others = self.other_servers(found).filter(|other| self.reach(*other, found) >= least);
        let reachable: Vec<IpAddr> = others.filter_map(|(address, _)| address).collect();
        let Some(server) = self.peers.named_mut() else { return };
        let before = server.in_use();
        if let (Some(from), Some(to)) = (before, server.next(|a| reachable.contains(&a))) {
            actions.push(Action::Report(Report::NextAddress { from, to, silent }));
            self.follow_server(now);
            self.server_moved = false; // this says it
            actions.push(Action::ReadHost);
        }
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
