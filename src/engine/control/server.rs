//! A server's peers and their sessions. Hellos are judged in `receive.rs`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use super::Random;
use super::bucket::{Bucket, Rate};
use super::peer::{Allowed, ById, Peer, PeerId, ServerPeer, Session, canonical};
use crate::auth::{CookieSecrets, Ends, hint};
use crate::wire::control::Hint;

/// Challenges, to all. No limit depends on the peer or the source that a packet names: anybody could use it
/// up by packets in the name of others.
pub(super) const CHALLENGES: Rate = Rate { interval: Duration::from_micros(50), burst: 20_000 };

/// Signatures that are checked, of all peers: 40 µs each.
pub(super) const SIGNATURES: Rate = Rate { interval: Duration::from_millis(1), burst: 1000 };

/// How often one peer may come in or move: each time the datapath is changed.
pub(super) const MOVES: Rate = Rate { interval: Duration::from_secs(2), burst: 5 };

/// How often one peer may show a wrong signature with a right MAC and cookie. Only the peer can make one, or
/// somebody who reads its path: the other peers need the signatures that are checked.
pub(super) const DOUBTS: Rate = Rate { interval: Duration::from_millis(500), burst: 20 };

/// This many wrong signatures with a right MAC and cookie renew the generation. The MAC does not cover the
/// signature, so a hello that was held back could otherwise be changed and sent for as long as its cookie
/// is good.
pub(super) const WRONG_SIGNATURES: u8 = 2;

/// A server's end of the protocol: who its peers are, and which of them are where.
///
/// The caller has checked that a packet's source can be a remote at all: a unicast address that is not
/// ours and not inside a tunnel. It changes the datapath after what is returned, and asks for
/// [`expire`](Self::expire) at each [`next_deadline`](Self::next_deadline).
#[derive(Clone)]
pub struct Server {
    pub(super) seed: Zeroizing<[u8; 32]>,
    public: [u8; 32],
    pub(super) hint: Hint,
    pub(super) cookies: CookieSecrets,
    /// The last generation that a peer took.
    generation: u64,
    pub(super) peers: HashMap<PeerId, Peer, ById>,
    pub(super) by_hint: HashMap<Hint, PeerId>,
    pub(super) by_remote: HashMap<SocketAddr, PeerId>,
    /// When leases end.
    leases: BTreeSet<(Duration, PeerId)>,
    pub(super) mtu: Option<u16>,
    pub(super) challenges: Bucket,
    pub(super) signatures: Bucket,
    /// Whose sessions began, were kept or ended; `None`: nobody asks.
    changed: Option<Vec<PeerId>>,
}

impl Server {
    /// A server without peers. `seed` is its private key (RFC 8032), `secret` are fresh random bytes.
    pub fn new(seed: &[u8; 32], boot: Duration, secret: [u8; 32]) -> Self {
        let public = SigningKey::from_bytes(seed).verifying_key().to_bytes();
        Server {
            seed: Zeroizing::new(*seed),
            public,
            hint: hint(&public),
            cookies: CookieSecrets::new(boot, secret),
            generation: 0,
            peers: HashMap::default(),
            by_hint: HashMap::new(),
            by_remote: HashMap::new(),
            leases: BTreeSet::new(),
            mtu: None,
            challenges: Bucket::default(),
            signatures: Bucket::default(),
            changed: None,
        }
    }

