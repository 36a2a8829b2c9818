//! The limits on packets of unproven sources that are looked at, the same in both datapaths.
//!
//! Looking at one costs a signature check, 37 µs, and anybody can send. A packet that may be an
//! authentication packet by its length ([`PacketShape::may_have`]) is looked at if one of these
//! budgets, tried in this order, has a token for it:
//!
//! 1. [`KNOWN_REMOTE`], if it comes from the address and port of an admitted remote: whatever others
//!    do, a remote that stays where it is can authenticate again.
//! 2. [`LIGHT`], if its source address (IPv6: the /64) is within [`LIGHT_SOURCE`]: a flood from one
//!    place does not cost others a packet.
//! 3. [`HEAVY`], for a random [`HEAVY_SAMPLE`] of all others: a flood from a client's own address,
//!    forged or by a neighbour behind its NAT, does not shut the client out. The sample is drawn by lot:
//!    otherwise packets that come as regularly as tokens do would take every token just before a
//!    client's packet arrives. With 5,000 packets of junk a second from its own address, a client that
//!    tries once a second fails for 10 s once in 59,000 times.
//!
//! A packet that cannot be one by its length costs none of these tokens. [`IMPOSSIBLE`] of these are
//! looked at, so that the log can say why somebody is not admitted.
//!
//! A client looks at answers from the addresses and ports of its servers only. They cost no signature, a MAC
//! only where they name one of our hellos. Each server is a known remote; above that, an answer is looked at if
//! it is in the sample.
//!
//! Where nothing can be remembered about a source (a full table), its packets go on to the next budget,
//! so a full table makes the limit stricter. All budgets together cost a sixth of a core at worst, for each
//! port: every peer with the old program has one of its own, with all of these budgets.

use std::ops::RangeInclusive;

use super::host::PacketShape;
use crate::wire::control::{HELLO_LEN, MAX_ANSWER_LEN};

/// A bucket of tokens, one for each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many tokens, that is packets, are added each second.
    pub per_second: u32,
    /// How many tokens it holds at most, and at the start.
    pub burst: u32,
}

/// For each admitted remote of a server, and for each server of a client.
pub const KNOWN_REMOTE: Budget = Budget { per_second: 10, burst: 20 };

/// For hellos of all admitted remotes of a hub that are within [`KNOWN_REMOTE`], on the kernel datapath: a
/// thousand peers say hello 40 times a second.
pub const KNOWN_REMOTES: Budget = Budget { per_second: 1000, burst: 2000 };

/// For each source address. People behind one NAT share it, and a client sends one packet at a time.
pub const LIGHT_SOURCE: Budget = Budget { per_second: 20, burst: 50 };

/// For all sources that are within [`LIGHT_SOURCE`]: a thousand clients of a server that was restarted
/// come at once.
pub const LIGHT: Budget = Budget { per_second: 1000, burst: 1000 };

/// For all others. It is more than the sample of 5,000 a second, so that the lot alone decides there.
pub const HEAVY: Budget = Budget { per_second: 3500, burst: 3500 };

/// For packets that prove nothing by their length: they cost no signature check.
pub const IMPOSSIBLE: Budget = Budget { per_second: 5, burst: 10 };

/// For hellos that name this server and are not from a remote that is admitted. Each costs a MAC, 2 µs,
/// and perhaps an answer.
pub const HELLOS: Budget = Budget { per_second: 20_000, burst: 20_000 };

/// The sample is drawn from this many packets.
pub const HEAVY_OUT_OF: u32 = 3;
/// This many of them are drawn.
pub const HEAVY_SAMPLE: u32 = 2;

/// IPv6 addresses with these first bits in common are one source: a host has a whole /64.
pub const SOURCE_PREFIX_V6: u8 = 64;

impl PacketShape {
    /// The shape of packets whose payload has one of these lengths.
    pub fn of_lengths(lengths: RangeInclusive<usize>) -> Self {
        let bytes = |length: &usize| u16::try_from(*length).unwrap_or(u16::MAX); // all are below it
        PacketShape::NotIpv4 { length: bytes(lengths.start()), longest: bytes(lengths.end()) }
    }

    /// Whether an authentication packet can have this many bytes.
    pub fn may_have(self, length: usize) -> bool {
        match self {
            PacketShape::NotIpv4 { length: shortest, longest } => {
                (usize::from(shortest)..=usize::from(longest)).contains(&length)
            }
            PacketShape::Hellos { .. } => length == HELLO_LEN,
            PacketShape::Answers => length <= MAX_ANSWER_LEN,
            PacketShape::FromRemote { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_lengths_of_authentication_packets_are_recognised() {
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
