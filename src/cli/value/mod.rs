//! Parses the value of one option: text goes in, and a type comes out, or the reason why not.
//!
//! Blanks around a value are dropped, because they come easily into a `.conf` file; only tokens and
//! secrets keep every byte, as the other end may have them with blanks.

mod keys;

use std::net::Ipv4Addr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

pub use keys::{
    PublicKey, PublicKeys, Seed, public_key, public_keys, seed, shared_secret, token, token_b64,
    token_of,
};

use crate::engine::config::{DeviceName, DeviceNameError, LEAST_MTU, MOST_MTU};
use crate::engine::hub::MemberState;

/// Why a text is not a value of its option. The message follows the value in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("is not a port (1..65535)")]
    NotAPort,
    #[error("is not a number from {min} to {max}")]
    NotANumber { min: u32, max: u32 },
    #[error("is not an IPv4 address")]
    NotAnAddress,
    #[error("is IPv6, and only IPv4 can stand here; --ip6 is for IPv6 inside the tunnel")]
    IsIpv6,
    #[error("is not an IPv6 address")]
    NotIpv6,
    #[error("is neither an IPv4 nor an IPv6 address")]
    NotAnIp,
    #[error("is an IPv6 address without brackets: write [ADDRESS] or [ADDRESS]:PORT")]
    NoBrackets,
    #[error("is good on one link only: give an address that other networks reach")]
    LinkLocal,
    #[error("is an IPv4 address in the form of an IPv6 one: give {0}")]
    MappedIpv4(Ipv4Addr),
    #[error("is not an address of one host")]
    NotUnicast,
    #[error("has a bad length of the network: it is {min} to {max} bits")]
    NotALength { min: u8, max: u8 },
    #[error("is not a network (ADDRESS/LENGTH)")]
    NotANetwork,
    #[error("names two networks of one family: a pool has one of IPv4 and one of IPv6 at most")]
    SecondPool,
    #[error("has bits set behind its length: the network is {0}")]
    HostBits(IpNet),
    #[error("is everything: that is --default-route, on a client")]
    IsDefaultRoute,
    #[error("is not a network that hosts are in")]
    NoHostsThere,
    #[error("is not an interface name: {0}")]
    NotADevice(#[from] DeviceNameError),
    #[error("is neither [IP], [:PORT] nor [@DEV]: write @DEV for an interface")]
    NotALocalEnd,
    #[error("is not [IP][:PORT][@DEV]; did you mean {0}?")]
    LocalEndMeant(String),
    #[error("is neither an address nor a host name")]
    NotAHost,
    #[error("has nothing between two commas, or at an end")]
    EmptyInList,
    #[error("has too many servers: {0} at most")]
    TooManyServers(usize),
    #[error("names an interface: that belongs to --fou-local or --fou-dev")]
    RemoteWithDevice,
    #[error("is not a number of seconds (0..4294967295, at most three decimals)")]
    NotSeconds,
    #[error("is too short: the least is {0} s")]
    TooShort(u32),
    #[cfg(feature = "hosts-url")]
    #[error("is not an http:// or https:// URL")]
    NotAUrl,
    #[error("is not a table name (a letter, then letters, digits, '_', '.' or '-'; at most 200)")]
    NotATable,
    #[error("is not the name of a tunnel (no '/', not '.' or '..')")]
    NotATunnel,
    #[error("is not a day: write it as 2027-01-31")]
    NotADate,
    #[error("is not a version of the control protocol: 1 or 2")]
    NotAProtocol,
    #[error("is not one of connected, away, new, expired, disabled")]
    NotAPeerState,
    #[error("is empty: give a path")]
    NoPath,
    #[error("is not base64")]
    NotBase64,
    #[error("has {0} bytes: an ed25519 key has 32")]
    KeyLength(usize),
    #[error(
        "is not an ed25519 public key: give the one that `ipipou pubkey` prints, not the private key"
    )]
    NotAPublicKey,
    #[error("is a placeholder: put what it stands for in its place")]
    Placeholder,
    #[error("is empty: give a token, or leave the option out")]
    NoToken,
    #[error("has {0} bytes: a token has at most 1472, to fit in one packet")]
    TokenLength(usize),
}

pub fn port(text: &str) -> Result<NonZeroU16, ValueError> {
    text.trim().parse().map_err(|_| ValueError::NotAPort)
}

