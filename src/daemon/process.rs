//! One process and its tunnel: the engine, and those who do what it says.

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UnixStream;
use tracing::Level;

use super::carrier::Carrier;
use super::clock::Clock;
use super::control::answer;
use super::dns::Dns;
use super::locks::Locks;
use super::memory::{Loaded, MemoryFile};
use super::preflight::{self, Ground};
use super::{Failure, Settings, record};
use crate::auth::Reject;
use crate::engine::config::{Datapath, Role};
use crate::engine::host::{Family, Found, NameServers, RulesFound};
use crate::engine::plan::Step;
use crate::engine::{Action, Engine, Event, Memory, Report, Writing};
use crate::kernel::{Changed, HostAdapter, Question, StepError, WayTo};
use crate::observe::rate::Limiter;
use crate::tun::{self, StoredFds};

/// So many lines of a kind are logged per interval; what repeats because somebody sends much has one.
const LOG_EVERY: Duration = Duration::from_secs(10);
const SOME_LINES: u32 = 5;
const MANY_LINES: u32 = 50;
/// Where programs look up who resolves names (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often the host is read again within one event, while steps fail.
const MAX_ROUNDS: usize = 6;

/// What fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Failing {
    Send,
    Read,
    Memory,
    Port,
    Path,
    Step(Discriminant<Step>),
}

pub struct Process<'a> {
    pub(super) settings: &'a Settings,
    /// Of our outer addresses.
    pub(super) family_at_start: Family,
    pub(super) clock: Clock,
    pub(super) engine: Engine,
    pub(super) host: HostAdapter,
    locks: Locks,
    /// Whether the next reading finds listeners at our port that are not ours to take over.
    foreign_listeners: bool,
    pub(super) carrier: Carrier,
    dns: Dns,
    pub(super) memory: MemoryFile,
    rejections: Limiter<Reject>,
    failures: Limiter<Failing>,
    /// How many the rules had dropped at the last look.
    icmp_errors: Option<u64>,
    changes: Limiter<Discriminant<Report>>,
    /// The first failure counts until the tunnel has been set up once.
    starting: Option<Option<Failure>>,
    adopted: bool,
    /// Links or addresses may have changed since the datapath was told of them.
    surroundings_due: bool,
    /// That the tunnel leads into itself was said.
    leads_back: bool,
    pub(super) rules: &'static str,
    /// Who changed nftables since the last reading.
    ruleset_by: Option<String>,
}

impl<'a> Process<'a> {
    /// `remotes`: how many a table has.
    pub async fn open(settings: &'a Settings, remotes: usize) -> Result<Self, Failure> {
        let clock = Clock::start();
        let mut kept = tun::inherited();
        let datapath = preflight::datapath(settings, !kept.is_nothing(), remotes).await?;
        if datapath == Datapath::Kernel && !kept.is_nothing() {
            // They have the interface and the port that the kernel is to have. Without them the next
            // start finds its way free, if this one comes too early.
            kept = StoredFds::default();
            let _ = tun::forget();
        }
        let Ground { host, locks, adopts_listeners, family } =
            preflight::open_host(settings, datapath, !kept.is_nothing()).await?;
        let tunnel = settings.tunnel();
        let dns = Dns::new(
            RESOLV_CONF.into(),
            settings.state_dir.clone(),
            tunnel.device.clone(),
            tunnel.gateway.dns.clone(),
        );
        dns.check().map_err(|error| Failure::Step {
            step: Box::new(Step::UseNameServers),
            error: StepError::Dns(error),
        })?;
        let carrier = Carrier::open(datapath, &settings.role, tunnel, kept)?;
        if let Some(held) = carrier.queues()
            && let Err(error) = host.check_queues(&tunnel.device, held).await
        {
            tracing::warn!("{}, of an earlier process: {error}", tunnel.device);
        }
        let file = MemoryFile::in_directory(&settings.state_dir);
        let memory = match file.load() {
            Loaded::Whole(memory) => memory,
            Loaded::FirstStart => Memory::default(),
            Loaded::Lost(e) => {
                let effect = match settings.role {
                    Role::Server(_) => {
                        "authentication packets from before this start neither make a tunnel nor \
                         move it"
                    }
                    Role::Client(_) | Role::Node(_) => "what was kept there is lost",
                };
                tracing::warn!("{}: {e}: {effect}", file.path().display());
                Memory::lost()
            }
        };
        let now = clock.moment()?;
        Ok(Process {
            settings,
            family_at_start: family,
            clock,
            engine: Engine::new(settings.role.clone(), datapath, memory, &now),
            host,
            locks,
            foreign_listeners: !adopts_listeners,
            carrier,
            dns,
            memory: file,
            rejections: Limiter::new(LOG_EVERY, 1),
            failures: Limiter::new(LOG_EVERY, SOME_LINES),
            icmp_errors: None,
            changes: Limiter::new(LOG_EVERY, MANY_LINES),
            starting: Some(None),
            adopted: false,
            surroundings_due: true,
            leads_back: false,
            rules: "missing",
            ruleset_by: None,
        })
    }

