//! What the options of a gateway mean.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Ends;
use super::error::UsageError;
use super::number::Number;
use crate::cli::options::Options;
use crate::engine::config::{GatewayConfig, Masquerade};

/// How many name servers a resolver asks (`MAXNS` in resolv.h).
const MAX_NAME_SERVERS: usize = 3;

/// What is asked of the host around the tunnel.
pub fn gateway(
    options: &Options,
    number: Number,
    ends: Ends,
    warnings: &mut Vec<String>,
) -> Result<GatewayConfig, UsageError> {
    let given = &options.gateway;
    let client_only = [("--default-route", given.default_route), ("--dns", !given.dns.is_empty())];
    if let Some((option, _)) = client_only.iter().find(|(_, given)| *given && ends != Ends::Server)
    {
        return Err(UsageError::ClientOnly(option));
    }
    if given.default_route && number.0 > u16::MAX.into() {
        return Err(UsageError::NumberForDefaultRoute(number.0));
    }
    check_routes(options, ends)?;
    no_duplicates("--route", &given.route)?;
    no_duplicates("--dns", &given.dns)?;
    if given.default_route && options.ip6.is_none() {
        warnings.push("--default-route: IPv6 goes past the tunnel without --ip6".to_owned());
    }
    if given.dns.len() > MAX_NAME_SERVERS {
        warnings.push(format!("--dns: only the first {MAX_NAME_SERVERS} name servers are asked"));
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

fn check_routes(options: &Options, ends: Ends) -> Result<(), UsageError> {
    let routes = &options.gateway.route;
    match (ends, routes.is_empty()) {
        (Ends::Hosts, false) => return Err(UsageError::RoutesInTable),
        (Ends::Clients, false) => return Err(UsageError::RoutesToClients),
        (Ends::Hosts | Ends::Clients, true) | (Ends::Client | Ends::Server, _) => {}
    }
    let v6 = routes.iter().find(|net| matches!(net, IpNet::V6(_)));
    match v6.filter(|_| options.ip6.is_none()) {
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
