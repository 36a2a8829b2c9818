//! Opens what a tunnel needs, and takes over what another one left: the beginning of a process.

use std::collections::BTreeSet;

use super::events::Events;
use super::lists::Lists;
use super::memory::{Loaded, MemoryFile};
use super::old::OldPeers;
use super::pings::Pings;
use super::preflight::{self, Ground};
use super::process::{Kept, LOG_EVERY, MANY_LINES, Process, RESOLV_CONF, SOME_LINES, Starting};
use super::session_file::{self, Keeping};
use super::{Failure, Settings};
use crate::bpf::FastPathAdapter;
use crate::engine::config::Datapath;
use crate::engine::host::step::DnsStep;
use crate::engine::{Engine, Memory};
use crate::host::StepError;
use crate::host::clock::Clock;
use crate::host::dns::Dns;
use crate::host::namespace;
use crate::observe::rate::{Lasting, Limiter};
use crate::tun::{self, Owner, StoredFds};

/// What a tunnel needs, before anything of the host is changed or taken over.
pub struct Opening<'a> {
    settings: &'a Settings,
    clock: Clock,
    ground: Ground,
    chosen: Datapath,
    dns: Dns,
    memory: Option<(MemoryFile, Memory)>,
}

impl<'a> Opening<'a> {
    /// Opens it. Safe to cancel.
    ///
    /// # Errors
    /// Names the first thing that is missing.
    pub async fn of(
        settings: &'a Settings,
        datapath: Datapath,
        kept: &Kept,
    ) -> Result<Self, Failure> {
        let clock = Clock::start();
        let ground = preflight::open_host(settings, datapath, !kept.files.is_nothing()).await?;
        let tunnel = settings.tunnel();
        let dns = Dns::new(
            RESOLV_CONF.into(),
            settings.state_dir.clone(),
            tunnel.device.clone(),
            tunnel.gateway.dns.clone(),
        );
        dns.check().map_err(|error| Failure::Step {
            step: Box::new(DnsStep::Use.into()),
            error: StepError::Dns(error),
        })?;
        let memory = match kept.memory {
            Some(_) => None,
            None => Some(remembered(settings).await),
        };
        Ok(Opening { settings, clock, ground, chosen: datapath, dns, memory })
    }

    /// Takes over what was kept. On an error it is still there.
    ///
    /// # Errors
    /// When there are no random numbers, or the datapath cannot be started.
    pub async fn start(self, owner: Owner, kept: &mut Kept) -> Result<Process<'a>, Failure> {
        let Opening { settings, clock, ground, chosen, dns, memory } = self;
        let Ground { host, datapath, locks, adopts_listeners, former_port, family } = ground;
        let now = clock.now()?;
        let tunnel = settings.tunnel();
        let fast_path = FastPathAdapter::of(tunnel.device.as_str(), tunnel.may_have_fast_path());
        let sessions = kept.files.sessions.take();
        let in_use = datapath.start(&settings.config, &host, (owner, &mut kept.files)).await?;
        let (file, memory) = kept
            .memory
            .take()
            .or(memory)
            .unwrap_or_else(|| (MemoryFile::in_directory(&settings.state_dir), Memory::lost()));
        let mut engine = Engine::new(settings.config.clone(), chosen, memory, &now);
        engine.had_port(former_port);
        let is_hub = settings.config.hub().is_some();
        if is_hub && chosen.capabilities().open_files && preflight::is_service() {
            engine.resume_sessions(sessions.map(session_file::read).unwrap_or_default());
        } else if sessions.is_some() {
            let _ = tun::keep_sessions(None); // a later process would find them
        }
        Ok(Process {
            settings,
            owner,
            family_at_start: family,
            clock,
            engine,
            host,
            locks,
            foreign_listeners: !adopts_listeners,
            chosen,
            datapath: in_use,
            fast_path,
            dns,
            asked: BTreeSet::new(),
            memory: file,
            rejections: Limiter::new(LOG_EVERY, 1),
            failures: Limiter::new(LOG_EVERY, SOME_LINES),
            lasting: Lasting::new(LOG_EVERY),
            icmp_errors: None,
            changes: Limiter::new(LOG_EVERY, MANY_LINES),
            starting: Starting::Well,
            ending: None,
            adopted: false,
            surroundings_due: true,
            leads_back: false,
            rules: "missing",
            events: Events::of(&settings.runtime_dir),
            mistakes: None,
            ruleset_by: None,
            old: OldPeers::default(),
            pings: Pings::default(),
            lists: Lists::default(),
            sessions: Keeping::NotYet,
        })
    }
}

/// What an earlier process remembered, and where.
async fn remembered(settings: &Settings) -> (MemoryFile, Memory) {
    let file = MemoryFile::in_directory(&settings.state_dir);
    let mut memory = match file.load().await {
        Loaded::Whole(memory) => memory,
        Loaded::FirstStart => Memory::default(),
        Loaded::Lost(e) => {
            let effect = match settings.config.expects() {
                Some(_) => {
                    "authentication packets from before this start neither make a tunnel nor move it"
                }
                None => "what was kept there is lost",
            };
            tracing::warn!("{}: {e}: {effect}", file.path().display());
            Memory::lost()
        }
    };
    // Where it cannot be told, it is taken to be as before.
    if let Some(namespace) = namespace::identity() {
        memory.begin_in(namespace);
    }
    (file, memory)
}

impl<'a> Process<'a> {
    /// Opens what the tunnel of this process needs, before the first change to the host. `kept` is what an
    /// earlier process left.
    pub async fn open(
        settings: &'a Settings,
        datapath: Datapath,
        mut kept: StoredFds,
    ) -> Result<Self, Failure> {
        if !datapath.capabilities().open_files && !kept.is_nothing() {
            // These are the interface and the port that the datapath is to have. They are
            // released, so that at least the next start finds them free, if they are not yet free for
            // this one.
            kept = StoredFds::default();
            let _ = tun::forget(Owner::Tunnel);
        }
        Process::open_on(settings, datapath, (Owner::Tunnel, &mut Kept::from(kept))).await
    }

    /// Opens what the tunnel of `owner` needs, which has this datapath. On an error, what was kept is still
    /// there.
    pub async fn open_on(
        settings: &'a Settings,
        datapath: Datapath,
        (owner, kept): (Owner, &mut Kept),
    ) -> Result<Self, Failure> {
        Opening::of(settings, datapath, kept).await?.start(owner, kept).await
    }
}
