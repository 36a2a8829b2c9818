//! Token buckets: limits on packets per second, in memory of a fixed size.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::lanes::Lane;
use super::wake::millis;
use crate::engine::limits::{
    Budget, HEAVY, HEAVY_OUT_OF, HEAVY_SAMPLE, HELLOS, IMPOSSIBLE, KNOWN_REMOTE, LIGHT,
    LIGHT_SOURCE, SOURCE_PREFIX_V6,
};

/// How many buckets there are. Sources that share a bucket share its tokens; nobody outside can know
/// which do.
const BUCKETS: usize = 4096;

/// A limit on packets per second from each address.
pub struct Limit(Buckets);

impl Limit {
    pub fn new(per_second: u32) -> Self {
        Limit(Buckets::new(Budget { per_second, burst: per_second }))
    }

    /// Whether one more packet from `source` may pass.
    pub fn passes(&mut self, source: IpAddr, now: Duration) -> bool {
        self.0.passes(&source, now)
    }
}

/// Which packets of unproven sources the engine looks at: the budgets of `engine/limits.rs`.
pub struct ControlLimit {
    known: Buckets,
    sources: Buckets,
    light: Bucket,
    heavy: Bucket,
    impossible: Bucket,
    hellos: Bucket,
    lots: RandomState,
    lot: u64,
}

/// A packet for the engine, described for the limit.
#[derive(Debug, Clone, Copy)]
pub struct Unproven {
    pub from: SocketAddr,
    /// Whether it is from an admitted remote.
    pub is_known: bool,
    /// Whether its length is possible for an authentication packet.
    pub is_possible: bool,
}

impl ControlLimit {
    pub fn new() -> Self {
        ControlLimit {
            known: Buckets::new(KNOWN_REMOTE),
            sources: Buckets::new(LIGHT_SOURCE),
            light: Bucket::full(LIGHT),
            heavy: Bucket::full(HEAVY),
            impossible: Bucket::full(IMPOSSIBLE),
            hellos: Bucket::full(HELLOS),
            lots: RandomState::new(),
            lot: 0,
        }
    }

    /// Whether the engine looks at one more packet, and in which queue it waits.
    pub fn pass(&mut self, packet: Unproven, now: Duration) -> Option<Lane> {
        let Unproven { from, is_known, is_possible } = packet;
        if !is_possible {
            return self.impossible.passes(IMPOSSIBLE, now).then_some(Lane::Later);
        }
        let first = (is_known && self.known.passes(&from, now))
            || (self.sources.passes(&source(from.ip()), now) && self.light.passes(LIGHT, now));
        if first {
            return Some(Lane::First);
        }
        (self.is_drawn() && self.heavy.passes(HEAVY, now)).then_some(Lane::Later)
    }

    /// The same for a hello, which costs a table and a MAC, and no signature unless its sender can read
    /// what is sent to its source.
    pub fn pass_hello(&mut self, packet: Unproven, now: Duration) -> Option<Lane> {
        let Unproven { from, is_known, is_possible: _ } = packet;
        if is_known && self.known.passes(&from, now) {
            return Some(Lane::First);
        }
        self.hellos.passes(HELLOS, now).then_some(Lane::Later)
    }

    /// Draws the sample; nobody outside can predict it.
    fn is_drawn(&mut self) -> bool {
        self.lot = self.lot.wrapping_add(1);
        self.lots.hash_one(self.lot) % u64::from(HEAVY_OUT_OF) < u64::from(HEAVY_SAMPLE)
    }
}

/// The part of an address that counts as one source.
fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let host_bits = 128 - u32::from(SOURCE_PREFIX_V6);
            Ipv6Addr::from_bits(v6.to_bits() >> host_bits << host_bits).into()
        }
    }
}

/// Buckets for all sources.
struct Buckets {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    budget: Budget,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In thousandths of a token.
    tokens: u32,
    /// In milliseconds of the clock.
    filled: u64,
}

impl Buckets {
    fn new(budget: Budget) -> Self {
        let buckets = vec![Bucket::full(budget); BUCKETS].into();
        Buckets { buckets, hasher: RandomState::new(), budget }
    }

    fn passes(&mut self, whose: &impl Hash, now: Duration) -> bool {
        let number = usize::try_from(self.hasher.hash_one(whose) % BUCKETS as u64);
        let bucket = number.ok().and_then(|n| self.buckets.get_mut(n));
        bucket.is_some_and(|bucket| bucket.passes(self.budget, now))
    }
}

impl Bucket {
    fn full(budget: Budget) -> Self {
        Bucket { tokens: budget.burst.saturating_mul(1000), filled: 0 }
    }

