//! Authenticates us by hellos that the server answers: control protocol v2. A [`Client`] for each server says
//! when one is due, and [`Turns`] whose turn it is; this file passes on to them what happens around them.
//! `told.rs` puts into words what they know.

use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use super::connection::{Pong, Told};
use super::turns::{Access, SPREAD, Turn, Turns};
use crate::auth::Credential;
use crate::engine::calendar::Calendar;
use crate::engine::config::Shows;
use crate::engine::control::{Client, ClientConfig, ClientHeard};
use crate::engine::host::Traffic;
use crate::engine::memory::Memory;
use crate::engine::random::Random;
use crate::engine::{Now, RETRY_AFTER, Report};
use crate::wire::control::HELLO_LEN;

/// How often we say hello, unless it is configured: a NAT forgets a mapping after 30 s.
const KEEPALIVE: Duration = Duration::from_secs(27);

/// How long data goes out and none comes back before the server is asked.
const UNANSWERED: Duration = Duration::from_secs(5);

/// The hellos to a server, or to several in turn.
#[derive(Debug)]
pub struct Conversation {
    /// One for each server; there is always one.
    pub(super) clients: Vec<Client>,
    pub(super) turns: Turns,
    pub(super) keepalive: Duration,
    /// Servers that get a goodbye once our data goes elsewhere, and those that get it now.
    left: Vec<usize>,
    goodbye_due: Vec<usize>,
    /// A server that is asked now whether it is there, although it is not its turn.
    ping_due: Option<usize>,
    /// This process ends: only goodbyes are sent.
    pub(super) is_closed: bool,
    calendar: Calendar,
    /// Time since the boot of the machine less time since the start of the process.
    offset: Duration,
    /// A hello is due then, whatever the client thinks.
    wanted_at: Option<Duration>,
    /// Unix time.
    last_sent: Option<u64>,
    /// The server answered once: it does not need our clock.
    pub(super) is_answering: bool,
    /// The counters at the last reading and when that was, and since when data goes out and none comes in:
    /// from the reading before the first that saw it.
    traffic: Traffic,
    read_at: Duration,
    pub(super) unanswered: Option<Duration>,
    /// What was reported last.
    pub(super) told: Told,
    /// The server that somebody asks whether it is there, and what it said.
    pinged: Option<usize>,
    pong: Option<Pong>,
}

impl Conversation {
    /// `None`: there is nothing to say hello with, or the server does not answer.
    pub fn new(shows: &Shows, memory: &Memory, now: &Now) -> Option<Self> {
        let (Some(server), Credential::Key(signer)) = (&shows.server, &shows.credential) else {
            return None;
        };
        let keepalive = shows.keepalive.unwrap_or(KEEPALIVE);
        let keys = std::iter::once(server.key).chain(server.standby.iter().map(|s| s.key));
        let clients = keys.map(|server_key| {
            let config = ClientConfig {
                signer: signer.clone(),
                server_key,
                keepalive,
                mtu: None,
                wants_addresses: true,
            };
            let client = Client::new(config, now.boot).ok()?;
            Some(if server.standby.is_empty() { client } else { client.one_of_several() })
        });
        Some(Conversation {
            clients: clients.collect::<Option<_>>()?,
            turns: Turns::new(now.boot),
            keepalive,
            left: Vec::new(),
            goodbye_due: Vec::new(),
            ping_due: None,
            is_closed: false,
            calendar: Calendar::new(memory, now.unix),
            offset: now.boot.saturating_sub(now.monotonic),
            wanted_at: None,
            last_sent: None,
            is_answering: false,
            traffic: Traffic::default(),
            read_at: now.boot,
            unanswered: None,
            told: Told::Nothing,
            pinged: None,
            pong: None,
        })
    }

    /// As [`Prover::authenticate_at`](super::Prover::authenticate_at).
    pub fn authenticate_at(&mut self, when: Duration) {
        self.wanted_at = Some(self.wanted_at.map_or(when, |wanted| wanted.min(when)));
    }

    /// Hellos to this server go to another address now.
    pub fn start_over(&mut self, server: usize, now: &Now) {
        if let Some(client) = self.clients.get_mut(server) {
            let tries = client.tries();
            client.server_changed(now.boot);
            if server == self.turns.asking() {
                self.turns.count_from_zero(tries);
            }
        }
    }

    /// As [`Prover::send_failed`](super::Prover::send_failed).
    pub fn send_failed(&mut self, now: &Now) {
        let asked = self.clients.get_mut(self.turns.asking());
        if let Some(client) = asked.filter(|client| client.is_confirming()) {
            client.say_too(now.boot.saturating_add(RETRY_AFTER));
        }
    }

    /// As [`Prover::data_has_moved`](super::Prover::data_has_moved).
    pub fn data_has_moved(&mut self) {
        self.goodbye_due.append(&mut self.left);
    }

    /// The number of the server that is to have our data.
    pub fn server(&self) -> usize {
        self.turns.in_use()
    }

    /// An earlier process left the tunnel to this server.
    pub fn adopt(&mut self, server: usize) {
        self.turns.adopt(server);
    }

