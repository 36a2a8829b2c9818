//! One process and its tunnel: the engine, and the adapters that carry out its actions.

use std::collections::BTreeSet;
use std::mem::Discriminant;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::events::Events;
use super::lists::Lists;
use super::locks::Locks;
use super::memory::MemoryFile;
use super::old::OldPeers;
use super::pings::Pings;
use super::session_file::Keeping;
use super::snapshot::Mistakes;
use super::{Failure, Settings};
use crate::auth::Reject;
use crate::bpf::FastPathAdapter;
use crate::engine::config::Datapath;
use crate::engine::driver::Driver as _;
use crate::engine::host::step::StepKind;
use crate::engine::host::{Family, FastPathFound, Found, NameServers, RulesFound};
use crate::engine::{Engine, Event, Memory, Report, Writing};
use crate::host::asked;
use crate::host::clock::Clock;
use crate::host::datapath::Warnings;
use crate::host::dns::Dns;
use crate::host::{self, Changed, HostAdapter, Question, WayTo};
use crate::observe::rate::{Lasting, Limiter};
use crate::tun::{self, Owner, StoredFds};

/// The log lines of each kind are limited per this interval. A kind that repeats because somebody sends
/// much gets one line.
pub(super) const LOG_EVERY: Duration = Duration::from_secs(10);
pub(super) const SOME_LINES: u32 = 5;
pub(super) const MANY_LINES: u32 = 50;
/// Where programs read which name servers to ask (resolv.conf(5)).
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What may fail again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Failing {
    Send,
    Read,
    Memory,
    Port,
    Path,
    Keep,
    Step(StepKind),
}

pub struct Process<'a> {
    pub(super) settings: &'a Settings,
    /// Whose tunnel this is.
    pub(super) owner: Owner,
    /// The family of the outer addresses.
    pub(super) family_at_start: Family,
    pub(super) clock: Clock,
    pub(super) engine: Engine,
    pub(super) host: HostAdapter,
    pub(super) locks: Locks,
    /// Whether the next reading finds listeners at our port that must not be taken over.
    pub(super) foreign_listeners: bool,
    /// The datapath that was requested or chosen.
    pub(super) chosen: Datapath,
    pub(super) datapath: Box<dyn host::Datapath>,
    pub(super) fast_path: FastPathAdapter,
    pub(super) dns: Dns,
    /// The name servers that the host asked when they could be read last.
    pub(super) asked: BTreeSet<IpAddr>,
    pub(super) memory: MemoryFile,
    pub(super) rejections: Limiter<Reject>,
    pub(super) failures: Limiter<Failing>,
    pub(super) lasting: Lasting,
    /// How many ICMP errors the rules had dropped at the last reading.
    pub(super) icmp_errors: Option<u64>,
    pub(super) changes: Limiter<Discriminant<Report>>,
    pub(super) starting: Starting,
    /// While the tunnel is removed: how many of its parts could not be.
    pub(super) ending: Option<usize>,
    pub(super) adopted: bool,
    /// Links or addresses may have changed since the datapath was last told of them.
    pub(super) surroundings_due: bool,
    /// Whether the log has said that the tunnel leads into itself.
    pub(super) leads_back: bool,
    pub(super) rules: &'static str,
    pub(super) events: Events,
    /// What was wrong with the files of peers when they were read last.
    pub(super) mistakes: Option<Mistakes>,
    /// The program that changed nftables since the last reading.
    pub(super) ruleset_by: Option<String>,
    /// The peers with the old program, each with a tunnel of its own.
    pub(super) old: OldPeers,
    pub(super) pings: Pings,
    pub(super) lists: Lists,
    pub(super) sessions: Keeping,
}

/// Whether a tunnel has been set up once.
#[derive(Debug)]
pub enum Starting {
    /// Not yet, and nothing has failed.
    Well,
    /// Not yet; this failed first.
    Failed(Failure),
    /// Yes.
    Over,
}

/// What is left of a tunnel whose place another one takes.
#[derive(Debug, Default)]
pub struct Kept {
    pub files: StoredFds,
    /// What it remembered, and where; `None`: that is on the disk.
    pub memory: Option<(MemoryFile, Memory)>,
}

impl From<StoredFds> for Kept {
    fn from(files: StoredFds) -> Self {
        Kept { files, memory: None }
    }
}

