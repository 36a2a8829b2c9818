//! A client's end of the protocol: when a hello is due, what is in it, and what its answer means.

use std::fmt;
use std::time::Duration;

use super::Random;
use super::accepted::{Accepted, ClientHeard, State};
use super::outstanding::{Outstanding, Sent};
use super::timing::{self, Lot};
use crate::auth::{KeyError, Pair, Signer, check_public_key, hint, unsigned_hello};
use crate::wire::control::{
    Answer, AnswerKind, Cookie, HELLO_LEN, HelloFields, HelloKind, Hint, Refusal, Tag,
};

/// So many challenges of one try are answered at once. More of them come when packets reach several
/// servers in turn; then hellos would be sent without end.
const ANSWERED_AT_ONCE: u8 = 2;

/// After so many tries without an accept, hellos do not show the cookie of an accept any more. With it, a hello
/// is not signed, so an old server that has taken the place of a new one could not understand it.
const SHOWN_FOR: u32 = 3;

/// How many goodbyes are said, and how far apart.
const GOODBYES: u8 = 3;
const GOODBYE_EVERY: Duration = Duration::from_millis(300);

/// A hello ends with its tag.
const TAG_LEN: usize = size_of::<Tag>();

/// The lease of an accept that does not say one.
const DEFAULT_LEASE: Duration = Duration::from_secs(180);

/// No server has a shorter one: one that says so would have us say hello several times a second.
const LEAST_LEASE: Duration = Duration::from_secs(30);

/// What a client is told.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Our private key and the shared secret.
    pub signer: Signer,
    /// The public ed25519 key of the server.
    pub server_key: [u8; 32],
    /// From an accept to the next hello; less when a third of the lease is less.
    pub keepalive: Duration,
    /// Bytes of the largest packet inside our tunnel; the server is told.
    pub mtu: Option<u16>,
    /// Whether to ask for our inner addresses.
    pub wants_addresses: bool,
}

/// A client's end of the protocol, with one server at one address.
///
/// After each call that takes it by `&mut`, [`next_deadline`](Self::next_deadline) may be another; at that
/// time, [`poll`](Self::poll) gives what is to be sent.
#[derive(Clone)]
pub struct Client {
    config: ClientConfig,
    pair: Pair,
    sender: Hint,
    receiver: Hint,
    outstanding: Outstanding,
    cookie: Option<Shown>,
    /// The hello whose answer the last cookie came in: older answers have older cookies.
    cookie_of: u64,
    /// When the next hello is due, and how many had no accept before it.
    due: Duration,
    step: usize,
    /// When one more is sent, whatever is due.
    extra_at: Option<Duration>,
    /// A challenge is to be answered before that.
    at_once: bool,
    answered_at_once: u8,
    /// A challenge has brought the retries forward once since the last accept.
    is_brought_forward: bool,
    /// Hellos that came due since the last accept or refusal, and when the first did.
    tries: u32,
    trying_since: Duration,
    accepted: Option<Accepted>,
    round_trip: Option<Duration>,
    refused: Option<(Refusal, usize)>,
    leaving: Option<Leaving>,
    lot: Lot,
    /// There are other servers, whose turn comes when this one does not answer.
    is_one_of_several: bool,
}

/// A cookie that the next hello carries.
#[derive(Clone, Copy)]
struct Shown {
    cookie: Cookie,
    /// It leads to a refresh at most, for which no signature is checked.
    is_of_accept: bool,
}

/// How many goodbyes are left to be said.
#[derive(Clone, Copy)]
struct Leaving(u8);

impl Client {
    /// A client whose first hello is due at once.
    ///
    /// # Errors
    /// When the server's key is no key that a server can have.
    pub fn new(config: ClientConfig, boot: Duration) -> Result<Self, KeyError> {
        check_public_key(&config.server_key)?;
        Ok(Client {
            pair: config.signer.pair_with_server(&config.server_key)?,
            sender: hint(&config.signer.public()),
            receiver: hint(&config.server_key),
            config,
            outstanding: Outstanding::default(),
            cookie: None,
            cookie_of: 0,
            due: boot,
            step: 0,
            extra_at: None,
            at_once: false,
            answered_at_once: 0,
            is_brought_forward: false,
            tries: 0,
            trying_since: boot,
            accepted: None,
            round_trip: None,
            refused: None,
            leaving: None,
            lot: 0,
            is_one_of_several: false,
        })
    }

