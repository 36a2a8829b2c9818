//! The tunnel to one peer with the old program: what a server that has only this client would be.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;
use tracing::Instrument as _;

use super::debounce::DebouncedChanges;
use super::old::{Base, First, OldState, Order, Wanted};
use super::old_settings;
use super::opening::Opening;
use super::process::{Kept, Process};
use super::{Failure, Settings, leftovers};
use crate::engine::Report;
use crate::engine::peers_file::PeerEntry;
use crate::host::Subjects;
use crate::tun::{self, Owner};

/// How long to wait after a tunnel could not be made before the next try.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Keeps the tunnel to one peer as it should be, until the server ends. While the peer is not in the files, or
/// may not come in, there is none.
pub fn run(order: Order) -> LocalBoxFuture<'static, ()> {
    keep(order).boxed_local()
}

/// What is left for the next try, and of whose tunnel: it lasts until a tunnel has taken it.
struct Left {
    owner: Owner,
    state_dir: PathBuf,
    kept: Kept,
    /// How many sessions an operator had ended when it was left: one more ends what goes on in it.
    kicks: u64,
}

impl Left {
    /// What of it is good for a tunnel that is started with these settings.
    async fn for_tunnel<'a>(
        left: &'a mut Option<Left>,
        (owner, kicks): (Owner, u64),
        (base, settings): (&Base, &Settings),
    ) -> &'a mut Left {
        let fits = |left: &Left| left.owner == owner && left.state_dir == settings.state_dir;
        if !left.as_ref().is_some_and(fits) {
            Left::give_up(left, base).await;
        }
        left.get_or_insert_with(|| Left {
            owner,
            state_dir: settings.state_dir.clone(),
            kept: Kept::default(),
            kicks,
        })
    }

    /// Nothing takes it any more: what is in place lets its peer in until it is removed.
    async fn give_up(left: &mut Option<Left>, base: &Base) {
        let Some(Left { owner, state_dir, kept, kicks: _ }) = left.take() else { return };
        if !kept.files.is_nothing() {
            let _ = tun::forget(owner); // without a service manager nothing was kept
        }
        let stays = !base.datapath.capabilities().open_files && kept.memory.is_some();
        if let (true, Owner::OldPeer(port)) = (stays, owner) {
            match old_settings::of_nobody(base, port, state_dir) {
                Ok(settings) => leftovers::remove(&settings, owner).await,
                Err(why) => tracing::error!("its tunnel stays as it is: {why}"),
            }
        }
    }
}

async fn keep(order: Order) {
    let Order { base, kept, first, mut wanted, state } = order;
    let mut first = Some(first);
    let mut said = String::new();
    let mut span = tracing::Span::none();
    let mut left = None;
    let mut kept = Some(kept).filter(|kept| !kept.is_nothing());
    loop {
        let now = wanted.borrow_and_update().clone();
        if let Some(entry) = &now.entry {
            // Its log lines begin with it; the peer may have another name than before.
            span = tracing::error_span!(target: "ipipou", "peer", "{}", entry.name);
        }
        let done = async {
            match now.entry.as_ref().and_then(|entry| Some((entry, entry.old()?))) {
                None => {
                    Left::give_up(&mut left, &base).await;
                    Ok(())
                }
                Some((entry, old)) => match old_settings::of(&base, entry, old) {
                    Ok(settings) => {
                        let owner = Owner::OldPeer(old.port);
                        if let Some(kept) = kept.take() {
                            let state_dir = settings.state_dir.clone();
                            let kicks = now.kicks;
                            left = Some(Left { owner, state_dir, kept: kept.into(), kicks });
                        }
                        let made = (&*base, &settings);
                        let left = Left::for_tunnel(&mut left, (owner, now.kicks), made).await;
                        let ends = (&mut wanted, first.take());
                        serve(&settings, (&base, entry), left, (&now, ends), &state).await
                    }
                    Err(failure) => Err(failure),
                },
            }
        }
        .instrument(span.clone())
        .await;
        state.take();
        first = None;
        match done {
            // It should be another one, or none for now.
            Ok(()) if now.entry.is_some() => said.clear(),
            Ok(()) => {
                said.clear();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(failure) => {
                let why = failure.to_string();
                if said != why {
                    span.in_scope(|| tracing::error!("{why}; trying again"));
                    said = why;
                }
                let _ = tokio::time::timeout(RETRY_AFTER, wanted.changed()).await;
            }
        }
    }
}

/// Runs the tunnel to one peer until it should be another one. What can go on in that one is in `left` then.
async fn serve(
    settings: &Settings,
    (base, entry): (&Base, &PeerEntry),
    left: &mut Left,
    (now, (wanted, first)): (&Wanted, (&mut watch::Receiver<Wanted>, Option<First>)),
    state: &RefCell<OldState>,
) -> Result<(), Failure> {
    // The tunnel that had this memory, under another name, may be about to end.
    let memory = base.memory(&settings.state_dir);
    let tunnel = settings.tunnel();
    let (routes, fast_path) = (tunnel.asks_for_routing(), tunnel.may_have_fast_path());
    let subjects = Subjects { routes, fast_path };
    let opening = async {
        let ours = memory.lock_owned().await;
        Ok::<_, Failure>((ours, Opening::of(settings, base.datapath, &left.kept).await?))
    };
    // The disk may be slow.
    let (_ours, opening) = tokio::select! {
        biased;
        _ = wanted.changed() => return Ok(()),
        opened = opening => opened?,
    };
    let mut changes = DebouncedChanges::open(subjects).map_err(Failure::Netlink)?;
    let mut process = opening.start(left.owner, &mut left.kept).await?;
    process.events = base.events.about(entry.name.clone());
    if let Err(failure) = process.start().await {
        if !process.was_running() {
            return Err(failure);
        }
        tracing::error!("{failure}; trying again"); // it is in place
    }
    if std::mem::replace(&mut left.kicks, now.kicks) != now.kicks {
        process.tell_end(wanted);
        return process.end().await;
    }
    process.notify_ready();
    drop(first);
    loop {
        state.replace(process.old_state());
        if process.is_due() {
            process.meet_deadline().await;
        }
        let next = tokio::select! {
            biased;
            _ = wanted.changed() => {
                if wanted.borrow().goes_on_from(now) {
                    match process.leave_in_place().await {
                        Ok(kept) => left.kept = kept,
                        Err((mut process, error)) => {
                            tracing::error!("cannot change it in place: {error}");
                            return process.end().await;
                        }
                    }
                    return Ok(());
                }
                process.tell_end(wanted);
                return process.end().await;
            }
            next = process.next(&mut changes) => next,
        };
        process.follow(next).await?;
    }
}

impl Process<'_> {
    /// Tells that the session ends, if there is one and somebody ended it.
    fn tell_end(&mut self, wanted: &watch::Receiver<Wanted>) {
        let OldState { remote, admitted, .. } = self.old_state();
        let (Some(remote), Some(why)) = (remote.filter(|_| admitted), wanted.borrow().why.clone())
        else {
            return;
        };
        if let Some(name) = self.events.peer().cloned() {
            self.tell_report(&Report::PeerDown { name, remote, why });
        }
    }

    fn old_state(&self) -> OldState {
        let status = self.engine.status();
        OldState {
            remote: status.remote,
            admitted: status.admitted,
            last_authentication: status.last_authentication,
            moves: self.engine.counters().moved,
            traffic: status.traffic,
        }
    }
}
