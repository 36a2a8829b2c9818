//! The public keys of peers.

use super::Origin;
use super::fault::{Fault, Mistake};
use super::name::PeerName;
use crate::auth::{KeyError, check_public_keys, hint, parse_key};

/// The keys of the examples in the documents, which belong to nobody.
const EXAMPLES: [&str; 3] = [
    "pJ0bY1cVQ0m0Hq1Zb0mX8nq7h5mQ0v7i8y2m5c1l0kE=",
    "1cX5m2b7bq8Qm4c0gGm3n1i9rYk0yYh0v2q3z8l7k1A=",
    "9Yb0mX8nq7h5mQ0v7i8y2m5c1l0kEpJ0bY1cVQ0m0Hq=",
];

pub const GIVE: &str =
    "give the peer's public key, which `ipipou pubkey` prints for a key of `ipipou genkey`";

/// 32 bytes in the place of a public key, which are checked with all others, as that is quicker.
pub struct Unchecked {
    pub key: [u8; 32],
    pub origin: Origin,
    pub peer: Option<PeerName>,
}

/// Adds what is no public key.
pub fn check(keys: Vec<Unchecked>, faults: &mut Vec<Fault>) {
    let checked = check_public_keys(&keys.iter().map(|it| it.key).collect::<Vec<_>>());
    for (it, checked) in keys.into_iter().zip(checked) {
        let Err(error) = checked else { continue };
        let (Mistake { what, todo }, Origin { file, line }) = (refused(&error), it.origin);
        let file = file.to_string();
        faults.push(Fault { file, line, peers: it.peer.into_iter().collect(), what, todo });
    }
}

/// Reads the bytes of a public key; `own` is the server's. What is said does not repeat them, because
/// they may be a private one.
pub fn public_key(text: &str, own: Option<&[u8; 32]>) -> Result<[u8; 32], Mistake> {
    let text = text.trim();
    if is_placeholder(text) || EXAMPLES.contains(&text) {
        return Err(Mistake::new("`public-key` is a placeholder", GIVE));
    }
    let key = *parse_key(text).map_err(|error| refused(&error))?;
    if own == Some(&key) {
        return Err(Mistake::new("`public-key` is the server's own", GIVE));
    }
    if own.is_some_and(|own| hint(own) == hint(&key)) {
        let what = "`public-key` begins with the same 8 bytes as the server's own";
        return Err(Mistake::new(what, "make another key pair for the peer"));
    }
    Ok(key)
}

fn refused(error: &KeyError) -> Mistake {
    match error {
        KeyError::NotBase64(_) => Mistake::new("`public-key` is not base64", GIVE),
        KeyError::Length(bytes) => {
            Mistake::new(format!("`public-key` has {bytes} bytes, and a key has 32"), GIVE)
        }
        KeyError::NotAPoint | KeyError::NotCanonical | KeyError::Torsion => Mistake::new(
            "`public-key` is not an ed25519 public key: it is a private key, or one of WireGuard",
            GIVE,
        ),
        KeyError::Weak => Mistake::new(
            "`public-key` is a weak key, with which anybody could pass for the peer",
            GIVE,
        ),
    }
}

/// Whether something stands in angle brackets, as in documents. Neither keys nor addresses have them.
pub fn is_placeholder(text: &str) -> bool {
    text.split_once('<').is_some_and(|(_, rest)| rest.contains('>'))
}
