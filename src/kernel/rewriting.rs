//! Rules that act before conntrack and routing. The packets of remotes that share an address get an
//! alternate local address, by which the kernel tells their links apart, and packets that leave get the
//! real one back. Packets of known remotes are not tracked.
//!
//! ```text
//! chain prerouting { type filter hook prerouting priority raw
//!   ip daddr OUTER udp dport PORT ip saddr . udp sport @known notrack     # at a server
//!   ip daddr OUTER udp dport PORT goto rewrite
//!   ip daddr ALTERNATE udp dport PORT drop                     # only a rewrite may make it
//!   ip daddr ALTERNATE ip protocol 4 drop
//! }
//! chain rewrite {
//!   udp length 81 @th,64,4 4 @th,80,16 != 73 return          # no data: keeps our outer address
//!   @th,64,4 4 ip daddr set ip saddr . udp sport map @alternates notrack accept
//! }
//! chain output { type filter hook output priority raw
//!   ip daddr REMOTE udp sport PORT udp dport REMOTE drop     # while it is not admitted any more
//!   ip saddr OUTER udp sport PORT notrack accept             # at a server
//!   ip saddr ALTERNATE udp sport PORT notrack ip saddr set OUTER
//! }
//! chain reassemble { ip protocol udp tproxy to :1 }          # nothing jumps here: see `reassemble`
//! ```
//!
//! These rules are there only while they have something to do; notrack only where something tracks
//! connections: a rule that is not there costs the least. Where `@alternates` has no such element, the
//! rule does not match, and the packet goes on unchanged. Packets that are not from a known remote stay
//! as they are, so the answers to a host behind this one, whose packets leave by our own port, are
//! still given back to it. A client's packets are tracked, if anything tracks connections at all: a
//! firewall that accepts only answers has to see what they answer.

use nftables::expr::{Expression, Map as MapExpression, NamedExpression};
use nftables::stmt::{Mangle, Statement, TProxy};

use super::judgement::lookalike;
use super::shared;
use super::words::{Reassembly, SET_ALTERNATES, SET_KNOWN, Statements, refuse};
use crate::engine::host::RuleSpec;
use crate::host::expression::{
    address, any_of, eq, goto, ip, named_set, number, source, transport, udp,
};

pub fn chains(spec: &RuleSpec, reassembly: Reassembly) -> Vec<(&'static str, Vec<Statements>)> {
    vec![
        ("prerouting", prerouting(spec)),
        ("rewrite", rewrite(spec)),
        ("output", output(spec)),
        ("reassemble", reassemble(spec, reassembly)),
    ]
}

fn prerouting(spec: &RuleSpec) -> Vec<Statements> {
    let to_us = || vec![eq(ip("daddr"), address(spec.outer)), eq(udp("dport"), number(spec.port))];
    let mut rules = Vec::new();
    if spec.untracked {
        let mut known = to_us();
        known.extend([eq(source(), named_set(SET_KNOWN)), Statement::Notrack]);
        rules.push(known);
    }
    if !spec.alternate.is_empty() {
        let mut to_port = to_us();
        to_port.push(goto("rewrite"));
        rules.push(to_port);
        let alternates =
            || any_of(spec.alternate.iter().map(|alternate| address(*alternate)).collect());
        for matches in [
            vec![eq(ip("daddr"), alternates()), eq(udp("dport"), number(spec.port))],
            vec![eq(ip("daddr"), alternates()), eq(ip("protocol"), number(4))],
        ] {
            rules.push(refuse(spec, matches, "private_address"));
        }
    }
    rules
}

fn rewrite(spec: &RuleSpec) -> Vec<Statements> {
    if spec.alternate.is_empty() {
        return Vec::new();
    }
    let mut rules: Vec<Statements> = lookalike(spec)
        .map(|matches| matches.into_iter().chain([Statement::Return(None)]).collect())
        .into_iter()
        .collect();
    rules.push(vec![
        eq(transport(64, 4), number(4)),
        set(
            "daddr",
            Expression::Named(NamedExpression::Map(Box::new(MapExpression {
                key: source(),
                data: named_set(SET_ALTERNATES),
            }))),
        ),
        Statement::Notrack,
        Statement::Accept(None),
    ]);
    rules
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
    let ours = |source| {
        let matches = [eq(ip("saddr"), address(source)), eq(udp("sport"), number(spec.port))];
        Statements::from(matches)
    };
    rules.extend(spec.shared.iter().flat_map(|link| shared::output(spec, link)));
    if spec.untracked {
        let mut direct = ours(spec.outer);
        direct.extend([Statement::Notrack, Statement::Accept(None)]);
        rules.push(direct);
    }
    for alternate in &spec.alternate {
        let mut rule = ours(*alternate);
        rule.extend([Statement::Notrack, set("saddr", address(spec.outer))]);
        rules.push(rule);
    }
    rules
}

fn set(field: &'static str, value: Expression<'static>) -> Statement<'static> {
    Statement::Mangle(Mangle { key: ip(field), value })
}

/// A `tproxy` statement makes the kernel put fragments together at priority -400, as it does for
/// conntrack, but without conntrack (`nft_tproxy_init` calls `nf_defrag_ipv4_enable`). So a rewritten
/// address applies to all fragments. It is enough that the statement exists. Packets that are not
/// rewritten are put together by the kernel before hook input (`ip_local_deliver`).
fn reassemble(spec: &RuleSpec, reassembly: Reassembly) -> Vec<Statements> {
    match reassembly {
        Reassembly::On if !spec.alternate.is_empty() => vec![vec![
            eq(ip("protocol"), Expression::Number(17)),
            Statement::TProxy(TProxy { family: None, port: 1, addr: None }),
        ]],
        Reassembly::On | Reassembly::Off => Vec::new(),
    }
}
