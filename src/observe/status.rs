//! The fields of `ipipou show --json`, about a process and its tunnels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::peers::{ConnectionStatus, PeersStatus};

/// The version of the fields.
pub const SCHEMA: u32 = 1;

/// One process and its tunnels. Field names are part of the interface; fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The version of what is shown: docs/show.schema.json is of this one. Fields that are added do not
    /// change it.
    #[serde(default)]
    pub schema: u32,
    pub version: String,
    /// What the tunnel is called, as in `ipipou show NAME`.
    #[serde(default)]
    pub tunnel: String,
    #[serde(default)]
    pub interface: String,
    /// The local outer address and UDP port, `null` while the interface has no address.
    #[serde(default)]
    pub local: Option<String>,
    /// Our own ed25519 key in base64, which the other end knows us by; `null`: we have none.
    #[serde(default)]
    pub public_key: Option<String>,
    pub pid: u32,
    /// `server` or `client`.
    pub role: String,
    /// `kernel`, or `tun` when this process carries the packets.
    pub datapath: String,
    /// The offloads in use, when the datapath is `tun`.
    pub offloads: Option<String>,
    /// The same, one by one: `tun-tso`, `tun-uso`, `udp-gso`, `udp-gro`.
    #[serde(default)]
    pub offloads_used: Vec<String>,
    /// The fast path, `null` from a process of an older version.
    #[serde(default)]
    pub fast_path: Option<FastPathStatus>,
    /// Unix time at which the process started, by the clock as it is now.
    #[serde(default)]
    pub started: u64,
    /// Seconds since the process started.
    pub uptime: u64,
    /// `installed`, `missing`, or `unavailable` on a client without nftables.
    pub rules: String,
    pub tunnels: Vec<TunnelStatus>,
    /// Authentication packets that were accepted.
    pub accepted: u64,
    /// How often a tunnel moved to another remote address or port.
    pub moved: u64,
    /// Authentication packets and replies that were sent.
    pub sent: u64,
    /// How many things had gone missing on the host and were put back.
    pub repaired: u64,
    /// Authentication packets that were refused, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Packets that were dropped, by reason: by the rules in the kernel (empty with
    /// `--no-nft-counter`), or by the userspace datapath.
    pub dropped: BTreeMap<String, Dropped>,
    /// Packets that other programs' rules sent to the NFQUEUE of this process; they passed.
    #[serde(default)]
    pub queued_by_others: u64,
    /// Inner addresses that were learned (`--learn`).
    pub learned: Vec<Learned>,
    /// The peers of a server whose peers are named in files; `null`: it is another one.
    #[serde(default)]
    pub peers: Option<PeersStatus>,
}

/// Which packets pass two BPF programs and not the datapath below them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    /// The interfaces by which these come and go; none: there is no fast path.
    pub uplinks: Vec<String>,
    /// The number of remotes whose packets it carries.
    pub remotes: usize,
    /// Why there is none, if that is known; or which packets only take the one that is there, and why.
    pub why_not: Option<String>,
}

/// An inner address that was learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    pub inner: String,
    pub remote: String,
    /// Seconds since something last came from it.
    pub silent: u64,
}

/// A remote of a tunnel with many peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatus {
    pub remote: String,
    /// The inner networks behind it, as far as a table names them.
    pub networks: Vec<String>,
}

/// One tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub interface: String,
    pub up: bool,
    /// The local outer address and UDP port, `null` while the interface has no address.
    pub local: Option<String>,
    /// The alternate local address of the link: another tunnel may hold the outer one, and a link that many
    /// peers share always has it.
    #[serde(rename = "private")]
    pub alternate: Option<String>,
    /// The peer's outer address and UDP port, `null` while it is not known.
    pub remote: Option<String>,
    /// All remotes of a tunnel with many peers.
    pub remotes: Option<Vec<RemoteStatus>>,
    /// Whether data from the remote is admitted.
    pub admitted: bool,
    pub inner: String,
    pub inner_peer: String,
    pub inner6: Option<String>,
    /// Unix time of the last authentication packet: one that a server accepted, or that a client sent.
    pub last_authentication: Option<u64>,
    /// Unix time of the last authentication packet that was accepted here; a client is not told
    /// whether its own was.
    #[serde(default)]
    pub last_accepted: Option<u64>,
    /// Unix time of the last authentication packet that was sent.
    #[serde(default)]
    pub last_sent: Option<u64>,
    /// Unix time when packets last came in, as far as this process saw.
    #[serde(default)]
    pub last_data: Option<u64>,
    /// Unix time of the last answer to an authentication packet (only with `tun`: in the kernel
    /// datapath an answer counts as data).
    #[serde(default)]
    pub last_reply: Option<u64>,
    /// The last report that packets to the remote did not arrive, if nothing has come in since (only
    /// with `tun`). Anybody can send such a report.
    #[serde(default)]
    pub unreachable: Option<Unreachable>,
    /// Whether a client's server is there: packets come in when some go out. `null` where the peer
    /// authenticates to this end.
    #[serde(default)]
    pub connected: Option<bool>,
    /// Seconds since when packets go out and none come in, if that is why `connected` is false.
    #[serde(default)]
    pub unanswered: Option<u64>,
    /// What a client's server has told it; `null` where it tells nothing.
    #[serde(default)]
    pub connection: Option<ConnectionStatus>,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

/// An ICMP error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// In words, for example `port unreachable`.
    pub what: String,
    /// Who said it, according to the message.
    pub by: Option<String>,
    /// Unix time at which it came.
    pub at: u64,
}

/// Packets that were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    pub packets: u64,
    /// Counted only in the kernel datapath.
    pub bytes: Option<u64>,
}