/// Parses how many times `ipipou ping` asks.
pub fn pings(text: &str) -> Result<u32, ValueError> {
    const MOST: u32 = 1_000_000;
    let count = text.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or(ValueError::NotANumber { min: 1, max: MOST })
}

pub fn number(text: &str) -> Result<u32, ValueError> {
    integer(text, 0, u32::MAX)
}

pub fn queue(text: &str) -> Result<u16, ValueError> {
    integer(text, 0, u16::MAX.into())
}

pub fn queue_length(text: &str) -> Result<NonZeroU32, ValueError> {
    integer(text, 1, u32::MAX)
}

pub fn ttl(text: &str) -> Result<NonZeroU8, ValueError> {
    integer(text, 1, u8::MAX.into())
}

pub fn verbosity(text: &str) -> Result<u8, ValueError> {
    integer(text, 0, u8::MAX.into())
}

/// Parses the size of the largest packet inside a tunnel, in bytes.
pub fn mtu(text: &str) -> Result<u32, ValueError> {
    let (min, max) = (LEAST_MTU, MOST_MTU);
    let mtu: u32 = integer(text, min, max)?;
    if (min..=max).contains(&mtu) { Ok(mtu) } else { Err(ValueError::NotANumber { min, max }) }
}

/// Parses the number of threads that read from the tunnel.
pub fn queues(text: &str) -> Result<NonZeroUsize, ValueError> {
    count(text, 16)
}

/// Parses how many inner addresses a server learns. All of them are kept in memory and
/// on disk.
pub fn learn_limit(text: &str) -> Result<NonZeroUsize, ValueError> {
    count(text, 65_536)
}

fn count(text: &str, max: u32) -> Result<NonZeroUsize, ValueError> {
    let count: NonZeroUsize = integer(text, 1, max)?;
    match u32::try_from(count.get()) {
        Ok(number) if number <= max => Ok(count),
        Ok(_) | Err(_) => Err(ValueError::NotANumber { min: 1, max }),
    }
}

/// Parses an integer. `min` and `max` are only used in the message: the type has the same bounds.
fn integer<T: FromStr>(text: &str, min: u32, max: u32) -> Result<T, ValueError> {
    text.trim().parse().map_err(|_| ValueError::NotANumber { min, max })
}

pub fn device(text: &str) -> Result<DeviceName, ValueError> {
    Ok(text.trim().parse()?)
}

/// Parses seconds with up to three decimals.
pub fn seconds(text: &str) -> Result<Duration, ValueError> {
    let (whole, decimals) = match text.trim().split_once('.') {
        Some((whole, decimals)) if !decimals.is_empty() => (whole, decimals),
        Some(_) => return Err(ValueError::NotSeconds),
        None => (text.trim(), "0"),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return Err(ValueError::NotSeconds);
    }
    let whole: u32 = whole.parse().map_err(|_| ValueError::NotSeconds)?;
    let millis: u64 = format!("{decimals:0<3}").parse().map_err(|_| ValueError::NotSeconds)?;
    Ok(Duration::from_secs(whole.into()) + Duration::from_millis(millis))
}

/// Parses seconds, of which there must be at least one.
pub fn lifetime(text: &str) -> Result<Duration, ValueError> {
    at_least(1, text)
}

/// Parses the seconds between two fetches, of which there must be enough for the server not to
/// refuse us.
pub fn interval(text: &str) -> Result<Duration, ValueError> {
    at_least(10, text)
}

fn at_least(min: u32, text: &str) -> Result<Duration, ValueError> {
    let duration = seconds(text)?;
    let enough = duration >= Duration::from_secs(min.into());
    if enough { Ok(duration) } else { Err(ValueError::TooShort(min)) }
}

/// Parses a URL by the rules of the library that fetches it.
#[cfg(feature = "hosts-url")]
pub fn url(text: &str) -> Result<String, ValueError> {
    let text = text.trim();
    let uri: ureq::http::Uri = text.parse().map_err(|_| ValueError::NotAUrl)?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let host = uri.host().is_some_and(|host| !host.is_empty());
    if known && host { Ok(text.to_owned()) } else { Err(ValueError::NotAUrl) }
}

/// Without the feature `resolve` refuses it, whatever it is.
#[cfg(not(feature = "hosts-url"))]
pub fn url(text: &str) -> Result<String, ValueError> {
    Ok(text.to_owned())
}

