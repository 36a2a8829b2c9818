//! A client's end of the protocol: when a hello is due, and what is in it. Answers are taken in
//! `answered.rs`.

use std::fmt;
use std::time::Duration;

use super::Random;
use super::accepted::{Accepted, State};
use super::outstanding::Outstanding;
use super::timing::{self, HELLOS_IN_TURN, Lot};
use crate::auth::{KeyError, Pair, Signer, check_public_key, hint, unsigned_hello};
use crate::wire::control::{Cookie, HELLO_LEN, HelloFields, HelloKind, Hint, Refusal, Tag};

/// After this many tries without an accept, hellos do not show the cookie of an accept any more. With it,
/// a hello is not signed, so an old server that has taken the place of a new one could not understand it.
const SHOWN_FOR: u32 = 3;

/// How many goodbyes are said, and how far apart.
const GOODBYES: u8 = 3;
const GOODBYE_EVERY: Duration = Duration::from_millis(300);

/// A hello ends with its tag.
const TAG_LEN: usize = size_of::<Tag>();

/// The configuration of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Our private key and the shared secret.
    pub signer: Signer,
    /// The public ed25519 key of the server.
    pub server_key: [u8; 32],
    /// From an accept to the next hello; less when a third of the lease is less.
    pub keepalive: Duration,
    /// Bytes of the largest packet inside our tunnel; the server learns it.
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
    pub(super) config: ClientConfig,
    pub(super) pair: Pair,
    sender: Hint,
    receiver: Hint,
    pub(super) outstanding: Outstanding,
    pub(super) cookie: Option<Shown>,
    /// The hello whose answer the last cookie came in: older answers have older cookies.
    pub(super) cookie_of: u64,
    /// When the next hello is due, and how many had no accept before it.
    pub(super) due: Duration,
    pub(super) step: usize,
    /// When one more is sent, whatever is due.
    pub(super) extra_at: Option<Duration>,
    /// A challenge is to be answered before that.
    pub(super) at_once: bool,
    pub(super) answered_at_once: u8,
    /// A challenge has brought the retries forward once since the last accept.
    pub(super) is_brought_forward: bool,
    /// Hellos that came due since the last accept or refusal, and when the first did.
    pub(super) tries: u32,
    pub(super) trying_since: Duration,
    pub(super) accepted: Option<Accepted>,
    pub(super) round_trip: Option<Duration>,
    pub(super) refused: Option<(Refusal, usize)>,
    pub(super) leaving: Option<Leaving>,
    pub(super) lot: Lot,
    /// There are other servers, whose turn comes when this one does not answer.
    is_one_of_several: bool,
}

/// A cookie that the next hello carries.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) cookie: Cookie,
    /// It leads to a refresh at most, for which no signature is checked.
    pub(super) is_of_accept: bool,
}

/// How many goodbyes are left to be said.
#[derive(Clone, Copy)]
pub(super) struct Leaving(pub(super) u8);

impl Client {
    /// A client whose first hello is due at once.
    ///
    /// # Errors
    /// When no server can have this key.
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

    /// How long hellos have come due without an accept, once a turn of them is over.
    pub fn silent_for(&self, boot: Duration) -> Option<Duration> {
        let is_over = self.tries > HELLOS_IN_TURN || self.is_silent(HELLOS_IN_TURN, boot);
        is_over.then(|| boot.saturating_sub(self.trying_since))
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

    /// A hello that leads to a challenge at most: it shows no cookie, so the server does not store
    /// it and moves nothing. Its answer ([`ClientHeard::Challenged`]) shows that the server is there, and leaves a
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

    /// Whether the server may have a session that a goodbye can end.
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

    pub(super) fn retry_after(&self, step: usize) -> Duration {
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
