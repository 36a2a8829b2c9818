//! Follows the files of peers: what is new, what changed, and what is gone. Members that are as they were
//! notice nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::entry::networks;
use super::gone::Gone;
use super::{Hub, Loaded, Member};
use crate::engine::Now;
use crate::engine::control::{Allowed, PeerId, ServerPeer};
use crate::engine::links;
use crate::engine::peers_file::{PeerEntry, PeerName, PeerSet, Speaks};

/// A session that ended, or whose networks changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// It ended.
    Ended(PeerName, SocketAddr, Gone),
    /// It goes on, with other networks.
    Changed(PeerName, SocketAddr),
}

impl Hub {
    /// Takes another set of members. Returns what became of sessions.
    pub fn replace(&mut self, set: PeerSet, now: &Now) -> (Loaded, Vec<Followed>) {
        let mut loaded = Loaded { at: now.unix, ..Loaded::default() };
        let mut followed = Vec::new();
        // A key or a hint may go from one to another.
        for name in self.missing_in(&set) {
            let Some(member) = self.members.remove(&name) else { continue };
            loaded.removed += 1;
            self.forget_expiry(&member);
            self.names.remove(&member.id);
            self.marks.remove(&member.mark);
            if let Some(remote) = self.server.remove(member.id) {
                followed.push(Followed::Ended(name, remote, Gone::Removed));
            }
        }
        // Both are sorted by name, and every member that is left is named in the set.
        let mut before = std::mem::take(&mut self.members).into_iter().peekable();
        let mut members = Vec::with_capacity(set.len());
        for entry in set.into_peers().into_iter().map(Arc::new) {
            let Some((name, mut member)) = before.next_if(|(name, _)| *name == entry.name) else {
                loaded.added += 1;
                members.push(self.add(entry, now));
                continue;
            };
            if member.entry.is_as(&entry) {
                member.entry = entry; // it may be on another line now
                loaded.untouched += 1;
            } else {
                loaded.changed += 1;
                followed.extend(self.change(&mut member, entry, now));
            }
            members.push((name, member));
        }
        self.members = members.into_iter().collect();
        self.loaded = Some(loaded);
        (loaded, followed)
    }

    /// The networks of all members, with whether each is isolated; none where no member is.
    pub(super) fn named_networks(&self) -> Vec<(IpNet, bool)> {
        let entries = || self.members.values().map(|member| &member.entry);
        if !entries().any(|entry| entry.isolate) {
            return Vec::new();
        }
        entries().flat_map(|e| networks(e).into_iter().map(|net| (net, e.isolate))).collect()
    }

    /// The members that a set does not name, without looking each up.
    fn missing_in(&self, set: &PeerSet) -> Vec<PeerName> {
        let mut named = set.peers().iter().map(|peer| &peer.name).peekable();
        let is_missing = |name: &&PeerName| {
            while named.next_if(|next| next < name).is_some() {}
            named.peek() != Some(name)
        };
        self.members.keys().filter(is_missing).cloned().collect()
    }

    /// Changes a member to what the files say now. Returns what became of its session, if it had one.
    fn change(
        &mut self,
        member: &mut Member,
        entry: Arc<PeerEntry>,
        now: &Now,
    ) -> Option<Followed> {
        let remote = self.server.session(member.id).map(|session| session.remote);
        self.forget_expiry(member);
        let _ = self.put_in_protocol(member.id, &entry, now);
        member.entry = entry;
        (member.said, member.rivals) = (None, None);
        let goes_on = self.server.session(member.id).is_some();
        if !goes_on {
            member.since = None;
        }
        self.note_expiry(member, now);
        let name = member.entry.name.clone();
        Some(match goes_on {
            true => Followed::Changed(name, remote?),
            false => Followed::Ended(name, remote?, Gone::of(&member.entry, now.unix)),
        })
    }

    fn add(&mut self, entry: Arc<PeerEntry>, now: &Now) -> (PeerName, Box<Member>) {
        let id = PeerId(self.next_id);
        self.next_id += 1;
        let _ = self.put_in_protocol(id, &entry, now);
        let name = entry.name.clone();
        let mut mark = self.hash(&name);
        while !self.marks.insert(mark) {
            mark = mark.wrapping_add(1);
        }
        let (last_hello, since, refused, said, rivals) = (None, None, None, None, None);
        let member = Member { id, mark, entry, last_hello, since, refused, said, rivals };
        self.note_expiry(&member, now);
        self.names.insert(id, name.clone());
        (name, Box::new(member))
    }

