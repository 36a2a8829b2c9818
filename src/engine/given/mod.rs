//! The inner addresses that a client's server gives it (`--tunl-ip auto`): each accept has them. The last
//! ones are remembered, so that a restart begins with them.
//!
//! They come from outside, so they are wishes: [`judge`] holds them against each reading of the host,
//! those that are remembered, too.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::config::TunnelConfig;
use super::endpoint::Endpoint;
use super::host::is_labelled;
use super::host::step::{HostStep, Step};
use super::servers::Servers;
use super::{Action, Engine, Now, Phase, Report};
use judge::{Facts, in_the_way, usable};
pub use judge::{NotTaken, Obstacle, is_private};

/// The addresses change at most once in this time: each change is a plan and a writing.
const CHANGE_EVERY: Duration = Duration::from_secs(10);

/// An address that the kernel refused is tried again after this time: what it wanted of it may have passed.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// What another tunnel of this host had within this time is still its own: it may be restarted.
const TUNNEL_MAY_COME_BACK: Duration = Duration::from_secs(3600);

/// What stood in the way of a network within this time may be back in a moment.
const HOST_MAY_HAVE_IT_AGAIN: Duration = Duration::from_secs(3600);

/// What is known about the addresses that the server gives, beside the memory.
#[derive(Debug, Default)]
pub struct Given {
    /// What the last accept had.
    wish: Vec<IpNet>,
    /// Addresses that the kernel refused, and when: they are tried again now and then.
    refused: BTreeMap<IpAddr, Duration>,
    /// Networks of other tunnels of this host, and when they had them last.
    of_tunnels: BTreeMap<IpNet, Duration>,
    /// Networks and routes of the host that stood in the way of what was given, and when they did last.
    had: BTreeMap<IpNet, Duration>,
    /// What of it this process had in full.
    held: BTreeSet<IpNet>,
    /// When the server gave others last.
    changed: Option<Duration>,
    /// It was reported that the server gives us no inner address.
    tells_none: bool,
    /// What was reported about those that are remembered.
    told: Vec<NotTaken>,
    /// What was reported about those that came instead and could not be taken.
    told_of_new: Vec<NotTaken>,
}

impl Engine {
    /// Takes the inner addresses of the last accept, where they come from the server. The host is read
    /// before they are judged: whether it has a route to them, too.
    pub(super) fn take_inner(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        if !tunnel.inner_from_server {
            return;
        }
        let connection = self.peers.iter().find_map(|peer| peer.prover.as_ref()?.connection(now));
        let Some(connection) = connection.filter(|c| c.connected_for.is_some()) else { return };
        let wish = usable(&connection.inner, tunnel, *datapath);
        if wish.is_empty() {
            if !std::mem::replace(&mut self.given.tells_none, true) {
                actions.push(Action::Report(Report::NoInnerGiven));
            }
            return;
        }
        let Given { changed, wish: former, tells_none, .. } = &mut self.given;
        *tells_none = false;
        let is_early = changed.is_some_and(|at| now.monotonic < at + CHANGE_EVERY);
        if *former != wish && !is_early {
            (*former, *changed) = (wish, Some(now.monotonic));
            self.reread_at = now.monotonic;
        }
    }

