//! The rules that send the answers of connections which came in outside of the tunnel back by the main
//! table, although this host sends everything else through the tunnel. For a packet that has an address of
//! this host when its route is looked up, a policy rule is enough. A forwarded answer has a different one
//! at that moment: a container whose port is published answers from its own address, which is
//! translated back much later.
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
//! ADDRESSES are those of the uplink, as far as there are not too many. The first rule is left out while it is
//! not known which interface that is.
//!
//! Packets and connections that somebody else has marked stay as they are. Connections to these
//! addresses are not marked at all, so those that are older than the tunnel are recognised too.
//! These rules are there only where something tracks connections anyway.

use std::net::IpAddr;

use nftables::expr::{CT, CTDir, Expression, MetaKey, NamedExpression};
use nftables::stmt::{Mangle, Statement};
use nftables::types::{NfChainType, NfHook};

use super::expression::{MANGLE, Rules, any_of, devices, eq, header, interface, meta, ne, text};
use crate::engine::host::{Answers, Family, GatewaySpec};

/// The chains of one family; empty when the family needs no such rules.
pub fn chains(spec: &GatewaySpec, family: Family) -> Vec<Rules> {
    let Some(answers) = spec.answers.get(&family) else { return Vec::new() };
    let not_own = || ne(meta(MetaKey::Iifname), any_of(devices(spec).collect()));
    let noted = answers.uplink.as_ref().map(|uplink| note(answers, uplink, family));
    let mut arriving: Vec<_> = noted.into_iter().collect();
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
        // A new mark makes the kernel route the packet again (`nf_route_table_hook4` in
        // nft_chain_route.c).
        ("output", NfChainType::Route, NfHook::Output, MANGLE, leaving),
    ]
}

/// Marks a new connection from the uplink to an address that the uplink does not have: one that is
/// forwarded as it is, or one for another interface.
fn note(answers: &Answers, uplink: &str, family: Family) -> Vec<Statement<'static>> {
    let mut rule = vec![
        eq(meta(MetaKey::Iifname), interface(uplink)),
        eq(ct("state"), text("new")),
        eq(ct("mark"), Expression::Number(0)),
    ];
    rule.extend(unless_own(answers, family, "daddr"));
    rule.push(set(ct("mark"), answers.mark));
    rule
}

/// Matches a connection that came in outside of the tunnel: by the address it was for, or by our mark.
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

/// `ip saddr != { ADDRESSES }`; nothing if there are no addresses.
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
