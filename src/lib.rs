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
//! | [`host`] | what every datapath uses of a host: links, routes, nftables, name servers, files | `engine`'s types |
//! | [`kernel`] | the kernel's datapath: FOU, `ipip` links, rules, NFQUEUE | `host`, `engine`'s types, `auth`, `wire` |
//! | [`tun`] | the userspace datapath: a TUN interface and a UDP socket | `host`, `engine`'s types, `wire` |
//! | [`bpf`] | the fast path: two BPF programs on top of either | `host`, `engine`'s types, `wire` |
//! | [`sources`] | where peers come from: a table of hosts, names | `host`, `engine`'s types |
//! | [`observe`] | logging, counters, status | `engine`'s types |
//! | [`daemon`] | the loop: signals, sockets, start and end | `kernel`, `tun`, `bpf`, `sources`, `observe`, `host`, `engine`, `auth` |
//!
//! `wire`, `auth` and `engine` import no I/O, no clock, no randomness and no async runtime:
//! `tests/layering.rs` holds them to it. These three are a library as well: [`engine::Engine`] has the
//! contract, and `examples/` shows how to use them. The other rooms are the program's own.

#![warn(clippy::unwrap_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

#[warn(missing_docs)]
pub mod auth;
pub mod bpf;
pub mod cli;
pub mod daemon;
#[warn(missing_docs)]
pub mod engine;
pub mod host;
pub mod kernel;
pub mod observe;
pub mod sources;
pub mod tun;
#[warn(missing_docs)]
pub mod wire;