    /// As [`Prover::silent_for`](super::Prover::silent_for).
    pub fn silent_for(&self, now: &Now) -> Option<Duration> {
        let asked = self.clients.get(self.turns.asking()).filter(|_| !self.is_closed);
        asked.and_then(|client| client.silent_for(now.boot))
    }

    /// As [`Prover::has_answered`](super::Prover::has_answered).
    pub fn has_answered(&self) -> bool {
        self.is_answering
    }

    /// As [`Prover::first_is_silent`](super::Prover::first_is_silent).
    pub fn first_is_silent(&mut self) -> bool {
        self.turns.first_is_silent()
    }

    /// Gives the turn to another server, when that of the one that is asked is over. `access`: how hellos
    /// get to each of them.
    pub fn take_turns(&mut self, access: &[Access], now: &Now) -> Option<Turn> {
        if self.clients.len() < 2 || self.is_closed {
            return None;
        }
        self.offset = now.boot.saturating_sub(now.monotonic);
        self.say_if_wanted(now);
        let before = self.turns.in_use();
        let turn = self.turns.go_on(&mut self.clients, access, now.boot);
        if self.turns.in_use() != before {
            self.told = Told::Nothing;
        }
        turn
    }

    fn say_if_wanted(&mut self, now: &Now) {
        if self.wanted_at.take_if(|at| *at <= now.monotonic).is_some() {
            self.hear_news(now);
        }
    }

    /// There are news of the host, or somebody asks for a hello.
    fn hear_news(&mut self, now: &Now) {
        let is_alone = self.clients.len() == 1;
        if let Some(client) = self.clients.get_mut(self.turns.asking()) {
            match self.turns.begin_again(client, now.boot) || is_alone {
                true => client.say_now(now.boot),
                false => client.say_too(now.boot),
            }
        }
    }

    /// The hellos that are due, each with the number of the server that it is for. `access`: how hellos get
    /// to each of them.
    pub fn due_packets(&mut self, access: &[Access], now: &Now) -> Vec<(usize, Vec<u8>)> {
        self.offset = now.boot.saturating_sub(now.monotonic);
        if self.is_closed {
            let packet = self.goodbye(now).map(|goodbye| (self.turns.in_use(), goodbye));
            return packet.into_iter().collect();
        }
        self.say_if_wanted(now);
        let mut random = Random::of(now);
        let mut calendar = self.calendar;
        let date = calendar.date(now.unix);
        let mut lot = [0; 2];
        let mut fill = |bytes: &mut [u8]| random.fill(bytes);
        let asking = self.turns.asking();
        let mut packets = Vec::new();
        let mut add = |server, packet: Option<[u8; HELLO_LEN]>| {
            packets.extend(packet.map(|packet| (server, packet.to_vec())));
        };
        if let Some(client) = self.clients.get_mut(asking) {
            add(asking, client.poll(now.boot, date, &mut fill));
        }
        if let Some(server) = mem::take(&mut self.ping_due)
            && let Some(client) = self.clients.get_mut(server)
        {
            add(server, client.ask(now.boot, date, &mut fill));
        }
        for server in mem::take(&mut self.goodbye_due) {
            if let Some(client) = self.clients.get_mut(server) {
                add(server, client.leave(now.boot, date, &mut fill));
            }
        }
        fill(&mut lot);
        let spread = SPREAD * u32::from(u16::from_ne_bytes(lot)) / u32::from(u16::MAX);
        if self.turns.asks_first(now.boot, spread)
            && access.first() == Some(&Access::Beside)
            && let Some(client) = self.clients.first_mut()
        {
            add(0, client.ask(now.boot, date, &mut fill));
        }
        if !packets.is_empty() {
            self.calendar = calendar;
            self.last_sent = Some(now.unix);
        }
        packets
    }

    /// As [`Prover::next_deadline`](super::Prover::next_deadline).
    pub fn next_deadline(&self) -> Duration {
        if self.is_closed {
            let goodbye = self.clients.get(self.turns.in_use()).map(Client::next_deadline);
            return goodbye.unwrap_or(Duration::MAX).saturating_sub(self.offset);
        }
        let hello = self.clients.get(self.turns.asking()).map(Client::next_deadline);
        let due = hello.into_iter().chain(self.turns.asks_at()).min().unwrap_or(Duration::MAX);
        let due = due.saturating_sub(self.offset);
        self.wanted_at.map_or(due, |wanted| wanted.min(due))
    }

    /// When another server has to be chosen because there is no way to the one that is asked.
    pub fn turn_deadline(&self) -> Option<Duration> {
        self.turns.no_way_until().map(|until| until.saturating_sub(self.offset))
    }