    /// Makes the host as it should be for the first time.
    pub async fn start(&mut self) -> Result<(), Failure> {
        self.read_host().await;
        let Some(Some(failure)) = self.starting.take() else { return Ok(()) };
        // A tunnel that was running before us is better left than taken away.
        if !self.adopted {
            let _ = self.end().await;
        }
        Err(failure)
    }

    /// Removes everything of ours.
    pub async fn end(&mut self) -> Result<(), Failure> {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let _ = tun::forget(); // without a service manager there is nothing to forget
        // Word of the last changes may be on its way.
        self.host.note(&Changed { lost: true, ..Changed::default() });
        let found = self.read().await.map_err(Failure::Netlink)?;
        let mut actions = Vec::new();
        let now = self.clock.moment()?;
        self.engine.handle(Event::Shutdown(found), &now, &mut actions);
        let mut failed = 0;
        for action in actions {
            match action {
                Action::Apply(step) => {
                    tracing::debug!("{step}");
                    if let Err(error) = self.try_apply(&step).await {
                        tracing::error!("cannot {step}: {error}");
                        failed += 1;
                    }
                }
                Action::Remember(memory) if failed == 0 => self.remember(&memory).await,
                Action::Remember(_)
                | Action::Write(_)
                | Action::Send(_)
                | Action::PeerAlive(_)
                | Action::ReadHost
                | Action::Report(_)
                | Action::Exit => {}
            }
        }
        match failed {
            0 => Ok(()),
            _ => Err(Failure::Cleanup(failed)),
        }
    }

    /// The other end's address inside the tunnel, if there is one only.
    fn inner_peer(&self) -> Option<IpAddr> {
        let peer = self.settings.tunnel().inner_peer;
        (peer.prefix_len() == peer.max_prefix_len()).then(|| peer.addr().into())
    }

    /// The addresses whose ways out of the host are of interest.
    pub fn destinations(&self) -> Vec<IpAddr> {
        let server = self.engine.server_address().into_iter();
        server.chain(self.engine.other_addresses()).chain(self.inner_peer()).collect()
    }

    async fn read(&mut self) -> std::io::Result<Found> {
        let server = self.engine.server_address();
        let tunnel = self.settings.tunnel();
        let question = Question {
            way_to: server.map(|server| WayTo::of_tunnel(tunnel, server)),
            other_ways: self
                .engine
                .other_addresses()
                .map(|address| WayTo::of_tunnel(tunnel, address))
                .collect(),
            inner: self.inner_peer(),
            interfaces: self.engine.changed_interfaces().cloned().collect(),
        };
        let mut found = self.host.read(&question).await?;
        self.hold_port(&mut found);
        self.carrier.read(&mut found);
        if let Some(datapath) = self.carrier.userspace().filter(|_| self.surroundings_due) {
            datapath.surround(self.host.surroundings().await?);
            self.surroundings_due = false;
        }
        if self.carrier.userspace().is_none() {
            self.tell_errors_about_path();
        }
        let leads_back = self.carrier.userspace().is_some_and(tun::Datapath::leads_back);
        if leads_back && !std::mem::replace(&mut self.leads_back, leads_back) {
            let device = &self.settings.tunnel().device;
            tracing::warn!(
                "a route leads the tunnel's own packets back into {device}: they are dropped, or they \
                 would go round for ever; let --route or --default-route make such routes, or add one \
                 to the other end by the uplink"
            );
        }
        found.name_servers = match (self.dns.is_applied(), self.dns.needs_restoring()) {
            (true, _) => NameServers::Ours,
            (false, true) => NameServers::Changed,
            (false, false) => NameServers::Theirs,
        };
        self.rules = match found.rules {
            RulesFound::Missing | RulesFound::Unknown => "missing",
            RulesFound::Intact(_) => "installed",
            RulesFound::Unavailable => "unavailable",
        };
        Ok(found)
    }

    /// In the userspace datapath it is said when the word comes.
    fn tell_errors_about_path(&mut self) {
        // Without rules, or without counters, there are none.
        let counters = self.host.rule_counters().unwrap_or_default();
        let errors = counters.iter().filter(|c| c.name == "icmp_error").map(|c| c.packets).sum();
        let is_news = self.icmp_errors.replace(errors).is_some_and(|before| errors > before);
        if is_news && self.failures.pass(Failing::Path, self.clock.elapsed()).is_some() {
            tracing::warn!(
                "somebody says that packets of this tunnel do not get through ({errors} ICMP errors); that \
                 is not believed, as anybody can say so: if large packets do not pass, give --mtu"
            );
        }
    }

