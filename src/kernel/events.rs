//! Word that something changed on the host: links, addresses, routes, nftables.
//!
//! What changed is not looked at; the host is read anew.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// Groups of linux/rtnetlink.h, as bits of `nl_groups`.
const RTMGRP_LINK: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV4_RULE: u32 = 0x80;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
/// Those that have numbers only: `RTNLGRP_IPV6_RULE`, and `RTNLGRP_IPV4_NETCONF` (forwarding and
/// reverse path filters).
const RTMGRP_IPV6_RULE: u32 = 1 << (19 - 1);
const RTMGRP_IPV4_NETCONF: u32 = 1 << (24 - 1);
const ROUTE_GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV6_RULE
    | RTMGRP_IPV4_NETCONF;
/// `NFNLGRP_NFTABLES` in linux/netfilter/nfnetlink.h, as a bit of `nl_groups`.
const NFTABLES: u32 = 1 << (7 - 1);

/// The kernel's notifications.
pub struct Changes {
    route: TokioSocket,
    netfilter: Option<TokioSocket>,
}

impl Changes {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        let route = subscribe(NETLINK_ROUTE, ROUTE_GROUPS)?;
        // A kernel without nftables has no such protocol; a client does without.
        Ok(Changes { route, netfilter: subscribe(NETLINK_NETFILTER, NFTABLES).ok() })
    }

    /// Waits for the next change. An overrun (`ENOBUFS`) is a change too: something was missed.
    pub async fn wait(&mut self) {
        match &mut self.netfilter {
            Some(netfilter) => tokio::select! {
                () = one(&mut self.route) => {}
                () = one(netfilter) => {}
            },
            None => one(&mut self.route).await,
        }
    }
}

fn subscribe(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

async fn one(socket: &mut TokioSocket) {
    // Content and error alike only mean that the host should be read.
    let _ = socket.recv_from_full().await;
}
