//! The addresses of the names in a host table, looked up again and again because hosts move.
//!
//! Each name has its own schedule: no name waits for another whose server does not answer, and reading
//! the table again does not start another lookup of a name that is known or being looked up. Times
//! count from the start of the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::engine::config::HostName;
use crate::engine::host::Family;

/// How many lookups run at a time: a resolver that answers sees no more at once.
const AT_ONCE: usize = 16;
/// A lookup without an answer by then goes on, but the next name gets its turn.
const TURN: Duration = Duration::from_secs(1);
/// The most lookups in progress: each is a waiting thread, and the runtime has 512.
const MOST: usize = 128;
/// A name without an answer by then counts as one that cannot be looked up. A later answer is used.
const DEADLINE: Duration = Duration::from_secs(5);
/// From the end of a lookup to the next one.
const AGAIN: Duration = Duration::from_secs(60);
/// The same pause after a lookup that failed.
const RETRY: Duration = Duration::from_secs(10);
/// How many failing names are logged one by one in each interval; after it, the number of the others
/// is.
const TELL: usize = 10;
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A resolver's answer.
pub type Answer = io::Result<Vec<IpAddr>>;

/// What is known about the names of a table, and which is looked up next.
#[derive(Debug)]
pub struct Lookups {
    known: BTreeMap<String, Known>,
    /// Names that are due, by the end of their last lookup: the one that waited longest comes first.
    waiting: BTreeSet<(Option<Duration>, String)>,
    /// Names that are not due yet, by the time when they are.
    later: BTreeSet<(Duration, String)>,
    /// Names that are being looked up, in the order in which their lookups began.
    running: VecDeque<Running>,
    /// The family to which packets from our outer address can go.
    family: Family,
    /// Names that failed since the first recent line about failures, and when that line was logged.
    failed: usize,
    told: Option<Duration>,
}

#[derive(Debug, Default)]
struct Known {
    address: Option<IpAddr>,
    problem: Option<String>,
    /// The end of the last lookup, or its deadline.
    last: Option<Duration>,
}

#[derive(Debug)]
struct Running {
    name: String,
    since: Duration,
    /// The deadline has passed.
    late: bool,
    /// The name was requested again meanwhile: the answer may be an old one.
    again: bool,
}

impl Lookups {
    pub fn new(family: Family) -> Self {
        Lookups {
            known: BTreeMap::new(),
            waiting: BTreeSet::new(),
            later: BTreeSet::new(),
            running: VecDeque::new(),
            family,
            failed: 0,
            told: None,
        }
    }

    /// Sets the family of the addresses that packets go to from now on.
    pub fn set_family(&mut self, family: Family) {
        self.family = family;
        self.all_again();
    }

    pub fn can_use(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family
    }

    /// The address to which packets for a host go.
    pub fn address_of(&self, host: &HostName) -> Option<IpAddr> {
        let address = match host {
            HostName::Address(address) => Some(*address),
            HostName::Name(name) => self.known.get(name)?.address,
        };
        address.filter(|address| self.can_use(*address))
    }

    /// Takes the names of a table: new ones are looked up, those that are no longer in it are
    /// forgotten, and nothing changes for the others.
    pub fn take(&mut self, names: &BTreeSet<&str>) {
        self.known.retain(|name, _| names.contains(name.as_str()));
        self.waiting.retain(|(_, name)| names.contains(name.as_str()));
        self.later.retain(|(_, name)| names.contains(name.as_str()));
        for name in names {
            if self.known.contains_key(*name) {
                continue;
            }
            self.known.insert((*name).to_owned(), Known::default());
            // It may have been in an earlier table, and its lookup may still be in progress.
            if !self.running.iter().any(|running| running.name == *name) {
                self.waiting.insert((None, (*name).to_owned()));
            }
        }
    }

    /// Makes all names due now.
    pub fn all_again(&mut self) {
        for (_, name) in std::mem::take(&mut self.later) {
            let last = self.known.get(&name).and_then(|known| known.last);
            self.waiting.insert((last, name));
        }
        self.running.iter_mut().for_each(|running| running.again = true);
    }

    /// Whether there is a name that was never looked up to the end.
    pub fn has_new(&self) -> bool {
        let is_new = |name: &String| self.known.get(name).is_some_and(|known| known.last.is_none());
        // Such names are the first of those that wait.
        self.waiting.first().is_some_and(|(last, _)| last.is_none())
            || self.running.iter().any(|running| is_new(&running.name))
    }

    /// Starts the next lookup and returns its name; `None` if all are in progress or have to wait.
    pub fn next(&mut self, now: Duration) -> Option<String> {
        while self.later.first().is_some_and(|(due, _)| *due <= now) {
            let (_, name) = self.later.pop_first()?;
            let last = self.known.get(&name).and_then(|known| known.last);
            self.waiting.insert((last, name));
        }
        let at_turn = self.running.iter().rev().take_while(|r| now < r.since + TURN).count();
        if at_turn >= AT_ONCE || self.running.len() >= MOST {
            return None;
        }
        let (_, name) = self.waiting.pop_first()?;
        let running = Running { name: name.clone(), since: now, late: false, again: false };
        self.running.push_back(running);
        Some(name)
    }

