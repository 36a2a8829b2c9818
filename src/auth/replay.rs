//! The memory by which an authentication packet that was seen before is refused.
//!
//! A packet's time has whole seconds, and a client may send several within one, so accepted messages
//! are also distinguished by their bytes. The signature is not compared: with ed25519, others can make
//! a second valid signature from a first, but never a second message.
//!
//! **One client.** Its time does not go back: a packet is refused when it is older than the newest
//! accepted one. A wrong clock may show a year that is far off, which must not shut the client out
//! until then. So times more than [`AHEAD`] seconds ahead of the server's clock have a separate newest
//! time, and each of them is remembered until the ordinary times have passed it.
//!
//! **Many clients of one key.** Their clocks differ, and none may shut out the others. The policy
//! compares their packets with the server's clock, and every message is remembered as long as its time
//! would be accepted.
//!
//! **What is not remembered.** When the memory was lost, or a process did not end properly, packets
//! that were accepted before may be missing here. Packets of that time neither make a tunnel nor move
//! it; from the remote that is known they are as good as others.

use std::collections::{BTreeMap, BTreeSet};

/// How far ahead of the server's clock a time is still an ordinary one, in seconds.
pub const AHEAD: u64 = 120;

/// How many messages of one client are distinguished. Times that do not fit are refused as a whole.
const MAX_OF_ONE: usize = 1024;

/// Seconds by which the difference of two clocks may change although both are steady.
const ROUNDING: i64 = 2;

/// What was accepted for one key.
///
/// It is serialisable, so that old packets are still refused after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayMemory {
    /// Many clients share the key, and their clocks may differ from the server's by this many seconds.
    pub(super) span: Option<u64>,
    /// Every older time is refused.
    pub(super) floor: u64,
    /// What was accepted since then, by time.
    pub(super) accepted: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    /// Far ahead, more messages were accepted than are distinguished: these times are refused, both
    /// included.
    pub(super) crowded: Option<(u64, u64)>,
    /// How far the client's clock is ahead of the server's, according to packets of ordinary times, and
    /// to the last ones if these were far ahead. After a crash, it tells which packets may not be
    /// remembered.
    pub(super) offset: i64,
    pub(super) far_offset: Option<i64>,
    /// The offset grew: until that is written, a crash could not be judged by it.
    pub(super) grown: bool,
    pub(super) gap: Gap,
    /// An older version of the program wrote it.
    pub(super) old: bool,
}

/// The packets that may have been accepted without being remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Gap {
    /// Packets of a time before this: a gap that an earlier process found.
    pub(super) before: u64,
    /// Packets of a time before the start of this process plus this many seconds, which may be
    /// negative.
    pub(super) around_start: Option<i64>,
}

/// Why a packet's time is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The same message was accepted before.
    Replayed,
    /// Its time is before the newest accepted one, or before what is still remembered.
    OlderThanAccepted,
    /// It may have been accepted, but what was accepted then is not remembered.
    OlderThanStart,
}

/// The server's clock when a packet arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTime {
    /// Unix time.
    pub now: u64,
    /// Unix time of the process' start by the same clock: when the clock is set, this changes too.
    pub start: u64,
}

impl ServerTime {
    fn is_far_ahead(self, seconds: u64) -> bool {
        seconds > self.now.saturating_add(AHEAD)
    }
}

impl ReplayMemory {
    /// Prepares the memory for a process that starts at this Unix time. With a `span`, many clients
    /// share the key, and the policy takes times within this many seconds of the server's clock.
    #[must_use]
    pub fn at_start(mut self, span: Option<u64>, start: u64) -> Self {
        self.span = span;
        // Older versions had a single newest time, however far ahead it was.
        let tolerated = start.saturating_add(span.unwrap_or(AHEAD));
        if std::mem::take(&mut self.old) && self.floor > tolerated {
            self.floor = 0;
            self = self.lost(start);
        }
        self
    }

