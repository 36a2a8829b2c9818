//! Holds which inner address was seen behind which remote. Looking up the addresses of one remote
//! does not go through those of the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// All inner addresses that were learned.
#[derive(Debug, Default)]
pub struct LearnedAddresses {
    by_inner: HashMap<IpAddr, Learned>,
    by_remote: BTreeMap<SocketAddr, BTreeSet<IpAddr>>,
}

/// An inner address that was seen behind a remote.
#[derive(Debug)]
pub struct Learned {
    pub remote: SocketAddr,
    /// Milliseconds of the monotonic clock.
    last_seen: AtomicU64,
}

impl Learned {
    /// Notes that a packet came from it, by the monotonic clock.
    pub fn seen(&self, now: Duration) {
        self.last_seen.store(millis(now), Ordering::Relaxed);
    }

    /// How long ago the last packet came from it.
    pub fn silent_for(&self, now: Duration) -> Duration {
        let last_seen = self.last_seen.load(Ordering::Relaxed);
        Duration::from_millis(millis(now).saturating_sub(last_seen))
    }
}

impl LearnedAddresses {
    pub fn get(&self, inner: IpAddr) -> Option<&Learned> {
        self.by_inner.get(&inner)
    }

    pub fn len(&self) -> usize {
        self.by_inner.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Learned)> {
        self.by_inner.iter().map(|(inner, learned)| (*inner, learned))
    }

    /// Notes that `inner` was seen behind `remote`, and no longer behind another one.
    pub fn put(&mut self, inner: IpAddr, remote: SocketAddr, now: Duration) {
        self.remove(inner);
        let last_seen = AtomicU64::new(millis(now));
        self.by_inner.insert(inner, Learned { remote, last_seen });
        self.by_remote.entry(remote).or_default().insert(inner);
    }

    fn remove(&mut self, inner: IpAddr) {
        let Some(Learned { remote, .. }) = self.by_inner.remove(&inner) else { return };
        if let Some(behind) = self.by_remote.get_mut(&remote) {
            behind.remove(&inner);
            if behind.is_empty() {
                self.by_remote.remove(&remote);
            }
        }
    }

    /// The remotes behind which there is an inner address.
    pub fn remotes(&self) -> impl Iterator<Item = SocketAddr> {
        self.by_remote.keys().copied()
    }

    /// Whether there is an inner address behind `remote`.
    pub fn is_behind(&self, remote: SocketAddr) -> bool {
        self.by_remote.contains_key(&remote)
    }

    /// What was learned behind one remote.
    pub fn behind(&self, remote: SocketAddr) -> impl Iterator<Item = &Learned> {
        let inner = self.by_remote.get(&remote).into_iter().flatten();
        inner.filter_map(|inner| self.by_inner.get(inner))
    }

    /// Forgets what was learned behind `remote`.
    pub fn forget(&mut self, remote: SocketAddr) {
        for inner in self.by_remote.remove(&remote).into_iter().flatten() {
            self.by_inner.remove(&inner);
        }
    }

    /// Forgets what was silent for `lifetime`. Returns whether there was anything.
    pub fn expire(&mut self, lifetime: Duration, now: Duration) -> bool {
        let silent = self.iter().filter(|(_, learned)| learned.silent_for(now) >= lifetime);
        let silent: Vec<_> = silent.map(|(inner, _)| inner).collect();
        silent.iter().for_each(|inner| self.remove(*inner));
        !silent.is_empty()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn remote(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1000))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn both_indexes_agree() {
        let mut learned = LearnedAddresses::default();
        for (address, behind) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
            learned.put(inner(address), remote(behind), at(0));
        }
        learned.put(inner(2), remote(2), at(5)); // it moved
        let behind = |learned: &LearnedAddresses, last| learned.behind(remote(last)).count();
        assert_eq!([1, 2, 3].map(|last| behind(&learned, last)), [1, 2, 1]);
        learned.behind(remote(1)).for_each(|learned| learned.seen(at(8)));
        assert!(learned.expire(at(6), at(8)), "of 3 and 4 nothing came");
        assert!(!learned.expire(at(6), at(8)));
        assert_eq!(learned.remotes().collect::<Vec<_>>(), [remote(1), remote(2)]);
        learned.forget(remote(2));
        assert_eq!((learned.len(), learned.is_behind(remote(2))), (1, false));
        assert_eq!(learned.get(inner(1)).map(|learned| learned.silent_for(at(9))), Some(at(1)));
        assert!(learned.get(inner(2)).is_none());
    }
}
