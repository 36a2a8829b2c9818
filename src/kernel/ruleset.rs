//! The rules themselves: what may reach the FOU listener. For a server (a client refuses what a
//! server queues):
//!
//! ```text
//! chain prerouting { type filter hook prerouting priority raw
//!   ip daddr OUTER udp dport PORT udp length != 81 ip saddr . udp sport @remotes notrack accept
//!   ip daddr OUTER goto outer
//!   ip daddr PRIVATE drop                                    # only a rewrite may make it
//! }
//! chain outer {
//!   udp dport PORT goto port
//!   ip protocol 4 ip saddr @addresses drop                   # plain IPIP would match our link too
//! }
//! chain port {
//!   udp length 81 @th,64,4 4 @th,80,16 != 73 goto control    # looks like IPv4 but for its length
//!   @th,64,4 4 ip saddr . udp sport @remotes notrack accept  # data of a known remote …
//!   @th,64,4 4 notrack ip daddr set ip saddr . udp sport map @privates accept   # … by another name
//!   @th,64,4 4 drop                                          # data of a stranger
//!   goto control
//! }
//! chain control {
//!   meter flood { ip saddr limit rate over 50/second burst 50 packets } drop
//!   notrack queue num NUMBER                                 # no bypass: no daemon, no entry
//! }
//! chain output { type filter hook output priority raw
//!   ip saddr OUTER udp sport PORT notrack accept
//!   ip saddr PRIVATE udp sport PORT notrack ip saddr set OUTER
//! }
//! chain reassemble { ip protocol udp tproxy to :1 }          # nothing jumps here: see `reassemble`
//! ```
//!
//! The first rule is the path of nearly every data packet, and as short as can be: `make bench` tells
//! what the path costs. All but packets of the length of an authentication packet (81 with
//! the UDP header) take it; those are looked at more closely.
//!
//! `@th,64,4` is the first four bits of the UDP payload: the version of the inner packet. Nothing
//! is tracked, so no data packet pays for conntrack and no expired entry breaks a tunnel. A missing
//! element of `@privates` breaks off its rule, and the packet goes on to the next one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use nftables::batch::Batch;
use nftables::expr::{
    Elem, Expression, Map as MapExpression, NamedExpression, Payload, PayloadBase, PayloadField,
    PayloadRaw,
};
use nftables::schema::{
    Chain, Counter as CounterObject, Element, FlushObject, Map, NfCmd, NfListObject, Rule, Set,
    SetType, SetTypeValue, Table,
};
use nftables::stmt::{
    Counter, JumpTarget, Limit, Mangle, Match, Meter, Operator, Queue, Statement, TProxy,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::elements::{SET_ADDRESSES, SET_PRIVATES, SET_REMOTES};
use crate::engine::host::Admitted;
use crate::engine::plan::{Control, ControlShape, RuleSpec};

/// Priority of the raw hook, before conntrack (`NF_IP_PRI_RAW` in linux/netfilter_ipv4.h).
const RAW: i32 = -300;

/// Elements that our sets have room for. With a number, the kernel takes its fixed hash table, which
/// is quicker to look up in than the one that grows (`nft_hash_estimate`, `nft_rhash_estimate`).
const MOST_REMOTES: u32 = 1024;
/// Authentication packets per second that one source address may have looked at.
const CONTROL_PER_SECOND: u32 = 50;

/// How a table is put in.
#[derive(Debug, Clone, Copy)]
pub struct Installation {
    pub replacement: Replacement,
    pub reassembly: Reassembly,
}

/// What becomes of a table of this name that is there already.
#[derive(Debug, Clone, Copy)]
pub enum Replacement {
    /// Its chains and sets stay, what is in them is exchanged. For the packets that pass meanwhile
    /// it is either all old or all new.
    Contents,
    /// It is deleted, and a new one made. While the kernel exchanges the hooks, a packet may pass
    /// both, be rewritten by one and dropped by the other. Always possible.
    Whole,
}

/// The whole transaction as `nft -j` reads it.
pub fn json(spec: &RuleSpec, admitted: &BTreeSet<Admitted>, how: Installation) -> String {
    with_notrack(serde_json::to_value(table(spec, admitted, how).to_nftables()))
}

/// `nft` 1.x wants `{"notrack": null}` where the crate (0.6) writes `"notrack"`.
fn with_notrack(ruleset: serde_json::Result<serde_json::Value>) -> String {
    fn mend(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(s) if s == "notrack" => {
                *value = serde_json::json!({ "notrack": null });
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(mend),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(mend),
            _ => {}
        }
    }
    // Maps with string keys only: nothing in these types can fail to serialise.
    let mut ruleset = ruleset.unwrap_or_default();
    mend(&mut ruleset);
    ruleset.to_string()
}

/// Whether fragments are put together before the rules look at them.
#[derive(Debug, Clone, Copy)]
pub enum Reassembly {
    On,
    Off,
}

fn table<'a>(spec: &'a RuleSpec, admitted: &BTreeSet<Admitted>, how: Installation) -> Batch<'a> {
    let mut batch = Batch::new();
    let name: &str = &spec.table;
    let itself = || Table { family: NfFamily::IP, name: name.into(), handle: None };
    batch.add(NfListObject::Table(itself())); // or the next would fail the first time
    match how.replacement {
        Replacement::Contents => batch.add_cmd(NfCmd::Flush(FlushObject::Table(itself()))),
        Replacement::Whole => {
            batch.delete(NfListObject::Table(itself()));
            batch.add(NfListObject::Table(itself()));
        }
    }
    for counter in counters(spec) {
        batch.add(NfListObject::Counter(CounterObject {
            family: NfFamily::IP,
            table: name.into(),
            name: (*counter).into(),
            ..CounterObject::default()
        }));
    }
    for set in sets(spec) {
        batch.add(set.clone());
        match set {
            NfListObject::Set(set) => batch.add_cmd(NfCmd::Flush(FlushObject::Set(set))),
            NfListObject::Map(map) => batch.add_cmd(NfCmd::Flush(FlushObject::Map(map))),
            _ => {}
        }
    }
    let chains = [
        ("prerouting", Some((NfHook::Prerouting, RAW)), prerouting(spec)),
        ("outer", None, outer(spec)),
        ("port", None, port(spec)),
        ("control", None, control(spec)),
        ("output", Some((NfHook::Output, RAW)), output(spec)),
        ("reassemble", None, reassemble(how.reassembly)),
    ];
    let chains: Vec<_> = chains.into_iter().filter(|(_, _, rules)| !rules.is_empty()).collect();
    for (chain, hook, _) in &chains {
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::IP,
            table: name.into(),
            name: (*chain).into(),
            _type: hook.map(|_| NfChainType::Filter),
            hook: hook.map(|(hook, _)| hook),
            prio: hook.map(|(_, priority)| priority),
            policy: hook.map(|_| NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }
    for (chain, _, rules) in chains {
        for expr in rules {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: name.into(),
                chain: chain.into(),
                expr: expr.into(),
                ..Rule::default()
            }));
        }
    }
    for element in elements(spec, admitted) {
        batch.add(element);
    }
    batch
}

