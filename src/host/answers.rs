//! The rules by which connections that come in by the uplink get their answers there, though this host
//! sends everything else through the tunnel. A policy rule does it for what has an address of the
//! uplink when its way is looked for. What this host forwards has another one then: a container whose
//! port is published is answered for by its own address, which is translated back much later.
//!
//! ```text
//! chain prerouting { type filter hook prerouting priority mangle
//!   iifname UPLINK ct state new ct mark 0 ip daddr != { ADDRESSES } ct mark set MARK
//!   iifname != DEV meta mark 0 ct direction reply ct original ip daddr { ADDRESSES } meta mark set MARK
//!   iifname != DEV meta mark 0 ct direction reply ct mark MARK meta mark set MARK
//! }
//! chain output { type route hook output priority mangle
//!   ip saddr != { ADDRESSES } meta mark 0 ct direction reply ct original ip daddr … (the same two)
//! }
//! ```
//!
//! Packets and connections that somebody else has marked stay as they are. Connections to the uplink's
//! own addresses are not marked at all: those from before the tunnel are known as well. All of it is
//! there only where something tracks connections anyway.

use std::net::IpAddr;

use nftables::expr::{CT, CTDir, Expression, MetaKey, NamedExpression};
use nftables::stmt::{Mangle, Statement};
use nftables::types::{NfChainType, NfHook};

use super::expression::{MANGLE, Rules, any_of, devices, eq, header, interface, meta, ne, text};
use crate::engine::host::{Answers, Family, GatewaySpec};

/// The chains of one family; none when nothing is asked of it.
pub fn chains(spec: &GatewaySpec, family: Family) -> Vec<Rules> {
    let Some(answers) = spec.answers.get(&family) else { return Vec::new() };
    let not_own = || ne(meta(MetaKey::Iifname), any_of(devices(spec).collect()));
    let mut arriving = vec![note(answers, family)];
    let mut leaving = Vec::new();
    for come_in in came_in(answers, family) {
        let answer = |first: Vec<Statement<'static>>| {
            let mut rule = first;
            rule.extend([unmarked(), eq(ct("direction"), text("reply")), come_in.clone()]);
            rule.push(set(meta(MetaKey::Mark), answers.mark));
            rule
        };
        arriving.push(answer(vec![not_own()]));
        leaving.push(answer(unless_own(answers, family, "saddr")));
    }
    vec![
        ("prerouting", NfChainType::Filter, NfHook::Prerouting, MANGLE, arriving),
        // A new mark has the way looked for anew (`nf_route_table_hook4` in nft_chain_route.c).
        ("output", NfChainType::Route, NfHook::Output, MANGLE, leaving),
    ]
}

/// Marks a connection that goes on from here as it is, or to an address of another interface.
fn note(answers: &Answers, family: Family) -> Vec<Statement<'static>> {
    let mut rule = vec![
        eq(meta(MetaKey::Iifname), interface(&answers.uplink)),
        eq(ct("state"), text("new")),
        eq(ct("mark"), Expression::Number(0)),
    ];
    rule.extend(unless_own(answers, family, "daddr"));
    rule.push(set(ct("mark"), answers.mark));
    rule
}

/// What tells that a connection came in by the uplink: the address it was for, or our mark.
fn came_in(answers: &Answers, family: Family) -> Vec<Statement<'static>> {
    let mut ways = Vec::new();
    if !answers.addresses.is_empty() {
        let key = match family {
            Family::V4 => "ip daddr",
            Family::V6 => "ip6 daddr",
        };
        let dir = Some(CTDir::Original);
        let asked =
            Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir }));
        ways.push(eq(asked, addresses(answers)));
    }
    ways.push(eq(ct("mark"), Expression::Number(answers.mark)));
    ways
}

/// `ip saddr != { ADDRESSES }`, if there are any.
fn unless_own(answers: &Answers, family: Family, field: &'static str) -> Vec<Statement<'static>> {
    let protocol = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let own = (!answers.addresses.is_empty()).then(|| addresses(answers));
    own.map(|own| ne(header(protocol, field), own)).into_iter().collect()
}

fn addresses(answers: &Answers) -> Expression<'static> {
    any_of(answers.addresses.iter().map(IpAddr::to_string).map(text).collect())
}

fn unmarked() -> Statement<'static> {
    eq(meta(MetaKey::Mark), Expression::Number(0))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn set(key: Expression<'static>, mark: u32) -> Statement<'static> {
    Statement::Mangle(Mangle { key, value: Expression::Number(mark) })
}
