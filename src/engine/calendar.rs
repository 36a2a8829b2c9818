//! By which time a client dates its packets: by its clock, as far as that did not go back.
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
