//! Makes the settings of the tunnel to one peer with the old program.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::memory_log::checksum;
use super::old::Base;
use super::{Failure, Settings};
use crate::auth::{Policy, Proof, Token, Verifier};
use crate::engine::config::{
    Admits, AlternateAddress, Config, Datapath, DatapathChoice, Expects, GatewayConfig,
    QueueConfig, Reply, RulesConfig, TunnelConfig, numbered,
};
use crate::engine::links;
use crate::engine::peers_file::{OldPeer, OldProof, PeerEntry};

/// Where the memories of these peers are, below the state directory.
pub const STATE: &str = "old";
/// What begins the names of their directories there: no peer can have such a name.
const ID: &str = "ID-";

/// What differs from one such server to another.
struct Place {
    port: NonZeroU16,
    server_address: Option<Ipv4Addr>,
    peer: Ipv4Net,
    routes: Vec<IpNet>,
    proof: Proof,
    lifetime: Option<Duration>,
    state_dir: PathBuf,
}

/// What a server that has only this client would be started with.
///
/// # Errors
/// When the peer has no IPv4 address inside the tunnel, or a weak key.
pub fn of(base: &Base, entry: &PeerEntry, old: &OldPeer) -> Result<Settings, Failure> {
    let address = entry.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let no_address = || Failure::Generic("it has no IPv4 address inside the tunnel".to_owned());
    let proof = match &old.proof {
        OldProof::Token(token) => Proof::Token(token.clone()),
        OldProof::Key(key) => {
            let verifier = Verifier::new(key, entry.secret.clone(), None);
            let verifier = verifier.map_err(|why| Failure::Generic(format!("its key: {why}")))?;
            Proof::Key(verifier.without_tail())
        }
    };
    let place = Place {
        port: old.port,
        server_address: old.server_address,
        peer: Ipv4Net::from(address.ok_or_else(no_address)?),
        routes: entry.routes.clone(),
        proof,
        lifetime: old.lifetime,
        state_dir: state_dir(&base.settings, entry, old),
    };
    Ok(at(&base.settings, base.datapath, place))
}

/// What a server on the kernel's datapath would be started with that lets nobody in at this port.
pub fn of_nobody(base: &Base, port: NonZeroU16, state_dir: PathBuf) -> Result<Settings, Failure> {
    let nobody = Token::new(b"nobody".to_vec()).map_err(|e| Failure::Generic(e.to_string()))?;
    let place = Place {
        port,
        server_address: None,
        peer: Ipv4Net::from(Ipv4Addr::UNSPECIFIED), // it is alone, as those that had the port
        routes: Vec::new(),
        proof: Proof::Token(nobody),
        lifetime: None,
        state_dir,
    };
    Ok(at(&base.settings, Datapath::Kernel, place))
}

fn at(settings: &Settings, datapath: Datapath, place: Place) -> Settings {
    let hub = settings.tunnel();
    let Place { port, server_address, peer, routes, proof, lifetime, state_dir } = place;
    let tunnel = TunnelConfig {
        device: links::of_old_peer(&hub.device, port),
        inner: server_address.unwrap_or(hub.inner),
        inner_peer: peer,
        inner6: None,
        port,
        alternate: AlternateAddress::WhenTaken(numbered::alternate(port.get())),
        rules: RulesConfig { table: format!("{}-{port}", hub.rules.table), ..hub.rules.clone() },
        gateway: GatewayConfig {
            routes,
            mark: numbered::mark(port.get()),
            forward: hub.gateway.forward,
            masquerade: hub.gateway.masquerade.clone(),
            ..GatewayConfig::default()
        },
        beside: Some(hub.device.clone()),
        datapath: DatapathChoice::Only(datapath),
        queues: Some(NonZeroUsize::MIN),
        ..hub.clone()
    };
    let max_len = settings.config.queue().map_or(QueueConfig::MAX_LEN, |queue| queue.max_len);
    let expects = Expects {
        queue: QueueConfig { number: port.get(), max_len },
        policy: Policy { remote_ip: None, remote_port: None, proof },
        lifetime,
        reply: Reply::Silent,
        admits: Admits::One,
    };
    Settings {
        config: Config::server(tunnel, expects),
        state_dir,
        runtime_dir: settings.runtime_dir.clone(),
    }
}

/// Where the memory of a peer is: by what it proves, whatever it is called, as its packets prove the same under
/// every name. Peers may have the same token, but not the same port.
pub fn state_dir(settings: &Settings, entry: &PeerEntry, old: &OldPeer) -> PathBuf {
    let what = match &old.proof {
        OldProof::Key(key) => [b"key", &key[..], entry.secret.as_bytes()].concat(),
        OldProof::Token(token) => {
            [b"token", &old.port.get().to_be_bytes()[..], token.as_bytes()].concat()
        }
    };
    let mut name = checksum(&what);
    name.truncate(32);
    settings.state_dir.join(STATE).join(format!("{ID}{name}"))
}
