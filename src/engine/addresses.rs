//! Decides which of the addresses of its name a server is tried at.

use std::net::IpAddr;
use std::time::Duration;

/// How many addresses of a name are tried at most: the host is asked for the way to each.
const MOST: usize = 16;
/// How long packets go out and nothing comes back before the next address is tried. It doubles each
/// time all were tried, up to [`LONGEST`]: a client that only sends should not lose a server that is
/// merely silent again and again.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

/// The addresses of a server, and which one is in use.
#[derive(Debug)]
pub struct Addresses {
    in_use: Option<IpAddr>,
    /// What the last lookup of the name gave, the best first.
    all: Vec<IpAddr>,
    /// Those from which nothing came since something came last.
    tried: Vec<IpAddr>,
    patience: Duration,
    /// From which something came last.
    answered: Option<IpAddr>,
}

impl Addresses {
    /// `fixed` is the address of a server without a name.
    pub fn new(fixed: Option<IpAddr>) -> Self {
        Addresses {
            in_use: fixed,
            all: Vec::new(),
            tried: Vec::new(),
            patience: PATIENCE,
            answered: None,
        }
    }

    pub fn in_use(&self) -> Option<IpAddr> {
        self.in_use
    }

    /// How long nothing may come back from the one in use.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether all were tried in vain, perhaps more than once.
    pub fn is_round_over(&self) -> bool {
        self.patience > PATIENCE
    }

    /// Takes the answer to a name lookup. An address that is still among the answers is kept.
    ///
    /// Tells the new address, if it changed.
    pub fn resolved(&mut self, addresses: &[IpAddr]) -> Option<IpAddr> {
        let first = *addresses.first()?;
        self.all = addresses.iter().copied().take(MOST).collect();
        if self.in_use.is_some_and(|address| addresses.contains(&address)) {
            return None;
        }
        let untried = self.all.iter().find(|address| !self.tried.contains(address));
        self.in_use = Some(untried.copied().unwrap_or(first));
        self.in_use
    }

    pub fn use_one(&mut self, address: IpAddr) {
        self.in_use = Some(address);
    }

    /// The other addresses, in the order in which they come next.
    pub fn others(&self) -> impl Iterator<Item = IpAddr> {
        let at = self.all.iter().position(|address| Some(*address) == self.in_use);
        let (before, after) = self.all.split_at(at.map_or(0, |at| at + 1));
        let others = after.iter().chain(before).copied();
        others.filter(|address| Some(*address) != self.in_use)
    }

    /// Something came from the one in use.
    pub fn heard(&mut self) {
        self.tried.clear();
        self.patience = PATIENCE;
        self.answered = self.in_use;
    }

    /// Whether what came last came from the one in use.
    pub fn has_answered(&self) -> bool {
        self.answered.is_some() && self.answered == self.in_use
    }

    /// Nothing came from the one in use. Tells the next that there `is_way` to, which is in use now.
    pub fn next(&mut self, is_way: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let others: Vec<IpAddr> = self.others().filter(|address| is_way(*address)).collect();
        let first = *others.first()?;
        self.tried.extend(self.in_use);
        let untried = others.iter().find(|address| !self.tried.contains(address)).copied();
        if untried.is_none() {
            self.tried = self.in_use.into_iter().collect();
            self.patience = (2 * self.patience).min(LONGEST);
        }
        self.in_use = Some(untried.unwrap_or(first));
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn of(count: u8) -> Addresses {
        let mut addresses = Addresses::new(None);
        let all: Vec<_> = (1..=count).map(address).collect();
        assert_eq!(addresses.resolved(&all), Some(address(1)));
        addresses
    }

    #[test]
    fn each_address_gets_its_turn_in_whatever_order_names_are_resolved() {
        let mut addresses = of(3);
        assert_eq!(addresses.next(|_| true), Some(address(2)));
        assert_eq!(addresses.resolved(&[address(2), address(1), address(3)]), None);
        assert_eq!(addresses.next(|_| true), Some(address(3)));
        assert_eq!(addresses.patience(), PATIENCE);
        // All were tried: once more, with more patience.
        assert_eq!(addresses.next(|_| true), Some(address(2)));
        assert_eq!(addresses.next(|_| true), Some(address(1)));
        assert_eq!(addresses.patience(), 2 * PATIENCE);
        for _ in 0..20 {
            addresses.next(|_| true);
        }
        assert_eq!(addresses.patience(), LONGEST);
        addresses.heard();
        assert_eq!(addresses.patience(), PATIENCE);
    }

    #[test]
    fn unreachable_addresses_are_skipped_and_an_only_address_stays() {
        let mut addresses = of(3);
        assert_eq!(addresses.next(|a| a == address(3)), Some(address(3)));
        assert_eq!(addresses.next(|_| false), None);
        assert_eq!(addresses.in_use(), Some(address(3)));
        assert_eq!(of(1).next(|_| true), None);
        assert_eq!(Addresses::new(Some(address(9))).next(|_| true), None);
    }

    #[test]
    fn an_untried_address_replaces_one_that_is_gone() {
        let mut addresses = of(2);
        addresses.next(|_| true);
        assert_eq!(addresses.resolved(&[]), None);
        assert_eq!(addresses.resolved(&[address(1), address(3)]), Some(address(3)));
        // What an earlier process left is kept while it is one of them.
        let mut adopted = Addresses::new(None);
        adopted.use_one(address(2));
        assert_eq!(adopted.resolved(&[address(1), address(2)]), None);
        assert_eq!(adopted.others().collect::<Vec<_>>(), [address(1)]);
    }
}
