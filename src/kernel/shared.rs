//! Rules of a link that all remotes share. It has no remote and no port of its own, so the rules tell which of them
//! a packet is from, and which port it goes to, by the outer and the inner header together:
//!
//! ```text
//! chain input { …                                              # see `judgement.rs`; so in `port`
//!   … ip saddr . udp sport . @th,160,32 @senders32 accept
//!   … ip saddr . udp sport . @th,160,24 @senders24 accept      # and so for 16 and 8 bits
//! }
//! chain to_link {                                              # see `rewriting.rs`
//!   ip daddr OUTER udp dport PORT ip daddr set ALTERNATE
//! }
//! chain error {
//!   icmp type redirect ip saddr @gateways drop
//!   … @th,192,32 @quoted_addresses goto quoted_remote          # in that: @th,192,32 . @th,240,16 @quoted accept
//! }
//! chain output { type filter hook output priority raw
//!   oifname DEVICE icmp type redirect drop                     # peers have no shorter way to each other
//! }
//! chain data { …                                               # see `rewriting.rs`
//!   th dport set ip daddr . @th,192,32 map @ports32 notrack accept
//!   th dport set ip daddr . @th,192,24 map @ports24 …         # and so for 16 and 8 bits
//!   drop
//! }
//! ```
//!
//! The link always has the alternate address: with our outer one it would take the plain IPIP of everybody, and a link
//! to exactly one of the remotes would take its data.
//!
//! In bits from the start of the UDP header, the inner source address is at 160, and the destination at 192; what an
//! ICMP error quotes is where `quoted.rs` says. nft looks such bits up in sets of their own type only, which its
//! JSON cannot name: they are made before, and filled after the rules are there, over netlink. A dump with these sets
//! and rules can be loaded.
//!
//! The kernel would believe a redirect by the address that a route leads to (`__ip_do_redirect` in
//! net/ipv4/route.c), which here is that of a remote: whoever forges it would have the data.
//!
//! A set for networks of any length would be simpler, but the kernel copies all of it when one element changes
//! (`pipapo_clone` in net/netfilter/nft_set_pipapo.c): tried on 6.18, 85 ms of 10,000, against 30 µs in a hash.

use nftables::expr::{Expression, Map, MetaKey, NamedExpression};
use nftables::stmt::{Mangle, Statement};

use super::words::{
    CHAIN_QUOTED_REMOTE, SET_GATEWAYS, SET_QUOTED, SET_QUOTED_ADDRESSES, SET_SHARING, SETS_PORTS,
    SETS_SENDERS, Statements, refuse,
};
use crate::engine::host::{RuleSpec, SharedLink};
use crate::host::expression::{
    concat, eq, goto, header, icmp, interface, ip, meta, named_set, text, transport, udp,
};
use crate::host::nft::{NftError, check_in_words};

/// Where the inner packet begins, in bits behind the beginning of the UDP header, and in it the addresses.
const INNER: u32 = 64;
const INNER_SOURCE: u32 = INNER + 96;
const INNER_DESTINATION: u32 = INNER + 128;
/// Where an ICMP error quotes the destination address, and the UDP port there.
const QUOTED_DESTINATION: u32 = 192;
const QUOTED_PORT: u32 = 240;

/// Makes the sets, as nft(8) reads it: where they are not, or in a table that has no rules or those of another
/// version. Nothing gets in until all of ours are there.
pub fn sets(spec: &RuleSpec, link: &SharedLink, made: Made) -> String {
    let RuleSpec { table, outer, port, .. } = spec;
    let (begin, guard) = match made {
        Made::Beside => (String::new(), String::new()),
        Made::Anew => (
            format!("table ip {table}\ndelete table ip {table}\n"),
            format!(
                "    chain input {{ type filter hook input priority mangle; \
                 ip daddr {outer} udp dport {port} drop; ip daddr {} drop; }}\n",
                link.alternate
            ),
        ),
    };
    let sets = declarations();
    format!("{begin}table ip {table} {{\n{sets}{guard}}}\n")
}

/// Where sets are made.
#[derive(Debug, Clone, Copy)]
pub enum Made {
    /// Beside the rules of an earlier process, which stay until ours replace them.
    Beside,
    /// In a new table.
    Anew,
}

/// Each set, with its type as nft(8) has it.
fn declarations() -> String {
    let senders = SETS_SENDERS.map(|(bits, name)| {
        ("set", name, format!("ip saddr . udp sport . @th,{INNER_SOURCE},{bits}"))
    });
    let ports = SETS_PORTS.map(|(bits, name)| {
        ("map", name, format!("ip daddr . @th,{INNER_DESTINATION},{bits} : udp dport"))
    });
    let (address, port) = (QUOTED_DESTINATION, QUOTED_PORT);
    let by_remote = [
        ("set", SET_SHARING, "ip saddr . udp sport".to_owned()),
        ("set", SET_GATEWAYS, "ip saddr".to_owned()),
        ("set", SET_QUOTED_ADDRESSES, format!("@th,{address},32")),
        ("set", SET_QUOTED, format!("@th,{address},32 . @th,{port},16")),
    ];
    let all = senders.into_iter().chain(ports).chain(by_remote);
    all.map(|(kind, name, of)| format!("    {kind} {name} {{ typeof {of}; }}\n")).collect()
}

/// Checks, without changing anything, that `nft` can make them.
///
/// # Errors
/// When it cannot be run, or does not know such sets.
pub fn probe() -> Result<(), NftError> {
    let rule = "    chain data { fib saddr type != local drop; }\n"; // of a module of its own
    check_in_words(&format!("table ip ipipou-probe {{\n{}{rule}}}\n", declarations()))
}

/// Each of these lets data of remotes in, from inner addresses of theirs.
pub fn senders() -> Vec<Statements> {
    let from = |(length, set): (u8, &str)| {
        let sender =
            concat(vec![ip("saddr"), udp("sport"), transport(INNER_SOURCE, length.into())]);
        vec![eq(sender, named_set(set)), Statement::Accept(None)]
    };
    SETS_SENDERS.map(from).into()
}

/// Matches what says that there is a better way than by one of the remotes.
pub fn elsewhere() -> Statements {
    vec![eq(icmp("type"), text("redirect")), eq(ip("saddr"), named_set(SET_GATEWAYS))]
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

/// Drops what the kernel says to peers who reach each other through it.
pub fn no_shorter_way(link: &SharedLink) -> Statements {
    vec![
        eq(meta(MetaKey::Oifname), interface(link.device.as_str())),
        eq(icmp("type"), text("redirect")),
        Statement::Drop(None),
    ]
}

/// Gives data the port of its remote. What has no element goes nowhere.
pub fn to_ports(spec: &RuleSpec) -> Vec<Statements> {
    let leaves = SETS_PORTS.into_iter().map(|(length, map)| {
        let to = concat(vec![ip("daddr"), transport(INNER_DESTINATION, length.into())]);
        let port = Box::new(Map { key: to, data: named_set(map) });
        let value = Expression::Named(NamedExpression::Map(port));
        let to_port = Statement::Mangle(Mangle { key: header("th", "dport"), value });
        let mut rule = vec![to_port];
        rule.extend(spec.untracked.then_some(Statement::Notrack));
        rule.push(Statement::Accept(None));
        rule
    });
    leaves.chain([refuse(spec, Vec::new(), "no_peer")]).collect()
}
