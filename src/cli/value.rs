//! The value of one option: text in, a type out, or the reason why not.
//!
//! Blanks around a value are dropped, because they come easily into a `.conf` file; only tokens and
//! secrets keep every byte, as the other end may have them with blanks.

use std::net::Ipv4Addr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::auth::{KeyError, SharedSecret, Token, TokenError, Verifier, parse_key};
use crate::engine::config::{DeviceName, DeviceNameError};

/// Why a text is no value of its option: a sentence that goes on after the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("is not a port (1..65535)")]
    NotAPort,
    #[error("is not a number from {min} to {max}")]
    NotANumber { min: u32, max: u32 },
    #[error("is not an IPv4 address")]
    NotAnAddress,
    #[error("is IPv6: outer and inner addresses are IPv4 only, give one of those")]
    IsIpv6,
    #[error("is not an address of one host")]
    NotUnicast,
    #[error("is not an interface name: {0}")]
    NotADevice(#[from] DeviceNameError),
    #[error("is neither [IP], [:PORT] nor [@DEV]: write @DEV for an interface")]
    NotALocalEnd,
    #[error("is neither an IPv4 address nor a host name")]
    NotAHost,
    #[error("names an interface: that belongs to --fou-local or --fou-dev")]
    RemoteWithDevice,
    #[error("is not a number of seconds (0..4294967295, at most three decimals)")]
    NotSeconds,
    #[error("is not a table name (a letter, then letters, digits, '_', '.' or '-'; at most 200)")]
    NotATable,
    #[error("is not the name of a tunnel (no '/', not '.' or '..')")]
    NotATunnel,
    #[error("is empty: give a path")]
    NoPath,
    #[error("is not base64")]
    NotBase64,
    #[error("has {0} bytes: an ed25519 key has 32")]
    KeyLength(usize),
    #[error("is not an ed25519 public key (no point of the curve)")]
    NotAPublicKey,
    #[error("is empty: give a token, or leave the option out")]
    NoToken,
    #[error("has {0} bytes: a token has at most 1472, to fit in one packet")]
    TokenLength(usize),
}

/// An ed25519 private key (RFC 8032 seed) as given, never printed.
#[derive(Clone)]
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// The bytes of an ed25519 public key that is a point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

pub fn port(text: &str) -> Result<NonZeroU16, ValueError> {
    text.trim().parse().map_err(|_| ValueError::NotAPort)
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

/// `min` and `max` are those of the type, for the message.
fn integer<T: FromStr>(text: &str, min: u32, max: u32) -> Result<T, ValueError> {
    text.trim().parse().map_err(|_| ValueError::NotANumber { min, max })
}

/// An address that one host can have: not 0.0.0.0, broadcast or multicast.
pub fn address(text: &str) -> Result<Ipv4Addr, ValueError> {
    let text = text.trim();
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() => {
            Err(ValueError::NotUnicast)
        }
        Ok(ip) => Ok(ip),
        Err(_) if looks_like_ipv6(text) => Err(ValueError::IsIpv6),
        Err(_) => Err(ValueError::NotAnAddress),
    }
}

/// Two colons are in no `IP:PORT` and in every IPv6 address.
pub fn looks_like_ipv6(text: &str) -> bool {
    text.starts_with('[') || text.matches(':').count() > 1
}

pub fn device(text: &str) -> Result<DeviceName, ValueError> {
    Ok(text.trim().parse()?)
}

/// Seconds with up to three decimals; zero is zero.
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

/// An identifier that nft reads without quotes (`string` in nftables' src/scanner.l), with room
/// for the tunnel's number behind it: the kernel takes 255 bytes (NFT_TABLE_MAXNAMELEN).
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

/// A tunnel as `ipipou show` knows it: the last part of a directory's name.
pub fn tunnel_name(text: &str) -> Result<String, ValueError> {
    match text {
        "" | "." | ".." => Err(ValueError::NotATunnel),
        _ if text.contains(['/', '\0']) => Err(ValueError::NotATunnel),
        _ => Ok(text.to_owned()),
    }
}

pub fn directory(text: &str) -> Result<PathBuf, ValueError> {
    if text.trim().is_empty() { Err(ValueError::NoPath) } else { Ok(PathBuf::from(text.trim())) }
}

pub fn seed(text: &str) -> Result<Seed, ValueError> {
    Ok(Seed(parse_key(text).map_err(key_error)?))
}

pub fn public_key(text: &str) -> Result<PublicKey, ValueError> {
    let key = *parse_key(text).map_err(key_error)?;
    // Only to see here, where file and line are known, that it is a key.
    Verifier::new(&key, SharedSecret::new(Vec::new()), None).map_err(key_error)?;
    Ok(PublicKey(key))
}

/// The decoder's own words name a byte of the key, so they are not passed on.
fn key_error(error: KeyError) -> ValueError {
    match error {
        KeyError::NotBase64(_) => ValueError::NotBase64,
        KeyError::Length(n) => ValueError::KeyLength(n),
        KeyError::NotAPoint | KeyError::Weak => ValueError::NotAPublicKey,
    }
}

pub fn token(text: &str) -> Result<Token, ValueError> {
    token_of(text.as_bytes().to_vec())
}

pub fn token_b64(text: &str) -> Result<Token, ValueError> {
    token_of(STANDARD.decode(text.trim()).map_err(|_| ValueError::NotBase64)?)
}

fn token_of(bytes: Vec<u8>) -> Result<Token, ValueError> {
    Token::new(bytes).map_err(|error| match error {
        TokenError::Empty => ValueError::NoToken,
        TokenError::TooLong(n) => ValueError::TokenLength(n),
    })
}

pub fn shared_secret(text: &str) -> Result<SharedSecret, ValueError> {
    Ok(SharedSecret::new(text.as_bytes().to_vec()))
}

/// Zero means "never" or "for ever" in every option that takes seconds.
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
    fn an_address_is_one_host() {
        assert_eq!(address("203.0.113.1"), Ok(Ipv4Addr::new(203, 0, 113, 1)));
        assert_eq!(address("224.0.0.1"), Err(ValueError::NotUnicast));
        assert_eq!(address("0.0.0.0"), Err(ValueError::NotUnicast));
        assert_eq!(address("::1"), Err(ValueError::IsIpv6));
        assert_eq!(address("10.0.0.1/24"), Err(ValueError::NotAnAddress));
    }

    #[test]
    fn a_table_is_an_identifier() {
        assert_eq!(table("ipipou"), Ok("ipipou".to_owned()));
        for bad in ["", "0a", "a b", "a;b", "a\"b", "é", "-a", &"a".repeat(201)] {
            assert_eq!(table(bad), Err(ValueError::NotATable), "{bad:?}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_printed() {
        let key = "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=";
        assert_eq!(format!("{:?}", seed(key)), "Ok(Seed(…))");
        assert_eq!(seed("RuBZ!").map(|_| ()), Err(ValueError::NotBase64));
        assert_eq!(seed("RuBZ").map(|_| ()), Err(ValueError::KeyLength(3)));
        assert_eq!(token("").map(|_| ()), Err(ValueError::NoToken));
        assert_eq!(token(&"x".repeat(1473)).map(|_| ()), Err(ValueError::TokenLength(1473)));
    }
}
