//! Remotes to which the kernel does not send many datagrams in one call.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::wake;

/// How long a refusal counts. It is about the way to a remote, which may change; asking again costs one
/// call.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How many remotes are remembered.
const MOST: usize = 4096;

/// Remotes to which large segments were refused, each for datagrams of this size or more. The kernel does
/// not segment packets that would have to be fragmented as well: it returns EMSGSIZE, before Linux 6.14
/// EINVAL (`udp_send_skb`).
#[derive(Debug, Default)]
pub struct Refused(HashMap<SocketAddr, (usize, Duration)>);

impl Refused {
    /// Whether datagrams of `size` bytes have to be sent one by one.
    pub fn holds(&self, to: SocketAddr, size: usize) -> bool {
        self.holds_at(to, size, wake::now)
    }

    fn holds_at(&self, to: SocketAddr, size: usize, now: impl FnOnce() -> Duration) -> bool {
        self.0.get(&to).is_some_and(|(from, until)| size >= *from && now() < *until)
    }

    pub fn set(&mut self, to: SocketAddr, size: usize) {
        self.set_at(to, size, wake::now());
    }

    fn set_at(&mut self, to: SocketAddr, size: usize, now: Duration) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, until)| now < *until);
        }
        if self.0.len() < MOST {
            self.0.insert(to, (size, now + REFUSED_FOR));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn remote(number: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from_bits(u32::try_from(number).unwrap()), 1))
    }

    #[test]
    fn refusals_are_remembered_for_each_remote() {
        let mut refused = Refused::default();
        let at = Duration::from_secs;
        refused.set_at(remote(1), 1400, at(0));
        refused.set_at(remote(2), 0, at(5));
        let holds = |remote, size, now| refused.holds_at(remote, size, || at(now));
        assert_eq!([1399, 1400].map(|size| holds(remote(1), size, 9)), [false, true]);
        assert_eq!([9, 10].map(|now| holds(remote(1), 1400, now)), [true, false]);
        assert_eq!([14, 15].map(|now| holds(remote(2), 1, now)), [true, false]);
        assert!(!holds(remote(3), 1400, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut refused = Refused::default();
        for number in 0..MOST + 10 {
            refused.set_at(remote(number), 0, Duration::ZERO);
        }
        assert_eq!(refused.0.len(), MOST);
        refused.set_at(remote(MOST), 0, REFUSED_FOR);
        assert_eq!(refused.0.len(), 1, "what is over makes room");
    }
}
