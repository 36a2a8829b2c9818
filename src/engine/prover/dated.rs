//! Authenticates us by packets that stand alone: when one is due, what is in it, and whether something
//! came back through the tunnel.

use std::time::Duration;

use crate::engine::Now;
use crate::engine::calendar::Calendar;
use crate::engine::config::Shows;
use crate::engine::host::Traffic;
use crate::engine::memory::Memory;
use crate::engine::persistence::{self, Finding, Persistence};

/// What authenticates us to one peer.
#[derive(Debug)]
pub struct Dated {
    shows: Shows,
    /// Time since the start of the process at which the next packet is due; `None` when none is.
    next_auth: Option<Duration>,
    calendar: Calendar,
    /// Unix time.
    last_sent: Option<u64>,
    /// `None`: the keepalive does as well.
    persistence: Option<Persistence>,
    /// The counters are to be looked at, and the next packet is another try.
    looking: bool,
    trying: bool,
}

impl Dated {
    pub fn new(shows: Shows, memory: &Memory, now: &Now) -> Self {
        let often = shows.keepalive.is_some_and(|every| every <= persistence::LONGEST);
        Dated {
            shows,
            next_auth: Some(now.monotonic),
            calendar: Calendar::new(memory, now.unix),
            last_sent: None,
            persistence: (!often).then(Persistence::new),
            looking: false,
            trying: false,
        }
    }

    pub fn authenticate_at(&mut self, when: Duration) {
        self.next_auth = Some(self.next_auth.map_or(when, |due| due.min(when)));
    }

    /// The packet that is due; sets the time of the next.
    pub fn due_packet(&mut self, now: &Now) -> Option<Vec<u8>> {
        if self.next_auth? > now.monotonic {
            return None;
        }
        self.next_auth = self.shows.keepalive.map(|every| now.monotonic.saturating_add(every));
        if !std::mem::take(&mut self.trying)
            && let Some(persistence) = &mut self.persistence
        {
            persistence.sent(now.monotonic);
            self.looking = false;
        }
        Some(self.packet(now))
    }

    /// Time between two packets; `None`: there is one at the start only, as long as something comes back.
    pub fn keepalive(&self) -> Option<Duration> {
        self.shows.keepalive
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let look_at = self.persistence.as_ref().map(Persistence::look_at);
        self.next_auth.into_iter().chain(look_at).min()
    }

    /// Whether the host should be read, to see whether something came back.
    pub fn asks_for_traffic(&mut self, now: &Now) -> bool {
        let asks = self.persistence.as_mut().is_some_and(|p| p.asks(now.monotonic));
        self.looking |= asks;
        asks
    }

    /// Takes the counters of the link: when nothing comes back, it is tried again. True when that
    /// should be said.
    pub fn read_traffic(&mut self, traffic: Traffic, now: &Now) -> bool {
        let looking = std::mem::take(&mut self.looking);
        let Some(persistence) = &mut self.persistence else { return false };
        let Finding::Silence { say } = persistence.read(traffic, looking, now.monotonic) else {
            return false;
        };
        // A packet that is due anyway does not count as another try.
        self.trying = self.next_auth.is_none_or(|due| due > now.monotonic);
        self.authenticate_at(now.monotonic);
        say
    }

    /// A packet that authenticates us.
    pub fn packet(&mut self, now: &Now) -> Vec<u8> {
        self.last_sent = Some(now.unix);
        let credential = &self.shows.credential;
        let date = if credential.is_dated() { self.calendar.date(now.unix) } else { now.unix };
        credential.payload(date, now.salts())
    }

    /// Whether the times of the last packet must be written before it is sent.
    pub fn must_write(&mut self) -> bool {
        self.shows.credential.is_dated() && self.calendar.must_write()
    }

    /// Unix time of the last packet.
    pub fn last_sent(&self) -> Option<u64> {
        self.last_sent
    }

    /// Nothing more will be sent.
    pub fn close(&mut self) {
        self.calendar.close();
    }

    pub fn remember(&self, memory: &mut Memory) {
        self.calendar.remember(memory);
    }
}
