//! Makes and checks cookies. A server gives one away without storing anything, and recognises it
//! when it comes back: then the sender reads what is sent to the address that it claims.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha512;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::pair::keyed;
use crate::wire::control::Cookie;

const LABEL: &[u8] = b"ipipou 2 cookie";

/// Bytes of what a cookie is a MAC of.
const ORIGIN_LEN: usize = LABEL.len() + 32 + 8 + 2 * END_LEN;

/// Bytes of an address with its port and scope.
const END_LEN: usize = 22;

/// Both ends of the way that a hello came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Where it came from.
    pub remote: SocketAddr,
    /// Our address and port that it was sent to.
    pub local: SocketAddr,
}

/// The secrets of this epoch and the last one.
#[derive(Clone)]
pub struct CookieSecrets {
    present: Epoch,
    last: Option<Epoch>,
}

/// Its secret is kept as the state of an HMAC that has taken it in, which is wiped when dropped.
#[derive(Clone)]
struct Epoch {
    number: u64,
    secret: Hmac<Sha512>,
}

impl CookieSecrets {
    /// How long a secret is used; a cookie is good for up to two of these.
    pub const EPOCH: Duration = Duration::from_secs(60);

    /// `boot_time` is CLOCK_BOOTTIME, `secret` is random.
    pub fn new(boot_time: Duration, secret: [u8; 32]) -> Self {
        CookieSecrets { present: Epoch::new(number(boot_time), secret), last: None }
    }

    /// Whether [`turn`](Self::turn) needs another secret now.
    pub fn is_over(&self, boot_time: Duration) -> bool {
        number(boot_time) != self.present.number
    }

    /// Turns to the epoch of `boot_time`. The secret of before is kept if its epoch is the one right
    /// before.
    pub fn turn(&mut self, boot_time: Duration, secret: [u8; 32]) {
        let number = number(boot_time);
        if number == self.present.number {
            return;
        }
        let before = std::mem::replace(&mut self.present, Epoch::new(number, secret));
        self.last = Some(before).filter(|before| before.number + 1 == number);
    }

    /// The cookie of a client that is at the other end; it is good until something takes the next
    /// `generation`.
    pub fn make(&self, client: &[u8; 32], generation: u64, ends: &Ends) -> Cookie {
        self.present.cookie(client, generation, ends)
    }

    /// Whether it is a cookie of this epoch or the last one; in constant time.
    pub fn is_good(
        &self,
        cookie: &Cookie,
        client: &[u8; 32],
        generation: u64,
        ends: &Ends,
    ) -> bool {
        let is_of = |epoch: &Epoch| -> bool {
            let [selector, ..] = epoch.number.to_le_bytes();
            cookie.first() == Some(&selector)
                && epoch.cookie(client, generation, ends).ct_eq(cookie).into()
        };
        is_of(&self.present) || self.last.as_ref().is_some_and(is_of)
    }
}

fn number(boot_time: Duration) -> u64 {
    boot_time.as_secs() / CookieSecrets::EPOCH.as_secs()
}

impl Epoch {
    fn new(number: u64, secret: [u8; 32]) -> Self {
        Epoch { number, secret: keyed(&Zeroizing::new(secret)) }
    }

    fn cookie(&self, client: &[u8; 32], generation: u64, ends: &Ends) -> Cookie {
        let mut cookie = [0; 16];
        let [selector, ..] = self.number.to_le_bytes();
        let mut origin = [0; ORIGIN_LEN];
        let (remote, local) = (end(ends.remote), end(ends.local));
        let parts = [LABEL, client, &generation.to_be_bytes(), &remote, &local];
        let mut rest = origin.as_mut_slice();
        for part in parts {
            let (to, behind) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = behind;
        }
        let mut mac = self.secret.clone();
        mac.update(&origin);
        let mac = mac.finalize().into_bytes();
        let (first, rest) = cookie.split_at_mut(1);
        first.copy_from_slice(&[selector]);
        rest.copy_from_slice(&mac[..15]);
        cookie
    }
}

