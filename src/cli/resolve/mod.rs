//! The options as given become the tunnel they mean, or one usage error.
//!
//! Pure. Facts of the host, such as whether an interface exists, are not looked at here.

mod auth;
mod error;
mod gateway;
mod inner;
mod number;
mod peers;
mod unused;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use self::error::UsageError;
use self::number::Number;
use super::invocation::{LogConfig, Run};
use super::options::{DatapathOption, Options, RpFilter};
use super::value::unless_zero;
use crate::engine::config::{
    AlternateAddress, ClientConfig, Datapath, DatapathChoice, HostName, LEAST_MTU_V6, LearnConfig,
    Masquerade, NodeConfig, Outer, QueueConfig, Role, RulesConfig, ServerConfig, ServerName,
    SourceCheck, TunnelConfig,
};

/// Directories that the service manager names (systemd.exec(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// `$STATE_DIRECTORY`
    pub state: Option<PathBuf>,
    /// `$RUNTIME_DIRECTORY`
    pub runtime: Option<PathBuf>,
}

/// Who is at the other end of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    Server,
    Client,
    /// Learned.
    Clients,
    /// Of a table.
    Hosts,
}

/// What the rest follows from.
struct Basis<'a> {
    options: &'a Options,
    number: Number,
    ends: Ends,
    outer: Outer,
}

/// What `options` ask for.
///
/// # Errors
/// When something required is missing, or two options exclude each other.
pub fn resolve(options: &Options, directories: &Directories) -> Result<Run, UsageError> {
    let mut warnings = Vec::new();
    let hosts = peers::hosts(options)?;
    let learn = peers::learn(options)?;
    if options.server && options.reauth_only {
        return Err(UsageError::ReauthOnServer);
    }
    let ends = match (&hosts, &learn, options.server) {
        (Some(_), _, _) => Ends::Hosts,
        (None, Some(_), _) => Ends::Clients,
        (None, None, true) => Ends::Client,
        (None, None, false) => Ends::Server,
    };
    if hosts.is_none() {
        auth::check_files(options)?;
    }
    let queue = match ends {
        Ends::Client | Ends::Clients => options.queue_number,
        Ends::Server | Ends::Hosts => None,
    };
    warnings.extend(unused::warning(options, ends));
    let number = Number::new(options.number, queue);
    let basis = Basis { options, number, ends, outer: outer(options, ends)? };
    let role = match hosts {
        Some(hosts) => {
            let tunnel = tunnel(&basis, None, &mut warnings)?;
            Role::Node(NodeConfig { tunnel, hosts })
        }
        None if options.server => Role::Server(server(&basis, learn, &mut warnings)?),
        None => Role::Client(client(&basis, &mut warnings)?),
    };
    Ok(Run {
        log: log(options),
        state_dir: options.memory_dir.clone().or(directories.state.clone()),
        runtime_dir: options.runtime_dir.clone().or(directories.runtime.clone()),
        role,
        warnings,
    })
}

fn server(
    basis: &Basis,
    learn: Option<LearnConfig>,
    warnings: &mut Vec<String>,
) -> Result<ServerConfig, UsageError> {
    let options = basis.options;
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
        (true, Some(HostName::Address(ip))) => Some(ip),
        (true, Some(HostName::Name(name))) => return Err(UsageError::RemoteIpIsName(name)),
        (true, None) => return Err(UsageError::NoRemoteIp),
    };
    let remote_port = match (options.auth_by_remote_port, port) {
        (false, _) => None,
        (true, Some(port)) => Some(port.get()),
        (true, None) => return Err(UsageError::NoRemotePort),
    };
    let tunnel = tunnel(basis, remote_ip, warnings)?;
    let policy = auth::policy(options, remote_ip, remote_port, warnings)?;
    let reply = auth::reply(options, &policy, warnings);
    Ok(ServerConfig {
        tunnel,
        queue: QueueConfig {
            number: options.queue_number.map_or_else(|| basis.number.queue(), Ok)?,
            max_len: options.nfq_max_len.get(),
        },
        policy,
        lifetime: unless_zero(options.auth_lifetime),
        reply,
        learn,
    })
}

fn client(basis: &Basis, warnings: &mut Vec<String>) -> Result<ClientConfig, UsageError> {
    let options = basis.options;
    let (host, port) = remote(options);
    let host = host.ok_or(UsageError::NoServer)?;
    let port = port.ok_or(UsageError::NoServerPort)?;
    let address = match &host {
        HostName::Address(address) => Some(*address),
        HostName::Name(_) => None,
    };
    Ok(ClientConfig {
        tunnel: tunnel(basis, address, warnings)?,
        server: ServerName { host, port },
        credential: auth::credential(options, warnings),
        keepalive: unless_zero(options.keepalive),
    })
}

