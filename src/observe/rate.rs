//! A limit on repeated log lines: nothing from the network can fill a disk.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

/// How many kinds are distinguished; further ones are not logged while all of these are in use.
const MAX_KINDS: usize = 64;

/// Lets some lines of each kind pass per interval, and counts the others.
#[derive(Debug)]
pub struct Limiter<K> {
    every: Duration,
    burst: u32,
    seen: HashMap<K, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    since: Duration,
    passed: u32,
    held_back: u64,
}

impl<K: Eq + Hash> Limiter<K> {
    pub fn new(every: Duration, burst: u32) -> Self {
        Limiter { every, burst, seen: HashMap::new() }
    }

    /// Whether a line may pass at `now`; if so, how many were held back since the last one.
    pub fn pass(&mut self, kind: K, now: Duration) -> Option<u64> {
        let every = self.every;
        let is_over = |seen: &Seen| now >= seen.since + every;
        if self.seen.len() >= MAX_KINDS && !self.seen.contains_key(&kind) {
            self.seen.retain(|_, seen| !is_over(seen));
            if self.seen.len() >= MAX_KINDS {
                return None;
            }
        }
        let fresh = Seen { since: now, passed: 0, held_back: 0 };
        let seen = self.seen.entry(kind).or_insert(fresh);
        if is_over(seen) {
            (seen.since, seen.passed) = (now, 0);
        }
        if seen.passed >= self.burst {
            seen.held_back += 1;
            return None;
        }
        seen.passed += 1;
        Some(std::mem::take(&mut seen.held_back))
    }
}

/// Failures that last: what fails in the same words as a moment ago is no news.
#[derive(Debug)]
pub struct Lasting {
    /// After such a silence a failure is another one.
    silence: Duration,
    /// When each failed last.
    last: HashMap<String, Duration>,
}

impl Lasting {
    pub fn new(silence: Duration) -> Self {
        Lasting { silence, last: HashMap::new() }
    }

    /// Notes a failure; whether it did not last before.
    pub fn is_news(&mut self, text: &str, now: Duration) -> bool {
        let silence = self.silence;
        self.last.retain(|_, last| now < *last + silence);
        if let Some(last) = self.last.get_mut(text) {
            *last = now;
            return false;
        }
        if self.last.len() < MAX_KINDS {
            self.last.insert(text.to_owned(), now);
        }
        true
    }

    /// Notes that what failed works now; whether there was a failure that begins like this.
    pub fn is_over(&mut self, start: fmt::Arguments<'_>) -> bool {
        if self.last.is_empty() {
            return false; // as nearly always
        }
        let (start, before) = (start.to_string(), self.last.len());
        self.last.retain(|text, _| !text.starts_with(&start));
        self.last.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn some_lines_of_each_kind_pass_per_interval() {
        let mut limiter = Limiter::new(10 * SECOND, 1);
        assert_eq!(limiter.pass("a", Duration::ZERO), Some(0));
        assert_eq!(limiter.pass("a", SECOND), None);
        assert_eq!(limiter.pass("a", 9 * SECOND), None);
        assert_eq!(limiter.pass("b", 9 * SECOND), Some(0));
        assert_eq!(limiter.pass("a", 10 * SECOND), Some(2));
        assert_eq!(limiter.pass("a", 20 * SECOND), Some(0));
        let mut limiter = Limiter::new(10 * SECOND, 3);
        let passed =
            |limiter: &mut Limiter<_>, now| (0..9).filter_map(|_| limiter.pass("a", now)).count();
        assert_eq!(passed(&mut limiter, SECOND), 3);
        assert_eq!(passed(&mut limiter, 10 * SECOND), 0);
        assert_eq!(limiter.pass("a", 11 * SECOND), Some(15));
    }

    #[test]
    fn what_lasts_is_news_once() {
        let mut lasting = Lasting::new(10 * SECOND);
        assert!(lasting.is_news("cannot a: x", SECOND) && lasting.is_news("cannot b: x", SECOND));
        assert!((2..60).all(|second| !lasting.is_news("cannot a: x", second * SECOND)));
        assert!(lasting.is_news("cannot a: y", 60 * SECOND), "for another reason");
        assert!(lasting.is_news("cannot b: x", 60 * SECOND), "it had gone");
        assert!(lasting.is_over(format_args!("cannot a:")));
        assert!(!lasting.is_over(format_args!("cannot a:")));
        assert!(lasting.is_news("cannot a: x", 60 * SECOND));
        for kind in 0..1000 {
            lasting.is_news(&kind.to_string(), 61 * SECOND);
        }
        assert_eq!(lasting.last.len(), MAX_KINDS);
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let mut limiter = Limiter::new(10 * SECOND, 1);
        let passed = (0..1000).filter_map(|kind| limiter.pass(kind, SECOND)).count();
        assert_eq!((passed, limiter.seen.len()), (MAX_KINDS, MAX_KINDS));
        assert_eq!(limiter.pass(5000, 11 * SECOND), Some(0));
        assert_eq!(limiter.seen.len(), 1);
    }
}
