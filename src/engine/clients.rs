//! Many clients of one server, who share its token or key: each is known by the address from which
//! it proved itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::Moment;
use super::config::{LearnConfig, ServerConfig};
use super::memory::{Memory, Writing};
use super::peer::{self, Accepted, Arrival, Verdict};
use crate::auth::{Proof, Reject, ReplayMemory};

/// A client that proved itself so long before a restart has to do it again: somebody else may have
/// its address by now.
const RESUMED_WITHIN: u64 = 600;

/// Those who proved themselves.
#[derive(Debug)]
pub struct Clients {
    config: ServerConfig,
    learn: LearnConfig,
    seen: ReplayMemory,
    /// Where clients were, as far as an earlier process remembered.
    remembered: BTreeSet<SocketAddr>,
    known: BTreeMap<SocketAddr, Session>,
    /// Who proved himself and counts once that is on the disk.
    arriving: BTreeMap<SocketAddr, Arriving>,
    /// Who proved himself and does not fit in, unless somebody has fallen silent.
    waiting: BTreeMap<SocketAddr, Waiting>,
}

/// Our clocks at the last valid packet, and when it has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    at: Duration,
    unix: u64,
    until: Option<Duration>,
}

#[derive(Debug)]
struct Waiting {
    known: Session,
    /// The payload that is answered.
    request: Vec<u8>,
}

#[derive(Debug)]
struct Arriving {
    waiting: Waiting,
    writing: Writing,
}

/// What came of those who had to wait for room.
#[derive(Debug, Default)]
pub struct Room {
    /// They were silent, and make room.
    pub removed: Vec<SocketAddr>,
    /// There was none: source and length of the packet.
    pub refused: Vec<(SocketAddr, usize)>,
    /// Somebody has to be written now.
    pub arriving: bool,
}

impl Clients {
    /// `memory` is an earlier process': its clients are let in again, without a new packet.
    pub fn new(
        mut config: ServerConfig,
        learn: LearnConfig,
        memory: &mut Memory,
        now: &Moment,
    ) -> Self {
        let key = config.policy.key();
        // A token is not remembered, and who has an old one must not come in by a new one.
        let same_key = memory.key.is_some() && memory.key == key;
        let seen = memory.replays_of(key, config.policy.share(), now);
        let before = std::mem::take(&mut memory.clients);
        let resumed = |unix: u64| now.unix.abs_diff(unix) <= RESUMED_WITHIN;
        let mut newest: Vec<_> =
            before.iter().filter(|(_, unix)| same_key && resumed(**unix)).collect();
        newest.sort_by_key(|(_, unix)| std::cmp::Reverse(**unix));
        let known = newest.into_iter().take(learn.limit).map(|(remote, unix)| {
            let age = now.since(*unix);
            let until = config.valid_until(age, now);
            let at = now.monotonic.saturating_sub(age);
            (*remote, Session { at, unix: *unix, until })
        });
        let known = known.collect();
        let remembered = if same_key { before.into_keys().collect() } else { BTreeSet::new() };
        let (arriving, waiting) = (BTreeMap::new(), BTreeMap::new());
        let mut clients = Clients { config, learn, seen, remembered, known, arriving, waiting };
        clients.expire(now);
        clients
    }

    /// Whose packets are let in.
    pub fn admitted(&self) -> impl Iterator<Item = SocketAddr> {
        self.known.keys().copied()
    }

    pub fn admits(&self, remote: SocketAddr) -> bool {
        self.known.contains_key(&remote)
    }

    /// Whether there is nothing that a client could prove.
    pub fn takes_anybody(&self) -> bool {
        let policy = &self.config.policy;
        matches!(policy.proof, Proof::Nothing)
            && policy.remote_ip.is_none()
            && policy.remote_port.is_none()
    }

    pub fn learn(&self) -> &LearnConfig {
        &self.learn
    }

