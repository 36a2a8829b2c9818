//! Limits which packets that are not data are looked at: the chains `control` and `hello` of
//! `judgement.rs`. Those of a server with one client are shown there.
//!
//! A client queues answers of its servers. Each server has a budget of its own; of what is more than that a
//! sample is drawn:
//! ```text
//! chain control {
//!   ip saddr . udp sport @known @th,64,4 8 limit rate 10/second queue num NUMBER
//!   ip saddr SERVER udp sport PORT @th,64,4 8 limit rate 10/second queue num NUMBER  # each of several
//!   @th,64,4 8 ip saddr . udp sport SERVERS meta random < 2/3 limit rate 3500/second queue num NUMBER
//!   drop
//! }
//! ```
//!
//! So has each known remote of a hub, for what has the form of a hello:
//! ```text
//! chain hello {
//!   ip saddr . udp sport @known meter light_known { ip saddr . udp sport limit rate 10/second }
//!       limit rate 1000/second queue num NUMBER
//!   limit rate 20000/second queue num NUMBER
//!   drop
//! }
//! ```
//!
//! The budgets are in [`limits`]. When a set is full, or an address has used up its share, the rule
//! does not match, and the packet goes on to the next rule, which all others share. So a full set makes
//! the limit stricter.

use std::net::SocketAddrV4;

use nftables::expr::{Elem, Expression, MetaKey, NamedExpression};
use nftables::stmt::{Limit, Meter, Queue, Statement};

use super::words::{HELLO_LENGTH, Statements, UDP_HEADER, known_set, refuse};
use crate::engine::host::{Control, PacketShape, RuleSpec};
use crate::engine::limits::{self, Budget};
use crate::host::expression::{
    above, address, any_of, below, concat, eq, goto, ip, meta, named_set, ne, number, source, text,
    transport, udp,
};
use crate::wire::control::VERSION;

/// Where the UDP payload begins, in bits behind the beginning of the UDP header.
const PAYLOAD: u32 = 64;
/// Bytes of a hello before its version, and before the eight bytes that name its receiver.
const VERSION_AT: u32 = 73;
const RECEIVER_AT: u32 = 84;

pub fn control(spec: &RuleSpec) -> Vec<Statements> {
    let Control::Queue { queue, shape } = spec.control else {
        return vec![refuse(spec, Vec::new(), "stranger_other")];
    };
    let look = || Statement::Queue(Queue { num: number(queue.number), flags: None });
    let others = |matches| refuse(spec, matches, "stranger_other");
    let known = || eq(source(), named_set(known_set(spec)));
    let mut rules = Vec::new();
    match shape {
        PacketShape::Hellos { receiver } => {
            let mut hello = hello_to(receiver);
            hello.push(goto("hello"));
            return vec![hello, others(Vec::new())];
        }
        PacketShape::Answers => {
            let answer = || eq(transport(PAYLOAD, 4), number(8));
            let one = |server: &SocketAddrV4| {
                [eq(ip("saddr"), address(*server.ip())), eq(udp("sport"), number(server.port()))]
            };
            let queued = |mut from: Statements| {
                from.extend([answer(), limit(limits::KNOWN_REMOTE), look()]);
                from
            };
            // Each server has a budget: what is forged from the address of one costs the others nothing.
            let mut rules = vec![queued(vec![known()])];
            rules.extend(spec.answering.iter().map(|server| queued(one(server).into())));
            let remote =
                |remote: &SocketAddrV4| concat(vec![address(*remote.ip()), number(remote.port())]);
            let any = match spec.answering.is_empty() {
                true => known(),
                false => eq(source(), any_of(spec.answering.iter().map(remote).collect())),
            };
            rules.push(vec![answer(), any, sample(), limit(limits::HEAVY), look()]);
            rules.push(others(Vec::new()));
            return rules;
        }
        PacketShape::NotIpv4 { length, longest } => {
            let udp_length = |length: u16| u32::from(length) + u32::from(UDP_HEADER);
            for impossible in [
                below(udp("length"), udp_length(length)),
                above(udp("length"), udp_length(longest)),
            ] {
                rules.push(vec![impossible.clone(), limit(limits::IMPOSSIBLE), look()]);
                rules.push(others(vec![impossible]));
            }
        }
        PacketShape::FromRemote { ip: remote, port } => {
            let elsewhere = remote.map(|remote| ne(ip("saddr"), text(remote.to_string())));
            rules.extend(elsewhere.map(|elsewhere| others(vec![elsewhere])));
            let elsewhere = port.map(|port| ne(udp("sport"), number(port)));
            rules.extend(elsewhere.map(|elsewhere| others(vec![elsewhere])));
        }
    }
    rules.extend([
        vec![known(), limit(limits::KNOWN_REMOTE), look()],
        vec![each("light", ip("saddr"), limits::LIGHT_SOURCE), limit(limits::LIGHT), look()],
        vec![sample(), limit(limits::HEAVY), look()],
        refuse(spec, Vec::new(), "flood"),
    ]);
    rules
}