    /// Takes the lock of the port at our outer address. While another process has it, that address
    /// is not there for us.
    fn hold_port(&mut self, found: &mut Found) {
        self.locks.drain();
        let port = self.settings.tunnel().port.get();
        while let Some(address) = self.engine.outer_in(found) {
            let at = SocketAddr::new(address, port);
            let Err(holder) = self.locks.hold_port(at) else { break };
            let text = format!("the UDP port of {at} is in use by {holder}; trying again");
            self.complain(Failing::Port, &text);
            found.hide(address);
        }
        // At the first reading only, when the engine takes over what is there.
        if std::mem::take(&mut self.foreign_listeners) {
            found.listeners.retain(|listener| listener.port != port);
        }
        self.locks.leave_to_others(port, found);
    }

    /// Reads the host after word of a change, and puts right what is wrong; true at the end.
    pub async fn host_changed(&mut self, changed: Changed) -> bool {
        // Not every change is told, so the host is read every few seconds too: this says why.
        tracing::trace!("the host changed: reading it");
        self.host.note(&changed);
        self.surroundings_due |= changed.lost || !changed.interfaces.is_empty();
        self.ruleset_by = changed.ruleset_by;
        let done = self.read_host().await;
        self.ruleset_by = None;
        done
    }

    /// Reads the host and puts right what is wrong; true at the end.
    pub async fn read_host(&mut self) -> bool {
        self.work(VecDeque::from([Action::ReadHost])).await
    }

    /// Hands an event to the engine and does what it says; true at the end.
    pub async fn handle(&mut self, event: Event<'_>) -> bool {
        let mut work = VecDeque::new();
        self.feed(event, &mut work);
        self.work(work).await
    }

    async fn work(&mut self, mut work: VecDeque<Action>) -> bool {
        let (mut rounds, mut applied, mut failed) = (0, false, false);
        while let Some(action) = work.pop_front() {
            match action {
                Action::Apply(step) if failed => {
                    tracing::trace!("not tried: {step}");
                    self.feed(Event::StepFailed { step, taken: false }, &mut work);
                }
                Action::Apply(step) => match self.apply(&step).await {
                    Ok(()) => applied = true,
                    Err(taken) => {
                        failed = true;
                        self.feed(Event::StepFailed { step, taken }, &mut work);
                    }
                },
                Action::Send(out) => {
                    if let Err(e) = self.carrier.send(&out) {
                        let text = format!("cannot send to {}: {e}; trying again", out.to);
                        self.complain(Failing::Send, &text);
                        self.feed(Event::SendFailed, &mut work);
                    }
                }
                Action::PeerAlive(remote) => self.carrier.heard_of(remote),
                Action::ReadHost if rounds < MAX_ROUNDS => {
                    rounds += 1;
                    (applied, failed) = (false, false);
                    match self.read().await {
                        Ok(found) => self.feed(Event::HostRead(found), &mut work),
                        Err(e) => {
                            self.complain(Failing::Read, &format!("cannot read the host: {e}"))
                        }
                    }
                }
                // The engine reads again by itself in a while.
                Action::ReadHost => {}
                Action::Remember(memory) => self.remember(&memory).await,
                Action::Write(writing) => self.memory.write(writing, &self.engine),
                Action::Report(report) => self.report(&report),
                Action::Exit => return true,
            }
            if applied && !failed && !work.iter().any(|a| matches!(a, Action::Apply(_))) {
                applied = false;
                self.feed(Event::Applied, &mut work);
            }
        }
        false
    }

    fn feed(&mut self, event: Event<'_>, work: &mut VecDeque<Action>) {
        let mut actions = Vec::new();
        match self.clock.moment() {
            Ok(now) => self.engine.handle(event, &now, &mut actions),
            Err(e) => tracing::error!("no random numbers: {e}"),
        }
        work.extend(actions);
    }

    async fn remember(&mut self, memory: &Memory) {
        let result = self.memory.save(memory).await;
        self.note_write(result);
    }

    fn note_write(&mut self, result: std::io::Result<()>) {
        if let Err(e) = result {
            let path = self.memory.path().display();
            let text = format!("{path}: {e}: a restart will forget replays");
            self.complain(Failing::Memory, &text);
        }
    }

    /// A writing in the background is done, whatever came of it: who waited for it is let in.
    pub async fn written(&mut self, writing: Writing, result: std::io::Result<()>) -> bool {
        self.note_write(result);
        self.memory.go_on(&self.engine);
        self.handle(Event::Written(writing)).await
    }

