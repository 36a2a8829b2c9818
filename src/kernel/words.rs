//! The vocabulary of the ruleset: the names of its sets and chains, the contents of the sets, and what
//! every chain uses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use nftables::stmt::{Counter, Statement};

use crate::engine::host::{Admitted, Control, PacketShape, RuleSpec};
use crate::wire::control::HELLO_LEN;

/// (address . port) of remotes whose packets keep our outer address.
pub const SET_REMOTES: &str = "remotes";
/// Addresses of the same remotes.
pub const SET_ADDRESSES: &str = "addresses";
/// (address . port) of remotes whose packets are given an alternate local address, and that.
pub const SET_ALTERNATES: &str = "privates";
/// (address . port) of all these remotes.
pub const SET_KNOWN: &str = "known";
/// Addresses of all these remotes.
pub const SET_KNOWN_ADDRESSES: &str = "known_addresses";

/// Where all remotes share a link: (address . port . network) that inner packets may come from, by length of the
/// network. To find a whole number of bytes, the kernel needs no list of ranges.
pub const SETS_SENDERS: [(u8, &str); 4] =
    [(32, "senders32"), (24, "senders24"), (16, "senders16"), (8, "senders8")];
/// (address . network) that inner packets go to, and the UDP port there.
pub const SETS_PORTS: [(u8, &str); 4] =
    [(32, "ports32"), (24, "ports24"), (16, "ports16"), (8, "ports8")];
/// (address . port) of all these remotes.
pub const SET_SHARING: &str = "sharing";
/// Addresses of these remotes: routes lead there.
pub const SET_GATEWAYS: &str = "gateways";
/// The same, as an ICMP error quotes them.
pub const SET_QUOTED_ADDRESSES: &str = "quoted_addresses";
/// (address . port) of all these remotes, as an ICMP error quotes it.
pub const SET_QUOTED: &str = "quoted";

/// The contents of our sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub remotes: BTreeSet<SocketAddrV4>,
    pub addresses: BTreeSet<Ipv4Addr>,
    pub alternates: BTreeMap<SocketAddrV4, Ipv4Addr>,
    pub known: BTreeSet<SocketAddrV4>,
    pub known_addresses: BTreeSet<Ipv4Addr>,
    /// Those on a link that all share, and the networks behind each.
    pub behind: BTreeMap<SocketAddrV4, BTreeSet<Ipv4Net>>,
}

/// The contents that our sets must have for these remotes.
pub fn elements(admitted: &BTreeSet<Admitted>) -> Contents {
    let mut contents = Contents::default();
    for Admitted { remote, alternate, networks } in admitted {
        contents.known.insert(*remote);
        contents.known_addresses.insert(*remote.ip());
        if let Some(networks) = networks {
            contents.behind.insert(*remote, networks.iter().copied().collect());
            continue;
        }
        match alternate {
            Some(alternate) => {
                contents.alternates.insert(*remote, *alternate);
            }
            None => {
                contents.remotes.insert(*remote);
                contents.addresses.insert(*remote.ip());
            }
        }
    }
    contents
}

/// The networks of these lengths that a network is made of: itself, or up to 128, or all 256.
pub fn parts(network: Ipv4Net) -> impl Iterator<Item = Ipv4Net> {
    let length = network.prefix_len().next_multiple_of(8).max(8);
    // It is at least as long as the network.
    network.subnets(length).into_iter().flatten()
}

/// The set of (address . port) of all remotes that are let in.
pub fn known_set(spec: &RuleSpec) -> &'static str {
    match spec.shared {
        Some(_) => SET_SHARING,
        None => SET_KNOWN,
    }
}

/// The chains whose rules come from [`super::quoted`], and the chain to which the first one leads.
pub const CHAIN_QUOTED: &str = "quoted";
pub const CHAIN_QUOTED_PORT: &str = "quoted_port";
pub const CHAIN_QUOTED_REMOTE: &str = "quoted_remote";

/// Where data gets the alternate address of its link.
pub const CHAIN_TO_LINK: &str = "to_link";

/// The statements of a rule: its matches and its verdict.
pub type Statements = Vec<Statement<'static>>;

/// The UDP length, header included, of packets that may be authentication although they look like data
/// or come from an address that sends data.
pub fn control_length(spec: &RuleSpec) -> Option<u16> {
    match spec.control {
        Control::Refuse => None,
        Control::Queue { shape: PacketShape::NotIpv4 { length, .. }, .. } => {
            Some(length.saturating_add(UDP_HEADER))
        }
        // Both have the same length.
        Control::Queue { shape: PacketShape::Hellos { .. } | PacketShape::Answers, .. } => {
            Some(HELLO_LENGTH)
        }
        Control::Queue { shape: PacketShape::FromRemote { .. }, .. } => Some(UDP_HEADER),
    }
}

/// Bytes of a UDP header, which `udp length` includes.
pub const UDP_HEADER: u16 = 8;

/// The UDP length of hellos and answers of control protocol v2.
#[allow(clippy::cast_possible_truncation)] // 128
pub const HELLO_LENGTH: u16 = HELLO_LEN as u16 + UDP_HEADER;

/// Counts the packet in a named counter, if there are counters.
pub fn count(spec: &RuleSpec, counter: &'static str) -> Option<Statement<'static>> {
    spec.counters.then(|| Statement::Counter(Counter::Named(counter.into())))
}

/// Drops a packet that matches, and counts it.
pub fn refuse(spec: &RuleSpec, matches: Statements, counter: &'static str) -> Statements {
    let dropped = [Statement::Drop(None)];
    matches.into_iter().chain(count(spec, counter)).chain(dropped).collect()
}
