//! The members of a server as they stand, for `show`.

use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::{Answered, Hub, Loaded, Member};
use crate::engine::control::Ignored;
use crate::engine::endpoint::Endpoint;
use crate::engine::host::{Found, Traffic};
use crate::engine::links;
use crate::engine::peers_file::{PeerEntry, PeerName};
use crate::engine::{Engine, Now};
use crate::wire::control::Refusal;

/// Whether a member is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It has a session.
    Connected,
    /// It had one.
    Away,
    /// It has never been here, as far as this process knows.
    New,
    /// Its time is over.
    Expired,
    /// The files say `enabled = false`.
    Disabled,
}

impl MemberState {
    /// Every state there is.
    pub const ALL: [MemberState; 5] = [
        MemberState::Connected,
        MemberState::Away,
        MemberState::New,
        MemberState::Expired,
        MemberState::Disabled,
    ];

    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            MemberState::Connected => "connected",
            MemberState::Away => "away",
            MemberState::New => "new",
            MemberState::Expired => "expired",
            MemberState::Disabled => "disabled",
        }
    }
}

/// A hello that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRefusal {
    /// Unix time.
    pub at: u64,
    /// What the answer said.
    pub why: Refusal,
}

/// A member as it stands. To make one costs little, so that those of ten thousand hold nobody up: what the
/// files say is not copied.
#[derive(Debug, Clone)]
pub struct MemberStatus {
    /// What the files say of it.
    pub entry: Arc<PeerEntry>,
    /// Whether it is there.
    pub state: MemberState,
    /// Where it is.
    pub remote: Option<SocketAddr>,
    /// Unix time since which it is connected.
    pub since: Option<u64>,
    /// Unix time of its last accepted hello.
    pub last_hello: Option<u64>,
    /// Unix time at which its lease ends, unless it says hello before.
    pub lease_until: Option<u64>,
    /// How often it moved since it is connected.
    pub moves: u64,
    /// The last hello of it that was refused.
    pub last_refusal: Option<LastRefusal>,
    /// What was carried from it and to it, as the last reading shows; `None` where it has no interface of
    /// its own.
    pub traffic: Option<Traffic>,
}

impl Engine {
    /// The members of a server whose peers are named in files, by name; `None`: it is another one.
    pub fn members(&self, now: &Now) -> Option<impl Iterator<Item = MemberStatus>> {
        self.members_after(None, now)
    }

    /// The members behind the one of this name, which may have gone.
    pub fn members_after(
        &self,
        name: Option<&PeerName>,
        now: &Now,
    ) -> Option<impl Iterator<Item = MemberStatus>> {
        let hub = self.hub.as_ref()?;
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        let found = self.found.as_ref().filter(|_| datapath.capabilities().link_per_remote);
        let status = move |member: &Member| {
            let status = hub.status(member, now);
            let found = found.filter(|_| status.remote.is_some());
            let link = |found: &Found| {
                let device = links::device(tunnel, *datapath, member.mark);
                found.interface(&device).map(|link| link.traffic)
            };
            MemberStatus { traffic: found.and_then(link), ..status }
        };
        let begin = name.map_or(Bound::Unbounded, Bound::Excluded);
        let members = hub.members.range::<PeerName, _>((begin, Bound::Unbounded));
        Some(members.map(|(_, member)| &**member).map(status))
    }

    /// What the files said last of the peer of that name.
    pub fn entry_of(&self, name: &PeerName) -> Option<&PeerEntry> {
        Some(&self.hub.as_ref()?.members.get(name)?.entry)
    }

    /// Whether the files name such a peer.
    pub fn has_member(&self, name: &PeerName) -> bool {
        self.hub.as_ref().is_some_and(|hub| hub.members.contains_key(name))
    }

    /// Whether we authenticate to somebody.
    pub fn proves_itself(&self) -> bool {
        self.peers.has_prover()
    }

    /// What the last reading of the files changed.
    pub fn loaded(&self) -> Option<Loaded> {
        self.hub.as_ref()?.loaded
    }

    /// How many hellos were answered or ignored, by what became of them; every name is there.
    pub fn hellos(&self) -> Option<Vec<(&'static str, u64)>> {
        let hub = self.hub.as_ref()?;
        let Answered { refreshed, admitted, challenged, refused, left } = hub.answered;
        let answered = [
            ("refreshed", refreshed),
            ("admitted", admitted),
            ("challenged", challenged),
            ("refused", refused),
            ("left", left),
        ];
        let ignored = |name: &'static str| (name, hub.ignored.get(name).copied().unwrap_or(0));
        Some(answered.into_iter().chain(Ignored::NAMES.into_iter().map(ignored)).collect())
    }
}

impl Hub {
    fn status(&self, member: &Member, now: &Now) -> MemberStatus {
        let Member { id, mark: _, entry, last_hello, since, refused, said: _, rivals: _ } = member;
        let session = self.server.session(*id);
        let state = match (entry.enabled, entry.has_expired(now.unix), session, last_hello) {
            (false, ..) => MemberState::Disabled,
            (true, true, ..) => MemberState::Expired,
            (true, false, Some(_), _) => MemberState::Connected,
            (true, false, None, Some(_)) => MemberState::Away,
            (true, false, None, None) => MemberState::New,
        };
        let lease_until = session.map(|session| {
            now.unix.saturating_add(session.until.saturating_sub(now.boot).as_secs())
        });
        MemberStatus {
            entry: Arc::clone(entry),
            state,
            remote: session.map(|session| session.remote),
            since: *since,
            last_hello: *last_hello,
            lease_until,
            moves: session.map_or(0, |session| session.moves),
            last_refusal: *refused,
            traffic: None,
        }
    }
}