    /// The same client, when there are other servers: its first retries come quickly.
    #[must_use]
    pub fn one_of_several(self) -> Self {
        Client { is_one_of_several: true, ..self }
    }

    /// The hello or goodbye that is due, as a UDP payload. `unix_seconds` is only for old servers.
    pub fn poll(
        &mut self,
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        if self.leaving.is_some() {
            return if self.next_deadline() <= boot {
                self.goodbye(boot, unix_seconds, random)
            } else {
                None
            };
        }
        if std::mem::take(&mut self.at_once) {
            let hello = self.hello(self.shown(), boot, unix_seconds, random);
            // What was due right now has been said by this.
            self.due = self.due.max(boot.saturating_add(self.retry_after(0)));
            return hello;
        }
        if self.due > boot {
            self.extra_at.take_if(|at| *at <= boot)?;
            return self.hello(self.shown(), boot, unix_seconds, random);
        }
        if self.tries == 0 {
            self.trying_since = boot;
        } else {
            self.refused = None; // its last word was another one, but now it is silent
        }
        self.tries = self.tries.saturating_add(1);
        (self.answered_at_once, self.extra_at) = (0, None);
        let hello = self.hello(self.shown(), boot, unix_seconds, random);
        self.due = boot.saturating_add(self.retry_after(self.step));
        self.step = self.step.saturating_add(1);
        hello
    }

    /// When [`poll`](Self::poll) has something to send, by CLOCK_BOOTTIME.
    pub fn next_deadline(&self) -> Duration {
        match self.leaving {
            Some(Leaving(0)) => Duration::MAX,
            Some(_) | None if self.at_once => Duration::ZERO,
            Some(_) => self.due,
            None => self.extra_at.map_or(self.due, |at| at.min(self.due)),
        }
    }

    /// A hello is due now, and quick ones after it: the machine woke up, an address or route changed, data
    /// has no answer, or somebody asks for it.
    pub fn say_now(&mut self, boot: Duration) {
        if self.leaving.is_none() {
            (self.due, self.step) = (boot, 0);
        }
    }

    /// One more hello is sent at `at`: it counts as no try, and what is due comes as if it had not been.
    /// Nothing that comes again and again can put off the end of the tries by it.
    pub fn say_too(&mut self, at: Duration) {
        if self.leaving.is_none() {
            self.extra_at = Some(self.extra_at.map_or(at, |extra| extra.min(at)));
        }
    }

    /// It is this server's turn again: one hello is due now, and the next ones as rarely as before.
    pub fn take_turn(&mut self, boot: Duration) {
        self.due = boot;
    }

    /// Another server is asked, or has let us in: what this one did not answer does not count any more.
    pub fn rest(&mut self, boot: Duration) {
        (self.tries, self.step, self.trying_since) = (0, 0, boot);
        self.extra_at = None;
    }

    /// Whether `tries` hellos came due without an accept, and the last one's time is over.
    pub fn is_silent(&self, tries: u32, boot: Duration) -> bool {
        self.tries >= tries && self.due <= boot && !self.at_once
    }

    /// Whether the server lets us in.
    pub fn is_connected(&self, boot: Duration) -> bool {
        matches!(self.state(boot), State::Connected { .. })
    }

    /// Hellos that came due since the last accept or refusal.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// When a server that refused us is to be asked again; `None`: it did not refuse.
    pub fn refused_until(&self) -> Option<Duration> {
        self.refused.filter(|_| self.tries == 0).map(|_| self.due)
    }

    /// A hello that leads to a challenge at most: it shows no cookie, so the server keeps nothing of it and
    /// moves nothing. Its answer ([`ClientHeard::Challenged`]) shows that the server is there, and leaves a
    /// cookie for the next hello.
    pub fn ask(
        &mut self,
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        self.hello((HelloKind::Hello, None), boot, unix_seconds, random)
    }

    /// Takes leave of a server that another one takes the place of: one goodbye, and nothing that it
    /// answered counts any more. `None` when there is no session that we could know of.
    pub fn leave(
        &mut self,
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        let goodbye = match self.has_session(boot) {
            true => self.hello((HelloKind::Bye, self.cookie), boot, unix_seconds, random),
            false => None,
        };
        self.server_changed(boot);
        goodbye
    }

