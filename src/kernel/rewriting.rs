//! Rules for the kernel's two difficulties with links between the same addresses, and with connections.
//!
//! The kernel tells `ipip` links apart by their local and remote address only. So a link beside another one to the
//! same remote has an alternate local address. Data of its remote gets that at the end of hook input, where packets
//! are whole and routed already, behind the filters of firewalls. What leaves gets the real one back after it is
//! routed, before connection tracking and firewalls see it. Nothing on the way to the listener asks for the address but
//! the socket and the link (`udp_rcv`, `ipip_rcv`).
//!
//! ```text
//! chain input { …                                            # see `judgement.rs`
//!   ip daddr ALTERNATE udp dport PORT drop                   # only the chain `to_link` may make it
//!   ip daddr ALTERNATE ip protocol 4 drop
//! }
//! chain to_link { type filter hook input priority 1000
//!   ip daddr OUTER udp dport PORT ip daddr set ip saddr . udp sport map @privates
//! }
//! chain prerouting { type filter hook prerouting priority raw
//!   ip daddr OUTER udp dport PORT ip saddr . udp sport @known notrack     # at a server
//! }
//! chain output { type filter hook output priority raw
//!   ip daddr REMOTE udp sport PORT udp dport REMOTE drop     # while it is not admitted any more
//!   ip saddr OUTER udp sport PORT notrack accept             # at a server
//!   ip saddr ALTERNATE udp sport PORT goto data
//! }
//! chain data {
//!   ip saddr set OUTER fib saddr type != local drop
//!   notrack                                                  # at a server
//! }
//! ```
//!
//! From an address that the host has not, the kernel sends nothing of a direct link (`ip_route_output_key_hash_rcu` in
//! net/ipv4/route.c); here a rule does it. The link looks its way up as from the alternate address, which policy rules
//! of the host may send elsewhere. A chain of type `route` would have the kernel look once more, but without the link's
//! device, without its mark and behind its path MTU discovery: tried, a path of 1400 bytes became a black hole.
//!
//! These rules are there only while they have something to do; notrack only where something tracks
//! connections: a rule that is not there costs the least. Where `@privates` has no such element, the
//! rule does not match, and the packet goes on unchanged. A client's packets are tracked, if anything tracks
//! connections at all: a firewall that accepts only answers has to see what they answer. It sees the real address
//! on both ways.

use std::net::Ipv4Addr;

use nftables::expr::{Expression, Map as MapExpression, NamedExpression};
use nftables::stmt::Statement;

use super::shared;
use super::words::{CHAIN_TO_LINK, SET_ALTERNATES, Statements, known_set, refuse};
use crate::engine::host::RuleSpec;
use crate::host::expression::{
    address, any_of, eq, goto, ip, named_set, ne, number, set_address, source, source_type, text,
    udp,
};

pub fn chains(spec: &RuleSpec) -> Vec<(&'static str, Vec<Statements>)> {
    vec![
        ("prerouting", prerouting(spec)),
        (CHAIN_TO_LINK, to_link(spec)),
        ("output", output(spec)),
        ("data", data(spec)),
    ]
}

/// Gives data of remotes whose links have alternate addresses these: what is let in, and nothing else comes here.
fn to_link(spec: &RuleSpec) -> Vec<Statements> {
    let alternate = match &spec.shared {
        Some(link) => address(link.alternate),
        None if spec.alternate.is_empty() => return Vec::new(),
        None => Expression::Named(NamedExpression::Map(Box::new(MapExpression {
            key: source(),
            data: named_set(SET_ALTERNATES),
        }))),
    };
    vec![vec![
        eq(ip("daddr"), address(spec.outer)),
        eq(udp("dport"), number(spec.port)),
        set_address("daddr", alternate),
    ]]
}

/// Drops what has an alternate address on arrival.
pub fn forged(spec: &RuleSpec) -> Vec<Statements> {
    if spec.alternate.is_empty() {
        return Vec::new();
    }
    let alternates = any_of(spec.alternate.iter().map(|one| address(*one)).collect());
    let to = eq(ip("daddr"), alternates);
    [eq(udp("dport"), number(spec.port)), eq(ip("protocol"), number(4))]
        .map(|what| refuse(spec, vec![to.clone(), what], "private_address"))
        .into()
}

fn prerouting(spec: &RuleSpec) -> Vec<Statements> {
    let known = vec![
        eq(ip("daddr"), address(spec.outer)),
        eq(udp("dport"), number(spec.port)),
        eq(source(), named_set(known_set(spec))),
        Statement::Notrack,
    ];
    Some(known).filter(|_| spec.untracked).into_iter().collect()
}

fn output(spec: &RuleSpec) -> Vec<Statements> {
    let mut rules: Vec<Statements> = Vec::new();
    for remote in &spec.silenced {
        rules.push(vec![
            eq(ip("daddr"), address(*remote.ip())),
            eq(udp("sport"), number(spec.port)),
            eq(udp("dport"), number(remote.port())),
            Statement::Drop(None),
        ]);
    }
    if let Some(link) = &spec.shared {
        rules.push(shared::no_shorter_way(link));
    }
    if spec.untracked {
        let mut direct = ours(spec, spec.outer);
        direct.extend([Statement::Notrack, Statement::Accept(None)]);
        rules.push(direct);
    }
    let from_link = |own: &Ipv4Addr| [ours(spec, *own), vec![goto("data")]].concat();
    rules.extend(spec.alternate.iter().map(from_link));
    rules
}

/// Gives what leaves links with alternate addresses our outer one, while the host has that.
fn data(spec: &RuleSpec) -> Vec<Statements> {
    if spec.alternate.is_empty() {
        return Vec::new();
    }
    let mut rules = vec![vec![
        set_address("saddr", address(spec.outer)),
        ne(source_type(), text("local")),
        Statement::Drop(None),
    ]];
    rules.extend(match spec.shared {
        Some(_) => shared::to_ports(spec),
        None => spec.untracked.then(|| vec![Statement::Notrack]).into_iter().collect(),
    });
    rules
}

/// Matches what the tunnel sends from this address.
fn ours(spec: &RuleSpec, source: Ipv4Addr) -> Statements {
    vec![eq(ip("saddr"), address(source)), eq(udp("sport"), number(spec.port))]
}
