//! What a hello led to.

use std::net::SocketAddr;

use super::peer::PeerId;
use crate::wire::control::Refusal;

/// What a packet led to, and what is sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Heard {
    /// The UDP payload to send to where the packet came from, from the address it was sent to; when
    /// somebody came in or moved, after the datapath lets the remote in.
    pub answer: Option<Vec<u8>>,
    /// What changed.
    pub outcome: Outcome,
}

/// What a hello changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: its cookie was not good, and the answer has one that is.
    Challenged {
        /// The peer that sent it, or whose hello somebody copied.
        peer: PeerId,
    },
    /// The peer is where it was, for another lease.
    Refreshed {
        /// The peer that sent it.
        peer: PeerId,
    },
    /// The peer came in.
    Up {
        /// The peer that sent it.
        peer: PeerId,
        /// Another peer's session that ended, because it had this remote.
        evicted: Option<PeerId>,
    },
    /// The peer came from another address or port, or to another local address.
    Moved {
        /// The peer that sent it.
        peer: PeerId,
        /// Where it was before; the same as now if it only sends to another local address.
        from: SocketAddr,
        /// Another peer's session that ended, because it had this remote.
        evicted: Option<PeerId>,
    },
    /// The peer said goodbye.
    Left {
        /// The peer that sent it.
        peer: PeerId,
        /// Where it was.
        remote: SocketAddr,
    },
    /// The peer said goodbye, and has no session.
    WasOut {
        /// The peer that sent it.
        peer: PeerId,
    },
    /// The peer may not come in.
    Refused {
        /// The peer that sent it.
        peer: PeerId,
        /// What the answer said.
        why: Refusal,
    },
    /// It was not answered.
    Ignored(Ignored),
}

/// Why a packet was not answered. The names are those of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ignored {
    /// It is not a hello of this version, or is for another server, or not from a peer.
    NotForUs,
    /// The MAC is wrong: the sender has another secret, or another of our keys, or is not this peer.
    WrongMac {
        /// The peer that it claims to be from.
        peer: PeerId,
    },
    /// The signature is wrong, although MAC and cookie are right: somebody changed it on its way.
    WrongSignature {
        /// The peer that made the rest of it.
        peer: PeerId,
    },
    /// A goodbye from another place than where the peer is.
    ForeignBye,
    /// More challenges are asked for than are given.
    TooManyChallenges,
    /// More signatures would have to be checked than are checked.
    TooManySignatures,
    /// The peer moves more often than it may.
    TooManyMoves,
}

impl Heard {
    pub(super) fn ignored(why: Ignored) -> Self {
        Heard { answer: None, outcome: Outcome::Ignored(why) }
    }
}

impl Ignored {
    /// The names of all reasons.
    pub const NAMES: [&'static str; 7] = [
        "not_for_us",
        "wrong_mac",
        "wrong_signature",
        "foreign_bye",
        "too_many_challenges",
        "too_many_signatures",
        "too_many_moves",
    ];

    /// The counter's name, in `ipipou show --json`.
    pub fn name(self) -> &'static str {
        let [not_for_us, wrong_mac, wrong_signature, foreign_bye, challenges, signatures, moves] =
            Ignored::NAMES;
        match self {
            Ignored::NotForUs => not_for_us,
            Ignored::WrongMac { .. } => wrong_mac,
            Ignored::WrongSignature { .. } => wrong_signature,
            Ignored::ForeignBye => foreign_bye,
            Ignored::TooManyChallenges => challenges,
            Ignored::TooManySignatures => signatures,
            Ignored::TooManyMoves => moves,
        }
    }
}
