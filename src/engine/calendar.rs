//! Dates a client's packets: by its clock, as long as that has not gone back.
//!
//! A server refuses what is older than the newest it has accepted, and after a power cut a router's
//! clock may say 1970. So the times that were used are kept on disk: some seconds ahead of the
//! packets, so that not every packet costs the (often flash) disk a writing. While the clock is
//! behind a time that was used, every packet has the next second, and is written before it is sent.

use super::memory::Memory;
use crate::wire::auth_packet;

/// How far ahead of the packets the memory on disk is.
const RESERVE: u64 = 60;

/// No packet is dated further ahead of the latest time that the clock ever showed. More packets
/// share that second.
const LEAD: u64 = 120;

/// The times of one client's packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calendar {
    /// See [`Memory::reserved`] and the following.
    reserved: u64,
    clock_from: u64,
    highest: u64,
    /// No packet had a later time than this, unless the clock is past it too.
    used: u64,
    /// The clock at the last packet, and whether it was behind.
    last: Option<(u64, bool)>,
}

impl Calendar {
    pub fn new(memory: &Memory, clock: u64) -> Self {
        let Memory { reserved, clock_from, highest_clock, .. } = *memory;
        // Older versions do not write the latest time, and set more seconds aside.
        let highest = if highest_clock == 0 { reserved } else { highest_clock };
        // When the clock has gone back, what was set aside may have been used.
        let used = if clock < clock_from { reserved } else { 0 };
        Calendar { reserved, clock_from, highest, used, last: None }
    }

    /// The time of a packet that is made when the clock shows `clock`.
    pub fn date(&mut self, clock: u64) -> u64 {
        self.highest = self.highest.max(clock);
        if self.last.is_none() && clock < self.clock_from {
            self.used = self.used.max(self.reserved); // it went back since the start
        }
        let behind = clock < self.used;
        let seconds = match behind {
            true => {
                let latest = self.highest.saturating_add(LEAD).max(self.used);
                self.used.saturating_add(1).min(latest)
            }
            false => clock,
        };
        self.used = seconds.min(auth_packet::MAX_SECONDS);
        self.last = Some((clock, behind));
        self.used
    }

    /// Sets times aside when those of before are used up, and notes when the clock goes back and
    /// when it has caught up; true when that must be written before the packet is sent.
    pub fn must_write(&mut self) -> bool {
        let Some((clock, behind)) = self.last else { return false };
        let before = (self.reserved, self.clock_from);
        if behind {
            self.reserved = self.used;
            self.clock_from = self.used;
        } else if self.used >= self.reserved {
            self.reserved = self.used.saturating_add(RESERVE);
            self.clock_from = clock;
        } else {
            self.clock_from = self.clock_from.min(clock);
        }
        before != (self.reserved, self.clock_from)
    }

    /// At the end it is known exactly what was used.
    pub fn close(&mut self) {
        if self.last.is_some() {
            self.reserved = self.used;
            self.clock_from = self.used;
        }
    }

    pub fn remember(&self, memory: &mut Memory) {
        memory.reserved = self.reserved;
        memory.clock_from = self.clock_from;
        memory.highest_clock = self.highest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(reserved: u64, clock_from: u64, highest_clock: u64) -> Memory {
        Memory { reserved, clock_from, highest_clock, ..Memory::default() }
    }

    #[test]
    fn a_clock_that_did_not_go_back_is_believed() {
        assert_eq!(Calendar::new(&left(160, 100, 100), 100).date(100), 100);
        assert_eq!(Calendar::new(&left(160, 100, 100), 99).date(99), 161);
        // It went back between the start and the first packet; later it counts as any other.
        let mut calendar = Calendar::new(&left(160, 100, 100), 100);
        assert_eq!([99, 98, 300, 299].map(|clock| calendar.date(clock)), [161, 162, 300, 301]);
    }

    #[test]
    fn times_are_reserved_for_a_minute() {
        let mut calendar = Calendar::new(&Memory::default(), 1000);
        assert!(!calendar.must_write(), "nothing was sent");
        let mut written = |clock| {
            calendar.date(clock);
            let must_write = calendar.must_write();
            let mut memory = Memory::default();
            calendar.remember(&mut memory);
            (must_write, memory.reserved, memory.clock_from)
        };
        assert_eq!(written(1000), (true, 1060, 1000));
        assert_eq!(written(1059), (false, 1060, 1000));
        assert_eq!(written(1060), (true, 1120, 1060));
        // Behind, each packet is written.
        assert_eq!(written(500), (true, 1061, 1061));
        assert_eq!(written(501), (true, 1062, 1062));
        assert_eq!(written(1062), (true, 1122, 1062), "it has caught up");
    }

    #[test]
    fn a_clean_end_keeps_only_the_times_that_were_used() {
        let mut calendar = Calendar::new(&left(160, 100, 100), 100);
        let mut memory = Memory::default();
        calendar.close();
        calendar.remember(&mut memory);
        assert_eq!(memory, left(160, 100, 100), "nothing was sent");
        calendar.date(105);
        calendar.close();
        calendar.remember(&mut memory);
        assert_eq!(memory, left(105, 105, 105));
    }

    #[test]
    fn no_packet_is_more_than_two_minutes_ahead_of_any_clock() {
        // The latest time that the clock showed was not written by older versions.
        for (highest, most) in [(1000, 1120), (0, 1180)] {
            let mut calendar = Calendar::new(&left(1060, 1000, highest), 10);
            let dates: Vec<_> = (0..200).map(|_| calendar.date(10)).collect();
            assert_eq!((dates[0], dates[1], dates[199]), (1061, 1062, most));
        }
        // What was used beyond that is used again, and no more.
        let mut calendar = Calendar::new(&left(5000, 5000, 1000), 10);
        assert_eq!([calendar.date(10), calendar.date(11)], [5000; 2]);
        let latest = auth_packet::MAX_SECONDS;
        assert_eq!(Calendar::default().date(u64::MAX), latest);
        assert_eq!(Calendar::default().date(latest - 1), latest - 1);
    }
}
