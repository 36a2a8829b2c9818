//! The population of peers: a single one, one that many hosts share, one for each remote of a table, or
//! the members of a hub that are connected. Of these there may be thousands: what is done for one of
//! them looks at no other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Now;
use super::addresses::Addresses;
use super::admission::{Accepted, Admission, Arrival, Verdict};
use super::config::DeviceName;
use super::memory::{Memory, Record, Writing};
use super::networks::Networks;
use super::peer::{Locator, Peer};
use super::prover::Prover;
use super::servers::Servers;
use crate::auth::Reject;

/// All peers of an endpoint.
#[derive(Debug, Default)]
pub struct Peers {
    /// Those that are configured, or from a table.
    own: Vec<Peer>,
    /// The members of a hub that are connected, each at a remote of its own.
    members: BTreeMap<SocketAddr, Box<Peer>>,
    /// Inner addresses behind all of them.
    behind: Networks<()>,
    /// As in [`PeerTable`](super::host::PeerTable).
    named_networks: Arc<[(IpNet, bool)]>,
    /// What changed among the members since this was asked for.
    changed: Changed,
}

/// What changed among the peers.
#[derive(Debug, Default)]
pub struct Changed {
    /// Remotes that came, went, or ran out.
    pub remotes: BTreeSet<SocketAddr>,
    /// Inner networks of members that came, went, or changed.
    pub networks: BTreeSet<IpNet>,
    /// Links of these members; where there is one link for all, it is that one.
    pub links: BTreeSet<DeviceName>,
}

impl Changed {
    fn note(&mut self, remote: SocketAddr, member: &Peer) {
        self.remotes.insert(remote);
        self.networks.extend(&*member.networks);
        if !self.links.contains(&member.device) {
            self.links.insert(member.device.clone());
        }
    }
}

impl Peers {
    pub fn new(peers: impl IntoIterator<Item = Peer>) -> Self {
        Peers { own: peers.into_iter().collect(), ..Peers::default() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.own.iter().chain(self.members.values().map(Box::as_ref))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.own.iter_mut().chain(self.members.values_mut().map(Box::as_mut))
    }

    /// Those that are not members of a hub.
    pub fn own_mut(&mut self) -> std::slice::IterMut<'_, Peer> {
        self.own.iter_mut()
    }

    /// The member at this remote.
    pub fn member(&self, remote: SocketAddr) -> Option<&Peer> {
        self.members.get(&remote).map(Box::as_ref)
    }

    /// The members whose outer addresses are in a network, whatever their ports.
    pub fn members_within(&self, network: IpNet) -> impl Iterator<Item = (SocketAddr, &Peer)> {
        let last = match network.broadcast() {
            IpAddr::V4(last) => SocketAddr::from((last, u16::MAX)),
            IpAddr::V6(last) => SocketAddrV6::new(last, u16::MAX, u32::MAX, u32::MAX).into(),
        };
        let range = self.members.range(SocketAddr::new(network.network(), 0)..=last);
        range.map(|(remote, member)| (*remote, &**member))
    }

    /// Adds the member at `remote`, or exchanges it.
    pub fn put_member(&mut self, remote: SocketAddr, member: Peer) {
        self.remove_member(remote);
        member.networks.iter().for_each(|network| self.behind.insert(*network, ()));
        self.changed.note(remote, &member);
        self.members.insert(remote, Box::new(member));
    }

    pub fn remove_member(&mut self, remote: SocketAddr) {
        let Some(gone) = self.members.remove(&remote) else { return };
        gone.networks.iter().for_each(|network| self.behind.remove(*network));
        self.changed.note(remote, &gone);
    }

    /// Networks of all members, connected or not; see [`PeerTable`](super::host::PeerTable).
    pub fn named_networks(&self) -> &Arc<[(IpNet, bool)]> {
        &self.named_networks
    }

    /// Takes the networks of another set of members. Returns whether they differ.
    pub fn name_networks(&mut self, named: Vec<(IpNet, bool)>) -> bool {
        let differs = *self.named_networks != *named;
        if differs {
            self.named_networks = named.into();
        }
        differs
    }

    /// Whether this is one of the networks behind them.
    pub fn have_network(&self, network: IpNet) -> bool {
        self.behind.get_exact(network).is_some()
    }

    /// Whether an inner address is behind one of them, as far as tables and files say.
    pub fn are_around(&self, inner: IpAddr) -> bool {
        self.behind.get(inner).is_some()
    }

    /// Exchanges them for those of another table. What the kernel said of a remote stays known.
    pub fn replace(&mut self, mut peers: Vec<Peer>) {
        let conflict = |old: &Peer| Some((old.remote()?, old.conflicting_remote?));
        let conflicts: BTreeMap<SocketAddr, IpAddr> =
            self.own.iter().filter_map(conflict).collect();
        for peer in &mut peers {
            let same = peer.remote().and_then(|remote| conflicts.get(&remote));
            peer.conflicting_remote = same.copied();
        }
        self.behind = Networks::default();
        for network in peers.iter().flat_map(|peer| peer.networks.iter()) {
            self.behind.insert(*network, ());
        }
        self.own = peers;
    }

