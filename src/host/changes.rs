//! Notifications that something changed on the host: links, addresses, routes, nftables, IPsec policies.
//!
//! A notification says little about what changed: it leads to another reading of the host.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libc::{
    RTM_DELACTION, RTM_DELADDR, RTM_DELLINK, RTM_DELQDISC, RTM_DELROUTE, RTM_DELRULE,
    RTM_DELTCLASS, RTM_DELTFILTER, RTM_NEWACTION, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWQDISC,
    RTM_NEWROUTE, RTM_NEWRULE, RTM_NEWTCLASS, RTM_NEWTFILTER,
};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::netlink::{ROUTE_HEADER, SHORT_HEADER, attribute, message};
use crate::engine::host::ROUTE_PROTOCOL;

/// Groups of linux/rtnetlink.h, as bits of `nl_groups`.
const RTMGRP_LINK: u32 = 1;
const RTMGRP_TC: u32 = 8;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV4_RULE: u32 = 0x80;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
/// Groups that have numbers only: `RTNLGRP_IPV6_RULE`, and `RTNLGRP_IPV4_NETCONF` (forwarding and
/// reverse path filters).
const RTMGRP_IPV6_RULE: u32 = 1 << (19 - 1);
const RTMGRP_IPV4_NETCONF: u32 = 1 << (24 - 1);
const RULE_GROUPS: u32 = RTMGRP_IPV4_RULE | RTMGRP_IPV6_RULE;
/// Policy rules change rarely, and move packets of every tunnel.
const LINK_GROUPS: u32 =
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_NETCONF | RULE_GROUPS;
const ROUTE_GROUPS: u32 = RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
/// Where a message has a route's `rtm_protocol`, and the index of a link and of an address
/// (linux/rtnetlink.h, linux/if_addr.h).
const PROTOCOL_AT: usize = 5;
const INDEX_AT: usize = 4;
/// Where a message about queueing disciplines has what one is attached to, and the number of an
/// interface's root: `struct tcmsg` in linux/rtnetlink.h, `TC_H_ROOT` in linux/pkt_sched.h.
const PARENT_AT: usize = 12;
const ROOT: u32 = u32::MAX;
/// A route's destination; a default route has none (linux/rtnetlink.h).
const RTA_DST: u16 = 1;

/// Messages about chains of filters (linux/rtnetlink.h).
const RTM_NEWCHAIN: u16 = 100;
const RTM_DELCHAIN: u16 = 101;

/// A message about an interface's settings, and which setting it is (linux/netconf.h).
const RTM_NEWNETCONF: u16 = 80;
const NETCONFA_IFINDEX: u16 = 1;

/// `NFT_MSG_NEWGEN` of `NFNL_SUBSYS_NFTABLES`, and its attributes (linux/netfilter/nf_tables.h).
const NEW_GENERATION: u16 = 10 << 8 | 15;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// `NFNLGRP_NFTABLES` in linux/netfilter/nfnetlink.h, as a bit of `nl_groups`.
const NFTABLES: u32 = 1 << (7 - 1);

/// `XFRMNLGRP_POLICY` in linux/xfrm.h, in the same way.
const IPSEC_POLICIES: u32 = 1 << (4 - 1);

/// What matters to a tunnel besides links, addresses and nftables.
#[derive(Debug, Clone, Copy)]
pub struct Subjects {
    /// Routes. A router may change many of them a second.
    pub routes: bool,
    /// What a fast path must not be without.
    pub fast_path: bool,
}

/// A subscription to the kernel's notifications.
pub struct Changes {
    route: TokioSocket,
    netfilter: Option<TokioSocket>,
    ipsec: Option<TokioSocket>,
    destinations: Vec<IpAddr>,
}

/// What several notifications say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
    /// Whether routes or policy rules that ipipou made changed.
    pub our_routes: bool,
    /// Links that changed, or whose addresses did. The kernel does not tell of the routes that went
    /// with them.
    pub interfaces: BTreeSet<u32>,
    /// Links whose forwarding or source check was set, or that got another queueing discipline.
    pub settings: BTreeSet<u32>,
    /// The program that changed nftables last, for the log.
    pub ruleset_by: Option<String>,
}

impl Changes {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(subjects: Subjects) -> io::Result<Self> {
        let groups = LINK_GROUPS
            | if subjects.routes { ROUTE_GROUPS } else { 0 }
            | if subjects.fast_path { RTMGRP_TC } else { 0 };
        let route = subscribe(NETLINK_ROUTE, groups)?;
        // A kernel without nftables has no such protocol; a client works without it.
        let netfilter = subscribe(NETLINK_NETFILTER, NFTABLES).ok();
        // Nor does one without IPsec have that.
        let ipsec = subjects.fast_path.then(|| subscribe(NETLINK_XFRM, IPSEC_POLICIES).ok());
        Ok(Changes { route, netfilter, ipsec: ipsec.flatten(), destinations: Vec::new() })
    }

