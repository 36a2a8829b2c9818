//! Why the session of a member ended.

use std::fmt;

use crate::engine::peers_file::{PeerEntry, PeerName};

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// It said goodbye.
    Left,
    /// No hello came for as long as its lease.
    Silent,
    /// Another peer proved that it is at this address and port.
    TakenOver(PeerName),
    /// Its time is over.
    Expired,
    /// The files say `enabled = false`.
    Disabled,
    /// It has another key or secret now.
    Rekeyed,
    /// It has another local port, or another address inside the tunnel.
    Moved,
    /// The files do not name it any more.
    Removed,
    /// An operator ended it; it may come back at once.
    Kicked,
}

impl Gone {
    /// Why the session of a member that was changed to `entry` ended.
    pub fn of(entry: &PeerEntry, unix: u64) -> Self {
        match (entry.enabled, entry.has_expired(unix)) {
            (false, _) => Gone::Disabled,
            (true, true) => Gone::Expired,
            (true, false) => Gone::Rekeyed,
        }
    }

    /// Why the session of a peer with the old program ended that was `before` and is `entry` now.
    pub fn of_changed(before: &PeerEntry, entry: &PeerEntry, unix: u64) -> Self {
        match Gone::of(entry, unix) {
            Gone::Rekeyed if entry.proves_as(before) => Gone::Moved,
            why => why,
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::Left => f.write_str("it said goodbye"),
            Gone::Silent => f.write_str("no hello came for its lifetime"),
            Gone::TakenOver(name) => write!(f, "{name} is at this address and port now"),
            Gone::Expired => f.write_str("it has expired"),
            Gone::Disabled => f.write_str("it is disabled"),
            Gone::Rekeyed => f.write_str("it has another key or secret now"),
            Gone::Moved => f.write_str("it has another port or address now"),
            Gone::Removed => f.write_str("its file does not name it any more"),
            Gone::Kicked => f.write_str("it was kicked"),
        }
    }
}