    /// Takes a token, if there is one.
    fn passes(&mut self, budget: Budget, now: Duration) -> bool {
        let now = millis(now);
        let passed = now.saturating_sub(self.filled);
        // The rate is this many thousandths of a token per millisecond.
        let earned = passed.saturating_mul(u64::from(budget.per_second));
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(budget.burst.saturating_mul(1000));
        self.filled = now;
        match self.tokens.checked_sub(1000) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn packet(from: &str) -> Unproven {
        Unproven { from: from.parse().unwrap(), is_known: false, is_possible: true }
    }

    /// How many of `of` packets pass at one instant.
    fn passed(limit: &mut ControlLimit, of: u32, packet: Unproven, now: Duration) -> u32 {
        (0..of).map(|_| u32::from(limit.pass(packet, now).is_some())).sum()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_limits() {
        let mut limit = Limit::new(50);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let passed = |limit: &mut Limit, source, now| {
            (0..200).filter(|_| limit.passes(source, at(now))).count()
        };
        assert_eq!(passed(&mut limit, one, 0), 50);
        // Two sources share one bucket of 4096 with a probability of 1 / 4096.
        assert!(matches!(passed(&mut limit, other, 0), 50 | 0));
        assert_eq!(passed(&mut limit, one, 100), 5);
        assert_eq!(passed(&mut limit, one, 130), 1);
        assert_eq!(passed(&mut limit, one, 140), 1);
        assert_eq!(passed(&mut limit, one, 3_600_000), 50);
    }

    #[test]
    fn a_burst_may_be_more_than_the_rate() {
        let budget = Budget { per_second: 10, burst: 20 };
        let mut bucket = Bucket::full(budget);
        let mut passed =
            |now| (0..100).map(|_| u32::from(bucket.passes(budget, at(now)))).sum::<u32>();
        assert_eq!([0, 1000, 3000, 60_000].map(&mut passed), [20, 10, 20, 20]);
    }

    #[test]
    fn a_flood_costs_others_nothing() {
        let mut limit = ControlLimit::new();
        let flood = packet("192.0.2.66:1");
        assert_eq!(limit.pass(flood, at(0)), Some(Lane::First));
        let looked_at = passed(&mut limit, 100_000, flood, at(1000));
        let most = LIGHT_SOURCE.burst + HEAVY.burst;
        assert_eq!(looked_at, most);
        // A few of them share the flood's bucket: one in 4096.
        let others: u32 = (0..500)
            .map(|n| {
                passed(&mut limit, 1, packet(&format!("10.0.{}.{}:1", n / 250, n % 250)), at(1000))
            })
            .sum();
        assert!(others >= 495, "{others}");
        // The packets of the flood that are looked at wait behind all others.
        passed(&mut limit, LIGHT_SOURCE.per_second, flood, at(2000));
        let more: Vec<_> = (0..100).filter_map(|_| limit.pass(flood, at(2000))).collect();
        assert!(more.len() > 10 && more.iter().all(|lane| *lane == Lane::Later));
    }

    #[test]
    fn all_addresses_of_a_host_are_one_source() {
        let mut limit = ControlLimit::new();
        limit.heavy.tokens = 0;
        let looked_at = |limit: &mut ControlLimit, network: &str| -> u32 {
            (0..1000)
                .map(|n| passed(limit, 1, packet(&format!("[{network}:{n:x}::1]:1")), at(0)))
                .sum()
        };
        assert_eq!(looked_at(&mut limit, "2001:db8:0:7"), LIGHT_SOURCE.burst);
        let ports = (0..1000).map(|n| packet(&format!("192.0.2.1:{}", n + 1)));
        let looked_at: u32 = ports.map(|p| passed(&mut limit, 1, p, at(0))).sum();
        assert!(matches!(looked_at, 0 | 50), "shared with a probability of 1 / 4096");
    }

    #[test]
    fn a_known_remote_has_its_own_tokens() {
        let mut limit = ControlLimit::new();
        let client = packet("192.0.2.1:1000");
        let junk = packet("192.0.2.1:1001");
        passed(&mut limit, 100_000, junk, at(0));
        let known = Unproven { is_known: true, ..client };
        assert_eq!(passed(&mut limit, 1000, known, at(0)), KNOWN_REMOTE.burst);
        assert_eq!(passed(&mut limit, 1000, client, at(0)), 0);
    }

    #[test]
    fn answers_forged_from_one_server_cost_another_none() {
        let mut limit = ControlLimit::new();
        let answer = |n: u32| Unproven { is_known: true, ..packet(&format!("192.0.2.{n}:10000")) };
        for millisecond in 0..10_000 {
            passed(&mut limit, 5, answer(0), at(millisecond));
        }
        let others: u32 = (1..=100).map(|n| passed(&mut limit, 2, answer(n), at(10_000))).sum();
        assert!(others >= 190, "{others}"); // a few share the flood's bucket, and half of the sample
        let of_its_own = passed(&mut limit, 300, answer(0), at(10_000));
        assert!((120..=280).contains(&of_its_own), "{of_its_own} of 300: two of three are drawn");
    }

    #[test]
    fn junk_from_a_clients_own_address_does_not_shut_it_out() {
        let mut limit = ControlLimit::new();
        let client = packet("192.0.2.1:1000");
        let mut in_a_row = 0;
        let mut most = 0;
        for try_ in 0..300u64 {
            for millisecond in 0..1000 {
                passed(&mut limit, 5, packet("192.0.2.1:7"), at(1000 * try_ + millisecond));
            }
            in_a_row =
                if limit.pass(client, at(1000 * try_ + 999)).is_some() { 0 } else { in_a_row + 1 };
            most = most.max(in_a_row);
        }
        assert!(most < 20, "{most} tries in a row"); // one of three is drawn each time: 3^-20
    }

    #[test]
    fn a_packet_of_impossible_length_costs_no_token() {
        let mut limit = ControlLimit::new();
        let client = packet("192.0.2.1:1000");
        let impossible = Unproven { is_possible: false, ..client };
        assert_eq!(passed(&mut limit, 10_000, impossible, at(0)), IMPOSSIBLE.burst);
        assert_eq!(passed(&mut limit, LIGHT_SOURCE.burst, client, at(0)), LIGHT_SOURCE.burst);
    }
}
