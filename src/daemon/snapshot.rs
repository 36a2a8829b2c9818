//! A process as it stood between two events, but for peers that are noted in parts, and the status that is
//! made of it beside the loop.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth::{Reject, key_text};
use crate::engine::host::Traffic;
use crate::engine::hub::{LastRefusal, Loaded, MemberState, MemberStatus};
use crate::engine::{self, Connection, Contact, Counters, Report, Status};
use crate::host::clock;
use crate::host::datapath::{self, Statistics};
use crate::observe::peers::{
    ConnectionStatus, PeerStatus, PeersStatus, RefusalStatus, ReloadStatus, ServerStatus,
};
use crate::observe::status::{
    Dropped, FastPathStatus, Learned, ProcessStatus, RemoteStatus, SCHEMA, TunnelStatus,
    Unreachable,
};

/// Which peers are listed; those of each state are counted anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeersAsked {
    /// No peer.
    None,
    /// All peers.
    All,
    /// The one with this name, if there is one.
    Named(String),
    /// Those in this state ([`MemberState`](crate::engine::hub::MemberState)).
    InState(String),
}

/// A process as it stood.
#[derive(Debug)]
pub struct Snapshot {
    /// The directory that is called as the tunnel is.
    pub(super) name: PathBuf,
    pub(super) public_key: Option<[u8; 32]>,
    pub(super) datapath: &'static str,
    pub(super) fast_path: FastPathStatus,
    pub(super) role: &'static str,
    pub(super) uptime: Duration,
    pub(super) rules: &'static str,
    pub(super) counters: Counters,
    pub(super) tunnel: Status,
    pub(super) connection: Option<Connection>,
    /// Those that a client may choose from.
    pub(super) servers: Vec<engine::ServerStatus>,
    pub(super) statistics: Statistics,
    /// The peers of a server that files name.
    pub(super) hub: Option<HubSnapshot>,
}

/// What was wrong with the files of peers when they were read last.
#[derive(Debug, Clone)]
pub struct Mistakes {
    /// Unix time.
    at: u64,
    lines: Arc<[String]>,
}

impl Mistakes {
    /// At most this many are shown; the log has all.
    const MOST: usize = 100;

    /// The mistakes, a line each, of files that were read just now.
    pub fn now(lines: &str) -> Self {
        Mistakes {
            at: clock::unix(),
            lines: lines.lines().take(Self::MOST).map(str::to_owned).collect(),
        }
    }
}

#[derive(Debug)]
pub struct HubSnapshot {
    pub(super) loaded: Option<Loaded>,
    pub(super) mistakes: Option<Mistakes>,
    pub(super) hellos: Vec<(&'static str, u64)>,
    /// How many there are in each state.
    pub(super) by_state: BTreeMap<MemberState, usize>,
    /// Those that are asked for.
    pub(super) members: Vec<MemberStatus>,
}

impl Snapshot {
    /// The status as JSON, made on a thread that nobody waits for.
    pub async fn rendered(self) -> Vec<u8> {
        let render = move || serde_json::to_vec(&self.status()).unwrap_or_default();
        tokio::task::spawn_blocking(render).await.unwrap_or_default()
    }