    /// The one that several hosts share.
    pub fn shared(&self) -> Option<&Admission> {
        let mut admissions = self.own.iter().filter_map(|peer| peer.admission.as_deref());
        admissions.find(|admission| admission.learn().is_some())
    }

    /// Every remote, and whether its packets may come in.
    pub fn remotes(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        self.iter().flat_map(Peer::remotes)
    }

    /// Whether it is known where any of them is.
    pub fn is_anywhere(&self) -> bool {
        self.remotes().next().is_some()
    }

    pub fn admits(&self, remote: SocketAddr) -> bool {
        self.members.contains_key(&remote) || self.own_admit(remote)
    }

    /// Whether one that is not a member of a hub is let in there.
    pub fn own_admit(&self, remote: SocketAddr) -> bool {
        self.own.iter().any(|peer| peer.admits(remote))
    }

    /// Whether there is one that we authenticate to.
    pub fn has_prover(&self) -> bool {
        self.own.iter().any(|peer| peer.prover.is_some())
    }

    /// How often we authenticate to each that we authenticate to.
    pub fn keepalives(&self) -> impl Iterator<Item = Option<Duration>> {
        self.own.iter().filter_map(|peer| peer.prover.as_deref()).map(Prover::keepalive)
    }

    pub fn provers(&mut self) -> impl Iterator<Item = &mut Prover> {
        self.own.iter_mut().filter_map(|peer| peer.prover.as_deref_mut())
    }

    fn admissions(&mut self) -> impl Iterator<Item = &mut Admission> {
        self.own.iter_mut().filter_map(|peer| peer.admission.as_deref_mut())
    }

    /// The one that judges authentication packets.
    fn judge(&mut self) -> Option<&mut Admission> {
        self.admissions().next()
    }

    /// The servers of a client.
    pub fn servers(&self) -> Option<&Servers> {
        self.own.iter().find_map(|peer| match &peer.locator {
            Locator::Servers(servers) => Some(servers),
            Locator::Sessions | Locator::Fixed(_) => None,
        })
    }

    pub fn servers_mut(&mut self) -> Option<&mut Servers> {
        self.own.iter_mut().find_map(|peer| match &mut peer.locator {
            Locator::Servers(servers) => Some(servers),
            Locator::Sessions | Locator::Fixed(_) => None,
        })
    }

    /// The addresses of the server that has a client's data.
    pub fn named(&self) -> Option<&Addresses> {
        self.servers().map(|servers| &servers.in_use().addresses)
    }

    pub fn named_mut(&mut self) -> Option<&mut Addresses> {
        self.servers_mut().map(|servers| &mut servers.in_use_mut().addresses)
    }

    /// Where answers may come from besides data.
    pub fn answering(&self) -> BTreeSet<SocketAddr> {
        self.servers().map(Servers::answering).unwrap_or_default()
    }

    /// The earliest time something is due. What is to be sent waits while `can_send` is false.
    pub fn next_deadline(&self, can_send: bool) -> Option<Duration> {
        self.own.iter().filter_map(|peer| peer.next_deadline(can_send)).min()
    }

    /// Judges an authentication packet; `None` where nobody has to prove anything.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        writing: Writing,
        now: &Now,
    ) -> Option<Result<Verdict, Reject>> {
        Some(self.judge()?.receive(from, payload, writing, now))
    }

    /// What is sent back to a peer that sent `request`.
    pub fn reply(&mut self, request: &[u8], now: &Now) -> Option<Vec<u8>> {
        self.judge()?.reply(request, now)
    }

    /// Lets count what waited for this writing of the memory.
    pub fn written(&mut self, writing: Writing, now: &Now) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for peer in &mut self.own {
            let Some(admission) = &mut peer.admission else { continue };
            let of_peer = admission.written(writing, now);
            if of_peer.iter().any(|arrival| matches!(arrival.accepted, Accepted::Moved { .. })) {
                peer.conflicting_remote = None;
            }
            arrivals.extend(of_peer);
        }
        arrivals
    }

    /// Ends the sessions that have expired, and returns their remotes.
    pub fn expire(&mut self, now: &Now) -> Vec<SocketAddr> {
        self.admissions().flat_map(|admission| admission.expire(now)).collect()
    }

    /// The one that several hosts share, to find room in.
    pub fn shared_mut(&mut self) -> Option<&mut Admission> {
        self.judge().filter(|admission| admission.learn().is_some())
    }

    /// The remotes that came, went, or ran out since the last call.
    pub fn take_changed(&mut self) -> Changed {
        let mut changed = std::mem::take(&mut self.changed);
        changed.remotes.extend(self.admissions().flat_map(Admission::take_changed));
        changed
    }

    /// Notes that the kernel refused a link because another has its pair of addresses.
    pub fn conflict(&mut self, device: &DeviceName) {
        for peer in self.iter_mut().filter(|peer| peer.device == *device) {
            peer.conflicting_remote = peer.remote().map(|remote| remote.ip());
        }
    }

    /// What was not to be forgotten since the last call; `None` when it is too much to be kept apart.
    pub fn take_records(&mut self) -> Option<Vec<Record>> {
        let records: Vec<_> = self.admissions().map(Admission::take_records).collect();
        records.into_iter().collect::<Option<Vec<_>>>().map(|of_peers| of_peers.concat())
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        self.own.iter().for_each(|peer| peer.remember(memory));
    }
}
