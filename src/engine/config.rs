//! The configuration of a process, already checked: no value that has these types is impossible.
//!
//! `cli` makes these values, the engine reads them. Times are [`Duration`]s, ports are in host byte
//! order and never zero.

mod datapath;
mod gateway;
mod names;
pub mod numbered;
mod outer;
mod peers;

use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use zeroize::Zeroizing;

pub use datapath::{Datapath, DatapathChoice, FastPathChoice};
pub use gateway::{GatewayConfig, Masquerade};
pub use names::{DeviceName, DeviceNameError, HostName, ServerName, TunnelName, is_host_name};
pub use outer::{AlternateAddress, Outer};
pub use peers::{Authorities, HostsSource, HostsUrl, LearnConfig};

use super::Now;
use super::peers_file::pool::Pool;
use crate::auth::{Credential, Policy, SharedSecret, Signer};

/// The smallest MTU that IPv4 knows, in bytes (RFC 791, 3.2).
pub const LEAST_MTU: u32 = 68;
/// The smallest MTU that IPv6 knows, in bytes (RFC 8200, 5).
pub const LEAST_MTU_V6: u32 = 1280;
/// Bytes of an inner packet that fits, with IPv4 and UDP headers around it, into the longest IPv4
/// packet.
pub const MOST_MTU: u32 = 65_535 - 28;

/// The configuration of one process: our endpoint, and its peers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our end: the device, its inner addresses, the outer address and port.
    pub tunnel: TunnelConfig,
    /// Where the peers come from.
    pub peers: PeerSource,
}

/// Where the peers come from.
#[derive(Debug, Clone)]
pub enum PeerSource {
    /// One is configured.
    One(PeerConfig),
    /// A table says where each is, and that is all the proof there is: each knows the others' addresses
    /// and is let in by them for its own.
    Table(HostsSource),
    /// Files name each with its key and its addresses: a server that answers by control protocol v2.
    Hub(HubConfig),
}

/// A server whose peers are named in files.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// A file, or a directory of `*.toml` files.
    pub peers: PathBuf,
    /// The private half of the server's own key (the seed of RFC 8032); `None`: it is kept in the state
    /// directory, where the first start makes it. An engine without it answers nobody.
    pub seed: Option<Zeroizing<[u8; 32]>>,
    /// Where the addresses of new peers are from.
    pub pool: Pool,
    /// The shared secret of peers that have none of their own.
    pub secret: SharedSecret,
    /// Where the kernel's datapath queues hellos.
    pub queue: QueueConfig,
}

impl HubConfig {
    /// The public half of the server's own key, if that is known yet.
    pub fn public_key(&self) -> Option<[u8; 32]> {
        Some(Signer::new(self.seed.as_ref()?, self.secret.clone()).public())
    }
}

/// A peer as it is asked for.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Where it is; `None`: where its authentication comes from. It may have a standby
    /// ([`AnsweringServer::standby`]).
    pub at: Option<ServerName>,
    /// What it has to prove; `None`: its address is enough.
    pub expects: Option<Expects>,
    /// What we prove to it.
    pub shows: Option<Shows>,
}

/// What a peer has to prove.
#[derive(Debug, Clone)]
pub struct Expects {
    /// Where the kernel's datapath queues what may be authentication packets.
    pub queue: QueueConfig,
    /// What a packet must prove, and where it may come from.
    pub policy: Policy,
    /// How long an authentication is good for; `None`: it never expires.
    pub lifetime: Option<Duration>,
    /// What is sent back to a peer that authenticated.
    pub reply: Reply,
    /// How many hosts may authenticate by this policy at once.
    pub admits: Admits,
}

/// How many hosts authenticate as one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    /// One: the tunnel moves with it.
    One,
    /// Several share the token or the key. Which of them has which inner address is learned.
    Shared(LearnConfig),
}

/// What we authenticate with.
#[derive(Debug, Clone)]
pub struct Shows {
    /// The key or token that our authentication packets are made from.
    pub credential: Credential,
    /// Time between two authentication packets; `None`: one at the start only, but by control protocol
    /// v2 every 27 s.
    pub keepalive: Option<Duration>,
    /// The server that answers by control protocol v2; `None`: packets that stand alone.
    pub server: Option<AnsweringServer>,
}

/// A server whose key we know: its answers prove that it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweringServer {
    /// Its public ed25519 key.
    pub key: [u8; 32],
    /// Where the kernel's datapath queues its answers.
    pub queue: QueueConfig,
    /// Servers that are asked in turn when it does not answer, or refuses.
    pub standby: Vec<StandbyServer>,
}

/// A server that takes the place of the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyServer {
    /// Where it is.
    pub at: ServerName,
    /// Its public ed25519 key.
    pub key: [u8; 32],
}

