//! Addresses and networks inside the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Context;
use super::fault::{Mistake, quoted};
use super::key::is_placeholder;

/// Networks without hosts: "this network", loopback, groups, broadcast (RFC 1122, 3.2.1.3).
const NOBODYS: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
];

/// The same of IPv6, with what is good on one link only, and IPv4 in the form of IPv6 (RFC 4291, 2.4
/// and 2.5.5.2).
const NOBODYS6: [Ipv6Net; 5] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
    Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
    Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
];

/// Reads an address of a peer, which is in the server's network and not the server's own.
pub fn address(text: &str, context: &Context) -> Result<IpAddr, Mistake> {
    let text = text.trim();
    let say = |what: String, todo: &str| Mistake::new(format!("`address` {what}"), todo);
    let address: IpAddr = match text.parse() {
        Ok(address) => address,
        Err(_) => return Err(no_address(text)),
    };
    let (own, network) = match (address, context.inner6) {
        (IpAddr::V4(_), _) => (IpAddr::V4(context.inner), IpNet::V4(context.network)),
        (IpAddr::V6(_), Some(own)) => (IpAddr::V6(own.addr()), IpNet::V6(own)),
        (IpAddr::V6(_), None) => {
            let what = format!("{address}: the server has no IPv6 inside the tunnel");
            return Err(say(what, "leave it out, or start the server with --ip6"));
        }
    };
    let network = network.trunc();
    if address == own {
        let what = format!("{address} is the server's own");
        return Err(say(what, &format!("give another one of {network}")));
    }
    if !network.contains(&address) {
        let what = format!("{address} is outside the server's network {network}");
        return Err(say(what, "give one that is in it; did you mean `route`?"));
    }
    if !is_for_hosts(address, network) {
        let what = format!("{address} is the first or the last of {network}, and no host's");
        return Err(say(what, "give one between them"));
    }
    Ok(address)
}

/// Whether a host can have this address of its network: not the one of the network itself, nor that for
/// all hosts (RFC 1122, 3.2.1.3), nor that for all routers (RFC 4291, 2.6.1).
pub fn is_for_hosts(address: IpAddr, network: IpNet) -> bool {
    match network {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            address != net.network() && address != net.broadcast()
        }
        IpNet::V6(net) if net.prefix_len() < 127 => address != net.network(),
        IpNet::V4(_) | IpNet::V6(_) => true,
    }
}

fn no_address(text: &str) -> Mistake {
    if let Some(mistake) = common("address", text) {
        return mistake;
    }
    match text.parse::<IpNet>() {
        Ok(net) if net == net.trunc() && net.prefix_len() < net.max_prefix_len() => Mistake::new(
            format!("`address` {net} is a network"),
            "give the peer's own address; did you mean `route`?",
        ),
        Ok(net) => Mistake::new(
            format!("`address` {net} has a length behind it"),
            format!("write \"{}\"", net.addr()),
        ),
        Err(_) => Mistake::new(
            format!("`address` {} is not an IP address", quoted(text)),
            "write it as \"10.8.0.7\" or \"fd00::7\"",
        ),
    }
}

/// Reads the server's address as a client with the old program knows it: any that a host can have.
pub fn server_address(text: &str) -> Result<Ipv4Addr, Mistake> {
    let text = text.trim();
    let address: Ipv4Addr = text.parse().map_err(|_| {
        let what = format!("`server-address` {} is not an IPv4 address", quoted(text));
        Mistake::new(what, "write it as \"172.28.0.2\"")
    })?;
    match is_nobodys(&IpNet::from(IpAddr::V4(address))) {
        false => Ok(address),
        true => {
            let what = format!("`server-address` {address} is not an address that a host can have");
            Err(Mistake::new(what, "give the one that the old server had inside the tunnel"))
        }
    }
}

/// Reads a network behind a peer, or one address there.
pub fn route(text: &str, context: &Context) -> Result<IpNet, Mistake> {
    let text = text.trim();
    let say = |what: String, todo: &str| Mistake::new(format!("`route` {what}"), todo);
    let one = text.parse::<IpAddr>().map(IpNet::from);
    let net = match one.or_else(|_| text.parse::<IpNet>()) {
        Ok(net) => net,
        Err(_) => return Err(no_route(text)),
    };
    if net != net.trunc() {
        let what = format!("{net} has bits set behind its length");
        return Err(say(what, &format!("write \"{}\"", net.trunc())));
    }
    if net.prefix_len() == 0 {
        let todo = "give the networks behind the peer";
        return Err(say(format!("{net} is everything, and the server too"), todo));
    }
    if is_nobodys(&net) {
        let what = format!("{net} holds no addresses that a host can have");
        return Err(say(what, "give a network behind the peer"));
    }
    if matches!(net, IpNet::V6(_)) && context.inner6.is_none() {
        let what = format!("{net}: the server has no IPv6 inside the tunnel");
        return Err(say(what, "leave it out, or start the server with --ip6"));
    }
    let own6 = context.inner6.map(|own| IpAddr::V6(own.addr()));
    let own = [IpAddr::V4(context.inner)].into_iter().chain(own6);
    if let Some(own) = own.into_iter().find(|own| net.contains(own)) {
        let what = format!("{net} holds {own}, the server's own address");
        return Err(say(what, "give smaller networks, which do not"));
    }
    Ok(net)
}

fn is_nobodys(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => NOBODYS.iter().any(|nobodys| nobodys.contains(net)),
        IpNet::V6(net) => NOBODYS6.iter().any(|nobodys| nobodys.contains(net)),
    }
}

fn no_route(text: &str) -> Mistake {
    common("route", text).unwrap_or_else(|| {
        let what = format!("`route` {} is not a network", quoted(text));
        Mistake::new(what, "write it as \"192.168.7.0/24\" or \"fd00:7::/64\"")
    })
}

/// What is wrong with addresses and networks alike.
fn common(field: &str, text: &str) -> Option<Mistake> {
    let say = |what: &str, todo: &str| {
        Some(Mistake::new(format!("`{field}` {} {what}", quoted(text)), todo))
    };
    if is_placeholder(text) {
        return say("is a placeholder", "put what it stands for in its place");
    }
    match text.contains([',', ' ']) {
        true => say("is several in one text", "write a list: [\"…\", \"…\"]"),
        false => None,
    }
}
