//! The state of a client's connection to its server.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::wire::control::Refusal;

/// Whether a client is connected. It only describes: the data path stays as it is in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No hello was accepted, or the lease of the last one is over.
    Trying {
        /// Hellos that came due since the last accept or refusal; those that answer a challenge are not
        /// counted.
        tries: u32,
        /// CLOCK_BOOTTIME of the first of them.
        since: Duration,
    },
    /// The server lets us in.
    Connected {
        /// CLOCK_BOOTTIME of the accept that began it.
        since: Duration,
    },
    /// The server does not let us in.
    Refused {
        /// What it said.
        why: Refusal,
    },
}

/// What the last accept said. Times are by CLOCK_BOOTTIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// When the first accept came since which there was no gap.
    pub since: Duration,
    /// When the lease ends, counted from the sending of the hello that was accepted.
    pub until: Duration,
    /// From the sending of that hello to its accept.
    pub round_trip: Duration,
    /// Our address and port as the server sees them.
    pub seen: Option<SocketAddr>,
    /// Our inner addresses as the server has them, if it was asked.
    pub inner: Vec<IpNet>,
    /// Bytes of the largest packet inside the server's tunnel.
    pub mtu: Option<u16>,
}

/// What an answer led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientHeard {
    /// It is not an answer that is awaited, and changed nothing.
    Nothing,
    /// The server wants to see its cookie; a hello may be due at once.
    Challenged,
    /// We are connected.
    Accepted,
    /// The server does not let us in.
    Refused(Refusal),
    /// The server heard our goodbye.
    Gone,
}
