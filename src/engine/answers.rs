//! Limits how often a remote is answered. Its packet may be the answer to our answer: two servers
//! must not talk without end.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// How many answers a remote gets at most within [`ANSWERED_FOR`] of the first.
const MAX_ANSWERS: u32 = 3;
const ANSWERED_FOR: Duration = Duration::from_secs(5);

/// The answers of the last seconds.
#[derive(Debug, Default)]
pub struct Answers {
    given: BTreeMap<SocketAddr, u32>,
    /// When each of them got its first, the oldest at the front.
    first: VecDeque<(Duration, SocketAddr)>,
}

impl Answers {
    /// Whether `remote` gets another one, which is counted.
    pub fn allow(&mut self, remote: SocketAddr, now: Duration) -> bool {
        while let Some(&(first, old)) = self.first.front()
            && now.saturating_sub(first) >= ANSWERED_FOR
        {
            self.first.pop_front();
            self.given.remove(&old);
        }
        let given = self.given.entry(remote).or_insert_with(|| {
            self.first.push_back((now, remote));
            0
        });
        let allowed = *given < MAX_ANSWERS;
        *given += u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_gets_three_answers_within_five_seconds() {
        let mut answers = Answers::default();
        let remote = |last: u8| SocketAddr::from(([192, 0, 2, last], 1000));
        let mut allow = |last, second| answers.allow(remote(last), Duration::from_secs(second));
        assert_eq!(
            [0, 1, 2, 3, 4].map(|second| allow(1, second)),
            [true, true, true, false, false]
        );
        assert!(allow(2, 4));
        assert_eq!([5, 5, 5, 5].map(|second| allow(1, second)), [true, true, true, false]);
        assert_eq!([8, 8, 8, 9].map(|second| allow(2, second)), [true, true, false, true]);
    }
}
