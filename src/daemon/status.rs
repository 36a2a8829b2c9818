//! What a process reports of itself.

use std::collections::BTreeMap;

use super::process::Process;
use super::snapshot::{HubSnapshot, Snapshot};
use crate::engine::config::PeerSource;
use crate::observe::status::FastPathStatus;

impl Process<'_> {
    pub(super) fn role(&self) -> &'static str {
        match &self.settings.config.peers {
            PeerSource::Table(_) => "node",
            PeerSource::Hub(_) => "server",
            PeerSource::One(peer) if peer.shows.is_some() => "client",
            PeerSource::One(_) => "server",
        }
    }

    fn fast_path_status(&self) -> FastPathStatus {
        let (uplinks, remotes, takes) = self.fast_path.carries();
        let limit = || takes.limit().map(str::to_owned);
        let is_there = !uplinks.is_empty();
        let of_kernel = self.fast_path.refused().map(str::to_owned);
        let of_engine = || self.engine.why_no_fast_path().map(ToString::to_string);
        let why_not = if is_there { limit() } else { of_kernel.or_else(of_engine) };
        FastPathStatus { uplinks, remotes, why_not }
    }

    /// Everything that `show` shows but the peers that files name, as it stands. This copies as little as it
    /// can: what it takes is time in which no hello is answered. The rest is done elsewhere, by
    /// [`Snapshot::status`].
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let now = self.clock.now().ok();
        let mut statistics = self.datapath.statistics();
        for (remote, carried) in self.fast_path.traffic() {
            let counted = statistics.by_remote.get_mut(&remote.into());
            counted.into_iter().for_each(|counted| *counted += carried);
        }
        let connection = now.and_then(|now| self.engine.connection(&now));
        let hub = self.engine.hellos().filter(|_| now.is_some()).map(|hellos| HubSnapshot {
            loaded: self.engine.loaded(),
            mistakes: self.mistakes.clone(),
            hellos,
            by_state: BTreeMap::new(),
            members: Vec::new(),
        });
        Snapshot {
            name: self.settings.runtime_dir.clone(),
            public_key: self.settings.config.public_key(),
            datapath: self.chosen.name(),
            fast_path: self.fast_path_status(),
            role: self.role(),
            uptime: self.clock.elapsed(),
            rules: self.rules,
            counters: self.engine.counters().clone(),
            tunnel: self.engine.status(),
            connection,
            servers: self.engine.servers(),
            statistics,
            hub,
        }
    }
}
