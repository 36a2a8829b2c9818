//! Resolves the gateway options: routes, name servers, forwarding and masquerading.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::error::UsageError;
use super::inner::is_from_server;
use super::peers::Peers;
use super::resolver::Resolver;
use crate::cli::options::Options;
use crate::engine::config::{GatewayConfig, Masquerade};

/// How many name servers a resolver asks (`MAXNS` in resolv.h).
const MAX_NAME_SERVERS: usize = 3;

/// Resolves what the host does around the tunnel.
pub fn gateway(resolver: &mut Resolver) -> Result<GatewayConfig, UsageError> {
    let options = resolver.options;
    let (given, number) = (&options.gateway, resolver.number);
    if given.default_route && number.0 > u16::MAX.into() {
        return Err(UsageError::NumberForDefaultRoute(number.0));
    }
    check_routes(options, &resolver.peers)?;
    no_duplicates("route", &given.route)?;
    no_duplicates("dns", &given.dns)?;
    if given.default_route && options.ip6.is_none() && !is_from_server(options) {
        resolver.warn("--default-route: IPv6 goes past the tunnel without --ip6");
    }
    if given.dns.len() > MAX_NAME_SERVERS {
        resolver.warn(format!("--dns: only the first {MAX_NAME_SERVERS} name servers are asked"));
    }
    Ok(GatewayConfig {
        routes: given.route.clone(),
        default_route: given.default_route,
        mark: number.mark(),
        dns: given.dns.clone(),
        forward: given.forward,
        masquerade: given.masquerade.clone().map(|by| match by {
            None => Masquerade::Anywhere,
            Some(device) => Masquerade::By(device),
        }),
    })
}

fn check_routes(options: &Options, peers: &Peers) -> Result<(), UsageError> {
    let routes = &options.gateway.route;
    match (peers, routes.is_empty()) {
        (Peers::Table(_), false) => return Err(UsageError::RoutesInTable),
        (Peers::Clients(_), false) => return Err(UsageError::RoutesToClients),
        (Peers::Members(_), false) => return Err(UsageError::RoutesInPeers),
        (Peers::Table(_) | Peers::Clients(_) | Peers::Members(_), true)
        | (Peers::Client | Peers::Server, _) => {}
    }
    let v6 = routes.iter().find(|net| matches!(net, IpNet::V6(_)));
    match v6.filter(|_| options.ip6.is_none() && !is_from_server(options)) {
        Some(net) => Err(UsageError::RouteNeedsIp6(*net)),
        None => Ok(()),
    }
}

fn no_duplicates<T: Ord + ToString>(option: &'static str, values: &[T]) -> Result<(), UsageError> {
    let mut seen = BTreeSet::new();
    match values.iter().find(|value| !seen.insert(*value)) {
        Some(value) => Err(UsageError::GivenTwice { option, value: value.to_string() }),
        None => Ok(()),
    }
}
