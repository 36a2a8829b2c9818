//! Parses `ipipou peer`: what is asked about the peers of a server, and which server that is.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::address::PeerAddress;
use super::error::{CliError, usage};
use super::invocation::{Invocation, PeersQuestion};
use super::options::command::{RunningOptions, ServerOptions};
use super::options::{Options, PeerCommand};
use super::{arguments, check, conf_file, import, places, resolve};
use crate::engine::config::{Config, DeviceName, TunnelName};
use crate::engine::peers_file::edit::{ClientConf, Edit, NewPeer};

/// Returns what is asked.
///
/// # Errors
/// When it is about the files of a server, and that has none, or its own file has a mistake.
pub fn asked(about: PeerCommand, command: &mut clap::Command) -> Result<Invocation, CliError> {
    Ok(match about {
        PeerCommand::List { json, state, running } => {
            let RunningOptions { tunnel, runtime_root, help: _ } = running;
            let tunnel = named(tunnel, command);
            Invocation::Peers(PeersQuestion { name: None, state, tunnel, runtime_root, json })
        }
        PeerCommand::Show { json, name, running } => {
            let RunningOptions { tunnel, runtime_root, help: _ } = running;
            let (name, tunnel) = (Some(name), named(tunnel, command));
            Invocation::Peers(PeersQuestion { name, state: None, tunnel, runtime_root, json })
        }
        PeerCommand::Kick { name, running } => {
            let RunningOptions { tunnel, runtime_root, help: _ } = running;
            Invocation::Kick { peer: name, tunnel: named(tunnel, command), runtime_root }
        }
        PeerCommand::Add {
            name,
            public_key,
            client_conf,
            server_host,
            address,
            route,
            expires,
            server,
        } => {
            if public_key.is_none() && client_conf.is_none() {
                return Err(usage(
                    "peer add: give its --public-key, or --client-conf FILE, which makes a key pair for it",
                ));
            }
            let host = server_host.map(|host| host.to_string());
            let address = given(address)?;
            let peer = NewPeer {
                name,
                public_key: public_key.map(|key| *key.as_bytes()),
                addresses: address,
                routes: route,
                expires,
                client_conf: client_conf.map(|path| ClientConf { path, server: host }),
            };
            return edit(Edit::Add(peer), server, command);
        }
        PeerCommand::Import { files, dry_run, server } => {
            let ServerOptions { file, runtime_root, help: _ } = server;
            let file = file.map_or_else(|| only_server(command), Ok)?;
            let (config, tunnel) = configured(&file, command)?;
            let servers = import::servers(&files, command)?;
            Invocation::ImportPeers { servers, dry_run, config, tunnel, runtime_root }
        }
        PeerCommand::Enable { names, server } => return edit(Edit::Enable(names), server, command),
        PeerCommand::Disable { names, server } => {
            return edit(Edit::Disable(names), server, command);
        }
        PeerCommand::Remove { names, server } => return edit(Edit::Remove(names), server, command),
    })
}

/// Returns the addresses of a new peer; none: what is free.
fn given(addresses: Vec<PeerAddress>) -> Result<Vec<IpAddr>, CliError> {
    let given = |address: &PeerAddress| match address {
        PeerAddress::Auto => None,
        PeerAddress::Given(address) => Some(*address),
    };
    let all: Vec<_> = addresses.iter().filter_map(given).collect();
    match all.len() {
        0 => Ok(all),
        len if len == addresses.len() => Ok(all),
        _ => Err(usage("--address auto stands alone: the pool says of which families it is")),
    }
}

fn edit(
    edit: Edit,
    server: ServerOptions,
    command: &mut clap::Command,
) -> Result<Invocation, CliError> {
    let file = server.file.map_or_else(|| only_server(command), Ok)?;
    let (config, tunnel) = configured(&file, command)?;
    Ok(Invocation::EditPeers { edit, config, tunnel, runtime_root: server.runtime_root })
}