fn prerouting(spec: &RuleSpec) -> Vec<Vec<Statement<'static>>> {
    let to_us = || eq(ip("daddr"), address(spec.outer));
    let mut data = vec![to_us(), eq(udp("dport"), number(spec.port))];
    data.extend(control_length(spec).map(|length| ne(udp("length"), number(length))));
    data.extend([
        eq(source(), named_set(SET_REMOTES)),
        Statement::Notrack,
        Statement::Accept(None),
    ]);
    let mut rules = vec![data, vec![to_us(), goto("outer")]];
    for private in &spec.private {
        let mut rule = vec![eq(ip("daddr"), address(*private))];
        rule.extend(count(spec, "private_address"));
        rule.push(Statement::Drop(None));
        rules.push(rule);
    }
    rules
}

/// The UDP length, header included, that authentication packets have.
fn control_length(spec: &RuleSpec) -> Option<u16> {
    match spec.control {
        Control::Refuse => None,
        Control::Queue { shape: ControlShape::NotIpv4 { length, .. }, .. } => {
            Some(length.saturating_add(UDP_HEADER))
        }
        Control::Queue { shape: ControlShape::FromRemote { .. }, .. } => Some(UDP_HEADER),
    }
}

fn outer(spec: &RuleSpec) -> Vec<Vec<Statement<'static>>> {
    let mut plain =
        vec![eq(ip("protocol"), Expression::Number(4)), eq(ip("saddr"), named_set(SET_ADDRESSES))];
    plain.extend(count(spec, "plain_ipip"));
    plain.push(Statement::Drop(None));
    vec![vec![eq(udp("dport"), number(spec.port)), goto("port")], plain]
}

