//! Parses addresses and networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::value::ValueError;
use crate::engine::peers_file::pool::Pool;

/// The prefix length of our IPv6 address inside the tunnel if none is given. The peer is in that
/// network.
const USUAL_LENGTH6: u8 = 64;

/// `--tunl-ip`: our address inside the tunnel, and the network that it is in, if one is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    pub address: Ipv4Addr,
    pub network: Option<Ipv4Net>,
}

/// `--address`: what a new peer is called inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// What is free.
    Auto,
    Given(IpAddr),
}

/// Parses an address, or "auto".
pub fn of_peer(text: &str) -> Result<PeerAddress, ValueError> {
    match text.trim() {
        "auto" => Ok(PeerAddress::Auto),
        text => text.parse().map(PeerAddress::Given).map_err(|_| ValueError::NotAnIp),
    }
}

/// `--tunl-ip`: an address, or the word that the server gives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenInner {
    /// `auto`
    FromServer,
    Address(Inner),
}

/// Parses an address that one host can have: not 0.0.0.0, broadcast or multicast.
pub fn v4(text: &str) -> Result<Ipv4Addr, ValueError> {
    let text = text.trim();
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if is_unicast(ip) => Ok(ip),
        Ok(_) => Err(ValueError::NotUnicast),
        Err(_) if looks_like_v6(text) => Err(ValueError::IsIpv6),
        Err(_) => Err(ValueError::NotAnAddress),
    }
}

/// Parses an address outside the tunnel. IPv6 needs no brackets where no port can follow.
pub fn any(text: &str) -> Result<IpAddr, ValueError> {
    let text = text.trim();
    match v4(text) {
        Ok(ip) => Ok(ip.into()),
        Err(ValueError::IsIpv6) => {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            Ok(v6(bare.unwrap_or(text))?.into())
        }
        Err(ValueError::NotAnAddress) => Err(ValueError::NotAnIp),
        Err(other) => Err(other),
    }
}

/// Parses an IPv6 address that one host can have, and that is valid on more than one link.
pub fn v6(text: &str) -> Result<Ipv6Addr, ValueError> {
    // What follows '%' is the interface of a link-local address (RFC 4007).
    let (address, zone) = text.split_once('%').map_or((text, None), |(a, zone)| (a, Some(zone)));
    let ip: Ipv6Addr = address.parse().map_err(|_| ValueError::NotIpv6)?;
    match ip.to_ipv4_mapped() {
        Some(mapped) => Err(ValueError::MappedIpv4(mapped)),
        None if ip.is_unspecified() || ip.is_multicast() => Err(ValueError::NotUnicast),
        None if ip.is_unicast_link_local() => Err(ValueError::LinkLocal),
        None if zone.is_some() => Err(ValueError::NotIpv6),
        None => Ok(ip),
    }
}

/// Tells IPv6 addresses from `IP:PORT`, which never has two colons.
pub fn looks_like_v6(text: &str) -> bool {
    text.starts_with('[') || text.matches(':').count() > 1
}

/// Parses `A` or `A/LEN`. No network for private use is larger than 10.0.0.0/8 (RFC 1918).
pub fn inner(text: &str) -> Result<Inner, ValueError> {
    const LENGTHS: RangeInclusive<u8> = 8..=32;
    let (address, length) = split_length(text.trim(), LENGTHS);
    let address = v4(address)?;
    let network = length.transpose()?.and_then(|length| Ipv4Net::new(address, length).ok());
    Ok(Inner { address, network: network.as_ref().map(Ipv4Net::trunc) })
}

/// Parses the value of `--tunl-ip`.
pub fn given_inner(text: &str) -> Result<GivenInner, ValueError> {
    match text.trim() {
        "auto" => Ok(GivenInner::FromServer),
        text => inner(text).map(GivenInner::Address),
    }
}

/// Parses `ADDR` or `ADDR/LEN`. The result keeps the address, not only its network.
pub fn inner6(text: &str) -> Result<Ipv6Net, ValueError> {
    const LENGTHS: RangeInclusive<u8> = 1..=128;
    let (address, length) = split_length(text.trim(), LENGTHS);
    let address = v6(address)?;
    if address.is_loopback() {
        return Err(ValueError::NotUnicast);
    }
    let length = length.transpose()?.unwrap_or(USUAL_LENGTH6);
    Ipv6Net::new(address, length).map_err(|_| not_a_length(LENGTHS))
}

/// Parses the value of `--route`: a network, or one address.
pub fn prefix(text: &str) -> Result<IpNet, ValueError> {
    let text = text.trim();
    if text == "default" {
        return Err(ValueError::IsDefaultRoute);
    }
    let network: IpNet = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(network), _) => network,
        (Err(_), Ok(address)) => address.into(),
        (Err(_), Err(_)) => return Err(ValueError::NotANetwork),
    };
    let right = network.trunc();
    let one_host = right.prefix_len() == right.max_prefix_len();
    if right != network {
        Err(ValueError::HostBits(right))
    } else if right.prefix_len() == 0 {
        Err(ValueError::IsDefaultRoute)
    } else if !has_hosts(right.addr(), one_host) {
        Err(ValueError::NoHostsThere)
    } else {
        Ok(right)
    }
}

