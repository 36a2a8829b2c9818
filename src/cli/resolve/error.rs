//! The errors of options that are right one by one and wrong together.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::cli::value::ValueError;
use crate::engine::config::{DeviceName, ServerName};

/// Why options do not make a tunnel together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error(
        "--reauth-only: a server whose key we know answers the running client, not another process: \
         `ipipou reload NAME`, or SIGUSR1, has that say hello"
    )]
    ReauthOfConversation,
    #[error(
        "--protocol 2 needs our own key (--auth-key-file) and the server's (--auth-remote-pubkey-b64)"
    )]
    NoConversation,
    #[error("--reauth-only: only a client sends authentication packets, leave out --server")]
    ReauthOnServer,
    #[error(
        "our end of the tunnel is missing: give -b @DEV or -b IP (or --fou-dev, --fou-local-ip); \
         `ipipou -h` shows examples"
    )]
    NoLocalEnd,
    #[error("-b @auto: only a client has a route to follow, give -b @DEV or -b IP")]
    AutoOnServer,
    #[error("a client needs its server's address: give -r HOST:PORT (or --fou-remote-ip)")]
    NoServer,
    #[error("a client needs its server's port: give -r HOST:PORT (or --fou-remote-port)")]
    NoServerPort,
    #[error(
        "-r: several servers are asked in turn by what they answer: give their keys \
         (--auth-remote-pubkey-b64) and our own (--auth-key-file), and no --protocol 1"
    )]
    SeveralServers,
    #[error("--fou-remote: only a client has several servers, give one")]
    SeveralClients,
    #[error("-r: {0} is given twice")]
    ServerTwice(ServerName),
    #[error(
        "--auth-remote-pubkey-b64 has {keys} keys, and -r {servers}: give one each, in that order, or \
         one for all"
    )]
    KeysOfServers { keys: usize, servers: usize },
    #[error("--auth-remote-pubkey-b64: a server has one client, give one key")]
    KeysOfOneClient,
    #[error("a client needs its address inside the tunnel: give --tunl-ip, the server's plus 1")]
    NoInnerAddress,
    #[error(
        "--tunl-ip auto: only a client whose server's key is known is given its address: give \
         --auth-remote-pubkey-b64 and our own key (--auth-key-file), or an address"
    )]
    AutoInner,
    #[error("--tunl-ip auto: the server gives that, too: leave out --{0}")]
    WithAutoInner(&'static str),
    #[error("--tunl-ip: {0} leaves no address for the other end: give --tunl-peer-ip too")]
    NoPeerAddress(Ipv4Addr),
    #[error(
        "--tunl-ip: a tunnel with one peer has no network, give {address} without /{length}; \
         --route leads networks into it"
    )]
    NetworkOfTwo { address: Ipv4Addr, length: u8 },
    #[error("--learn needs the network of all inner addresses: give --tunl-ip IP/LEN")]
    NoNetwork,
    #[error("a host of a table needs its address inside the tunnel: give --tunl-ip")]
    NoInnerAddressOfHost,
    #[error("--tunl-peer-ip: there are many other ends, leave it out")]
    OnePeerOfMany,
    #[error("our address {local} and the other end's {remote} are not both IPv4 or both IPv6")]
    TwoFamilies { local: IpAddr, remote: IpAddr },
    #[error("--datapath kernel cannot do --{0}: leave out one of them")]
    NotInKernel(&'static str),
    #[error("--datapath kernel cannot do an IPv6 address in --{0}: leave out one of them")]
    Ipv6NotInKernel(&'static str),
    #[error("--learn: only a server learns who its clients are, give --server")]
    LearnOnClient,
    #[error("--hosts-file and --hosts-url: there is one table, leave out one of them")]
    TwoTables,
    #[error(
        "--hosts-url: this ipipou was built without it; `cargo build --features hosts-url` builds \
         it in, --hosts-file reads the table from a file"
    )]
    HostsUrlNotBuiltIn,
    #[error("--ca-file and --ca-path: leave out one of them")]
    TwoAuthorities,
    #[error("--{option} counts only with --{other}: give that too, or leave it out")]
    OnlyWith { option: &'static str, other: &'static str },
    #[error("--{0} counts only with a --hosts-url with https://: give that too, or leave it out")]
    OnlyWithHttps(&'static str),
    #[error(
        "--{0}: with a table of hosts there is neither server nor client, and their addresses are \
         the proof: leave it out"
    )]
    NotWithTable(&'static str),
    #[error("--{0}: with --peers the files say who may come in and for how long: leave it out")]
    NotWithPeers(&'static str),
    #[error("--rp-filter: with --peers each peer sends from its own addresses only: leave it out")]
    LooseMembers,
    #[error("--peers: which files? give a path, or the line `peers` in a file of --config NAME")]
    NoPeersPath,
    #[error("--pool: {0} is not within the server's network {1}")]
    PoolOutside(IpNet, IpNet),
    #[error(
        "--pool: {0} is IPv6, and the server has none inside the tunnel: give --ip6, or leave it out"
    )]
    PoolNeedsIp6(IpNet),
    #[error("--peers needs the network of the peers' inner addresses: give --tunl-ip IP/LEN")]
    NoNetworkOfPeers,
    #[error("--route: the files of --peers say what is behind each peer, leave it out")]
    RoutesInPeers,
    #[error("--{option}: only a {role} has it, leave it out")]
    OtherRole { option: &'static str, role: &'static str },
    #[error("--route: with a table of hosts the table has the networks, leave it out")]
    RoutesInTable,
    #[error(
        "--route: a server that learns does not know which client to send it to; let the network \
         of --tunl-ip have room for what is behind clients"
    )]
    RoutesToClients,
    #[error("--route: {0} is IPv6: give our IPv6 address inside the tunnel too, with --ip6")]
    RouteNeedsIp6(IpNet),
    #[error("--mtu: {0} is too small for IPv6 (--ip6), which needs at least 1280")]
    MtuForIpv6(u32),
    #[error("--{option}: {value} is given twice")]
    GivenTwice { option: &'static str, value: String },
    #[error("--masquerade: {0} is the tunnel itself, give the interface that packets leave by")]
    MasqueradeByTunnel(DeviceName),
    #[error("--number: {0} is too big for --default-route (at most 65535)")]
    NumberForDefaultRoute(u32),
    #[error("--auth-by-remote-ip needs the address: give --fou-remote-ip")]
    NoRemoteIp,
    #[error("--auth-by-remote-ip needs an address, {0} is a name: give --fou-remote-ip IP")]
    RemoteIpIsName(String),
    #[error("--auth-by-remote-port needs the port: give --fou-remote-port")]
    NoRemotePort,
    #[error("--number: with {number} there is no default for --{option} (at most {max}): give it")]
    NumberTooBig { number: u32, option: &'static str, max: u32 },
    #[error("--auth-remote-pubkey-b64: the value {0}")]
    RemoteKey(ValueError),
}

impl UsageError {
    /// The option whose value is wrong, if it is that alone.
    pub fn option(&self) -> Option<&'static str> {
        let is_pool = matches!(self, UsageError::PoolOutside(..) | UsageError::PoolNeedsIp6(_));
        is_pool.then_some("pool")
    }
}