impl Config {
    /// A server: it makes the tunnel to the remote that authenticates.
    pub fn server(tunnel: TunnelConfig, expects: Expects) -> Self {
        let peer = PeerConfig { at: None, expects: Some(expects), shows: None };
        Config { tunnel, peers: PeerSource::One(peer) }
    }

    /// A client: it knows its server, makes the tunnel at once and authenticates.
    pub fn client(tunnel: TunnelConfig, server: ServerName, shows: Shows) -> Self {
        let peer = PeerConfig { at: Some(server), expects: None, shows: Some(shows) };
        Config { tunnel, peers: PeerSource::One(peer) }
    }

    /// The one peer that is configured.
    pub fn peer(&self) -> Option<&PeerConfig> {
        match &self.peers {
            PeerSource::One(peer) => Some(peer),
            PeerSource::Table(_) | PeerSource::Hub(_) => None,
        }
    }

    /// The table that peers are from.
    pub fn table(&self) -> Option<&HostsSource> {
        match &self.peers {
            PeerSource::One(_) | PeerSource::Hub(_) => None,
            PeerSource::Table(source) => Some(source),
        }
    }

    /// The server whose peers are named in files.
    pub fn hub(&self) -> Option<&HubConfig> {
        match &self.peers {
            PeerSource::One(_) | PeerSource::Table(_) => None,
            PeerSource::Hub(hub) => Some(hub),
        }
    }

    /// What the peer has to prove.
    pub fn expects(&self) -> Option<&Expects> {
        self.peer()?.expects.as_ref()
    }

    /// What we prove.
    pub fn shows(&self) -> Option<&Shows> {
        self.peer()?.shows.as_ref()
    }

    /// Where the peer is, if that is configured.
    pub fn server_name(&self) -> Option<&ServerName> {
        self.peer()?.at.as_ref()
    }

    /// All servers of a client, the first one first.
    pub fn server_names(&self) -> impl Iterator<Item = &ServerName> {
        let standby = self.shows().and_then(|shows| shows.server.as_ref()).map(|s| &s.standby);
        self.server_name().into_iter().chain(standby.into_iter().flatten().map(|s| &s.at))
    }

    /// The NFQUEUE for packets that are not data, on the kernel's datapath.
    pub fn queue(&self) -> Option<QueueConfig> {
        let of_server = || self.expects().map(|expects| expects.queue);
        let of_client = || Some(self.shows()?.server.as_ref()?.queue);
        self.hub().map(|hub| hub.queue).or_else(of_server).or_else(of_client)
    }

    /// Our own public key, as the other end must have it.
    pub fn public_key(&self) -> Option<[u8; 32]> {
        if let Some(hub) = self.hub() {
            return hub.public_key();
        }
        let shown = self.shows().and_then(|shows| shows.credential.public());
        shown.or_else(|| match &self.expects()?.reply {
            Reply::Signed(signer) => Some(signer.public()),
            Reply::Silent | Reply::Reversed => None,
        })
    }

    /// What this configuration asks for and `datapath` cannot do, as the end of an error message;
    /// `None`: the datapath can do it all.
    pub fn exceeds(&self, datapath: Datapath) -> Option<&'static str> {
        let can = datapath.capabilities();
        let over_ipv6 = match &self.tunnel.outer {
            Outer::Address(address) | Outer::AddressOn(address, _) => address.is_ipv6(),
            Outer::Device(_) | Outer::Route => {
                let mut addresses = self.server_names().map(|server| server.host.address());
                addresses.any(|address| address.is_some_and(|address| address.is_ipv6()))
            }
        };
        let learns = self.expects().is_some_and(|e| matches!(e.admits, Admits::Shared(_)));
        if learns && !can.learns {
            Some("the kernel's cannot learn addresses (--learn)")
        } else if self.tunnel.inner6.is_some() && !can.inner_ipv6 {
            Some("the kernel's carries IPv4 only (--ip6)")
        } else if over_ipv6 && !can.outer_ipv6 {
            Some("the kernel's goes over IPv4 only")
        } else {
            None
        }
    }
}

impl Expects {
    /// Our clock when an authentication of this age runs out.
    pub(crate) fn valid_until(&self, age: Duration, now: &Now) -> Option<Duration> {
        let left = self.lifetime?.saturating_sub(age);
        Some(now.monotonic.saturating_add(left))
    }
}