    async fn try_apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.carrier.apply(step)?;
        if let (Step::CreateLink(wanted), Some(held)) = (step, self.carrier.queues()) {
            self.host.check_queues(&wanted.device, held).await?;
        }
        match step {
            Step::UseNameServers => self.dns.apply().map_err(StepError::Dns),
            Step::RestoreNameServers => self.dns.restore().map_err(StepError::Dns),
            Step::AddListener(listener) => {
                // Before the listener: a crash in between leaves a record of nothing.
                if let Err(e) = record::write(&self.settings.state_dir, listener.port) {
                    let directory = self.settings.state_dir.display();
                    tracing::warn!("{directory}: {e}: a restart may not know its FOU listener");
                }
                self.host.apply(step).await
            }
            Step::RemoveRules => {
                record::remove(&self.settings.state_dir);
                self.host.apply(step).await
            }
            _ => self.host.apply(step).await,
        }
    }

    /// Applies a step; an error tells whether the kernel said that it exists already.
    async fn apply(&mut self, step: &Step) -> Result<(), bool> {
        tracing::debug!("{step}");
        self.surroundings_due = true;
        let Err(error) = self.try_apply(step).await else { return Ok(()) };
        let taken = error.is_taken();
        let is_link = matches!(error, StepError::Link(_));
        if taken && is_link {
            let text = format!(
                "cannot {step}: another link has its addresses, perhaps in another network namespace; \
                 trying an alternate local address"
            );
            self.complain(Failing::Step(discriminant(step)), &text);
        } else if let Some(first @ None) = &mut self.starting {
            *first = Some(Failure::Step { step: Box::new(step.clone()), error });
        } else {
            let failing = Failing::Step(discriminant(step));
            self.complain(failing, &format!("cannot {step}: {error}; trying again"));
        }
        Err(taken)
    }

    fn complain(&mut self, failing: Failing, text: &str) {
        if let Some(more) = self.failures.pass(failing, self.clock.elapsed()) {
            tracing::error!("{text}{}", also(more));
        }
    }

    fn report(&mut self, report: &Report) {
        let level = match report {
            Report::Rejected { .. }
            | Report::Repairing(_)
            | Report::KeepsBeingUndone(_)
            | Report::Expired(_)
            | Report::OuterMissing(_)
            | Report::OuterOnlyIpv6(_)
            | Report::NameUnusable { .. }
            | Report::LedAstray { .. }
            | Report::InnerTaken { .. }
            | Report::InVrf(_)
            | Report::AlternateInVrf { .. }
            | Report::WayLeadsBack(_)
            | Report::Rivals { .. }
            | Report::ReauthIgnored
            | Report::NodeUnusable { .. } => Level::WARN,
            Report::Adopted(_)
            | Report::HostsChanged(_)
            | Report::MadeRoom(_)
            | Report::NothingBack(_)
            | Report::ClockJumped(_) => Level::INFO,
            Report::Refreshed(_) | Report::Sent { .. } => return tracing::debug!("{report}"),
            Report::Arrived(_)
            | Report::Moved { .. }
            | Report::ServerMoved(_)
            | Report::NextAddress { .. }
            | Report::OuterAddress(_) => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&report.to_string())]);
                Level::INFO
            }
        };
        self.adopted |= matches!(report, Report::Adopted(_));
        let now = self.clock.elapsed();
        let passed = match report {
            Report::Rejected { reason, .. } => self.rejections.pass(*reason, now),
            of_a_kind => self.changes.pass(discriminant(of_a_kind), now),
        };
        let also = |more| match (report, &self.ruleset_by) {
            (Report::KeepsBeingUndone(_), Some(who)) => {
                format!("; nftables was last changed by {who}{}", also(more))
            }
            _ => also(more),
        };
        match (passed.map(also), level) {
            (Some(more), Level::WARN) => tracing::warn!("{report}{more}"),
            (Some(more), _) => tracing::info!("{report}{more}"),
            (None, _) => {}
        }
    }

    pub fn notify_ready(&self) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let (datapath, offloads) = self.carrier.describe();
        let offloads = offloads.map_or_else(String::new, |with| format!(" with {with}"));
        tracing::info!(
            "ready on {} as {}, datapath {datapath}{offloads}",
            self.settings.tunnel().port,
            self.role()
        );
    }

    /// Sends the status to somebody who asked.
    pub async fn tell(&mut self, stream: UnixStream) -> bool {
        let done = self.read_host().await; // for fresh traffic counters
        answer(stream, &self.status());
        done
    }
}

/// How many lines of the kind were not logged.
fn also(more: u64) -> String {
    match more {
        0 => String::new(),
        _ => format!(" ({more} more since the last such line)"),
    }
}
