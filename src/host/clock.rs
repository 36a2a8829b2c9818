//! The clocks and the random numbers that are handed to the engine.

#![allow(clippy::disallowed_methods)] // the room that owns them

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

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
        Ok(Now { monotonic, boot: since_boot(), unix: unix.as_secs(), started, random })
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// The instant at which `elapsed` has passed.
    pub fn instant(&self, elapsed: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0 + elapsed)
    }
}

/// Time since the boot of the machine, with the time that it slept (`CLOCK_BOOTTIME`, clock_gettime(2)).
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Seconds since 1970; 0 while the clock is before that.
pub fn unix() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
