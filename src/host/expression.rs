//! Short constructors for nftables' JSON (libnftables-json(5)).

use std::borrow::Cow;
use std::net::Ipv4Addr;

use nftables::expr::{
    Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadBase,
    PayloadField, PayloadRaw, SetItem,
};
use nftables::stmt::{JumpTarget, Mangle, Match, Operator, Statement};
use nftables::types::{NfChainType, NfHook};

use crate::engine::host::GatewaySpec;

/// A field of a header, by nft's names.
pub fn header(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

pub fn ip(field: &'static str) -> Expression<'static> {
    header("ip", field)
}

pub fn udp(field: &'static str) -> Expression<'static> {
    header("udp", field)
}

pub fn icmp(field: &'static str) -> Expression<'static> {
    header("icmp", field)
}

/// `@th,offset,len`, in bits from the start of the UDP or ICMP header.
pub fn transport(offset: u32, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
        base: PayloadBase::TH,
        offset,
        len,
    })))
}

/// (address . port) that a packet comes from: the key of ipipou's sets.
pub fn source() -> Expression<'static> {
    concat(vec![ip("saddr"), udp("sport")])
}

/// `a . b . …`
pub fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

/// Replaces an address of the packet, and corrects the sums that cover it.
pub fn set_address(field: &'static str, value: Expression<'static>) -> Statement<'static> {
    Statement::Mangle(Mangle { key: ip(field), value })
}

/// What kind of address the packet comes from, by the kernel's tables: `local`, `unicast`, …
pub fn source_type() -> Expression<'static> {
    let flags = [FibFlag::Saddr].into();
    Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags }))
}

pub fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub fn text(value: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

pub fn number(value: u16) -> Expression<'static> {
    Expression::Number(value.into())
}

pub fn address(value: Ipv4Addr) -> Expression<'static> {
    text(value.to_string())
}

/// An interface by its name. A `*` at its end would match any suffix.
pub fn interface(name: &str) -> Expression<'static> {
    match name.strip_suffix('*') {
        Some(start) => text(format!("{start}\\*")),
        None => text(name.to_owned()),
    }
}

/// Every interface whose name begins like that.
pub fn interfaces(start: &str) -> Expression<'static> {
    text(format!("{start}*"))
}

pub fn named_set(name: &str) -> Expression<'static> {
    text(format!("@{name}"))
}

pub fn any_of(items: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

pub fn eq(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

pub fn ne(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::NEQ, right)
}

/// Less than. The crate (0.6) writes `<` for `>` and `>` for `<`, but has the other two right.
pub fn below(left: Expression<'static>, right: u32) -> Statement<'static> {
    compare(left, Operator::LEQ, Expression::Number(right.saturating_sub(1)))
}

pub fn above(left: Expression<'static>, right: u32) -> Statement<'static> {
    compare(left, Operator::GEQ, Expression::Number(right.saturating_add(1)))
}

fn compare(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(target(chain))
}

pub fn jump(chain: &'static str) -> Statement<'static> {
    Statement::Jump(target(chain))
}

fn target(chain: &'static str) -> JumpTarget<'static> {
    JumpTarget { target: chain.into() }
}

/// `NF_IP_PRI_MANGLE` in linux/netfilter_ipv4.h: after conntrack, before most firewalls.
pub const MANGLE: i32 = -150;

/// A chain: name, type, hook, priority, and its rules.
pub type Rules = (&'static str, NfChainType, NfHook, i32, Vec<Vec<Statement<'static>>>);

/// The interfaces of the tunnel itself.
pub fn devices(spec: &GatewaySpec) -> impl Iterator<Item = Expression<'static>> + '_ {
    spec.devices.iter().map(|device| interface(device.as_str()))
}
