//! Makes, changes, checks and removes the fast path of a tunnel.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;

use ipnet::Ipv4Net;
use netlink_socket2::NetlinkSocket;

use super::counted::{Counted, CountedPeer};
use super::filters::{Filters, Hook};
use super::made::{FastPathError, LEASE, Made, in_nanoseconds};
use super::uplink::{self, PathMtu};
use crate::engine::OVERHEAD_V4;
use crate::engine::config::{DeviceName, TunnelConfig};
use crate::engine::host::{Family, FastPath, FastPathFound, FastPeer, Found, Takes, Traffic};
use crate::host::{absent_is_fine, all_interfaces, ipsec};

/// After the kernel has refused something, all packets take the datapath for so long.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// The fast path of a tunnel.
pub struct FastPathAdapter {
    filters: Filters,
    ethtool: NetlinkSocket,
    /// Whether the tunnel may have one.
    allowed: bool,
    /// What it refused last, and until when that counts ([`in_nanoseconds`]).
    refused: Option<(u64, String)>,
    made: Option<Made>,
    /// What an earlier process of the tunnel left attached.
    left: Vec<(u32, Hook)>,
    /// What was counted before there was none.
    kept: Counted,
}

impl FastPathAdapter {
    /// The fast path of this tunnel, of which nothing is there yet. `allowed`: it may have one.
    pub fn of(tunnel: &str, allowed: bool) -> Self {
        let mut filters = Filters::of(tunnel);
        let both = |interface| [(interface, Hook::Ingress), (interface, Hook::Egress)];
        let all = all_interfaces().unwrap_or_default().into_iter().flat_map(both);
        let is_left = |(at, hook): &(u32, Hook)| matches!(filters.find(*at, *hook), Ok(Some(_)));
        let left = all.filter(is_left).collect();
        let (ethtool, kept) = (NetlinkSocket::new(), Counted::default());
        FastPathAdapter { filters, ethtool, allowed, refused: None, made: None, left, kept }
    }

    /// Whether there may be one, as far as is known: the kernel is asked by making it.
    pub fn is_available(&self) -> bool {
        let is_over = |(until, _): &(u64, String)| in_nanoseconds(Duration::ZERO) > *until;
        self.allowed && self.refused.as_ref().is_none_or(is_over)
    }

    /// What the kernel refused, while there is no fast path because of that.
    pub fn refused(&self) -> Option<&str> {
        let refused = self.refused.as_ref().filter(|_| !self.is_available());
        refused.map(|(_, why)| why.as_str())
    }

    /// Leaves all packets to the datapath for a while, after an error; whether that is another one than the
    /// last.
    #[must_use]
    pub fn give_up(&mut self, error: &FastPathError) -> bool {
        if let Err(error) = self.remove() {
            // Its programs take nothing: they have no lease.
            tracing::debug!("cannot remove the fast path: {error}");
        }
        let why = error.to_string();
        let is_news = self.refused.as_ref().is_none_or(|(_, before)| *before != why);
        self.refused = Some((in_nanoseconds(TRY_AGAIN), why));
        is_news
    }

