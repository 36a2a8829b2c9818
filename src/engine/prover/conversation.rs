//! Authenticates us by hellos that the server answers: control protocol v2. [`Client`] says when one is
//! due; here it is told what happens around it, and what it knows is put into words.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::auth::Credential;
use crate::engine::calendar::Calendar;
use crate::engine::config::Shows;
use crate::engine::control::{Client, ClientConfig, ClientHeard, State};
use crate::engine::host::Traffic;
use crate::engine::memory::Memory;
use crate::engine::random::Random;
use crate::engine::{Now, Report};
use crate::wire::control::Refusal;

/// How often we say hello, unless it is configured: a NAT forgets a mapping after 30 s.
const KEEPALIVE: Duration = Duration::from_secs(27);

/// How long data goes out and none comes back before the server is asked.
const UNANSWERED: Duration = Duration::from_secs(5);

/// How many hellos without an answer it takes to say that we are not connected.
const TOLD_AFTER: u32 = 3;

/// The hellos to one server.
#[derive(Debug)]
pub struct Conversation {
    client: Client,
    calendar: Calendar,
    /// Time since the boot of the machine less time since the start of the process.
    offset: Duration,
    /// A hello is due then, whatever the client thinks.
    wanted_at: Option<Duration>,
    /// Unix time.
    last_sent: Option<u64>,
    /// The server answered once: it needs no clock of ours.
    is_answering: bool,
    /// The counters at the last reading, and since when data goes out and none comes in.
    traffic: Traffic,
    unanswered: Option<Duration>,
    /// What was said last.
    told: Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Connected,
    Disconnected,
    Refused,
}

/// Whether our server is there, as it told us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Time since it let us in; `None`: we are not connected.
    pub connected_for: Option<Duration>,
    /// Why we are not.
    pub why: Option<Why>,
    /// Whether the server ever answered this process.
    pub has_answered: bool,
    /// Between a hello and its answer.
    pub round_trip: Option<Duration>,
    /// Our address and port as the server sees them.
    pub seen: Option<SocketAddr>,
    /// How long the server keeps us without another hello.
    pub lease: Option<Duration>,
    /// Our inner addresses as the server has them.
    pub inner: Vec<IpNet>,
    /// Bytes of the largest packet inside the server's tunnel.
    pub mtu: Option<u16>,
}

/// Why we are not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing has come back.
    NoAnswer {
        /// Hellos since the last answer.
        tries: u32,
        /// Since the first of them.
        silent: Duration,
    },
    /// The server does not let us in.
    Refused(Refusal),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoAnswer { tries, silent } => {
                write!(f, "no answer, {tries} tries in {} s", silent.as_secs())
            }
            Why::Refused(why) => write!(f, "the server does not let us in: {}", Report::told(*why)),
        }
    }
}

impl Conversation {
    /// `None`: there is nothing to say hello with, or the server does not answer.
    pub fn new(shows: &Shows, memory: &Memory, now: &Now) -> Option<Self> {
        let (Some(server), Credential::Key(signer)) = (shows.server, &shows.credential) else {
            return None;
        };
        let config = ClientConfig {
            signer: signer.clone(),
            server_key: server.key,
            keepalive: shows.keepalive.unwrap_or(KEEPALIVE),
            mtu: None,
            wants_addresses: true,
        };
        Some(Conversation {
            client: Client::new(config, now.boot).ok()?,
            calendar: Calendar::new(memory, now.unix),
            offset: now.boot.saturating_sub(now.monotonic),
            wanted_at: None,
            last_sent: None,
            is_answering: false,
            traffic: Traffic::default(),
            unanswered: None,
            told: Told::Nothing,
        })
    }

    /// As [`Prover::authenticate_at`](super::Prover::authenticate_at).
    pub fn authenticate_at(&mut self, when: Duration) {
        self.wanted_at = Some(self.wanted_at.map_or(when, |wanted| wanted.min(when)));
    }

    /// Hellos go to another address now.
    pub fn start_over(&mut self, now: &Now) {
        self.client.server_changed(now.boot);
    }

    /// The hello that is due.
    pub fn due_packet(&mut self, now: &Now) -> Option<Vec<u8>> {
        self.offset = now.boot.saturating_sub(now.monotonic);
        if self.wanted_at.take_if(|at| *at <= now.monotonic).is_some() {
            self.client.say_now(now.boot);
        }
        let mut random = Random::of(now);
        let mut calendar = self.calendar;
        let date = calendar.date(now.unix);
        let hello = self.client.poll(now.boot, date, &mut |bytes| random.fill(bytes))?;
        self.calendar = calendar;
        self.last_sent = Some(now.unix);
        Some(hello.to_vec())
    }

