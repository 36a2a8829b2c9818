//! The events that the engine takes, and the actions that it returns.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::heard::Contact;
use super::host::step::{Refused, Step};
use super::host::{Found, Traffic};
use super::peers_file::{PeerName, PeerSet};
use super::report::Report;
use super::table::Node;
use super::{Memory, Writing};
use crate::auth::Reject;

/// Something that happened, for [`Engine::handle`](super::Engine::handle).
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The host was read.
    HostRead(Found),
    /// A packet that may be an authentication packet came, by the queue or by the UDP socket.
    Datagram {
        /// Outer address and UDP port that it claims to come from.
        from: SocketAddr,
        /// Its UDP payload.
        payload: &'a [u8],
    },
    /// A server's name was looked up.
    Resolved {
        /// Which one of a client's servers; the first has number 0.
        server: usize,
        /// Its addresses in the order in which to try them.
        addresses: Vec<IpAddr>,
    },
    /// A table of nodes, all names looked up.
    Hosts(Vec<Node>),
    /// An operator ends the session of a named peer, which may come back.
    Kick(PeerName),
    /// Another set of peers, whose files have no mistake.
    Peers(PeerSet),
    /// The user asks for an authentication packet (SIGUSR1).
    ReauthRequested,
    /// The memory was written, as [`Action::Write`] asks, or the disk refused that.
    Written(Writing),
    /// The steps of [`Action::Apply`] were applied, or some were refused.
    Applied(Result<(), Failed>),
    /// All steps of [`Action::TearDown`] were tried.
    TornDown {
        /// How many of them were refused.
        failed: usize,
    },
    /// A packet could not be sent: there may be an address already, and no route yet.
    SendFailed,
    /// [`Engine::next_deadline`](super::Engine::next_deadline) has come.
    Deadline,
    /// Somebody asks whether the server with this number is there;
    /// [`Engine::take_pong`](super::Engine::take_pong) has what it says. Not more often than once a second.
    Ping(usize),
    /// The user asks for the end: a client tells its server, while its tunnel is still there.
    /// [`Event::Shutdown`] follows once [`Engine::says_goodbye`](super::Engine::says_goodbye) is false, or
    /// at any time.
    Leaving,
    /// The user asks for the end; the host was read for it.
    Shutdown(Found),
}

/// A batch of steps of which some were refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed {
    /// What was done, in order.
    pub done: Vec<Step>,
    /// What was refused, and why.
    pub refused: Vec<(Step, Refused)>,
    /// What needs one of the refused steps, and was not tried.
    pub untried: Vec<Step>,
}

/// Something for the caller to do; [`Driver`](super::driver::Driver) carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Apply these in order, but for those that [need](super::host::needs) one that was refused.
    Apply(Vec<Step>),
    /// Apply these in order, whatever becomes of each.
    TearDown(Vec<Step>),
    /// Send this datagram; when that fails, come back with [`Event::SendFailed`].
    Send(Outgoing),
    /// A remote of the userspace datapath proved itself again: what was learned behind it is alive.
    PeerAlive(SocketAddr),
    /// Read the host and come back with [`Event::HostRead`], once all steps are applied that wait for it: of
    /// a reading before, they would be planned again.
    ReadHost,
    /// Write this before what follows is done.
    Remember(Memory),
    /// Write what [`Engine::memory`](super::Engine::memory) tells then, in the background, and come
    /// back with [`Event::Written`]. One writing does for all that were asked for before it began.
    Write(Writing),
    /// Tell a person.
    Report(Report),
    /// Nothing more will come.
    Exit,
}

/// A datagram from the tunnel's own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Our outer address and UDP port.
    pub from: SocketAddr,
    /// The remote.
    pub to: SocketAddr,
    /// Firewall mark (`SO_MARK`).
    pub mark: Option<u32>,
    /// Its UDP payload; it may be empty.
    pub payload: Vec<u8>,
    /// TTL or hop limit; `None`: the kernel's default.
    pub ttl: Option<u8>,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Authentication packets that were accepted.
    pub accepted: u64,
    /// Moves of a peer to another remote.
    pub moved: u64,
    /// Authentication packets that were sent, replies included.
    pub sent: u64,
    /// Steps that put back what somebody else changed.
    pub repaired: u64,
    /// Packets that were refused, by reason.
    pub rejected: BTreeMap<Reject, u64>,
}

/// A tunnel as it stands, for `show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Name of the tunnel interface as it is configured.
    pub device: String,
    /// Our outer address and UDP port; `None` while there is none, or before the first reading.
    pub outer: Option<SocketAddr>,
    /// The alternate address, while the link uses it.
    pub alternate: Option<IpAddr>,
    /// The remote of a tunnel with one peer.
    pub remote: Option<SocketAddr>,
    /// All remotes of a tunnel with many peers, and the inner addresses that a table gives them.
    pub remotes: Option<Vec<(SocketAddr, Vec<IpNet>)>>,
    /// Whether the data of the one remote is let in; true for a tunnel with many peers.
    pub admitted: bool,
    /// Our IPv4 address inside the tunnel.
    pub inner: IpAddr,
    /// The other end's address inside the tunnel, or the network of all of them.
    pub inner_peer: IpNet,
    /// Our IPv6 address inside the tunnel, with the network on the link.
    pub inner6: Option<IpNet>,
    /// Whether an interface of the tunnel is set up.
    pub up: bool,
    /// Unix time at which a peer last authenticated, or we last sent a packet that does.
    pub last_authentication: Option<u64>,
    /// A client's server, as far as it is known.
    pub contact: Option<Contact>,
    /// Unix time when packets last came in, as far as this process saw.
    pub last_data: Option<u64>,
    /// Unix time of the last answer to an authentication packet that is counted apart from data.
    pub last_reply: Option<u64>,
    /// What the tunnel's interfaces carried since they were made.
    pub traffic: Traffic,
}

impl Action {
    /// Asks for these steps, if there are any.
    pub(super) fn apply(steps: Vec<Step>) -> Option<Self> {
        (!steps.is_empty()).then_some(Action::Apply(steps))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Apply(steps) | Action::TearDown(steps) => {
                f.write_str("apply")?;
                steps.iter().try_for_each(|step| write!(f, ": {step}"))
            }
            Action::Send(out) => {
                write!(f, "send {} bytes from {} to {}", out.payload.len(), out.from, out.to)
            }
            Action::PeerAlive(remote) => write!(f, "heard of {remote}"),
            Action::ReadHost => f.write_str("read host"),
            Action::Remember(_) => f.write_str("remember"),
            Action::Write(_) => f.write_str("write"),
            Action::Report(report) => write!(f, "report: {report}"),
            Action::Exit => f.write_str("exit"),
        }
    }
}
