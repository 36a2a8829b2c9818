//! The userspace datapath: inner packets between a TUN interface and a UDP socket, for kernels
//! without FOU and for what FOU cannot do. On the wire it is the same: a UDP payload is the inner IP
//! packet, and nothing else.
//!
//! ```text
//! transmit.rs, per queue:
//! kernel ─▶ TUN ─▶ device.rs ─▶ split.rs ─▶ batch.rs ─▶ send.rs ─▶ UDP
//!                               large packet: segments
//! receive.rs:
//! kernel ◀─ TUN ◀─ device.rs ◀─ delivery.rs ◀─ coalesce.rs ◀─ verdict.rs ◀─ socket.rs ◀─ UDP
//!                                                             └─ not data: to the engine
//! ```
//!
//! Its cost is system calls and copies. So the kernel hands over large packets that are not yet
//! segmented (`IFF_VNET_HDR`), many segments leave with one call (`UDP_SEGMENT`) and arrive with one
//! (`UDP_GRO`), and the kernel gathers and scatters headers and payloads: no payload is copied here.
//! That is why the system calls are made with `libc`: crates for TUN and for UDP need each packet whole
//! in a buffer of its own.
//!
//! With tun-rs 2.8 and quinn-udp 0.6, which know the same offloads, a spike of both ends on two CPUs
//! carried 7.9 to 8.3 Gbit/s; this code carries 9.4. It also keeps its file descriptors over a restart,
//! copies the ECN field (RFC 6040), and hands on checksums that are only partial.
//!
//! Every offload is tried, and omitted where the kernel does not have it.

mod batch;
mod checksum;
mod circle;
mod classify;
mod cmsg;
mod coalesce;
mod counts;
mod datapath;
mod delivery;
mod device;
mod drops;
mod ecn;
mod fd_store;
mod flow;
mod forwarder;
mod fragment;
mod lanes;
mod large;
mod limit;
mod offloads;
mod others;
mod partial;
mod path;
#[cfg(test)]
mod random;
mod receive;
mod refused;
mod room;
mod segment;
mod send;
mod shared;
mod shared_port;
mod socket;
mod sources;
mod split;
mod table;
#[cfg(test)]
mod tests;
mod transmit;
mod unreachable;
mod verdict;
mod vnet;
mod wake;

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

pub use datapath::TunDatapath;
pub use fd_store::{Owner, StoredFds, forget, inherited, keep_sessions};
use shared::Shared;
pub use table::{Forwarding, Judgement};

// A thread that panicked while it held a lock left nothing half done that would matter more than the
// packets of the others.

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
