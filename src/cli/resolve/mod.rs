//! Turns the options as given into the tunnel that they mean, or into one usage error.
//!
//! It is pure: it does not look at the host, so it cannot know whether an interface exists.

mod auth;
mod error;
mod gateway;
mod inner;
mod number;
mod peers;
mod resolver;
mod tunnel;

use std::num::NonZeroU16;
use std::path::PathBuf;

pub use self::auth::default_secret;

use self::error::UsageError;
use self::peers::Peers;
use self::resolver::{Resolver, number_of};
use self::tunnel::{outer, tunnel};
use super::endpoint::RemoteEnd;
use super::invocation::{LogConfig, Run};
use super::options::Options;
use super::secrets::Secrets;
use super::value::unless_zero;
use crate::auth::Credential;
use crate::engine::config::{
    Admits, AnsweringServer, Config, DeviceName, Expects, HostName, HubConfig, Outer, PeerSource,
    QueueConfig, ServerName, Shows, StandbyServer,
};

/// How many hellos wait in the queue at least: many clients of a restarted server come at once.
const HELLOS: u32 = 1024;

/// The directories that the service manager names (systemd.exec(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// `$STATE_DIRECTORY`
    pub state: Option<PathBuf>,
    /// `$RUNTIME_DIRECTORY`
    pub runtime: Option<PathBuf>,
}

/// Returns what `options` ask for.
///
/// # Errors
/// When something required is missing, or two options exclude each other.
pub fn resolve(
    options: &Options,
    secrets: &Secrets,
    directories: &Directories,
) -> Result<Run, UsageError> {
    let mut resolver = Resolver::new(options, secrets, Peers::of(options)?)?;
    auth::check_files(&resolver)?;
    let outer = outer(&resolver)?;
    let config = match resolver.peers.clone() {
        Peers::Server => client(&mut resolver, outer)?,
        Peers::Client => server(&mut resolver, outer, Admits::One)?,
        Peers::Clients(learn) => server(&mut resolver, outer, Admits::Shared(learn))?,
        Peers::Table(hosts) => {
            let tunnel = tunnel(&mut resolver, outer, None)?;
            Config { tunnel, peers: PeerSource::Table(hosts) }
        }
        Peers::Members(path) => {
            let tunnel = tunnel(&mut resolver, outer, None)?;
            let pool = inner::pool(options, &tunnel)?;
            let (seed, secret) = auth::of_members(&mut resolver);
            let number = options.queue_number.map_or_else(|| resolver.number.queue(), Ok)?;
            let queue = QueueConfig { number, max_len: options.nfq_max_len.get().max(HELLOS) };
            Config {
                tunnel,
                peers: PeerSource::Hub(HubConfig { peers: path, seed, pool, secret, queue }),
            }
        }
    };
    Ok(Run {
        log: log(options),
        state_dir: options.memory_dir.clone().or(directories.state.clone()),
        runtime_dir: options.runtime_dir.clone().or(directories.runtime.clone()),
        config,
        warnings: resolver.warnings,
    })
}

/// Returns the interface of the tunnel that `options` ask for.
///
/// # Errors
/// When its number is too big for one.
pub fn device(options: &Options) -> Result<DeviceName, UsageError> {
    tunnel::device(options, number_of(options, &Peers::of(options)?))
}

fn server(resolver: &mut Resolver, outer: Outer, admits: Admits) -> Result<Config, UsageError> {
    let options = resolver.options;
    let (host, port) = remote(options);
    if options.fou_remote.as_ref().is_some_and(|remotes| !remotes.others.is_empty()) {
        return Err(UsageError::SeveralClients);
    }
    if (host.is_some() && !options.auth_by_remote_ip)
        || (port.is_some() && !options.auth_by_remote_port)
    {
        resolver.warn(
            "a server learns the client's address: --fou-remote counts only with \
             --auth-by-remote-ip and --auth-by-remote-port",
        );
    }
    let remote_ip = match (options.auth_by_remote_ip, host) {
        (false, _) => None,
        (true, Some(HostName::Address(ip))) => Some(ip),
        (true, Some(HostName::Name(name))) => return Err(UsageError::RemoteIpIsName(name)),
        (true, None) => return Err(UsageError::NoRemoteIp),
    };
    let remote_port = match (options.auth_by_remote_port, port) {
        (false, _) => None,
        (true, Some(port)) => Some(port.get()),
        (true, None) => return Err(UsageError::NoRemotePort),
    };
    let tunnel = tunnel(resolver, outer, remote_ip)?;
    let policy = auth::policy(resolver, remote_ip, remote_port)?;
    let reply = auth::reply(resolver, &policy);
    let expects = Expects {
        queue: QueueConfig {
            number: options.queue_number.map_or_else(|| resolver.number.queue(), Ok)?,
            max_len: options.nfq_max_len.get(),
        },
        policy,
        lifetime: unless_zero(options.auth_lifetime),
        reply,
        admits,
    };
    Ok(Config::server(tunnel, expects))
}

