//! Rules of a link that all remotes share. It has no remote and no port of its own, so the rules tell which of them
//! a packet is from, and which port it goes to, by the outer and the inner header together:
//!
//! ```text
//! chain port { …                                             # in: see `judgement.rs`
//!   @th,64,4 4 ip saddr . udp sport . @th,160,32 @senders32 accept
//!   @th,64,4 4 ip saddr . udp sport . @th,160,24 @senders24 accept      # and so for 16 and 8 bits
//! }
//! chain error { …
//!   @th,192,32 @quoted_addresses goto quoted_remote          # in that: @th,192,32 . @th,240,16 @quoted accept
//! }
//! chain output { type filter hook output priority raw
//!   oifname DEVICE icmp type redirect drop                   # peers have no shorter way to each other
//!   ip saddr OUTER udp sport PORT @th,64,4 4 goto data       # out
//! }
//! chain data {
//!   th dport set ip daddr . @th,192,32 map @ports32 notrack accept
//!   th dport set ip daddr . @th,192,24 map @ports24 notrack accept      # and so for 16 and 8 bits
//!   drop
//! }
//! ```
//!
//! In bits from the start of the UDP header, the inner source address is at 160, and the destination at 192; what an
//! ICMP error quotes is where `quoted.rs` says. nft looks such bits up in sets of their own type only, which its
//! JSON cannot name: they are made before. A dump with these sets and rules can be loaded.
//!
//! A set for networks of any length would be simpler, but the kernel copies all of it when one element changes
//! (`pipapo_clone` in net/netfilter/nft_set_pipapo.c): tried on 6.18, 85 ms of 10,000, against 30 µs in a hash.

use nftables::expr::{Expression, Map, MetaKey, NamedExpression};
use nftables::schema::{FlushObject, Map as NftMap, Set};
use nftables::stmt::{Mangle, Statement};
use nftables::types::NfFamily;

use super::words::{
    CHAIN_QUOTED_REMOTE, SET_QUOTED, SET_QUOTED_ADDRESSES, SETS_PORTS, SETS_SENDERS, Statements,
    refuse,
};
use crate::engine::host::{RuleSpec, SharedLink};
use crate::host::expression::{
    address, any_of, eq, goto, header, icmp, interface, ip, meta, named_set, ne, number, text,
    transport, udp,
};
use crate::host::nft::{NftError, check_in_words};

/// Where the inner packet begins, in bits behind the beginning of the UDP header, and in it the addresses.
const INNER: u32 = 64;
const INNER_SOURCE: u32 = INNER + 96;
const INNER_DESTINATION: u32 = INNER + 128;
/// Where an ICMP error quotes the destination address, and the UDP port there.
const QUOTED_DESTINATION: u32 = 192;
const QUOTED_PORT: u32 = 240;

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
    let sets = declarations();
    format!("{begin}table ip {table} {{\n{sets}{guard}}}\n")
}

/// The sets of packets' bits, each with its type as nft(8) has it.
fn types() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    let senders = SETS_SENDERS.map(|(length, name)| {
        ("set", name, format!("ip saddr . udp sport . @th,{INNER_SOURCE},{length}"))
    });
    let ports = SETS_PORTS.map(|(length, name)| {
        ("map", name, format!("ip daddr . @th,{INNER_DESTINATION},{length} : udp dport"))
    });
    let (address, port) = (QUOTED_DESTINATION, QUOTED_PORT);
    let quoted = [
        ("set", SET_QUOTED_ADDRESSES, format!("@th,{address},32")),
        ("set", SET_QUOTED, format!("@th,{address},32 . @th,{port},16")),
    ];
    senders.into_iter().chain(ports).chain(quoted)
}

/// Checks, without changing anything, that `nft` can make them.
///
/// # Errors
/// When it cannot be run, or does not know such sets.
pub fn probe() -> Result<(), NftError> {
    check_in_words(&format!("table ip ipipou-probe {{\n{}}}\n", declarations()))
}

fn declarations() -> String {
    types().map(|(kind, name, of)| format!("    {kind} {name} {{ typeof {of}; }}\n")).collect()
}

/// Empties them.
pub fn flush(table: &str) -> impl Iterator<Item = FlushObject<'_>> {
    types().map(move |(kind, name, _)| {
        let (family, table, name) = (NfFamily::IP, table.into(), name.into());
        match kind {
            "map" => {
                FlushObject::Map(Box::new(NftMap { family, table, name, ..NftMap::default() }))
            }
            _ => FlushObject::Set(Box::new(Set { family, table, name, ..Set::default() })),
        }
    })
}

/// The chains that such a link needs beside those of others.
pub fn chains(spec: &RuleSpec) -> Vec<(&'static str, Vec<Statements>)> {
    spec.shared.iter().map(|_| ("data", data(spec))).collect()
}

/// Matches data of a remote that may have this inner source address.
pub fn senders() -> impl Iterator<Item = Statement<'static>> {
    SETS_SENDERS.into_iter().map(|(length, set)| {
        let bits = transport(INNER_SOURCE, length.into());
        eq(concat(vec![ip("saddr"), udp("sport"), bits]), named_set(set))
    })
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
    let leaves = SETS_PORTS.into_iter().map(|(length, map)| {
        let to = concat(vec![ip("daddr"), transport(INNER_DESTINATION, length.into())]);
        let port = Box::new(Map { key: to, data: named_set(map) });
        let value = Expression::Named(NamedExpression::Map(port));
        let mut rule = vec![Statement::Mangle(Mangle { key: header("th", "dport"), value })];
        rule.extend(spec.untracked.then_some(Statement::Notrack));
        rule.push(Statement::Accept(None));
        rule
    });
    leaves.chain([refuse(spec, Vec::new(), "no_peer")]).collect()
}

fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}
