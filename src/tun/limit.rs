//! Token buckets: so many packets a second from one address, in memory of a fixed size.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use super::wake::millis;

/// Addresses that share a bucket share its tokens; which ones do, nobody outside can know.
const BUCKETS: usize = 4096;

/// Buckets of `per_second` tokens, filled up again within a second.
pub struct Limit {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    per_second: u32,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In thousandths.
    tokens: u32,
    /// Milliseconds of the clock.
    filled: u64,
}

impl Limit {
    pub fn new(per_second: u32) -> Self {
        let full = Bucket { tokens: per_second.saturating_mul(1000), filled: 0 };
        Limit { buckets: vec![full; BUCKETS].into(), hasher: RandomState::new(), per_second }
    }

    /// Whether one more packet from `source` may pass.
    pub fn passes(&mut self, source: IpAddr, now: Duration) -> bool {
        let number = usize::try_from(self.hasher.hash_one(source) % BUCKETS as u64);
        let Some(bucket) = number.ok().and_then(|n| self.buckets.get_mut(n)) else { return false };
        let now = millis(now);
        let passed = now.saturating_sub(bucket.filled).min(1000);
        let most = self.per_second.saturating_mul(1000);
        // So many thousandths of a token a millisecond.
        let earned = u32::try_from(passed).unwrap_or(1000).saturating_mul(self.per_second);
        bucket.tokens = bucket.tokens.saturating_add(earned).min(most);
        bucket.filled = now;
        match bucket.tokens.checked_sub(1000) {
            Some(rest) => {
                bucket.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limit = Limit::new(50);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let at = Duration::from_millis;
        let passed = |limit: &mut Limit, source, now| {
            (0..200).filter(|_| limit.passes(source, at(now))).count()
        };
        assert_eq!(passed(&mut limit, one, 0), 50);
        // One bucket of 4096 is shared with a probability of 1 / 4096.
        assert!(matches!(passed(&mut limit, other, 0), 50 | 0));
        assert_eq!(passed(&mut limit, one, 100), 5);
        assert_eq!(passed(&mut limit, one, 130), 1);
        assert_eq!(passed(&mut limit, one, 140), 1);
        assert_eq!(passed(&mut limit, one, 3_600_000), 50);
    }
}
