//! What a server knows of one peer.

use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;

use super::bucket::Bucket;
use crate::auth::{Ends, Pair, SharedSecret, keys_digest};

/// Names a peer of a server; the caller that inserts the peer chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// Hashes ids: nobody but the caller chooses them, so they need no secret, and one hello looks up several
/// times.
pub(super) type ById = BuildHasherDefault<IdHasher>;

/// Spreads a number over all bits (Knuth's multiplicative hashing).
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What the protocol needs to know of a peer.
#[derive(Debug, Clone)]
pub struct ServerPeer {
    /// Its ed25519 key. No two peers share the first 8 bytes, and
    /// [`check_public_key`](crate::auth::check_public_key) found nothing wrong with it.
    pub public_key: [u8; 32],
    /// The secret that both ends sign beside the message.
    pub secret: SharedSecret,
    /// For how long an accepted hello lets it in; an accept says it in whole seconds.
    pub lease: Duration,
    /// Its inner addresses, with the lengths of their networks. An accept has them if it asks.
    pub inner: Vec<IpNet>,
    /// Whether it may come in.
    pub allowed: Allowed,
}

/// Whether a peer may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// It may.
    Yes,
    /// An operator does not want it now.
    Disabled,
    /// Its time is over.
    Expired,
}

/// Where a peer is, and until when it is let in. Times are by CLOCK_BOOTTIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its address and port.
    pub remote: SocketAddr,
    /// The local address and port that it sends to, and that answers and data leave from.
    pub local: SocketAddr,
    /// When it came in.
    pub since: Duration,
    /// When its last hello was accepted; `None`: it was adopted, and said none since.
    pub last_hello: Option<Duration>,
    /// When its lease ends.
    pub until: Duration,
    /// How often it moved since it came in.
    pub moves: u64,
    /// Bytes of the largest packet inside its tunnel, as its last hello said.
    pub mtu: Option<u16>,
    /// The lease was over at the last hello, although nobody has asked for that yet: nothing may rely on
    /// this session, but its remote may still be let in by the datapath.
    pub(super) is_over: bool,
}

/// A peer and what is kept of it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub config: ServerPeer,
    /// Made at its first hello: most peers of a large server may never come.
    pub pair: Option<Box<Pair>>,
    /// As [`Peer::digest`] returns it: each hello asks for it.
    pub digest: Option<[u8; 32]>,
    /// What its cookies are bound to, so that those of before die when it is renewed.
    pub generation: u64,
    /// Wrong signatures with a right MAC and cookie, in this generation.
    pub wrong_signatures: u8,
    pub moves: Bucket,
    /// Its wrong signatures.
    pub doubts: Bucket,
    pub session: Option<Box<Session>>,
}

impl Peer {
    pub fn new(config: ServerPeer, generation: u64) -> Self {
        Peer {
            config,
            pair: None,
            digest: None,
            generation,
            wrong_signatures: 0,
            moves: Bucket::default(),
            doubts: Bucket::default(),
            session: None,
        }
    }

    /// The digest of its keys with the server's, whose private key `seed` is, and of their secret.
    pub fn digest(&mut self, seed: &[u8; 32]) -> [u8; 32] {
        let Peer { config, digest, .. } = self;
        let ServerPeer { public_key, secret, .. } = config;
        *digest.get_or_insert_with(|| keys_digest(seed, public_key, secret))
    }

    /// From now on, no cookie of before is good.
    pub fn renew(&mut self, generation: u64) {
        (self.generation, self.wrong_signatures) = (generation, 0);
    }
}

impl Session {
    /// Whether a hello with these ends is from where the peer is, to where it is let in.
    pub(super) fn is_at(&self, ends: &Ends) -> bool {
        (self.remote, self.local) == (ends.remote, ends.local)
    }
}

/// One form for each address: cookies do not tell ::ffff:192.0.2.1 from 192.0.2.1, nor flow labels.
pub(super) fn canonical(ends: Ends) -> Ends {
    let canonical = |end: SocketAddr| match (end, end.ip().to_canonical()) {
        (SocketAddr::V6(v6), IpAddr::V6(ip)) => {
            SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()))
        }
        (SocketAddr::V4(_) | SocketAddr::V6(_), ip) => SocketAddr::new(ip, end.port()),
    };
    Ends { remote: canonical(ends.remote), local: canonical(ends.local) }
}
