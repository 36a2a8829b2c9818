//! What can be wrong with options that are right one by one.

use std::net::Ipv4Addr;

use super::value::ValueError;

/// Options that are right one by one and do not make a tunnel together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("--reauth-only: only a client sends authentication packets, leave out --server")]
    ReauthOnServer,
    #[error(
        "our end of the tunnel is missing: give -b @DEV or -b IP (or --fou-dev, --fou-local-ip); \
         `ipipou -h` shows examples"
    )]
    NoLocalEnd,
    #[error("-b @auto: a server has no route to follow, give -b @DEV or -b IP")]
    AutoOnServer,
    #[error("a client needs its server's address: give -r HOST:PORT (or --fou-remote-ip)")]
    NoServer,
    #[error("a client needs its server's port: give -r HOST:PORT (or --fou-remote-port)")]
    NoServerPort,
    #[error("a client needs its address inside the tunnel: give --tunl-ip, the server's plus 1")]
    NoInnerAddress,
    #[error("--tunl-ip: {0} leaves no address for the other end: give --tunl-peer-ip too")]
    NoPeerAddress(Ipv4Addr),
    #[error("--auth-by-remote-ip needs the address: give --fou-remote-ip")]
    NoRemoteIp,
    #[error("--auth-by-remote-ip needs an address, {0} is a name: give --fou-remote-ip IP")]
    RemoteIpIsName(String),
    #[error("--auth-by-remote-port needs the port: give --fou-remote-port")]
    NoRemotePort,
    #[error("--number: with {number} there is no default for {option} (at most {max}): give it")]
    NumberTooBig { number: u32, option: &'static str, max: u32 },
    #[error("--auth-remote-pubkey-b64: the value {0}")]
    RemoteKey(ValueError),
}