    /// Notes that what was accepted before this Unix time may not be remembered.
    #[must_use]
    pub fn not_before(mut self, unix: u64) -> Self {
        self.gap.before = self.gap.before.max(unix);
        self
    }

    /// Notes that nothing is remembered of what was accepted before this start (Unix time).
    #[must_use]
    pub fn lost(mut self, start: u64) -> Self {
        self.open_gap(1, start); // a part of the start's own second was before the start
        self
    }

    /// Notes that the process before did not end properly, so what it accepted last may not be
    /// remembered. The difference of the clocks tells which packets the client can have sent before
    /// this start.
    #[must_use]
    pub fn interrupted(mut self, start: u64) -> Self {
        if self.accepted.is_empty() {
            return self;
        }
        let offset = if self.span.is_some() { 0 } else { self.offset };
        self.open_gap(offset.saturating_add(1), start); // here, too
        if let (Some(offset), Some(newest), None) = (self.far_offset, self.newest(), self.span) {
            self.crowd(newest, start.saturating_add_signed(offset));
        }
        self
    }

    fn open_gap(&mut self, around_start: i64, start: u64) {
        self.gap.around_start = self.gap.around_start.max(Some(around_start));
        self.keep_gap(start);
    }

    /// Notes the gap in a way that the next process can use.
    fn keep_gap(&mut self, start: u64) {
        if let Some(offset) = self.gap.around_start {
            self.gap.before = self.gap.before.max(start.saturating_add_signed(offset));
        }
    }

    /// Judges a packet's time. `known`: it comes from a remote that is known to be a client.
    ///
    /// # Errors
    /// When `message` is old, or was accepted before.
    pub fn check(
        &self,
        seconds: u64,
        message: &[u8],
        time: ServerTime,
        known: bool,
    ) -> Result<(), Stale> {
        if self.accepted.get(&seconds).is_some_and(|all| all.contains(message)) {
            return Err(Stale::Replayed);
        }
        let crowded = self.crowded.is_some_and(|(from, to)| (from..=to).contains(&seconds));
        let behind = self.span.is_none()
            && time.is_far_ahead(seconds)
            && self.newest().is_some_and(|newest| seconds < newest);
        if seconds < self.floor_at(time) || crowded || behind {
            return Err(Stale::OlderThanAccepted);
        }
        if !known && self.is_in_gap(seconds, time) {
            return Err(Stale::OlderThanStart);
        }
        Ok(())
    }

    /// The time before which packets are refused. With many clients it is behind the server's clock; if
    /// it is far ahead of that, the clock was wrong then, and it does not count.
    fn floor_at(&self, time: ServerTime) -> u64 {
        match self.span {
            Some(span) if self.floor > time.now.saturating_add(span) => 0,
            Some(_) | None => self.floor,
        }
    }

    fn is_in_gap(&self, seconds: u64, time: ServerTime) -> bool {
        let in_this = |offset| seconds < time.start.saturating_add_signed(offset);
        // A time well after this start is from when the server's clock was ahead.
        let in_earlier =
            self.gap.before <= time.start.saturating_add(AHEAD + 1) && seconds < self.gap.before;
        in_earlier || self.gap.around_start.is_some_and(in_this)
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.accepted.last_key_value().map(|(seconds, _)| *seconds)
    }

    /// Remembers a message that passed [`check`](Self::check) and whose signature is good.
    pub fn remember(&mut self, seconds: u64, message: &[u8], time: ServerTime) {
        self.keep_gap(time.start);
        self.accepted.entry(seconds).or_default().insert(message.to_vec());
        match self.span {
            Some(span) => self.forget_before(time.now.saturating_sub(span)),
            None => self.remember_one(seconds, time),
        }
    }

    /// Forgets times that are now refused by the server's clock alone.
    fn forget_before(&mut self, oldest: u64) {
        let rest = self.accepted.split_off(&oldest);
        let gone = std::mem::replace(&mut self.accepted, rest);
        if let Some((seconds, _)) = gone.last_key_value() {
            self.floor = self.floor.max(seconds + 1);
        }
    }

