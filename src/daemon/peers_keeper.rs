//! Keeps the last good files of peers, in the background: a disk that hangs delays neither the peers that are
//! let in from now on, nor the answer to the command that sent the files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::requests::Files;
use crate::host::{atomic_file, clock, heap};

/// How long the end of a process waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last good files, and when they were taken.
#[derive(Debug, Serialize, Deserialize)]
pub struct LastGood {
    /// Unix time.
    at: u64,
    pub files: Files,
}

/// What writes the last good files. When it is dropped, it waits a moment for what is being written.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    slot: Arc<Slot>,
}

/// What is to be written, and by whom.
#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    is_done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is written next; what waited before it is not needed any more.
    next: Option<LastGood>,
    is_writing: bool,
}

impl Keeper {
    pub fn new(path: PathBuf) -> Self {
        Keeper { path, slot: Arc::default() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps good files for a start with mistakes in them. Waits for nothing.
    pub fn keep(&self, files: Files) {
        let mut state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next = Some(LastGood { at: clock::unix(), files });
        if state.is_writing {
            return;
        }
        let (slot, path) = (Arc::clone(&self.slot), self.path.clone());
        let thread = std::thread::Builder::new().name("peers".to_owned());
        match thread.spawn(move || slot.write_all(&path)) {
            Ok(_) => state.is_writing = true,
            Err(e) => warn(&self.path, &e),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.slot.is_done.wait_timeout_while(state, PATIENCE, |state| state.is_writing);
    }
}

impl Slot {
    fn write_all(&self, path: &Path) {
        while let Some(last) = self.next() {
            let written = serde_json::to_vec(&last).map_err(std::io::Error::other);
            if let Err(e) = written.and_then(|bytes| atomic_file::replace(path, &bytes)) {
                warn(path, &e);
            }
            drop(last);
            heap::give_back();
        }
    }

    fn next(&self) -> Option<LastGood> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.next.take();
        state.is_writing = next.is_some();
        if !state.is_writing {
            self.is_done.notify_all();
        }
        next
    }
}

fn warn(path: &Path, error: &std::io::Error) {
    let path = path.display();
    tracing::warn!(
        "{path}: {error}: a start with mistakes in the files has no peers to go on with"
    );
}
