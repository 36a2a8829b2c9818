//! Version 2 of the control protocol: client and server as state machines, without I/O, clock or random
//! numbers.
//!
//! A hello of a client is answered by a challenge that carries a cookie, unless it carries a good one. So
//! the address is proved first, and a signature is checked only when something changes. [`Server`] keeps
//! where its peers are and until when; [`Client`] says when a hello is due, and whether its server is
//! there.
//!
//! Every `boot` is the time since the machine booted, suspend included (CLOCK_BOOTTIME): leases, cookies
//! and retries go on while the machine sleeps. It never goes back from one call to the next. Random bytes
//! come from a [`Random`].

mod accepted;
mod answered;
mod bucket;
mod client;
mod outcome;
mod outstanding;
mod peer;
mod receive;
mod server;
mod timing;

pub use accepted::{Accepted, ClientHeard, State};
pub use client::{Client, ClientConfig};
pub use outcome::{Heard, Ignored, Outcome};
pub use peer::{Allowed, PeerId, ServerPeer, Session};
pub use server::Server;
pub use timing::HELLOS_IN_TURN;

/// Fills a slice with random bytes that were never used before and that nobody else knows.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);
