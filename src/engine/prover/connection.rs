//! The state of a client's connection, for people.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::engine::Report;
use crate::wire::control::Refusal;

/// Whether our server is there, as it told us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Time since it let us in; `None`: we are not connected.
    pub connected_for: Option<Duration>,
    /// Why we are not.
    pub why: Option<Why>,
    /// Whether the server ever answered this process.
    pub has_answered: bool,
    /// Between a hello and its answer.
    pub round_trip: Option<Duration>,
    /// Our address and port as the server sees them.
    pub seen: Option<SocketAddr>,
    /// How long the server keeps us without another hello.
    pub lease: Option<Duration>,
    /// Our inner addresses as the server has them.
    pub inner: Vec<IpNet>,
    /// Bytes of the largest packet inside the server's tunnel.
    pub mtu: Option<u16>,
}

/// Why we are not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing has come back.
    NoAnswer {
        /// Hellos since the last answer.
        tries: u32,
        /// Since the first of them.
        silent: Duration,
    },
    /// The server does not let us in.
    Refused(Refusal),
}

/// What was reported last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Connected,
    Disconnected,
    Refused,
}

/// What a server said when somebody asked whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pong {
    /// It answered.
    Answered {
        /// Its outer address and port.
        from: SocketAddr,
        /// Between the hello and the answer.
        round_trip: Duration,
        /// Our address and port as it sees them; `None`: it was only asked whether it is there.
        seen: Option<SocketAddr>,
    },
    /// It does not let us in.
    Refused {
        /// Its outer address and port.
        from: SocketAddr,
        /// Why.
        why: Refusal,
    },
}

impl fmt::Display for Pong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pong::Answered { round_trip, seen, .. } => {
                write!(f, "time {:.1} ms", round_trip.as_secs_f64() * 1e3)?;
                seen.map_or(Ok(()), |seen| write!(f, ", seen as {seen}"))
            }
            Pong::Refused { why, .. } => {
                write!(f, "it does not let us in: {}", Report::told(*why))
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoAnswer { tries, silent } => {
                write!(f, "no answer, {tries} tries in {} s", silent.as_secs())
            }
            Why::Refused(why) => write!(f, "the server does not let us in: {}", Report::told(*why)),
        }
    }
}