fn port(spec: &RuleSpec) -> Vec<Vec<Statement<'static>>> {
    let mut rules = Vec::new();
    if let Control::Queue { shape: ControlShape::NotIpv4 { length, .. }, .. } = spec.control {
        let mut lookalike = vec![
            eq(udp("length"), number(length.saturating_add(UDP_HEADER))),
            eq(inner_version(), Expression::Number(4)),
        ];
        if length >= IPV4_LENGTH_END {
            lookalike.push(ne(inner_length(), number(length)));
        }
        lookalike.push(goto("control"));
        rules.push(lookalike);
    }
    let is_data = || eq(inner_version(), Expression::Number(4));
    rules.push(vec![
        is_data(),
        eq(source(), named_set(SET_REMOTES)),
        Statement::Notrack,
        Statement::Accept(None),
    ]);
    rules.push(vec![
        is_data(),
        Statement::Notrack,
        Statement::Mangle(Mangle {
            key: ip("daddr"),
            value: Expression::Named(NamedExpression::Map(Box::new(MapExpression {
                key: source(),
                data: named_set(SET_PRIVATES),
            }))),
        }),
        Statement::Accept(None),
    ]);
    match spec.control {
        // A server that knows its client by address alone: its data is as good as anything.
        Control::Queue { shape: ControlShape::FromRemote { .. }, .. } => {}
        Control::Queue { shape: ControlShape::NotIpv4 { .. }, .. } | Control::Refuse => {
            let mut strangers = vec![is_data()];
            strangers.extend(count(spec, "stranger_data"));
            strangers.push(Statement::Drop(None));
            rules.push(strangers);
        }
    }
    rules.push(vec![goto("control")]);
    rules
}

fn control(spec: &RuleSpec) -> Vec<Vec<Statement<'static>>> {
    let mut refuse: Vec<_> = count(spec, "stranger_other").into_iter().collect();
    refuse.push(Statement::Drop(None));
    let Control::Queue { queue, shape } = spec.control else { return vec![refuse] };
    let mut limit = vec![Statement::Meter(Meter {
        name: "flood".into(),
        key: Expression::Named(NamedExpression::Elem(Elem {
            val: Box::new(ip("saddr")),
            timeout: Some(10),
            expires: None,
            comment: None,
            counter: None,
        })),
        stmt: Box::new(Statement::Limit(Limit {
            rate: CONTROL_PER_SECOND,
            rate_unit: None,
            per: Some("second".into()),
            burst: Some(CONTROL_PER_SECOND),
            burst_unit: None,
            inv: Some(true),
        })),
    })];
    limit.extend(count(spec, "flood"));
    limit.push(Statement::Drop(None));
    let mut look = Vec::new();
    if let ControlShape::FromRemote { ip: remote, port } = shape {
        look.extend(
            remote.map(|remote| eq(ip("saddr"), Expression::String(remote.to_string().into()))),
        );
        look.extend(port.map(|port| eq(udp("sport"), number(port))));
    }
    let mut admit = look;
    admit.push(Statement::Notrack);
    admit.push(Statement::Queue(Queue { num: number(queue.number), flags: None }));
    vec![limit, admit, refuse]
}

fn output(spec: &RuleSpec) -> Vec<Vec<Statement<'static>>> {
    let ours = |source: Ipv4Addr| {
        vec![
            eq(ip("saddr"), address(source)),
            eq(udp("sport"), number(spec.port)),
            Statement::Notrack,
        ]
    };
    let mut direct = ours(spec.outer);
    direct.push(Statement::Accept(None)); // spares the other rules
    let mut rules = vec![direct];
    for private in &spec.private {
        let mut rule = ours(*private);
        rule.push(Statement::Mangle(Mangle { key: ip("saddr"), value: address(spec.outer) }));
        rules.push(rule);
    }
    rules
}

