//! The hellos of a client that have no answer yet.

use std::time::Duration;

use crate::wire::control::Tag;

/// How many hellos an answer may be to.
const MOST: usize = 8;

/// How long an answer may take. One that was held back for longer says nothing about the present.
const LONGEST: Duration = Duration::from_secs(10);

/// A hello that was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    tag: Tag,
    /// CLOCK_BOOTTIME.
    pub at: Duration,
    /// Hellos are numbered as they are made.
    pub number: u64,
    /// A challenge came for it.
    pub is_challenged: bool,
}

/// The last hellos, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Outstanding {
    sent: Vec<Sent>,
    last: u64,
}

impl Outstanding {
    /// Notes a hello that is sent now.
    pub fn sent(&mut self, tag: Tag, now: Duration) {
        if self.sent.len() >= MOST {
            self.sent.remove(0);
        }
        self.last += 1;
        self.sent.push(Sent { tag, at: now, number: self.last, is_challenged: false });
    }

    /// The hello that an answer is to, if that still counts.
    pub fn find(&mut self, echo: &Tag, now: Duration) -> Option<&mut Sent> {
        self.sent.retain(|sent| now.saturating_sub(sent.at) <= LONGEST);
        self.sent.iter_mut().find(|sent| sent.tag == *echo)
    }

    /// Takes no further answer to this hello and to older ones.
    pub fn close(&mut self, number: u64) {
        self.sent.retain(|sent| sent.number > number);
    }

    /// The number of the last hello.
    pub fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_counts_for_ten_seconds() {
        let mut outstanding = Outstanding::default();
        outstanding.sent([1; 16], at(5));
        outstanding.sent([2; 16], at(6));
        assert_eq!(outstanding.find(&[1; 16], at(15)).map(|sent| sent.number), Some(1));
        let late = at(15) + Duration::from_nanos(1);
        assert!(outstanding.find(&[1; 16], late).is_none());
        assert_eq!(outstanding.find(&[2; 16], late).map(|sent| sent.number), Some(2));
        assert!(outstanding.find(&[3; 16], late).is_none());
    }

    #[test]
    fn no_more_than_eight_hellos_wait_for_an_answer() {
        let mut outstanding = Outstanding::default();
        (1..=9).for_each(|tag| outstanding.sent([tag; 16], at(5)));
        assert!(outstanding.find(&[1; 16], at(5)).is_none());
        assert!((2..=9).all(|tag| outstanding.find(&[tag; 16], at(5)).is_some()));
    }

    #[test]
    fn closing_a_hello_closes_the_older_ones() {
        let mut outstanding = Outstanding::default();
        (1..=3).for_each(|tag| outstanding.sent([tag; 16], at(5)));
        outstanding.close(2);
        assert!(outstanding.find(&[1; 16], at(5)).is_none());
        assert!(outstanding.find(&[2; 16], at(5)).is_none());
        assert!(outstanding.find(&[3; 16], at(5)).is_some());
        assert_eq!(outstanding.last(), 3);
    }
}
