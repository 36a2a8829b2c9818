//! What a server demands of a packet before its source gets the tunnel.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ed25519_dalek::{Signature, VerifyingKey};

use super::replay::{ReplayMemory, ServerTime, Stale};
use super::secret::{KeyError, SharedSecret, Token};
use crate::wire::auth_packet::{AUTH_PACKET_LEN, AuthPacket, MAX_AUTH_PACKET_LEN, ParseError};

/// How far the clocks of clients that share a key may differ from ours by default.
const SHARED_DISCREPANCY: Duration = Duration::from_secs(120);

/// Everything that is checked, cheapest first.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Only from this address (`--auth-by-remote-ip`).
    pub remote_ip: Option<IpAddr>,
    /// Only from this UDP port (`--auth-by-remote-port`).
    pub remote_port: Option<u16>,
    /// What the payload has to be, once the source passes the two checks above.
    pub proof: Proof,
}

/// What the payload must be.
#[derive(Debug, Clone)]
pub enum Proof {
    /// An authentication packet ([`AuthPacket`]) that is signed with this key.
    Key(Verifier),
    /// Exactly these bytes. Anybody who has seen them can send them again.
    Token(Token),
    /// Anything: the source address is all the proof there is.
    Nothing,
}

impl Proof {
    /// How many bytes a payload that proves something has; `None`: any number.
    pub fn lengths(&self) -> Option<RangeInclusive<usize>> {
        match self {
            Proof::Key(verifier) => Some(AUTH_PACKET_LEN..=verifier.longest()),
            Proof::Token(token) => Some(token.as_bytes().len()..=token.as_bytes().len()),
            Proof::Nothing => None,
        }
    }

    /// Whether every payload is good.
    pub fn is_nothing(&self) -> bool {
        self.lengths().is_none()
    }
}

/// A public ed25519 key, the secret that is signed with it, and how far clocks may differ.
#[derive(Clone)]
pub struct Verifier {
    key: VerifyingKey,
    secret: SharedSecret,
    /// `None`: the packet's time is compared only with those that were accepted.
    max_discrepancy: Option<Duration>,
    /// Whether something may follow the packet.
    takes_tail: bool,
}

/// Why a packet was refused. The names are those of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// The engine knows that no remote can be at the source address.
    ImpossibleSource,
    /// The source address is not the one that the policy names.
    WrongIp,
    /// The source UDP port is not the one that the policy names.
    WrongPort,
    /// The payload is empty where a token or a signature is needed.
    Empty,
    /// The payload is shorter than a signed packet ([`ParseError::Truncated`]).
    Truncated,
    /// The payload is longer than a signed packet may be ([`ParseError::Oversized`]).
    Oversized,
    /// The payload differs from the token.
    WrongToken,
    /// The packet's time differs from our clock by more than the policy allows.
    ClockDiffers,
    /// The same message was accepted before ([`Stale::Replayed`]).
    Replayed,
    /// The packet is older than one that was accepted ([`Stale::OlderThanAccepted`]).
    OlderThanAccepted,
    /// It may have been accepted before this start: see [`ReplayMemory`].
    OlderThanStart,
    /// The signature does not verify with the key and the shared secret.
    WrongSignature,
    /// The limit of clients is reached, and none of them has been silent for long enough to make room.
    NoRoom,
}

impl Policy {
    /// Checks one UDP payload. A packet that passes is remembered. `known`: `from` is known to be a
    /// client already, so the packet neither makes a tunnel nor moves one.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn check(
        &self,
        from: SocketAddr,
        payload: &[u8],
        time: ServerTime,
        known: bool,
        seen: &mut ReplayMemory,
    ) -> Result<(), Reject> {
        self.check_remote(from)?;
        match &self.proof {
            Proof::Nothing => Ok(()),
            Proof::Token(token) => check_token(token, payload),
            Proof::Key(verifier) => verifier.check(payload, time, known, seen),
        }
    }

    /// For many clients that share a key. None of them may date its packets as it likes, or one
    /// could shut out the others; so times are held against our clock in any case. Tells by how
    /// many seconds they may differ.
    pub fn share(&mut self) -> Option<u64> {
        match &mut self.proof {
            Proof::Key(verifier) => {
                Some(verifier.max_discrepancy.get_or_insert(SHARED_DISCREPANCY).as_secs())
            }
            Proof::Token(_) | Proof::Nothing => None,
        }
    }
}

impl Policy {
    /// Whether packets may come from there, whatever they prove.
    ///
    /// # Errors
    /// What of the address is not the one that is asked for.
    pub fn check_remote(&self, from: SocketAddr) -> Result<(), Reject> {
        if self.remote_ip.is_some_and(|ip| ip != from.ip()) {
            return Err(Reject::WrongIp);
        }
        if self.remote_port.is_some_and(|port| port != from.port()) {
            return Err(Reject::WrongPort);
        }
        Ok(())
    }

    /// The public key that packets must be signed with.
    pub fn key(&self) -> Option<[u8; 32]> {
        match &self.proof {
            Proof::Key(verifier) => Some(verifier.public()),
            Proof::Token(_) | Proof::Nothing => None,
        }
    }
}

