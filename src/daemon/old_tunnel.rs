//! The tunnel to one peer with the old program: what a server that has only this client would be.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use tokio::sync::watch;

use super::debounce::DebouncedChanges;
use super::events::Events;
use super::old::{Base, First, OldState, Order, Wanted};
use super::process::Process;
use super::{Failure, Settings};
use crate::auth::{Policy, Proof, Verifier};
use crate::engine::Report;
use crate::engine::config::{
    Admits, AlternateAddress, Config, Datapath, DatapathChoice, DeviceName, Expects, GatewayConfig,
    QueueConfig, Reply, RulesConfig, TunnelConfig,
};
use crate::engine::peers_file::{OldPeer, OldProof, PeerEntry};
use crate::tun::{Owner, StoredFds};

/// How long to wait after a tunnel could not be made before the next try.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Where the memories of these peers are, each in a directory with its name, below the state directory.
const STATE: &str = "old";
/// Alternate addresses: those of tunnels with the number of the port.
const ALTERNATE: Ipv4Addr = Ipv4Addr::new(172, 29, 0, 0);
/// Marks and routing tables, as of such a tunnel: "ip" in ASCII.
const MARK: u32 = 0x6970_0000;

/// Keeps the tunnel to one peer as it should be, until that is named no more.
pub fn run(order: Order) -> LocalBoxFuture<'static, ()> {
    keep(order).boxed_local()
}

async fn keep(order: Order) {
    let Order { base, mut kept, first, mut wanted, state } = order;
    let mut first = Some(first);
    let mut said = String::new();
    loop {
        let entry = wanted.borrow_and_update().entry.clone();
        let done = match entry.as_ref().and_then(|entry| Some((entry, entry.old()?))) {
            None => Ok(()),
            Some((entry, old)) => {
                let settings = settings_of(&base, entry, old);
                let owner = (Owner::OldPeer(old.port), std::mem::take(&mut kept));
                match settings {
                    Ok(settings) => {
                        let ends = (&mut wanted, first.take());
                        let ours = (base.events.about(entry.name.clone()), owner);
                        serve(&settings, base.datapath, ours, ends, &state).await
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        state.take();
        first = None;
        match done {
            // It should be another one, or none for now.
            Ok(()) if entry.is_some() => said.clear(),
            Ok(()) => {
                said.clear();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(failure) => {
                let why = failure.to_string();
                if said != why {
                    tracing::error!("{why}; trying again");
                    said = why;
                }
                let _ = tokio::time::timeout(RETRY_AFTER, wanted.changed()).await;
            }
        }
    }
}

/// Runs the tunnel to one peer until it should be another one.
async fn serve(
    settings: &Settings,
    datapath: Datapath,
    (events, owner): (Events, (Owner, StoredFds)),
    (wanted, first): (&mut watch::Receiver<Wanted>, Option<First>),
    state: &RefCell<OldState>,
) -> Result<(), Failure> {
    std::fs::create_dir_all(&settings.state_dir).map_err(Failure::system("keep a memory"))?;
    let looks_at_routes = settings.tunnel().asks_for_routing();
    let mut changes = DebouncedChanges::open(looks_at_routes).map_err(Failure::Netlink)?;
    let mut process = Process::open_on(settings, datapath, owner).await?;
    process.events = events;
    process.start().await?;
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

/// What a server that has only this client would be started with.
fn settings_of(base: &Base, entry: &PeerEntry, old: &OldPeer) -> Result<Settings, Failure> {
    let Base { settings, datapath, .. } = base;
    let hub = settings.tunnel();
    let port = old.port;
    let address = entry.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let no_address = || Failure::Generic("it has no IPv4 address inside the tunnel".to_owned());
    let tunnel = TunnelConfig {
        device: device(&hub.device, port),
        inner: old.server_address.unwrap_or(hub.inner),
        inner_peer: Ipv4Net::from(address.ok_or_else(no_address)?),
        inner6: None,
        port,
        alternate: AlternateAddress::WhenTaken(Ipv4Addr::from_bits(
            ALTERNATE.to_bits() + u32::from(port.get()),
        )),
        rules: RulesConfig { table: format!("{}-{port}", hub.rules.table), ..hub.rules.clone() },
        gateway: GatewayConfig {
            routes: entry.routes.clone(),
            mark: MARK + u32::from(port.get()),
            forward: hub.gateway.forward,
            masquerade: hub.gateway.masquerade.clone(),
            ..GatewayConfig::default()
        },
        among_peers: true,
        datapath: DatapathChoice::Only(*datapath),
        queues: Some(NonZeroUsize::MIN),
        ..hub.clone()
    };
    let proof = match &old.proof {
        OldProof::Token(token) => Proof::Token(token.clone()),
        OldProof::Key(key) => {
            let verifier = Verifier::new(key, entry.secret.clone(), None);
            let verifier = verifier.map_err(|why| Failure::Generic(format!("its key: {why}")))?;
            Proof::Key(verifier.without_tail())
        }
    };
    let max_len = settings.config.queue().map_or(QueueConfig::MAX_LEN, |queue| queue.max_len);
    let expects = Expects {
        queue: QueueConfig { number: port.get(), max_len },
        policy: Policy { remote_ip: None, remote_port: None, proof },
        lifetime: old.lifetime,
        reply: Reply::Silent,
        admits: Admits::One,
    };
    Ok(Settings {
        config: Config::server(tunnel, expects),
        state_dir: state_dir(settings, entry),
        runtime_dir: settings.runtime_dir.clone(),
    })
}

fn state_dir(settings: &Settings, entry: &PeerEntry) -> PathBuf {
    settings.state_dir.join(STATE).join(entry.name.as_str())
}

/// The link to a peer with the old program: unlike those to other peers, it has its port in its name.
fn device(hub: &DeviceName, port: NonZeroU16) -> DeviceName {
    let suffix = format!("_{port}");
    let room = DeviceName::MAX_LEN - suffix.len();
    let name: String = hub.as_str().chars().take(room).collect();
    format!("{name}{suffix}").parse().unwrap_or_else(|_| hub.clone())
}