    /// When there may be something to do even without an answer: [`Lookups::next`] and
    /// [`Lookups::expire`].
    pub fn wake_at(&self) -> Option<Duration> {
        let due = self.later.first().map(|(due, _)| *due);
        let deadline = self.running.iter().find(|r| !r.late).map(|r| r.since + DEADLINE);
        let turn = match self.running.len() {
            few if few < AT_ONCE => None,
            many if many < MOST && !self.waiting.is_empty() => {
                self.running.get(many - AT_ONCE).map(|running| running.since + TURN)
            }
            _ => None,
        };
        let told = self.told.map(|told| told + TELL_EVERY);
        [due, deadline, turn, told].into_iter().flatten().min()
    }

    /// Notes which names have no answer by their deadline, and logs how many failures were not logged.
    pub fn expire(&mut self, now: Duration) {
        let late = self.running.iter_mut().filter(|r| !r.late && r.since + DEADLINE <= now);
        let late: Vec<String> = late
            .map(|running| {
                running.late = true;
                running.name.clone()
            })
            .collect();
        for name in late {
            let seconds = DEADLINE.as_secs();
            self.failed(&name, format!("no answer for {seconds} s"), now);
        }
        if self.told.is_some_and(|told| told + TELL_EVERY <= now) {
            self.told = None;
            let more = std::mem::take(&mut self.failed).saturating_sub(TELL);
            if more > 0 {
                tracing::warn!("cannot look up {more} more names either");
            }
        }
    }

    /// Takes an answer. An address that is still among the answers is kept, and so is one whose name
    /// cannot be looked up any longer: it is more often the resolver that is down than the host that is
    /// gone. Returns whether the name has another address now.
    pub fn note(&mut self, name: &str, answer: Answer, now: Duration) -> bool {
        let Some(at) = self.running.iter().position(|r| r.name == name) else { return false };
        let Some(ended) = self.running.remove(at) else { return false };
        if !self.known.contains_key(name) {
            return false; // it is no longer in the table
        }
        let family = self.family;
        let usable = answer.and_then(|mut addresses| {
            addresses.retain(|address| Family::of(*address) == family);
            match addresses.is_empty() {
                true => Err(io::Error::other("it has no address that ours can send to")),
                false => Ok(addresses),
            }
        });
        let (changed, pause) = match usable {
            Ok(addresses) => (self.found(name, &addresses, now), AGAIN),
            Err(error) => {
                // An error after the deadline adds nothing.
                if !ended.late {
                    self.failed(name, error.to_string(), now);
                }
                (false, RETRY)
            }
        };
        match ended.again {
            true => self.waiting.insert((Some(now), name.to_owned())),
            false => self.later.insert((now + pause, name.to_owned())),
        };
        changed
    }

    fn found(&mut self, name: &str, addresses: &[IpAddr], now: Duration) -> bool {
        let Some(known) = self.known.get_mut(name) else { return false };
        known.last = Some(now);
        if known.problem.take().is_some() {
            tracing::info!("{name} can be looked up again");
        }
        if known.address.is_some_and(|before| addresses.contains(&before)) {
            return false;
        }
        known.address = addresses.first().copied();
        true
    }

    fn failed(&mut self, name: &str, problem: String, now: Duration) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.last = Some(now);
        if known.problem.as_ref() != Some(&problem) {
            self.failed += 1;
            self.told.get_or_insert(now);
            let until = match known.address {
                Some(address) => format!("{address} stays"),
                None => "its node is left out".to_owned(),
            };
            match self.failed <= TELL {
                true => tracing::warn!("cannot look up {name}: {problem}; {until}"),
                false => tracing::debug!("cannot look up {name}: {problem}; {until}"),
            }
        }
        known.problem = Some(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn host(name: &str) -> HostName {
        HostName::Name(name.to_owned())
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("n{i:04}")).collect()
    }

