//! Many clients of one server, who share its token or key: each is known by the address from which
//! it proved itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Moment;
use super::config::{LearnConfig, ServerConfig};
use super::peer::{self, Accepted, Memory};
use crate::auth::{Proof, Reject, ReplayMemory};

/// A client that proved itself so long before a restart has to do it again: somebody else may have
/// its address by now.
const RESUMED_WITHIN: u64 = 600;

/// How far the clocks of clients with one key may be behind each other, in seconds.
const CLOCK_SPAN: u64 = 120;

/// Those who proved themselves.
#[derive(Debug)]
pub struct Clients {
    config: ServerConfig,
    learn: LearnConfig,
    seen: ReplayMemory,
    known: BTreeMap<SocketAddr, Known>,
}

/// Our clocks at the last valid packet, and when it has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    at: Duration,
    unix: u64,
    until: Option<Duration>,
}

impl Clients {
    /// `memory` is an earlier process': its clients are let in again, without a new packet.
    pub fn new(config: ServerConfig, learn: LearnConfig, memory: &Memory, now: &Moment) -> Self {
        // A token is not remembered, and who has an old one must not come in by a new one.
        let same_key = memory.key.is_some() && memory.key == config.policy.key();
        let seen = if same_key { memory.seen.clone() } else { ReplayMemory::default() };
        let resumed = |unix: u64| same_key && now.unix.abs_diff(unix) <= RESUMED_WITHIN;
        let known =
            memory.clients.iter().filter(|(_, unix)| resumed(**unix)).map(|(remote, unix)| {
                let age = now.since(*unix);
                let until = config.valid_until(age, now);
                let at = now.monotonic.saturating_sub(age);
                (*remote, Known { at, unix: *unix, until })
            });
        let known = known.collect();
        let mut clients = Clients { config, learn, seen: seen.going_back(CLOCK_SPAN), known };
        clients.expire(now);
        clients
    }

    /// Whose packets are let in.
    pub fn admitted(&self) -> impl Iterator<Item = SocketAddr> {
        self.known.keys().copied()
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

    /// Judges an authentication packet.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Moment,
    ) -> Result<Accepted, Reject> {
        self.config.policy.check(from, payload, now.unix, &mut self.seen)?;
        let until = self.config.valid_until(Duration::ZERO, now);
        let known = Known { at: now.monotonic, unix: now.unix, until };
        if self.known.insert(from, known).is_some() {
            return Ok(Accepted::Refreshed);
        }
        if self.known.len() > self.learn.limit {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.at).map(|(a, _)| *a);
            oldest.map(|address| self.known.remove(&address));
        }
        Ok(Accepted::Arrived)
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
        let over = |known: &Known| known.until.is_some_and(|until| until <= now.monotonic);
        let gone = self.known.iter().filter(|(_, known)| over(known)).map(|(a, _)| *a).collect();
        self.known.retain(|_, known| !over(known));
        gone
    }

    /// Unix time of the newest authentication.
    pub fn last_authentication(&self) -> Option<u64> {
        self.known.values().map(|known| known.unix).max()
    }

    pub fn memory(&self) -> Memory {
        Memory {
            key: self.config.policy.key(),
            seen: self.seen.clone(),
            clients: self.known.iter().map(|(remote, known)| (*remote, known.unix)).collect(),
            ..Memory::default()
        }
    }
}
