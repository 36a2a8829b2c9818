//! The keys that one client and one server share in control protocol v2, and the MACs made with them.
//!
//! X25519 (RFC 7748) between the ed25519 keys of both (the private one is the clamped half of SHA-512 of
//! the seed, RFC 8032, 5.1.5), then HKDF-SHA-512 (RFC 5869) without a salt over its result and the shared
//! secret, with the label "ipipou 2" and both public keys. A MAC is the first 16 bytes of HMAC-SHA-512.

use std::fmt;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hmac::block_api::HmacCore;
use hmac::digest::block_api::{Buffer, CoreProxy};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha512;
use subtle::ConstantTimeEq as _;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::key_check::check_public_key;
use super::secret::{KeyError, SharedSecret};
use crate::wire::control::{Answer, HELLO_LEN, Hello, HelloFields, Hint, MAC_LEN, Tag};

const LABEL: &[u8] = b"ipipou 2";
const DIGEST_LABEL: &[u8] = b"ipipou session";

/// An HMAC that has taken in its key, without the buffer for what it is the MAC of.
type Keyed = HmacCore<Sha512>;

/// The keys between one client and one server, each as the state of an HMAC that has taken it in, so that
/// a MAC costs two blocks of SHA-512 less. They are wiped when dropped. With them is the other end's public
/// key as a point: to find it again would be a tenth of a signature check.
#[derive(Clone)]
pub struct Pair {
    to_server: Keyed,
    to_client: Keyed,
    other: VerifyingKey,
}

impl ZeroizeOnDrop for Pair {}

/// What an HMAC consists of, states of its hash, is wiped: this does not compile without the feature
/// `zeroize` of sha2.
const _: fn() = || {
    fn is_wiped<T: ZeroizeOnDrop>() {}
    is_wiped::<Sha512>();
    is_wiped::<<Sha512 as CoreProxy>::Core>();
};

/// The first bytes of a public key.
pub fn hint(public: &[u8; 32]) -> Hint {
    let [a, b, c, d, e, f, g, h, ..] = *public;
    [a, b, c, d, e, f, g, h]
}

/// A digest of what one client and one server prove themselves with: the keys of both, and the secret. It is an
/// HMAC-SHA-512 whose key is the server's private seed, cut to 32 bytes: a reader of the digest cannot guess secrets.
pub fn keys_digest(seed: &[u8; 32], client: &[u8; 32], secret: &SharedSecret) -> [u8; 32] {
    let hmac = keyed(seed).chain_update(DIGEST_LABEL).chain_update(client);
    let whole = hmac.chain_update(secret.as_bytes()).finalize().into_bytes();
    let mut digest = [0; 32];
    digest.copy_from_slice(&whole[..32]);
    digest
}

impl Pair {
    /// The server's: its private seed, and a client's public key.
    ///
    /// # Errors
    /// When the client's key cannot be used.
    pub fn of_server(
        seed: &[u8; 32],
        client: &[u8; 32],
        secret: &SharedSecret,
    ) -> Result<Self, KeyError> {
        let own = SigningKey::from_bytes(seed);
        let public = own.verifying_key().to_bytes();
        Self::new(&own, client, (client, &public), secret)
    }

    /// The client's: its private seed, and the server's public key.
    ///
    /// # Errors
    /// When the server's key cannot be used.
    pub fn of_client(
        seed: &[u8; 32],
        server: &[u8; 32],
        secret: &SharedSecret,
    ) -> Result<Self, KeyError> {
        Self::of_signer(&SigningKey::from_bytes(seed), server, secret)
    }

    pub(super) fn of_signer(
        own: &SigningKey,
        server: &[u8; 32],
        secret: &SharedSecret,
    ) -> Result<Self, KeyError> {
        let public = own.verifying_key().to_bytes();
        Self::new(own, server, (&public, server), secret)
    }

