//! Word of changes on the host comes in bursts, and one reading answers a burst.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::host::clock::Clock;
use crate::host::{Changed, Changes};

/// After word of a change, how long more word is waited for before the host is read.
const SETTLE: Duration = Duration::from_millis(20);
/// At least this much time is between two readings that changes ask for.
const BREATHE: Duration = Duration::from_millis(200);
/// Word of changes, gathered: many come at once.
pub struct DebouncedChanges {
    changes: Changes,
    due: Option<Duration>,
    last: Duration,
    changed: Changed,
}

impl DebouncedChanges {
    /// `routes`: whether routes matter.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(routes: bool) -> io::Result<Self> {
        let (changes, last) = (Changes::open(routes)?, Duration::ZERO);
        Ok(DebouncedChanges { changes, due: None, last, changed: Changed::default() })
    }

    /// Where packets of ours go.
    pub fn watch(&mut self, destinations: Vec<IpAddr>) {
        self.changes.watch(destinations);
    }

    /// Returns when something has changed and no more word is expected, with what it was. Cancel safe.
    pub async fn debounced(&mut self, clock: Clock) -> Changed {
        while self.due.is_none() {
            if self.changes.wait(&mut self.changed).await {
                self.due = Some((clock.elapsed() + SETTLE).max(self.last + BREATHE));
            }
        }
        if let Some(due) = self.due {
            let due = clock.instant(due);
            // What comes in the meantime is read with this one.
            while tokio::time::timeout_at(due, self.changes.wait(&mut self.changed)).await.is_ok() {
            }
        }
        self.due = None;
        self.last = clock.elapsed();
        std::mem::take(&mut self.changed)
    }
}
