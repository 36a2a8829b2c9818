//! Random bytes for one event, as many as it needs, from the 64 fresh ones that came with it.

use sha2::{Digest as _, Sha512};

use super::Now;

/// Expands the random bytes of an instant: SHA-512 over them and a counter.
pub struct Random {
    seed: [u8; 64],
    counter: u64,
}

impl Random {
    /// One for each event: a second one of the same instant would give the same bytes.
    pub fn of(now: &Now) -> Self {
        Random { seed: now.random, counter: 0 }
    }

    /// Fills `bytes` with some that were not given out before.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(64) {
            self.counter += 1;
            let digest = Sha512::new()
                .chain_update(b"ipipou random")
                .chain_update(self.seed)
                .chain_update(self.counter.to_be_bytes())
                .finalize();
            part.copy_from_slice(&digest[..part.len()]);
        }
    }
}