    fn new(
        own: &SigningKey,
        other: &[u8; 32],
        (client, server): (&[u8; 32], &[u8; 32]),
        secret: &SharedSecret,
    ) -> Result<Self, KeyError> {
        check_public_key(other)?;
        let other = VerifyingKey::from_bytes(other).map_err(|_| KeyError::NotAPoint)?;
        let scalar = Zeroizing::new(own.to_scalar_bytes());
        let shared = Zeroizing::new(other.to_montgomery().mul_clamped(*scalar).to_bytes());
        if shared.ct_eq(&[0; 32]).into() {
            return Err(KeyError::Weak);
        }
        let material = Zeroizing::new([shared.as_slice(), secret.as_bytes()].concat());
        let info = [LABEL, client, server].concat();
        let mut keys = Zeroizing::new([[0; 32]; 2]);
        // 64 bytes are one block of what HKDF can give.
        let expanded = Hkdf::<Sha512>::new(None, &material).expand(&info, keys.as_flattened_mut());
        expanded.map_err(|_| KeyError::Weak)?;
        let [to_server, to_client] = &*keys;
        let keyed = |key| keyed(key).decompose().0;
        Ok(Pair { to_server: keyed(to_server), to_client: keyed(to_client), other })
    }

    /// The MAC of a hello.
    pub fn hello_mac(&self, authenticated: &[u8]) -> Tag {
        mac(&self.to_server, authenticated)
    }

    /// Whether this is the MAC of a hello; in constant time.
    pub fn is_hello_mac(&self, authenticated: &[u8], tag: &Tag) -> bool {
        self.hello_mac(authenticated).ct_eq(tag).into()
    }

    /// Whether a hello is signed with the other end's key and the secret that both share.
    pub fn is_signed(&self, hello: &Hello<'_>, secret: &SharedSecret) -> bool {
        let signature = Signature::from_bytes(hello.signature);
        let signed = [&hello.signed[..], secret.as_bytes()].concat();
        self.other.verify_strict(&signed, &signature).is_ok()
    }

    /// The MAC of an answer.
    pub fn answer_mac(&self, authenticated: &[u8]) -> Tag {
        mac(&self.to_client, authenticated)
    }

    /// Whether this is the MAC of an answer; in constant time.
    pub fn is_answer_mac(&self, authenticated: &[u8], tag: &Tag) -> bool {
        self.answer_mac(authenticated).ct_eq(tag).into()
    }

    /// An answer as it is sent: padded, with its MAC.
    pub fn seal(&self, answer: &Answer) -> Vec<u8> {
        let mut bytes = answer.encode_padded();
        let tag = self.answer_mac(&bytes);
        bytes.extend(tag);
        bytes
    }

    /// What a hello consists of behind its signature: what it says, and its MAC.
    pub(super) fn signed(&self, authenticated: &[u8; 48]) -> [u8; HELLO_LEN - 64] {
        let mut signed = [0; HELLO_LEN - 64];
        let (front, tag) = signed.split_at_mut(authenticated.len());
        front.copy_from_slice(authenticated);
        tag.copy_from_slice(&self.hello_mac(authenticated));
        signed
    }
}

/// A hello with noise in the place of its signature, whose first byte is made one that a hello may begin
/// with. It keeps a session alive that is where it was.
pub fn unsigned_hello(pair: &Pair, fields: &HelloFields, noise: [u8; 64]) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    let (signature, signed) = hello.split_at_mut(noise.len());
    signature.copy_from_slice(&noise);
    if let Some(first) = signature.first_mut() {
        *first |= 0x90;
    }
    signed.copy_from_slice(&pair.signed(&fields.encode()));
    hello
}

/// An HMAC that has taken in its key: zeros fill it up to a block of SHA-512 (RFC 2104, 2).
pub(super) fn keyed(key: &[u8; 32]) -> Hmac<Sha512> {
    let mut block = Zeroizing::new([0; 128]);
    let (start, _) = block.split_at_mut(key.len());
    start.copy_from_slice(key);
    Hmac::new((&*block).into())
}

fn mac(key: &Keyed, data: &[u8]) -> Tag {
    let mut hmac = Hmac::<Sha512>::compose(key.clone(), Buffer::<Keyed>::default());
    hmac.update(data);
    let whole = hmac.finalize().into_bytes();
    let mut tag = [0; MAC_LEN];
    tag.copy_from_slice(&whole[..MAC_LEN]);
    tag
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pair(…)")
    }
}