    /// Hellos go to another address now: what the last one answered does not count there.
    pub fn server_changed(&mut self, boot: Duration) {
        self.outstanding.close(self.outstanding.last());
        (self.cookie, self.cookie_of) = (None, self.outstanding.last());
        (self.accepted, self.refused, self.round_trip) = (None, None, None);
        (self.tries, self.trying_since) = (0, boot);
        (self.at_once, self.is_brought_forward, self.extra_at) = (false, false, None);
        self.say_now(boot);
    }

    /// Says goodbye: two more become due at 300 ms, unless [`receive`](Self::receive) gives
    /// [`ClientHeard::Gone`] before. `None` when there is no session that we could know of.
    pub fn bye(
        &mut self,
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        if self.leaving.is_none() {
            (self.at_once, self.answered_at_once) = (false, 0);
            let goodbyes = if self.has_session(boot) { GOODBYES } else { 0 };
            self.leaving = Some(Leaving(goodbyes));
            self.due = Duration::ZERO;
        }
        self.goodbye(boot, unix_seconds, random)
    }

    /// Whether a goodbye is still to be said, or the answer to the last one may come.
    pub fn says_goodbye(&self, boot: Duration) -> bool {
        self.leaving.is_some_and(|Leaving(left)| left > 0 || boot < self.due)
    }

    /// Takes a UDP payload that came from the address and port that hellos go to.
    pub fn receive(&mut self, payload: &[u8], boot: Duration) -> ClientHeard {
        let Ok(received) = Answer::parse(payload) else { return ClientHeard::Nothing };
        let Some(sent) = self.outstanding.find(&received.answer.echo, boot) else {
            return ClientHeard::Nothing;
        };
        if !self.pair.is_answer_mac(received.authenticated, &received.mac) {
            return ClientHeard::Nothing;
        }
        match received.answer.kind {
            AnswerKind::Challenge => {
                if sent.is_challenged || sent.number < self.cookie_of {
                    return ClientHeard::Nothing;
                }
                sent.is_challenged = true;
                let sent = *sent;
                self.challenged(&received.answer, sent, boot)
            }
            AnswerKind::Accept => {
                let sent = *sent;
                self.accepted(received.answer, sent, boot)
            }
            AnswerKind::Refuse(why) => {
                let sent = *sent;
                self.refused(why, sent, boot)
            }
        }
    }

    /// Whether we are connected.
    pub fn state(&self, boot: Duration) -> State {
        let accepted = self.accepted.as_ref().filter(|accepted| boot < accepted.until);
        match (accepted, self.refused) {
            (Some(accepted), _) => State::Connected { since: accepted.since },
            (None, Some((why, _))) => State::Refused { why },
            (None, None) => State::Trying { tries: self.tries, since: self.trying_since },
        }
    }

    /// From a hello to its answer, the last time.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Whether a hello waits for its accept. A client that is connected still is.
    pub fn is_confirming(&self) -> bool {
        self.tries > 0
    }