fn client(resolver: &mut Resolver, outer: Outer) -> Result<Config, UsageError> {
    let options = resolver.options;
    let (host, port) = remote(options);
    let host = host.ok_or(UsageError::NoServer)?;
    let port = port.ok_or(UsageError::NoServerPort)?;
    let others = other_servers(options, &ServerName { host: host.clone(), port })?;
    for address in others.iter().filter_map(|server| server.host.address()) {
        tunnel::check_standby(options, &outer, address)?;
    }
    let tunnel = tunnel(resolver, outer, host.address())?;
    let credential = auth::credential(resolver);
    let is_alone = others.is_empty();
    let server = answering(resolver, &credential, others)?;
    if server.is_none() && tunnel.inner_from_server {
        return Err(UsageError::AutoInner);
    }
    if server.is_none() && !is_alone {
        return Err(UsageError::SeveralServers);
    }
    let shows = Shows { credential, keepalive: unless_zero(options.keepalive), server };
    Ok(Config::client(tunnel, ServerName { host, port }, shows))
}

/// Returns the servers that are asked when the first does not answer.
fn other_servers(options: &Options, first: &ServerName) -> Result<Vec<ServerName>, UsageError> {
    let others = options.fou_remote.as_ref().map(|remotes| remotes.others.as_slice());
    let mut servers = vec![first.clone()];
    for RemoteEnd { host, port } in others.unwrap_or_default() {
        let host = host.clone().ok_or(UsageError::NoServer)?;
        let port = port.or(options.fou_remote_port).ok_or(UsageError::NoServerPort)?;
        let server = ServerName { host, port };
        if servers.contains(&server) {
            return Err(UsageError::ServerTwice(server));
        }
        servers.push(server);
    }
    Ok(servers.split_off(1))
}

/// Returns the server that answers hellos, if it is one that we can ask: we know its key, and have our own.
fn answering(
    resolver: &mut Resolver,
    credential: &Credential,
    others: Vec<ServerName>,
) -> Result<Option<AnsweringServer>, UsageError> {
    let options = resolver.options;
    let key = options.auth.auth_remote_pubkey_b64.as_ref();
    let keys = match (credential.public().is_some(), key, options.protocol) {
        (_, _, Some(1)) | (_, None, None) => return Ok(None),
        (true, Some(key), _) => key,
        (false, _, Some(_)) | (_, None, Some(_)) => return Err(UsageError::NoConversation),
        (false, Some(_), None) => {
            resolver.warn(
                "--auth-remote-pubkey-b64: a client without a key of its own has no use for it",
            );
            return Ok(None);
        }
    };
    if options.reauth_only {
        return Err(UsageError::ReauthOfConversation);
    }
    let number = options.queue_number.map_or_else(|| resolver.number.queue(), Ok)?;
    let queue = QueueConfig { number, max_len: options.nfq_max_len.get() };
    let (given, servers) = (1 + keys.others.len(), 1 + others.len());
    if ![1, servers].contains(&given) {
        return Err(UsageError::KeysOfServers { keys: given, servers });
    }
    let standby = others.into_iter().enumerate().map(|(number, at)| {
        let key = keys.others.get(number).unwrap_or(&keys.first);
        StandbyServer { at, key: *key.as_bytes() }
    });
    let standby = standby.collect();
    Ok(Some(AnsweringServer { key: *keys.first.as_bytes(), queue, standby }))
}

/// Returns the peer's address and port. The parts of `--fou-remote` win over the single options.
fn remote(options: &Options) -> (Option<HostName>, Option<NonZeroU16>) {
    let given = options.fou_remote.clone().unwrap_or_default().first;
    (given.host.or_else(|| options.fou_remote_ip.clone()), given.port.or(options.fou_remote_port))
}

fn log(options: &Options) -> LogConfig {
    LogConfig {
        verbosity: options.verbose.saturating_add(options.verb.unwrap_or(0)),
        time: !options.no_log_time,
        pid: !options.no_log_pid,
    }
}
