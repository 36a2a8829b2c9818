//! What the threads count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count {
            $($(#[$doc])* $variant,)*
        }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

counts! {
    /// Inner packets that were sent, …
    TxPackets = "tx packets",
    /// … and their bytes.
    TxBytes = "tx bytes",
    /// System calls it took.
    TxCalls = "tx calls",
    /// Nobody is behind the destination.
    TxNoRoute = "tx no route",
    /// Answers of ours to those.
    TxUnreachable = "tx unreachable",
    /// The interface gave something that is no IP packet.
    TxMalformed = "tx malformed",
    /// There was no socket, or the kernel refused.
    TxFailed = "tx failed",
    /// Inner packets that were taken, …
    RxPackets = "rx packets",
    /// … and their bytes.
    RxBytes = "rx bytes",
    /// System calls it took to read them, …
    RxCalls = "rx calls",
    /// … and to write them to the interface.
    RxWrites = "rx writes",
    /// Data from a remote that is not admitted.
    RxStranger = "rx stranger",
    /// Data with an inner source address that the remote may not use.
    RxWrongSource = "rx wrong source",
    /// Neither data nor for the engine.
    RxMalformed = "rx malformed",
    /// There is no interface, or it does not take the packet.
    RxFailed = "rx failed",
    /// Packets for the engine: passed on, …
    ControlPassed = "control passed",
    /// … too many from one address, …
    ControlLimited = "control limited",
    /// … and more than the engine could read.
    ControlOverflow = "control overflow",
}

/// Counters of all threads.
pub struct Counters([AtomicU64; NAMES.len()]);

impl Counters {
    pub fn new() -> Self {
        Counters([const { AtomicU64::new(0) }; NAMES.len()])
    }

    #[inline]
    pub fn add(&self, count: Count, packets: usize) {
        self.0[count as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// All of them by name.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        NAMES.iter().copied().zip(self.0.iter().map(|c| c.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_by_name() {
        let counters = Counters::new();
        counters.add(Count::TxPackets, 3);
        counters.add(Count::ControlOverflow, 1);
        let read = counters.read();
        assert_eq!(read.len(), NAMES.len());
        assert_eq!((read["tx packets"], read["control overflow"], read["rx bytes"]), (3, 1, 0));
    }
}
