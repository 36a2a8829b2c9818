//! `ipipou`: unencrypted, authenticated, kernel-speed IP tunnels over UDP.
//!
//! A pure engine decides, thin adapters do, and one daemon loop joins them; the kernel carries the
//! packets. The rooms, and what each may use:
//!
//! | room | what it is | uses |
//! |---|---|---|
//! | [`cli`] | options, `.conf` files, usage errors | `engine`, `auth` |
//! | [`wire`] | bytes to types and back | nothing |
//! | [`auth`] | keys, tokens, policy, replay memory | `wire` |
//! | [`engine`] | events in, actions out; wanted against found | `auth`, `wire` |
//! | [`kernel`] | netlink, nftables, NFQUEUE, raw sending: no decisions | `engine`'s types, `wire` |
//! | [`tun`] | packets through userspace: a TUN interface and a UDP socket | `engine`'s types, `wire` |
//! | [`observe`] | logging, counters, status | `engine`'s types |
//! | [`daemon`] | the loop: clock, signals, sockets | all of the above |
//!
//! `wire`, `auth` and `engine` import no I/O, no clock, no randomness and no async runtime:
//! `tests/layering.rs` holds them to it.

#![warn(clippy::unwrap_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod auth;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod kernel;
pub mod observe;
pub mod tun;
pub mod wire;
