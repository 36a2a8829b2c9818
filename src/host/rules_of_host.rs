//! What the host's own policy rules ask packets for, as far as it matters to a tunnel.

use std::io;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;

use ipnet::Ipv4Net;

use super::netlink::{Lists, attribute};
use super::routes::none_if_unsupported;
use crate::engine::host::{ROUTE_PROTOCOL, RulesOfHost};

/// `RTM_GETRULE` in linux/rtnetlink.h.
const GET: u16 = 34;
/// What precedes the attributes: `struct fib_rule_hdr` in linux/fib_rules.h, as are the attributes.
const RULE_HEADER: usize = 12;
const SOURCE_LENGTH_AT: usize = 2;
const AF_INET: u8 = 2;
/// `FRA_SRC` and `FRA_PROTOCOL`.
const SOURCE: u16 = 2;
const PROTOCOL: u16 = 21;
/// Users, protocols, and ports: `FRA_UID_RANGE`, `FRA_IP_PROTO`, `FRA_SPORT_RANGE`, `FRA_DPORT_RANGE`. The
/// kernel looks ways for the programs up without these (`__bpf_redirect_neigh_v4` in net/core/filter.c).
const SELECTIVE: [u16; 4] = [20, 22, 23, 24];

/// What the rules for IPv4 ask for that others than ipipou made.
///
/// # Errors
/// When that cannot be found out.
pub fn read() -> io::Result<RulesOfHost> {
    let mut header = [0; RULE_HEADER];
    header[0] = AF_INET;
    none_if_unsupported(Lists::ROUTE.list(GET, &header, |found, rule| {
        add(found, rule);
        Ok(ControlFlow::Continue(()))
    }))
}

/// Adds what one rule asks for.
fn add(found: &mut RulesOfHost, rule: &[u8]) {
    let value = |kind| attribute(rule, RULE_HEADER, kind);
    if value(PROTOCOL).is_some_and(|protocol| protocol == [ROUTE_PROTOCOL]) {
        return;
    }
    found.selective |= SELECTIVE.iter().any(|kind| value(*kind).is_some());
    let source = value(SOURCE).and_then(|source| source.first_chunk());
    found.sources.extend(source.and_then(|source: &[u8; 4]| {
        Ipv4Net::new(Ipv4Addr::from(*source), *rule.get(SOURCE_LENGTH_AT)?).ok()
    }));
}
