//! How many packets of unproven sources are looked at: the same numbers on both datapaths.
//!
//! Looking costs a signature check, 37 µs, and anybody can send. A packet that may be an
//! authentication packet by its length ([`PacketShape::may_have`]) is looked at if one of these
//! budgets, asked in this order, has a token for it:
//!
//! 1. [`KNOWN_REMOTE`], if it comes from the address and port of an admitted remote: whatever others
//!    do, a remote that stays where it is proves itself again.
//! 2. [`LIGHT`], if its source address (IPv6: the /64) is within [`LIGHT_SOURCE`]: a flood from
//!    somewhere costs nobody elsewhere a packet.
//! 3. [`HEAVY`], for the [`HEAVY_SAMPLE`] of all others: a flood from the very address of a client,
//!    forged or by a neighbour behind its NAT, does not shut the client out. Which ones are in the
//!    sample is drawn by lot: packets that come as regularly as tokens do would take every token just
//!    before a client's packet arrives. With 5,000 packets of junk a second from its own address, a
//!    client that tries once a second fails for 10 s once in 59,000 times.
//!
//! What cannot be one by its length costs none of these tokens; of it, [`IMPOSSIBLE`] is looked at, so
//! that the log can say why somebody does not get in.
//!
//! Where nothing can be remembered of a source (a full table), its packets go on to the next budget,
//! so what is full makes the limit stricter. All budgets together are at worst a sixth of a core.

use std::ops::RangeInclusive;

use super::host::PacketShape;

/// A bucket of tokens, a packet each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many tokens, that is packets, come in each second.
    pub per_second: u32,
    /// How many tokens it holds at most, and at first.
    pub burst: u32,
}

/// Of each remote; where there is one bucket for all, of an admitted remote's packets.
pub const KNOWN_REMOTE: Budget = Budget { per_second: 10, burst: 20 };

/// Of each source address. People behind one NAT share it, and a client sends one packet at a time.
pub const LIGHT_SOURCE: Budget = Budget { per_second: 20, burst: 50 };

/// Of all sources that are within [`LIGHT_SOURCE`]: a thousand clients of a server that was restarted
/// come at once.
pub const LIGHT: Budget = Budget { per_second: 1000, burst: 1000 };

/// Of all others. More than the sample of 5,000 a second, so that the lot alone decides there.
pub const HEAVY: Budget = Budget { per_second: 3500, burst: 3500 };

/// Of packets that prove nothing by their length: they cost no signature check.
pub const IMPOSSIBLE: Budget = Budget { per_second: 5, burst: 10 };

/// Of so many packets …
pub const HEAVY_OUT_OF: u32 = 3;
/// … so many are drawn.
pub const HEAVY_SAMPLE: u32 = 2;

/// IPv6 addresses with these first bits in common are one source: a host has a whole /64.
pub const SOURCE_PREFIX_V6: u8 = 64;

impl PacketShape {
    /// Packets whose payload has one of these lengths.
    pub fn of_lengths(lengths: RangeInclusive<usize>) -> Self {
        let bytes = |length: &usize| u16::try_from(*length).unwrap_or(u16::MAX); // all are below it
        PacketShape::NotIpv4 { length: bytes(lengths.start()), longest: bytes(lengths.end()) }
    }

    /// Whether an authentication packet can have so many bytes.
    pub fn may_have(self, length: usize) -> bool {
        match self {
            PacketShape::NotIpv4 { length: shortest, longest } => {
                (usize::from(shortest)..=usize::from(longest)).contains(&length)
            }
            PacketShape::FromRemote { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_an_authentication_packet_by_its_length() {
        let lengths = |shape: PacketShape| (0..2000).filter(move |n| shape.may_have(*n));
        assert!(lengths(PacketShape::of_lengths(73..=512)).eq(73..=512));
        assert!(lengths(PacketShape::of_lengths(1472..=1472)).eq(1472..=1472));
        assert!(lengths(PacketShape::FromRemote { ip: None, port: None }).eq(0..2000));
    }

    #[test]
    fn all_budgets_together_are_a_sixth_of_a_core() {
        const SIGNATURE_MICROSECONDS: u32 = 37;
        let looked_at = KNOWN_REMOTE.per_second + LIGHT.per_second + HEAVY.per_second;
        assert!(looked_at * SIGNATURE_MICROSECONDS <= 1_000_000 / 6 + 300, "{looked_at}");
    }

    #[test]
    fn junk_from_a_clients_own_address_does_not_shut_it_out() {
        let junk = 5000;
        assert!(junk * HEAVY_SAMPLE / HEAVY_OUT_OF < HEAVY.per_second, "the lot alone decides");
        let left_out = f64::from(HEAVY_OUT_OF - HEAVY_SAMPLE) / f64::from(HEAVY_OUT_OF);
        assert!(left_out.powi(10) < 1.0 / 50_000.0);
    }
}
