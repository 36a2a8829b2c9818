//! What the host's own policy rules ask packets for, as far as it matters to a tunnel.

use std::collections::BTreeSet;
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
    let all = Lists::ROUTE.list(GET, &header, |all: &mut Vec<RulesOfHost>, rule| {
        all.extend(read_rule(rule));
        Ok(ControlFlow::Continue(()))
    });
    Ok(none_if_unsupported(all)?.into_iter().fold(RulesOfHost::default(), |mut found, rule| {
        found.selective |= rule.selective;
        found.sources.extend(rule.sources);
        found
    }))
}

/// What one rule asks for; `None` for one of ipipou.
fn read_rule(rule: &[u8]) -> Option<RulesOfHost> {
    let value = |kind| attribute(rule, RULE_HEADER, kind);
    if value(PROTOCOL).is_some_and(|protocol| protocol == [ROUTE_PROTOCOL]) {
        return None;
    }
    let source = value(SOURCE).and_then(|source| source.first_chunk());
    let network = source.and_then(|source: &[u8; 4]| {
        Ipv4Net::new(Ipv4Addr::from(*source), *rule.get(SOURCE_LENGTH_AT)?).ok()
    });
    Some(RulesOfHost {
        selective: SELECTIVE.iter().any(|kind| value(*kind).is_some()),
        sources: BTreeSet::from_iter(network),
    })
}