/// Parses the value of `--pool`: a network of each family at most, with a comma between them.
pub fn pool(text: &str) -> Result<Pool, ValueError> {
    let mut pool = Pool::default();
    for network in text.split(',') {
        let network: IpNet = network.trim().parse().map_err(|_| ValueError::NotANetwork)?;
        if network != network.trunc() {
            return Err(ValueError::HostBits(network.trunc()));
        }
        let is_second = match network {
            IpNet::V4(network) => pool.v4.replace(network).is_some(),
            IpNet::V6(network) => pool.v6.replace(network).is_some(),
        };
        if is_second {
            return Err(ValueError::SecondPool);
        }
    }
    Ok(pool)
}

/// Whether a network that begins with `first` has hosts that are not on one link only.
fn has_hosts(first: IpAddr, one_host: bool) -> bool {
    let unicast = !first.is_multicast() && !first.is_loopback();
    let here = one_host && first.is_unspecified();
    unicast
        && !here
        && match first {
            IpAddr::V4(ip) => !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        }
}

fn is_unicast(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast()
}

/// Returns the address and, if there is a `/`, the length after it.
fn split_length(text: &str, lengths: RangeInclusive<u8>) -> (&str, Option<Result<u8, ValueError>>) {
    let Some((address, length)) = text.split_once('/') else { return (text, None) };
    let length = length.parse().ok().filter(|length| lengths.contains(length));
    (address, Some(length.ok_or_else(|| not_a_length(lengths))))
}

fn not_a_length(lengths: RangeInclusive<u8>) -> ValueError {
    ValueError::NotALength { min: *lengths.start(), max: *lengths.end() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_host() {
        assert_eq!(v4("203.0.113.1"), Ok(Ipv4Addr::new(203, 0, 113, 1)));
        assert_eq!(v4("224.0.0.1"), Err(ValueError::NotUnicast));
        assert_eq!(v4("0.0.0.0"), Err(ValueError::NotUnicast));
        assert_eq!(v4("::1"), Err(ValueError::IsIpv6));
        assert_eq!(v4("10.0.0.1/24"), Err(ValueError::NotAnAddress));
    }

    #[test]
    fn an_outer_address_may_be_ipv6() {
        for good in ["2001:db8::1", " [2001:db8::1] ", "192.0.2.1", "::1"] {
            assert_eq!(any(good).unwrap().to_string(), good.trim_matches([' ', '[', ']']));
        }
        for (bad, expected) in [
            ("fe80::1", ValueError::LinkLocal),
            ("fe80::1%eth0", ValueError::LinkLocal),
            ("2001:db8::1%eth0", ValueError::NotIpv6),
            ("::", ValueError::NotUnicast),
            ("ff02::1", ValueError::NotUnicast),
            ("::ffff:192.0.2.1", ValueError::MappedIpv4(Ipv4Addr::new(192, 0, 2, 1))),
            ("[2001:db8::1", ValueError::NotIpv6),
            ("[192.0.2.1]", ValueError::NotIpv6),
            ("1:2", ValueError::NotAnIp),
            ("", ValueError::NotAnIp),
        ] {
            assert_eq!(any(bad), Err(expected), "{bad:?}");
        }
    }

    #[test]
    fn inner_addresses_may_have_a_network() {
        let with = inner("192.168.100.1/24").unwrap();
        assert_eq!(with.address, Ipv4Addr::new(192, 168, 100, 1));
        assert_eq!(with.network.unwrap().to_string(), "192.168.100.0/24");
        assert_eq!(inner("10.0.0.1").unwrap().network, None);
        for bad in ["10.0.0.1/7", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1", "10.0.0.1/24/24"] {
            assert_eq!(inner(bad), Err(ValueError::NotALength { min: 8, max: 32 }), "{bad}");
        }
        assert_eq!(inner6("fd00::1").unwrap().to_string(), "fd00::1/64");
        assert_eq!(inner6("fd00::1/127").unwrap().to_string(), "fd00::1/127");
        assert_eq!(inner6("fd00::1/0"), Err(ValueError::NotALength { min: 1, max: 128 }));
        assert_eq!(inner6("::1"), Err(ValueError::NotUnicast));
        assert_eq!(inner6("fe80::1/64"), Err(ValueError::LinkLocal));
        assert_eq!(inner6("10.0.0.1"), Err(ValueError::NotIpv6));
    }

    #[test]
    fn a_prefix_is_a_network_but_not_the_default_route() {
        for (good, network) in [
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/1", "0.0.0.0/1"),
            (" 2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(prefix(good).unwrap().to_string(), network);
        }
        for everything in ["default", "0.0.0.0/0", "::/0"] {
            assert_eq!(prefix(everything), Err(ValueError::IsDefaultRoute));
        }
        for bad in ["224.0.0.0/4", "127.0.0.0/8", "fe80::/64", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(prefix(bad), Err(ValueError::NoHostsThere), "{bad}");
        }
        let right = "10.1.0.0/16".parse().unwrap();
        assert_eq!(prefix("10.1.2.0/16"), Err(ValueError::HostBits(right)));
        for bad in ["", "a", "10.0.0.0/33", "10.0.0.0/", "10.0/8"] {
            assert_eq!(prefix(bad), Err(ValueError::NotANetwork), "{bad}");
        }
    }
}
