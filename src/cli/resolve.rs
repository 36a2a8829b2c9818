//! The options as given become the tunnel they mean, or one usage error.
//!
//! Pure. Facts of the host, such as whether an interface exists, are not looked at here.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use super::defaults::Number;
use super::options::{Options, RpFilter};
use super::proof;
use super::usage::UsageError;
use super::value::unless_zero;
use super::{LogConfig, Run};
use crate::engine::config::{
    ClientConfig, Host, Outer, PrivateAddress, QueueConfig, Role, RulesConfig, ServerConfig,
    ServerName, SourceCheck, TunnelConfig,
};

/// Directories that the service manager names (systemd.exec(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// `$STATE_DIRECTORY`
    pub state: Option<PathBuf>,
    /// `$RUNTIME_DIRECTORY`
    pub runtime: Option<PathBuf>,
}

/// What `options` ask for.
///
/// # Errors
/// When something required is missing, or two options exclude each other.
pub fn resolve(options: &Options, directories: &Directories) -> Result<Run, UsageError> {
    if options.server && options.reauth_only {
        return Err(UsageError::ReauthOnServer);
    }
    let queue = options.queue_number.filter(|_| options.server);
    let number = Number::new(options.number, queue);
    let outer = outer(options)?;
    let mut warnings = Vec::new();
    let role = match options.server {
        true => Role::Server(server(options, number, outer, &mut warnings)?),
        false => Role::Client(client(options, number, outer, &mut warnings)?),
    };
    let device = match &role {
        Role::Server(server) => &server.tunnel.device,
        Role::Client(client) => &client.tunnel.device,
    };
    let below = |root: &str| PathBuf::from(root).join(device.as_str());
    let state_dir = options.memory_dir.clone().or(directories.state.clone());
    let runtime_dir = options.runtime_dir.clone().or(directories.runtime.clone());
    Ok(Run {
        log: log(options),
        state_dir: state_dir.unwrap_or_else(|| below("/var/lib/ipipou")),
        runtime_dir: runtime_dir.unwrap_or_else(|| below("/run/ipipou")),
        role,
        warnings,
    })
}

fn server(
    options: &Options,
    number: Number,
    outer: Outer,
    warnings: &mut Vec<String>,
) -> Result<ServerConfig, UsageError> {
    let (host, port) = remote(options);
    if (host.is_some() && !options.auth_by_remote_ip)
        || (port.is_some() && !options.auth_by_remote_port)
    {
        warnings.push(
            "a server learns the client's address: --fou-remote counts only with \
             --auth-by-remote-ip and --auth-by-remote-port"
                .to_owned(),
        );
    }
    let remote_ip = match (options.auth_by_remote_ip, host) {
        (false, _) => None,
        (true, Some(Host::Address(ip))) => Some(ip),
        (true, Some(Host::Name(name))) => return Err(UsageError::RemoteIpIsName(name)),
        (true, None) => return Err(UsageError::NoRemoteIp),
    };
    let remote_port = match (options.auth_by_remote_port, port) {
        (false, _) => None,
        (true, Some(port)) => Some(port.get()),
        (true, None) => return Err(UsageError::NoRemotePort),
    };
    Ok(ServerConfig {
        tunnel: tunnel(options, number, outer, warnings)?,
        queue: QueueConfig {
            number: options.queue_number.map_or_else(|| number.queue(), Ok)?,
            max_len: options.nfq_max_len.get(),
        },
        policy: proof::policy(options, remote_ip, remote_port, warnings)?,
        lifetime: unless_zero(options.auth_lifetime),
        reply: proof::reply(options, warnings),
    })
}

fn client(
    options: &Options,
    number: Number,
    outer: Outer,
    warnings: &mut Vec<String>,
) -> Result<ClientConfig, UsageError> {
    let (host, port) = remote(options);
    let host = host.ok_or(UsageError::NoServer)?;
    let port = port.ok_or(UsageError::NoServerPort)?;
    Ok(ClientConfig {
        tunnel: tunnel(options, number, outer, warnings)?,
        server: ServerName { host, port },
        credential: proof::credential(options, warnings),
        keepalive: unless_zero(options.keepalive),
    })
}

