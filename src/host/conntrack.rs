//! Whether anything tracks connections in this network namespace.
//!
//! What keeps packets from conntrack costs every packet a look into a hook of its own; where nothing
//! tracks them there is nothing to keep them from.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{SHORT_HEADER, attribute, list};
use crate::engine::host::Family;

/// `NFNL_SUBSYS_HOOK` in linux/netfilter/nfnetlink.h, and `NFNL_MSG_HOOK_GET` and the attributes in
/// linux/netfilter/nfnetlink_hook.h.
const HOOK_GET: u16 = 12 << 8;
const NFNLA_HOOK_HOOKNUM: u16 = 1;
const NFNLA_HOOK_PRIORITY: u16 = 2;
/// linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `NF_IP_PRI_CONNTRACK` in linux/netfilter_ipv4.h. Nobody else has it, and if somebody has, that costs
/// no more than a little speed.
const CONNTRACK: i32 = -200;

/// Signs of the module: where there is none of them, it is not loaded.
const OF_THE_MODULE: [&str; 2] =
    ["/proc/sys/net/netfilter/nf_conntrack_count", "/proc/net/stat/nf_conntrack"];

/// When that cannot be known, it is assumed.
pub fn is_in_use() -> bool {
    OF_THE_MODULE.iter().any(|path| Path::new(path).exists())
        && is_hooked(Family::V4).unwrap_or(true)
}

/// When that cannot be known, it is so if connections are: rules that ask about them would make a
/// host track them which does not.
pub fn is_known_to_be_in_use(family: Family) -> bool {
    let is_loaded = OF_THE_MODULE.iter().any(|path| Path::new(path).exists());
    is_loaded && is_hooked(family).unwrap_or_else(|_| knows_connections())
}

/// This file counts those of this namespace, of both families.
fn knows_connections() -> bool {
    let count = std::fs::read_to_string(OF_THE_MODULE[0]);
    count.is_ok_and(|count| count.trim() != "0")
}

/// Asks for the hooks of prerouting. Kernels before 5.14 cannot be asked, nor Debian's 6.1.
fn is_hooked(family: Family) -> io::Result<bool> {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    // struct nfgenmsg: the family, a version, 16 bits more; then one attribute, which is zero:
    // NF_INET_PRE_ROUTING.
    let mut prerouting = [family, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    prerouting[6..8].copy_from_slice(&NFNLA_HOOK_HOOKNUM.to_ne_bytes());
    let mut is_hooked = false;
    list(NETLINK_NETFILTER, HOOK_GET, &prerouting, |hook| {
        is_hooked = priority(hook) == Some(CONNTRACK);
        if is_hooked { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(is_hooked)
}

fn priority(message: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(*attribute(message, SHORT_HEADER, NFNLA_HOOK_PRIORITY)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_read() {
        let mut hook = vec![2, 0, 0, 0]; // struct nfgenmsg
        hook.extend([8, 0, 1, 0, 0, 0, 0, 0]);
        hook.extend([7, 0, 3, 0, b'l', b'o', 0, 0]);
        hook.extend([8, 0, 2, 0]);
        hook.extend((-200i32).to_be_bytes());
        assert_eq!(priority(&hook), Some(CONNTRACK));
        assert_eq!(priority(&hook[..20]), None);
    }
}