impl Process<'_> {
    /// Sets the host up for the first time.
    pub async fn start(&mut self) -> Result<(), Failure> {
        self.look().await;
        let Starting::Failed(failure) = std::mem::replace(&mut self.starting, Starting::Over)
        else {
            return Ok(());
        };
        // A tunnel that was running before this process is left in place rather than removed.
        if !self.adopted {
            let _ = self.end().await;
        }
        Err(failure)
    }

    /// Tells a client's server that we go, while the tunnel is still there; true at the end.
    pub async fn leave(&mut self) -> bool {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.handle(Event::Leaving).await
    }

    /// Whether the server has still to hear that, or to answer it.
    pub fn says_goodbye(&self) -> bool {
        self.clock.now().is_ok_and(|now| self.engine.says_goodbye(&now))
    }

    /// Removes everything that the tunnel made.
    pub async fn end(&mut self) -> Result<(), Failure> {
        self.old.end().await;
        self.tell_manager(sd_notify::NotifyState::Stopping);
        let _ = tun::forget(self.owner); // without a service manager there is nothing to forget
        self.take_down().await
    }

    /// Removes what an earlier process of this tunnel left, before anything is made.
    pub async fn remove_leftovers(&mut self) -> Result<(), Failure> {
        let found = self.read_host().await.map_err(Failure::Netlink)?;
        let now = self.clock.now()?;
        // The engine takes over what is there; what it would do with it then is not done.
        self.engine.handle(Event::HostRead(found), &now, &mut Vec::new());
        self.take_down().await
    }

    async fn take_down(&mut self) -> Result<(), Failure> {
        // Notifications about the last changes may still be on their way.
        self.host.note(&Changed { lost: true, ..Changed::default() });
        let found = self.read_host().await.map_err(Failure::Netlink)?;
        self.clock.now()?; // without random numbers the event would be lost
        self.ending = Some(0);
        host::program::end_pauses();
        self.handle(Event::Shutdown(found)).await;
        match self.ending {
            None | Some(0) => Ok(()),
            Some(failed) => Err(Failure::Cleanup(failed)),
        }
    }

    /// Leaves everything in place, for the tunnel that takes the place of this one.
    ///
    /// # Errors
    /// Too many open files; then the tunnel is as before.
    pub async fn leave_in_place(self) -> Result<Kept, (Box<Self>, std::io::Error)> {
        let files = match self.datapath.open_files() {
            Ok(files) => files,
            Err(error) => return Err((Box::new(self), error)),
        };
        let memory = Memory { running: false, ..self.engine.memory() }; // it misses nothing
        Ok(Kept { files, memory: Some((self.memory.at_rest().await, memory)) })
    }

    /// Whether this tunnel was running before.
    pub fn was_running(&self) -> bool {
        self.adopted
    }

    /// The peer's address inside the tunnel, if there is only one peer.
    fn inner_peer(&self) -> Option<IpAddr> {
        let peer = self.settings.tunnel().inner_peer;
        let is_one = peer.prefix_len() == peer.max_prefix_len() && !peer.addr().is_unspecified();
        is_one.then(|| peer.addr().into())
    }

    /// The addresses to which the routes of the host matter.
    pub fn destinations(&self) -> Vec<IpAddr> {
        let server = self.engine.server_address().into_iter();
        let by_route = self.engine.by_route().into_iter().flat_map(|(_, remotes)| remotes);
        server
            .chain(self.engine.other_addresses())
            .chain(self.inner_peer())
            .chain(by_route)
            .collect()
    }

    /// The ways of packets on the fast path.
    fn uplinks(&self) -> Vec<WayTo> {
        let mark = self.settings.tunnel().mark().unwrap_or(0);
        let ways = self.engine.by_route().filter(|_| self.fast_path.is_available());
        let of = |(source, remotes): (IpAddr, BTreeSet<IpAddr>)| {
            remotes.into_iter().map(move |destination| WayTo {
                destination,
                source: Some(source),
                mark,
            })
        };
        ways.into_iter().flat_map(of).collect()
    }

    pub(super) async fn read_host(&mut self) -> std::io::Result<Found> {
        let server = self.engine.server_address();
        let tunnel = self.settings.tunnel();
        let question = Question {
            way_to: server.map(|server| WayTo::of_tunnel(tunnel, server)),
            other_ways: self
                .engine
                .other_addresses()
                .map(|address| WayTo::of_tunnel(tunnel, address))
                .collect(),
            uplinks: self.uplinks(),
            inner: self.inner_peer(),
            given: self.engine.given_addresses().collect(),
            interfaces: self.engine.changed_interfaces().cloned().collect(),
        };
        let mut found = self.host.read(&question).await?;
        self.datapath.read(&mut found)?;
        if let Err(error) = self.fast_path.read(tunnel, &mut found) {
            self.without_fast_path(&error);
            found.fast_path = FastPathFound::Unavailable;
        }
        self.hold_port(&mut found);
        if self.surroundings_due && self.datapath.wants_surroundings() {
            self.datapath.surround(self.host.surroundings().await?);
            self.surroundings_due = false;
        }
        self.warn();
        if self.settings.tunnel().inner_from_server {
            if let Ok(asked) = asked::name_servers(RESOLV_CONF.as_ref()) {
                self.asked = asked;
            }
            found.asked.clone_from(&self.asked);
        }
        found.name_servers = match self.owner {
            Owner::OldPeer(_) => NameServers::Theirs, // it never sets them
            Owner::Tunnel => self.dns.in_use(),
        };
        self.rules = match found.rules {
            RulesFound::Missing | RulesFound::Unknown => "missing",
            RulesFound::Intact(_) => "installed",
            RulesFound::Unavailable => "unavailable",
        };
        Ok(found)
    }

    /// Logs what is wrong around the datapath, when that is news.
    fn warn(&mut self) {
        let Warnings { leads_back, icmp_errors } = self.datapath.warnings();
        if leads_back && !std::mem::replace(&mut self.leads_back, leads_back) {
            let device = &self.settings.tunnel().device;
            tracing::warn!(
                "a route leads the tunnel's own packets back into {device}: they are dropped, or they \
                 would go round and round; let --route or --default-route make such routes, or add one \
                 to the other end by the uplink"
            );
        }
        let Some(errors) = icmp_errors else { return };
        let is_news = self.icmp_errors.replace(errors).is_some_and(|before| errors > before);
        if is_news && self.failures.pass(Failing::Path, self.clock.elapsed()).is_some() {
            tracing::warn!(
                "somebody says that packets of this tunnel do not get through ({errors} ICMP errors); that \
                 is not believed, as anybody can say so: if large packets do not pass, give --mtu"
            );
        }
    }

    /// Takes the lock of the port at our outer address. While another process has it, the address
    /// counts as missing.
    fn hold_port(&mut self, found: &mut Found) {
        self.locks.drain();
        let port = self.settings.tunnel().port.get();
        while let Some(address) = self.engine.outer_in(found) {
            let at = SocketAddr::new(address, port);
            let Err(holder) = self.locks.hold_port(at) else { break };
            let text = format!("the UDP port of {at} is in use by {holder}; trying again");
            self.log_failure(Failing::Port, &text);
            found.hide(address);
        }
        // Only at the first reading, when the engine takes over what is there.
        if std::mem::take(&mut self.foreign_listeners) {
            found.listeners.retain(|listener| listener.port != port);
        }
        self.locks.leave_to_others(port, found);
    }

    /// Reads the host after a notification and repairs what is wrong; true at the end.
    pub async fn host_changed(&mut self, changed: Changed) -> bool {
        // Not every change causes a notification, so the host is also read every few seconds. This line
        // says why it was read now.
        tracing::trace!("the host changed: reading it");
        self.host.note(&changed);
        self.surroundings_due |= changed.lost || !changed.interfaces.is_empty();
        self.ruleset_by = changed.ruleset_by;
        let done = self.look().await;
        self.ruleset_by = None;
        done
    }

    /// Reads the host and repairs what is wrong; true at the end.
    pub async fn look(&mut self) -> bool {
        match self.read_host().await {
            Ok(found) => self.handle(Event::HostRead(found)).await,
            Err(error) => {
                self.log_failure(Failing::Read, &format!("cannot read the host: {error}"));
                false
            }
        }
    }

    pub(super) fn note_write(&mut self, result: std::io::Result<()>) {
        if let Err(e) = result {
            let path = self.memory.path().display();
            let text = format!("{path}: {e}: a restart will forget replays");
            self.log_failure(Failing::Memory, &text);
        }
    }

    /// Handles the end of a write in the background, whether or not it failed: the remotes that waited
    /// for it are let in.
    pub async fn written(&mut self, writing: Writing, result: std::io::Result<()>) -> bool {
        self.note_write(result);
        self.memory.go_on(&mut self.engine);
        self.handle(Event::Written(writing)).await
    }
}
