//! How many hosts that share a key have a session: one that was silent for long makes room for another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Admission, Arriving};
use crate::engine::Now;
use crate::engine::config::LearnConfig;
use crate::engine::memory::{Record, Writing};
use crate::engine::sessions::Session;

/// What became of the remotes that waited for room.
#[derive(Debug, Default)]
pub struct Room {
    /// They were silent, and make room.
    pub removed: Vec<SocketAddr>,
    /// There was none: source and length of the packet.
    pub refused: Vec<(SocketAddr, usize)>,
    /// Somebody has to be written now.
    pub arriving: bool,
}

impl Admission {
    pub(super) fn is_roomy(&self, limit: usize) -> bool {
        self.sessions.len() + self.arriving.len() < limit
    }

    /// Finds room for the remotes that wait for it: remotes that were silent for the lifetime of an inner
    /// address make room, the longest silent first. `silent` says how long ago data came from a remote.
    pub fn make_room(
        &mut self,
        silent: &BTreeMap<SocketAddr, Duration>,
        writing: Writing,
        now: &Now,
    ) -> Room {
        let mut room = Room::default();
        let Some(LearnConfig { lifetime, limit }) = self.learn().copied() else { return room };
        if self.waiting.is_empty() {
            return room;
        }
        let silence = |(remote, session): (SocketAddr, Session)| {
            let since = now.monotonic.saturating_sub(session.at);
            (silent.get(&remote).map_or(since, |data| since.min(*data)), remote)
        };
        let mut silences: Vec<_> = self.sessions.iter().map(silence).collect();
        silences.retain(|(silence, _)| *silence >= lifetime);
        silences.sort_unstable();
        for (from, waiting) in std::mem::take(&mut self.waiting) {
            if !self.is_roomy(limit) {
                let Some((_, gone)) = silences.pop() else {
                    room.refused.push((from, waiting.request.len()));
                    continue;
                };
                self.sessions.remove(gone);
                self.record(Record::Gone(gone));
                room.removed.push(gone);
            }
            self.record_session(from, waiting.session.unix);
            self.arriving.insert(from, Arriving { waiting, writing });
            room.arriving = true;
        }
        room
    }
}