/// Address (16 bytes, IPv4 as ::ffff:a.b.c.d), port (2), scope (4).
fn end(address: SocketAddr) -> [u8; END_LEN] {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    let mut bytes = [0; END_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..18].copy_from_slice(&address.port().to_be_bytes());
    bytes[18..].copy_from_slice(&scope.to_be_bytes());
    bytes
}

impl fmt::Debug for CookieSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieSecrets(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u8; 32] = [7; 32];

    fn ends(remote: &str, local: &str) -> Ends {
        Ends { remote: remote.parse().unwrap(), local: local.parse().unwrap() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cookie_is_bound_to_client_generation_and_both_ends() {
        let secrets = CookieSecrets::new(at(0), [1; 32]);
        let here = ends("198.51.100.7:1000", "203.0.113.1:10000");
        let cookie = secrets.make(&CLIENT, 5, &here);
        assert!(secrets.is_good(&cookie, &CLIENT, 5, &here));
        assert!(!secrets.is_good(&cookie, &[8; 32], 5, &here));
        assert!(!secrets.is_good(&cookie, &CLIENT, 6, &here));
        for (remote, local) in [
            ("198.51.100.8:1000", "203.0.113.1:10000"),
            ("198.51.100.7:1001", "203.0.113.1:10000"),
            ("198.51.100.7:1000", "203.0.113.2:10000"),
            ("198.51.100.7:1000", "203.0.113.1:10001"),
        ] {
            assert!(
                !secrets.is_good(&cookie, &CLIENT, 5, &ends(remote, local)),
                "{remote} {local}"
            );
        }
        let scoped =
            |remote, local| ends(&format!("[fe80::1%{remote}]:1"), &format!("[fe80::2%{local}]:1"));
        let cookie = secrets.make(&CLIENT, 5, &scoped(2, 2));
        assert!(secrets.is_good(&cookie, &CLIENT, 5, &scoped(2, 2)));
        assert!(!secrets.is_good(&cookie, &CLIENT, 5, &scoped(3, 2)));
        assert!(!secrets.is_good(&cookie, &CLIENT, 5, &scoped(2, 3)));
        for byte in 0..16 {
            let mut other = cookie;
            other[byte] ^= 1;
            assert!(!secrets.is_good(&other, &CLIENT, 5, &scoped(2, 2)), "{byte}");
        }
    }

    #[test]
    fn a_cookie_is_good_in_its_epoch_and_the_next() {
        let here = ends("198.51.100.7:1000", "203.0.113.1:10000");
        let mut secrets = CookieSecrets::new(at(59), [1; 32]);
        let cookie = secrets.make(&CLIENT, 5, &here);
        assert!(!secrets.is_over(at(0)) && secrets.is_over(at(60)));
        secrets.turn(at(60), [2; 32]);
        assert!(secrets.is_good(&cookie, &CLIENT, 5, &here));
        assert_ne!(secrets.make(&CLIENT, 5, &here), cookie);
        secrets.turn(at(119), [3; 32]); // the same epoch
        assert!(secrets.is_good(&cookie, &CLIENT, 5, &here));
        secrets.turn(at(120), [3; 32]);
        assert!(!secrets.is_good(&cookie, &CLIENT, 5, &here));
    }

    #[test]
    fn an_epoch_that_was_slept_through_ends_all_cookies() {
        let here = ends("198.51.100.7:1000", "203.0.113.1:10000");
        let mut secrets = CookieSecrets::new(at(0), [1; 32]);
        let cookie = secrets.make(&CLIENT, 5, &here);
        // The low byte of the epoch is the same again.
        secrets.turn(at(256 * 60), [1; 32]);
        assert!(secrets.last.is_none());
        secrets.turn(at(258 * 60), [2; 32]);
        assert!(!secrets.is_good(&cookie, &CLIENT, 5, &here));
    }
}
