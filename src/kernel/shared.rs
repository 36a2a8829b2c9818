//! Rules of a link that all remotes share. It has no remote and no port of its own, so the rules tell which of them
//! a packet is from, and which port it goes to, by the outer and the inner header together:
//!
//! ```text
//! chain port { …                                             # in: see `judgement.rs`
//!   @th,64,4 4 ip saddr . udp sport . @th,160,32 @senders accept
//! }
//! chain error { …
//!   @th,192,32 @quoted_addresses goto quoted_remote           # and in that: @th,192,32 . @th,240,16 @quoted accept
//! }
//! chain output { type filter hook output priority raw
//!   oifname DEVICE icmp type redirect drop                   # peers have no shorter way to each other
//!   ip saddr OUTER udp sport PORT @th,64,4 4 goto data       # out
//! }
//! chain data {
//!   th dport set ip daddr . @th,192,32 map @ports notrack accept
//!   drop
//! }
//! ```
//!
//! In bits from the start of the UDP header, the inner source address is at 160, and the destination at 192; what an
//! ICMP error quotes is where `quoted.rs` says. nft looks such bits up in sets of their own type only, which its
//! JSON cannot name: they are made before. A dump with these sets and rules can be loaded.

use nftables::expr::{Expression, Map, MetaKey, NamedExpression};
use nftables::stmt::{Mangle, Statement};

use super::words::{
    CHAIN_QUOTED_REMOTE, SET_PORTS, SET_QUOTED, SET_QUOTED_ADDRESSES, SET_SENDERS, Statements,
};
use crate::engine::host::{RuleSpec, SharedLink};
use crate::host::expression::{
    address, any_of, eq, goto, header, icmp, interface, ip, meta, named_set, ne, number, text,
    transport, udp,
};

/// Where the inner packet begins, in bits behind the beginning of the UDP header, and in it the addresses.
const INNER: u32 = 64;
const INNER_SOURCE: u32 = INNER + 96;
const INNER_DESTINATION: u32 = INNER + 128;
/// Where an ICMP error quotes the destination address, and the UDP port there.
const QUOTED_DESTINATION: u32 = 192;
const QUOTED_PORT: u32 = 240;

/// The sets of packets' bits.
pub const BITS: [&str; 4] = [SET_QUOTED_ADDRESSES, SET_QUOTED, SET_SENDERS, SET_PORTS];

/// Makes them where they are not, as nft(8) reads it. `anew`: another version's table is in the way; nothing gets
/// in until all the rules are there.
pub fn sets(spec: &RuleSpec, anew: bool) -> String {
    let RuleSpec { table, outer, port, .. } = spec;
    let begin = match anew {
        true => format!("table ip {table}\ndelete table ip {table}\n"),
        false => String::new(),
    };
    let guard = match anew {
        true => format!(
            "    chain input {{ type filter hook input priority mangle; \
             ip daddr {outer} udp dport {port} drop; }}\n"
        ),
        false => String::new(),
    };
    format!("{begin}table ip {table} {{\n{SETS}{guard}}}\n")
}

const SETS: &str = "    set quoted_addresses { typeof @th,192,32; }
    set quoted { typeof @th,192,32 . @th,240,16; }
    set senders { typeof ip saddr . udp sport . @th,160,32; flags interval; }
    map ports { typeof ip daddr . @th,192,32 : udp dport; flags interval; }
";

/// The chains that such a link needs beside those of others.
pub fn chains(spec: &RuleSpec) -> Vec<(&'static str, Vec<Statements>)> {
    spec.shared.iter().map(|_| ("data", data(spec))).collect()
}

/// Matches data of a remote that may have this inner source address.
pub fn sender() -> Statement<'static> {
    let parts = vec![ip("saddr"), udp("sport"), transport(INNER_SOURCE, 32)];
    eq(concat(parts), named_set(SET_SENDERS))
}

/// Matches an ICMP error about what went to one of the remotes.
pub fn about_remote() -> Statements {
    let destination = transport(QUOTED_DESTINATION, 32);
    vec![eq(destination, named_set(SET_QUOTED_ADDRESSES)), goto(CHAIN_QUOTED_REMOTE)]
}

/// Matches an ICMP error that quotes address and port of one of them.
pub fn about_port() -> Statement<'static> {
    let parts = vec![transport(QUOTED_DESTINATION, 32), transport(QUOTED_PORT, 16)];
    eq(concat(parts), named_set(SET_QUOTED))
}

/// Matches plain IPIP that no other tunnel of the host is for: the link would take it.
pub fn plain(shared: &SharedLink) -> Option<Statement<'static>> {
    let others: Vec<_> = shared.plain.iter().map(|remote| address(*remote)).collect();
    (!others.is_empty()).then(|| ne(ip("saddr"), any_of(others)))
}

/// What leaves, and what the kernel says to peers who reach each other through it.
pub fn output(spec: &RuleSpec, shared: &SharedLink) -> [Statements; 2] {
    [
        vec![
            eq(meta(MetaKey::Oifname), interface(shared.device.as_str())),
            eq(icmp("type"), text("redirect")),
            Statement::Drop(None),
        ],
        vec![
            eq(ip("saddr"), address(spec.outer)),
            eq(udp("sport"), number(spec.port)),
            eq(transport(INNER, 4), number(4)),
            goto("data"),
        ],
    ]
}

/// Gives data the port of its remote. What has no element goes nowhere.
fn data(spec: &RuleSpec) -> Vec<Statements> {
    let to = concat(vec![ip("daddr"), transport(INNER_DESTINATION, 32)]);
    let port = Map { key: to, data: named_set(SET_PORTS) };
    let port = Expression::Named(NamedExpression::Map(Box::new(port)));
    let mut leaves = vec![Statement::Mangle(Mangle { key: header("th", "dport"), value: port })];
    leaves.extend(spec.untracked.then_some(Statement::Notrack));
    leaves.push(Statement::Accept(None));
    vec![leaves, super::words::refuse(spec, Vec::new(), "no_peer")]
}

fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}