/// In place of an interface: the address that the route to the server has.
const AUTO: &str = "auto";

/// Our end; parts of `--fou-local` go before the single options.
fn outer(options: &Options) -> Result<Outer, UsageError> {
    let given = options.fou_local.clone().unwrap_or_default();
    let ip = given.ip.or(options.fou_local_ip);
    match (ip, given.device.or_else(|| options.fou_dev.clone())) {
        (Some(ip), Some(device)) if device.as_str() != AUTO => Ok(Outer::AddressOn(ip, device)),
        (Some(ip), Some(_) | None) => Ok(Outer::Address(ip)),
        (None, Some(device)) if device.as_str() != AUTO => Ok(Outer::Device(device)),
        (None, Some(_)) if options.server => Err(UsageError::AutoOnServer),
        (None, Some(_)) => Ok(Outer::Route),
        (None, None) => Err(UsageError::NoLocalEnd),
    }
}

fn tunnel(
    options: &Options,
    number: Number,
    outer: Outer,
    warnings: &mut Vec<String>,
) -> Result<TunnelConfig, UsageError> {
    let (inner, inner_peer) = inner(options, number)?;
    if inner == inner_peer {
        warnings.push(format!("--tunl-ip: {inner} is the address of both ends of the tunnel"));
    }
    let port = options.fou_local.as_ref().and_then(|local| local.port).or(options.fou_local_port);
    let private = options.fou_local_ip_alt.map_or_else(|| number.private(), Ok)?;
    Ok(TunnelConfig {
        device: options.tunl_dev.clone().map_or_else(|| number.device(), Ok)?,
        inner,
        inner_peer,
        outer,
        port: port.map_or_else(|| number.port(), Ok)?,
        private: match options.force_fou_local_ip_alt {
            true => PrivateAddress::Always(private),
            false => PrivateAddress::WhenTaken(private),
        },
        // The parser lets only the last of the two stand.
        checksum: (options.encap_csum || options.no_encap_csum).then_some(options.encap_csum),
        source_check: match options.rp_filter {
            RpFilter::Strict => SourceCheck::Strict,
            RpFilter::Loose => SourceCheck::Loose,
            RpFilter::Off => SourceCheck::Off,
        },
        auth_ttl: options.auth_packet_ttl.map(|ttl| ttl.get()),
        rules: rules(options, number, warnings),
    })
}

fn rules(options: &Options, number: Number, warnings: &mut Vec<String>) -> RulesConfig {
    let table = number.table(options.nft_table.as_deref().unwrap_or("ipipou"));
    if options.nft_table.is_some() {
        warnings.push(format!("--nft-table: every tunnel has its own table, here it is {table}"));
    }
    RulesConfig { table, counters: !options.no_nft_counter }
}

/// Both addresses inside the tunnel. A server's peer is one above it, a client's one below.
fn inner(options: &Options, number: Number) -> Result<(Ipv4Addr, Ipv4Addr), UsageError> {
    let inner = match (options.tunl_ip, options.server) {
        (Some(ip), _) => ip,
        (None, true) => number.server_inner()?,
        (None, false) => return Err(UsageError::NoInnerAddress),
    };
    let beside = match options.server {
        true => inner.to_bits().checked_add(1),
        false => inner.to_bits().checked_sub(1),
    };
    let beside = beside
        .map(Ipv4Addr::from_bits)
        .filter(|ip| !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast());
    match (options.tunl_peer_ip, beside) {
        (Some(peer), _) | (None, Some(peer)) => Ok((inner, peer)),
        (None, None) => Err(UsageError::NoPeerAddress(inner)),
    }
}

/// The other end; parts of `--fou-remote` go before the single options.
fn remote(options: &Options) -> (Option<Host>, Option<NonZeroU16>) {
    let given = options.fou_remote.clone().unwrap_or_default();
    (given.host.or_else(|| options.fou_remote_ip.clone()), given.port.or(options.fou_remote_port))
}

fn log(options: &Options) -> LogConfig {
    LogConfig {
        verbosity: options.verbose.saturating_add(options.verb.unwrap_or(0)),
        time: !options.no_log_time,
        pid: !options.no_log_pid,
    }
}