    fn taken<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
        names.into_iter().map(String::as_str).collect()
    }

    /// Starts all lookups that may begin now.
    fn begin(lookups: &mut Lookups, now: Duration) -> Vec<String> {
        std::iter::from_fn(|| lookups.next(now)).collect()
    }

    fn unknown() -> Answer {
        Err(io::Error::other("nobody knows"))
    }

    #[test]
    fn an_unanswered_lookup_does_not_delay_the_next() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        let names = names(1000);
        lookups.take(&taken(&names));
        assert_eq!(begin(&mut lookups, start), names[..16]);
        assert_eq!(lookups.wake_at(), Some(start + TURN));
        for round in 1..8u32 {
            let now = start + round * SECOND;
            lookups.expire(now);
            assert_eq!(begin(&mut lookups, now).len(), 16);
        }
        // Each takes a thread, so no more begin until one ends.
        assert_eq!(begin(&mut lookups, start + 60 * SECOND).len(), 0);
        assert!(!lookups.note("n0003", unknown(), start + 60 * SECOND));
        assert_eq!(begin(&mut lookups, start + 60 * SECOND), ["n0128"]);
    }

    #[test]
    fn new_names_are_looked_up_before_failed_ones_and_those_by_age() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        let old = names(3);
        lookups.take(&taken(&old));
        assert_eq!(begin(&mut lookups, start), old);
        for (name, second) in [("n0002", 1), ("n0000", 2), ("n0001", 3)] {
            lookups.note(name, unknown(), start + second * SECOND);
        }
        let new = "young".to_owned();
        lookups.take(&taken(old.iter().chain([&new])));
        assert!(lookups.has_new());
        let order = begin(&mut lookups, start + 100 * SECOND);
        assert_eq!(order, ["young", "n0002", "n0000", "n0001"]);
    }

    #[test]
    fn reading_a_table_again_repeats_no_lookup() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        let (good, dead, more) = ("good".to_owned(), "dead".to_owned(), "more".to_owned());
        lookups.take(&taken([&good, &dead]));
        assert_eq!(begin(&mut lookups, start), ["dead", "good"]);
        assert!(lookups.note("good", Ok(vec![address(1), address(2)]), start));
        for second in 1..5 {
            lookups.take(&taken([&good, &dead, &more]));
            let begun = begin(&mut lookups, start + second * SECOND);
            assert_eq!(begun, if second == 1 { vec!["more"] } else { vec![] });
        }
        assert_eq!(lookups.address_of(&host("good")), Some(address(1)));
        // Another order alone is not a change, nor is a failure.
        assert_eq!(begin(&mut lookups, start + AGAIN), ["good"]);
        assert!(!lookups.note("good", Ok(vec![address(2), address(1)]), start + AGAIN));
        assert_eq!(begin(&mut lookups, start + 2 * AGAIN), ["good"]);
        assert!(!lookups.note("good", unknown(), start + 2 * AGAIN));
        assert_eq!(lookups.address_of(&host("good")), Some(address(1)));
        // A name that comes back while its lookup is still in progress does not get a second one.
        lookups.take(&taken([&good]));
        lookups.take(&taken([&good, &dead]));
        assert_eq!(begin(&mut lookups, start + 2 * AGAIN + SECOND), Vec::<String>::new());
        assert!(lookups.note("dead", Ok(vec![address(9)]), start + 2 * AGAIN + SECOND));
        assert_eq!(lookups.address_of(&host("dead")), Some(address(9)));
    }

    #[test]
    fn a_late_answer_counts_although_nothing_waits_for_it() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        lookups.take(&BTreeSet::from(["slow"]));
        assert_eq!(begin(&mut lookups, start), ["slow"]);
        assert!(lookups.has_new());
        assert_eq!(lookups.wake_at(), Some(start + DEADLINE));
        lookups.expire(start + DEADLINE);
        assert!(!lookups.has_new());
        assert_eq!(lookups.wake_at(), Some(start + DEADLINE + TELL_EVERY));
        assert!(lookups.note("slow", Ok(vec![address(1)]), start + 20 * SECOND));
        assert_eq!(lookups.address_of(&host("slow")), Some(address(1)));
    }

    #[test]
    fn a_lookup_under_way_is_repeated_when_all_are_requested() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        lookups.take(&BTreeSet::from(["a", "b"]));
        assert_eq!(begin(&mut lookups, start), ["a", "b"]);
        lookups.note("a", Ok(vec![address(1)]), start);
        lookups.all_again();
        assert_eq!(begin(&mut lookups, start), ["a"]);
        lookups.note("b", Ok(vec![address(2)]), start);
        assert_eq!(begin(&mut lookups, start), ["b"]);
    }

    #[test]
    fn addresses_of_the_other_family_are_ignored() {
        let (mut lookups, start) = (Lookups::new(Family::V4), Duration::from_secs(1000));
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        lookups.take(&BTreeSet::from(["a"]));
        begin(&mut lookups, start);
        assert!(!lookups.note("a", Ok(vec![v6]), start));
        assert_eq!(lookups.address_of(&HostName::Address(v6)), None);
        lookups.set_family(Family::V6);
        assert_eq!(begin(&mut lookups, start), ["a"]);
        assert!(lookups.note("a", Ok(vec![address(1), v6]), start));
        assert_eq!(lookups.address_of(&host("a")), Some(v6));
        assert_eq!(lookups.address_of(&HostName::Address(v6)), Some(v6));
    }
}
