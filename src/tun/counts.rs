//! Counts what was carried from and to each remote.
//!
//! The thread that receives adds what one call gave it, and a thread that sends what left with one call:
//! there is nothing to count per packet.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::host::Traffic;

/// Inner packets of one remote, and their bytes.
#[derive(Debug, Default)]
pub struct Counts {
    rx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    tx_packets: AtomicU64,
}

/// Packets that are to be counted together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    pub bytes: u64,
}

impl Tally {
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

impl Counts {
    /// Adds what came in. Only one thread calls this, so nothing is locked.
    pub fn received(&self, tally: Tally) {
        let add = |counter: &AtomicU64, more: u64| {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&self.rx_packets, tally.packets);
        add(&self.rx_bytes, tally.bytes);
    }

    /// Adds what went out.
    pub fn sent(&self, tally: Tally) {
        self.tx_packets.fetch_add(tally.packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(tally.bytes, Ordering::Relaxed);
    }

    pub fn read(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            rx_bytes: of(&self.rx_bytes),
            rx_packets: of(&self.rx_packets),
            tx_bytes: of(&self.tx_bytes),
            tx_packets: of(&self.tx_packets),
        }
    }
}
