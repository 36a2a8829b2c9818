//! A server whose peers are named in files: who they are, which of them are connected, and what
//! follows from their hellos. [`Server`] judges these; this module connects it to the host.

mod entry;
mod events;
mod gone;
mod members;
mod resumed;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Now;
use super::config::{HubConfig, TunnelConfig};
use super::control::{PeerId, Server};
use super::links;
use super::peers_file::{PeerEntry, PeerName};
use super::random::Random;
use super::rivals::Rivals;

pub use gone::Gone;
pub use resumed::ResumableSession;
use resumed::Resuming;
pub use status::{LastRefusal, MemberState, MemberStatus};

/// The least time between two reports that a peer's hellos prove nothing.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// The members of a server, and its end of the control protocol.
#[derive(Debug)]
pub struct Hub {
    server: Server,
    /// Lengths of the networks that inner addresses are from, IPv4 and IPv6.
    prefixes: (u8, Option<u8>),
    members: BTreeMap<PeerName, Box<Member>>,
    names: BTreeMap<PeerId, PeerName>,
    marks: BTreeSet<u16>,
    /// Tells the server from others of this host, which may have peers of the same name.
    scope: u16,
    /// When members expire that do, in Unix time.
    expiries: BTreeSet<(u64, PeerId)>,
    next_id: u32,
    ignored: BTreeMap<&'static str, u64>,
    answered: Answered,
    /// What `show` says of the last change of the files.
    loaded: Option<Loaded>,
    resuming: Resuming,
    /// No reading of the host has shown our address yet, so links of an earlier process wait to be taken over.
    awaits_address: bool,
}

/// A peer as a file has it, and what is known of it.
#[derive(Debug)]
struct Member {
    id: PeerId,
    /// What tells its link from others: a hash of its name, or the next number that is free.
    mark: u16,
    /// Shared with the snapshots that show it.
    entry: Arc<PeerEntry>,
    /// Unix time of its last accepted hello.
    last_hello: Option<u64>,
    /// Unix time since which it is connected.
    since: Option<u64>,
    /// The last hello of it that was refused.
    refused: Option<LastRefusal>,
    /// When it was reported that hellos in its name prove nothing, by the clock of [`Now::boot`]. Hellos that
    /// prove it do not end that hour: whoever knows its name can send others in between.
    said: Option<Duration>,
    /// Its moves, since the first one.
    rivals: Option<Box<Rivals>>,
}

/// How many hellos were answered, by answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    /// By an accept without a signature check: from where the peer was.
    pub refreshed: u64,
    /// By an accept after a signature check.
    pub admitted: u64,
    /// By a challenge.
    pub challenged: u64,
    /// By a refusal.
    pub refused: u64,
    /// Goodbyes.
    pub left: u64,
}

/// What the last change of the files of peers did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Unix time.
    pub at: u64,
    /// Peers that were not there before.
    pub added: usize,
    /// Peers with another key, address, route, or something else.
    pub changed: usize,
    /// Peers that are gone.
    pub removed: usize,
    /// Peers that are as they were.
    pub untouched: usize,
}

impl Hub {
    /// A server without members; `None`: it has no key.
    pub fn new(config: &HubConfig, tunnel: &TunnelConfig, now: &Now) -> Option<Self> {
        let seed = config.seed.as_ref()?;
        let mut secret = [0; 32];
        Random::of(now).fill(&mut secret);
        Some(Hub {
            server: Server::new(seed, now.boot, secret),
            prefixes: (tunnel.inner_peer.prefix_len(), tunnel.inner6.map(|net| net.prefix_len())),
            members: BTreeMap::new(),
            names: BTreeMap::new(),
            marks: BTreeSet::new(),
            scope: links::hash_of_text(0, tunnel.device.as_str()),
            expiries: BTreeSet::new(),
            next_id: 0,
            ignored: BTreeMap::new(),
            answered: Answered::default(),
            loaded: None,
            resuming: Resuming::default(),
            awaits_address: true,
        })
    }

    /// When a lease ends or a member expires, as time since the start of the process.
    pub fn next_deadline(&self, now: &Now) -> Option<Duration> {
        let lease = self.server.next_deadline().map(|boot| boot.saturating_sub(now.boot));
        let expiry = self.expiries.first().map(|(unix, _)| unix.saturating_sub(now.unix));
        let left = lease.into_iter().chain(expiry.map(Duration::from_secs)).min();
        left.map(|left| now.monotonic.saturating_add(left))
    }

    fn member(&mut self, id: PeerId) -> Option<(&PeerName, &mut Member)> {
        let name = self.names.get(&id)?;
        self.members.get_mut(name).map(|member| (name, &mut **member))
    }
}
