//! The loop of a tunnel process: everything that happens becomes an event for the engine.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{LocalSet, yield_now};
use tokio::time::{Instant, sleep_until};

use super::control;
use super::debounce::DebouncedChanges;
use super::demand::{self, Demand};
use super::events::Events;
use super::listener::{Connected, Listener};
use super::old::Base;
use super::peers::{AtStart, Good, PeersReader};
use super::process::Process;
use super::reloads::{Checked, Reloads};
use super::request_socket::{self, Requests};
use super::requests::{Answer, Pending, Reply, Request};
use super::signals::{Caught, Signals};
use super::snapshot::Mistakes;
use super::{
    Failure, Settings, choice, leftovers, old_leftovers, old_tunnel, preflight, server_key,
};
use crate::auth::key_text;
use crate::engine::Event;
use crate::engine::config::{Config, HostName, PeerSource};
use crate::engine::driver::Driver as _;
use crate::engine::host::Family;
use crate::engine::table::Node;
use crate::host::clock::{self, Clock};
use crate::host::{Subjects, heap, open_files};
use crate::sources::names::LookedUp;
use crate::sources::{TableSource, names};
use crate::tun::{self, Owner};

/// How long a client waits at the end until its server has heard that it goes: three times 300 ms.
const GOODBYE: Duration = Duration::from_millis(900);
/// How soon a server's name is looked up again because the server may have moved.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);

