//! Peers with the old program: which of them have a tunnel now. Each sends to a UDP port that is its own, as it
//! always did, and to each of these belongs what a server with one client has: a link, rules, a memory. So
//! that is what it is: a tunnel of its own within this process, whose log lines begin with the peer's name.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::{JoinHandle, spawn_local};

use super::Settings;
use super::events::Events;
use crate::engine::config::Datapath;
use crate::engine::host::Traffic;
use crate::engine::hub::{Gone, MemberState, MemberStatus};
use crate::engine::peers_file::{PeerEntry, PeerName};
use crate::tun::{self, Owner, StoredFds};

/// The peers with the old program, and their tunnels.
#[derive(Debug, Default)]
pub struct OldPeers {
    /// What the tunnels have in common; `None`: the server itself is not up yet.
    base: Option<Rc<Base>>,
    entries: Vec<PeerEntry>,
    /// By their ports: whatever a peer is called, its client sends to the same one.
    running: BTreeMap<NonZeroU16, Running>,
    /// What an earlier process left.
    kept: BTreeMap<Owner, StoredFds>,
    unmade: Rc<Unmade>,
}

/// Tunnels that nothing was tried for yet.
#[derive(Debug, Default)]
struct Unmade {
    count: Cell<usize>,
    made: Notify,
}

/// What the tunnels of a server have in common.
#[derive(Debug)]
pub struct Base {
    pub settings: Settings,
    pub datapath: Datapath,
    pub events: Events,
    /// Keeps the tunnel at one port as it should be, until the server ends. While no peer that is in the files,
    /// and may come in, has that port, there is none.
    pub run: fn(Order) -> LocalBoxFuture<'static, ()>,
    /// Who has which memory: one tunnel at a time.
    pub memories: RefCell<BTreeMap<PathBuf, Arc<Mutex<()>>>>,
}

impl Base {
    /// The turn to have the memory in this directory.
    pub fn memory(&self, directory: &Path) -> Arc<Mutex<()>> {
        Arc::clone(self.memories.borrow_mut().entry(directory.to_owned()).or_default())
    }
}

/// A tunnel to keep.
#[derive(Debug)]
pub struct Order {
    pub base: Rc<Base>,
    /// What an earlier process left of it.
    pub kept: StoredFds,
    /// Dropped when the first try to make it is over.
    pub first: First,
    pub wanted: watch::Receiver<Wanted>,
    pub state: Rc<RefCell<OldState>>,
}

#[derive(Debug)]
struct Running {
    wanted: watch::Sender<Wanted>,
    state: Rc<RefCell<OldState>>,
    task: JoinHandle<()>,
}

/// What a tunnel should be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `None`: it should not be.
    pub entry: Option<PeerEntry>,
    /// Why a session ended that does.
    pub why: Option<Gone>,
    /// How many of them were ended by an operator.
    pub kicks: u64,
}

/// A peer with the old program as it stands.
#[derive(Debug, Clone, Default)]
pub struct OldState {
    /// Where it is.
    pub remote: Option<SocketAddr>,
    /// Whether its data is let in.
    pub admitted: bool,
    /// Unix time of its last packet that was accepted.
    pub last_authentication: Option<u64>,
    /// How often it moved since its tunnel was made.
    pub moves: u64,
    /// What its link carried.
    pub traffic: Traffic,
}

impl Wanted {
    /// Whether a session goes on where this is wanted instead of `before`.
    pub fn goes_on_from(&self, before: &Wanted) -> bool {
        match (&before.entry, &self.entry) {
            (Some(before_it), Some(entry)) => {
                self.kicks == before.kicks && entry.goes_on_from(before_it)
            }
            (None, _) | (_, None) => false,
        }
    }
}

impl OldPeers {
    /// Makes the tunnels, now that the server is up. `kept` is what an earlier process left of them.
    pub fn start(&mut self, base: Base, kept: BTreeMap<Owner, StoredFds>, unix: u64) {
        self.kept = kept;
        if !base.datapath.capabilities().open_files {
            self.forget();
        }
        self.base = Some(Rc::new(base));
        self.follow_time(unix);
        self.forget();
    }

    /// Gives up what was kept of peers that are not named any more, or whose datapath is another one.
    fn forget(&mut self) {
        for owner in std::mem::take(&mut self.kept).into_keys() {
            let _ = tun::forget(owner); // without a service manager nothing was kept
        }
    }

    /// All of them, whether or not they have a tunnel now.
    pub fn entries(&self) -> &[PeerEntry] {
        &self.entries
    }

    /// Takes another set of peers with the old program.
    pub fn replace(&mut self, entries: Vec<PeerEntry>, unix: u64) {
        self.entries = entries;
        self.follow_time(unix);
    }