    /// The status as it is shown.
    pub fn status(self) -> ProcessStatus {
        let Snapshot {
            name,
            public_key,
            datapath,
            fast_path,
            role,
            uptime,
            rules,
            counters,
            tunnel,
            connection,
            servers,
            statistics,
            hub,
        } = self;
        let Statistics {
            offloads,
            offloads_used,
            by_rules,
            dropped,
            queued_by_others,
            learned,
            unreachable,
            by_remote,
        } = statistics;
        let name = name.file_name().unwrap_or_default();
        let tunnel = whole_tunnel_status(tunnel, (connection, servers), unreachable);
        let public_key = public_key.map(|key| key_text(&key));
        let by_rules = by_rules
            .into_iter()
            .map(|c| (c.name, Dropped { packets: c.packets, bytes: Some(c.bytes) }));
        let by_us = dropped
            .into_iter()
            .map(|(reason, packets)| (reason.to_owned(), Dropped { packets, bytes: None }));
        let refused = |reason| counters.rejected.get(reason).copied().unwrap_or(0);
        ProcessStatus {
            schema: SCHEMA,
            tunnel: name.to_string_lossy().into_owned(),
            interface: tunnel.interface.clone(),
            local: tunnel.local.clone(),
            datapath: datapath.to_owned(),
            offloads,
            offloads_used: offloads_used.into_iter().map(str::to_owned).collect(),
            fast_path: Some(fast_path),
            started: clock::unix().saturating_sub(uptime.as_secs()),
            learned: learned_status(learned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: role.to_owned(),
            uptime: uptime.as_secs(),
            rules: rules.to_owned(),
            tunnels: vec![tunnel],
            accepted: counters.accepted,
            moved: counters.moved,
            sent: counters.sent,
            repaired: counters.repaired,
            rejected: Reject::ALL.iter().map(|r| (r.name().to_owned(), refused(r))).collect(),
            dropped: by_rules.chain(by_us).collect(),
            queued_by_others,
            peers: hub.map(|hub| hub.status(public_key.as_deref(), &by_remote)),
            public_key,
        }
    }
}

impl PeersAsked {
    /// Whether a peer is listed.
    fn takes(&self, member: &MemberStatus) -> bool {
        match self {
            PeersAsked::None => false,
            PeersAsked::All => true,
            PeersAsked::Named(name) => member.entry.name.as_str() == name,
            PeersAsked::InState(state) => member.state.name() == state,
        }
    }
}

impl HubSnapshot {
    /// Notes a member.
    pub fn add(&mut self, member: MemberStatus, asked: &PeersAsked) {
        *self.by_state.entry(member.state).or_default() += 1;
        if asked.takes(&member) {
            self.members.push(member);
        }
    }

