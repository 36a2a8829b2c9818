//! The trait of what carries the packets. A datapath has a room of its own, and is a variant of
//! [`config::Datapath`](crate::engine::config::Datapath). Its capabilities, and a file about what it needs, are
//! in `engine/datapath/`; it is chosen in `daemon/choice.rs`. docs/design.md says what else one touches.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;

use super::StepError;
use super::table::RuleCounter;
use crate::engine::Outgoing;
use crate::engine::host::step::Step;
use crate::engine::host::surroundings::Surroundings;
use crate::engine::host::{Found, Traffic};

/// A datapath in use. What it made itself is gone when it is dropped; what steps made stays.
pub trait Datapath {
    /// Adds to a reading of the host what this datapath has there: listeners, rules, a socket.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    fn read(&mut self, found: &mut Found) -> io::Result<()>;

    /// Makes a change. Steps of other datapaths and of the host are ignored.
    ///
    /// # Errors
    /// What the kernel said.
    fn apply<'a>(&'a mut self, step: &'a Step) -> LocalBoxFuture<'a, Result<(), StepError>>;

    /// Waits for the next packet that may be an authentication packet, and returns its source and
    /// payload. `None` when no more will come. Safe to cancel.
    fn next_control(&mut self) -> LocalBoxFuture<'_, Option<(SocketAddr, Vec<u8>)>>;

    /// Notifies when the path to a remote has become narrower, where the datapath knows that: a fast path has
    /// to know it as well.
    fn narrower(&self) -> Option<Arc<Notify>> {
        None
    }

    /// The files that carry the packets, for a tunnel that takes the place of this one; none where the kernel
    /// does so.
    ///
    /// # Errors
    /// Too many open files.
    fn open_files(&self) -> io::Result<OpenFiles> {
        Ok(OpenFiles::default())
    }

    /// Sends a packet from the port of the tunnel.
    ///
    /// # Errors
    /// What the kernel said.
    fn send(&self, packet: &Outgoing) -> io::Result<()>;

    /// Tells the datapath that a remote authenticated again, so what was learned behind it is still in
    /// use.
    fn peer_alive(&self, _remote: SocketAddr) {}

    /// Whether it judges packets by facts about the host, which [`Datapath::surround`] hands to it.
    fn wants_surroundings(&self) -> bool {
        false
    }

    fn surround(&self, _around: Surroundings) {}

    /// Returns what the log should say; called at every reading of the host.
    fn warnings(&mut self) -> Warnings;

    fn statistics(&mut self) -> Statistics;
}

/// Open files that carry the packets of one tunnel.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// The queues of the interface.
    pub queues: Vec<OwnedFd>,
    /// The socket of its port.
    pub socket: Option<OwnedFd>,
    /// Of a server: what the last process noted of its sessions.
    pub sessions: Option<OwnedFd>,
}

impl OpenFiles {
    /// Whether nothing carries packets.
    pub fn is_nothing(&self) -> bool {
        self.queues.is_empty() && self.socket.is_none()
    }
}

/// What is wrong around a datapath.
#[derive(Debug, Default)]
pub struct Warnings {
    /// Packets of the tunnel itself were routed into it.
    pub leads_back: bool,
    /// How many ICMP errors about packets of the tunnel were not believed, where they are counted.
    pub icmp_errors: Option<u64>,
}

/// What a datapath counted, and what else it knows.
#[derive(Debug, Default)]
pub struct Statistics {
    /// The offloads in use.
    pub offloads: Option<String>,
    /// The same, one by one.
    pub offloads_used: Vec<&'static str>,
    /// Packets that were dropped by rules.
    pub by_rules: Vec<RuleCounter>,
    /// Packets that this process dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Packets that other programs' rules sent to the queue of this process; they passed.
    pub queued_by_others: u64,
    /// Inner addresses that were learned, their remotes, and how long each has been silent.
    pub learned: Vec<(IpAddr, SocketAddr, Duration)>,
    /// The last error about a remote that packets did not reach, and how long ago it came.
    pub unreachable: Option<(Unreachable, Duration)>,
    /// What was carried from and to each remote, where the interfaces do not tell.
    pub by_remote: HashMap<SocketAddr, Traffic>,
}

/// What a router or a host said about a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable {
    /// Where the packet was sent to.
    pub to: SocketAddr,
    /// In the words of RFC 792 and RFC 4443.
    pub what: &'static str,
    /// Who said it, according to the message: this host itself when nobody answers ARP.
    pub by: Option<IpAddr>,
}
