//! What the log and `ipipou monitor` say of a report, in one line.

use std::fmt;

use super::{Report, Unusable};
use crate::engine::config::Outer;
use crate::engine::prover::Passed;
use crate::engine::table::{Inner, Node};
use crate::wire::control::Refusal;

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
            Report::Ipv6GoesPast => f.write_str(
                "--default-route: IPv6 goes past the tunnel, as the server gives us no address of IPv6 inside it",
            ),
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
            Report::NetworkOfOthers { inner, network, interface } => write!(
                f,
                "{inner}, which the tunnel needs, is in {network}, the network of {interface}: who has it there \
                 is cut off; choose other addresses with --tunl-ip and --tunl-peer-ip, or another --number"
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
            Report::TooManyAddresses { without } => write!(
                f,
                "this host has many addresses: connections that others make to some of them, as to {without}, \
                 are answered through the tunnel"
            ),
            Report::Rivals { one, other } => write!(
                f,
                "{one} and {other} take the tunnel from each other: two hosts have one key; give each \
                 its own, and a server of its own (--number)"
            ),
            Report::PeerRivals { name, one, other } => write!(
                f,
                "{one} and {other} take the tunnel of {name} from each other: two hosts have its key; give \
                 each its own, and a name of its own in the files of peers"
            ),
            Report::AlternateInVrf { alternate, uplink } => write!(
                f,
                "{uplink} is in a VRF, where the alternate address {alternate} does not work: the tunnel \
                 carries nothing; choose another local address or port for it than the other \
                 tunnel's, or --datapath tun"
            ),
            Report::RoutedBySource(alternate) => write!(
                f,
                "policy rules of this host (`ip rule`) choose by source address, and do not see that of this \
                 tunnel where it has the alternate address {alternate} beside it: such packets may leave another \
                 way, or not at all; --datapath tun has no such address"
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

impl Report {
    /// Why a peer was refused, for the people at the server.
    pub fn refusal(why: Refusal) -> &'static str {
        match why {
            Refusal::Expired => "it has expired",
            Refusal::Disabled => "it is disabled",
            Refusal::Full => "the server is full",
            Refusal::AddressTaken => "its inner address is taken",
            Refusal::Elsewhere => "it should go to another server",
            Refusal::Other(_) => "for a reason that this version does not know",
        }
    }

    /// The same for people at the peer.
    pub fn told(why: Refusal) -> &'static str {
        match why {
            Refusal::Expired => "our time there is over (`expires` in its files of peers)",
            Refusal::Disabled => "we are disabled there (`enabled = false` in its files of peers)",
            Refusal::Full => "it is full",
            Refusal::AddressTaken => "our inner address is taken there",
            Refusal::Elsewhere => "it asks us to go to another server",
            Refusal::Other(_) => "for a reason that this version does not know",
        }
    }
}
