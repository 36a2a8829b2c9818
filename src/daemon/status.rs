//! The status that a process reports.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::process::Process;
use crate::auth::Reject;
use crate::engine::Contact;
use crate::engine::config::PeerSource;
use crate::host::clock;
use crate::host::datapath::{self, Statistics};
use crate::observe::status::{
    Dropped, Learned, ProcessStatus, RemoteStatus, TunnelStatus, Unreachable,
};

impl Process<'_> {
    pub(super) fn role(&self) -> &'static str {
        match &self.settings.config.peers {
            PeerSource::Table(_) => "node",
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
        }
    }

    fn tunnel_status(&self, word: Option<(datapath::Unreachable, Duration)>) -> TunnelStatus {
        let tunnel = self.engine.status();
        let unreachable = word.and_then(|(word, ago)| unreachable(&tunnel, word, ago));
        TunnelStatus { unreachable, ..tunnel_status(tunnel) }
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
