//! The status that a process reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::process::Process;
use crate::auth::{Reject, key_text};
use crate::engine::config::PeerSource;
use crate::engine::hub::{MemberState, MemberStatus};
use crate::engine::{Connection, Contact};
use crate::host::clock;
use crate::host::datapath::{self, Statistics};
use crate::observe::peers::{ConnectionStatus, PeerStatus, PeersStatus, ReloadStatus};
use crate::observe::status::{
    Dropped, Learned, ProcessStatus, RemoteStatus, TunnelStatus, Unreachable,
};

impl Process<'_> {
    pub(super) fn role(&self) -> &'static str {
        match &self.settings.config.peers {
            PeerSource::Table(_) => "node",
            PeerSource::Hub(_) => "server",
            PeerSource::One(peer) if peer.shows.is_some() => "client",
            PeerSource::One(_) => "server",
        }
    }

    pub(super) fn status(&mut self) -> ProcessStatus {
        let Statistics { offloads, by_rules, dropped, learned, unreachable } =
            self.datapath.statistics();
        let by_rules = by_rules
            .into_iter()
            .map(|c| (c.name, Dropped { packets: c.packets, bytes: Some(c.bytes) }));
        let by_us = dropped
            .into_iter()
            .map(|(reason, packets)| (reason.to_owned(), Dropped { packets, bytes: None }));
        let counters = self.engine.counters();
        let refused = |reason| counters.rejected.get(reason).copied().unwrap_or(0);
        ProcessStatus {
            datapath: self.chosen.name().to_owned(),
            offloads,
            learned: learned_status(learned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: self.role().to_owned(),
            uptime: self.clock.elapsed().as_secs(),
            rules: self.rules.to_owned(),
            tunnels: vec![self.tunnel_status(unreachable)],
            accepted: counters.accepted,
            moved: counters.moved,
            sent: counters.sent,
            repaired: counters.repaired,
            rejected: Reject::ALL.iter().map(|r| (r.name().to_owned(), refused(r))).collect(),
            dropped: by_rules.chain(by_us).collect(),
            peers: self.peers_status(),
        }
    }

    /// The peers of a server that files name.
    fn peers_status(&self) -> Option<PeersStatus> {
        let now = self.clock.now().ok()?;
        let mut members = self.engine.members(&now)?;
        for member in members.iter_mut().filter(|member| member.old.is_some()) {
            self.note_old(member);
        }
        let mut by_state: BTreeMap<String, usize> =
            MemberState::ALL.iter().map(|state| (state.name().to_owned(), 0)).collect();
        for member in &members {
            *by_state.entry(member.state.name().to_owned()).or_default() += 1;
        }
        let hellos = self.engine.hellos().unwrap_or_default().into_iter();
        Some(PeersStatus {
            public_key: self.settings.config.public_key().map(|k| key_text(&k)).unwrap_or_default(),
            reload: self.engine.loaded().map(|loaded| ReloadStatus {
                at: loaded.at,
                added: loaded.added,
                changed: loaded.changed,
                removed: loaded.removed,
                untouched: loaded.untouched,
            }),
            by_state,
            hellos: hellos.map(|(name, count)| (name.to_owned(), count)).collect(),
            peers: members.into_iter().map(peer_status).collect(),
        })
    }

    /// Adds what is known of a peer with the old program: the engine of its own tunnel has it.
    fn note_old(&self, member: &mut MemberStatus) {
        let Some(state) = self.old.state(&member.name) else { return };
        member.last_hello = state.last_authentication;
        member.remote = state.remote.filter(|_| state.admitted);
        member.moves = state.moves;
        member.state = match (member.remote, member.last_hello) {
            (Some(_), _) => MemberState::Connected,
            (None, Some(_)) => MemberState::Away,
            (None, None) => MemberState::New,
        };
    }

    fn tunnel_status(&self, word: Option<(datapath::Unreachable, Duration)>) -> TunnelStatus {
        let now = self.clock.now().ok();
        let connection = now.and_then(|now| self.engine.connection(&now));
        let tunnel = self.engine.status();
        let unreachable = word.and_then(|(word, ago)| unreachable(&tunnel, word, ago));
        let status = tunnel_status(tunnel);
        let connected = match &connection {
            Some(connection) if connection.has_answered => Some(connection.connected_for.is_some()),
            // An old server never answers; what comes out of the tunnel tells.
            Some(_) | None => status.connected,
        };
        let tells = |connection: &Connection| connection.has_answered || connected != Some(true);
        let connection = connection.filter(tells).map(connection_status);
        TunnelStatus { unreachable, connected, connection, ..status }
    }
}

/// The last report that packets did not reach the remote, if nothing has come from there since.
fn unreachable(
    tunnel: &crate::engine::Status,
    word: datapath::Unreachable,
    ago: Duration,
) -> Option<Unreachable> {
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

fn peer_status(member: MemberStatus) -> PeerStatus {
    PeerStatus {
        name: member.name,
        public_key: member.public_key.map(|key| key_text(&key)).unwrap_or_default(),
        state: member.state.name().to_owned(),
        protocol: if member.old.is_some() { 1 } else { 2 },
        remote: member.remote.map(|remote| remote.to_string()),
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
        routes: member.routes.iter().map(ToString::to_string).collect(),
        since: member.since,
        last_hello: member.last_hello,
        lease_until: member.lease_until,
        moves: member.moves,
        expires: member.expires,
        file: member.file,
        note: member.note,
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
    }
}

fn tunnel_status(tunnel: crate::engine::Status) -> TunnelStatus {
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
        inner: tunnel.inner.to_string(),
        inner_peer: match tunnel.inner_peer.prefix_len() {
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
