//! The links of peers: what they are called, so that the same peer has the same one after a restart, and the
//! alternate address of each.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use super::config::{AlternateAddress, Datapath, DeviceName, TunnelConfig};
use super::host::{Found, is_labelled};

/// Alternate local addresses of peers' links: a network that no number of a tunnel has.
const ALTERNATE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);

/// The alternate local address of the link that this number tells apart.
pub fn alternate(mark: u16) -> AlternateAddress {
    let address = Ipv4Addr::from_bits(ALTERNATE.to_bits() | u32::from(mark));
    AlternateAddress::WhenTaken(address)
}

/// The link to the peer that this number tells apart; a datapath may have one link for all. The same peer
/// has the same name after a restart.
pub fn device(tunnel: &TunnelConfig, datapath: Datapath, mark: u16) -> DeviceName {
    let base = tunnel.device.clone();
    match datapath.capabilities().link_per_remote {
        true => format!("{}{mark:04x}", prefix(tunnel)).parse().unwrap_or(base),
        false => base,
    }
}

/// The interfaces that this or an earlier process made for peers. Another process may have given its own one
/// a name that begins alike.
pub fn interfaces(found: &Found, tunnel: &TunnelConfig) -> Vec<DeviceName> {
    let prefix = prefix(tunnel);
    let ours = found.interfaces.iter().filter(|i| {
        prefix_of(&i.name) == Some(&prefix)
            && is_labelled(i)
            && i.link_from(tunnel.port.get()).is_some()
    });
    ours.filter_map(|i| i.name.parse().ok()).collect()
}

/// What the names of the interfaces begin with.
pub fn prefix(tunnel: &TunnelConfig) -> String {
    shortened(&tunnel.device, DeviceName::MAX_LEN - "-ffff".len()) + "-"
}

/// What the name of a peer's interface begins with, if it may be one.
pub fn prefix_of(name: &str) -> Option<&str> {
    let at = name.rfind('-')? + 1;
    let (prefix, number) = name.split_at(at);
    (number.len() == 4 && number.bytes().all(|b| b.is_ascii_hexdigit())).then_some(prefix)
}

/// A name that has at most `room` bytes: the whole one, or what there is room for of it and four digits that
/// tell it from others which begin alike.
pub fn shortened(name: &DeviceName, room: usize) -> String {
    let name = name.as_str();
    if name.len() <= room {
        return name.to_owned();
    }
    let mut end = room - "ffff".len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{:04x}", &name[..end], hash_of_text(0, name))
}

/// Tells texts apart, within a `scope` (FNV-1a, RFC 9923, folded).
pub fn hash_of_text(scope: u16, text: &str) -> u16 {
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let start = scope.to_be_bytes().iter().fold(0x811c_9dc5, mix);
    let hash = text.as_bytes().iter().fold(start, mix);
    u16::try_from((hash >> 16) ^ (hash & 0xffff)).unwrap_or_default()
}

/// The link to a peer with the old program: unlike those to other peers, it has its port in its name. A name
/// of the server's that is too long for that is told from others that begin like it by a few digits.
pub fn of_old_peer(hub: &DeviceName, port: NonZeroU16) -> DeviceName {
    let suffix = format!("_{port}");
    let name = shortened(hub, DeviceName::MAX_LEN - suffix.len());
    format!("{name}{suffix}").parse().unwrap_or_else(|_| hub.clone())
}

/// Whether a link of this name is one of those of the server whose own has the name `hub`.
pub fn is_of_server(name: &str, hub: &DeviceName) -> bool {
    let port = || name.rsplit_once('_')?.1.parse().ok();
    name == hub.as_str() || port().is_some_and(|port| of_old_peer(hub, port).as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_that_begin_alike_have_links_of_their_own() {
        let port = NonZeroU16::new(10003).unwrap();
        let link = |hub: &str| of_old_peer(&hub.parse().unwrap(), port).as_str().to_owned();
        assert_eq!(link("ipipou0"), "ipipou0_10003");
        assert_eq!(link("ninechars"), "ninechars_10003");
        let (a, b) = (link("longtunnel-a"), link("longtunnel-b"));
        assert_ne!(a, b);
        for long in [a, b] {
            assert_eq!(long.len(), DeviceName::MAX_LEN);
            assert!(long.starts_with("longt") && long.ends_with("_10003"), "{long}");
        }
    }

    #[test]
    fn a_servers_links_are_told_from_those_of_others() {
        for hub in ["ipipou0", "longtunnel-a"] {
            let hub: DeviceName = hub.parse().unwrap();
            let old = of_old_peer(&hub, NonZeroU16::new(10003).unwrap());
            assert!(is_of_server(hub.as_str(), &hub) && is_of_server(old.as_str(), &hub), "{old}");
            for other in ["ipipou1", "ipipou1_10003", "ipipou0_", "ipipou0_0", "ipipou0_x", "x_1"] {
                assert!(!is_of_server(other, &hub), "{other}");
            }
        }
    }
}
