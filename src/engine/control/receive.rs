//! Judges a packet that a server received: cheap checks come first, and nothing is stored for a
//! sender that did not prove its address.

use std::net::SocketAddr;
use std::time::Duration;

use super::Random;
use super::outcome::{Heard, Ignored, Outcome};
use super::peer::{Allowed, PeerId, canonical};
use super::server::{self, CHALLENGES, DOUBTS, MOVES, SIGNATURES, Server, WRONG_SIGNATURES};
use crate::auth::{Ends, Pair};
use crate::wire::control::{Answer, AnswerKind, Hello, HelloKind, Refusal, Tag};

impl Server {
    /// Judges a UDP payload. `ends` are where it came from and which local address it was sent to.
    ///
    /// What comes in or moves has done so when this returns; the answer belongs behind the change of the
    /// datapath. An answer is never longer than the hello.
    pub fn receive(
        &mut self,
        payload: &[u8],
        ends: Ends,
        boot: Duration,
        random: Random<'_>,
    ) -> Heard {
        let Ok(hello) = Hello::parse(payload) else { return Heard::ignored(Ignored::NotForUs) };
        if hello.fields.receiver != self.hint {
            return Heard::ignored(Ignored::NotForUs);
        }
        let Some(id) = self.by_hint.get(&hello.fields.sender).copied() else {
            return Heard::ignored(Ignored::NotForUs);
        };
        let is_right =
            self.pair(id).is_some_and(|p| p.is_hello_mac(hello.authenticated, &hello.mac));
        if !is_right {
            return Heard::ignored(Ignored::WrongMac { peer: id });
        }
        let ends = canonical(ends);
        self.turn(boot, random);
        self.end_lease(id, boot);
        let Some(peer) = self.peers.get(&id) else { return Heard::ignored(Ignored::NotForUs) };
        let key = &peer.config.public_key;
        if !self.cookies.is_good(&hello.fields.cookie, key, peer.generation, &ends) {
            return self.challenge(id, &hello, &ends, boot, random);
        }
        match (hello.fields.kind, peer.config.allowed) {
            (HelloKind::Bye, _) => self.bye(id, &hello, &ends),
            (HelloKind::Hello, Allowed::Yes) => self.hello(id, &hello, &ends, boot),
            (HelloKind::Hello, Allowed::Disabled) => {
                self.refuse(id, &hello, &ends, Refusal::Disabled)
            }
            (HelloKind::Hello, Allowed::Expired) => {
                self.refuse(id, &hello, &ends, Refusal::Expired)
            }
        }
    }

    /// The keys between us and a peer, made when they are first needed. `None`: it has no good key.
    fn pair(&mut self, id: PeerId) -> Option<&Pair> {
        let peer = self.peers.get_mut(&id)?;
        if peer.pair.is_none() {
            let (key, secret) = (&peer.config.public_key, &peer.config.secret);
            peer.pair = Pair::of_server(&self.seed, key, secret).ok().map(Box::new);
        }
        peer.pair.as_deref()
    }

    /// A stranger who copied a hello gets here: it costs us an answer, and we keep nothing.
    fn challenge(
        &mut self,
        id: PeerId,
        hello: &Hello<'_>,
        ends: &Ends,
        boot: Duration,
        random: Random<'_>,
    ) -> Heard {
        let lot = || {
            let mut lot = [0; 4];
            random(&mut lot);
            u32::from_ne_bytes(lot)
        };
        if !self.challenges.take_by_lot(CHALLENGES, boot, lot) {
            return Heard::ignored(Ignored::TooManyChallenges);
        }
        let answer = self.answer(id, AnswerKind::Challenge, hello.mac, ends);
        self.heard(id, answer, Outcome::Challenged { peer: id })
    }

    fn refuse(&self, id: PeerId, hello: &Hello<'_>, ends: &Ends, why: Refusal) -> Heard {
        let answer = self.answer(id, AnswerKind::Refuse(why), hello.mac, ends);
        self.heard(id, answer, Outcome::Refused { peer: id, why })
    }