    fn remember_one(&mut self, seconds: u64, time: ServerTime) {
        let difference = i128::from(seconds) - i128::from(time.now);
        let offset = i64::try_from(difference).unwrap_or(i64::MAX);
        if time.is_far_ahead(seconds) {
            let known = self.far_offset.map_or(i64::MIN, |known| steady(known, offset));
            self.far_offset = Some(known.max(offset));
            self.grown |= known < offset;
        } else {
            let is_first = self.floor == 0;
            let known = if is_first { i64::MIN } else { steady(self.offset, offset) };
            self.offset = known.max(on_its_way(offset));
            self.grown |= known < self.offset;
            self.far_offset = None;
            self.floor = self.floor.max(seconds);
        }
        self.accepted = self.accepted.split_off(&self.floor);
        while self.accepted.values().map(BTreeSet::len).sum::<usize>() > MAX_OF_ONE {
            let Some((oldest, _)) = self.accepted.pop_first() else { break };
            if time.is_far_ahead(oldest) {
                self.crowd(oldest, oldest);
            } else {
                self.floor = self.floor.max(oldest + 1);
            }
        }
        self.crowded = self.crowded.filter(|(_, to)| *to >= self.floor);
    }

    /// Whether what was remembered last has to be written at once, and does not count until then.
    pub fn must_write(&mut self) -> bool {
        std::mem::take(&mut self.grown)
    }

    fn crowd(&mut self, from: u64, to: u64) {
        let (before, after) = self.crowded.unwrap_or((from, to));
        self.crowded = Some((before.min(from), after.max(to)));
    }
}

/// Counts a packet as on time that is late only by its travel time and by rounding: its clock is not
/// slow.
fn on_its_way(offset: i64) -> i64 {
    if (-ROUNDING..0).contains(&offset) { 0 } else { offset }
}