/// In place of an interface: the address that the route to the server has.
const AUTO: &str = "auto";

/// Our end; parts of `--fou-local` go before the single options.
fn outer(options: &Options, ends: Ends) -> Result<Outer, UsageError> {
    let given = options.fou_local.clone().unwrap_or_default();
    let ip = given.ip.or(options.fou_local_ip);
    match (ip, given.device.or_else(|| options.fou_dev.clone())) {
        (Some(ip), Some(device)) if device.as_str() != AUTO => Ok(Outer::AddressOn(ip, device)),
        (Some(ip), Some(_) | None) => Ok(Outer::Address(ip)),
        (None, Some(device)) if device.as_str() != AUTO => Ok(Outer::Device(device)),
        (None, Some(_)) if ends == Ends::Server => Ok(Outer::Route),
        (None, Some(_)) => Err(UsageError::AutoOnServer),
        (None, None) => Err(UsageError::NoLocalEnd),
    }
}

/// `remote` is the other end's outer address, if it is known from the start.
fn tunnel(
    basis: &Basis,
    remote: Option<IpAddr>,
    warnings: &mut Vec<String>,
) -> Result<TunnelConfig, UsageError> {
    let &Basis { options, number, ends, ref outer } = basis;
    let (inner, inner_peer) = inner::inner(options, number, ends, warnings)?;
    let port = options.fou_local.as_ref().and_then(|local| local.port).or(options.fou_local_port);
    let alternate = options.fou_local_ip_alt.map_or_else(|| number.alternate(), Ok)?;
    let device = options.tunl_dev.clone().map_or_else(|| number.device(), Ok)?;
    let gateway = gateway::gateway(options, number, ends, warnings)?;
    if gateway.masquerade == Some(Masquerade::By(device.clone())) {
        return Err(UsageError::MasqueradeByTunnel(device));
    }
    Ok(TunnelConfig {
        device,
        inner,
        inner_peer,
        inner6: options.ip6,
        mtu: mtu(options)?,
        outer: outer.clone(),
        port: port.map_or_else(|| number.port(), Ok)?,
        alternate: match options.force_fou_local_ip_alt {
            true => AlternateAddress::Always(alternate),
            false => AlternateAddress::WhenTaken(alternate),
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
        gateway,
        datapath: datapath(basis, remote)?,
        queues: options.tun_queues,
    })
}

/// What is asked for, if the interface can have its addresses then.
fn mtu(options: &Options) -> Result<Option<u32>, UsageError> {
    match options.mtu {
        Some(mtu) if options.ip6.is_some() && mtu < LEAST_MTU_V6 => {
            Err(UsageError::MtuForIpv6(mtu))
        }
        mtu => Ok(mtu),
    }
}

fn datapath(basis: &Basis, remote: Option<IpAddr>) -> Result<DatapathChoice, UsageError> {
    let options = basis.options;
    let local = match basis.outer {
        Outer::Address(address) | Outer::AddressOn(address, _) => Some(address),
        Outer::Device(_) | Outer::Route => None,
    };
    if let (Some(local), Some(remote)) = (local, remote)
        && local.is_ipv4() != remote.is_ipv4()
    {
        return Err(UsageError::TwoFamilies { local, remote });
    }
    let datapath = match options.datapath {
        DatapathOption::Auto => return Ok(DatapathChoice::Auto),
        DatapathOption::Tun => return Ok(DatapathChoice::Only(Datapath::Tun)),
        DatapathOption::Kernel => Datapath::Kernel,
    };
    let is_v6 = |address: Option<IpAddr>| address.is_some_and(|address| address.is_ipv6());
    let for_tun = [
        ("--learn", basis.ends == Ends::Clients),
        ("--ip6", options.ip6.is_some()),
        ("an IPv6 address in --fou-local", is_v6(local)),
        ("an IPv6 address in --fou-remote", is_v6(remote)),
    ];
    if let Some((option, _)) = for_tun.into_iter().find(|(_, given)| *given) {
        return Err(UsageError::NotInKernel(option));
    }
    if options.tun_queues.is_some() {
        return Err(UsageError::NotInKernel("--tun-queues"));
    }
    Ok(DatapathChoice::Only(datapath))
}

fn rules(options: &Options, number: Number, warnings: &mut Vec<String>) -> RulesConfig {
    let table = number.table(options.nft_table.as_deref().unwrap_or("ipipou"));
    if options.nft_table.is_some() {
        warnings.push(format!("--nft-table: every tunnel has its own table, here it is {table}"));
    }
    RulesConfig { table, counters: !options.no_nft_counter }
}

/// The other end; parts of `--fou-remote` go before the single options.
fn remote(options: &Options) -> (Option<HostName>, Option<NonZeroU16>) {
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
