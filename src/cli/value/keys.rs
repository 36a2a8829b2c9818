//! Parses keys, tokens and secrets, and never repeats a part of one in a message.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::ValueError;
use crate::auth::{KeyError, SharedSecret, Token, TokenError, is_public_key, parse_key};

/// An ed25519 private key (RFC 8032 seed) as given, never printed.
#[derive(Clone)]
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// The bytes of an ed25519 public key that is a point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The keys of the other ends, of which only a client has more than one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeys {
    pub first: PublicKey,
    pub others: Vec<PublicKey>,
}

pub fn seed(text: &str) -> Result<Seed, ValueError> {
    Ok(Seed(parse_key(text).map_err(key_error)?))
}

pub fn public_key(text: &str) -> Result<PublicKey, ValueError> {
    let key = *parse_key(text).map_err(key_error)?;
    if is_public_key(&key) { Ok(PublicKey(key)) } else { Err(ValueError::NotAPublicKey) }
}

/// Parses one key, or several with commas between.
pub fn public_keys(text: &str) -> Result<PublicKeys, ValueError> {
    let (first, others) = match text.split_once(',') {
        None => (public_key(text)?, Vec::new()),
        Some((first, others)) => {
            (public_key(first)?, others.split(',').map(public_key).collect::<Result<_, _>>()?)
        }
    };
    Ok(PublicKeys { first, others })
}

/// Converts an error without the decoder's message, which names a byte of the key.
fn key_error(error: KeyError) -> ValueError {
    match error {
        KeyError::NotBase64(_) => ValueError::NotBase64,
        KeyError::Length(n) => ValueError::KeyLength(n),
        KeyError::NotAPoint | KeyError::Weak | KeyError::NotCanonical | KeyError::Torsion => {
            ValueError::NotAPublicKey
        }
    }
}

pub fn token(text: &str) -> Result<Token, ValueError> {
    token_of(text.as_bytes().to_vec())
}

pub fn token_b64(text: &str) -> Result<Token, ValueError> {
    token_of(STANDARD.decode(text.trim()).map_err(|_| ValueError::NotBase64)?)
}

pub fn token_of(bytes: Vec<u8>) -> Result<Token, ValueError> {
    Token::new(bytes).map_err(|error| match error {
        TokenError::Empty => ValueError::NoToken,
        TokenError::TooLong(n) => ValueError::TokenLength(n),
    })
}

pub fn shared_secret(text: &str) -> Result<SharedSecret, ValueError> {
    Ok(SharedSecret::new(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_secret_is_printed() {
        let key = "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=";
        assert_eq!(format!("{:?}", seed(key)), "Ok(Seed(…))");
        assert_eq!(seed("RuBZ!").map(|_| ()), Err(ValueError::NotBase64));
        assert_eq!(seed("RuBZ").map(|_| ()), Err(ValueError::KeyLength(3)));
        assert_eq!(token("").map(|_| ()), Err(ValueError::NoToken));
        assert_eq!(token(&"x".repeat(1473)).map(|_| ()), Err(ValueError::TokenLength(1473)));
    }
}
