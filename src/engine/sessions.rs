//! The remotes that authenticated. The indexes are kept inside, so that a change to one of thousands
//! costs what that one costs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// A remote that authenticated, or whose tunnel was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Time since the start of the process at the last valid packet.
    pub at: Duration,
    /// Unix time of that packet.
    pub unix: u64,
    /// Time since the start of the process at which that packet runs out; `None`: never.
    pub until: Option<Duration>,
    /// It has run out, or does not count for this process: nothing is let in.
    pub expired: bool,
    /// It was found at the start, and another came after it, or it authenticated by what this process
    /// does not take.
    pub unproven: bool,
}

/// All sessions of one peer.
#[derive(Debug, Default)]
pub struct Sessions {
    by_remote: BTreeMap<SocketAddr, Session>,
    /// When those run out that do.
    expiries: BTreeSet<(Duration, SocketAddr)>,
    /// Remotes that came, went, or ran out since this was asked for.
    changed: BTreeSet<SocketAddr>,
}

impl Session {
    fn expiry(&self) -> Option<Duration> {
        self.until.filter(|_| !self.expired)
    }
}

impl Sessions {
    pub fn get(&self, remote: SocketAddr) -> Option<&Session> {
        self.by_remote.get(&remote)
    }

    pub fn len(&self) -> usize {
        self.by_remote.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, Session)> {
        self.by_remote.iter().map(|(remote, session)| (*remote, *session))
    }

    /// Adds a session, or exchanges that of its remote.
    pub fn put(&mut self, remote: SocketAddr, session: Session) {
        let before = self.by_remote.insert(remote, session);
        self.forget_expiry(remote, before);
        self.expiries.extend(session.expiry().map(|until| (until, remote)));
        if before.is_none_or(|before| before.expired != session.expired) {
            self.changed.insert(remote);
        }
    }

    pub fn remove(&mut self, remote: SocketAddr) {
        let before = self.by_remote.remove(&remote);
        self.forget_expiry(remote, before);
        self.changed.insert(remote);
    }

    fn forget_expiry(&mut self, remote: SocketAddr, before: Option<Session>) {
        if let Some(until) = before.and_then(|before| before.expiry()) {
            self.expiries.remove(&(until, remote));
        }
    }

    /// When the first of them runs out.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.expiries.first().map(|(until, _)| *until)
    }

    /// Marks those that have run out by `now`, and tells which they are.
    pub fn expire(&mut self, now: Duration) -> Vec<SocketAddr> {
        let mut expired = Vec::new();
        while let Some((_, remote)) =
            self.expiries.first().copied().filter(|(until, _)| *until <= now)
        {
            if let Some(session) = self.by_remote.get(&remote).copied() {
                self.put(remote, Session { expired: true, ..session });
            }
            expired.push(remote);
        }
        expired.sort_unstable();
        expired
    }

    /// The remotes that came, went, or ran out since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(until: Option<u64>) -> Session {
        let until = until.map(Duration::from_secs);
        Session { at: Duration::ZERO, unix: 1, until, expired: false, unproven: false }
    }

    fn remote(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1000))
    }

    #[test]
    fn the_indexes_follow_insertions_and_removals() {
        let mut sessions = Sessions::default();
        sessions.put(remote(2), session(Some(20)));
        sessions.put(remote(1), session(Some(10)));
        sessions.put(remote(3), session(None));
        assert_eq!(sessions.take_changed(), [remote(1), remote(2), remote(3)].into());
        assert_eq!(sessions.next_expiry(), Some(Duration::from_secs(10)));
        // A refresh expires later, and changes nothing about what is let in.
        sessions.put(remote(1), session(Some(30)));
        assert_eq!(sessions.next_expiry(), Some(Duration::from_secs(20)));
        assert!(sessions.take_changed().is_empty());
        assert_eq!(sessions.expire(Duration::from_secs(19)), []);
        assert_eq!(sessions.expire(Duration::from_secs(30)), [remote(1), remote(2)]);
        assert_eq!(sessions.take_changed(), [remote(1), remote(2)].into());
        assert_eq!(sessions.next_expiry(), None);
        assert!(sessions.get(remote(1)).is_some_and(|session| session.expired));
        // It comes back, and goes.
        sessions.put(remote(1), session(Some(40)));
        sessions.remove(remote(1));
        assert_eq!((sessions.len(), sessions.next_expiry()), (2, None));
        assert_eq!(sessions.take_changed(), [remote(1)].into());
    }
}
