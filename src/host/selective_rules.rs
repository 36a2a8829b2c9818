//! Whether policy rules of this host tell packets apart by more than the programs of a fast path ask for.

use std::io;
use std::ops::ControlFlow;

use super::netlink::{Lists, attribute};

/// `RTM_GETRULE` in linux/rtnetlink.h.
const GET: u16 = 34;
/// What precedes the attributes: `struct fib_rule_hdr` in linux/fib_rules.h, as are the attributes.
const RULE_HEADER: usize = 12;
const AF_INET: u8 = 2;
/// Users, protocols, and ports: `FRA_UID_RANGE`, `FRA_IP_PROTO`, `FRA_SPORT_RANGE`, `FRA_DPORT_RANGE`. The
/// kernel looks ways for the programs up without these (`__bpf_redirect_neigh_v4` in net/core/filter.c).
const SELECTIVE: [u16; 4] = [20, 22, 23, 24];

/// Whether there are rules by users, protocols or ports.
///
/// # Errors
/// When that cannot be found out.
pub fn are_there() -> io::Result<bool> {
    let mut header = [0; RULE_HEADER];
    header[0] = AF_INET;
    Lists::ROUTE.list(GET, &header, |found, rule| {
        *found = SELECTIVE.iter().any(|kind| attribute(rule, RULE_HEADER, *kind).is_some());
        Ok(if *found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
}
