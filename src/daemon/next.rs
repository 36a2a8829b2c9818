//! Waits for the next thing that happens to a tunnel of any kind, and acts on it.

use std::io;
use std::net::SocketAddr;

use tokio::time::sleep_until;

use super::Failure;
use super::debounce::DebouncedChanges;
use super::process::Process;
use crate::engine::driver::Driver as _;
use crate::engine::{Event, Writing};
use crate::host::{Changed, clock};

/// What happened.
pub enum Next {
    /// Something is due.
    Deadline,
    /// The memory was written, or the disk refused it.
    Written(Writing, io::Result<()>),
    /// The host changed.
    Changed(Changed),
    /// A packet came that is not data; `None`: no more will come.
    Datagram(Option<(SocketAddr, Vec<u8>)>),
    /// The path to a remote has become narrower.
    Narrower,
}

impl Process<'_> {
    /// Waits for what happens next. Safe to cancel.
    pub async fn next(&mut self, changes: &mut DebouncedChanges) -> Next {
        let deadline = self.clock.instant(self.engine.next_deadline());
        changes.watch(self.destinations());
        let narrower = self.datapath.narrower();
        let narrower = async {
            match &narrower {
                Some(narrower) => narrower.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = sleep_until(deadline) => Next::Deadline,
            (writing, result) = self.memory.written(&mut self.engine) => {
                Next::Written(writing, result)
            }
            changed = changes.debounced(self.clock) => Next::Changed(changed),
            () = narrower => Next::Narrower,
            // This is last, because anybody can send as many packets as they like.
            datagram = self.datapath.next_control() => Next::Datagram(datagram),
        }
    }

    /// Does what follows; true at the end.
    ///
    /// # Errors
    /// When authentication packets cannot arrive any more.
    pub async fn follow(&mut self, next: Next) -> Result<bool, Failure> {
        match next {
            Next::Deadline => Ok(self.meet_deadline().await),
            Next::Written(writing, result) => Ok(self.written(writing, result).await),
            Next::Changed(changed) => Ok(self.host_changed(changed).await),
            Next::Narrower => Ok(self.look().await),
            Next::Datagram(Some((from, payload))) => {
                Ok(self.handle(Event::Datagram { from, payload: &payload }).await)
            }
            Next::Datagram(None) => {
                let _ = self.end().await;
                Err(Failure::Generic("the NFQUEUE broke; see above".to_owned()))
            }
        }
    }

    /// Whether something is due now.
    pub fn is_due(&self) -> bool {
        self.clock.elapsed() >= self.engine.next_deadline()
    }

    /// Does what is due; true at the end.
    pub async fn meet_deadline(&mut self) -> bool {
        let done = self.handle(Event::Deadline).await;
        self.old.follow_time(clock::unix());
        done
    }
}
