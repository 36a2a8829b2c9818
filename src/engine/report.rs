//! Reports to people, and their text in the log.

use std::fmt;
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
use super::table::{Inner, Node};
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
    /// An address at the other end is also one of another interface of this host.
    InnerTaken {
        /// The inner address that both have.
        inner: IpAddr,
        /// Name of this host's interface that has it.
        interface: String,
    },
    /// Somebody put an interface of the tunnel into a VRF, whose routing tables are its own.
    InVrf(DeviceName),
    /// Two remotes with one key take the tunnel from each other.
    Rivals {
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
            Report::NothingBack(server) => {
                write!(f, "nothing has come back from {server} so far: trying again")
            }
            Report::FastPath(Ok((uplinks, takes))) => {
                write!(f, "fast path: by {}", uplinks.join(", "))?;
                takes.limit().map_or(Ok(()), |limit| write!(f, ", {limit}"))
            }
            Report::FastPath(Err(why)) => write!(f, "no fast path: {why}"),
            Report::ClockJumped(seconds) => write!(
                f,
                "the clock was set, or the machine slept ({seconds} s): authenticating again"
            ),
            Report::MadeRoom(remote) => {
                write!(f, "{remote} was silent for --learn-lifetime: another client has its place")
            }
            Report::ServerMoved(address) => write!(f, "the server is at {address}"),
            Report::NextAddress { from, to, silent } => {
                let seconds = silent.as_secs();
                write!(
                    f,
                    "nothing has come back from {from} for {seconds} s: trying {to}, another address \
                     of the server's name"
                )
            }
            Report::NextServer { from, to, why: Passed::Silent } => {
                write!(f, "no answer from {from}: asking {to}")
            }
            Report::NextServer { from, to, why: Passed::Refused } => {
                write!(f, "{from} does not let us in: asking {to}")
            }
            Report::NextServer { from, to, why: Passed::NoWay } => {
                write!(f, "there is no way to {from}: asking {to}")
            }
            Report::BackToFirst { to, answers_for } => {
                let seconds = answers_for.as_secs();
                write!(f, "{to}, the first server, has answered for {seconds} s: going back to it")
            }
            Report::NameUnusable {
                address,
                outer: Outer::Address(own) | Outer::AddressOn(own, _),
            } => {
                write!(
                    f,
                    "the server's name stands for {address}, which our outer address {own} cannot send \
                     to: waiting for another one"
                )
            }
            Report::NameUnusable { address, outer: Outer::Device(_) | Outer::Route } => write!(
                f,
                "the server's name stands for {address}, and the kernel's datapath goes over IPv4 only: \
                 waiting for an IPv4 one; --datapath tun goes over both"
            ),
            Report::Sent { to, length } => write!(f, "sent {length} bytes to {to}"),
            Report::OuterAddress(address) => write!(f, "our outer address is now {address}"),
            Report::OuterOnlyIpv6(device) => write!(
                f,
                "{device} has IPv6 addresses only, and the kernel's datapath goes over IPv4 only: \
                 waiting for an IPv4 one; --datapath tun goes over both"
            ),
            Report::OuterMissing(Outer::Device(device)) => {
                write!(f, "{device} has no address for this tunnel: waiting for one")
            }
            Report::OuterMissing(Outer::AddressOn(address, device)) => {
                write!(f, "{address} or {device} is gone: waiting for it")
            }
            Report::OuterMissing(Outer::Address(address)) => {
                write!(f, "{address} is gone: waiting for it")
            }
            Report::OuterMissing(Outer::Route) => {
                f.write_str("there is no route to the server: waiting for one")
            }
            Report::WayLeadsBack(device) => {
                write!(
                    f,
                    "the route to the server leads into {device}, the tunnel itself: waiting for \
                     another one; --default-route and --route keep the way to the server out"
                )
            }
            Report::PeersLoaded(loaded) => write!(f, "peers: {loaded}"),
            Report::PeerUp { name, remote } => write!(f, "{name} is connected, at {remote}"),
            Report::PeerMoved { name, from, to } => write!(f, "{name} moved from {from} to {to}"),
            Report::PeerDown { name, remote, why } => {
                write!(f, "{name} is not connected any more, was at {remote}: {why}")
            }
            Report::PeerRefused { name, remote, why } => {
                write!(f, "{name} at {remote} may not come in: {}", Report::refusal(*why))
            }
            Report::PeerUnproven { name, from } => write!(
                f,
                "{from} says that it is {name}, and does not prove it: another secret, or another \
                 server key"
            ),
            Report::Connected { server, round_trip, seen } => {
                write!(f, "connected to {server}, {:.1} ms", round_trip.as_secs_f64() * 1e3)?;
                seen.map_or(Ok(()), |seen| write!(f, "; it sees us at {seen}"))
            }
            Report::InnerAwaited => {
                f.write_str("no address inside the tunnel yet: waiting for the server to give one")
            }
            Report::InnerGiven(given) => {
                f.write_str("our address inside the tunnel, from the server:")?;
                given.iter().try_for_each(|address| write!(f, " {address}"))
            }
            Report::GivenNotTaken(what) => write!(f, "of what the server gives us, {what}"),
            Report::NoInnerGiven => f.write_str(
                "the server gives us no address inside the tunnel that we can have: see its file of \
                 peers, or give --tunl-ip",
            ),
            Report::ServerRefused { server, why } => {
                write!(f, "{server} does not let us in: {}", Report::told(*why))
            }
            Report::Disconnected { server, tries, silent, has_answered } => {
                let seconds = silent.as_secs();
                write!(f, "not connected: no answer from {server}, {tries} tries in {seconds} s")?;
                match has_answered {
                    true => Ok(()),
                    false => f.write_str(
                        "; if it is an older ipipou, or one without --peers, it never answers: give \
                         --protocol 1",
                    ),
                }
            }
            Report::HostsChanged(1) => f.write_str("the table of hosts has 1 node"),
            Report::HostsChanged(count) => write!(f, "the table of hosts has {count} nodes"),
            Report::NodeUnusable { node, why: Unusable::LeadsBack } => {
                let Node { inner, remote } = node;
                write!(f, "node {}: {remote} is our own address: left out", Inner(*inner))
            }
            Report::NodeUnusable { node, why: Unusable::HoldsUs } => {
                write!(
                    f,
                    "node {}: our own inner address is in it, so it is taken for ourselves and left \
                     out; if it is behind {}, split it around our address",
                    Inner(node.inner),
                    node.remote
                )
            }
            Report::NodeUnusable { node, why: Unusable::NotIpv4 } => {
                write!(f, "node {}: IPv6 needs --datapath tun: left out", Inner(node.inner))
            }
            Report::LedAstray { inner, interface } => write!(
                f,
                "the routes of this host lead to {interface} with packets for {inner}, the other \
                 end's address inside the tunnel: it cannot be reached; see `ip route get {inner}`, \
                 or choose other addresses with --tunl-ip and --tunl-peer-ip"
            ),
            Report::InnerTaken { inner, interface } => write!(
                f,
                "{inner}, an address at the other end of the tunnel, is one of {interface} as well: it \
                 cannot be reached; choose others with --tunl-ip and --tunl-peer-ip"
            ),
            Report::InVrf(device) => write!(
                f,
                "{device} was put into a VRF: the other end is reached from within that VRF only, see \
                 ip-vrf(8); `ip link set dev {device} nomaster` takes it out again"
            ),
            Report::Rivals { one, other } => write!(
                f,
                "{one} and {other} take the tunnel from each other: two hosts have one key; give each \
                 its own, and a server of its own (--number)"
            ),
            Report::AlternateInVrf { alternate, uplink } => write!(
                f,
                "{uplink} is in a VRF, where the alternate address {alternate} does not work: the tunnel \
                 carries nothing; choose another local address or port for it than the other \
                 tunnel's, or --datapath tun"
            ),
            Report::KeepsBeingUndone(step) => write!(
                f,
                "repairing: {step}; it keeps being undone: repairing less often, and without a word, \
                 while that goes on"
            ),
            Report::Repairing(step) => write!(f, "repairing: {step}"),
            Report::ReauthIgnored => {
                f.write_str("SIGUSR1 is for clients, a server has nothing to authenticate")
            }
        }
    }
}
