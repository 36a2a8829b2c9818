//! Coalesces bursts of notifications about changes on the host, so that one reading covers them all.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::host::clock::Clock;
use crate::host::{Changed, Changes, Subjects};

/// How long to wait for more notifications after one, before the host is read.
const SETTLE: Duration = Duration::from_millis(20);
/// The least time between two readings that notifications cause.
const BREATHE: Duration = Duration::from_millis(200);

/// Notifications, gathered: many come at once.
pub struct DebouncedChanges {
    changes: Changes,
    due: Option<Duration>,
    last: Duration,
    changed: Changed,
}

impl DebouncedChanges {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(subjects: Subjects) -> io::Result<Self> {
        let (changes, last) = (Changes::open(subjects)?, Duration::ZERO);
        Ok(DebouncedChanges { changes, due: None, last, changed: Changed::default() })
    }

    /// Sets the destinations of this tunnel's packets.
    pub fn watch(&mut self, destinations: Vec<IpAddr>) {
        self.changes.watch(destinations);
    }

    /// Returns what has changed once no more notifications are expected. Cancel safe.
    pub async fn debounced(&mut self, clock: Clock) -> Changed {
        while self.due.is_none() {
            if self.changes.wait(&mut self.changed).await {
                self.due = Some((clock.elapsed() + SETTLE).max(self.last + BREATHE));
            }
        }
        if let Some(due) = self.due {
            let due = clock.instant(due);
            // What changes in the meantime is covered by the same reading.
            while tokio::time::timeout_at(due, self.changes.wait(&mut self.changed)).await.is_ok() {
            }
        }
        self.due = None;
        self.last = clock.elapsed();
        std::mem::take(&mut self.changed)
    }
}
