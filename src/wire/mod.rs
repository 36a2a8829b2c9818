//! Bytes to types and back: the authentication packet, and the headers it travels under.
//!
//! Pure, without allocation by an attacker's number, and fuzzed.

pub mod auth_packet;
pub mod udp;
