//! Parses `--fou-local [IP][:PORT][@DEV]` and `--fou-remote [IP-or-name][:PORT]`. An IPv6 address
//! stands in brackets, as in a URL (RFC 3986).

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::address;
use super::value::{self, ValueError};
use crate::engine::config::{DeviceName, HostName, is_host_name};

/// Our end of the outer packets. Every part can be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalEnd {
    pub ip: Option<IpAddr>,
    pub port: Option<NonZeroU16>,
    pub device: Option<DeviceName>,
}

/// The peer's end of the outer packets. Every part can be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteEnd {
    pub host: Option<HostName>,
    pub port: Option<NonZeroU16>,
}

/// The other ends, of which only a client has more than one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteEnds {
    pub first: RemoteEnd,
    pub others: Vec<RemoteEnd>,
}

/// How many servers a client asks in turn.
const MOST_SERVERS: usize = 8;

pub fn local(text: &str) -> Result<LocalEnd, ValueError> {
    let text = text.trim();
    if let Some(meant) = reordered(text) {
        return Err(ValueError::LocalEndMeant(meant));
    }
    let (rest, device) = match text.split_once('@') {
        Some((rest, device)) => (rest, Some(value::device(device)?)),
        None => (text, None),
    };
    let (ip, port) = split_port(rest)?;
    let ip = match ip {
        "" => None,
        ip => Some(address::any(ip).map_err(|error| match error {
            ValueError::NotAnIp => ValueError::NotALocalEnd,
            other => other,
        })?),
    };
    Ok(LocalEnd { ip, port, device })
}

