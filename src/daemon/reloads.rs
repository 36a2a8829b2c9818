//! Reads and checks files of peers while the tunnel goes on: 10,000 peers take longer than the loop
//! of a process may be held.

use std::collections::VecDeque;
use std::future::pending;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use super::peers::{Good, PeersReader};
use super::requests::{Files, Reply};
use crate::engine::config::Datapath;
use crate::host::heap;

/// What is read and checked: one set after the other, in the order in which they were asked for, so that
/// the last one is the one that stays.
pub struct Reloads {
    reader: Option<PeersReader>,
    /// The datapath in use, which has to carry them.
    datapath: Datapath,
    running: Option<Running>,
    waiting: VecDeque<Work>,
}

/// Files to check.
enum Work {
    /// Those of this process.
    Own,
    /// Those that somebody sent.
    Sent(Files, oneshot::Sender<Reply>),
}

struct Running {
    work: JoinHandle<Result<Good, String>>,
    /// The command that sent these files; `None`: they are those of this process.
    asked: Option<oneshot::Sender<Reply>>,
}

/// What was read, and who sent it.
pub struct Checked {
    pub read: Result<Good, String>,
    pub asked: Option<oneshot::Sender<Reply>>,
}

impl Work {
    /// Whether somebody still waits for it.
    fn is_awaited(&self) -> bool {
        match self {
            Work::Own => true,
            Work::Sent(_, asked) => !asked.is_closed(),
        }
    }
}

impl Reloads {
    pub fn new(reader: Option<PeersReader>, datapath: Datapath) -> Self {
        Reloads { reader, datapath, running: None, waiting: VecDeque::new() }
    }

    /// What reads files of peers; `None`: this tunnel has none.
    pub fn reader(&self) -> Option<&PeersReader> {
        self.reader.as_ref()
    }

    /// Reads the files of this process again, after those that were sent before.
    pub fn read_again(&mut self) {
        // They are read when it is their turn.
        if !matches!(self.waiting.back(), Some(Work::Own)) {
            self.add(Work::Own);
        }
    }

    /// Checks files that were sent, after those that were sent before.
    pub fn take(&mut self, files: Files, asked: oneshot::Sender<Reply>) {
        self.add(Work::Sent(files, asked));
    }

    fn add(&mut self, work: Work) {
        self.waiting.push_back(work);
        self.go_on();
    }

    /// Begins with the next ones. Those of somebody who has gone in the meantime are not taken: they were
    /// told nothing.
    fn go_on(&mut self) {
        self.waiting.retain(Work::is_awaited);
        let Some(reader) = self.reader.clone().filter(|_| self.running.is_none()) else { return };
        let datapath = self.datapath;
        self.running = self.waiting.pop_front().map(|work| match work {
            Work::Own => Running {
                work: spawn_blocking(move || then_give_back(reader.again(datapath))),
                asked: None,
            },
            Work::Sent(files, asked) => Running {
                work: spawn_blocking(move || then_give_back(reader.take(files, datapath))),
                asked: Some(asked),
            },
        });
    }

    /// Waits until files have been checked. Cancel safe.
    pub async fn checked(&mut self) -> Checked {
        let Some(running) = &mut self.running else { return pending().await };
        let result = (&mut running.work).await;
        let read = result.unwrap_or_else(|e| Err(format!("the files were not checked: {e}")));
        let asked = self.running.take().and_then(|running| running.asked);
        self.go_on();
        Checked { read, asked }
    }
}

/// What was needed to read them is free.
fn then_give_back<T>(read: T) -> T {
    heap::give_back();
    read
}
