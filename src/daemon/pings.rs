//! The hellos that somebody asks a running client for, by `ipipou ping`.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::requests::Reply;

/// The hellos that somebody asked for, one after the other, and when the last one was.
#[derive(Debug, Default)]
pub struct Pings {
    pub pending: Option<Ping>,
    /// Those after it; there are as many as there are connections to the socket.
    pub waiting: VecDeque<Ping>,
    /// When the last one was said.
    pub last: Option<Duration>,
}

/// Times count from the start of the process.
#[derive(Debug)]
pub struct Ping {
    /// The number of the server, and what it is called.
    pub server: usize,
    pub name: String,
    pub asked: oneshot::Sender<Reply>,
    /// It is said then.
    pub begins: Duration,
    /// It is said, and the answer may take until then.
    pub until: Option<Duration>,
}

impl Pings {
    /// Adds one.
    pub fn add(&mut self, ping: Ping) {
        self.waiting.push_back(ping);
    }

    /// Goes on to the next one, once there is none. It begins `every` after the last.
    pub fn turn(&mut self, every: Duration) {
        if self.pending.is_none() {
            let begins = self.last.map_or(Duration::ZERO, |last| last.saturating_add(every));
            self.pending = self.waiting.pop_front().map(|ping| Ping { begins, ..ping });
        }
    }

    /// When there is something to do.
    pub fn next_deadline(&self) -> Duration {
        self.pending.as_ref().map_or(Duration::MAX, |ping| ping.until.unwrap_or(ping.begins))
    }
}
