//! The members of a server as they stand, for `show`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Answered, Hub, Loaded, Member};
use crate::engine::control::Ignored;
use crate::engine::peers_file::PeerName;
use crate::engine::{Engine, Now};

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

/// A member as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its public ed25519 key; `None`: it has a token.
    pub public_key: Option<[u8; 32]>,
    /// Our port for it, where it runs the old program.
    pub old: Option<u16>,
    /// Whether it is there.
    pub state: MemberState,
    /// Where it is.
    pub remote: Option<SocketAddr>,
    /// Its inner addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks behind it.
    pub routes: Vec<IpNet>,
    /// Unix time since which it is connected.
    pub since: Option<u64>,
    /// Unix time of its last accepted hello.
    pub last_hello: Option<u64>,
    /// Unix time at which its lease ends, unless it says hello before.
    pub lease_until: Option<u64>,
    /// How often it moved since it is connected.
    pub moves: u64,
    /// Unix time at which it expires.
    pub expires: Option<u64>,
    /// Where it stands: `FILE:LINE`.
    pub file: String,
    /// What somebody noted about it.
    pub note: Option<String>,
}

impl Engine {
    /// The members of a server whose peers are named in files, by name; `None`: it is another one.
    pub fn members(&self, now: &Now) -> Option<Vec<MemberStatus>> {
        let hub = self.hub.as_ref()?;
        Some(hub.members.values().map(|member| hub.status(member, now)).collect())
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
        let Member { id, mark: _, entry, last_hello, since, said: _ } = member;
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
            name: entry.name.to_string(),
            public_key: entry.public_key().copied(),
            old: entry.old().map(|old| old.port.get()),
            state,
            remote: session.map(|session| session.remote),
            addresses: entry.addresses.clone(),
            routes: entry.routes.clone(),
            since: *since,
            last_hello: *last_hello,
            lease_until,
            moves: session.map_or(0, |session| session.moves),
            expires: entry.expires,
            file: format!("{}:{}", entry.origin.file, entry.origin.line),
            note: entry.note.clone(),
        }
    }
}
