//! One instant, as the caller of the engine sees it.

use std::time::Duration;

use crate::auth::ServerTime;
use crate::wire::auth_packet::SALT_LEN;

/// By how many seconds a clock that is kept right (ntpd, chronyd) may be set back.
const CLOCK_CORRECTION: u64 = 120;

/// One instant: both clocks, and fresh random bytes. Each call of [`Engine::handle`](super::Engine::handle) needs its own.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Time since the process started, by a clock that never goes back.
    pub monotonic: Duration,
    /// Time since the boot of the machine, by a clock that goes on while the machine sleeps
    /// (`CLOCK_BOOTTIME`): leases are counted by it.
    pub boot: Duration,
    /// Unix time in seconds, by a clock that may be set at any time.
    pub unix: u64,
    /// Unix time of the start of the process, by the clock as it is set now. (The difference of two
    /// times in whole seconds may be a second off.)
    pub started: u64,
    /// Random bytes that were never used before and that nobody else knows: salts are taken from
    /// them.
    pub random: [u8; 64],
}

impl Now {
    /// How long ago a Unix time was. When the clock went back behind it by more than a correction, nobody
    /// knows: longer than anything lasts.
    pub(crate) fn since(&self, unix: u64) -> Duration {
        if unix.saturating_sub(self.unix) > CLOCK_CORRECTION {
            return Duration::MAX;
        }
        Duration::from_secs(self.unix.saturating_sub(unix))
    }

    /// The clock that packets are held against.
    pub(crate) fn server_time(&self) -> ServerTime {
        ServerTime { now: self.unix, start: self.started }
    }

    /// Salts to choose from.
    pub(crate) fn salts(&self) -> impl Iterator<Item = [u8; SALT_LEN]> {
        self.random.as_chunks().0.iter().copied()
    }
}
