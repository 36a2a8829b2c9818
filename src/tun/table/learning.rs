//! Learns which inner addresses are behind which remote (`--learn`), within the limits of the
//! engine's `LearnSpec`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Forwarding, Judgement};

impl Forwarding {
    /// Takes over what an earlier process learned, as if its remotes were heard of `now`. One that has to
    /// authenticate again keeps its inner addresses until they were silent for their lifetime; nothing is
    /// sent to it before it did.
    pub fn resume(&mut self, now: Duration) {
        let Some(learn) = &self.spec.learn else { return };
        let before = Arc::clone(&learn.before);
        for (inner, remote) in before.iter() {
            self.learn(*remote, *inner, now);
        }
    }

    pub(super) fn judge_learned(
        &self,
        from: SocketAddr,
        source: IpAddr,
        now: Duration,
    ) -> Judgement {
        match self.learned.get(source) {
            Some(learned) if learned.remote == from => {
                learned.seen(now);
                Judgement::Deliver
            }
            Some(_) | None if self.may_learn(from, source, now) => Judgement::Learn,
            Some(_) | None => Judgement::WrongSource,
        }
    }

    /// Whether it may be noted that `source` is behind `from`: not when `source` is outside of the
    /// networks that are learned or belongs to a remote that is alive, nor when the table is full.
    fn may_learn(&self, from: SocketAddr, source: IpAddr, now: Duration) -> bool {
        let Some(learn) = &self.spec.learn else { return false };
        let inside = learn.within.iter().any(|network| network.contains(&source));
        inside
            && !learn.except.contains(&source)
            && match self.learned.get(source) {
                Some(owner) => owner.remote == from || owner.silent_for(now) >= learn.lifetime,
                None => self.learned.len() < learn.limit,
            }
    }

    /// Notes that `source` is behind `from`, if that is allowed. Returns whether it was noted.
    pub fn learn(&mut self, from: SocketAddr, source: IpAddr, now: Duration) -> bool {
        let may = self.may_learn(from, source, now);
        if may {
            self.learned.put(source, from, now);
        }
        may
    }

    /// Notes that a remote is alive, and so is everything that was learned behind it.
    pub fn heard_of(&self, remote: SocketAddr, now: Duration) {
        self.learned.behind(remote).for_each(|learned| learned.seen(now));
    }

    /// Forgets what was silent for too long, and makes room. Returns whether there was anything.
    pub fn expire(&mut self, now: Duration) -> bool {
        let Some(learn) = &self.spec.learn else { return false };
        self.learned.expire(learn.lifetime, now)
    }

    /// What was learned: inner address, remote, and how long ago it was seen.
    pub fn learned(&self, now: Duration) -> Vec<(IpAddr, SocketAddr, Duration)> {
        self.learned.iter().map(|(inner, l)| (inner, l.remote, l.silent_for(now))).collect()
    }

