//! A limit on repeated log lines: nothing from the network can fill a disk.

use std::collections::BTreeMap;
use std::time::Duration;

/// Lets one line of each kind pass per interval, and counts the others.
#[derive(Debug)]
pub struct Limiter<K> {
    every: Duration,
    seen: BTreeMap<K, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    last: Duration,
    held_back: u64,
}

impl<K: Ord> Limiter<K> {
    /// The number of kinds must be bounded by the caller.
    pub fn new(every: Duration) -> Self {
        Limiter { every, seen: BTreeMap::new() }
    }

    /// Whether a line may pass at `now`; if so, how many were held back since the last.
    pub fn pass(&mut self, kind: K, now: Duration) -> Option<u64> {
        let fresh = Seen { last: now, held_back: 0 };
        let Some(seen) = self.seen.get_mut(&kind) else {
            self.seen.insert(kind, fresh);
            return Some(0);
        };
        if now < seen.last + self.every {
            seen.held_back += 1;
            return None;
        }
        let held_back = seen.held_back;
        *seen = fresh;
        Some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_kind_per_interval() {
        let second = Duration::from_secs;
        let mut limiter = Limiter::new(second(10));
        assert_eq!(limiter.pass("a", second(0)), Some(0));
        assert_eq!(limiter.pass("a", second(1)), None);
        assert_eq!(limiter.pass("a", second(9)), None);
        assert_eq!(limiter.pass("b", second(9)), Some(0));
        assert_eq!(limiter.pass("a", second(10)), Some(2));
        assert_eq!(limiter.pass("a", second(20)), Some(0));
    }
}
