//! Puts into words what a [`Conversation`] knows: what is reported, each change once, and what is shown.

use std::mem;
use std::net::SocketAddr;

use super::connection::{Connection, Told, Why};
use super::conversation::Conversation;
use crate::engine::control::{Client, ClientHeard, State};
use crate::engine::{Now, Report};

/// How many hellos without an answer it takes to say that we are not connected.
const TOLD_AFTER: u32 = 3;

impl Conversation {
    /// What there is to say of an answer.
    pub(super) fn news(
        &mut self,
        from: SocketAddr,
        heard: ClientHeard,
        now: &Now,
    ) -> Option<Report> {
        match heard {
            ClientHeard::Nothing | ClientHeard::Challenged | ClientHeard::Gone => None,
            ClientHeard::Accepted => {
                self.unanswered = None;
                let Connection { round_trip, seen, .. } = self.connection(now);
                let round_trip = round_trip.unwrap_or_default();
                let is_news = mem::replace(&mut self.told, Told::Connected) != Told::Connected;
                is_news.then_some(Report::Connected { server: from, round_trip, seen })
            }
            ClientHeard::Refused(why) => {
                let is_news = mem::replace(&mut self.told, Told::Refused) != Told::Refused;
                is_news.then_some(Report::ServerRefused { server: from, why })
            }
        }
    }

    /// What there is to say now that time has passed.
    pub fn tell(&mut self, server: SocketAddr, now: &Now) -> Option<Report> {
        if self.is_closed {
            return None;
        }
        let Some(Why::NoAnswer { tries, silent }) = self.connection(now).why else { return None };
        let is_round_over = self.turns.is_round_over(self.clients.len());
        let is_told = tries >= TOLD_AFTER && (self.clients.len() == 1 || is_round_over);
        if !is_told || self.told == Told::Disconnected {
            return None;
        }
        self.told = Told::Disconnected;
        let has_answered = self.is_answering;
        Some(Report::Disconnected { server, tries, silent, has_answered })
    }

    /// Whether the server is there.
    pub fn connection(&self, now: &Now) -> Connection {
        let client = |number: usize| self.clients.get(number);
        let state = |number: usize| client(number).map(|client| client.state(now.boot));
        let last = client(self.turns.in_use()).and_then(Client::last_accept);
        let (connected_for, why) = match (state(self.turns.in_use()), state(self.turns.asking())) {
            (Some(State::Connected { since }), _) => (Some(now.boot.saturating_sub(since)), None),
            (_, Some(State::Refused { why })) | (Some(State::Refused { why }), _) => {
                (None, Some(Why::Refused(why)))
            }
            (Some(State::Trying { .. }) | None, _) => (None, Some(self.no_answer(now))),
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

    /// The hellos to all servers since one of them let us in, or since each of them has been asked.
    fn no_answer(&self, now: &Now) -> Why {
        let asking = self.turns.asking();
        let states = self.clients.iter().map(|client| client.state(now.boot)).enumerate();
        let asked = states.filter_map(|(number, state)| match state {
            State::Trying { tries, since } if tries > 0 || number == asking => Some((tries, since)),
            State::Trying { .. } | State::Connected { .. } | State::Refused { .. } => None,
        });
        let (tries, since) = asked.fold((0u32, now.boot), |(all, first), (tries, since)| {
            (all.saturating_add(tries), first.min(since))
        });
        Why::NoAnswer { tries, silent: now.boot.saturating_sub(since) }
    }
}
