//! Detects two hosts with one key, which take the tunnel from each other again and again.

use std::net::SocketAddr;
use std::time::Duration;

/// This many moves between the same two remotes cannot be roaming.
const MOVES: u32 = 3;
/// A host that goes from network to network and back stays longer.
const STAY: Duration = Duration::from_secs(900);

/// The last moves, if they were between the same two.
#[derive(Debug, Default)]
pub struct Rivals {
    between: Option<[SocketAddr; 2]>,
    moves: u32,
    last: Duration,
}

impl Rivals {
    /// Takes a move; true when it is the one that gives the two away.
    pub fn moved(&mut self, from: SocketAddr, to: SocketAddr, now: Duration) -> bool {
        let pair = Some([from.min(to), from.max(to)]);
        let again = self.between == pair && now.saturating_sub(self.last) <= STAY;
        self.moves = if again { self.moves.saturating_add(1) } else { 1 };
        (self.between, self.last) = (pair, now);
        self.moves == MOVES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_move_between_two_remotes_is_reported_once() {
        let remote = |last: u8| SocketAddr::from(([192, 0, 2, last], 1000));
        let mut rivals = Rivals::default();
        let mut moved =
            |from, to, second| rivals.moved(remote(from), remote(to), Duration::from_secs(second));
        assert_eq!(
            [moved(1, 2, 0), moved(2, 1, 27), moved(1, 2, 54), moved(2, 1, 81)],
            [false, false, true, false]
        );
        // A third one in between, or a day: it was roaming.
        assert_eq!([moved(1, 3, 90), moved(3, 1, 99), moved(1, 2, 100)], [false; 3]);
        assert_eq!([moved(2, 1, 101), moved(1, 2, 2000), moved(2, 1, 2001)], [false; 3]);
        assert!(moved(1, 2, 2002));
        // As long as a quarter of an hour each.
        assert_eq!([moved(1, 3, 3000), moved(3, 1, 3900), moved(1, 3, 4800)], [false, false, true]);
    }
}
