//! Word of changes on the host comes in bursts, and one reading answers a burst.

use std::io;
use std::time::Duration;

use super::clock::Clock;
use crate::kernel::Changes;

/// After word of a change, how long more word is waited for before the host is read.
const SETTLE: Duration = Duration::from_millis(20);
/// At least this much time is between two readings that changes ask for.
const BREATHE: Duration = Duration::from_millis(200);
/// Word of changes, gathered: many come at once.
pub struct Settling {
    changes: Changes,
    due: Option<Duration>,
    last: Duration,
}

impl Settling {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        Ok(Settling { changes: Changes::open()?, due: None, last: Duration::ZERO })
    }

    /// Returns when something has changed and no more word is expected. Cancel safe.
    pub async fn settled(&mut self, clock: Clock) {
        if self.due.is_none() {
            self.changes.wait().await;
            self.due = Some((clock.elapsed() + SETTLE).max(self.last + BREATHE));
        }
        if let Some(due) = self.due {
            let due = clock.instant(due);
            // What comes in the meantime is read with this one.
            while tokio::time::timeout_at(due, self.changes.wait()).await.is_ok() {}
        }
        self.due = None;
        self.last = clock.elapsed();
    }
}
