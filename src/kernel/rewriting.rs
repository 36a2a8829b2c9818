//! Rules for the kernel's two difficulties with links between the same addresses, and with connections.
//!
//! The kernel tells `ipip` links apart by their local and remote address only. So a link beside another one to the
//! same remote has an alternate local address: data of its remote gets that, in hook input, where packets are whole
//! and routed already, and what leaves gets the real one back after it is routed, before connection tracking and
//! firewalls see it. Nothing on the way to the listener asks for the address but the socket and the link (`udp_rcv`, `ipip_rcv`).
//!
//! ```text
//! chain input { …                                            # see `judgement.rs`
//!   … udp length != 81 ip daddr set ip saddr . udp sport map @alternates accept
//!   ip daddr ALTERNATE udp dport PORT drop                   # only that rule may make it
//!   ip daddr ALTERNATE ip protocol 4 drop
//! }
//! chain prerouting { type filter hook prerouting priority raw
//!   ip daddr OUTER udp dport PORT ip saddr . udp sport @known notrack     # at a server
//! }
//! chain output { type filter hook output priority raw
//!   ip daddr REMOTE udp sport PORT udp dport REMOTE drop     # while it is not admitted any more
//!   ip saddr OUTER udp sport PORT notrack accept             # at a server
//!   ip saddr ALTERNATE udp sport PORT ip saddr set OUTER notrack
//! }
//! ```
//!
//! These rules are there only while they have something to do; notrack only where something tracks
//! connections: a rule that is not there costs the least. Where `@alternates` has no such element, the
//! rule does not match, and the packet goes on unchanged. A client's packets are tracked, if anything tracks
//! connections at all: a firewall that accepts only answers has to see what they answer. It sees the real address
//! on both ways.

use nftables::expr::{Expression, Map as MapExpression, NamedExpression};
use nftables::stmt::Statement;

use super::shared;
use super::words::{SET_ALTERNATES, Statements, known_set, refuse};
use crate::engine::host::RuleSpec;
use crate::host::expression::{
    address, any_of, eq, ip, named_set, number, set_address, source, udp,
};

pub fn chains(spec: &RuleSpec) -> Vec<(&'static str, Vec<Statements>)> {
    vec![("prerouting", prerouting(spec)), ("output", output(spec))]
}

/// Lets data of remotes in whose links have alternate addresses, and gives it these.
pub fn into_links(spec: &RuleSpec) -> Option<Statements> {
    let alternate = Expression::Named(NamedExpression::Map(Box::new(MapExpression {
        key: source(),
        data: named_set(SET_ALTERNATES),
    })));
    let rewritten = vec![set_address("daddr", alternate), Statement::Accept(None)];
    Some(rewritten).filter(|_| !spec.alternate.is_empty())
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
        rule.push(set_address("saddr", address(spec.outer)));
        rule.extend(spec.untracked.then_some(Statement::Notrack));
        rules.push(rule);
    }
    rules
}
