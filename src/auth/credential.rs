//! The credential that a client authenticates with.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};

use super::pair::Pair;
use super::secret::{KeyError, SharedSecret, Token};
use crate::wire::auth_packet::{self, SALT_LEN};
use crate::wire::control::{HELLO_LEN, HelloFields, may_begin};

/// What an authentication packet is made of.
#[derive(Debug, Clone)]
pub enum Credential {
    /// An ed25519 key signs the time, a salt and the shared secret (`--auth-by-key-base64`).
    Key(Signer),
    /// A fixed payload, sent as it is (`--auth-by-token`).
    Token(Token),
    /// No payload: the server knows us by our address.
    Empty,
}

impl Credential {
    /// The payload of a packet that is dated `seconds` (Unix time) and has one of the `salts`. What has no
    /// date is always the same.
    pub fn payload(
        &self,
        seconds: u64,
        salts: impl IntoIterator<Item = [u8; SALT_LEN]>,
    ) -> Vec<u8> {
        match self {
            Credential::Key(signer) => signer.control_packet(seconds, salts),
            Credential::Token(token) => token.as_bytes().to_vec(),
            Credential::Empty => Vec::new(),
        }
    }

    /// Whether the date of a packet counts: the other end refuses one that is older than the newest that
    /// it has accepted.
    pub fn is_dated(&self) -> bool {
        match self {
            Credential::Key(_) => true,
            Credential::Token(_) | Credential::Empty => false,
        }
    }

    /// The public ed25519 key that the other end needs, if it is one.
    pub fn public(&self) -> Option<[u8; 32]> {
        match self {
            Credential::Key(signer) => Some(signer.public()),
            Credential::Token(_) | Credential::Empty => None,
        }
    }
}

/// A private ed25519 key together with the secret it signs.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
    secret: SharedSecret,
}

impl Signer {
    /// `seed` is the 32-byte private key of RFC 8032.
    pub fn new(seed: &[u8; 32], secret: SharedSecret) -> Self {
        Signer { key: SigningKey::from_bytes(seed), secret }
    }

    /// The public half, as the other end must know it.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The keys that we share with the server that has this public key.
    ///
    /// # Errors
    /// When its key cannot be used.
    pub fn pair_with_server(&self, server: &[u8; 32]) -> Result<Pair, KeyError> {
        Pair::of_signer(&self.key, server, &self.secret)
    }

    /// A signed hello with the first of the `salts` by which it begins as a hello may: seven of 16 do.
    pub fn hello(
        &self,
        pair: &Pair,
        fields: &HelloFields,
        salts: impl IntoIterator<Item = [u8; SALT_LEN]>,
    ) -> Option<[u8; HELLO_LEN]> {
        salts.into_iter().find_map(|salt| {
            let signed = pair.signed(&HelloFields { salt, ..*fields }.encode());
            let signature = self.key.sign(&[&signed, self.secret.as_bytes()].concat()).to_bytes();
            let first = signature.first().copied().unwrap_or_default();
            let mut hello = [0; HELLO_LEN];
            let (front, rest) = hello.split_at_mut(signature.len());
            front.copy_from_slice(&signature);
            rest.copy_from_slice(&signed);
            may_begin(first).then_some(hello)
        })
    }

    /// The packet for `seconds` (Unix time) and `salt`: signature, seconds, salt.
    pub fn packet(&self, seconds: u64, salt: [u8; SALT_LEN]) -> Vec<u8> {
        let message = auth_packet::message(seconds, salt);
        let signature = self.key.sign(&[&message, self.secret.as_bytes()].concat());
        [&signature.to_bytes()[..], &message].concat()
    }

    /// Like [`packet`](Self::packet), with the first of the `salts` whose packet starts with a byte
    /// of at least 0x80. Such a packet cannot be mistaken for an inner IP packet (version 4 or 6 in
    /// its first four bits), so a server's rules can tell it from data without knowing its source.
    /// Half of all salts will do; when none does, the last one is used.
    pub fn control_packet(
        &self,
        seconds: u64,
        salts: impl IntoIterator<Item = [u8; SALT_LEN]>,
    ) -> Vec<u8> {
        let mut packet = Vec::new();
        for salt in salts {
            packet = self.packet(seconds, salt);
            if packet[0] >= 0x80 {
                break;
            }
        }
        packet
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(…)")
    }
}