    /// As [`Prover::next_deadline`](super::Prover::next_deadline).
    pub fn next_deadline(&self) -> Duration {
        let due = self.client.next_deadline().saturating_sub(self.offset);
        self.wanted_at.map_or(due, |wanted| wanted.min(due))
    }

    /// Takes what came from the server's address and port. Another answer than the one that is awaited is
    /// none.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Now,
    ) -> (bool, Option<Report>) {
        let heard = self.client.receive(payload, now.boot);
        self.is_answering |= heard != ClientHeard::Nothing;
        (heard != ClientHeard::Nothing, self.news(from, heard, now))
    }

    /// What there is to say of an answer.
    fn news(&mut self, from: SocketAddr, heard: ClientHeard, now: &Now) -> Option<Report> {
        match heard {
            ClientHeard::Nothing | ClientHeard::Challenged | ClientHeard::Gone => None,
            ClientHeard::Accepted => {
                self.unanswered = None;
                let Connection { round_trip, seen, .. } = self.connection(now);
                let round_trip = round_trip.unwrap_or_default();
                let is_news = std::mem::replace(&mut self.told, Told::Connected) != Told::Connected;
                is_news.then_some(Report::Connected { server: from, round_trip, seen })
            }
            ClientHeard::Refused(why) => {
                let is_news = std::mem::replace(&mut self.told, Told::Refused) != Told::Refused;
                is_news.then_some(Report::ServerRefused { server: from, why })
            }
        }
    }

    /// What there is to say now that time has passed.
    pub fn tell(&mut self, server: SocketAddr, now: &Now) -> Option<Report> {
        let Some(Why::NoAnswer { tries, silent }) = self.connection(now).why else { return None };
        if tries < TOLD_AFTER || self.told == Told::Disconnected {
            return None;
        }
        self.told = Told::Disconnected;
        let has_answered = self.is_answering;
        Some(Report::Disconnected { server, tries, silent, has_answered })
    }

    /// Takes the counters of the link.
    pub fn read_traffic(&mut self, traffic: Traffic, now: &Now) {
        let last = std::mem::replace(&mut self.traffic, traffic);
        if traffic.rx_packets != last.rx_packets {
            self.unanswered = None;
        } else if traffic.tx_packets > last.tx_packets {
            let since = *self.unanswered.get_or_insert(now.boot);
            if now.boot.saturating_sub(since) >= UNANSWERED {
                self.unanswered = None;
                if !self.client.is_confirming() {
                    self.client.say_now(now.boot);
                }
            }
        }
    }

    /// An old server, which never answers, compares the times of packets.
    pub fn must_write(&mut self) -> bool {
        !self.is_answering && self.calendar.must_write()
    }

    /// Unix time of the last hello.
    pub fn last_sent(&self) -> Option<u64> {
        self.last_sent
    }

    /// Whether the server is there.
    pub fn connection(&self, now: &Now) -> Connection {
        let last = self.client.last_accept();
        let (connected_for, why) = match self.client.state(now.boot) {
            State::Connected { since } => (Some(now.boot.saturating_sub(since)), None),
            State::Trying { tries, since } => {
                let silent = now.boot.saturating_sub(since);
                (None, Some(Why::NoAnswer { tries, silent }))
            }
            State::Refused { why } => (None, Some(Why::Refused(why))),
        };
        let last = last.filter(|_| connected_for.is_some());
        Connection {
            connected_for,
            why,
            has_answered: self.is_answering,
            round_trip: last.map(|accept| accept.round_trip),
            seen: last.and_then(|accept| accept.seen),
            lease: last.map(|accept| accept.until.saturating_sub(now.boot)),
            inner: last.map(|accept| accept.inner.clone()).unwrap_or_default(),
            mtu: last.and_then(|accept| accept.mtu),
        }
    }

    /// The goodbye that ends the session at once.
    pub fn close(&mut self, now: &Now) -> Option<Vec<u8>> {
        self.calendar.close();
        let mut random = Random::of(now);
        let date = self.calendar.date(now.unix);
        let bye = self.client.bye(now.boot, date, &mut |bytes| random.fill(bytes))?;
        Some(bye.to_vec())
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        self.calendar.remember(memory);
    }
}