    /// Sets the destinations of this tunnel's packets: changes of routes to other places are ignored.
    pub fn watch(&mut self, destinations: Vec<IpAddr>) {
        self.destinations = destinations;
    }

    /// Waits for the next notification and adds it to `changed`. Returns whether it matters. An overrun
    /// (`ENOBUFS`) is a change too: something was missed.
    pub async fn wait(&mut self, changed: &mut Changed) -> bool {
        let route = tokio::select! {
            route = self.route.recv_from_full() => route,
            ruleset = next(&mut self.netfilter) => {
                if let Ok(messages) = ruleset {
                    note_author(&messages, changed);
                }
                return true;
            }
            _ = next(&mut self.ipsec) => return true,
        };
        match route {
            Ok((message, _)) => changed.add(&message, &self.destinations),
            Err(_) => {
                changed.lost = true;
                true
            }
        }
    }
}

/// The next messages of a subscription; never, without one.
async fn next(socket: &mut Option<TokioSocket>) -> io::Result<Vec<u8>> {
    match socket {
        Some(socket) => Ok(socket.recv_from_full().await?.0),
        None => std::future::pending().await,
    }
}

/// Whether a route is for one of these addresses.
fn is_for_any(route: &[u8], destinations: &[IpAddr]) -> bool {
    let Some([family, length, ..]) = route.first_chunk::<ROUTE_HEADER>() else { return false };
    let value = attribute(route, ROUTE_HEADER, RTA_DST).unwrap_or_default();
    let network = match i32::from(*family) {
        libc::AF_INET => value.first_chunk().map_or(Ipv4Addr::UNSPECIFIED, |b| (*b).into()).into(),
        libc::AF_INET6 => value.first_chunk().map_or(Ipv6Addr::UNSPECIFIED, |b| (*b).into()).into(),
        _ => return false,
    };
    let Ok(network) = IpNet::new(network, *length) else { return false };
    destinations.iter().any(|destination| network.contains(destination))
}

/// The last message of a transaction says which program made it (`nf_tables_gen_notify` in
/// net/netfilter/nf_tables_api.c).
fn note_author(mut messages: &[u8], changed: &mut Changed) {
    while let Some((kind, message, next)) = message(messages) {
        if kind == NEW_GENERATION {
            let pid = attribute(message, SHORT_HEADER, NFTA_GEN_PROC_PID)
                .and_then(|pid| pid.first_chunk());
            let name = attribute(message, SHORT_HEADER, NFTA_GEN_PROC_NAME).unwrap_or_default();
            let name =
                String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default());
            changed.ruleset_by = pid.map(|pid| {
                format!("{}, process {}", name.escape_debug(), u32::from_be_bytes(*pid))
            });
        }
        messages = next;
    }
}

impl Changed {
    /// Adds a notification, a datagram of one message. Returns whether it matters to a tunnel that
    /// sends to these addresses.
    fn add(&mut self, notification: &[u8], destinations: &[IpAddr]) -> bool {
        let Some((kind, message, _)) = message(notification) else { return false };
        match kind {
            RTM_NEWROUTE | RTM_DELROUTE => {
                let ours = message.get(PROTOCOL_AT) == Some(&ROUTE_PROTOCOL);
                self.our_routes |= ours;
                return ours || is_for_any(message, destinations);
            }
            RTM_NEWRULE | RTM_DELRULE => self.our_routes = true, // there are few
            RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => {
                let index = message.get(INDEX_AT..).and_then(|rest| rest.first_chunk());
                self.interfaces.extend(index.map(|bytes| u32::from_ne_bytes(*bytes)));
            }
            RTM_NEWQDISC | RTM_DELQDISC => {
                let parent = message.get(PARENT_AT..).and_then(|rest| rest.first_chunk());
                if parent.map(|bytes| u32::from_ne_bytes(*bytes)) != Some(ROOT) {
                    return false;
                }
                let index = message.get(INDEX_AT..).and_then(|rest| rest.first_chunk());
                self.settings.extend(index.map(|bytes| u32::from_ne_bytes(*bytes)));
            }
            // The group has these as well. Programs that make others are busy with them.
            RTM_NEWTCLASS | RTM_DELTCLASS | RTM_NEWTFILTER | RTM_DELTFILTER | RTM_NEWACTION
            | RTM_DELACTION | RTM_NEWCHAIN | RTM_DELCHAIN => return false,
            RTM_NEWNETCONF => {
                let index = attribute(message, SHORT_HEADER, NETCONFA_IFINDEX)
                    .and_then(|value| value.first_chunk());
                // A negative index means all interfaces, and those to come. The kernel sends a message
                // for each of them as well (`inet_forward_change` in net/ipv4/devinet.c).
                let index = index.and_then(|bytes| u32::try_from(i32::from_ne_bytes(*bytes)).ok());
                self.settings.extend(index);
            }
            _ => {}
        }
        true
    }
}

