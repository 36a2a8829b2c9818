//! Holds what a peer has to prove before its data is let in, and the remotes from which it did.
//!
//! A peer that is alone has one session, which moves with it. Several hosts may share the token or the
//! key of a peer: then each remote has a session of its own, and a limit says how many there are.

mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Now;
use super::config::{Admits, Expects, LearnConfig, Reply};
use super::learned::{self, Learned};
use super::memory::{Memory, NOBODY, Record, Writing};
use super::sessions::{Session, Sessions};
use crate::auth::{Reject, ReplayMemory, ServerTime};
use crate::wire::auth_packet::AuthPacket;

/// Records that are kept apart while the disk does not take them: after that the whole is smaller.
const MOST_RECORDS: usize = 4096;

/// The judge of one peer's packets, and its sessions.
#[derive(Debug)]
pub struct Admission {
    expects: Expects,
    seen: ReplayMemory,
    /// Where the peer was, as far as an earlier process remembered.
    remembered: BTreeSet<SocketAddr>,
    sessions: Sessions,
    learned: Learned,
    /// Remotes that authenticated. It counts once it is on the disk.
    arriving: BTreeMap<SocketAddr, Arriving>,
    /// Remotes that authenticated while all places were taken.
    waiting: BTreeMap<SocketAddr, Waiting>,
    /// What was not to be forgotten since it was asked for; `None`: too much.
    records: Option<Vec<Record>>,
}

#[derive(Debug)]
struct Waiting {
    session: Session,
    /// The payload that is answered.
    request: Vec<u8>,
}

#[derive(Debug)]
struct Arriving {
    waiting: Waiting,
    writing: Writing,
}

/// What counts now that it is on the disk.
#[derive(Debug)]
pub struct Arrival {
    pub from: SocketAddr,
    pub accepted: Accepted,
    pub reply: Option<Vec<u8>>,
}

/// The effect of a valid packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// From where the peer is known to be.
    Refreshed,
    /// For the first time.
    Arrived,
    Moved {
        from: SocketAddr,
    },
}

/// What becomes of a valid packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// From where the peer is known to be.
    Refreshed,
    /// From elsewhere, after it had run out, or by a clock that is further ahead than it was: it
    /// counts once it is written.
    Arriving,
    /// The same, of one whose writing was asked for.
    BeingWritten,
    /// All places are taken: the next reading of the host shows whether a remote has fallen silent.
    Waiting,
}

impl Admission {
    /// `memory` is an earlier process'. Hosts that share a key are let in again without a new packet.
    pub fn new(mut expects: Expects, memory: &mut Memory, now: &Now) -> Self {
        let key = expects.policy.key();
        let learned = Learned::before(key, memory, now);
        let (seen, remembered) = match expects.admits {
            Admits::One => {
                let remembered = memory.authenticated.iter().map(|(remote, _)| *remote).collect();
                (memory.replays_of(key, None, now), remembered)
            }
            Admits::Shared(_) => {
                // A token is not remembered, and a client with an old one must not be admitted by a new one.
                let same_key = memory.key.is_some() && memory.key == key;
                let seen = memory.replays_of(key, expects.policy.share(), now);
                memory.clients.retain(|_, _| same_key);
                (seen, memory.clients.keys().copied().collect())
            }
        };
        let mut admission = Admission {
            expects,
            seen,
            remembered,
            sessions: Sessions::default(),
            learned,
            arriving: BTreeMap::new(),
            waiting: BTreeMap::new(),
            records: Some(Vec::new()),
        };
        admission.resume(memory, now);
        admission
    }

    /// Lets in the hosts that an earlier process did, as long as their packets are good.
    fn resume(&mut self, memory: &mut Memory, now: &Now) {
        let Admits::Shared(LearnConfig { limit, .. }) = self.expects.admits else { return };
        let before = std::mem::take(&mut memory.clients);
        let mut newest: Vec<_> =
            before.into_iter().filter(|(_, unix)| learned::is_resumed(*unix, now)).collect();
        newest.sort_by_key(|(_, unix)| std::cmp::Reverse(*unix));
        for (remote, unix) in newest.into_iter().take(limit) {
            let age = now.since(unix);
            let at = now.monotonic.saturating_sub(age);
            let until = self.expects.valid_until(age, now);
            let session = Session { at, unix, until, expired: false, unproven: false };
            self.sessions.put(remote, session);
        }
        self.expire(now);
    }

