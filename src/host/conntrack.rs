//! Finds out whether anything tracks connections in this network namespace.
//!
//! Rules that keep packets from conntrack need a hook of their own, which every packet passes. Where
//! nothing tracks connections, they are not worth that.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use super::netlink::{Lists, SHORT_HEADER, attribute};
use crate::engine::host::Family;

/// `NFNL_SUBSYS_HOOK` in linux/netfilter/nfnetlink.h; `NFNL_MSG_HOOK_GET` and the attributes are in
/// linux/netfilter/nfnetlink_hook.h.
const HOOK_GET: u16 = 12 << 8;
const NFNLA_HOOK_HOOKNUM: u16 = 1;
const NFNLA_HOOK_PRIORITY: u16 = 2;
/// From linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `NF_IP_PRI_CONNTRACK` in linux/netfilter_ipv4.h. Nothing else uses this priority; if something does,
/// that costs only a little speed.
const CONNTRACK: i32 = -200;

/// Files that exist where the module is loaded: if none of them is there, it is not.
const OF_THE_MODULE: [&str; 2] =
    ["/proc/sys/net/netfilter/nf_conntrack_count", "/proc/net/stat/nf_conntrack"];

/// Whether connections are tracked. When that cannot be found out, the answer is yes.
pub fn is_in_use() -> bool {
    OF_THE_MODULE.iter().any(|path| Path::new(path).exists())
        && is_hooked(Family::V4).unwrap_or(true)
}

/// Whether connections are certain to be tracked. When the hooks cannot be read, the answer is whether
/// any connections are known, or were when it was asked `before`: rules that ask about connections would
/// otherwise make the host track them.
pub fn is_known_to_be_in_use(family: Family, before: bool) -> bool {
    let is_loaded = OF_THE_MODULE.iter().any(|path| Path::new(path).exists());
    is_loaded && is_hooked(family).unwrap_or_else(|_| before || knows_connections())
}

/// Whether the kernel knows any connections. This file counts those of this namespace, of both
/// families.
fn knows_connections() -> bool {
    let count = std::fs::read_to_string(OF_THE_MODULE[0]);
    count.is_ok_and(|count| count.trim() != "0")
}

/// Reads the hooks of prerouting. Kernels before 5.14 cannot be asked, nor can Debian's 6.1.
fn is_hooked(family: Family) -> io::Result<bool> {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    // struct nfgenmsg: the family, a version, and 16 more bits; then one attribute, which is zero:
    // NF_INET_PRE_ROUTING.
    let mut prerouting = [family, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    prerouting[6..8].copy_from_slice(&NFNLA_HOOK_HOOKNUM.to_ne_bytes());
    Lists::NETFILTER.list(HOOK_GET, &prerouting, |is_hooked, hook| {
        *is_hooked = priority(hook) == Some(CONNTRACK);
        Ok(if *is_hooked { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
}

fn priority(message: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(*attribute(message, SHORT_HEADER, NFNLA_HOOK_PRIORITY)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_of_the_conntrack_hook_is_read() {
        let mut hook = vec![2, 0, 0, 0]; // struct nfgenmsg
        hook.extend([8, 0, 1, 0, 0, 0, 0, 0]);
        hook.extend([7, 0, 3, 0, b'l', b'o', 0, 0]);
        hook.extend([8, 0, 2, 0]);
        hook.extend((-200i32).to_be_bytes());
        assert_eq!(priority(&hook), Some(CONNTRACK));
        assert_eq!(priority(&hook[..20]), None);
    }
}
