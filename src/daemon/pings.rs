//! The queue of hellos that `ipipou ping` asks a running client for.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::requests::Reply;

/// The hellos that commands asked for, one after the other, and when the last one was sent. Commands that ask
/// for the same server before its hello is sent share it, so there are never more hellos than servers.
#[derive(Debug, Default)]
pub struct Pings {
    pub pending: Option<Ping>,
    waiting: VecDeque<Ping>,
    /// When the last one was sent.
    pub last: Option<Duration>,
}

/// Times count from the start of the process.
#[derive(Debug)]
pub struct Ping {
    /// The number of the server, and what it is called.
    pub server: usize,
    pub name: String,
    /// The commands that wait for the answer.
    pub asked: Vec<oneshot::Sender<Reply>>,
    /// When it is sent.
    pub begins: Duration,
    /// Until when the answer may take, once it is sent.
    pub until: Option<Duration>,
}

impl Ping {
    /// Whether somebody still waits for it.
    fn is_awaited(&mut self) -> bool {
        self.asked.retain(|asked| !asked.is_closed());
        !self.asked.is_empty()
    }
}

impl Pings {
    /// Adds somebody who asks for the server with this number and name.
    pub fn add(&mut self, server: usize, name: String, asked: oneshot::Sender<Reply>) {
        let pending = self.pending.iter_mut().filter(|ping| ping.until.is_none());
        match pending.chain(&mut self.waiting).find(|ping| ping.server == server) {
            Some(ping) => ping.asked.push(asked),
            None => {
                let (asked, begins) = (vec![asked], Duration::ZERO);
                self.waiting.push_back(Ping { server, name, asked, begins, until: None });
            }
        }
    }

    /// Goes on to the next one, once there is none that somebody waits for. It begins `every` after the
    /// last.
    pub fn turn(&mut self, every: Duration) {
        if !self.pending.as_mut().is_some_and(Ping::is_awaited) {
            let begins = self.last.map_or(Duration::ZERO, |last| last.saturating_add(every));
            self.waiting.retain_mut(Ping::is_awaited);
            self.pending = self.waiting.pop_front().map(|ping| Ping { begins, ..ping });
        }
    }

    /// When there is something to do.
    pub fn next_deadline(&self) -> Duration {
        self.pending.as_ref().map_or(Duration::MAX, |ping| ping.until.unwrap_or(ping.begins))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn asker(pings: &mut Pings, server: usize) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        pings.add(server, format!("server {server}"), sender);
        receiver
    }

    #[test]
    fn requests_for_one_server_share_a_hello() {
        let mut pings = Pings::default();
        let mut waiting: Vec<_> = (0..100).map(|number| asker(&mut pings, number % 2)).collect();
        pings.turn(EVERY);
        waiting.push(asker(&mut pings, 0));
        let first = pings.pending.as_mut().unwrap();
        assert_eq!((first.server, first.asked.len()), (0, 51));
        // A hello that was sent already does not answer a ping that is asked for now.
        first.until = Some(EVERY);
        waiting.push(asker(&mut pings, 0));
        assert_eq!(pings.waiting.iter().map(|ping| ping.server).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn no_hello_is_sent_for_callers_that_have_gone() {
        let mut pings = Pings::default();
        for server in 0..3 {
            drop(asker(&mut pings, server));
        }
        let stays = asker(&mut pings, 2);
        pings.turn(EVERY);
        assert_eq!(pings.pending.as_ref().map(|ping| ping.server), Some(2));
        drop(stays);
        pings.turn(EVERY);
        assert!(pings.pending.is_none() && pings.next_deadline() == Duration::MAX);
    }
}