    /// Takes over the tunnel to `remote` that an earlier process left running. Who authenticated to
    /// that process by what this one does not take has to do it again before it is let in.
    pub fn adopt(&mut self, remote: SocketAddr, memory: &Memory, now: &Now) {
        let policy = &self.expects.policy;
        // One whom another came after before the tunnel could follow has to do it again, too.
        let (unix, is_last) = match memory.authenticated {
            Some((at, unix)) => (unix, at == remote && memory.key == policy.key()),
            None => (now.unix, true),
        };
        let taken = is_last && policy.check_remote(remote).is_ok();
        let age = now.since(unix);
        let until = self.expects.valid_until(age, now);
        let expired = !taken || until.is_some_and(|until| until <= now.monotonic);
        let at = now.monotonic.saturating_sub(age);
        self.sessions = Sessions::default();
        self.sessions.put(remote, Session { at, unix, until, expired, unproven: !taken });
    }

    /// Every remote that has a session, and whether it is let in.
    pub fn remotes(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        self.sessions.iter().map(|(remote, session)| (remote, !session.expired))
    }

    pub fn admits(&self, remote: SocketAddr) -> bool {
        self.sessions.get(remote).is_some_and(|session| !session.expired)
    }

    /// How inner addresses are learned, where several hosts share this.
    pub fn learn(&self) -> Option<&LearnConfig> {
        match &self.expects.admits {
            Admits::One => None,
            Admits::Shared(learn) => Some(learn),
        }
    }

    /// Which inner addresses were learned, where several hosts share this.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Takes over what was learned by now. Returns whether that is to be written soon. Records do not tell
    /// what changed: the next write is of the whole memory.
    pub fn note_learned(&mut self, learned: &BTreeMap<IpAddr, SocketAddr>) -> bool {
        if self.learned.now() == learned {
            return false;
        }
        self.records = None;
        self.learned.change(learned)
    }

    /// Whether there is nothing to prove.
    pub fn takes_anybody(&self) -> bool {
        let policy = &self.expects.policy;
        policy.proof.is_nothing() && policy.remote_ip.is_none() && policy.remote_port.is_none()
    }