fn subscribe(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(kind: u16, body: [u8; 12]) -> Changed {
        let mut message = vec![0; 16];
        message[0..4].copy_from_slice(&28u32.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(body);
        let mut changed = Changed::default();
        for length in 0..message.len() {
            changed.add(&message[..length], &[]); // a message that is cut short says less
        }
        changed.add(&message, &[]);
        changed
    }

    #[test]
    fn the_process_that_changed_the_rules_is_recognised() {
        let mut message = vec![52, 0, 0, 0, 15, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        message.extend([8, 0, 1, 0, 0, 0, 0, 9, 8, 0, 2, 0, 0, 0, 4, 210]);
        message.extend([14, 0, 3, 0]);
        message.extend(b"firewalld\0\0\0");
        let two = [&message[..], &message].concat();
        for whole in [&message, &two] {
            let mut changed = Changed::default();
            note_author(whole, &mut changed);
            assert_eq!(changed.ruleset_by.as_deref(), Some("firewalld, process 1234"));
        }
        for length in 0..message.len() {
            note_author(&message[..length], &mut Changed::default());
        }
    }

    #[test]
    fn messages_that_concern_the_tunnel_are_recognised() {
        let route = |protocol| [2, 24, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
        assert!(changed(24, route(105)).our_routes && changed(25, route(105)).our_routes);
        assert!(!changed(24, route(3)).our_routes && !changed(25, route(186)).our_routes);
        assert!(changed(32, [0; 12]).our_routes && changed(33, [0; 12]).our_routes);
        let mut of_seven = [0; 12];
        of_seven[4..8].copy_from_slice(&7u32.to_ne_bytes());
        for kind in [16, 17, 20, 21] {
            let expected = Changed { interfaces: BTreeSet::from([7]), ..Changed::default() };
            assert_eq!(changed(kind, of_seven), expected);
        }
        assert_eq!(changed(28, of_seven), Changed::default(), "a neighbour");
        let netconf = |index: i32| {
            let mut message = [2, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 0];
            message[8..].copy_from_slice(&index.to_ne_bytes());
            changed(80, message)
        };
        let expected = Changed { settings: BTreeSet::from([7]), ..Changed::default() };
        assert_eq!(netconf(7), expected);
        assert_eq!(netconf(-1), Changed::default());
    }

    #[test]
    fn of_traffic_control_only_the_root_of_an_interface_matters() {
        let add = |kind: u16, parent: u32| {
            let mut message = vec![36, 0, 0, 0];
            message.extend(kind.to_ne_bytes());
            message.resize(16 + PARENT_AT, 0);
            message[16 + INDEX_AT] = 7;
            message.extend([parent.to_ne_bytes(), [0; 4]].concat());
            let mut changed = Changed::default();
            (changed.add(&message, &[]), changed.settings)
        };
        for kind in [36, 37] {
            assert_eq!(add(kind, u32::MAX), (true, BTreeSet::from([7])));
            assert_eq!(add(kind, 0xffff_fff1), (false, BTreeSet::new()), "clsact");
        }
        for kind in [40, 41, 44, 45, 48, 49, 100, 101] {
            assert_eq!(add(kind, u32::MAX), (false, BTreeSet::new()));
        }
    }

    #[test]
    fn only_routes_that_lead_to_a_remote_matter() {
        let matters = |family: u8, length, protocol, network: &[u8]| {
            let mut message = vec![0; 16];
            message.extend([family, length, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0]);
            if !network.is_empty() {
                let size = u16::try_from(4 + network.len()).unwrap();
                message.extend([8, 0, 15, 0, 254, 0, 0, 0]); // RTA_TABLE comes before
                message.extend([size.to_ne_bytes(), 1u16.to_ne_bytes()].concat());
                message.extend(network);
            }
            let whole = u32::try_from(message.len()).unwrap();
            message[0..4].copy_from_slice(&whole.to_ne_bytes());
            message[4..6].copy_from_slice(&24u16.to_ne_bytes());
            let destinations = ["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
            Changed::default().add(&message, &destinations)
        };
        let v6 = |last: u8| [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 11], &[last]].concat();
        assert!(matters(2, 0, 3, &[]) && matters(10, 0, 3, &[]), "default routes");
        assert!(matters(2, 24, 3, &[203, 0, 113, 0]) && matters(2, 32, 3, &[203, 0, 113, 1]));
        assert!(!matters(2, 24, 3, &[203, 0, 112, 0]) && !matters(2, 32, 3, &[203, 0, 113, 2]));
        assert!(matters(10, 127, 3, &v6(0)) && matters(10, 128, 3, &v6(1)));
        assert!(!matters(10, 127, 3, &v6(2)) && !matters(10, 128, 3, &v6(0)));
        assert!(matters(2, 24, 105, &[10, 0, 0, 0]), "one of ours");
        assert!(!matters(129, 0, 3, &[]), "a multicast route");
    }
}
