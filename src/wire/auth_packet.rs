//! The signed authentication packet, a UDP payload:
//!
//! ```text
//!  0  64  ed25519 signature over bytes[64..end] and the shared secret
//! 64   5  Unix time in seconds, big-endian
//! 69   4  salt
//! 73   …  optional tail, signed like the rest (read by nobody yet)
//! ```
//!
//! The first version of `ipipou` sends the first 73 bytes, and accepts longer packets.

/// Bytes of the signature.
pub const SIGNATURE_LEN: usize = 64;
/// Bytes of the time.
pub const SECONDS_LEN: usize = 5;
/// Bytes of the salt.
pub const SALT_LEN: usize = 4;
/// A packet without a tail.
pub const AUTH_PACKET_LEN: usize = SIGNATURE_LEN + SECONDS_LEN + SALT_LEN;
/// The longest packet that is looked at: room for a tail, and little to hash for a forger's packet.
pub const MAX_AUTH_PACKET_LEN: usize = 512;
/// The largest time that fits.
pub const MAX_SECONDS: u64 = (1 << (8 * SECONDS_LEN)) - 1;

/// A packet taken apart; nothing in it is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthPacket<'a> {
    /// An ed25519 signature (RFC 8032) over `message` and the shared secret.
    pub signature: &'a [u8; SIGNATURE_LEN],
    /// Everything after the signature: what is signed, before the secret.
    pub message: &'a [u8],
    /// Unix time that the sender claims.
    pub seconds: u64,
}

/// Why bytes are not an authentication packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The payload has no byte.
    #[error("empty")]
    Empty,
    /// The payload has no room for signature, time and salt.
    #[error("shorter than {AUTH_PACKET_LEN} bytes")]
    Truncated,
    /// The payload has more than [`MAX_AUTH_PACKET_LEN`] bytes.
    #[error("longer than {MAX_AUTH_PACKET_LEN} bytes")]
    Oversized,
}

impl<'a> AuthPacket<'a> {
    /// Takes a UDP payload apart; the signature is not checked.
    ///
    /// # Errors
    /// When the length cannot be that of a signed packet.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ParseError> {
        if payload.is_empty() {
            return Err(ParseError::Empty);
        }
        if payload.len() > MAX_AUTH_PACKET_LEN {
            return Err(ParseError::Oversized);
        }
        let (signature, message) = payload.split_first_chunk().ok_or(ParseError::Truncated)?;
        let (seconds, rest) = message.split_first_chunk().ok_or(ParseError::Truncated)?;
        if rest.len() < SALT_LEN {
            return Err(ParseError::Truncated);
        }
        Ok(AuthPacket { signature, message, seconds: read_seconds(*seconds) })
    }
}

/// The signed bytes of a packet without a tail. `seconds` beyond [`MAX_SECONDS`] (the year 36812)
/// are held at it.
pub fn message(seconds: u64, salt: [u8; SALT_LEN]) -> [u8; SECONDS_LEN + SALT_LEN] {
    let [_, _, _, a, b, c, d, e] = seconds.min(MAX_SECONDS).to_be_bytes();
    let [w, x, y, z] = salt;
    [a, b, c, d, e, w, x, y, z]
}

fn read_seconds([a, b, c, d, e]: [u8; SECONDS_LEN]) -> u64 {
    u64::from_be_bytes([0, 0, 0, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_in_order() {
        assert_eq!(AuthPacket::parse(&[]), Err(ParseError::Empty));
        for n in 1..AUTH_PACKET_LEN {
            assert_eq!(AuthPacket::parse(&vec![0; n]), Err(ParseError::Truncated), "{n}");
        }
        assert!(AuthPacket::parse(&[0; AUTH_PACKET_LEN]).is_ok());
        assert!(AuthPacket::parse(&[0; MAX_AUTH_PACKET_LEN]).is_ok());
        assert_eq!(AuthPacket::parse(&[0; MAX_AUTH_PACKET_LEN + 1]), Err(ParseError::Oversized));
    }

    #[test]
    fn seconds_are_five_bytes_big_endian() {
        assert_eq!(message(0x0102030405, [6, 7, 8, 9]), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(message(u64::MAX, [0; 4])[..5], [0xff; 5]);
        let mut payload = [0; AUTH_PACKET_LEN];
        payload[64..].copy_from_slice(&message(1_700_000_000, [1, 2, 3, 4]));
        assert_eq!(AuthPacket::parse(&payload).unwrap().seconds, 1_700_000_000);
    }
}