/// The known offset, as long as the new one is the same except for rounding, or larger.
fn steady(known: i64, offset: i64) -> i64 {
    if offset < known.saturating_sub(ROUNDING) { on_its_way(offset) } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000;

    fn at(now: u64) -> ServerTime {
        ServerTime { now, start: START }
    }

    /// What a process does with a valid packet that comes at `now` from a new remote.
    fn take(memory: &mut ReplayMemory, now: u64, seconds: u64, salt: &[u8]) -> Result<(), Stale> {
        memory.check(seconds, salt, at(now), false)?;
        memory.remember(seconds, salt, at(now));
        Ok(())
    }

    fn written_and_read(memory: &ReplayMemory) -> ReplayMemory {
        serde_json::from_slice(&serde_json::to_vec(memory).unwrap()).unwrap()
    }

    #[test]
    fn only_later_packets_or_new_ones_of_the_same_second_are_accepted() {
        let mut memory = ReplayMemory::default();
        let now = START;
        assert_eq!(take(&mut memory, now, 100, b"a"), Ok(()));
        assert_eq!(take(&mut memory, now, 100, b"a"), Err(Stale::Replayed));
        assert_eq!(take(&mut memory, now, 99, b"b"), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, now, 100, b"b"), Ok(()));
        assert_eq!(take(&mut memory, now, 101, b"c"), Ok(()));
        assert_eq!(take(&mut memory, now, 100, b"d"), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, now, 101, b"a"), Ok(()));
    }

    #[test]
    fn a_client_is_accepted_again_once_its_wrong_year_is_corrected() {
        const YEAR: u64 = 31_536_000;
        let mut memory = ReplayMemory::default();
        let far = START + YEAR;
        assert_eq!(take(&mut memory, START, START, b"a"), Ok(()));
        assert_eq!(take(&mut memory, START, far, b"b"), Ok(()));
        assert_eq!(take(&mut memory, START, far - 1, b"c"), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, START + 1, far + 1, b"d"), Ok(()));
        assert_eq!(take(&mut memory, START + 2, START + 2, b"e"), Ok(()));
        // What was accepted then is never accepted again, whether or not there is a restart in between.
        for mut memory in [memory.clone(), written_and_read(&memory)] {
            for now in [START + 3, far - AHEAD - 1, far - AHEAD, far, far + YEAR] {
                assert_eq!(take(&mut memory, now, far, b"b"), Err(Stale::Replayed));
                assert_eq!(take(&mut memory, now, far + 1, b"d"), Err(Stale::Replayed));
            }
            assert_eq!(take(&mut memory, far - 5, far - 5, b"f"), Ok(()));
            assert_eq!(take(&mut memory, far + 9, far + 9, b"g"), Ok(()));
            assert_eq!(take(&mut memory, far + 9, far, b"b"), Err(Stale::OlderThanAccepted));
        }
    }

    #[test]
    fn packets_that_a_full_memory_cannot_hold_are_refused() {
        let mut memory = ReplayMemory::default();
        for i in 0..=MAX_OF_ONE as u64 {
            assert_eq!(take(&mut memory, START, START + AHEAD, &i.to_be_bytes()), Ok(()));
        }
        assert_eq!(take(&mut memory, START, START + AHEAD, b"x"), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, START, START + AHEAD + 1, b"x"), Ok(()));

        let (mut memory, far) = (ReplayMemory::default(), START + 1_000_000);
        for i in 0..2 * MAX_OF_ONE as u64 {
            assert_eq!(take(&mut memory, START, far + i, b"a"), Ok(()));
        }
        let mut memory = written_and_read(&memory);
        for i in 0..2 * MAX_OF_ONE as u64 {
            assert!(take(&mut memory, far + i, far + i, b"a").is_err(), "{i}");
        }
        assert_eq!(take(&mut memory, START, START, b"a"), Ok(()));
        let after = far + 3 * MAX_OF_ONE as u64;
        assert_eq!(take(&mut memory, after, after, b"a"), Ok(()));
        assert_eq!(memory.crowded, None);
    }

    #[test]
    fn packets_of_many_clients_are_remembered_while_they_could_be_accepted() {
        let mut memory = ReplayMemory::default().at_start(Some(10), START);
        for i in 0..500u64 {
            assert_eq!(take(&mut memory, START, START, &i.to_be_bytes()), Ok(()), "{i}");
        }
        for (seconds, salt) in [(START + 10, b"a"), (START - 10, b"b"), (START + 9, b"c")] {
            assert_eq!(take(&mut memory, START, seconds, salt), Ok(()));
            assert_eq!(take(&mut memory, START, seconds, salt), Err(Stale::Replayed));
        }
        assert_eq!(take(&mut memory, START + 15, START + 15, b"d"), Ok(()));
        assert_eq!(memory.accepted.first_key_value().unwrap().0, &(START + 9));
        // The clock went back: what was forgotten is still refused.
        assert_eq!(take(&mut memory, START, START, &[0; 8]), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, START, START + 1, &[0; 8]), Ok(()));
    }

    #[test]
    fn after_a_loss_older_packets_are_accepted_from_known_remotes_only() {
        let memory = ReplayMemory::default().lost(START);
        // A loss is still known after a restart.
        let later = ServerTime { now: START + 100, start: START + 90 };
        for (memory, time) in [(memory.clone(), at(START + 5)), (written_and_read(&memory), later)]
        {
            assert_eq!(memory.check(START - 1, b"a", time, false), Err(Stale::OlderThanStart));
            assert_eq!(memory.check(START - 1, b"a", time, true), Ok(()));
            assert_eq!(memory.check(START, b"a", time, false), Err(Stale::OlderThanStart));
            assert_eq!(memory.check(START + 1, b"a", time, false), Ok(()));
        }
        // The clock was not set when the process started.
        let memory = ReplayMemory::default().lost(0);
        assert_eq!(memory.check(START - 1, b"a", at(START), false), Err(Stale::OlderThanStart));
        // A clock that was ahead at the time of the loss does not shut anybody out until then.
        let memory = written_and_read(&ReplayMemory::default().lost(2 * START));
        assert_eq!(memory.check(START + 1, b"a", at(START), false), Ok(()));
    }

    #[test]
    fn unwritten_packets_stay_refused_after_a_crash_whatever_the_clock() {
        for offset in [0, -3600, 60] {
            let client = |server: u64| server.saturating_add_signed(offset);
            let mut memory = ReplayMemory::default().at_start(None, START);
            assert_eq!(take(&mut memory, START, client(START), b"a"), Ok(()));
            // Up to START + 30 more was accepted, and not written.
            let start = START + 30;
            let memory = written_and_read(&memory).at_start(None, start).interrupted(start);
            let time = ServerTime { now: start + 1, start };
            for lost in [START + 1, START + 29, start] {
                let result = memory.check(client(lost), b"b", time, false);
                assert_eq!(result, Err(Stale::OlderThanStart), "{offset} {lost}");
                assert_eq!(memory.check(client(lost), b"b", time, true), Ok(()));
            }
            assert_eq!(memory.check(client(start + 1), b"b", time, false), Ok(()), "{offset}");
        }
        // The same case, with a clock that is far ahead.
        let far = 1_000_000;
        let mut memory = ReplayMemory::default().at_start(None, START);
        assert_eq!(take(&mut memory, START, START + far, b"a"), Ok(()));
        let start = START + 30;
        let mut memory = written_and_read(&memory).at_start(None, start).interrupted(start);
        assert!(take(&mut memory, start + 1, start + far, b"b").is_err());
        assert_eq!(take(&mut memory, start + 1, start + far + 1, b"b"), Ok(()));
        assert_eq!(take(&mut memory, start + 2, start + 2, b"b"), Ok(()));
    }

    #[test]
    fn old_and_new_versions_read_each_others_memory() {
        // Memories written by 0.3.0: of one client, and of many.
        let one = r#"{"newest":100,"within":[[1],[2]],"before":{},"span":0}"#;
        let many = r#"{"newest":1000,"within":[[1]],"before":{"900":[[3]]},"span":120}"#;
        let mut memory: ReplayMemory = serde_json::from_str(one).unwrap();
        memory = memory.at_start(None, START);
        assert_eq!(memory.check(100, &[2], at(START), false), Err(Stale::Replayed));
        assert_eq!(memory.check(99, &[4], at(START), false), Err(Stale::OlderThanAccepted));
        assert_eq!(take(&mut memory, START, 101, &[4]), Ok(()));
        assert_eq!(take(&mut memory, START, START + 1_000_000, &[5]), Ok(()));
        let value = serde_json::to_value(&memory).unwrap();
        assert_eq!((&value["newest"], &value["within"]), (&101.into(), &serde_json::json!([[4]])));

        let memory: ReplayMemory = serde_json::from_str(many).unwrap();
        let memory = memory.at_start(Some(120), 1000);
        let time = ServerTime { now: 1000, start: 1000 };
        for (seconds, salt) in [(1000, 1), (900, 3)] {
            assert_eq!(memory.check(seconds, &[salt], time, false), Err(Stale::Replayed));
        }
        assert_eq!(memory.check(880, &[9], time, false), Ok(()));
        assert_eq!(memory.check(879, &[9], time, false), Err(Stale::OlderThanAccepted));
        let value = serde_json::to_value(&memory).unwrap();
        assert_eq!((&value["newest"], &value["span"]), (&1000.into(), &120.into()));
        assert_eq!(value["before"], serde_json::json!({"900": [[3]]}));

        // The effects of a wrong clock on an older version end with the update.
        for (text, span) in [(one, None), (many, Some(120))] {
            let memory: ReplayMemory = serde_json::from_str(text).unwrap();
            let memory = memory.at_start(span, 500).at_start(span, 500);
            let time = ServerTime { now: 500, start: 500 };
            if span.is_some() {
                assert_eq!(memory.check(501, &[9], time, false), Ok(()));
                assert_eq!(memory.check(500, &[9], time, false), Err(Stale::OlderThanStart));
            }
        }
    }
}