/// A `tproxy` statement makes the kernel put fragments together at priority -400, as it does for
/// conntrack, but without conntrack (`nft_tproxy_init` calls `nf_defrag_ipv4_enable`). So the
/// rules see whole datagrams: none slips through without its ports, and a rewritten address is
/// that of all fragments. It is enough that the statement exists.
fn reassemble(reassembly: Reassembly) -> Vec<Vec<Statement<'static>>> {
    match reassembly {
        Reassembly::Off => Vec::new(),
        Reassembly::On => vec![vec![
            eq(ip("protocol"), Expression::Number(17)),
            Statement::TProxy(TProxy { family: None, port: 1, addr: None }),
        ]],
    }
}

fn counters(spec: &RuleSpec) -> &'static [&'static str] {
    match (spec.counters, spec.control) {
        (false, _) => &[],
        (true, Control::Refuse) => {
            &["plain_ipip", "private_address", "stranger_data", "stranger_other"]
        }
        (true, Control::Queue { .. }) => {
            &["plain_ipip", "private_address", "stranger_data", "stranger_other", "flood"]
        }
    }
}

fn sets(spec: &RuleSpec) -> [NfListObject<'_>; 3] {
    let remote =
        || SetTypeValue::Concatenated(Cow::Borrowed(&[SetType::Ipv4Addr, SetType::InetService]));
    let set = |name: &'static str, set_type| {
        NfListObject::Set(Box::new(Set {
            family: NfFamily::IP,
            table: spec.table.as_str().into(),
            name: name.into(),
            set_type,
            size: Some(MOST_REMOTES),
            ..Set::default()
        }))
    };
    [
        set(SET_REMOTES, remote()),
        set(SET_ADDRESSES, SetTypeValue::Single(SetType::Ipv4Addr)),
        NfListObject::Map(Box::new(Map {
            family: NfFamily::IP,
            table: spec.table.as_str().into(),
            name: SET_PRIVATES.into(),
            set_type: remote(),
            map: SetTypeValue::Single(SetType::Ipv4Addr),
            size: Some(MOST_REMOTES),
            ..Map::default()
        })),
    ]
}

fn elements<'a>(spec: &'a RuleSpec, admitted: &BTreeSet<Admitted>) -> Vec<NfListObject<'a>> {
    let element = |set: &'static str, elem: Expression<'static>| {
        NfListObject::Element(Element {
            family: NfFamily::IP,
            table: spec.table.as_str().into(),
            name: set.into(),
            elem: vec![elem].into(),
        })
    };
    let mut elements = Vec::new();
    for Admitted { remote, private } in admitted {
        let key = Expression::Named(NamedExpression::Concat(vec![
            address(*remote.ip()),
            number(remote.port()),
        ]));
        match private {
            None => {
                elements.push(element(SET_REMOTES, key));
                elements.push(element(SET_ADDRESSES, address(*remote.ip())));
            }
            Some(private) => {
                elements
                    .push(element(SET_PRIVATES, Expression::List(vec![key, address(*private)])));
            }
        }
    }
    elements
}

/// (address . port) that a packet comes from: the key of two of our sets.
fn source() -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(vec![ip("saddr"), udp("sport")]))
}

/// Bytes of a UDP header, which `udp length` counts.
const UDP_HEADER: u16 = 8;
/// Where the total length of an IPv4 header ends: shorter payloads have none.
const IPV4_LENGTH_END: u16 = 4;

fn inner_version() -> Expression<'static> {
    transport(64, 4)
}

fn inner_length() -> Expression<'static> {
    transport(64 + 16, 16)
}

/// `@th,offset,len`, in bits from the start of the UDP header.
fn transport(offset: u32, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
        base: PayloadBase::TH,
        offset,
        len,
    })))
}

fn ip(field: &'static str) -> Expression<'static> {
    header("ip", field)
}

fn udp(field: &'static str) -> Expression<'static> {
    header("udp", field)
}

pub(super) fn header(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

fn number(value: u16) -> Expression<'static> {
    Expression::Number(value.into())
}

fn address(value: Ipv4Addr) -> Expression<'static> {
    Expression::String(value.to_string().into())
}

fn named_set(name: &str) -> Expression<'static> {
    Expression::String(format!("@{name}").into())
}

pub(super) fn eq(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(super) fn ne(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

fn count(spec: &RuleSpec, counter: &'static str) -> Option<Statement<'static>> {
    spec.counters.then(|| Statement::Counter(Counter::Named(counter.into())))
}
