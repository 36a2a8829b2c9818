//! Routes and policy rules that ipipou makes, over route netlink (rtnetlink(7)).
//!
//! What is made here carries [`ROUTE_PROTOCOL`], and only what carries it is listed or removed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt as _;
use ipnet::IpNet;
use libc::{RTM_GETROUTE, RTM_GETRULE};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::{all, into_io};
use super::netlink::Lists;
use crate::engine::host::{Family, PolicyRule, PolicyRuleKind, ROUTE_PROTOCOL, Route, RouteTarget};

/// Metric of ipipou's unreachable routes, so high that any other route to the same place wins.
const LAST_METRIC: u32 = 4_278_198_272;
pub(super) const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
const OURS: RouteProtocol = RouteProtocol::Other(ROUTE_PROTOCOL);

/// A separate route netlink socket, on which the kernel checks requests strictly.
pub struct Routes {
    pub(super) handle: rtnetlink::Handle,
}

impl Routes {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        // On such a socket the kernel filters a dump (`ip_valid_fib_dump_req` in
        // net/ipv4/fib_frontend.c): a router may have a million other routes.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Routes { handle })
    }

    /// The routes that ipipou made, in all tables.
    pub fn routes(&self) -> io::Result<BTreeSet<Route>> {
        let mut found = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let mut request = RouteMessage::default();
            request.header.address_family = address_family(family);
            request.header.protocol = OURS;
            found.extend(none_if_unsupported(self.list(&request, read_route))?);
        }
        Ok(found)
    }

    /// Lists routes as they are asked for.
    pub(super) fn list<T: PartialEq>(
        &self,
        request: &RouteMessage,
        read: impl Fn(&RouteMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        all(Lists::ROUTE_FILTERED, RTM_GETROUTE, request, |found: &mut Vec<T>, route| {
            found.extend(read(&route))
        })
    }

    /// Adds a route.
    ///
    /// # Errors
    /// `AlreadyExists` when the table has a route with the same destination and metric, no matter who
    /// made it.
    pub async fn add_route(&self, route: &Route) -> io::Result<()> {
        self.handle.route().add(route_message(route)).execute().await.map_err(into_io)
    }

    /// Adds a route in the place of the one to the same destination, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn replace_route(&self, route: &Route) -> io::Result<()> {
        let request = self.handle.route().add(route_message(route)).replace();
        request.execute().await.map_err(into_io)
    }

    /// Removes a route; nothing happens if it is not there.
    pub async fn remove_route(&self, route: &Route) -> io::Result<()> {
        let result = self.handle.route().del(route_message(route)).execute().await;
        absent_is_fine(result.map_err(into_io))
    }

    /// The policy rules that ipipou made, as far as they have an effect.
    pub fn policy_rules(&self) -> io::Result<BTreeSet<PolicyRule>> {
        let mut found = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let mut request = RuleMessage::default();
            request.header.family = address_family(family);
            let rules =
                all(Lists::ROUTE_FILTERED, RTM_GETRULE, &request, |found: &mut Vec<_>, rule| {
                    found.extend(read_rule(&rule));
                });
            found.extend(in_force(none_if_unsupported(rules)?.into_iter()));
        }
        Ok(found)
    }

    /// Adds a policy rule behind all others of its priority. If it is there, it moves: the old one is
    /// removed once there is a new one.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_policy_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        match self.add_rule(rule, NLM_F_EXCL).await {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.add_rule(rule, 0).await?;
                // Of two that are the same, the kernel removes the first (`rule_find` in
                // net/core/fib_rules.c), and never one with another protocol.
                self.remove_policy_rule(rule).await
            }
            added => added,
        }
    }

    async fn add_rule(&self, rule: &PolicyRule, flags: u16) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | flags;
        let mut answers = self.handle.clone().request(request).map_err(into_io)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    /// Removes a policy rule; nothing happens if it is not there.
    pub async fn remove_policy_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        let result = self.handle.rule().del(rule_message(rule)).execute().await;
        absent_is_fine(result.map_err(into_io))
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.protocol = OURS;
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    match route.target {
        RouteTarget::Interface(index) => {
            message.header.kind = RouteType::Unicast;
            if message.header.address_family == AddressFamily::Inet {
                message.header.scope = RouteScope::Link; // there is no gateway; IPv6 has no scopes
            }
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteTarget::Remote(index, remote) => {
            message.header.kind = RouteType::Unicast;
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Oif(index));
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(remote)));
        }
        RouteTarget::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            message.attributes.push(RouteAttribute::Priority(LAST_METRIC));
        }
    }
    message
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.protocol != OURS {
        return None; // from a kernel that does not filter
    }
    let mut address = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut table, mut source) = (u32::from(header.table), None);
    let (mut interface, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(destination) => address = read_address(destination)?,
            RouteAttribute::PrefSource(preferred) => source = read_address(preferred),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = read_address(address),
            _ => {}
        }
    }
    let target = match header.kind {
        RouteType::Unicast => match gateway {
            Some(IpAddr::V4(remote)) => RouteTarget::Remote(interface?, remote),
            Some(IpAddr::V6(_)) | None => RouteTarget::Interface(interface?),
        },
        RouteType::Unreachable => RouteTarget::Unreachable,
        _ => return None,
    };
    let destination = IpNet::new(address, header.destination_prefix_length).ok()?;
    Some(Route { destination, table, target, source })
}