    /// Adds to a reading of the host what is there, what uplinks take, and what was carried: the
    /// interfaces of the tunnel do not count that.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self, tunnel: &TunnelConfig, found: &mut Found) -> Result<(), FastPathError> {
        if let Some(made) = &mut self.made {
            // The filters of an interface vanish with it: nothing to repair.
            let is_there = |index: &u32| uplink::name_of(*index).is_ok();
            made.now.links.retain(is_there);
            made.now.uplinks.retain(|index, _| is_there(index));
        }
        found.fast_path = self.found()?;
        if let Some(made) = &self.made {
            made.maps.lease.until(in_nanoseconds(LEASE)).map_err(FastPathError::Entry)?;
            // A later refusal is reported again.
            self.refused = None;
        }
        if !self.is_available() {
            return Ok(());
        }
        found.ipsec = ipsec::has_policies();
        if let Some(made) = &mut self.made {
            if found.tracked.contains(&Family::V4) {
                made.read_translated();
            }
            found.translated.clone_from(&made.translated);
        }
        let device = tunnel.outer.device().and_then(|device| found.interface(device));
        let uplinks = found.uplinks.values().copied().chain(device.map(|device| device.index));
        for index in uplinks.collect::<BTreeSet<u32>>() {
            found.link_headers.extend(uplink::header_of(index).map(|header| (index, header)));
            if uplink::passes_superpackets(&mut self.ethtool, index) {
                found.superpackets.insert(index);
            }
        }
        // The userspace datapath knows its paths; of the kernel's, the kernel does.
        if found.userspace.socket.is_none() {
            self.read_paths(found);
        }
        for (index, traffic) in self.carried() {
            found.interfaces.change(index, |interface| interface.traffic += traffic);
        }
        Ok(())
    }

    /// Adds the paths that a router has said to be narrow. As for the links of the datapath, the
    /// kernel's routes are believed; its rules judge the ICMP errors that these come from.
    fn read_paths(&self, found: &mut Found) {
        let Some(FastPath { ends, uplinks, peers, .. }) = self.made.as_ref().map(|made| &made.now)
        else {
            return;
        };
        for uplink in uplinks.keys() {
            let Some(most) = found.interface_at(*uplink).map(|uplink| uplink.mtu) else { continue };
            let Ok(asked) = PathMtu::of(ends, *uplink) else { continue };
            for (remote, _) in peers.iter().filter(|(_, peer)| peer.uplink == *uplink) {
                // Without a route nothing is sent.
                let Ok(mtu) = asked.to(*remote) else { continue };
                if mtu < most {
                    let fits = mtu.saturating_sub(OVERHEAD_V4);
                    let fits = usize::try_from(fits).unwrap_or(usize::MAX);
                    found.narrow.insert((*remote).into(), fits);
                }
            }
        }
    }

    /// The maps are known to nobody else, so they are as they were left.
    pub(super) fn found(&mut self) -> Result<FastPathFound, FastPathError> {
        let Some(made) = &self.made else {
            return Ok(match (self.left.is_empty(), self.is_available()) {
                (false, _) => FastPathFound::Unknown,
                (true, true) => FastPathFound::Missing,
                (true, false) => FastPathFound::Unavailable,
            });
        };
        for (interface, hook, program) in made.hooks() {
            let there = self.filters.find(interface, hook).map_err(FastPathError::Filter)?;
            if there.is_none_or(|filter| filter.program != program.id) {
                return Ok(FastPathFound::Unknown);
            }
        }
        Ok(FastPathFound::Intact(made.now.clone()))
    }

    /// What the tunnel's interfaces sent and got on the fast path since they were made.
    pub(super) fn carried(&self) -> BTreeMap<u32, Traffic> {
        self.counted().by_link()
    }

    /// What was carried so far.
    fn counted(&self) -> Cow<'_, Counted> {
        match &self.made {
            Some(made) => Cow::Owned(made.counted()),
            None => Cow::Borrowed(&self.kept),
        }
    }

    /// Prepares an interface of the tunnel that is not up yet. Later that would lose packets: the kernel
    /// stops an interface that gets a queueing discipline, with what waits there (`qdisc_graft` in
    /// net/sched/sch_api.c).
    pub fn prepare(&mut self, link: &DeviceName) {
        let index = uplink::index_of(link).ok().filter(|_| self.allowed);
        let prepared = index.map(|index| self.filters.prepare(index));
        if let Some(Err(error)) = prepared {
            // Attaching a program there reports the same error.
            tracing::debug!("no queueing discipline for the fast path at {link}: {error}");
        }
    }

    /// Makes the fast path what it should be.
    ///
    /// # Errors
    /// What the kernel said; what is there then carries no packet that it should not.
    pub fn install(&mut self, wanted: &FastPath) -> Result<(), FastPathError> {
        let mut former = None;
        match &mut self.made {
            Some(made) if made.suits(wanted) => {
                made.fill(wanted)?;
                let links = made.now.links.difference(&wanted.links);
                let links = links.map(|link| (*link, Hook::Egress));
                let uplinks = made.now.uplinks.keys();
                let uplinks = uplinks.filter(|uplink| !wanted.uplinks.contains_key(uplink));
                for (interface, hook) in uplinks.map(|link| (*link, Hook::Ingress)).chain(links) {
                    absent_is_fine(self.filters.detach(interface, hook))
                        .map_err(FastPathError::Filter)?;
                }
                made.now.links.clone_from(&wanted.links);
                made.set_uplinks(&wanted.uplinks)?;
            }
            Some(_) | None => {
                let mut made = Made::new(wanted, &self.counted())?;
                if let Some(former) = &self.made {
                    made.translated.clone_from(&former.translated);
                }
                made.fill(wanted)?;
                let stays: Vec<_> = made.places().collect();
                // The filters of the former one are replaced one by one, each at once.
                former = self.made.replace(made);
                for (interface, hook) in former.iter().flat_map(Made::places) {
                    if !stays.contains(&(interface, hook)) {
                        absent_is_fine(self.filters.detach(interface, hook))
                            .map_err(FastPathError::Filter)?;
                    }
                }
            }
        }
        let Some(made) = &mut self.made else { return Ok(()) };
        for (interface, hook, program) in made.hooks() {
            self.filters.attach(interface, hook, program).map_err(FastPathError::Filter)?;
        }
        if let Some(former) = former {
            made.follow(&former, wanted);
        }
        Ok(())
    }

    /// Puts a remote on it. Where there is no room, it waits for a plan, which makes room.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add(&mut self, remote: SocketAddrV4, peer: &FastPeer) -> Result<(), FastPathError> {
        match &mut self.made {
            Some(made) if made.has_room_for_one(peer) => {
                made.put(remote, peer).map_err(FastPathError::Entry)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Lets nothing pass from and to these remotes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn withdraw(&mut self, remotes: &BTreeSet<SocketAddrV4>) -> Result<(), FastPathError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        remotes.iter().try_for_each(|remote| made.take_out(*remote)).map_err(FastPathError::Entry)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the kernel said first; what can be removed is removed, and what stays takes no packet.
    pub fn remove(&mut self) -> Result<(), FastPathError> {
        let mut result = self.made.iter().try_for_each(|made| made.maps.lease.until(0));
        // From now on it carries nothing.
        self.kept = self.counted().into_owned();
        let made = self.made.take();
        let places = made.iter().flat_map(Made::places);
        for (interface, hook) in std::mem::take(&mut self.left).into_iter().chain(places) {
            result = result.and(absent_is_fine(self.filters.detach(interface, hook)));
        }
        result.map_err(FastPathError::Filter)
    }

    /// By which interfaces packets come and go on it, from and to how many remotes, and which of them.
    pub fn carries(&self) -> (Vec<String>, usize, Takes) {
        let Some(made) = &self.made else { return (Vec::new(), 0, Takes::All) };
        let name = |uplink: &u32| uplink::name_of(*uplink).ok();
        let uplinks = made.now.uplinks.keys().filter_map(name).collect();
        (uplinks, made.now.peers.len(), made.now.ends.takes)
    }

    /// What was carried from and to each remote, as long as no other peer is there.
    pub fn traffic(&self) -> BTreeMap<SocketAddrV4, Traffic> {
        let at =
            |remote: &SocketAddrV4| self.made.as_ref().and_then(|made| made.now.peers.get(remote));
        let counted = self.counted();
        let is_there = |(first, peer): &(&Ipv4Net, &CountedPeer)| {
            at(&peer.remote).is_none_or(|there| there.networks.first() == Some(*first))
        };
        let there = counted.peers.iter().filter(is_there);
        there.map(|(_, peer)| (peer.remote, counted.of(peer))).collect()
    }
}