    /// A goodbye needs no signature: a right cookie from where the peer is cannot be made by others.
    fn bye(&mut self, id: PeerId, hello: &Hello<'_>, ends: &Ends) -> Heard {
        let is_here = self.session(id).map(|session| session.is_at(ends));
        let outcome = match is_here {
            Some(false) => return Heard::ignored(Ignored::ForeignBye),
            Some(true) => Outcome::Left { peer: id, remote: ends.remote },
            None => Outcome::WasOut { peer: id },
        };
        self.renew(id);
        self.end(id);
        let answer = self.answer(id, AnswerKind::Accept, hello.mac, ends);
        self.heard(id, answer.map(|answer| Answer { lease: Some(0), ..answer }), outcome)
    }

    fn hello(&mut self, id: PeerId, hello: &Hello<'_>, ends: &Ends, boot: Duration) -> Heard {
        let session = self.session(id);
        let outcome = match session {
            Some(session) if session.is_at(ends) && !session.is_over => {
                Outcome::Refreshed { peer: id }
            }
            Some(_) | None => {
                let from = session.map(|session| session.remote);
                if let Err(why) = self.prove(id, hello, boot) {
                    return Heard::ignored(why);
                }
                let evicted = self.evict(id, ends.remote);
                match from {
                    Some(from) => Outcome::Moved { peer: id, from, evicted },
                    None => Outcome::Up { peer: id, evicted },
                }
            }
        };
        let mtu = hello.fields.mtu;
        self.put(id, ends, boot, Some(server::Hello { mtu }));
        self.renew(id);
        let answer = self.accept(id, hello, ends);
        self.heard(id, answer, outcome)
    }

    /// Checks the signature.
    fn prove(&mut self, id: PeerId, hello: &Hello<'_>, boot: Duration) -> Result<(), Ignored> {
        let peer = self.peers.get_mut(&id).ok_or(Ignored::NotForUs)?;
        if !peer.moves.has_token(MOVES, boot) {
            return Err(Ignored::TooManyMoves);
        }
        if !peer.doubts.has_token(DOUBTS, boot) || !self.signatures.take(SIGNATURES, boot) {
            return Err(Ignored::TooManySignatures);
        }
        let pair = peer.pair.as_deref().ok_or(Ignored::NotForUs)?; // its MAC was right
        if pair.is_signed(hello, &peer.config.secret) {
            peer.moves.take(MOVES, boot);
            return Ok(());
        }
        peer.doubts.take(DOUBTS, boot);
        peer.wrong_signatures += 1;
        if peer.wrong_signatures >= WRONG_SIGNATURES {
            self.renew(id);
        }
        Err(Ignored::WrongSignature { peer: id })
    }

    /// Ends the session of another peer that has this remote: it belongs to the peer that proved it last.
    fn evict(&mut self, id: PeerId, remote: SocketAddr) -> Option<PeerId> {
        let other = self.at(remote).filter(|other| *other != id)?;
        self.renew(other);
        self.end(other);
        Some(other)
    }

    fn accept(&self, id: PeerId, hello: &Hello<'_>, ends: &Ends) -> Option<Answer> {
        let config = &self.peers.get(&id)?.config;
        let answer = self.answer(id, AnswerKind::Accept, hello.mac, ends)?;
        let lease = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
        let inner = if hello.fields.wants_addresses { config.inner.clone() } else { Vec::new() };
        Some(Answer { lease: Some(lease), inner, mtu: self.mtu, ..answer })
    }

    /// An answer with a cookie of the peer's present generation.
    fn answer(&self, id: PeerId, kind: AnswerKind, echo: Tag, ends: &Ends) -> Option<Answer> {
        let peer = self.peers.get(&id)?;
        Some(Answer {
            kind,
            echo,
            cookie: self.cookies.make(&peer.config.public_key, peer.generation, ends),
            seen: Some(ends.remote),
            lease: None,
            inner: Vec::new(),
            mtu: None,
        })
    }

    fn heard(&self, id: PeerId, answer: Option<Answer>, outcome: Outcome) -> Heard {
        let pair = self.peers.get(&id).and_then(|peer| peer.pair.as_deref());
        Heard { answer: pair.zip(answer).map(|(pair, answer)| pair.seal(&answer)), outcome }
    }
}