    /// Judges an authentication packet. When its source is new, that counts once `writing` is done.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        writing: Writing,
        now: &Now,
    ) -> Result<Verdict, Reject> {
        // One whom another came after is not known, although the tunnel still leads to it.
        let is_known = self.remembered.contains(&from)
            || self.sessions.get(from).is_some_and(|session| !session.unproven);
        let time = now.server_time();
        self.expects.policy.check(from, payload, time, is_known, &mut self.seen)?;
        if self.expects.policy.key().is_some()
            && let Ok(AuthPacket { seconds, message, .. }) = AuthPacket::parse(payload)
        {
            let ServerTime { now, start } = now.server_time();
            let message = message.to_vec();
            self.record(Record::Accepted { seconds, message, now, start });
        }
        let until = self.expects.valid_until(Duration::ZERO, now);
        let (at, unix) = (now.monotonic, now.unix);
        let session = Session { at, unix, until, expired: false, unproven: false };
        let must_write = self.seen.must_write();
        let before = self.sessions.get(from).copied();
        if before.is_some_and(|before| !must_write && !before.expired) {
            self.sessions.put(from, session);
            self.record_session(from, now.unix);
            // Alone, it is back from where it was about to move to.
            if self.learn().is_none() {
                self.arriving.clear();
            }
            return Ok(Verdict::Refreshed);
        }
        // The arrival is being written already: another packet must not prolong its wait.
        if let Some(arriving) = self.arriving.get_mut(&from).filter(|_| !must_write) {
            arriving.waiting.session = session;
            self.record_session(from, now.unix);
            return Ok(Verdict::BeingWritten);
        }
        let waiting = Waiting { session, request: payload.to_vec() };
        match &self.expects.admits {
            Admits::One => self.arriving.clear(),
            Admits::Shared(learn) if before.is_none() && !self.is_roomy(learn.limit) => {
                // More than all of them cannot find room.
                if self.waiting.len() >= learn.limit {
                    return Err(Reject::NoRoom);
                }
                self.waiting.insert(from, waiting);
                return Ok(Verdict::Waiting);
            }
            Admits::Shared(_) => {}
        }
        self.record_session(from, now.unix);
        self.arriving.insert(from, Arriving { waiting, writing });
        Ok(Verdict::Arriving)
    }

    fn record_session(&mut self, remote: SocketAddr, unix: u64) {
        self.record(match &self.expects.admits {
            Admits::One => Record::Session(remote, unix),
            Admits::Shared(_) => Record::Client(remote, unix),
        });
    }

    fn record(&mut self, record: Record) {
        self.records = self.records.take().filter(|records| records.len() < MOST_RECORDS);
        if let Some(records) = &mut self.records {
            records.push(record);
        }
    }

    /// What was not to be forgotten since the last call; `None` when it is too much to be kept apart.
    pub fn take_records(&mut self) -> Option<Vec<Record>> {
        self.records.replace(Vec::new())
    }

    /// Lets count what waited for this writing of the memory.
    pub fn written(&mut self, writing: Writing, now: &Now) -> Vec<Arrival> {
        let (done, rest): (BTreeMap<_, _>, _) = std::mem::take(&mut self.arriving)
            .into_iter()
            .partition(|(_, arriving)| arriving.writing <= writing);
        self.arriving = rest;
        let arrival = |(from, Arriving { waiting: Waiting { session, request }, .. })| {
            let accepted = self.let_in(from, session);
            Arrival { from, accepted, reply: self.reply(&request, now) }
        };
        done.into_iter().map(arrival).collect()
    }

    fn let_in(&mut self, remote: SocketAddr, session: Session) -> Accepted {
        let before = match &self.expects.admits {
            Admits::One => self.sessions.iter().next().map(|(at, _)| at),
            Admits::Shared(_) => self.sessions.get(remote).map(|_| remote),
        };
        if let Some(before) = before.filter(|before| *before != remote) {
            self.sessions.remove(before);
        }
        self.sessions.put(remote, session);
        match before {
            None => Accepted::Arrived,
            Some(before) if before == remote => Accepted::Refreshed,
            Some(before) => Accepted::Moved { from: before },
        }
    }

    /// What is sent back to a peer that sent `request`.
    pub fn reply(&self, request: &[u8], now: &Now) -> Option<Vec<u8>> {
        match &self.expects.reply {
            Reply::Silent => None,
            Reply::Signed(signer) => Some(signer.control_packet(now.unix, now.salts())),
            Reply::Reversed => Some(request.iter().rev().copied().collect()),
        }
    }

    /// When the first authentication runs out.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.sessions.next_expiry()
    }

    /// Ends the sessions that have expired, and returns their remotes. The tunnel to a peer that is alone
    /// stays, and lets nothing in.
    pub fn expire(&mut self, now: &Now) -> Vec<SocketAddr> {
        let gone = self.sessions.expire(now.monotonic);
        if self.learn().is_some() {
            for remote in &gone {
                self.sessions.remove(*remote);
                self.record(Record::Gone(*remote));
            }
        }
        gone
    }

    /// The remotes that came, went, or ran out since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<SocketAddr> {
        self.sessions.take_changed()
    }

    /// Unix time of the newest authentication.
    pub fn last_authentication(&self) -> Option<u64> {
        self.sessions.iter().map(|(_, session)| session.unix).max().filter(|&unix| unix != 0)
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        memory.key = self.expects.policy.key();
        memory.seen = self.seen.clone();
        let arriving = self.arriving.iter().map(|(remote, a)| (*remote, a.waiting.session));
        let sessions = self.sessions.iter();
        match &self.expects.admits {
            Admits::One => {
                let newest = arriving.chain(sessions).next();
                // The next start must not take for proven what this one does not.
                memory.authenticated = match (newest, memory.authenticated) {
                    (Some((remote, s)), Some((last, unix))) if s.unproven && last != remote => {
                        Some((last, unix))
                    }
                    (Some((_, s)), _) if s.unproven => Some((NOBODY, s.unix)),
                    (newest, _) => newest.map(|(remote, s)| (remote, s.unix)),
                };
            }
            Admits::Shared(_) => {
                memory.clients = sessions.chain(arriving).map(|(at, s)| (at, s.unix)).collect();
                memory.learned.clone_from(self.learned.now());
            }
        }
    }
}
