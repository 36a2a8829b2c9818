//! The status that commands ask for. Its peers are noted in parts, between which hellos are answered: those of
//! ten thousand peers would wait otherwise.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::control;
use super::listener::Connected;
use super::requests::Reply;
use super::snapshot::{PeersAsked, Snapshot};
use crate::engine::peers_file::PeerName;

/// Who asked for a status.
#[derive(Debug)]
pub enum Asker {
    /// By a request.
    Request(oneshot::Sender<Reply>),
    /// By a connection to the control socket.
    Connection(Connected),
}

/// The status of a process, of which some peers are still to be noted.
#[derive(Debug)]
pub struct List {
    pub asked: PeersAsked,
    pub asker: Asker,
    pub snapshot: Snapshot,
    /// The last peer that is noted.
    pub last: Option<PeerName>,
    /// How long the longest part took.
    pub longest: Duration,
}

/// Those that are asked for, one after the other.
#[derive(Debug, Default)]
pub struct Lists(pub VecDeque<List>);

impl Lists {
    /// Whether there is one to go on with.
    pub fn are_asked_for(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Asker {
    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Asker::Request(answer) => answer.is_closed(),
            Asker::Connection(_) => false,
        }
    }
}

impl List {
    /// Answers with it.
    pub fn answer(self) {
        tracing::trace!("the status was taken in {} µs at a time", self.longest.as_micros());
        match self.asker {
            // The caller may be gone.
            Asker::Request(answer) => drop(answer.send(Reply::Status(Box::new(self.snapshot)))),
            Asker::Connection(connected) => control::answer(connected, self.snapshot),
        }
    }
}
