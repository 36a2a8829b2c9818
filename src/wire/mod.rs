//! Bytes to types and back: the authentication packet, and the headers it travels under.
//!
//! Pure, without allocation by an attacker's number, and fuzzed.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::indexing_slicing))]

pub mod address;
pub mod auth_packet;
pub mod inner;
pub mod udp;