    /// Takes what came from the address and port of the server with this number. Another answer than the
    /// one that is awaited is none.
    pub fn receive(
        &mut self,
        server: usize,
        from: SocketAddr,
        payload: &[u8],
        now: &Now,
    ) -> (bool, Option<Report>) {
        let Some(client) = self.clients.get_mut(server) else { return (false, None) };
        let heard = client.receive(payload, now.boot);
        self.is_answering |= heard != ClientHeard::Nothing;
        let round_trip = client.round_trip();
        if heard == ClientHeard::Accepted && !self.takes(server, now) {
            return (true, None);
        }
        self.note_pong(server, from, heard, round_trip);
        if heard != ClientHeard::Nothing && server == 0 {
            self.turns.answered(now.boot);
        }
        let is_beside = server != self.turns.asking();
        let report = if is_beside { None } else { self.news(from, heard, now) };
        (heard != ClientHeard::Nothing, report)
    }

    /// A command asks whether a server is there: the one that is asked anyway gets an ordinary hello,
    /// another one a hello that moves nothing.
    pub fn ping(&mut self, server: usize, now: &Now) {
        (self.pinged, self.pong) = (Some(server), None);
        match self.clients.get_mut(server) {
            Some(client) if server == self.turns.asking() => match client.is_confirming() {
                true => client.say_too(now.boot),
                false => client.say_now(now.boot),
            },
            Some(_) | None => self.ping_due = Some(server),
        }
    }

    /// What the server said that was asked for by [`Conversation::ping`].
    pub fn take_pong(&mut self) -> Option<Pong> {
        self.pong.take()
    }

    fn note_pong(
        &mut self,
        server: usize,
        from: SocketAddr,
        heard: ClientHeard,
        round_trip: Option<Duration>,
    ) {
        if self.pinged != Some(server) {
            return;
        }
        let client = self.clients.get(server);
        let seen = client.and_then(Client::last_accept).and_then(|accept| accept.seen);
        let round_trip = round_trip.unwrap_or_default();
        let is_asked = server == self.turns.asking();
        self.pong = match heard {
            // The accept follows.
            ClientHeard::Challenged if is_asked => return,
            ClientHeard::Challenged => Some(Pong::Answered { from, round_trip, seen: None }),
            ClientHeard::Accepted => Some(Pong::Answered { from, round_trip, seen }),
            ClientHeard::Refused(why) => Some(Pong::Refused { from, why }),
            ClientHeard::Nothing | ClientHeard::Gone => return,
        };
        self.pinged = None;
    }

    /// Whether a server that let us in has our data from now on. One that does so late, when another one
    /// has our data already, is left.
    fn takes(&mut self, server: usize, now: &Now) -> bool {
        let in_use = self.turns.in_use();
        let is_connected =
            self.clients.get(in_use).is_some_and(|client| client.is_connected(now.boot));
        if server != self.turns.asking() && server != in_use && is_connected {
            self.left.push(server);
            return false;
        }
        if self.turns.accepted(server, now.boot) {
            self.told = Told::Nothing;
            if is_connected {
                self.left.push(in_use);
            }
        }
        for leaving in [&mut self.left, &mut self.goodbye_due] {
            leaving.retain(|left| *left != server);
        }
        let others = self.clients.iter_mut().enumerate().filter(|(number, _)| *number != server);
        others.for_each(|(_, client)| client.rest(now.boot));
        true
    }

    /// Takes the counters of the link.
    pub fn read_traffic(&mut self, traffic: Traffic, now: &Now) {
        let last = mem::replace(&mut self.traffic, traffic);
        let read_at = mem::replace(&mut self.read_at, now.boot);
        if traffic.rx_packets != last.rx_packets {
            self.unanswered = None;
        } else if traffic.tx_packets > last.tx_packets {
            let since = *self.unanswered.get_or_insert(read_at);
            if now.boot.saturating_sub(since) >= UNANSWERED {
                self.unanswered = None;
                let asked = self.clients.get_mut(self.turns.asking());
                let is_asked = |client: &Client| {
                    client.is_confirming() || client.refused_until().is_some_and(|at| now.boot < at)
                };
                if let Some(client) = asked.filter(|client| !is_asked(client)) {
                    client.say_now(now.boot);
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

    /// The first of the goodbyes that end the session at once, or the next one.
    pub fn close(&mut self, now: &Now) -> Option<Vec<u8>> {
        self.calendar.close();
        self.is_closed = true;
        let mut random = Random::of(now);
        let date = self.calendar.date(now.unix);
        let client = self.clients.get_mut(self.turns.in_use())?;
        let bye = client.bye(now.boot, date, &mut |bytes| random.fill(bytes))?;
        Some(bye.to_vec())
    }

    /// The goodbye that is due after the first.
    fn goodbye(&mut self, now: &Now) -> Option<Vec<u8>> {
        let mut random = Random::of(now);
        let mut calendar = self.calendar;
        let date = calendar.date(now.unix);
        let client = self.clients.get_mut(self.turns.in_use())?;
        let bye = client.poll(now.boot, date, &mut |bytes| random.fill(bytes))?;
        Some(bye.to_vec())
    }

    /// Whether the server has still to hear a goodbye, or to answer it.
    pub fn says_goodbye(&self, now: &Now) -> bool {
        let client = self.clients.get(self.turns.in_use());
        client.is_some_and(|client| client.says_goodbye(now.boot))
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        self.calendar.remember(memory);
    }
}