/// Returns what a `.conf` file asks for, and the name of its tunnel.
pub fn configured(
    file: &Path,
    command: &mut clap::Command,
) -> Result<(Box<Config>, String), CliError> {
    let tunnel = places::conf_path(file);
    let tunnel = tunnel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let Invocation::Checked { config, .. } = check::check(file, None, command)? else {
        return Err(usage("the file means no tunnel"));
    };
    Ok((config, tunnel))
}

/// Returns the name of the only file in /etc/ipipou that has `peers`.
fn only_server(command: &mut clap::Command) -> Result<PathBuf, CliError> {
    let (mut servers, mut mistakes) = (Vec::new(), Vec::new());
    for name in places::conf_names() {
        match by_file(&name, command) {
            Ok(Some(_)) => servers.push(name),
            Ok(None) => {}
            // It may be the one that is meant, if it says so.
            Err(error) if names_peers(&name) => mistakes.push(error.to_string()),
            Err(_) => {}
        }
    }
    if !mistakes.is_empty() {
        let meant = "which server is meant? give its file, -i NAME";
        return Err(CliError::Usage(mistakes.join("\n") + "\n" + meant));
    }
    match (servers.pop(), servers.is_empty()) {
        (Some(name), true) => Ok(name.into()),
        (Some(_), false) => {
            Err(usage("several files in /etc/ipipou have `peers`: which one? -i NAME"))
        }
        (None, _) => {
            Err(usage("no file in /etc/ipipou has `peers`: give the server's file, -i NAME"))
        }
    }
}

/// Whether a file in /etc/ipipou that has mistakes is about a server with `peers`, as far as that can be seen.
fn names_peers(name: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(places::conf_path(Path::new(name))) else { return true };
    text.lines().any(|line| {
        let line = line.trim_start_matches(|c: char| c.is_whitespace() || c == '-');
        let name = line.split(|c: char| c.is_whitespace() || c == '=').next().unwrap_or_default();
        name.len() > 2 && "peers".starts_with(name)
    })
}

/// Returns where the files of peers of a tunnel are by its `.conf` file; `None`: it has none.
///
/// # Errors
/// The mistakes in the file.
pub fn by_file(name: &str, command: &mut clap::Command) -> Result<Option<PathBuf>, CliError> {
    let path = options(name, command)?.peers.peers;
    Ok(path.map(|path| match path.as_os_str().is_empty() {
        true => places::peers_path(OsStr::new(name)),
        false => path,
    }))
}

/// The same of a file that a tunnel could be started with; also `None` where this user finds or sees no such file.
///
/// # Errors
/// The mistakes in the file, as `ipipou check` tells them.
pub fn by_good_file(name: &str, command: &mut clap::Command) -> Result<Option<PathBuf>, CliError> {
    let file = Path::new(name);
    if std::fs::File::open(places::conf_path(file)).is_err() {
        return Ok(None);
    }
    check::understood(file, command)?;
    by_file(name, command)
}

/// Returns what a command calls a running tunnel.
pub fn named(name: Option<String>, command: &mut clap::Command) -> Option<TunnelName> {
    let name = name?;
    let device = match places::conf_path(Path::new(&name)).exists() {
        true => device(&name, command).map(Some).map_err(|error| error.to_string()),
        false => Ok(None),
    };
    Some(TunnelName { name, device })
}

fn device(name: &str, command: &mut clap::Command) -> Result<DeviceName, CliError> {
    let mut options = options(name, command)?;
    options.config.push(name.into()); // files of peers may be called after it
    resolve::device(&options).map_err(usage)
}

/// Returns the options of the file that `--config NAME` means.
fn options(name: &str, command: &mut clap::Command) -> Result<Options, CliError> {
    let file = conf_file::read(Path::new(name), command)
        .map_err(|errors| CliError::Usage(errors.to_string()))?;
    let all: Vec<_> = std::iter::once("ipipou".into()).chain(file.arguments).collect();
    arguments::options(command, &all)
}
