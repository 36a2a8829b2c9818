//! Why a tunnel has no fast path, in words for people.

use std::fmt;
use std::time::Duration;

/// The most remotes whose routes are looked up at each reading of the host.
pub const WAYS: usize = 256;
/// Hellos at this interval keep a connection known to the host that tracks it: for 30 s after each
/// (`nf_conntrack_udp_timeout`), and a keepalive may be up to 2 s longer.
pub const KEEPS: Duration = Duration::from_secs(27);

/// Why there is no fast path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WithoutFastPath {
    /// `--fast-path off`.
    NotAsked,
    /// The kernel does not take it, which was said before.
    Unavailable,
    /// The host has IPsec policies, which judge packets elsewhere than where the programs are.
    Ipsec,
    /// The host's policy rules tell packets apart by more than the programs do.
    SelectiveRules,
    /// The tunnel is bound to no interface, and `auto` is asked for: a route that moves is followed late.
    Unbound,
    /// The host tracks connections, and a client's hellos are too rare to keep its own known: data is not seen.
    Tracked,
    /// Packets are shaped at this interface of the tunnel, by this queueing discipline.
    Shaped(String, String),
    /// Outer packets are IPv6, whose UDP has checksums.
    OuterIpv6,
    /// `--encap-csum`.
    Checksums,
    /// Inner addresses are learned from packets.
    Learns,
    /// Peers are kept apart.
    Isolates,
    /// There are too many remotes to look up by which interface packets leave for each.
    ManyWays,
    /// This interface puts something before its packets that the programs do not know.
    UnknownHeader(String),
    /// This interface is one of the tunnel's own, or another tunnel's that the outer address is not in.
    IntoTunnel(String),
    /// What comes in by this interface is for the bridge, or the like, that it is a part of.
    Port(String),
    /// The interface of outer packets, or its address, is not there.
    NotYet,
}

impl WithoutFastPath {
    /// Whether nobody needs to be told.
    pub fn is_known(&self) -> bool {
        match self {
            WithoutFastPath::NotAsked | WithoutFastPath::Unavailable | WithoutFastPath::NotYet => {
                true
            }
            WithoutFastPath::Ipsec
            | WithoutFastPath::SelectiveRules
            | WithoutFastPath::Unbound
            | WithoutFastPath::Tracked
            | WithoutFastPath::Shaped(..)
            | WithoutFastPath::OuterIpv6
            | WithoutFastPath::Checksums
            | WithoutFastPath::Learns
            | WithoutFastPath::Isolates
            | WithoutFastPath::ManyWays
            | WithoutFastPath::UnknownHeader(_)
            | WithoutFastPath::IntoTunnel(_)
            | WithoutFastPath::Port(_) => false,
        }
    }
}

impl fmt::Display for WithoutFastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WithoutFastPath::NotAsked => f.write_str("--fast-path off"),
            WithoutFastPath::Unavailable => f.write_str("the kernel does not take it"),
            WithoutFastPath::Ipsec => {
                f.write_str("this host has IPsec policies, which the programs would pass by")
            }
            WithoutFastPath::SelectiveRules => f.write_str(
                "policy rules of this host (`ip rule`) ask for ports, protocols or users, and the \
                 programs do not",
            ),
            WithoutFastPath::Unbound => f.write_str(
                "bound to no interface, so it would follow routes late: give -b @DEV, or \
                 --fast-path on",
            ),
            WithoutFastPath::Tracked => write!(
                f,
                "connections are tracked here, and data on the fast path does not keep them: give \
                 --keepalive {}, or --fast-path on",
                KEEPS.as_secs()
            ),
            WithoutFastPath::Shaped(link, kind) => {
                write!(f, "packets are shaped at {link} (qdisc {kind})")
            }
            WithoutFastPath::OuterIpv6 => f.write_str("outer packets are IPv6"),
            WithoutFastPath::Checksums => f.write_str("--encap-csum"),
            WithoutFastPath::Learns => f.write_str("--learn"),
            WithoutFastPath::Isolates => f.write_str("peers with `isolate`"),
            WithoutFastPath::ManyWays => {
                write!(f, "bound to no interface, with more than {WAYS} peers: give -b @DEV")
            }
            WithoutFastPath::UnknownHeader(uplink) => {
                write!(f, "{uplink} puts headers before its packets that the programs do not know")
            }
            WithoutFastPath::IntoTunnel(uplink) => write!(
                f,
                "{uplink} leads into this tunnel, or into one that the outer address is not in"
            ),
            WithoutFastPath::Port(uplink) => write!(
                f,
                "{uplink} is a part of a bridge, a bond or the like, which gets its packets"
            ),
            WithoutFastPath::NotYet => f.write_str("its uplink is not there, or has no address"),
        }
    }
}
