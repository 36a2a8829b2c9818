//! Files of peers that are read and checked while the tunnel goes on: 10,000 peers take longer than the
//! loop of a process may be held.

use std::future::pending;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use super::peers::PeersReader;
use super::requests::{Files, Reply};
use crate::engine::config::Datapath;
use crate::engine::peers_file::PeerSet;
use crate::host::heap;

/// What is read and checked at the moment: one set at a time, so that the last one that was asked for is
/// the one that stays.
pub struct Reloads {
    reader: Option<PeersReader>,
    /// The datapath in use, which has to carry them.
    datapath: Datapath,
    running: Option<Running>,
    /// They are to be read again after that.
    again: bool,
}

struct Running {
    work: JoinHandle<Result<PeerSet, String>>,
    /// Who sent these files; `None`: they are those of this process.
    asked: Option<oneshot::Sender<Reply>>,
}

/// What was read, and who sent it.
pub struct Checked {
    pub set: Result<PeerSet, String>,
    pub asked: Option<oneshot::Sender<Reply>>,
}

impl Reloads {
    pub fn new(reader: Option<PeersReader>, datapath: Datapath) -> Self {
        Reloads { reader, datapath, running: None, again: false }
    }

    /// What reads files of peers; `None`: this tunnel has none.
    pub fn reader(&self) -> Option<&PeersReader> {
        self.reader.as_ref()
    }

    /// Whether the next request has to wait.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Reads the files of this process again.
    pub fn read_again(&mut self) {
        let Some(reader) = self.reader.clone() else { return };
        if self.is_busy() {
            self.again = true;
            return;
        }
        let datapath = self.datapath;
        let work = spawn_blocking(move || then_give_back(reader.again(datapath)));
        self.running = Some(Running { work, asked: None });
    }

    /// Checks files that were sent.
    pub fn take(&mut self, files: Files, asked: oneshot::Sender<Reply>) {
        let Some(reader) = self.reader.clone() else { return };
        let datapath = self.datapath;
        let work = spawn_blocking(move || then_give_back(reader.take(files, datapath)));
        self.running = Some(Running { work, asked: Some(asked) });
    }

    /// Waits until files have been checked. Cancel safe.
    pub async fn checked(&mut self) -> Checked {
        let Some(running) = &mut self.running else { return pending().await };
        let result = (&mut running.work).await;
        let set = result.unwrap_or_else(|e| Err(format!("the files were not checked: {e}")));
        let asked = self.running.take().and_then(|running| running.asked);
        if std::mem::take(&mut self.again) {
            self.read_again();
        }
        Checked { set, asked }
    }
}

/// What was needed to read them is free.
fn then_give_back<T>(read: T) -> T {
    heap::give_back();
    read
}