    fn status(
        self,
        public_key: Option<&str>,
        by_remote: &HashMap<SocketAddr, Traffic>,
    ) -> PeersStatus {
        let HubSnapshot { loaded, mistakes, hellos, by_state, members } = self;
        let count = |state: &MemberState| by_state.get(state).copied().unwrap_or(0);
        let by_state = MemberState::ALL.iter().map(|state| (state.name().to_owned(), count(state)));
        PeersStatus {
            public_key: public_key.unwrap_or_default().to_owned(),
            reload: loaded.map(|loaded| ReloadStatus {
                at: mistakes.as_ref().map_or(loaded.at, |mistakes| mistakes.at),
                ok: mistakes.is_none(),
                errors: mistakes.map(|mistakes| mistakes.lines.to_vec()).unwrap_or_default(),
                added: loaded.added,
                changed: loaded.changed,
                removed: loaded.removed,
                untouched: loaded.untouched,
            }),
            by_state: by_state.collect(),
            hellos: hellos.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            peers: members.iter().map(|member| peer_status(member, by_remote)).collect(),
        }
    }
}

fn whole_tunnel_status(
    tunnel: Status,
    (connection, servers): (Option<Connection>, Vec<engine::ServerStatus>),
    word: Option<(datapath::Unreachable, Duration)>,
) -> TunnelStatus {
    let unreachable = word.and_then(|(word, ago)| unreachable(&tunnel, word, ago));
    let status = tunnel_status(tunnel);
    let connected = match &connection {
        Some(connection) if connection.has_answered => Some(connection.connected_for.is_some()),
        // An old server never answers; what comes out of the tunnel tells.
        Some(_) | None => status.connected,
    };
    let tells = |connection: &Connection| connection.has_answered || connected != Some(true);
    let connection = connection.filter(tells).map(|connection| ConnectionStatus {
        servers: servers_status(servers),
        ..connection_status(connection)
    });
    TunnelStatus { unreachable, connected, connection, ..status }
}

/// The last report that packets did not reach the remote, if nothing has come from there since.
fn unreachable(tunnel: &Status, word: datapath::Unreachable, ago: Duration) -> Option<Unreachable> {
    let at = clock::unix().saturating_sub(ago.as_secs());
    let is_news = tunnel.last_data.max(tunnel.last_reply) < Some(at);
    (tunnel.remote == Some(word.to) && is_news).then(|| Unreachable {
        what: word.what.to_owned(),
        by: word.by.map(|by| by.to_string()),
        at,
    })
}

fn learned_status(learned: Vec<(IpAddr, SocketAddr, Duration)>) -> Vec<Learned> {
    let entry = |(inner, remote, silent): (IpAddr, SocketAddr, Duration)| Learned {
        inner: inner.to_string(),
        remote: remote.to_string(),
        silent: silent.as_secs(),
    };
    let mut learned: Vec<_> = learned.into_iter().map(entry).collect();
    learned.sort_by(|a, b| a.inner.cmp(&b.inner));
    learned
}

fn peer_status(member: &MemberStatus, by_remote: &HashMap<SocketAddr, Traffic>) -> PeerStatus {
    let entry = &member.entry;
    let carried = || by_remote.get(&member.remote?).copied();
    let traffic = member.traffic.or_else(carried);
    PeerStatus {
        name: entry.name.to_string(),
        public_key: entry.public_key().map(key_text),
        state: member.state.name().to_owned(),
        protocol: if entry.old().is_some() { 1 } else { 2 },
        remote: member.remote.map(|remote| remote.to_string()),
        addresses: entry.addresses.iter().map(ToString::to_string).collect(),
        routes: entry.routes.iter().map(ToString::to_string).collect(),
        since: member.since,
        last_hello: member.last_hello,
        lease_until: member.lease_until,
        // The server sends nothing that is answered at once, and does not store a hello that it challenges.
        rtt_us: None,
        moves: member.moves,
        expires: entry.expires,
        file: entry.origin.to_string(),
        note: entry.note.clone(),
        rx_bytes: traffic.map(|traffic| traffic.rx_bytes),
        rx_packets: traffic.map(|traffic| traffic.rx_packets),
        tx_bytes: traffic.map(|traffic| traffic.tx_bytes),
        tx_packets: traffic.map(|traffic| traffic.tx_packets),
        last_refusal: member.last_refusal.map(|LastRefusal { at, why }| RefusalStatus {
            at,
            why: Report::refusal(why).to_owned(),
        }),
    }
}

fn connection_status(connection: Connection) -> ConnectionStatus {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    ConnectionStatus {
        connected_for: connection.connected_for.map(|time| time.as_secs()),
        why: connection.why.map(|why| why.to_string()),
        rtt_us: connection.round_trip.map(micros),
        seen_as: connection.seen.map(|seen| seen.to_string()),
        lease: connection.lease.map(|lease| lease.as_secs()),
        inner: connection.inner.iter().map(ToString::to_string).collect(),
        mtu: connection.mtu,
        servers: Vec::new(),
    }
}

/// The servers of a client that has several.
fn servers_status(servers: Vec<engine::ServerStatus>) -> Vec<ServerStatus> {
    let status = |server: engine::ServerStatus| ServerStatus {
        name: server.name.to_string(),
        remote: server.remote.map(|remote| remote.to_string()),
        in_use: server.is_in_use,
    };
    match servers.len() {
        0 | 1 => Vec::new(),
        _ => servers.into_iter().map(status).collect(),
    }
}

fn tunnel_status(tunnel: Status) -> TunnelStatus {
    let is_client = tunnel.contact.is_some();
    TunnelStatus {
        interface: tunnel.device,
        up: tunnel.up,
        local: tunnel.outer.map(|a| a.to_string()),
        alternate: tunnel.alternate.map(|a| a.to_string()),
        remote: tunnel.remote.map(|a| a.to_string()),
        remotes: tunnel.remotes.map(|remotes| {
            let one =
                |(remote, networks): (std::net::SocketAddr, Vec<ipnet::IpNet>)| RemoteStatus {
                    remote: remote.to_string(),
                    networks: networks.iter().map(ToString::to_string).collect(),
                };
            remotes.into_iter().map(one).collect()
        }),
        admitted: tunnel.admitted,
        inner: match tunnel.inner.is_unspecified() {
            true => "-".to_owned(),
            false => tunnel.inner.to_string(),
        },
        inner_peer: match tunnel.inner_peer.prefix_len() {
            _ if tunnel.inner_peer.addr().is_unspecified() => "-".to_owned(),
            32 => tunnel.inner_peer.addr().to_string(),
            _ => tunnel.inner_peer.trunc().to_string(),
        },
        inner6: tunnel.inner6.map(|net| net.to_string()),
        last_authentication: tunnel.last_authentication,
        last_accepted: tunnel.last_authentication.filter(|_| !is_client),
        last_sent: tunnel.last_authentication.filter(|_| is_client),
        last_data: tunnel.last_data,
        last_reply: tunnel.last_reply,
        unreachable: None,
        connection: None,
        connected: tunnel.contact.map(|contact| contact == Contact::Connected),
        unanswered: match tunnel.contact {
            Some(Contact::Unanswered(since)) => Some(since.as_secs()),
            Some(Contact::Connected | Contact::Never) | None => None,
        },
        rx_bytes: tunnel.traffic.rx_bytes,
        rx_packets: tunnel.traffic.rx_packets,
        tx_bytes: tunnel.traffic.tx_bytes,
        tx_packets: tunnel.traffic.tx_packets,
    }
}