/// Our end of a tunnel: the interface, its inner addresses, the outer address and the UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelConfig {
    /// The tunnel interface, `ipipouN` unless named.
    pub device: DeviceName,
    /// Our address inside the tunnel; 0.0.0.0 while there is none.
    pub inner: Ipv4Addr,
    /// The other end's address inside the tunnel. A tunnel with many peers has a network
    /// here instead, which all inner addresses are from.
    pub inner_peer: Ipv4Net,
    /// Our IPv6 address inside the tunnel, with the network that is on it.
    pub inner6: Option<Ipv6Net>,
    /// The server tells the three above when it lets us in; until then there is no inner address. Then
    /// `inner_peer` is the network of our address, and there is one peer all the same.
    pub inner_from_server: bool,
    /// Bytes of the largest packet inside the tunnel; `None`: what fits into a packet of the uplink.
    pub mtu: Option<u32>,
    /// Where the outer packets come from and go to.
    pub outer: Outer,
    /// Our UDP port: the FOU listener's, and the source port of what we send.
    pub port: NonZeroU16,
    /// An alternate local address for the link, for when another tunnel already holds
    /// (our outer address, the remote's address): the kernel tells links apart by nothing else.
    pub alternate: AlternateAddress,
    /// UDP checksum of outer packets; `None` leaves it to the kernel.
    pub checksum: Option<bool>,
    /// Which source addresses inner packets may have.
    pub source_check: SourceCheck,
    /// TTL of authentication packets; `None` means the kernel's default.
    pub auth_ttl: Option<u8>,
    /// The nftables table that guards the listener; the kernel's datapath alone has one.
    pub rules: RulesConfig,
    /// What else goes through the tunnel, and what the host does for it.
    pub gateway: GatewayConfig,
    /// The interface of the server of which it is one of several tunnels, from each of which packets go into
    /// the others; `None`: it is no such tunnel.
    pub beside: Option<DeviceName>,
    /// Which datapath is asked for; [`Engine::new`](super::Engine::new) takes the one chosen.
    pub datapath: DatapathChoice,
    /// Whether a fast path goes on top of the datapath.
    pub fast_path: FastPathChoice,
    /// Threads of the userspace datapath that read from the tunnel; `None`: by number of CPUs.
    pub queues: Option<NonZeroUsize>,
}

impl TunnelConfig {
    /// The mark on outer packets. A table of hosts may come to have a network around an outer address
    /// at any time.
    pub fn mark(&self) -> Option<u32> {
        match self.is_network() {
            true => Some(self.gateway.mark),
            false => self.gateway.mark(),
        }
    }

    /// Whether the inner addresses of all peers are from one network with ours; otherwise there is one
    /// peer, which has one.
    pub fn is_network(&self) -> bool {
        !self.inner_from_server && self.inner_peer.contains(&self.inner)
    }

    /// Whether routes, policy rules or gateway rules are asked for.
    pub fn asks_for_routing(&self) -> bool {
        let gateway = &self.gateway;
        self.mark().is_some() || gateway.forward || gateway.masquerade.is_some()
    }

    /// Whether the routes tell by which interfaces the packets of a fast path leave.
    pub fn has_uplinks_by_route(&self) -> bool {
        self.outer.device().is_none() && self.may_have_fast_path()
    }

    /// Whether a fast path is not ruled out: one that is bound to no interface follows the routes late.
    pub fn may_have_fast_path(&self) -> bool {
        match self.fast_path {
            FastPathChoice::Off => false,
            FastPathChoice::On => true,
            FastPathChoice::Auto => self.outer.device().is_some(),
        }
    }

    /// The name of the gateway's nftables table.
    pub fn gateway_table(&self) -> String {
        format!("{}-gateway", self.rules.table)
    }
}

/// Reverse path filter of the tunnel interface (`rp_filter` in the kernel's ip-sysctl.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceCheck {
    /// The interface's `rp_filter` is left alone.
    Off,
    /// An inner packet must come from an address that is routed back through the tunnel.
    Strict,
    /// An inner packet must come from an address that is routed anywhere.
    Loose,
}

/// How the nftables table that guards the listener is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesConfig {
    /// Name of this tunnel's own table, in family `ip`.
    pub table: String,
    /// Whether the rules count what they drop (`nft list counters`).
    pub counters: bool,
}

/// The NFQUEUE that authentication packets come by, on the kernel's datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of the queue (`queue num` of nft(8)); no other program of the namespace may use it.
    pub number: u16,
    /// How many packets wait in the kernel at most.
    pub max_len: u32,
}

impl QueueConfig {
    /// How many packets wait by default.
    pub const MAX_LEN: u32 = 24;
}

/// What a server answers to a valid authentication packet (`--reply-on-auth-ok`).
#[derive(Debug, Clone)]
pub enum Reply {
    /// Nothing is sent back.
    Silent,
    /// Signed by the server's own key.
    Signed(Signer),
    /// The request's payload, last byte first.
    Reversed,
}