/// Puts the parts of our end into their order if they were given in another one, or without their
/// signs.
fn reordered(text: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_device = |text: &str| {
        let is_name = value::device(text).is_ok() && text.chars().all(is_plain);
        is_name && !is_number(text) && address::any(text).is_err()
    };
    let is_ip = |text: &str| address::any(text).is_ok();
    let meant = match text.split_once('@') {
        Some((before, after)) => match (after.split_once(':'), is_device(before)) {
            // @DEV:PORT
            (Some((device, port)), _) if is_device(device) && is_number(port) => {
                format!("{before}:{port}@{device}")
            }
            // DEV@IP
            (None, true) if is_ip(after) => format!("{after}@{before}"),
            // PORT@DEV
            (None, false) if is_number(before) && is_device(after) => format!(":{before}@{after}"),
            _ => return None,
        },
        None => match text.split_once(':') {
            Some((device, port)) if is_device(device) && is_number(port) => {
                format!(":{port}@{device}")
            }
            None if is_number(text) => format!(":{text}"),
            None if is_device(text) && !text.contains('.') => format!("@{text}"),
            Some(_) | None => return None,
        },
    };
    local(&meant).ok().map(|_| meant)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

pub fn remote(text: &str) -> Result<RemoteEnd, ValueError> {
    let text = text.trim();
    if text.contains('@') {
        return Err(ValueError::RemoteWithDevice);
    }
    let (name, port) = split_port(text)?;
    let host = if name.is_empty() { None } else { Some(host(name)?) };
    Ok(RemoteEnd { host, port })
}

/// Parses one remote end, or several with commas between.
pub fn remotes(text: &str) -> Result<RemoteEnds, ValueError> {
    let mut ends = text.split(',').map(|end| match end.trim() {
        "" if text.contains(',') => Err(ValueError::EmptyInList),
        end => remote(end),
    });
    let first = ends.next().unwrap_or_else(|| Ok(RemoteEnd::default()))?;
    let others = ends.collect::<Result<Vec<_>, _>>()?;
    match others.len() < MOST_SERVERS {
        true => Ok(RemoteEnds { first, others }),
        false => Err(ValueError::TooManyServers(MOST_SERVERS)),
    }
}

/// Parses an address, or a host name.
pub fn host(text: &str) -> Result<HostName, ValueError> {
    let text = text.trim();
    match address::any(text) {
        Ok(ip) => return Ok(HostName::Address(ip)),
        Err(ValueError::NotAnIp) => {}
        Err(other) => return Err(other),
    }
    match is_host_name(text) {
        true => Ok(HostName::Name(text.to_owned())),
        false => Err(ValueError::NotAHost),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<NonZeroU16>), ValueError> {
    let (host, port) = match text.rfind(']') {
        Some(end) if text.starts_with('[') => match &text[end + 1..] {
            "" => (text, None),
            rest => {
                let port = rest.strip_prefix(':').ok_or(ValueError::NotAPort)?;
                (&text[..=end], Some(port))
            }
        },
        _ if text.starts_with('[') => return Err(ValueError::NotIpv6),
        _ if address::looks_like_v6(text) => return Err(ValueError::NoBrackets),
        _ => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    Ok((host, port.map(value::port).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_local_endpoint_is_optional() {
        let end = local("203.0.113.1:10007@eth0").unwrap();
        assert_eq!(end.ip, Some("203.0.113.1".parse().unwrap()));
        assert_eq!(end.port, NonZeroU16::new(10007));
        assert_eq!(end.device, Some("eth0".parse().unwrap()));
        assert_eq!(local(""), Ok(LocalEnd::default()));
        assert_eq!(local(":10007").unwrap().port, NonZeroU16::new(10007));
        assert_eq!(local("@eth0").unwrap().ip, None);
    }

    #[test]
    fn a_malformed_local_endpoint_is_explained() {
        for (text, meant) in [
            ("eth0", "@eth0"),
            ("eth0:10000", ":10000@eth0"),
            ("@eth0:10000", ":10000@eth0"),
            ("192.0.2.1@eth0:7", "192.0.2.1:7@eth0"),
            ("eth0@192.0.2.1", "192.0.2.1@eth0"),
            ("10000", ":10000"),
            ("10000@eth0", ":10000@eth0"),
        ] {
            assert_eq!(local(text), Err(ValueError::LocalEndMeant(meant.to_owned())), "{text}");
        }
        assert_eq!(local("1.2.3.400"), Err(ValueError::NotALocalEnd));
        assert!(matches!(local("@eth0:0"), Err(ValueError::NotADevice(_))));
        assert_eq!(local("1.2.3.4:0"), Err(ValueError::NotAPort));
        assert_eq!(local("1.2.3.4:"), Err(ValueError::NotAPort));
        assert_eq!(local("::1"), Err(ValueError::NoBrackets));
        assert_eq!(local("2001:db8::1:10000@eth0"), Err(ValueError::NoBrackets));
        assert_eq!(local("[fe80::1]@eth0"), Err(ValueError::LinkLocal));
        assert_eq!(local("[2001:db8::1"), Err(ValueError::NotIpv6));
        assert_eq!(local("[]:5"), Err(ValueError::NotIpv6));
        assert_eq!(local("[2001:db8::1]5"), Err(ValueError::NotAPort));
        assert_eq!(local("[2001:db8::1]:"), Err(ValueError::NotAPort));
        assert!(matches!(local("1.2.3.4@"), Err(ValueError::NotADevice(_))));
        assert!(matches!(local("@name-that-is-too-long"), Err(ValueError::NotADevice(_))));
    }

    #[test]
    fn the_remote_is_an_address_or_a_name() {
        let end = remote("ipipou.example.net:10000").unwrap();
        assert_eq!(end.host, Some(HostName::Name("ipipou.example.net".into())));
        assert_eq!(end.port, NonZeroU16::new(10000));
        assert_eq!(remote(":1").unwrap().host, None);
        assert!(matches!(remote("192.0.2.1").unwrap().host, Some(HostName::Address(_))));
        for bad in ["1.2.3.400", "300", "a..b", "a b", "-a", "é.fr", &"a".repeat(64)] {
            assert_eq!(remote(bad), Err(ValueError::NotAHost), "{bad:?}");
        }
        assert_eq!(remote("a@eth0"), Err(ValueError::RemoteWithDevice));
        assert_eq!(remote("2001:db8::1"), Err(ValueError::NoBrackets));
        assert_eq!(remote("[a.example]:5"), Err(ValueError::NotIpv6));
    }

    #[test]
    fn several_remotes_have_commas_between() {
        let ends = remotes("a.example:1, 192.0.2.1:2,[2001:db8::1]:3").unwrap();
        assert_eq!(ends.first, remote("a.example:1").unwrap());
        assert_eq!(ends.others, ["192.0.2.1:2", "[2001:db8::1]:3"].map(|r| remote(r).unwrap()));
        assert_eq!(remotes("a:1").unwrap().others, []);
        for empty in ["a:1,", ",a:1", "a:1,,b:1"] {
            assert_eq!(remotes(empty), Err(ValueError::EmptyInList), "{empty}");
        }
        assert_eq!(remotes("a:1,b:0"), Err(ValueError::NotAPort));
        assert!(remotes(&["a:1"; 8].join(",")).is_ok());
        assert_eq!(remotes(&["a:1"; 9].join(",")), Err(ValueError::TooManyServers(8)));
    }

    #[test]
    fn ipv6_is_written_in_brackets() {
        let end = local("[2001:db8::1]:10007@eth0").unwrap();
        assert_eq!(end.ip, Some("2001:db8::1".parse().unwrap()));
        assert_eq!(end.port, NonZeroU16::new(10007));
        assert_eq!(end.device, Some("eth0".parse().unwrap()));
        let address = HostName::Address("2001:db8::1".parse().unwrap());
        assert_eq!(
            remote("[2001:db8::1]").unwrap(),
            RemoteEnd { host: Some(address.clone()), port: None }
        );
        assert_eq!(remote("[2001:db8::1]:7").unwrap().port, NonZeroU16::new(7));
        assert_eq!(host("2001:db8::1"), Ok(address));
    }
}
