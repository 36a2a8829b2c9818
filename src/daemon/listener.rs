//! A socket at which a process listens for commands. Errors that pass do not end that.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::host::clock::Clock;
use crate::observe::rate::Limiter;

/// The pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(500);

/// The least time between two log lines about that.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A connection, and the place that it takes until it is served.
pub type Connected = (UnixStream, OwnedSemaphorePermit);

/// A listening socket; removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    places: Arc<Semaphore>,
    clock: Clock,
    /// Log lines about connections that cannot be taken.
    warnings: Limiter<()>,
}

impl Listener {
    /// Listens at `path`, for this user only. What is there is replaced. At most `places`
    /// connections are served at a time.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path, places: usize) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let path = path.to_owned();
        let places = Arc::new(Semaphore::new(places));
        // It is removed again if this fails.
        let (clock, warnings) = (Clock::start(), Limiter::new(TELL_EVERY, 1));
        let listener = Listener { listener, path, places, clock, warnings };
        fs::set_permissions(&listener.path, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Waits for a place and for the next connection. Where the kernel has none to give, as without a
    /// free descriptor (`EMFILE`, `ENFILE`) or memory, that is logged once and tried again. Cancel safe.
    pub async fn accept(&mut self) -> Connected {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return std::future::pending().await; // nobody closes it
            };
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(e) => self.warn(&e),
            }
            drop(place);
            sleep(PAUSE).await;
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if self.warnings.pass((), self.clock.elapsed()).is_some() {
            let path = self.path.display();
            tracing::warn!("{path}: nobody can ask anything for now: {error}; trying again");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // it is fine if it is gone already
    }
}
