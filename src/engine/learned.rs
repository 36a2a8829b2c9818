//! Keeps over restarts which inner address is behind which of the clients that share a key.
//! Otherwise the first packet after a restart could take an address from a client that is alive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Now;
use super::memory::Memory;

/// Seconds before a restart within which a host that shares a key must have authenticated, or it has
/// to do so again: somebody else may have its address by now.
const RESUMED_WITHIN: u64 = 600;

/// Inner addresses and their remotes, as the datapath learned them.
#[derive(Debug)]
pub struct Learned {
    /// By an earlier process.
    before: Arc<BTreeMap<IpAddr, SocketAddr>>,
    /// The same by now.
    now: BTreeMap<IpAddr, SocketAddr>,
}

impl Learned {
    /// Those behind remotes that authenticated to an earlier process, by the same key or, where there is
    /// none, by whatever there was: they stay theirs, though nobody is let in by that.
    pub fn before(key: Option<[u8; 32]>, memory: &mut Memory, now: &Now) -> Self {
        let mut learned = std::mem::take(&mut memory.learned);
        let same_key = memory.key == key;
        learned.retain(|_, remote| {
            let unix = memory.clients.get(remote);
            same_key && unix.is_some_and(|unix| is_resumed(*unix, now))
        });
        Learned { before: Arc::new(learned.clone()), now: learned }
    }

    /// What the datapath is given before it forwards anything.
    pub fn given(&self) -> Arc<BTreeMap<IpAddr, SocketAddr>> {
        Arc::clone(&self.before)
    }

    pub fn now(&self) -> &BTreeMap<IpAddr, SocketAddr> {
        &self.now
    }

    /// Exchanges them. Returns whether an address is new, or behind another remote than it was.
    pub fn change(&mut self, learned: &BTreeMap<IpAddr, SocketAddr>) -> bool {
        let before = std::mem::replace(&mut self.now, learned.clone());
        learned.iter().any(|(inner, remote)| before.get(inner) != Some(remote))
    }
}

/// Whether one who proved itself at this Unix time may still be where it was.
pub fn is_resumed(unix: u64, now: &Now) -> bool {
    now.unix.abs_diff(unix) <= RESUMED_WITHIN
}
