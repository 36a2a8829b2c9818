//! The packets of control protocol v2, UDP payloads. Integers are big-endian.
//!
//! ```text
//! client → server: hello, goodbye; exactly 128 bytes
//!   0  64  ed25519 signature over bytes[64..] and the shared secret; its first byte is at least 0x90
//!  64   5  Unix time in seconds    69  4  salt      (for old servers: to them this is a packet with a tail)
//!  73   1  version 2    74  1  kind: 1 hello, 2 goodbye    75  1  flags: 2 tell me my inner addresses
//!  76   8  sender: first bytes of the client's key     84  8  receiver: first bytes of the server's
//!  92  16  cookie, or random bytes
//! 108   4  zeros, or one TLV (6: MTU)
//! 112  16  MAC over bytes[64..112]
//!
//! server → client: challenge 0x81, accept 0x82, refusal 0x83; at most 128 bytes
//!   0   1  kind    1  1  version 2    2  2  flags, or the reason of a refusal
//!   4  16  the MAC of the hello that is answered
//!  20  16  cookie for the next hello
//!  36   …  TLVs: type (1), length (1), value; type 0, or the end of the field, ends them
//! end  16  MAC over everything before it
//! ```
//!
//! TLVs: 3 our address (4 or 16 bytes) and port as the server sees them, 4 lease in seconds (4 bytes),
//! 5 an inner address (4 or 16) and the length of its prefix (1), 6 MTU in bytes (2). Others are skipped.
//! Every answer is padded to 128 bytes: a rule of a firewall that looks at one length finds both.

mod answer;
mod hello;
mod tlv;

pub use answer::{Answer, AnswerKind, ReceivedAnswer, Refusal, is_answer};
pub use hello::{Hello, HelloFields, HelloKind, is_hello, is_hello_to, may_begin};

use super::auth_packet::SIGNATURE_LEN;

/// Bytes of a hello or goodbye.
pub const HELLO_LEN: usize = 128;
/// Bytes that an answer has at most, so that it is never longer than what it answers.
pub const MAX_ANSWER_LEN: usize = HELLO_LEN;
/// Bytes of a MAC.
pub const MAC_LEN: usize = 16;
/// Bytes of a hello that its MAC covers.
pub const AUTHENTICATED_LEN: usize = HELLO_LEN - SIGNATURE_LEN - MAC_LEN;
/// The version in every packet.
pub const VERSION: u8 = 2;

/// The first bytes of a public key, by which it is looked up.
pub type Hint = [u8; 8];
/// A MAC; that of a hello is what its answer repeats.
pub type Tag = [u8; MAC_LEN];
/// What a server gives to a client to show that it can be reached where it says.
pub type Cookie = [u8; 16];

/// Why bytes are not a packet of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It has another length.
    #[error("of another length")]
    Length,
    /// Its first byte is that of something else.
    #[error("begins as something else does")]
    FirstByte,
    /// It has another version.
    #[error("of another version")]
    Version,
    /// It is neither a hello nor a goodbye, or none of the answers.
    #[error("of an unknown kind")]
    Kind,
    /// A TLV runs over its end, or has a value of another length.
    #[error("with a broken field")]
    Field,
}

#[cfg(test)]
mod tests;
