//! The memory that refuses an authentication packet that was seen before.
//!
//! A packet's time has whole seconds, and a client may send several within one. So a packet is
//! refused when it is older than the newest accepted second, or when the very same signed bytes
//! were accepted within that second. The signature is not looked at: ed25519 lets others make a
//! second valid signature from a first, never a second message.

use serde::{Deserialize, Serialize};

/// How many packets of one second are told apart; one more is refused.
const MAX_IN_ONE_SECOND: usize = 64;

/// Newest accepted time of one key, and what was accepted within that second.
///
/// Serialisable, so that a restart does not open the door to old packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayMemory {
    newest: u64,
    within: Vec<Vec<u8>>,
}

/// Why a packet's time is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    Replayed,
    OlderThanAccepted,
}

impl ReplayMemory {
    /// # Errors
    /// When `message` is old or known.
    pub fn check(&self, seconds: u64, message: &[u8]) -> Result<(), Stale> {
        if seconds < self.newest {
            return Err(Stale::OlderThanAccepted);
        }
        if seconds == self.newest
            && (self.within.len() >= MAX_IN_ONE_SECOND || self.within.iter().any(|m| m == message))
        {
            return Err(Stale::Replayed);
        }
        Ok(())
    }

    /// Remembers a message that passed [`check`](Self::check) and was proven.
    pub fn remember(&mut self, seconds: u64, message: &[u8]) {
        if seconds > self.newest {
            self.newest = seconds;
            self.within.clear();
        }
        self.within.push(message.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_newer_or_new_within_the_second() {
        let mut memory = ReplayMemory::default();
        assert_eq!(memory.check(100, b"a"), Ok(()));
        memory.remember(100, b"a");
        assert_eq!(memory.check(100, b"a"), Err(Stale::Replayed));
        assert_eq!(memory.check(99, b"b"), Err(Stale::OlderThanAccepted));
        assert_eq!(memory.check(100, b"b"), Ok(()));
        memory.remember(100, b"b");
        memory.remember(101, b"c");
        assert_eq!(memory.check(100, b"d"), Err(Stale::OlderThanAccepted));
        assert_eq!(memory.check(101, b"a"), Ok(()));
    }

    #[test]
    fn one_second_is_bounded() {
        let mut memory = ReplayMemory::default();
        for i in 0..MAX_IN_ONE_SECOND {
            memory.remember(5, &i.to_be_bytes());
        }
        assert_eq!(memory.check(5, b"one more"), Err(Stale::Replayed));
        assert_eq!(memory.check(6, b"one more"), Ok(()));
    }
}