/// The rules for hellos that name this server: they cost others no place, and a remote that is known
/// none of theirs.
pub fn hello(spec: &RuleSpec) -> Vec<Statements> {
    let Control::Queue { queue, shape: PacketShape::Hellos { .. } } = spec.control else {
        return Vec::new();
    };
    let look = || Statement::Queue(Queue { num: number(queue.number), flags: None });
    let known = eq(source(), named_set(known_set(spec)));
    let each = each("light_known", source(), limits::KNOWN_REMOTE);
    vec![
        vec![known, each, limit(limits::KNOWN_REMOTES), look()],
        vec![limit(limits::HELLOS), look()],
        refuse(spec, Vec::new(), "flood"),
    ]
}

/// Matches what has the length and the version of a hello, and names this server.
fn hello_to(receiver: [u8; 8]) -> Statements {
    let at = |byte: u32, bits| transport(PAYLOAD + 8 * byte, bits);
    let (first, second) = (u64::from_be_bytes(receiver) >> 32, u64::from_be_bytes(receiver));
    #[allow(clippy::cast_possible_truncation)] // the halves
    let (first, second) = (first as u32, second as u32);
    vec![
        eq(udp("length"), number(HELLO_LENGTH)),
        eq(at(VERSION_AT, 8), number(u16::from(VERSION))),
        eq(at(RECEIVER_AT, 32), Expression::Number(first)),
        eq(at(RECEIVER_AT + 4, 32), Expression::Number(second)),
    ]
}

/// The sample is drawn when 32 random bits are below this number.
#[allow(clippy::cast_possible_truncation)] // the sample is a part of the whole
const SAMPLE_BELOW: u32 =
    ((1u64 << 32) * limits::HEAVY_SAMPLE as u64 / limits::HEAVY_OUT_OF as u64) as u32;

/// Matches while the budget is not used up.
fn limit(budget: Budget) -> Statement<'static> {
    Statement::Limit(Limit {
        rate: budget.per_second,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(budget.burst),
        burst_unit: None,
        inv: None,
    })
}

/// Matches a packet that is drawn.
fn sample() -> Statement<'static> {
    below(meta(MetaKey::Random), SAMPLE_BELOW)
}

/// Matches while the budget of what the packet has as `key`, a source, is not used up.
fn each(name: &'static str, key: Expression<'static>, budget: Budget) -> Statement<'static> {
    /// Seconds of silence after which a source has its whole budget again.
    const FORGOTTEN_AFTER: u32 = 10;
    Statement::Meter(Meter {
        name: name.into(),
        key: Expression::Named(NamedExpression::Elem(Elem {
            val: Box::new(key),
            timeout: Some(FORGOTTEN_AFTER),
            expires: None,
            comment: None,
            counter: None,
        })),
        stmt: Box::new(limit(budget)),
    })
}
