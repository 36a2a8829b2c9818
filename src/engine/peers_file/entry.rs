//! A peer as it stands in a file, with nothing left open.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::PeerName;
use crate::auth::{SharedSecret, Token};

/// One peer, with nothing left open.
#[derive(Debug, Clone)]
pub struct PeerEntry {
    /// Its name, which no other peer has.
    pub name: PeerName,
    /// How it authenticates.
    pub speaks: Speaks,
    /// Its own addresses inside the tunnel, at least one.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it, without host bits. No other peer has an address or a route in them.
    pub routes: Vec<IpNet>,
    /// What it signs beside its hellos.
    pub secret: SharedSecret,
    /// How long one hello is good for: whole seconds, at least 30.
    pub lease: Duration,
    /// Unix time of the first second in which it is no longer let in.
    pub expires: Option<u64>,
    /// Whether it is let in at all.
    pub enabled: bool,
    /// Whether it reaches no other peer.
    pub isolate: bool,
    /// What somebody wanted to remember of it.
    pub note: Option<String>,
    /// Where it is written.
    pub origin: Origin,
}

/// How a peer authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaks {
    /// By hellos of control protocol v2, with this ed25519 public key (RFC 8032, 5.1.5); no other peer
    /// has it, or one that begins with the same eight bytes.
    Hellos([u8; 32]),
    /// By the packets of the old program, to a UDP port that is its own.
    Old(OldPeer),
}

/// A peer that runs the old program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldPeer {
    /// Our UDP port for it, in host byte order.
    pub port: NonZeroU16,
    /// Our address inside the tunnel as it knows it; `None`: the server's own.
    pub server_address: Option<Ipv4Addr>,
    /// What its packets prove.
    pub proof: OldProof,
    /// How long one of them is good for; `None`: for ever, as many old clients send only one.
    pub lifetime: Option<Duration>,
}

/// What a peer with the old program proves itself by.
#[derive(Debug, Clone)]
pub enum OldProof {
    /// Its ed25519 public key.
    Key([u8; 32]),
    /// A token, which is sent in the clear.
    Token(Token),
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file's name, as [`SourceFile`](super::SourceFile) has it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl PeerEntry {
    /// Its ed25519 public key, unless it has a token.
    pub fn public_key(&self) -> Option<&[u8; 32]> {
        match &self.speaks {
            Speaks::Hellos(key) | Speaks::Old(OldPeer { proof: OldProof::Key(key), .. }) => {
                Some(key)
            }
            Speaks::Old(OldPeer { proof: OldProof::Token(_), .. }) => None,
        }
    }

    /// What there is to know of it as a peer with the old program; `None`: it speaks control protocol v2.
    pub fn old(&self) -> Option<&OldPeer> {
        match &self.speaks {
            Speaks::Hellos(_) => None,
            Speaks::Old(old) => Some(old),
        }
    }

    /// Whether it may come in now, at this Unix time.
    pub fn is_welcome(&self, unix: u64) -> bool {
        self.enabled && !self.has_expired(unix)
    }

    /// Whether its time is over at this Unix time.
    pub fn has_expired(&self, unix: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= unix)
    }

    /// Whether a tunnel to the one is a tunnel to the other.
    pub fn has_tunnel_of(&self, other: &PeerEntry) -> bool {
        self.speaks == other.speaks
            && self.addresses == other.addresses
            && self.routes == other.routes
            && self.secret.as_bytes() == other.secret.as_bytes()
    }

    /// Whether a peer with the old program proves itself by the same as `before`.
    pub fn proves_as(&self, before: &PeerEntry) -> bool {
        let proof = |entry: &PeerEntry| entry.old().map(|old| old.proof.clone());
        proof(self) == proof(before) && self.secret.as_bytes() == before.secret.as_bytes()
    }

    /// Whether a session of a peer with the old program that began when it was `before` goes on.
    pub fn goes_on_from(&self, before: &PeerEntry) -> bool {
        let port = |entry: &PeerEntry| entry.old().map(|old| old.port);
        self.proves_as(before) && port(self) == port(before) && self.addresses == before.addresses
    }

    /// Whether two entries say the same of a peer, wherever they stand.
    pub fn is_as(&self, other: &PeerEntry) -> bool {
        let PeerEntry {
            name,
            speaks,
            addresses,
            routes,
            secret,
            lease,
            expires,
            enabled,
            isolate,
            note,
            origin: _,
        } = self;
        *name == other.name
            && *speaks == other.speaks
            && *addresses == other.addresses
            && *routes == other.routes
            && secret.as_bytes() == other.secret.as_bytes()
            && *lease == other.lease
            && *expires == other.expires
            && *enabled == other.enabled
            && *isolate == other.isolate
            && *note == other.note
    }
}

impl PartialEq for OldProof {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (OldProof::Key(one), OldProof::Key(other)) => one == other,
            (OldProof::Token(one), OldProof::Token(other)) => one.matches(other.as_bytes()),
            (OldProof::Key(_), OldProof::Token(_)) | (OldProof::Token(_), OldProof::Key(_)) => {
                false
            }
        }
    }
}

impl Eq for OldProof {}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
