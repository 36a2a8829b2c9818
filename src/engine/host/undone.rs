//! Slows down repairs that something undoes again and again: otherwise two managers of one thing would
//! never come to rest.

use std::collections::BTreeMap;
use std::time::Duration;

use super::step::Step;

/// A repair that follows the last one of its kind within this time was undone.
const WITHIN: Duration = Duration::from_secs(60);
/// How many repairs of one thing are reported.
const TOLD: u32 = 5;
/// How many times a thing is repaired at once: a person who tries things out never comes near it.
const AT_ONCE: u32 = 40;
/// The first pause after that; doubled each time, up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// The recent repairs, by what was repaired.
#[derive(Debug, Default)]
pub struct Undone(BTreeMap<String, Repaired>);

#[derive(Debug, Clone, Copy)]
struct Repaired {
    times: u32,
    last: Duration,
}

/// How a repair is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made and reported.
    Repair,
    /// It is made, and reported as undone many times; from now on it is made without a report.
    Last,
    /// It is made without a report, which was given before.
    Again,
}

impl Undone {
    /// Whether this was repaired a moment ago.
    pub fn knows(&self, step: &Step, now: Duration) -> bool {
        self.repaired(step, now).is_some()
    }

    /// Notes that a step failed, so it was not undone by anybody.
    pub fn failed(&mut self, step: &Step) {
        self.0.remove(&step.to_string());
    }

    fn repaired(&self, step: &Step, now: Duration) -> Option<&Repaired> {
        self.0.get(&step.to_string()).filter(|repaired| repaired.last + WITHIN > now)
    }

    /// Until when a repair that is due now has to wait, if it has to.
    pub fn wait(&self, step: &Step, now: Duration) -> Option<Duration> {
        let repaired = self.repaired(step, now)?;
        let more = repaired.times.saturating_sub(AT_ONCE);
        if more == 0 || step.guards() {
            return None;
        }
        let pause = PAUSE.saturating_mul(1 << more.min(16)).min(LONGEST);
        Some(repaired.last + pause).filter(|until| *until > now)
    }

    /// Notes a repair that is made now.
    pub fn made(&mut self, step: &Step, now: Duration) -> Verdict {
        self.0.retain(|_, repaired| repaired.last + WITHIN > now);
        let repaired = self.0.entry(step.to_string()).or_insert(Repaired { times: 0, last: now });
        *repaired = Repaired { times: repaired.times.saturating_add(1), last: now };
        match repaired.times.cmp(&TOLD) {
            std::cmp::Ordering::Less => Verdict::Repair,
            std::cmp::Ordering::Equal => Verdict::Last,
            std::cmp::Ordering::Greater => Verdict::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::step::{DnsStep, KernelStep};

    const STEP: Step = Step::Dns(DnsStep::Use);

    #[test]
    fn a_step_that_is_undone_repeatedly_is_repaired_less_often() {
        let mut undone = Undone::default();
        let (mut now, mut repairs, mut told) = (Duration::ZERO, 0, 0);
        while now < Duration::from_secs(600) {
            match undone.wait(&STEP, now) {
                Some(until) => assert!(until > now && until <= now + LONGEST),
                None => {
                    repairs += 1;
                    told += u32::from(undone.made(&STEP, now) != Verdict::Again);
                }
            }
            now += Duration::from_millis(200);
        }
        assert_eq!(told, 5);
        assert!((50..=80).contains(&repairs), "{repairs}");
        // If nothing undoes it for a while, it is forgotten.
        assert_eq!(undone.wait(&STEP, now + WITHIN), None);
        assert_eq!(undone.made(&STEP, now + WITHIN), Verdict::Repair);
    }

    #[test]
    fn a_repair_is_remembered_for_a_minute_and_a_failed_one_is_not() {
        let second = Duration::from_secs(1);
        let mut undone = Undone::default();
        assert!(!undone.knows(&STEP, Duration::ZERO));
        undone.made(&STEP, second);
        assert!(undone.knows(&STEP, 60 * second) && !undone.knows(&STEP, 61 * second));
        assert!(!undone.knows(&Step::Dns(DnsStep::Restore), second), "another one");
        undone.failed(&STEP);
        assert!(!undone.knows(&STEP, second));
    }

    #[test]
    fn forty_repairs_are_immediate_and_later_ones_after_growing_pauses() {
        let mut undone = Undone::default();
        let (mut now, mut pauses) = (Duration::ZERO, Vec::new());
        for _ in 0..47 {
            let until = undone.wait(&STEP, now).unwrap_or(now);
            pauses.push((until - now).as_secs());
            now = until;
            undone.made(&STEP, now);
        }
        assert_eq!(pauses[..41], [0; 41]);
        assert_eq!(pauses[41..], [1, 2, 4, 8, 16, 30]);
    }

    #[test]
    fn a_guard_is_never_delayed_and_is_reported_a_few_times() {
        let mut undone = Undone::default();
        let step = KernelStep::Admit(std::collections::BTreeSet::new()).into();
        let mut told = 0;
        for now in (0..1000).map(|i| Duration::from_millis(i * 200)) {
            assert_eq!(undone.wait(&step, now), None);
            told += u32::from(undone.made(&step, now) != Verdict::Again);
        }
        assert_eq!(told, 5);
    }
}
