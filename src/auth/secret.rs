//! Types for secrets, which are never printed, compared in constant time, and wiped when dropped.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{SigningKey, VerifyingKey};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The most bytes a token may have: what fits in one UDP datagram on Ethernet.
pub const MAX_TOKEN: usize = 1472;

/// A token is its own proof: anybody who has seen it can use it. It is never empty.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token(Vec<u8>);

/// Why bytes cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no byte at all.
    #[error("a token cannot be empty")]
    Empty,
    /// There are this many bytes, more than [`MAX_TOKEN`].
    #[error("a token has at most {MAX_TOKEN} bytes, this one has {0}")]
    TooLong(usize),
}

impl Token {
    /// Takes 1 to [`MAX_TOKEN`] bytes.
    ///
    /// # Errors
    /// When there is nothing, or more than [`MAX_TOKEN`] bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, TokenError> {
        match bytes.len() {
            0 => Err(TokenError::Empty),
            n if n > MAX_TOKEN => Err(TokenError::TooLong(n)),
            _ => Ok(Token(bytes)),
        }
    }

    /// The UDP payload that proves it, in clear.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in a time that does not depend on where the bytes differ.
    pub fn matches(&self, payload: &[u8]) -> bool {
        self.0.ct_eq(payload).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

/// The string both ends share beside the keys. It is signed, and never sent.
/// Clones share one copy, which is wiped with the last of them: thousands of peers may have the same.
#[derive(Clone)]
pub struct SharedSecret(Arc<Zeroizing<Vec<u8>>>);

impl ZeroizeOnDrop for SharedSecret {}

impl SharedSecret {
    /// Takes the bytes as they are, of any length; none at all is a valid secret.
    pub fn new(bytes: Vec<u8>) -> Self {
        SharedSecret(Arc::new(Zeroizing::new(bytes)))
    }

    /// The secret in clear, to be signed after the message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

/// Why a string is not an ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not standard base64 (RFC 4648, 4), padding included.
    #[error("not base64: {0}")]
    NotBase64(#[from] base64::DecodeError),
    /// The text decodes to this many bytes, which are not 32.
    #[error("an ed25519 key has 32 bytes, this one has {0}")]
    Length(usize),
    /// The 32 bytes decode to no point of the curve (RFC 8032, 5.1.3).
    #[error("not a point of the curve, so not an ed25519 public key")]
    NotAPoint,
    /// The point has a small order, so that a signature proves nothing.
    #[error("a weak key: any signature would hold, or none")]
    Weak,
    /// Other bytes stand for the same point.
    #[error("not the canonical form of a key")]
    NotCanonical,
    /// The point has a part of small order, so that another key gives the same X25519 result.
    #[error("not a key that a private one makes: it has a part of small order")]
    Torsion,
}

/// Whether this is a placeholder, as `<the shared secret>` in the examples in etc/ipipou. A secret
/// that somebody made up has other characters in it.
pub fn is_placeholder(value: &str) -> bool {
    let value = value.trim();
    let inside = value.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let is_word = |c: char| c.is_alphanumeric() || " '’-_./:[]".contains(c);
    inside.is_some_and(|inside| !inside.is_empty() && inside.chars().all(is_word))
}

/// Reads the base64 form of 32 key bytes: a private seed or a public key (RFC 8032).
///
/// # Errors
/// When it is not base64, or not 32 bytes.
pub fn parse_key(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim())?);
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Length(bytes.len()))?;
    Ok(Zeroizing::new(key))
}

/// The base64 form of a public key.
pub fn key_text(public: &[u8; 32]) -> String {
    STANDARD.encode(public)
}

/// A key pair from 32 random bytes, as (private seed, public key) in base64. `None` when the bytes
/// are a point of the curve, as half of all are: nobody can then take one key of a pair for the
/// other ([`is_public_key`](super::is_public_key)).
pub fn generate_seed(random: &[u8; 32]) -> Option<(Zeroizing<String>, String)> {
    if VerifyingKey::from_bytes(random).is_ok() {
        return None;
    }
    let key = SigningKey::from_bytes(random);
    Some((Zeroizing::new(STANDARD.encode(random)), key_text(key.verifying_key().as_bytes())))
}