    /// Makes the tunnels that should be at this Unix time, changes those that have become others, and removes
    /// the rest.
    pub fn follow_time(&mut self, unix: u64) {
        let Some(base) = self.base.clone() else { return };
        let welcome = |entry: &&PeerEntry| entry.is_welcome(unix);
        let mut wanted: BTreeMap<NonZeroU16, PeerEntry> = (self.entries.iter().filter(welcome))
            .filter_map(|entry| Some((entry.old()?.port, entry.clone())))
            .collect();
        for (port, running) in &self.running {
            let entry = wanted.remove(port);
            running.wanted.send_if_modified(|before| {
                let is_same = match (&before.entry, &entry) {
                    // Its log lines begin with its name.
                    (Some(before), Some(entry)) => {
                        before.has_tunnel_of(entry) && before.name == entry.name
                    }
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                let why = before.entry.as_ref().map(|before| self.why_gone(before, unix));
                (before.entry, before.why) = (entry, why);
                !is_same
            });
        }
        for (port, entry) in wanted {
            let kept = self.kept.remove(&Owner::OldPeer(port));
            let (sender, receiver) =
                watch::channel(Wanted { entry: Some(entry), ..Wanted::default() });
            let state = Rc::default();
            let order = Order {
                base: Rc::clone(&base),
                kept: kept.unwrap_or_default(),
                first: First::of(&self.unmade),
                wanted: receiver,
                state: Rc::clone(&state),
            };
            let task = spawn_local((base.run)(order));
            self.running.insert(port, Running { wanted: sender, state, task });
        }
    }

    /// Why a session ends that is none with the peers as they are now. The peer that proves the same is the
    /// same one, whatever it is called.
    fn why_gone(&self, before: &PeerEntry, unix: u64) -> Gone {
        let is_named = |entry: &&PeerEntry| entry.name == before.name;
        let same = || self.entries.iter().filter(|entry| entry.proves_as(before));
        let now = same().find(is_named).or_else(|| same().next());
        let now = now.or_else(|| self.entries.iter().find(is_named));
        now.map_or(Gone::Removed, |entry| Gone::of_changed(before, entry, unix))
    }

    /// Whether all tunnels are made, or could not be at the first try.
    pub fn are_made(&self) -> bool {
        self.unmade.count.get() == 0
    }

    /// Waits until a tunnel is made, or could not be. Safe to cancel.
    pub fn made(&self) -> impl Future<Output = ()> + use<> {
        let unmade = Rc::clone(&self.unmade);
        async move { unmade.made.notified().await }
    }

    /// Ends the session of a peer, which may come back.
    pub fn kick(&self, name: &PeerName) {
        let is_meant = |running: &&Running| {
            running.wanted.borrow().entry.as_ref().is_some_and(|entry| entry.name == *name)
        };
        if let Some(running) = self.running.values().find(is_meant) {
            running.wanted.send_modify(|wanted| {
                wanted.kicks += 1;
                wanted.why = Some(Gone::Kicked);
            });
        }
    }

    /// Adds to what is known of a peer what its own tunnel knows, if it has one.
    pub fn note(&self, member: &mut MemberStatus) {
        let Some(running) = member.entry.old().and_then(|old| self.running.get(&old.port)) else {
            return;
        };
        let is_its =
            running.wanted.borrow().entry.as_ref().is_some_and(|e| e.name == member.entry.name);
        if !is_its {
            return;
        }
        let state = running.state.borrow();
        member.last_hello = state.last_authentication;
        member.remote = state.remote.filter(|_| state.admitted);
        member.moves = state.moves;
        member.traffic = Some(state.traffic);
        member.state = match (member.remote, member.last_hello) {
            (Some(_), _) => MemberState::Connected,
            (None, Some(_)) => MemberState::Away,
            (None, None) => MemberState::New,
        };
    }

    /// Removes all that the tunnels made.
    pub async fn end(&mut self) {
        let running = std::mem::take(&mut self.running);
        for one in running.values() {
            one.wanted.send_modify(|wanted| *wanted = Wanted::default());
        }
        for one in running.into_values() {
            let Running { wanted, task, .. } = one;
            drop(wanted);
            let _ = task.await; // what it could not remove, it has said
        }
    }
}

/// The first try to make a tunnel; dropped when it is over.
#[derive(Debug)]
pub struct First(Rc<Unmade>);

impl First {
    fn of(unmade: &Rc<Unmade>) -> Self {
        unmade.count.update(|count| count + 1);
        First(Rc::clone(unmade))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.0.count.update(|count| count - 1);
        self.0.made.notify_one();
    }
}