/// Runs a tunnel until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not start, or what it could not remove.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    open_files::allow_all();
    let settings = &server_key::with_key(settings)?;
    match (settings.config.public_key().map(|key| key_text(&key)), settings.config.hub()) {
        (Some(key), Some(_)) => tracing::info!("public key of this server: {key}"),
        (Some(key), None) => tracing::info!("our public key is {key}: the other end needs it"),
        (None, _) => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start"))?;
    let result = runtime.block_on(LocalSet::new().run_until(serve(settings)));
    // A lookup or a fetch that is in progress delays nothing.
    runtime.shutdown_background();
    result.map_err(|failure| match preflight::is_service() {
        true => failure.of_service(),
        false => failure,
    })
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(Failure::system("catch signals"))?;
    // A server that is bound to an interface needs no route to the other end.
    let tunnel = settings.tunnel();
    let routes = settings.config.server_name().is_some()
        || tunnel.asks_for_routing()
        || tunnel.has_uplinks_by_route();
    let subjects = Subjects { routes, fast_path: tunnel.may_have_fast_path() };
    let mut changes = DebouncedChanges::open(subjects).map_err(Failure::Netlink)?;
    let hosts = match settings.config.table() {
        Some(source) => {
            let table = TableSource::load(source.clone(), &settings.state_dir).await;
            Some(table.map_err(Failure::Usage)?)
        }
        None => None,
    };
    let reader = PeersReader::of(settings);
    let members = match &reader {
        Some(reader) => Some(reader.at_start(preflight::is_service())?),
        None => None,
    };
    let demand = match (&hosts, &members) {
        (Some(hosts), _) => Demand { remotes: hosts.remotes(), isolated: None },
        (None, Some(members)) => members.demand(),
        (None, None) => Demand::default(),
    };
    let mut inherited = tun::inherited();
    let kept = inherited.remove(&Owner::Tunnel).unwrap_or_default();
    let chosen = choice::datapath(settings, !kept.is_nothing(), &demand).await?;
    if chosen.capabilities().open_files && kept.is_nothing() {
        leftovers::remove_of_kernel(settings, Owner::Tunnel).await;
    }
    let mut process = Process::open(settings, chosen, kept).await?;
    let hosts = hosts.map(|hosts| hosts.carried_by(process.chosen));
    let mut control = open_control(settings);
    let (mut answers, look_up_now) = keep_looking(&settings.config);
    let table_now = Arc::new(Notify::new());
    let family = watch::Sender::new(process.family_at_start);
    let mut tables = keep_table(settings, hosts, &family, &table_now, process.clock);
    if let Some(AtStart { set, faults }) = members {
        process.mistakes = faults.as_deref().map(Mistakes::now);
        match faults {
            None => {}
            // Its files belong to root, and the unit sends them right after the start (ExecStartPost).
            Some(faults) if preflight::is_service() => {
                let first = faults.lines().next().unwrap_or_default();
                tracing::info!(
                    "going on with the {} peers of the last good files, until `ipipou reload` sends \
                     others: {first}",
                    set.len()
                );
            }
            Some(faults) => {
                faults.lines().for_each(|fault| tracing::error!("{fault}"));
                tracing::error!("going on with the {} peers of the last good files", set.len());
            }
        }
        process.take_peers(set).await;
        heap::give_back();
    }
    let mut reloads = Reloads::new(reader, process.chosen);
    let mut asked = open_requests(settings, &process.events);
    if let Some(table) = next_table(&mut tables, &settings.config).await {
        // This is done before the host is read, so that what an earlier process made for these nodes is
        // kept.
        process.handle(Event::Hosts(table)).await;
    }

    process.start().await?;
    let base = Base {
        settings: settings.clone(),
        datapath: process.chosen,
        events: process.events.clone(),
        run: old_tunnel::run,
        memories: std::cell::RefCell::default(),
    };
    old_leftovers::remove(&base, process.old.entries(), clock::unix()).await;
    process.old.start(base, inherited, clock::unix());
    let mut is_ready = false;
    let mut leaves_until = None;
    let mut looked_up = process.clock.elapsed();
    loop {
        if !is_ready && process.old.are_made() {
            is_ready = true;
            process.notify_ready();
        }
        if let Some(until) = leaves_until
            && (process.clock.elapsed() >= until || !process.says_goodbye())
        {
            return process.end().await;
        }
        let now = process.clock.elapsed();
        if now.saturating_sub(looked_up) >= LOOK_UP_AGAIN && process.engine.take_may_have_moved() {
            looked_up = now;
            look_up_now.iter().for_each(|now| now.notify_one());
        }
        family.send_if_modified(|last| {
            let family = process.engine.family();
            std::mem::replace(last, family) != family
        });
        // A socket that always has something to read must not keep deadlines from being met.
        if process.is_due() {
            process.meet_deadline().await;
        }
        process.go_on_with_ping().await;
        process.go_on_with_list();
        let made = process.old.made();
        let wake = process.pings.next_deadline().min(leaves_until.unwrap_or(Duration::MAX));
        let wake = (wake < Duration::MAX).then(|| process.clock.instant(wake));
        let done = tokio::select! {
            biased;
            signal = signals.next() => match signal {
                // Asked twice, it does not wait.
                Caught::End if leaves_until.is_some() => process.end().await.map(|()| true)?,
                Caught::End => {
                    leaves_until = Some(process.clock.elapsed() + GOODBYE);
                    process.leave().await
                }
                Caught::Reauthenticate => {
                    look_up_now.iter().chain([&table_now]).for_each(|now| now.notify_one());
                    match settings.config.peers {
                        PeerSource::One(_) => process.handle(Event::ReauthRequested).await,
                        PeerSource::Hub(_) => false, // its peers authenticate
                        PeerSource::Table(_) => false, // the table is read again
                    }
                }
                Caught::Reload => {
                    match &settings.config.peers {
                        PeerSource::Table(_) => table_now.notify_one(),
                        PeerSource::One(_) => ignore("SIGHUP"),
                        PeerSource::Hub(_) => reloads.read_again(),
                    }
                    false
                }
                Caught::Ignored(name) => {
                    ignore(name);
                    false
                }
            },
            Some((server, addresses)) = answers.recv() => {
                process.handle(Event::Resolved { server, addresses }).await
            }
            Some(table) = next_table(&mut tables, &settings.config) => {
                process.handle(Event::Hosts(table)).await
            }
            asker = next_asker(&mut control) => process.tell(asker).await,
            checked = reloads.checked() => reloaded(&mut process, checked).await,
            Some(pending) = next_request(&mut asked) => {
                if matches!(pending.0, Request::Reload(None)) {
                    table_now.notify_one(); // of a node
                }
                process.fulfil(pending, &mut reloads).await
            }
            () = made, if !is_ready => false,
            () = reach(wake) => false,
            // This comes late, because anybody can send as many packets as they like.
            next = process.next(&mut changes) => process.follow(next).await?,
            // Packets that came meanwhile are seen first.
            () = yield_now(), if process.lists.are_asked_for() => false,
        };
        if done {
            return Ok(());
        }
    }
}

