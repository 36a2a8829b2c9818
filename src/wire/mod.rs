//! Turns bytes into types and back: the authentication packet, and the headers that it travels under.
//!
//! This room is pure, allocates nothing by a number that an attacker chooses, and is fuzzed.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::indexing_slicing))]

pub mod address;
pub mod auth_packet;
pub mod control;
pub mod inner;
pub mod udp;
