//! The memory: what a restart must not forget.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Engine, Now};
use crate::auth::{ReplayMemory, ServerTime};

/// An address that no client can have.
pub(super) const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Kept in the state directory. Fields keep their names: older versions of the program read them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Server: the public key whose packets `seen` is about.
    pub key: Option<[u8; 32]>,
    /// Server: what was accepted of that key.
    pub seen: ReplayMemory,
    /// Server: the same of keys that were in use before, by the key in hexadecimal.
    pub others: BTreeMap<String, ReplayMemory>,
    /// Server: when (Unix time) the client last proved itself, and from where.
    pub authenticated: Option<(SocketAddr, u64)>,
    /// Server: the UDP port of ours at which it did; `None`: an earlier version did not say.
    pub port: Option<u16>,
    /// Client: no packet had a later time than this.
    pub reserved: u64,
    /// Client: a clock that shows this or more has not gone back, so it is later than any packet.
    pub clock_from: u64,
    /// Client: the latest time that the clock showed at a packet; 0 if that is not known.
    pub highest_clock: u64,
    /// Server with many clients: where each was, and when (Unix time) it last proved itself.
    pub clients: BTreeMap<SocketAddr, u64>,
    /// Server with many clients: behind which of them each inner address was learned.
    pub learned: BTreeMap<IpAddr, SocketAddr>,
    /// Client: the inner addresses that the server gave it last.
    pub inner: Vec<IpNet>,
    /// Client: which of its servers had its data last, by name and port as it is configured, and where that was.
    /// For one that goes on with its tunnel before a name is looked up.
    pub server: Option<(String, SocketAddr)>,
    /// Settings of interfaces as they were before us, by name.
    pub settings: BTreeMap<String, Settings>,
    /// The network namespace, of one start of the machine, whose interfaces these are; `None`: an earlier
    /// version did not say.
    pub settings_of: Option<String>,
    /// A server is running, or did not come to its end: it may have accepted more than is in here.
    pub running: bool,
    /// Before this Unix time more was accepted than is in here, of any key.
    pub lost_before: u64,
    /// It was lost before this start.
    #[serde(skip)]
    pub lost: bool,
}

/// One thing that a restart must not forget. It goes to the disk by itself, and is part of the next
/// [`Memory`] that does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// An authentication packet was accepted.
    Accepted {
        /// Unix time that the packet claims.
        seconds: u64,
        /// What is signed of it.
        message: Vec<u8>,
        /// Unix time when it came.
        now: u64,
        /// Unix time of the start of the process that accepted it.
        start: u64,
    },
    /// A peer that is alone authenticated from this remote, at this Unix time.
    Session(SocketAddr, u64),
    /// One of several hosts that share a peer did.
    Client(SocketAddr, u64),
    /// It went.
    Gone(SocketAddr),
}

/// Settings of an interface, as far as we changed them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// It did not forward.
    pub turned_on: Option<TurnedOn>,
    /// The `rp_filter` that it had before we made its check loose.
    pub rp_filter: Option<u32>,
}

/// When an interface's forwarding was turned on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnedOn {
    /// Whether the host was a router (`net.ipv4.ip_forward`), but for this interface.
    pub ip_forward: bool,
}

/// The number of a writing of the memory to the disk. A later one has all that an earlier one has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writing(u64);

impl Writing {
    pub(super) fn next(self) -> Self {
        Writing(self.0 + 1)
    }
}

impl Memory {
    /// There was one, and it is lost or damaged.
    pub fn lost() -> Self {
        Memory { lost: true, ..Memory::default() }
    }

    /// Begins with a server at this UDP port. Who proved itself at another one sends there, and has to do it
    /// again here.
    pub(super) fn begin_at(&mut self, port: u16) {
        if self.port.replace(port).is_some_and(|before| before != port) {
            self.authenticated = self.authenticated.map(|(_, unix)| (NOBODY, unix));
        }
    }

    /// Begins in this network namespace of this start of the machine. Settings of interfaces that are gone with
    /// another one are not put back: others have these names here.
    pub fn begin_in(&mut self, namespace: String) {
        if self.settings_of.as_ref().is_some_and(|before| *before != namespace) {
            self.settings.clear();
        }
        self.settings_of = Some(namespace);
    }

    /// Adds what was written after it.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Accepted { seconds, message, now, start } => {
                self.seen.remember(seconds, &message, ServerTime { now, start });
                self.seen.must_write(); // it is written
            }
            Record::Session(remote, unix) => self.authenticated = Some((remote, unix)),
            Record::Client(remote, unix) => drop(self.clients.insert(remote, unix)),
            Record::Gone(remote) => drop(self.clients.remove(&remote)),
        }
    }

    /// What was accepted of `key`. What is about another key stays, for when that comes back. With
    /// a `span` many clients share the key ([`ReplayMemory::at_start`]).
    pub(super) fn replays_of(
        &mut self,
        key: Option<[u8; 32]>,
        span: Option<u64>,
        now: &Now,
    ) -> ReplayMemory {
        let unix = now.unix;
        if std::mem::take(&mut self.lost) {
            // A part of the start's own second was before the start.
            self.lost_before = unix.saturating_add(1);
            return ReplayMemory::default().at_start(span, unix).lost(unix);
        }
        let mut last = std::mem::take(&mut self.seen);
        if self.running {
            last = last.interrupted(unix);
        }
        // The key itself stays: who proved himself by another one is not taken over.
        if self.key != key {
            if let Some(before) = self.key {
                self.others.insert(name(&before), last);
            }
            let known = key.and_then(|key| self.others.remove(&name(&key)));
            last = known.unwrap_or_else(|| ReplayMemory::default().not_before(self.lost_before));
        }
        last.at_start(span, unix)
    }
}

/// The key in hexadecimal.
fn name(key: &[u8; 32]) -> String {
    key.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

impl Engine {
    /// What is to be on the disk now.
    pub fn memory(&self) -> Memory {
        let mut memory = self.memory.clone();
        self.peers.remember(&mut memory);
        memory
    }

    /// What was not to be forgotten since the last call, in order; `None` when it is so much that the
    /// whole [`memory`](Self::memory) is smaller.
    pub fn take_records(&mut self) -> Option<Vec<Record>> {
        self.peers.take_records()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_writing_compares_greater() {
        let first = Writing::default().next();
        assert!(Writing::default() < first && first < first.next());
    }

    #[test]
    fn settings_are_put_back_where_they_were_changed() {
        let changed = Settings { rp_filter: Some(1), ..Settings::default() };
        let mut memory = Memory::default();
        memory.settings.insert("eth1".to_owned(), changed);
        let settings_after = |memory: &Memory, namespace: &str| {
            let mut memory = memory.clone();
            memory.begin_in(namespace.to_owned());
            assert_eq!(memory.settings_of.as_deref(), Some(namespace));
            memory.settings.len()
        };
        assert_eq!(settings_after(&memory, "boot 1"), 1, "an earlier version wrote it");
        memory.begin_in("boot 1".to_owned());
        assert_eq!(settings_after(&memory, "boot 1"), 1);
        assert_eq!(settings_after(&memory, "boot 2"), 0);
    }

    /// Older versions of the program read it, and later ones what they left.
    #[test]
    fn a_key_is_written_as_by_older_versions() {
        let mut key = [0xa0; 32];
        key[0] = 0x0b;
        assert_eq!(name(&key), format!("0b{}", "a0".repeat(31)));
    }
}
