//! Sessions that outlive the process of a server with the userspace datapath: what it tells of them while it
//! runs, and what the next process takes over. With the kernel's, the links tell that.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::Hub;
use crate::auth::Ends;
use crate::engine::control::{PeerId, Session};
use crate::engine::host::Found;
use crate::engine::{Action, Engine, Now};

/// A session that the next process may take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumableSession {
    /// A digest of the keys of the peer and the server, and their secret: with others, it is nobody's session.
    pub keys: [u8; 32],
    /// Where it is.
    pub remote: SocketAddr,
    /// When its lease ends, by CLOCK_BOOTTIME.
    pub until: Duration,
}

/// Whether changes of sessions are reported.
#[derive(Debug, Default)]
pub enum Resuming {
    /// No: nobody asked.
    #[default]
    Never,
    /// Not yet: these are of an earlier process, and no reading of the host has shown our address.
    Left(Vec<ResumableSession>),
    /// Yes.
    Told,
}

impl Resuming {
    /// What is left of an earlier process; from now on, changes are reported.
    fn take_left(&mut self) -> Vec<ResumableSession> {
        match std::mem::take(self) {
            Resuming::Never => Vec::new(),
            Resuming::Left(left) => {
                *self = Resuming::Told;
                left
            }
            Resuming::Told => {
                *self = Resuming::Told;
                Vec::new()
            }
        }
    }
}

impl Engine {
    /// Takes over these sessions of an earlier process of a server, with the interface that it left, as soon as
    /// a reading of the host shows our address. From then on [`Engine::changed_sessions`] tells those of this one.
    pub fn resume_sessions(&mut self, left: Vec<ResumableSession>) {
        if let Some(hub) = &mut self.hub {
            hub.resuming = Resuming::Left(left);
            hub.server.tell_changes();
        }
    }

    /// The sessions that began, were kept or ended since this was called last, by the number of the peer;
    /// without a session it has none any more. `None`: there is nothing to be told, or not yet.
    pub fn changed_sessions(
        &mut self,
    ) -> Option<impl Iterator<Item = (PeerId, Option<ResumableSession>)> + '_> {
        let hub = self.hub.as_mut()?;
        match hub.resuming {
            Resuming::Never | Resuming::Left(_) => return None,
            Resuming::Told => {}
        }
        let changed = hub.server.take_changed();
        let mut session = |id: PeerId| {
            let &Session { remote, until, .. } = hub.server.session(id)?;
            let keys = hub.server.digest(id)?;
            Some(ResumableSession { keys, remote, until })
        };
        Some(changed.into_iter().map(move |id| (id, session(id))))
    }

    /// Makes the next [`Engine::changed_sessions`] report every session, for a list that starts over.
    pub fn tell_all_sessions(&mut self) {
        if let Some(hub) = &mut self.hub {
            hub.server.tell_all();
        }
    }

    /// Takes over the sessions of an earlier process, if its interface and socket are here. While the uplink
    /// is away, they wait.
    pub(in crate::engine) fn resume_members(
        &mut self,
        found: &Found,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let port = self.endpoint.tunnel.port.get();
        let local = self.outer.map(|outer| SocketAddr::new(outer.address, port));
        let Some(hub) = &mut self.hub else { return };
        let is_here = found.userspace.interface;
        if is_here && local.is_none() {
            return;
        }
        let left = hub.resuming.take_left();
        let Some(local) = local.filter(|_| is_here) else { return };
        for (id, remote) in hub.resume(left, local, now) {
            self.adopt_member((id, remote), now, actions);
        }
    }
}

impl Hub {
    /// Takes over what is left, at this local address.
    fn resume(
        &mut self,
        left: Vec<ResumableSession>,
        local: SocketAddr,
        now: &Now,
    ) -> BTreeSet<(PeerId, SocketAddr)> {
        let mut resumed = BTreeSet::new();
        // Digests of all peers are worked out only if there is something to look up.
        let ids = if left.is_empty() { HashMap::new() } else { self.server.by_digest() };
        for ResumableSession { keys, remote, until } in left {
            let Some(id) = ids.get(&keys).copied() else { continue };
            if until > now.boot && self.server.resume(id, Ends { remote, local }, now.boot, until) {
                resumed.insert((id, remote));
            }
        }
        resumed
    }
}
