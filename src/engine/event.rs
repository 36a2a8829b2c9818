//! What the engine is told, and what it says: events in, actions out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::Memory;
use super::config::Outer;
use super::host::{Found, Traffic};
use super::plan::Step;
use crate::auth::Reject;

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The host was read.
    HostRead(Found),
    /// A packet came through the queue.
    Datagram { from: SocketAddrV4, payload: &'a [u8] },
    /// The server's name was looked up.
    Resolved(Vec<Ipv4Addr>),
    /// The user asks for an authentication packet (SIGUSR1).
    ReauthRequested,
    /// All steps of the last batch were applied.
    Applied,
    /// A step failed, and those after it were not tried. `taken` when the kernel said `EEXIST`.
    StepFailed { step: Step, taken: bool },
    /// [`Engine::next_deadline`] has come.
    Deadline,
    /// The user asks for the end; the host was read for it.
    Shutdown(Found),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Apply(Step),
    Send(Outgoing),
    /// Read the host and come back with [`Event::HostRead`].
    ReadHost,
    Remember(Memory),
    Report(Report),
    /// Nothing more will come.
    Exit,
}

/// A datagram from the tunnel's own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: Vec<u8>,
    pub ttl: Option<u8>,
}

/// Something a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Arrived(SocketAddrV4),
    Moved { from: SocketAddrV4, to: SocketAddrV4 },
    Refreshed(SocketAddrV4),
    Rejected { from: SocketAddrV4, reason: Reject, length: usize },
    Expired(SocketAddrV4),
    Adopted(SocketAddrV4),
    ServerMoved(Ipv4Addr),
    Sent { to: SocketAddrV4, length: usize },
    OuterAddress(Ipv4Addr),
    OuterMissing(Outer),
    Repairing(Step),
    ReauthIgnored,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub accepted: u64,
    pub moved: u64,
    pub sent: u64,
    pub repaired: u64,
    pub rejected: BTreeMap<Reject, u64>,
}

/// A tunnel as it stands, for `show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub device: String,
    pub outer: Option<SocketAddrV4>,
    pub private: Option<Ipv4Addr>,
    pub remote: Option<SocketAddrV4>,
    pub admitted: bool,
    pub inner: Ipv4Addr,
    pub inner_peer: Ipv4Addr,
    pub up: bool,
    /// Unix time.
    pub last_authentication: Option<u64>,
    pub traffic: Traffic,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Apply(step) => write!(f, "apply: {step}"),
            Action::Send(out) => {
                write!(f, "send {} bytes from {} to {}", out.payload.len(), out.from, out.to)
            }
            Action::ReadHost => f.write_str("read host"),
            Action::Remember(_) => f.write_str("remember"),
            Action::Report(report) => write!(f, "report: {report}"),
            Action::Exit => f.write_str("exit"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Arrived(remote) => write!(f, "{remote} authenticated: tunnel up"),
            Report::Moved { from, to } => write!(f, "moved from {from} to {to}"),
            Report::Refreshed(remote) => write!(f, "{remote} authenticated again"),
            Report::Rejected { from, reason, length } => {
                write!(f, "refused a packet of {length} bytes from {from}: {reason}")
            }
            Report::Expired(remote) => {
                write!(f, "the authentication of {remote} has run out: its packets are dropped")
            }
            Report::Adopted(remote) => write!(f, "took over the running tunnel to {remote}"),
            Report::ServerMoved(address) => write!(f, "the server is at {address}"),
            Report::Sent { to, length } => write!(f, "sent {length} bytes to {to}"),
            Report::OuterAddress(address) => write!(f, "our outer address is now {address}"),
            Report::OuterMissing(Outer::Device(device)) => {
                write!(f, "{device} has no IPv4 address: waiting for one")
            }
            Report::OuterMissing(Outer::AddressOn(_, device)) => {
                write!(f, "{device} is gone: waiting for it")
            }
            Report::OuterMissing(Outer::Address(address)) => write!(f, "{address} is gone"),
            Report::OuterMissing(Outer::Route) => {
                f.write_str("there is no route to the server: waiting for one")
            }
            Report::Repairing(step) => write!(f, "repairing: {step}"),
            Report::ReauthIgnored => {
                f.write_str("SIGUSR1 is for clients, a server has nothing to authenticate")
            }
        }
    }
}