fn read_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// Leaves out what comes after a rule into a tunnel: it is added again, before that one.
fn in_force(rules: impl Iterator<Item = PolicyRule>) -> impl Iterator<Item = PolicyRule> {
    let mut into_tunnel = false;
    rules.filter(move |rule| {
        into_tunnel |= rule.leads_into_tunnel();
        rule.leads_into_tunnel() || !into_tunnel
    })
}

fn rule_message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Protocol(OURS)];
    message.attributes.extend(match rule.kind {
        PolicyRuleKind::UnlessMarked { mark, mask, table } => {
            message.header.flags = RuleFlags::Invert;
            let marked = [RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)];
            [&marked[..], &[RuleAttribute::Table(table)]].concat()
        }
        PolicyRuleKind::MainButDefault => {
            vec![RuleAttribute::Table(MAIN_TABLE), RuleAttribute::SuppressPrefixLen(0)]
        }
        PolicyRuleKind::FromOwn(address) => {
            message.header.src_len = IpNet::from(address).prefix_len();
            vec![RuleAttribute::Table(MAIN_TABLE), RuleAttribute::Source(address)]
        }
    });
    message
}

fn read_rule(message: &RuleMessage) -> Option<PolicyRule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut ours, mut priority, mut table, mut suppress) = (false, 0, 0, None);
    let (mut mark, mut mask, mut source) = (None, u32::MAX, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = *protocol == OURS,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::FwMask(number) => mask = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::SuppressPrefixLen(length) => suppress = Some(*length),
            RuleAttribute::Source(address) => source = Some(*address),
            _ => {}
        }
    }
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    let is_main = !inverted && table == MAIN_TABLE;
    let kind = match (mark, suppress, source) {
        (Some(mark), ..) if inverted => PolicyRuleKind::UnlessMarked { mark, mask, table },
        (None, Some(0), None) if is_main => PolicyRuleKind::MainButDefault,
        (None, _, Some(address)) if is_main => PolicyRuleKind::FromOwn(address),
        _ => return None,
    };
    ours.then_some(PolicyRule { family, priority, kind })
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Nothing from a kernel without IPv6 or without policy rules.
pub(super) fn none_if_unsupported<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(T::default())
        }
        other => other,
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e)
            if matches!(
                e.raw_os_error(),
                // From `inet_rtm_delroute`, `fib_nl_delrule`, and for a family that the kernel does not
                // have.
                Some(libc::ESRCH | libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, target: RouteTarget) -> Route {
        Route { destination: destination.parse().unwrap(), table: 51_820, target, source: None }
    }

    #[test]
    fn a_route_is_read_as_it_was_written() {
        for destination in ["0.0.0.0/0", "10.0.0.0/8", "::/0", "2001:db8::/32"] {
            let of_remote = RouteTarget::Remote(7, Ipv4Addr::new(198, 51, 100, 7));
            let of_v4 = !destination.contains(':');
            let any = [RouteTarget::Interface(7), RouteTarget::Unreachable];
            for target in any.into_iter().chain(of_v4.then_some(of_remote)) {
                let mut route = route(destination, target);
                assert_eq!(read_route(&route_message(&route)), Some(route));
                route.source = Some(match route.destination {
                    IpNet::V4(_) => "172.28.0.1".parse().unwrap(),
                    IpNet::V6(_) => "fd00::1".parse().unwrap(),
                });
                assert_eq!(read_route(&route_message(&route)), Some(route));
            }
        }
    }

    #[test]
    fn a_foreign_route_is_ignored() {
        let mut message = route_message(&route("10.0.0.0/8", RouteTarget::Interface(7)));
        message.header.protocol = RouteProtocol::Static;
        assert_eq!(read_route(&message), None);
    }

    #[test]
    fn a_policy_rule_is_read_as_it_was_written() {
        for family in [Family::V4, Family::V6] {
            for kind in [
                PolicyRuleKind::UnlessMarked { mark: 0x6970, mask: 0xfff0, table: 0x6970 },
                PolicyRuleKind::MainButDefault,
                PolicyRuleKind::FromOwn(match family {
                    Family::V4 => "192.0.2.1".parse().unwrap(),
                    Family::V6 => "2001:db8::1".parse().unwrap(),
                }),
            ] {
                let rule = PolicyRule { family, priority: 30_000, kind };
                assert_eq!(read_rule(&rule_message(&rule)), Some(rule));
            }
        }
    }

    #[test]
    fn an_exception_after_the_rule_into_the_tunnel_is_none() {
        let rule = |kind| PolicyRule { family: Family::V4, priority: 1, kind };
        let into = rule(PolicyRuleKind::UnlessMarked { mark: 1, mask: 1, table: 1 });
        let other = rule(PolicyRuleKind::UnlessMarked { mark: 1, mask: 1, table: 2 });
        let but_default = rule(PolicyRuleKind::MainButDefault);
        let from = rule(PolicyRuleKind::FromOwn("192.0.2.1".parse().unwrap()));
        let read = |list: &[PolicyRule]| in_force(list.iter().copied()).collect::<Vec<_>>();
        let whole = [from, but_default, into, other];
        assert_eq!(read(&whole), whole);
        assert_eq!(read(&[but_default, into, from, other]), [but_default, into, other]);
        assert_eq!(read(&[from, but_default]), [from, but_default]);
    }

    #[test]
    fn a_foreign_policy_rule_is_ignored() {
        let kind = PolicyRuleKind::MainButDefault;
        let mut message = rule_message(&PolicyRule { family: Family::V4, priority: 1, kind });
        message.attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        assert_eq!(read_rule(&message), None);
    }
}
