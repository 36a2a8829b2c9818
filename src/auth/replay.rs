//! The memory that refuses an authentication packet that was seen before.
//!
//! A packet's time has whole seconds, and a client may send several within one. So a packet is
//! refused when it is older than the newest accepted second, or when the very same signed bytes
//! were accepted within that second. The signature is not looked at: ed25519 lets others make a
//! second valid signature from a first, never a second message.
//!
//! Clients that share a key have clocks of their own, none of which is the newest for long. For them
//! the memory goes back a span of seconds, in which every message is told apart.

use std::collections::BTreeMap;

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
    /// What was accepted in the seconds before, as far as the span goes back.
    #[serde(default)]
    before: BTreeMap<u64, Vec<Vec<u8>>>,
    #[serde(default)]
    span: u64,
}

/// Why a packet's time is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    Replayed,
    OlderThanAccepted,
}

impl ReplayMemory {
    /// From now on packets may be `span` seconds older than the newest.
    #[must_use]
    pub fn going_back(mut self, span: u64) -> Self {
        self.span = span;
        self
    }

    /// # Errors
    /// When `message` is old or known.
    pub fn check(&self, seconds: u64, message: &[u8]) -> Result<(), Stale> {
        if seconds.saturating_add(self.span) < self.newest {
            return Err(Stale::OlderThanAccepted);
        }
        let accepted = match seconds == self.newest {
            true => Some(&self.within),
            false => self.before.get(&seconds),
        };
        match accepted {
            Some(all) if all.len() >= MAX_IN_ONE_SECOND || all.iter().any(|m| m == message) => {
                Err(Stale::Replayed)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a message that passed [`check`](Self::check) and was proven.
    pub fn remember(&mut self, seconds: u64, message: &[u8]) {
        if seconds < self.newest {
            self.before.entry(seconds).or_default().push(message.to_vec());
            return;
        }
        if seconds > self.newest {
            let within = std::mem::take(&mut self.within);
            self.before.insert(self.newest, within);
            self.newest = seconds;
            self.before = self.before.split_off(&seconds.saturating_sub(self.span));
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
    fn within_the_span_everything_is_told_apart() {
        let mut memory = ReplayMemory::default().going_back(10);
        memory.remember(100, b"a");
        memory.remember(95, b"b");
        memory.remember(105, b"c");
        for (seconds, message) in [(100, b"a"), (95, b"b"), (105, b"c")] {
            assert_eq!(memory.check(seconds, message), Err(Stale::Replayed));
        }
        assert_eq!(memory.check(95, b"d"), Ok(()));
        assert_eq!(memory.check(94, b"e"), Err(Stale::OlderThanAccepted));
        memory.remember(106, b"f");
        assert_eq!(memory.check(95, b"b"), Err(Stale::OlderThanAccepted));
        assert_eq!(memory.before.keys().copied().collect::<Vec<_>>(), [100, 105]);
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
