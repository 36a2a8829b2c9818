//! The clocks and the random numbers that are handed to the engine.

#![allow(clippy::disallowed_methods)] // the room that owns them

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::engine::Now;

/// A clock that counts from the start of the process.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// # Errors
    /// When the kernel has no random numbers yet, early in the boot of a broken machine.
    pub fn now(&self) -> Result<Now, getrandom::Error> {
        let mut random = [0; 64];
        getrandom::fill(&mut random)?;
        let monotonic = self.elapsed();
        let unix = since_1970();
        let started = unix.saturating_sub(monotonic).as_secs();
        Ok(Now { monotonic, unix: unix.as_secs(), started, random })
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// The instant at which `elapsed` has passed.
    pub fn instant(&self, elapsed: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0 + elapsed)
    }
}

/// Seconds since 1970; 0 while the clock is before that.
pub fn unix() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