/// Parses an identifier that nft reads without quotes (`string` in nftables' src/scanner.l). It
/// leaves room for the tunnel's number, because the kernel takes 255 bytes (NFT_TABLE_MAXNAMELEN).
pub fn table(text: &str) -> Result<String, ValueError> {
    let text = text.trim();
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if starts_well && text.bytes().all(inside) && text.len() <= 200 {
        Ok(text.to_owned())
    } else {
        Err(ValueError::NotATable)
    }
}

/// Parses the name of a tunnel as `ipipou show` knows it: the last part of a directory's name.
pub fn tunnel_name(text: &str) -> Result<String, ValueError> {
    match text {
        "" | "." | ".." => Err(ValueError::NotATunnel),
        _ if text.contains(['/', '\0']) => Err(ValueError::NotATunnel),
        _ => Ok(text.to_owned()),
    }
}

pub fn path(text: &str) -> Result<PathBuf, ValueError> {
    if text.trim().is_empty() { Err(ValueError::NoPath) } else { Ok(PathBuf::from(text.trim())) }
}

/// Takes a day, as TOML and RFC 3339 have it.
pub fn date(text: &str) -> Result<String, ValueError> {
    let digits =
        |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2) => {
            Ok(text.to_owned())
        }
        _ => Err(ValueError::NotADate),
    }
}

/// Takes a version of the control protocol.
pub fn protocol(text: &str) -> Result<u8, ValueError> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err(ValueError::NotAProtocol),
    }
}

/// Takes the state of a peer, as `ipipou show` has it.
pub fn peer_state(text: &str) -> Result<String, ValueError> {
    let is_one = MemberState::ALL.iter().any(|state| state.name() == text);
    if is_one { Ok(text.to_owned()) } else { Err(ValueError::NotAPeerState) }
}

/// Takes a path, or nothing at all.
pub fn path_or_none(text: &str) -> Result<PathBuf, ValueError> {
    Ok(PathBuf::from(text.trim()))
}

/// Returns `None` for zero, which means "never" or "never ends" in every option that takes seconds.
pub fn unless_zero(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_take_whole_numbers_and_three_decimals() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds(" 27 "), Ok(Duration::from_secs(27)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("1.025"), Ok(Duration::from_millis(1025)));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "inf", "0.0001", "4294967296", "1.2.3"]
        {
            assert_eq!(seconds(bad), Err(ValueError::NotSeconds), "{bad:?}");
        }
    }

    #[test]
    fn counts_and_times_have_bounds() {
        assert_eq!(queues("16").map(NonZeroUsize::get), Ok(16));
        for bad in ["0", "17", "-1", "4294967297", "x"] {
            assert_eq!(queues(bad), Err(ValueError::NotANumber { min: 1, max: 16 }), "{bad}");
        }
        assert_eq!((mtu("68"), mtu(" 65507 ")), (Ok(68), Ok(65_507)));
        for bad in ["67", "65508", "0", "-1", "1e3", ""] {
            let refused = Err(ValueError::NotANumber { min: 68, max: 65_507 });
            assert_eq!(mtu(bad), refused, "{bad}");
        }
        assert_eq!(interval("10"), Ok(Duration::from_secs(10)));
        assert_eq!(interval("9.999"), Err(ValueError::TooShort(10)));
        assert_eq!(lifetime("0"), Err(ValueError::TooShort(1)));
    }

    #[test]
    #[cfg(feature = "hosts-url")]
    fn only_complete_http_urls_are_accepted() {
        for good in ["http://a", "https://me:x@a.example:8443/t.json?x=y", "HTTPS://[2001:db8::1]/"]
        {
            assert_eq!(url(good), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "a",
            "a:80",
            "/x",
            "https:/a",
            "https://",
            "https://:1/",
            "https://a b/",
            "ftp://a/",
        ] {
            assert_eq!(url(bad), Err(ValueError::NotAUrl), "{bad}");
        }
    }

    #[test]
    fn an_nft_table_name_is_an_identifier() {
        assert_eq!(table("ipipou"), Ok("ipipou".to_owned()));
        for bad in ["", "0a", "a b", "a;b", "a\"b", "é", "-a", &"a".repeat(201)] {
            assert_eq!(table(bad), Err(ValueError::NotATable), "{bad:?}");
        }
    }
}
