//! Token buckets on the time that is passed in.

use std::time::Duration;

/// How fast tokens come, and how many can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// From one token to the next.
    pub interval: Duration,
    /// How many tokens a bucket holds at most, and at the start.
    pub burst: u32,
}

/// A bucket of tokens, full at the start. It is as large as the one time it keeps, so that each of
/// thousands of peers can have one; its [`Rate`] is given with each call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// When it will be full, if nothing more is taken.
    full_at: Duration,
}

impl Rate {
    /// The time in which an empty bucket becomes full.
    fn capacity(self) -> Duration {
        self.interval.saturating_mul(self.burst)
    }
}

impl Bucket {
    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let has_token = self.has_token(rate, now);
        if has_token {
            self.full_at = self.full_at.max(now).saturating_add(rate.interval);
        }
        has_token
    }

    /// Whether there is a token to take.
    pub fn has_token(&self, rate: Rate, now: Duration) -> bool {
        self.left(rate, now) >= rate.interval
    }

    /// Takes a token; of a bucket that is less than half full by lot, and the less is left the rarer. Where
    /// more is asked for than there is, it settles where as many are drawn as come, and does not become
    /// empty. So everybody who asks has the same chance, even beside somebody whose packets arrive as
    /// regularly as the tokens.
    pub fn take_by_lot(&mut self, rate: Rate, now: Duration, lot: impl FnOnce() -> u32) -> bool {
        let (left, half) = (self.left(rate, now), rate.capacity() / 2);
        let is_drawn = left >= half || {
            let drawn = half.as_nanos().saturating_mul(lot().into());
            drawn < left.as_nanos() << u32::BITS
        };
        is_drawn && self.take(rate, now)
    }

    /// What is in it, as the time in which that came.
    fn left(&self, rate: Rate, now: Duration) -> Duration {
        rate.capacity().saturating_sub(self.full_at.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { interval: Duration::from_millis(100), burst: 20 };

    fn at(millis: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(millis)
    }

    fn taken(bucket: &mut Bucket, asked: usize, now: Duration) -> usize {
        (0..asked).filter(|_| bucket.take(RATE, now)).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, 100, at(0)), 20);
        assert!(!bucket.has_token(RATE, at(99)));
        assert!(bucket.has_token(RATE, at(100)));
        assert_eq!(taken(&mut bucket, 100, at(350)), 3);
        assert_eq!(taken(&mut bucket, 100, at(400)), 1, "half a token was left");
        // It holds no more than its burst.
        assert_eq!(taken(&mut bucket, 100, at(100_000)), 20);
    }

    #[test]
    fn a_bucket_that_is_half_full_is_not_drawn_by_lot() {
        let mut bucket = Bucket::default();
        let taken = (0..20).filter(|_| bucket.take_by_lot(RATE, at(0), || u32::MAX)).count();
        assert_eq!(taken, 11);
        assert!(bucket.take_by_lot(RATE, at(0), || 0));
        assert!(!bucket.take_by_lot(RATE, at(0), || u32::MAX));
    }

    #[test]
    fn an_empty_bucket_gives_nothing_by_lot() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, 20, at(0)), 20);
        assert!(!bucket.take_by_lot(RATE, at(0), || 0));
        assert!(!bucket.take_by_lot(RATE, at(99), || 0));
        assert!(bucket.take_by_lot(RATE, at(100), || 0));
    }

    /// The flood asks exactly when a token comes, the other one right after it.
    #[test]
    fn a_regular_flood_leaves_others_their_share() {
        let rate = Rate { interval: Duration::from_micros(50), burst: 20_000 };
        let (mut bucket, mut lot) = (Bucket::default(), 1u32);
        let mut draw = |now| {
            bucket.take_by_lot(rate, now, || {
                lot = lot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                lot
            })
        };
        let (mut flood, mut others) = (0u32, 0u32);
        // 100,000 a second; one in a hundred comes just after.
        for n in 0..500_000u64 {
            let now = at(0) + Duration::from_micros(10) * u32::try_from(n).unwrap();
            let is_settled = n >= 300_000;
            let drawn = draw(now);
            flood += u32::from(drawn && is_settled);
            if n % 100 == 0 {
                others += u32::from(draw(now + Duration::from_nanos(1)) && is_settled);
            }
        }
        // Both have 20,000 of 101,000 in each of the last two seconds.
        assert!((38_000..=41_000).contains(&flood), "{flood}");
        assert!((300..=500).contains(&others), "{others} of 2,000");
    }
}