    /// The addresses to which the host's routes have to be known.
    pub fn given_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.given.wish.iter().chain(&self.memory.inner).map(IpNet::addr)
    }

    /// Holds what the server gives against the host as it was read, and remembers what can be had of it.
    pub(super) fn accept_inner(&mut self, actions: &mut Vec<Action>) {
        if !self.endpoint.tunnel.inner_from_server {
            return;
        }
        self.note_other_tunnels();
        self.note_in_the_way();
        let Some(found) = &self.found else { return };
        let wish = &self.given.wish;
        // It may have come after the host was asked.
        let is_known = wish.iter().all(|given| found.routed.contains_key(&given.addr()));
        if wish.is_empty() || *wish == self.memory.inner || !is_known {
            return;
        }
        let (taken, not_taken) = self.judge(&self.given.wish);
        if taken.is_empty() {
            return tell(&mut self.given.told_of_new, not_taken, actions);
        }
        self.given.told_of_new.clear();
        self.given.refused.clear();
        self.memory.inner.clone_from(&self.given.wish);
        actions.push(Action::Remember(self.memory()));
    }

    /// Notes which networks other tunnels of this host have.
    fn note_other_tunnels(&mut self) {
        let Some(found) = &self.found else { return };
        let (now, device) = (self.last.monotonic, self.endpoint.tunnel.device.as_str());
        let labelled = found.interfaces.iter().filter(|i| is_labelled(i));
        let others: BTreeSet<u32> =
            labelled.filter(|i| i.name != device).map(|i| i.index).collect();
        let of_others = found.addresses.iter().filter(|a| others.contains(&a.interface));
        let seen = of_others.map(|address| (address.value.network.trunc(), now));
        self.given.of_tunnels.extend(seen);
        self.given.of_tunnels.retain(|_, at| now < *at + TUNNEL_MAY_COME_BACK);
    }

    /// Notes what stands in the way of what is given and was not had before. Who is refused must not have it
    /// as soon as a bridge of the host has no address for a moment.
    fn note_in_the_way(&mut self) {
        let Some(found) = &self.found else { return };
        let now = self.last.monotonic;
        let Given { wish, had, held, .. } = &mut self.given;
        let given: Vec<IpNet> = wish.iter().chain(&self.memory.inner).copied().collect();
        held.retain(|held| given.contains(held));
        let refused: Vec<_> = given.into_iter().filter(|given| !held.contains(given)).collect();
        let there = in_the_way(&refused, &self.endpoint.tunnel, found);
        had.extend(there.into_iter().map(|network| (network, now)));
        had.retain(|_, at| now < *at + HOST_MAY_HAVE_IT_AGAIN);
    }

    /// Holds what the server gave last against the host as it was read last. The tunnel has what is left
    /// of it, which is planned for next.
    pub(super) fn judge_inner(&mut self, actions: &mut Vec<Action>) {
        if !self.endpoint.tunnel.inner_from_server || self.found.is_none() {
            return;
        }
        self.given.refused.retain(|_, at| self.last.monotonic < *at + TRY_AGAIN_AFTER);
        let (taken, not_taken) = self.judge(&self.memory.inner);
        tell(&mut self.given.told, not_taken, actions);
        let in_full = self.memory.inner.iter().filter(|given| taken.contains(given));
        self.given.held.extend(in_full);
        let before = own(&self.endpoint.tunnel);
        // An earlier process may have had others than this one.
        let former = before.iter().chain(&self.memory.inner).map(IpNet::addr);
        self.owned.given.extend(former);
        self.owned.given.retain(|former| taken.iter().all(|address| address.addr() != *former));
        if before == taken {
            return;
        }
        set(&mut self.endpoint.tunnel, &taken);
        if !taken.is_empty() {
            let has_ipv6 = taken.iter().any(|address| matches!(address, IpNet::V6(_)));
            actions.push(Action::Report(Report::InnerGiven(taken)));
            if self.endpoint.tunnel.gateway.default_route && !has_ipv6 {
                actions.push(Action::Report(Report::Ipv6GoesPast));
            }
        }
        self.needs_nothing = None;
        if self.phase == Phase::Settled {
            self.phase = Phase::Settling;
        }
    }

    fn judge(&self, given: &[IpNet]) -> (Vec<IpNet>, Vec<NotTaken>) {
        let Some(found) = &self.found else { return (Vec::new(), Vec::new()) };
        let servers = self.peers.servers().into_iter().flat_map(Servers::addresses);
        let facts = Facts {
            tunnel: &self.endpoint.tunnel,
            found,
            outer: servers.chain(self.outer.map(|outer| outer.address)).collect(),
            refused: self.given.refused.keys().copied().collect(),
            of_tunnels: self.given.of_tunnels.keys().copied().collect(),
            had: self.given.had.keys().copied().collect(),
            held: &self.given.held,
        };
        let (mut taken, mut not_taken) = (Vec::new(), Vec::new());
        for (can_have, cannot) in given.iter().map(|one| facts.judge(*one)) {
            taken.extend(can_have);
            not_taken.extend(cannot);
        }
        (taken, not_taken)
    }

    /// Whether the tunnel goes on without what this step makes: an address that the server gave.
    pub fn can_do_without(&self, step: &Step) -> bool {
        self.endpoint.tunnel.inner_from_server
            && matches!(step, Step::Host(HostStep::AddInnerAddress(..)))
    }

    /// The kernel refused an address. It costs its family alone; whether it was one of the server's.
    pub(super) fn inner_refused(
        &mut self,
        step: &Step,
        now: &Now,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Step::Host(HostStep::AddInnerAddress(_, address)) = step else { return false };
        if !self.endpoint.tunnel.inner_from_server {
            return false;
        }
        self.given.refused.insert(address.local, now.monotonic);
        self.judge_inner(actions);
        true
    }

    /// Forgets former addresses, once the host has what it should have and not these.
    pub(super) fn forget_given(&mut self) {
        if let Some(found) = &self.found {
            self.owned.given.retain(|former| found.has_local(*former));
        }
    }

    /// Says that there is no inner address yet.
    pub(super) fn await_inner(&self, actions: &mut Vec<Action>) {
        let tunnel = &self.endpoint.tunnel;
        if tunnel.inner_from_server && own(tunnel).is_empty() {
            actions.push(Action::Report(Report::InnerAwaited));
        }
    }
}

/// Says what is not taken and was not said before.
fn tell(told: &mut Vec<NotTaken>, not_taken: Vec<NotTaken>, actions: &mut Vec<Action>) {
    let new = not_taken.iter().filter(|one| !told.contains(one));
    actions.extend(new.map(|one| Action::Report(Report::GivenNotTaken(*one))));
    *told = not_taken;
}

/// The addresses that the tunnel has now, with their networks.
fn own(tunnel: &TunnelConfig) -> Vec<IpNet> {
    let v4 = Ipv4Net::new(tunnel.inner, tunnel.inner_peer.prefix_len());
    let v4 = v4.ok().filter(|v4| !v4.addr().is_unspecified());
    v4.map(IpNet::V4).into_iter().chain(tunnel.inner6.map(IpNet::V6)).collect()
}

/// Gives the tunnel these addresses, one of each family at most.
fn set(tunnel: &mut TunnelConfig, given: &[IpNet]) {
    let v4 = given.iter().find_map(|address| match address {
        IpNet::V4(v4) => Some(*v4),
        IpNet::V6(_) => None,
    });
    tunnel.inner = v4.map_or(Ipv4Addr::UNSPECIFIED, |v4| v4.addr());
    tunnel.inner_peer = v4.map_or(Ipv4Addr::UNSPECIFIED.into(), |v4| v4.trunc());
    tunnel.inner6 = given.iter().find_map(|address| match address {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => Some(*v6),
    });
}