/// Waits until then, if there is such an instant.
async fn reach(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// Follows files that were checked; with a mistake in them, everything stays as it was. True at the end.
async fn reloaded(process: &mut Process<'_>, Checked { read, asked }: Checked) -> bool {
    let is_told = asked.as_ref().is_some_and(|asked| !asked.is_closed());
    let (done, said) = match read {
        Ok(Good { set, exceeds: Some(why) }) => {
            process.note_mistakes(&why);
            if !is_told {
                tracing::error!("{why}");
            }
            let set = demand::reduced(set, process.chosen, |name| process.engine.entry_of(name));
            (process.take_peers(set).await, Answer::refused(why))
        }
        Ok(Good { set, exceeds: None }) => {
            process.mistakes = None;
            let done = process.take_peers(set).await;
            let device = &process.settings.tunnel().device;
            let loaded = process.engine.loaded().unwrap_or_default();
            (done, Answer::done(format!("{device}: {loaded}")))
        }
        Err(faults) => {
            process.note_mistakes(&faults);
            if !is_told {
                faults.lines().for_each(|fault| tracing::error!("{fault}"));
                tracing::error!("the files of peers have mistakes: everything stays as it was");
            }
            (false, Answer::refused(faults))
        }
    };
    let _ = asked.map(|asked| asked.send(Reply::Said(said))); // the caller may be gone
    done
}

/// Opens the socket for requests; a tunnel works without one.
fn open_requests(settings: &Settings, events: &Events) -> Option<Requests> {
    let directory = &settings.runtime_dir;
    request_socket::listen(directory, events)
        .inspect_err(|e| {
            tracing::warn!(
                "{}: {e}: `ipipou reload` will not reach this tunnel",
                directory.display()
            );
        })
        .ok()
}

async fn next_request(asked: &mut Option<Requests>) -> Option<Pending> {
    match asked {
        Some(asked) => asked.next().await,
        None => pending().await,
    }
}

fn ignore(signal: &str) {
    tracing::warn!("{signal} means nothing to ipipou: ignored");
}

/// Opens the control socket; a tunnel works without one.
fn open_control(settings: &Settings) -> Option<Listener> {
    control::listen(&settings.runtime_dir)
        .inspect_err(|e| {
            tracing::warn!(
                "{}: {e}: `ipipou show` will not see this tunnel; see --runtime-dir",
                settings.runtime_dir.display()
            );
        })
        .ok()
}

/// Looks up the names of a client's servers: the addresses of each come with its number. Also what has
/// them looked up now.
fn keep_looking(config: &Config) -> (mpsc::Receiver<LookedUp>, Vec<Arc<Notify>>) {
    let (sender, answers) = mpsc::channel(1);
    let mut now = Vec::new();
    for (number, server) in config.server_names().enumerate() {
        match &server.host {
            HostName::Name(name) => {
                let (name, sender, at_once) =
                    (name.clone(), sender.clone(), Arc::new(Notify::new()));
                now.push(Arc::clone(&at_once));
                tokio::spawn(async move {
                    names::keep_looking(number, name, sender, &at_once).await;
                });
            }
            HostName::Address(_) => {}
        }
    }
    (answers, now)
}

/// Reads the table of a node again and again.
fn keep_table(
    settings: &Settings,
    hosts: Option<TableSource>,
    family: &watch::Sender<Family>,
    now: &Arc<Notify>,
    clock: Clock,
) -> mpsc::Receiver<Vec<Node>> {
    let (sender, tables) = mpsc::channel(1);
    if let Some(hosts) = hosts {
        let (port, family, now) = (settings.tunnel().port, family.subscribe(), Arc::clone(now));
        tokio::spawn(async move { hosts.keep(port, family, sender, &now, clock).await });
    }
    tables
}

async fn next_table(tables: &mut mpsc::Receiver<Vec<Node>>, config: &Config) -> Option<Vec<Node>> {
    match config.peers {
        PeerSource::Table(_) => tables.recv().await,
        PeerSource::One(_) | PeerSource::Hub(_) => None,
    }
}

async fn next_asker(control: &mut Option<Listener>) -> Connected {
    match control {
        Some(control) => control.accept().await,
        None => pending().await,
    }
}