    /// The key that its clients have to know.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public
    }

    /// Tells accepted clients how many bytes the largest packet inside the tunnel may have.
    pub fn set_mtu(&mut self, mtu: Option<u16>) {
        self.mtu = mtu;
    }

    /// Adds a peer, or changes it; one that is as it was notices nothing. Any change makes its older
    /// cookies useless. Another key or secret ends its session, and so does that it may not come in any
    /// more: then its remote is returned. Of two peers with one hint, the later one is heard.
    pub fn insert(&mut self, id: PeerId, config: ServerPeer) -> Option<SocketAddr> {
        let new_hint = hint(&config.public_key);
        let Some(peer) = self.peers.get_mut(&id) else {
            let generation = next(&mut self.generation);
            self.by_hint.insert(new_hint, id);
            self.peers.insert(id, Peer::new(config, generation));
            return None;
        };
        let same_keys = peer.config.public_key == config.public_key
            && peer.config.secret.as_bytes() == config.secret.as_bytes();
        if same_keys && is_same(&peer.config, &config) {
            // Another peer may have taken the hint and gone.
            self.by_hint.insert(new_hint, id);
            return None;
        }
        let goes_on = same_keys && config.allowed == Allowed::Yes;
        let old_hint = hint(&peer.config.public_key);
        if !same_keys {
            peer.pair = None;
            peer.digest = None;
        }
        peer.config = config;
        peer.renew(next(&mut self.generation));
        self.forget_hint(&old_hint, id);
        self.by_hint.insert(new_hint, id);
        if goes_on { None } else { self.end(id) }
    }

    /// Removes a peer. Returns where it was, if it had a session.
    pub fn remove(&mut self, id: PeerId) -> Option<SocketAddr> {
        let remote = self.end(id);
        if let Some(peer) = self.peers.remove(&id) {
            self.forget_hint(&hint(&peer.config.public_key), id);
        }
        remote
    }

    /// Ends a peer's session; it may come back at once. Returns where it was, if it had one.
    pub fn kick(&mut self, id: PeerId) -> Option<SocketAddr> {
        self.renew(id);
        self.end(id)
    }

    /// Ends the sessions whose lease is over, and tells where these peers were.
    pub fn expire(&mut self, boot: Duration) -> Vec<(PeerId, SocketAddr)> {
        let mut ended = Vec::new();
        while let Some((_, id)) = self.leases.first().copied().filter(|(until, _)| *until <= boot) {
            self.renew(id);
            let Some(remote) = self.end(id) else { break }; // there is one for each lease
            ended.push((id, remote));
        }
        ended
    }

    /// When the first lease ends, by CLOCK_BOOTTIME.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leases.first().map(|(until, _)| *until)
    }

    /// Where a peer is; `None`: it has no session.
    pub fn session(&self, id: PeerId) -> Option<&Session> {
        self.peers.get(&id)?.session.as_deref()
    }

    /// The peer at this address and port.
    pub fn at(&self, remote: SocketAddr) -> Option<PeerId> {
        self.by_remote.get(&remote).copied()
    }

    /// A digest of the keys of a peer and this server, and their secret.
    pub fn digest(&mut self, id: PeerId) -> Option<[u8; 32]> {
        self.peers.get_mut(&id).map(|peer| peer.digest(&self.seed))
    }

    /// All peers, by their digests.
    pub fn by_digest(&mut self) -> HashMap<[u8; 32], PeerId> {
        self.peers.iter_mut().map(|(id, peer)| (peer.digest(&self.seed), *id)).collect()
    }

    /// From now on, [`Server::take_changed`] has to be called again and again.
    pub fn tell_changes(&mut self) {
        self.changed = Some(Vec::new());
    }

    /// Whose sessions began, were kept or ended since this was called last.
    pub fn take_changed(&mut self) -> Vec<PeerId> {
        self.changed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Makes the next [`Server::take_changed`] return every peer that has a session.
    pub fn tell_all(&mut self) {
        if let Some(changed) = &mut self.changed {
            *changed = self.by_remote.values().copied().collect();
        }
    }

    /// Takes over a tunnel that an earlier process left running: its peer has one lease from now to say
    /// hello. Returns whether it was: a peer that may not come in or has a session already, or whose remote
    /// another peer has, is left as it is.
    pub fn adopt(&mut self, id: PeerId, ends: Ends, boot: Duration) -> bool {
        self.resume(id, ends, boot, Duration::MAX)
    }

    /// The same, where it is known when the lease ends that the peer has.
    pub fn resume(&mut self, id: PeerId, ends: Ends, boot: Duration, until: Duration) -> bool {
        let ends = canonical(ends);
        let is_free = !self.by_remote.contains_key(&ends.remote);
        let fits = is_free
            && self
                .peers
                .get(&id)
                .is_some_and(|peer| peer.config.allowed == Allowed::Yes && peer.session.is_none());
        if fits {
            self.put(id, &ends, boot, None);
            self.shorten(id, until);
        }
        fits
    }

    /// Puts a peer where it is now, for a lease from `boot`; a peer that had the remote has lost it before.
    pub(super) fn put(&mut self, id: PeerId, ends: &Ends, boot: Duration, hello: Option<Hello>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        self.changed.iter_mut().for_each(|changed| changed.push(id));
        let until = boot.saturating_add(peer.config.lease);
        let (mut since, mut moves) = (boot, 0);
        let mut is_there = false;
        if let Some(before) = &peer.session {
            self.leases.remove(&(before.until, id));
            is_there = before.remote == ends.remote;
            if !is_there {
                self.by_remote.remove(&before.remote);
            }
            if !before.is_over {
                since = before.since;
                moves = before.moves + u64::from(!before.is_at(ends));
            }
        }
        let session = Session {
            remote: ends.remote,
            local: ends.local,
            since,
            last_hello: hello.as_ref().map(|_| boot),
            until,
            moves,
            mtu: hello.and_then(|hello| hello.mtu),
            is_over: false,
        };
        match &mut peer.session {
            Some(before) => **before = session,
            None => peer.session = Some(Box::new(session)),
        }
        self.leases.insert((until, id));
        if !is_there {
            self.by_remote.insert(ends.remote, id);
        }
    }

    /// Has a lease end then, if it does not end before.
    fn shorten(&mut self, id: PeerId, until: Duration) {
        let session = self.peers.get_mut(&id).and_then(|peer| peer.session.as_mut());
        if let Some(session) = session.filter(|session| session.until > until) {
            self.leases.remove(&(session.until, id));
            self.leases.insert((until, id));
            session.until = until;
        }
    }

    /// Ends a session, if there is one, and tells where it was.
    pub(super) fn end(&mut self, id: PeerId) -> Option<SocketAddr> {
        let session = self.peers.get_mut(&id)?.session.take()?;
        self.changed.iter_mut().for_each(|changed| changed.push(id));
        self.leases.remove(&(session.until, id));
        self.by_remote.remove(&session.remote);
        Some(session.remote)
    }

    /// Marks the session of a peer whose lease is over: nobody may have asked for [`Self::expire`] yet.
    pub(super) fn end_lease(&mut self, id: PeerId, boot: Duration) {
        let session = self.peers.get_mut(&id).and_then(|peer| peer.session.as_mut());
        if let Some(session) = session.filter(|session| session.until <= boot && !session.is_over) {
            session.is_over = true;
            self.renew(id);
        }
    }

    /// Gives a peer its next generation.
    pub(super) fn renew(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.renew(next(&mut self.generation));
        }
    }

    /// Draws the secret of the epoch of `boot`, unless it is drawn.
    pub(super) fn turn(&mut self, boot: Duration, random: Random<'_>) {
        if self.cookies.is_over(boot) {
            let mut secret = Zeroizing::new([0; 32]);
            random(secret.as_mut());
            self.cookies.turn(boot, *secret);
        }
    }

    /// Another peer may have the hint by now.
    fn forget_hint(&mut self, hint: &Hint, id: PeerId) {
        if self.by_hint.get(hint) == Some(&id) {
            self.by_hint.remove(hint);
        }
    }
}

/// What a session keeps of the hello that began or kept it.
pub(super) struct Hello {
    pub mtu: Option<u16>,
}

/// The next generation. There is one counter, so none is taken twice.
fn next(generation: &mut u64) -> u64 {
    *generation += 1;
    *generation
}

/// Whether two peers with the same keys say the same.
fn is_same(one: &ServerPeer, other: &ServerPeer) -> bool {
    let ServerPeer { public_key: _, secret: _, lease, inner, allowed } = one;
    (*lease, inner, *allowed) == (other.lease, &other.inner, other.allowed)
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("peers", &self.peers.len())
            .field("sessions", &self.by_remote.len())
            .finish_non_exhaustive()
    }
}
