//! The options of a gateway, and what they mean.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clap::{ArgAction, Args};
use ipnet::IpNet;

use super::defaults::Number;
use super::options::Options;
use super::resolve::Ends;
use super::usage::UsageError;
use super::{address, value};
use crate::engine::config::{DeviceName, GatewayConfig, Masquerade};

/// How many name servers a resolver asks (`MAXNS` in resolv.h).
const MAX_NAME_SERVERS: usize = 3;

/// The gateway options as given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Gateway")]
pub struct GatewayOptions {
    /// Lead the network PREFIX, or one address, into the tunnel. May be repeated; those of files
    /// and of the command line add up
    #[arg(long, value_name = "PREFIX", action = ArgAction::Append,
          value_parser = address::prefix)]
    pub route: Vec<IpNet>,
    /// Client: everything goes through the tunnel, except the tunnel's own packets
    #[arg(long)]
    pub default_route: bool,
    /// Client: name server to ask while the tunnel is up. May be repeated, as --route may
    #[arg(long, value_name = "IP", action = ArgAction::Append, value_parser = address::any)]
    pub dns: Vec<IpAddr>,
    /// Forward IPv4 packets between the tunnel and other interfaces, both ways
    #[arg(long)]
    pub forward: bool,
    /// Forward IPv4 packets from the tunnel, and put our address in place of theirs where they
    /// leave by DEV [default: by any other interface]
    #[arg(long, value_name = "DEV", value_parser = value::device)]
    pub masquerade: Option<Option<DeviceName>>,
}

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
