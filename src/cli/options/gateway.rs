//! The options of a gateway as given.

use std::net::IpAddr;

use clap::{ArgAction, Args};
use ipnet::IpNet;

use super::attributes::Misplaced::Refused;
use super::attributes::{Attributes, Proposals, both, client};
use crate::cli::{address, value};
use crate::engine::config::DeviceName;

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

pub const ATTRIBUTES: &[Attributes] = &[
    both("route"),
    client("default-route", Refused),
    client("dns", Refused),
    both("forward"),
    both("masquerade").propose(Proposals::Devices),
];