    /// How long ago something came from each remote behind which addresses were learned.
    pub fn silent(&self, now: Duration) -> BTreeMap<SocketAddr, Duration> {
        let least = |remote| self.learned.behind(remote).map(|l| l.silent_for(now)).min();
        self.learned.remotes().filter_map(|remote| Some((remote, least(remote)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::{LearnSpec, PeerTable, RemoteSpec};

    const ALICE: &str = "192.0.2.1:1000";
    const BOB: &str = "192.0.2.2:1000";
    const LIFETIME: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn remote(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn learning(remotes: &[&str], limit: usize) -> PeerTable {
        let one = |address: &&str| (remote(address), RemoteSpec::default());
        PeerTable {
            remotes: remotes.iter().map(one).collect(),
            learn: Some(LearnSpec {
                within: vec!["10.0.0.0/24".parse().unwrap()],
                except: vec![ip("10.0.0.1")],
                limit,
                lifetime: LIFETIME,
                from_anybody: false,
                before: Arc::default(),
            }),
            ..PeerTable::default()
        }
    }

    #[test]
    fn what_an_earlier_process_learned_belongs_to_the_same_remotes() {
        let (alice, bob) = (remote(ALICE), remote(BOB));
        let mut spec = learning(&[BOB], 2);
        let before = [("10.0.0.1", alice), ("10.0.0.7", alice), ("10.1.0.7", bob)];
        spec.learn.as_mut().unwrap().before =
            Arc::new(before.map(|(inner, remote)| (ip(inner), remote)).into());
        let mut table = Forwarding::new(spec);
        table.resume(at(0));
        assert_eq!(table.learned(at(1)), [(ip("10.0.0.7"), alice, at(1))], "what may be learned");
        // Alice has to authenticate again.
        assert_eq!(table.remote_of(ip("10.0.0.7")), None);
        assert_eq!(table.judge(alice, ip("10.0.0.7"), at(1)), Judgement::Stranger);
        assert_eq!(table.judge(bob, ip("10.0.0.7"), at(59)), Judgement::WrongSource);
        table.add_remote(alice, RemoteSpec::default());
        assert_eq!(table.remote_of(ip("10.0.0.7")), Some(alice));
        assert_eq!(table.judge(bob, ip("10.0.0.7"), at(60)), Judgement::Learn, "it was silent");
    }

    #[test]
    fn an_address_is_not_taken_over_while_its_owner_is_alive() {
        let mut table = Forwarding::new(learning(&[ALICE, BOB], 8));
        let (alice, bob, inner) = (remote(ALICE), remote(BOB), ip("10.0.0.7"));
        assert_eq!(table.judge(alice, inner, at(0)), Judgement::Learn);
        assert!(table.learn(alice, inner, at(0)));
        assert_eq!(table.judge(alice, inner, at(30)), Judgement::Deliver);
        assert_eq!(table.judge(bob, inner, at(89)), Judgement::WrongSource);
        assert!(!table.learn(bob, inner, at(89)));
        assert_eq!(table.remote_of(inner), Some(alice));
        table.heard_of(alice, at(89));
        assert!(!table.learn(bob, inner, at(90)));
        assert_eq!(table.judge(bob, inner, at(149)), Judgement::Learn);
        assert!(table.learn(bob, inner, at(149)));
        assert_eq!(table.remote_of(inner), Some(bob));
    }

    #[test]
    fn learned_addresses_are_forgotten_with_their_remote() {
        let mut table = Forwarding::new(learning(&[ALICE, BOB], 8));
        assert!(table.learn(remote(ALICE), ip("10.0.0.7"), at(0)));
        assert!(table.learn(remote(BOB), ip("10.0.0.8"), at(0)));
        table.replace(learning(&[ALICE], 8));
        assert_eq!(table.remote_of(ip("10.0.0.7")), Some(remote(ALICE)));
        assert_eq!(table.remote_of(ip("10.0.0.8")), None);
    }

    #[test]
    fn the_table_is_bounded_and_learns_only_addresses_of_its_network() {
        let mut table = Forwarding::new(learning(&[ALICE], 2));
        let alice = remote(ALICE);
        for refused in ["10.0.1.1", "10.0.0.1"] {
            assert_eq!(table.judge(alice, ip(refused), at(0)), Judgement::WrongSource);
            assert!(!table.learn(alice, ip(refused), at(0)));
        }
        assert!(table.learn(alice, ip("10.0.0.2"), at(0)));
        assert!(table.learn(alice, ip("10.0.0.3"), at(50)));
        assert!(!table.expire(at(59)));
        assert_eq!(table.judge(alice, ip("10.0.0.4"), at(60)), Judgement::WrongSource);
        assert!(table.expire(at(60)));
        assert_eq!(table.judge(alice, ip("10.0.0.4"), at(60)), Judgement::Learn);
        assert!(table.learn(alice, ip("10.0.0.4"), at(60)));
        assert!(table.expire(at(200)));
        assert!(table.learned(at(200)).is_empty());
    }

    #[test]
    fn strangers_are_learned_from_only_if_anybody_may_come_in() {
        let mut spec = learning(&[], 8);
        let stranger = remote(ALICE);
        let closed = Forwarding::new(spec.clone());
        assert_eq!(closed.judge(stranger, ip("10.0.0.2"), at(0)), Judgement::Stranger);
        spec.learn.as_mut().unwrap().from_anybody = true;
        let open = Forwarding::new(spec);
        assert_eq!(open.judge(stranger, ip("10.0.0.2"), at(0)), Judgement::Learn);
    }
}
