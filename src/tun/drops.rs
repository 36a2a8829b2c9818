//! Packets that the threads drop, counted by reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet is dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

reasons! {
    /// Nobody is behind the destination: the sender was told, …
    TxUnreachable = "tx_unreachable",
    /// … or was not, being told often enough or nobody who is told.
    TxNoRoute = "tx_no_route",
    /// The interface gave something that is no IP packet.
    TxMalformed = "tx_malformed",
    /// Longer than the path takes, and not to be fragmented: the sender was told, unless it was told
    /// often enough.
    TxTooLong = "tx_too_long",
    /// The tunnel's own packet, which would go round and round.
    TxLeadsBack = "tx_leads_back",
    /// There was no socket, or the kernel refused.
    TxFailed = "tx_failed",
    /// Data from a remote that is not admitted.
    RxStranger = "rx_stranger",
    /// Data with an inner source address that the remote may not use.
    RxWrongSource = "rx_wrong_source",
    /// Data that would have the host send elsewhere: an ICMP redirect.
    RxRedirect = "rx_redirect",
    /// From inside a tunnel of ipipou's to the outside of one.
    RxInside = "rx_inside",
    /// Neither data nor for the engine.
    RxMalformed = "rx_malformed",
    /// A router marked the outer packet, and the ends of the inner one know nothing of marks.
    RxCongested = "rx_congested",
    /// There is no interface, or it does not take the packet.
    RxFailed = "rx_failed",
    /// Packets for the engine: more than it looks at of unproven sources, …
    ControlLimited = "control_limited",
    /// … and more than the engine could read.
    ControlOverflow = "control_overflow",
}

/// Counters of all threads.
pub struct Drops([AtomicU64; NAMES.len()]);

impl Drops {
    pub fn new() -> Self {
        Drops([const { AtomicU64::new(0) }; NAMES.len()])
    }

    pub fn add(&self, reason: Reason, packets: usize) {
        self.0[reason as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    pub fn any(&self, reason: Reason) -> bool {
        self.0[reason as usize].load(Ordering::Relaxed) > 0
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
        let drops = Drops::new();
        drops.add(Reason::TxUnreachable, 3);
        drops.add(Reason::ControlOverflow, 1);
        let read = drops.read();
        assert_eq!(read.len(), NAMES.len());
        let some = (read["tx_unreachable"], read["control_overflow"], read["rx_failed"]);
        assert_eq!(some, (3, 1, 0));
    }
}
