//! Decides when a client says hello again.

use std::time::Duration;

/// How long the first answers are waited for; the first also depends on the round trip.
const RETRIES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(27),
];

/// How many hellos one of several servers gets before the next is asked, a second apart.
pub const HELLOS_IN_TURN: u32 = 3;

/// How long a client that is refused waits, first and from then on.
const REFUSED: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];

/// By how much a keepalive may differ from what is configured: thousands of clients do not say hello
/// at the same time again and again.
const KEEPALIVE_SPREAD: Duration = Duration::from_secs(2);

/// Where in a range a time is: 0 is its start, [`u16::MAX`] its end.
pub type Lot = u16;

/// How long to wait for an accept after `step` hellos that had none: at least two round trips, and 20 %
/// more or less.
pub fn retry_after(step: usize, round_trip: Option<Duration>, lot: Lot) -> Duration {
    let [.., longest] = RETRIES;
    let step = RETRIES.get(step).copied().unwrap_or(longest);
    let round_trips = round_trip.unwrap_or_default().saturating_mul(2);
    let wait = step.max(round_trips).min(longest);
    within(wait * 4 / 5, wait * 6 / 5, lot)
}

/// The same where there are several servers: the first three answers are waited for no longer than 1 s each,
/// unless two round trips take longer.
pub fn retry_in_turn(step: usize, round_trip: Option<Duration>, lot: Lot) -> Duration {
    let quick = HELLOS_IN_TURN as usize;
    if step >= quick {
        return retry_after(step + 1 - quick, round_trip, lot);
    }
    let [wait, .., longest] = RETRIES;
    let wait = wait.max(round_trip.unwrap_or_default().saturating_mul(2)).min(longest);
    within(wait * 4 / 5, wait, lot)
}

/// How long after an accept the next hello is due: what is configured, 2 s more or less, and never more
/// than a third of the lease.
pub fn keepalive_after(keepalive: Duration, lease: Duration, lot: Lot) -> Duration {
    let third = lease / 3;
    let spread = (keepalive.min(third) / 13).min(KEEPALIVE_SPREAD);
    let latest = keepalive.saturating_add(spread).min(third);
    within(latest.saturating_sub(spread * 2), latest, lot)
}

/// How long after a refusal the next hello is due; `before`: refusals before this one.
pub fn refused_after(before: usize) -> Duration {
    let [.., longest] = REFUSED;
    REFUSED.get(before).copied().unwrap_or(longest)
}

fn within(from: Duration, to: Duration, lot: Lot) -> Duration {
    from + to.saturating_sub(from).saturating_mul(lot.into()) / Lot::MAX.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATEST: Lot = Lot::MAX;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn millis(times: [Duration; 2]) -> [u128; 2] {
        times.map(|time| time.as_millis())
    }

    #[test]
    fn retries_are_rarer_and_rarer() {
        let expected =
            [[800, 1200], [1600, 2400], [3200, 4800], [6400, 9600], [12800, 19200], [21600, 32400]];
        for (step, expected) in expected.into_iter().enumerate() {
            let wait = [0, LATEST].map(|lot| retry_after(step, None, lot));
            assert_eq!(millis(wait), expected, "{step}");
        }
        assert_eq!(millis([0, LATEST].map(|lot| retry_after(1000, None, lot))), [21600, 32400]);
    }

    #[test]
    fn one_of_several_servers_has_three_seconds_to_answer() {
        let times = |lot| [0, 1, 2].map(|step| retry_in_turn(step, None, lot).as_millis());
        assert_eq!((times(0), times(LATEST)), ([800; 3], [1000; 3]));
        let later = [3, 4, 5].map(|step| retry_in_turn(step, None, LATEST).as_millis());
        assert_eq!(later, [2400, 4800, 9600]);
        assert_eq!(retry_in_turn(0, Some(seconds(0.8)), LATEST).as_millis(), 1600);
    }

    #[test]
    fn a_retry_waits_for_two_round_trips() {
        let wait = |step, trip| retry_after(step, Some(seconds(trip)), LATEST).as_millis();
        assert_eq!(
            [wait(0, 0.4), wait(0, 0.6), wait(1, 0.6), wait(1, 1.5)],
            [1200, 1440, 2400, 3600]
        );
        assert_eq!(wait(0, 60.0), 32400, "no longer than the longest");
    }

    #[test]
    fn a_keepalive_is_never_more_than_a_third_of_the_lease() {
        let range = |keepalive: f64, lease: f64| {
            millis([0, LATEST].map(|lot| keepalive_after(seconds(keepalive), seconds(lease), lot)))
        };
        assert_eq!(range(27.0, 180.0), [25000, 29000]);
        assert_eq!(range(27.0, 81.0), [23000, 27000]);
        assert_eq!(range(27.0, 30.0), [8461, 10000]);
        assert_eq!(range(3600.0, 180.0), [56000, 60000]);
        assert_eq!(range(1.3, 180.0), [1200, 1400]);
        assert_eq!(range(27.0, 3.0), [846, 1000]);
    }

    #[test]
    fn a_refused_client_waits_half_a_minute_and_then_a_minute_each() {
        let waits = [0, 1, 2, 1000].map(|before| refused_after(before).as_secs());
        assert_eq!(waits, [30, 60, 60, 60]);
    }
}
