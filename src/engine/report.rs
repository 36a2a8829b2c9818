//! Reports to people.

mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::config::{DeviceName, Outer, ServerName};
use super::datapath::WithoutFastPath;
use super::given::NotTaken;
use super::host::Takes;
use super::host::step::Step;
use super::hub::{Gone, Loaded};
use super::peers_file::PeerName;
use super::prover::Passed;
use super::table::Node;
use crate::auth::Reject;
use crate::wire::control::Refusal;

/// Something a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The tunnel to it is made.
    Arrived(SocketAddr),
    /// The tunnel leads to its new remote.
    Moved {
        /// The remote before.
        from: SocketAddr,
        /// The remote now.
        to: SocketAddr,
    },
    /// A remote that is admitted authenticated again.
    Refreshed(SocketAddr),
    /// A packet proves nothing.
    Rejected {
        /// The remote that it claims to come from.
        from: SocketAddr,
        /// Why it was refused.
        reason: Reject,
        /// Bytes of its payload.
        length: usize,
    },
    /// The authentication of this remote has run out, or does not count for this process: it must
    /// authenticate again before it is admitted.
    Expired(SocketAddr),
    /// The tunnel to this remote, which an earlier process left running, is kept.
    Adopted(SocketAddr),
    /// This remote was silent for long, and its place is given to another client.
    MadeRoom(SocketAddr),
    /// The address of the server that is in use from now on.
    ServerMoved(IpAddr),
    /// Nothing comes back from one address of the server's name: the next is tried.
    NextAddress {
        /// The silent address.
        from: IpAddr,
        /// The address that is in use from now on.
        to: IpAddr,
        /// How long packets have gone out and none has come in.
        silent: Duration,
    },
    /// The next of several servers is asked.
    NextServer {
        /// The one that was asked until now.
        from: ServerName,
        /// The one that is asked from now on.
        to: ServerName,
        /// What was the matter.
        why: Passed,
    },
    /// The first of several servers answers again, and is asked to let us in.
    BackToFirst {
        /// The first server.
        to: ServerName,
        /// For how long it has answered.
        answers_for: Duration,
    },
    /// The server's name stands for no address that ours can send to; this is one of them.
    NameUnusable {
        /// The first address that the name stands for.
        address: IpAddr,
        /// Where our outer address comes from, as it is configured.
        outer: Outer,
    },
    /// An authentication packet goes out.
    Sent {
        /// The remote that it is for.
        to: SocketAddr,
        /// Bytes of its payload.
        length: usize,
    },
    /// Our outer address has changed to this one.
    OuterAddress(IpAddr),
    /// The configured outer address, device or route is not there now.
    OuterMissing(Outer),
    /// The interface has IPv6 addresses only, and the datapath is the kernel's.
    OuterOnlyIpv6(DeviceName),
    /// The route to the server leads into this interface, the tunnel itself.
    WayLeadsBack(DeviceName),
    /// Another table of hosts is in use, with this many nodes.
    HostsChanged(usize),
    /// The files of peers were read.
    PeersLoaded(Loaded),
    /// A named peer is connected.
    PeerUp {
        /// Its name.
        name: PeerName,
        /// Where it is.
        remote: SocketAddr,
    },
    /// A named peer is at another remote.
    PeerMoved {
        /// Its name.
        name: PeerName,
        /// The remote before.
        from: SocketAddr,
        /// The remote now.
        to: SocketAddr,
    },
    /// A named peer is not connected any more.
    PeerDown {
        /// Its name.
        name: PeerName,
        /// Where it was.
        remote: SocketAddr,
        /// Why.
        why: Gone,
    },
    /// A named peer may not come in, and the answer said so.
    PeerRefused {
        /// Its name.
        name: PeerName,
        /// Where it is.
        remote: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// Somebody uses the name of a peer and does not prove to be it.
    PeerUnproven {
        /// The peer's name.
        name: PeerName,
        /// Where the hello came from.
        from: SocketAddr,
    },
    /// Our server answered: we are connected.
    Connected {
        /// Our server.
        server: SocketAddr,
        /// Between a hello and its answer.
        round_trip: Duration,
        /// Our address and port as the server sees them.
        seen: Option<SocketAddr>,
    },
    /// Our inner addresses come from the server, which has not told them yet.
    InnerAwaited,
    /// The server gives us these inner addresses, with their networks.
    InnerGiven(Vec<IpNet>),
    /// Everything is to go through the tunnel, and the server gives us no inner address of IPv6.
    Ipv6GoesPast,
    /// The server lets us in and gives us no inner address that we can have.
    NoInnerGiven,
    /// Something that the server gives cannot be had here, or not all of it.
    GivenNotTaken(NotTaken),
    /// Our server does not let us in.
    ServerRefused {
        /// Our server.
        server: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// Our server does not answer any more.
    Disconnected {
        /// Our server.
        server: SocketAddr,
        /// Hellos since its last answer.
        tries: u32,
        /// Since the first of them.
        silent: Duration,
        /// Whether it ever answered this process.
        has_answered: bool,
    },
    /// A node of the table cannot be used.
    NodeUnusable {
        /// The node, as the table has it.
        node: Node,
        /// Why it is left out.
        why: Unusable,
    },
    /// The host sends packets for the other end's address inside the tunnel elsewhere.
    LedAstray {
        /// The other end's address inside the tunnel.
        inner: IpAddr,
        /// Name of the interface that its packets leave by.
        interface: String,
    },
    /// An address that the tunnel needs is in a network on another interface, where somebody may have it.
    NetworkOfOthers {
        /// An address that is added for the tunnel.
        inner: IpAddr,
        /// The network that it is in.
        network: IpNet,
        /// The name of the other interface, which that network is on.
        interface: String,
    },
    /// An address at the other end is also one of another interface of this host.
    InnerTaken {
        /// The inner address that both have.
        inner: IpAddr,
        /// Name of this host's interface that has it.
        interface: String,
    },
    /// Somebody put an interface of the tunnel into a VRF, whose routing tables are its own.
    InVrf(DeviceName),
    /// This host has too many addresses to leave all of them alone while everything goes through the tunnel.
    TooManyAddresses {
        /// One that is not left alone.
        without: IpAddr,
    },
    /// Two remotes with one key take the tunnel from each other.
    Rivals {
        /// The one whose address and port sort first.
        one: SocketAddr,
        /// The other one.
        other: SocketAddr,
    },
    /// Two remotes with the key of a named peer take its tunnel from each other.
    PeerRivals {
        /// Its name.
        name: PeerName,
        /// The one whose address and port sort first.
        one: SocketAddr,
        /// The other one.
        other: SocketAddr,
    },
    /// An alternate address is needed, and the uplink is in a VRF, which has none of the loopback's.
    AlternateInVrf {
        /// The alternate address.
        alternate: Ipv4Addr,
        /// Name of the interface that outer packets leave by.
        uplink: String,
    },
    /// Policy rules of the host choose by source address, and links have this alternate one when they ask.
    RoutedBySource(Ipv4Addr),
    /// Something that was made before is not there any more, and this step puts it back.
    Repairing(Step),
    /// Somebody undoes this step again and again: it is repeated less often, and silently.
    KeepsBeingUndone(Step),
    /// Which packets take a fast path, by these interfaces, or why none does.
    FastPath(Result<(Vec<String>, Takes), WithoutFastPath>),
    /// SIGUSR1 came to a server, which authenticates to nobody.
    ReauthIgnored,
    /// Tried several times, and nothing comes through the tunnel from this server.
    NothingBack(SocketAddr),
    /// The clock was set, or the machine slept; the clock is off from before by this many seconds.
    ClockJumped(u64),
}

/// Why a node of a table cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Its outer address is our own: packets would come back.
    LeadsBack,
    /// Our own inner address is in it.
    HoldsUs,
    /// It has an IPv6 address, and the kernel's datapath carries IPv4 only.
    NotIpv4,
}
