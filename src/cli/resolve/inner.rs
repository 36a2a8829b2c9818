//! The addresses inside the tunnel.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Ends;
use super::error::UsageError;
use super::number::Number;
use crate::cli::options::Options;

/// Our address inside the tunnel, and the other end's; with many ends, the network of theirs.
pub fn inner(
    options: &Options,
    number: Number,
    ends: Ends,
    warnings: &mut Vec<String>,
) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    let (own, peer) = match ends {
        Ends::Clients | Ends::Hosts => return of_many(options, ends),
        Ends::Server | Ends::Client => of_two(options, number)?,
    };
    if own == peer {
        warnings.push(format!("--tunl-ip: {own} is the address of both ends of the tunnel"));
    }
    Ok((own, peer.into()))
}

fn of_many(options: &Options, ends: Ends) -> Result<(Ipv4Addr, Ipv4Net), UsageError> {
    if options.tunl_peer_ip.is_some() {
        return Err(UsageError::OnePeerOfMany);
    }
    let network = options.tunl_ip.and_then(|inner| inner.network);
    let has_room = network.is_some_and(|net| net.prefix_len() < net.max_prefix_len());
    match (ends, options.tunl_ip) {
        (Ends::Clients, _) if !has_room => Err(UsageError::NoNetwork),
        (_, None) => Err(UsageError::NoInnerAddressOfHost),
        (_, Some(inner)) => Ok((inner.address, network.unwrap_or(inner.address.into()))),
    }
}

/// A server's peer is one above it, a client's one below.
fn of_two(options: &Options, number: Number) -> Result<(Ipv4Addr, Ipv4Addr), UsageError> {
    if let Some(inner) = options.tunl_ip
        && let Some(network) = inner.network.filter(|net| net.prefix_len() < net.max_prefix_len())
    {
        let (address, length) = (inner.address, network.prefix_len());
        return Err(UsageError::NetworkOfTwo { address, length });
    }
    let inner = match (options.tunl_ip, options.server) {
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
