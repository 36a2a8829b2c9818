//! Who reads every packet, drops and delays some, and sends what he likes from wherever he likes; he reads
//! what is sent to one address of his own.

use std::net::SocketAddr;

use super::played::flipped;
use super::world::{By, Flight, World};

/// The address whose packets he reads.
pub fn place() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 66], 666))
}

/// Somebody who has nothing to do with it.
fn victim() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 7))
}

impl World {
    pub fn attack(&mut self) {
        match self.rng.unit() {
            ..0.2 => self.sends_nonsense(),
            ..0.35 => self.injects(),
            _ => self.repeats(),
        }
    }

    /// Bytes that name this server, and bytes that do not: nothing follows.
    fn sends_nonsense(&mut self) {
        let length = self.rng.choice(&[0, 1, 73, 127, 128, 128, 128, 129, 1400]);
        let mut bytes = vec![0; length];
        self.rng.fill(&mut bytes);
        if let (Some((hello, ..)), true) = (self.recorded.last(), self.rng.unit() < 0.5) {
            let rest = self.rng.below(112);
            bytes.truncate(rest.min(length));
            bytes.extend(&hello[bytes.len()..]);
            bytes[127] ^= 1; // at least the MAC is another
        }
        let (steps, sessions) = (self.server.steps, self.server.sessions.len());
        let from = self.rng.choice(&[place(), victim()]);
        self.server.sent.clear();
        self.server.handle(ipipou::engine::Event::Datagram { from, payload: &bytes });
        assert_eq!(self.server.sent.len(), 0, "an answer to a stranger");
        assert_eq!((self.server.steps, self.server.sessions.len()), (steps, sessions));
    }

    /// An answer that he read, once more to the one that it was for.
    fn injects(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let recent = self.answers.len().min(40);
        let of = self.answers.len() - 1 - self.rng.below(recent);
        let (answer, host) = self.answers[of].clone();
        self.later(self.now, Flight::ToClient { answer, host, is_injected: true });
    }

    /// A hello that he read, as it was or with another signature, from any address.
    fn repeats(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let all = self.recorded.len();
        let among = if self.rng.unit() < 0.7 { all.min(300) } else { all };
        let (mut packet, host, from) = self.recorded[all - 1 - self.rng.below(among)];
        if self.rng.unit() < 0.3 {
            packet = flipped(&packet);
        }
        let own: Vec<_> = self.hosts[host].own.keys().copied().collect();
        let former = self.rng.choice(&own);
        let other = self.rng.below(self.hosts.len());
        let elsewhere = self.hosts[other].address;
        let from = self.rng.choice(&[from, from, place(), victim(), former, elsewhere]);
        self.server_hears(&packet, from, host, By::Adversary);
    }
}
