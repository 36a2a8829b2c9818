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
    /// There is no peer for the destination, and the sender got an ICMP error.
    TxUnreachable = "tx_unreachable",
    /// The same without an ICMP error: the sender had enough of them, or may not get one.
    TxNoRoute = "tx_no_route",
    /// The interface delivered something that is not an IP packet.
    TxMalformed = "tx_malformed",
    /// Longer than the path allows, and not to be fragmented: the sender got an ICMP error, unless it had
    /// enough of them.
    TxTooLong = "tx_too_long",
    /// An outer packet of the tunnel itself, which would go round and round.
    TxLeadsBack = "tx_leads_back",
    /// From one peer to another, one of which reaches no other peer.
    TxIsolated = "tx_isolated",
    /// What the kernel says to peers who reach each other through it: that there is a shorter way.
    TxRedirect = "tx_redirect",
    /// There was no socket, or the kernel refused.
    TxFailed = "tx_failed",
    /// Data from a remote that is not admitted.
    RxStranger = "rx_stranger",
    /// Data with an inner source address that the remote may not use.
    RxWrongSource = "rx_wrong_source",
    /// Data that would make the host send elsewhere: an ICMP redirect.
    RxRedirect = "rx_redirect",
    /// A packet from inside one of ipipou's tunnels to the outside of one.
    RxInside = "rx_inside",
    /// Neither data nor a packet for the engine.
    RxMalformed = "rx_malformed",
    /// A router marked the outer packet, and the endpoints of the inner one do not support marks.
    RxCongested = "rx_congested",
    /// There is no interface, or it refused the packet.
    RxFailed = "rx_failed",
    /// Packets for the engine: more than its budget for unproven sources.
    ControlLimited = "control_limited",
    /// Packets for the engine: more than it could read in time.
    ControlOverflow = "control_overflow",
}

/// Counters that all threads share.
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

    /// All counters by name.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        NAMES.iter().copied().zip(self.0.iter().map(|c| c.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_by_name() {
        let drops = Drops::new();
        drops.add(Reason::TxUnreachable, 3);
        drops.add(Reason::ControlOverflow, 1);
        let read = drops.read();
        assert_eq!(read.len(), NAMES.len());
        let some = (read["tx_unreachable"], read["control_overflow"], read["rx_failed"]);
        assert_eq!(some, (3, 1, 0));
    }
}