fn check_token(token: &Token, payload: &[u8]) -> Result<(), Reject> {
    if token.matches(payload) {
        Ok(())
    } else if payload.is_empty() {
        Err(Reject::Empty)
    } else {
        Err(Reject::WrongToken)
    }
}

impl Verifier {
    /// # Errors
    /// When the 32 bytes are not a point of the curve, or one of small order.
    pub fn new(
        public: &[u8; 32],
        secret: SharedSecret,
        max_discrepancy: Option<Duration>,
    ) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(public).map_err(|_| KeyError::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Verifier { key, secret, max_discrepancy, takes_tail: true })
    }

    /// The same, for packets of exactly [`AUTH_PACKET_LEN`] bytes: a hello of control protocol v2, which is
    /// such a packet with a tail, proves nothing then.
    #[must_use]
    pub fn without_tail(self) -> Self {
        Verifier { takes_tail: false, ..self }
    }

    /// Bytes of the longest packet.
    fn longest(&self) -> usize {
        if self.takes_tail { MAX_AUTH_PACKET_LEN } else { AUTH_PACKET_LEN }
    }

    /// The 32 bytes of the public key (RFC 8032, 5.1.5).
    pub fn public(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    fn check(
        &self,
        payload: &[u8],
        time: ServerTime,
        known: bool,
        seen: &mut ReplayMemory,
    ) -> Result<(), Reject> {
        let packet = AuthPacket::parse(payload)?;
        if payload.len() > self.longest() {
            return Err(Reject::Oversized);
        }
        let difference = time.now.abs_diff(packet.seconds);
        if self.max_discrepancy.is_some_and(|max| difference > max.as_secs()) {
            return Err(Reject::ClockDiffers);
        }
        // Cheaper than a signature, so replays cost us little.
        seen.check(packet.seconds, packet.message, time, known)?;
        let signature = Signature::from_bytes(packet.signature);
        self.key
            .verify_strict(&[packet.message, self.secret.as_bytes()].concat(), &signature)
            .map_err(|_| Reject::WrongSignature)?;
        seen.remember(packet.seconds, packet.message, time);
        Ok(())
    }
}

impl From<ParseError> for Reject {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Empty => Reject::Empty,
            ParseError::Truncated => Reject::Truncated,
            ParseError::Oversized => Reject::Oversized,
        }
    }
}

impl From<Stale> for Reject {
    fn from(stale: Stale) -> Self {
        match stale {
            Stale::Replayed => Reject::Replayed,
            Stale::OlderThanAccepted => Reject::OlderThanAccepted,
            Stale::OlderThanStart => Reject::OlderThanStart,
        }
    }
}

impl Reject {
    /// Every reason there is.
    pub const ALL: [Reject; 13] = [
        Reject::ImpossibleSource,
        Reject::WrongIp,
        Reject::WrongPort,
        Reject::Empty,
        Reject::Truncated,
        Reject::Oversized,
        Reject::WrongToken,
        Reject::ClockDiffers,
        Reject::Replayed,
        Reject::OlderThanAccepted,
        Reject::OlderThanStart,
        Reject::WrongSignature,
        Reject::NoRoom,
    ];

    /// The counter's name, in `ipipou show --json`.
    pub fn name(self) -> &'static str {
        match self {
            Reject::ImpossibleSource => "impossible_source",
            Reject::WrongIp => "wrong_ip",
            Reject::WrongPort => "wrong_port",
            Reject::Empty => "empty",
            Reject::Truncated => "truncated",
            Reject::Oversized => "oversized",
            Reject::WrongToken => "wrong_token",
            Reject::ClockDiffers => "clock_differs",
            Reject::Replayed => "replayed",
            Reject::OlderThanAccepted => "older_than_accepted",
            Reject::OlderThanStart => "older_than_start",
            Reject::WrongSignature => "wrong_signature",
            Reject::NoRoom => "no_room",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reject::ImpossibleSource => {
                "no remote can have that source: no host has such an address, or it is one of this host or of \
                 the inside of the tunnel"
            }
            Reject::WrongIp => "not from the address that --auth-by-remote-ip asks for",
            Reject::WrongPort => "not from the port that --auth-by-remote-port asks for",
            Reject::Empty => "it is empty",
            Reject::Truncated => "it is shorter than a signed packet",
            Reject::Oversized => "it is longer than any packet we know",
            Reject::WrongToken => "wrong token",
            Reject::ClockDiffers => {
                "its clock differs from ours by more than --auth-max-time-discrepancy (with --learn \
                 120 s, unless it says otherwise)"
            }
            Reject::Replayed => "it was seen before",
            Reject::OlderThanAccepted => "it is older than the newest one accepted",
            Reject::OlderThanStart => {
                "it is from before this start, and what was accepted then is not remembered"
            }
            Reject::WrongSignature => "wrong signature (another key, or another secret)",
            Reject::NoRoom => {
                "--learn-limit clients are known, and none was silent for --learn-lifetime"
            }
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("max_discrepancy", &self.max_discrepancy)
            .finish_non_exhaustive()
    }
}