    /// What the last accept said; the lease may be over.
    pub fn last_accept(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    fn challenged(&mut self, answer: &Answer, sent: Sent, boot: Duration) -> ClientHeard {
        self.round_trip = Some(boot.saturating_sub(sent.at));
        self.cookie = Some(Shown { cookie: answer.cookie, is_of_accept: false });
        self.cookie_of = sent.number;
        if self.answered_at_once < ANSWERED_AT_ONCE && self.leaving.is_none_or(|l| l.0 > 0) {
            self.answered_at_once += 1;
            self.at_once = true;
        }
        // The server is there, so an answer can be waited for as at the start. But not each time: then
        // hellos would never become rarer where challenges are all that ever comes.
        if !std::mem::replace(&mut self.is_brought_forward, true) {
            self.due = self.due.min(boot.saturating_add(self.retry_after(0)));
            self.step = 1;
        }
        ClientHeard::Challenged
    }

    fn accepted(&mut self, answer: Answer, sent: Sent, boot: Duration) -> ClientHeard {
        self.outstanding.close(sent.number);
        if sent.number >= self.cookie_of {
            self.cookie = Some(Shown { cookie: answer.cookie, is_of_accept: true });
            self.cookie_of = sent.number;
        }
        let lease =
            answer.lease.map_or(DEFAULT_LEASE, |lease| match Duration::from_secs(lease.into()) {
                Duration::ZERO => Duration::ZERO,
                lease => lease.max(LEAST_LEASE),
            });
        if let Some(leaving) = &mut self.leaving {
            if !lease.is_zero() {
                return ClientHeard::Nothing; // of a hello from before
            }
            *leaving = Leaving(0);
            self.due = Duration::ZERO;
            return ClientHeard::Gone;
        }
        if lease.is_zero() {
            return ClientHeard::Nothing;
        }
        let round_trip = boot.saturating_sub(sent.at);
        let goes_on = self.accepted.take().filter(|accepted| boot < accepted.until);
        self.accepted = Some(Accepted {
            since: goes_on.map_or(boot, |accepted| accepted.since),
            until: sent.at.saturating_add(lease),
            round_trip,
            seen: answer.seen,
            inner: answer.inner,
            mtu: answer.mtu,
        });
        self.round_trip = Some(round_trip);
        (self.refused, self.tries, self.trying_since) = (None, 0, boot);
        (self.answered_at_once, self.is_brought_forward, self.extra_at) = (0, false, None);
        // A later hello still has to be accepted: it may have gone from where we are now.
        if sent.number == self.outstanding.last() {
            self.step = 0;
            let after = timing::keepalive_after(self.config.keepalive, lease, self.lot);
            self.due = boot.saturating_add(after);
        }
        ClientHeard::Accepted
    }

    fn refused(&mut self, why: Refusal, sent: Sent, boot: Duration) -> ClientHeard {
        self.outstanding.close(sent.number);
        if self.leaving.is_some() {
            return ClientHeard::Nothing;
        }
        self.round_trip = Some(boot.saturating_sub(sent.at));
        let before = self.refused.map_or(0, |(_, times)| times);
        self.refused = Some((why, before + 1));
        self.accepted = None;
        (self.tries, self.trying_since) = (0, boot);
        (self.at_once, self.is_brought_forward, self.extra_at) = (false, false, None);
        (self.due, self.step) = (boot.saturating_add(timing::refused_after(before)), 0);
        ClientHeard::Refused(why)
    }

    /// A goodbye, if one is left to be said.
    fn goodbye(
        &mut self,
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        self.at_once = false;
        let Leaving(left) = self.leaving?;
        self.leaving = Some(Leaving(left.checked_sub(1)?));
        self.due = boot.saturating_add(GOODBYE_EVERY);
        self.hello((HelloKind::Bye, self.cookie), boot, unix_seconds, random)
    }

    /// Whether the server may have a session of ours that a goodbye can end.
    fn has_session(&self, boot: Duration) -> bool {
        self.cookie.is_some_and(|shown| !shown.is_of_accept || self.is_connected(boot))
    }

    /// A hello that lets us in, with the cookie that it shows.
    fn shown(&self) -> (HelloKind, Option<Shown>) {
        let is_understood = |shown: &Shown| !shown.is_of_accept || self.tries <= SHOWN_FOR;
        (HelloKind::Hello, self.cookie.filter(is_understood))
    }

    fn hello(
        &mut self,
        (kind, shown): (HelloKind, Option<Shown>),
        boot: Duration,
        unix_seconds: u64,
        random: Random<'_>,
    ) -> Option<[u8; HELLO_LEN]> {
        let (mut lot, mut salt, mut no_cookie) = ([0; 2], [0; 4], Cookie::default());
        random(&mut lot);
        random(&mut salt);
        random(&mut no_cookie);
        self.lot = Lot::from_ne_bytes(lot);
        let fields = HelloFields {
            seconds: unix_seconds,
            salt,
            kind,
            wants_addresses: self.config.wants_addresses,
            sender: self.sender,
            receiver: self.receiver,
            cookie: shown.map_or(no_cookie, |shown| shown.cookie),
            mtu: self.config.mtu,
        };
        let packet = if shown.is_some_and(|shown| shown.is_of_accept) {
            let mut noise = [0; 64];
            random(&mut noise);
            unsigned_hello(&self.pair, &fields, noise)
        } else {
            let first = u32::from_be_bytes(salt);
            let salts = (0..=u32::from(u16::MAX)).map(|n| first.wrapping_add(n).to_be_bytes());
            self.config.signer.hello(&self.pair, &fields, salts)?
        };
        self.outstanding.sent(*packet.last_chunk::<TAG_LEN>()?, boot);
        Some(packet)
    }

    fn retry_after(&self, step: usize) -> Duration {
        match self.is_one_of_several {
            true => timing::retry_in_turn(step, self.round_trip, self.lot),
            false => timing::retry_after(step, self.round_trip, self.lot),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("due", &self.due)
            .field("tries", &self.tries)
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}