    fn note_expiry(&mut self, member: &Member, now: &Now) {
        self.expiries.extend(expiry(member, now));
    }

    fn forget_expiry(&mut self, member: &Member) {
        if let Some(expires) = member.entry.expires {
            self.expiries.remove(&(expires, member.id));
        }
    }

    /// Ends the leases of members that were silent, and lets those expire that do.
    pub fn expire(&mut self, now: &Now) -> Vec<(PeerId, SocketAddr, Gone)> {
        let silent = self.server.expire(now.boot).into_iter();
        let mut gone: Vec<_> = silent.map(|(id, remote)| (id, remote, Gone::Silent)).collect();
        while let Some((_, id)) = self.expiries.first().copied().filter(|(at, _)| *at <= now.unix) {
            self.expiries.pop_first();
            let remote = self.server.session(id).map(|session| session.remote);
            let Some(entry) = self.member(id).map(|(_, member)| member.entry.clone()) else {
                continue;
            };
            let _ = self.put_in_protocol(id, &entry, now);
            gone.extend(remote.map(|remote| (id, remote, Gone::Expired)));
        }
        gone
    }

    /// Works out again who has expired, by a clock that was set.
    pub fn reckon(&mut self, now: &Now) -> Vec<(PeerId, SocketAddr, Gone)> {
        let mut gone = Vec::new();
        self.expiries.clear();
        let members = std::mem::take(&mut self.members);
        for member in members.values().filter(|member| member.entry.expires.is_some()) {
            let ended = self.put_in_protocol(member.id, &member.entry, now);
            gone.extend(ended.map(|remote| (member.id, remote, Gone::Expired)));
            self.note_expiry(member, now);
        }
        self.members = members;
        gone
    }

    /// Whether a member's link is called after its own name alone, so that it was the same one's before.
    pub(super) fn has_own_mark(&self, member: &Member) -> bool {
        let hash = self.hash(&member.entry.name);
        let alike = self.members.keys().filter(|name| self.hash(name) == hash).count();
        member.mark == hash && alike == 1
    }

    /// Tells names apart; the few that it does not get the next free number.
    fn hash(&self, name: &PeerName) -> u16 {
        links::hash_of_text(self.scope, name.as_str())
    }

    /// Tells the control protocol of a member. One with the old program is unknown to it. Returns the remote
    /// of the session that ends by this.
    fn put_in_protocol(&mut self, id: PeerId, entry: &PeerEntry, now: &Now) -> Option<SocketAddr> {
        match self.in_protocol(entry, now) {
            Some(peer) => self.server.insert(id, peer),
            None => self.server.remove(id),
        }
    }

    /// What the control protocol needs to know of a member.
    fn in_protocol(&self, entry: &PeerEntry, now: &Now) -> Option<ServerPeer> {
        let Speaks::Hellos(public_key) = entry.speaks else { return None };
        let (v4, v6) = self.prefixes;
        let inner = |address: &IpAddr| match address {
            IpAddr::V4(v4_address) => Ipv4Net::new(*v4_address, v4).ok().map(IpNet::V4),
            IpAddr::V6(v6_address) => Ipv6Net::new(*v6_address, v6?).ok().map(IpNet::V6),
        };
        Some(ServerPeer {
            public_key,
            secret: entry.secret.clone(),
            lease: entry.lease,
            inner: entry.addresses.iter().filter_map(inner).collect(),
            allowed: match (entry.enabled, entry.has_expired(now.unix)) {
                (false, _) => Allowed::Disabled,
                (true, true) => Allowed::Expired,
                (true, false) => Allowed::Yes,
            },
        })
    }
}

/// When a member expires that has not yet.
fn expiry(member: &Member, now: &Now) -> Option<(u64, PeerId)> {
    let expires = member.entry.expires.filter(|expires| *expires > now.unix);
    expires.map(|expires| (expires, member.id))
}