    /// Judges an authentication packet. Who is new counts once `writing` is done.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        writing: Writing,
        now: &Moment,
    ) -> Result<Verdict, Reject> {
        let is_known = self.known.contains_key(&from) || self.remembered.contains(&from);
        let time = now.server_time();
        self.config.policy.check(from, payload, time, is_known, &mut self.seen)?;
        let until = self.config.valid_until(Duration::ZERO, now);
        let fresh = Session { at: now.monotonic, unix: now.unix, until };
        if let Some(known) = self.known.get_mut(&from) {
            *known = fresh;
            return Ok(Verdict::Refreshed);
        }
        if let Some(arriving) = self.arriving.get_mut(&from) {
            arriving.waiting.known = fresh;
            return Ok(Verdict::BeingWritten);
        }
        let waiting = Waiting { known: fresh, request: payload.to_vec() };
        if self.is_roomy() {
            self.arriving.insert(from, Arriving { waiting, writing });
            return Ok(Verdict::Arriving);
        }
        // More than all of them cannot find room.
        if self.waiting.len() >= self.learn.limit {
            return Err(Reject::NoRoom);
        }
        self.waiting.insert(from, waiting);
        Ok(Verdict::Waiting)
    }

    fn is_roomy(&self) -> bool {
        self.known.len() + self.arriving.len() < self.learn.limit
    }

    /// Finds room for those who wait for it: whoever was silent for the lifetime of an inner address
    /// makes room, the longest silent first. `silent` tells how long ago data came from a remote.
    pub fn make_room(
        &mut self,
        silent: &BTreeMap<SocketAddr, Duration>,
        writing: Writing,
        now: &Moment,
    ) -> Room {
        let mut room = Room::default();
        if self.waiting.is_empty() {
            return room;
        }
        let silence = |(remote, known): (&SocketAddr, &Session)| {
            let since = now.monotonic.saturating_sub(known.at);
            (silent.get(remote).map_or(since, |data| since.min(*data)), *remote)
        };
        let mut silences: Vec<_> = self.known.iter().map(silence).collect();
        silences.retain(|(silence, _)| *silence >= self.learn.lifetime);
        silences.sort_unstable();
        for (from, waiting) in std::mem::take(&mut self.waiting) {
            if !self.is_roomy() {
                let Some((_, gone)) = silences.pop() else {
                    room.refused.push((from, waiting.request.len()));
                    continue;
                };
                self.known.remove(&gone);
                room.removed.push(gone);
            }
            self.arriving.insert(from, Arriving { waiting, writing });
            room.arriving = true;
        }
        room
    }

    /// Lets count those who waited for this writing of the memory.
    pub fn written(&mut self, writing: Writing, now: &Moment) -> Vec<Arrival> {
        let (done, rest) = std::mem::take(&mut self.arriving)
            .into_iter()
            .partition(|(_, arriving)| arriving.writing <= writing);
        self.arriving = rest;
        let arrival = |(from, Arriving { waiting: Waiting { known, request }, .. })| {
            self.known.insert(from, known);
            Arrival { from, accepted: Accepted::Arrived, reply: self.reply(&request, now) }
        };
        BTreeMap::into_iter(done).map(arrival).collect()
    }

    pub fn reply(&self, request: &[u8], now: &Moment) -> Option<Vec<u8>> {
        peer::reply(&self.config.reply, request, now)
    }

    /// When the first authentication runs out.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.known.values().filter_map(|known| known.until).min()
    }

    /// Ends the authentications that have run out; tells whose they were.
    pub fn expire(&mut self, now: &Moment) -> Vec<SocketAddr> {
        let over = |known: &Session| known.until.is_some_and(|until| until <= now.monotonic);
        let gone = self.known.iter().filter(|(_, known)| over(known)).map(|(a, _)| *a).collect();
        self.known.retain(|_, known| !over(known));
        gone
    }

    /// Unix time of the newest authentication.
    pub fn last_authentication(&self) -> Option<u64> {
        self.known.values().map(|known| known.unix).max()
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        memory.key = self.config.policy.key();
        memory.seen = self.seen.clone();
        let arriving = self.arriving.iter().map(|(remote, a)| (*remote, a.waiting.known.unix));
        let known = self.known.iter().map(|(remote, known)| (*remote, known.unix));
        memory.clients = known.chain(arriving).collect();
    }
}
