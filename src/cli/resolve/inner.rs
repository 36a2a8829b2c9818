//! Resolves the addresses inside the tunnel.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::error::UsageError;
use super::number::Number;
use super::peers::Peers;
use super::resolver::Resolver;
use crate::cli::address::{GivenInner, Inner};
use crate::cli::options::Options;
use crate::engine::config::TunnelConfig;
use crate::engine::peers_file::pool::Pool;

/// Returns our address inside the tunnel, and the peer's. With many peers it is the network of
/// their addresses.
pub fn inner(resolver: &mut Resolver) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    let options = resolver.options;
    if options.tunl_ip == Some(GivenInner::FromServer) {
        return from_server(options, &resolver.peers);
    }
    let (own, peer) = match &resolver.peers {
        Peers::Clients(_) | Peers::Table(_) | Peers::Members(_)
            if options.tunl_peer_ip.is_some() =>
        {
            return Err(UsageError::OnePeerOfMany);
        }
        Peers::Clients(_) => return of_hub(options, UsageError::NoNetwork),
        Peers::Members(_) => return of_hub(options, UsageError::NoNetworkOfPeers),
        Peers::Table(_) => return of_table_host(options),
        Peers::Server | Peers::Client => of_two(options, resolver.number)?,
    };
    if own == peer {
        resolver.warn(format!("--tunl-ip: {own} is the address of both ends of the tunnel"));
    }
    Ok((own, peer.into()))
}

/// Whether the server gives us our addresses.
pub fn is_from_server(options: &Options) -> bool {
    options.tunl_ip == Some(GivenInner::FromServer)
}

/// There are none until the server has told them.
fn from_server(options: &Options, peers: &Peers) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    match peers {
        Peers::Server => {}
        Peers::Client | Peers::Clients(_) | Peers::Table(_) | Peers::Members(_) => {
            return Err(UsageError::AutoInner);
        }
    }
    for (option, is_given) in
        [("tunl-peer-ip", options.tunl_peer_ip.is_some()), ("ip6", options.ip6.is_some())]
    {
        if is_given {
            return Err(UsageError::WithAutoInner(option));
        }
    }
    Ok((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED.into()))
}

/// The address that was given.
fn given(options: &Options) -> Option<Inner> {
    match options.tunl_ip {
        Some(GivenInner::Address(inner)) => Some(inner),
        Some(GivenInner::FromServer) | None => None,
    }
}

fn of_hub(options: &Options, otherwise: UsageError) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    match given(options) {
        Some(Inner { address, network: Some(network) }) if has_room(&network) => {
            Ok((address, network))
        }
        Some(_) | None => Err(otherwise),
    }
}

fn of_table_host(options: &Options) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    let Inner { address, network } = given(options).ok_or(UsageError::NoInnerAddressOfHost)?;
    Ok((address, network.unwrap_or(address.into())))
}

/// Whether a network has addresses for more than one host.
fn has_room(network: &Ipv4Net) -> bool {
    network.prefix_len() < network.max_prefix_len()
}

/// Resolves the addresses of a tunnel with one peer. A server's peer has the next address, a
/// client's peer the one before.
fn of_two(options: &Options, number: Number) -> Result<(Ipv4Addr, Ipv4Addr), UsageError> {
    if let Some(inner) = given(options)
        && let Some(network) = inner.network.filter(has_room)
    {
        let (address, length) = (inner.address, network.prefix_len());
        return Err(UsageError::NetworkOfTwo { address, length });
    }
    let inner = match (given(options), options.server) {
        (Some(inner), _) => inner.address,
        (None, true) => number.server_inner()?,
        (None, false) => return Err(UsageError::NoInnerAddress),
    };
    let beside = match options.server {
        true => inner.to_bits().checked_add(1),
        false => inner.to_bits().checked_sub(1),
    };
    let beside = beside
        .map(Ipv4Addr::from_bits)
        .filter(|ip| !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast());
    match (options.tunl_peer_ip, beside) {
        (Some(peer), _) | (None, Some(peer)) => Ok((inner, peer)),
        (None, None) => Err(UsageError::NoPeerAddress(inner)),
    }
}

/// Returns where the addresses of new peers are from, which is within the networks of all.
pub fn pool(options: &Options, tunnel: &TunnelConfig) -> Result<Pool, UsageError> {
    let pool = options.peers.pool.unwrap_or_default();
    for given in pool.given() {
        let network = match (given, tunnel.inner6) {
            (IpNet::V4(_), _) => IpNet::V4(tunnel.inner_peer.trunc()),
            (IpNet::V6(_), Some(own)) => IpNet::V6(own.trunc()),
            (IpNet::V6(_), None) => return Err(UsageError::PoolNeedsIp6(given)),
        };
        if !network.contains(&given) {
            return Err(UsageError::PoolOutside(given, network));
        }
    }
    Ok(pool)
}
