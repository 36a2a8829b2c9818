//! `ipipou peer import`: servers with one client each become peers in the files of one server. All of them
//! do, or nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use super::Failure;
use super::peer_files::{
    are_replaceable, failed, goes_with_running, kept_out, taken, write, write_new,
};
use super::peers::{check, read_if_there};
use super::peers_lock::PeersLock;
use super::requests::Files;
use crate::engine::config::{Config, HubConfig, TunnelConfig};
use crate::engine::peers_file::import::{
    Imported, OldServer, against_defaults, clashes, network_for,
};
use crate::engine::peers_file::{PeerEntry, PeerName, PeerSet};
use crate::host::make_private;
use crate::sources::peers::read_secret;

/// Makes peers of these servers, and has the running tunnel called `tunnel`, if there is one, take them. With
/// `dry_run` nothing is written. Returns what there is to say.
///
/// # Errors
/// Everything that hinders any of them; then nothing has changed.
pub fn import_peers(
    config: &Config,
    servers: &[OldServer],
    dry_run: bool,
    tunnel: &str,
    root: &Path,
) -> Result<String, Failure> {
    let Some(hub) = config.hub() else {
        return Err(Failure::Usage(format!("{tunnel} is not a server with `peers` in its file")));
    };
    let own = &config.tunnel;
    let mut hindrances: Vec<_> = servers.iter().flat_map(|it| it.hindrances(own)).collect();
    hindrances.extend(clashes(servers));
    if let Some(network) = network_for(servers, own) {
        hindrances.push(format!("{tunnel}: `tunl-ip {network}` in its file has room for them all"));
    }
    if !hindrances.is_empty() {
        return Err(Failure::Usage(hindrances.join("\n")));
    }
    let _lock = (!dry_run).then(|| PeersLock::take(&hub.peers)).transpose()?;
    goes_with_running(hub, config, tunnel, root)?;
    let (files, set) = read_if_there(hub, own)?;
    let mut changes = Changes::new(hub, files);
    for server in servers {
        changes.add(server, &set, own);
    }
    check(&changes.files, hub, own).map_err(|faults| {
        Failure::Usage(format!(
            "nothing was written: with these peers the files would have mistakes\n{faults}"
        ))
    })?;
    if dry_run {
        return Ok(changes.shown + &changes.said + "nothing was written\n");
    }
    changes.write()?;
    Ok(taken(changes.said, hub, config, tunnel, root)? + &to_stop(servers))
}

/// What is to be written.
struct Changes<'a> {
    hub: &'a HubConfig,
    files: Files,
    /// The peers files that have another text, each by its path and its name in messages.
    paths: Vec<(PathBuf, String)>,
    tokens: Vec<(PathBuf, Vec<u8>)>,
    names: Vec<PeerName>,
    said: String,
    /// The texts, without secrets.
    shown: String,
}

impl<'a> Changes<'a> {
    fn new(hub: &'a HubConfig, files: Files) -> Self {
        let (paths, tokens, names) = (Vec::new(), Vec::new(), Vec::new());
        let (said, shown) = (String::new(), String::new());
        Changes { hub, files, paths, tokens, names, said, shown }
    }

    /// The directory of the peers files.
    fn beside(&self) -> PathBuf {
        let directory = match self.hub.peers.is_file() {
            true => self.hub.peers.parent().unwrap_or(Path::new(".")),
            false => &self.hub.peers,
        };
        std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
    }

    /// Adds one peer, with a number behind its name if another one has that.
    fn add(&mut self, server: &OldServer, set: &PeerSet, own: &TunnelConfig) {
        // No two of these are alike, and others have only some of them.
        let numbered = (2..).map(|number| server.name.numbered(number));
        for name in std::iter::once(server.name.clone()).chain(numbered) {
            let imported = server.imported(&name, own, &self.beside());
            match set.get(&name) {
                Some(there) if self.is_there(there, &imported, own) => {
                    self.said += &format!("{name}: unchanged ({})\n", there.origin);
                    self.said.extend(kept_out(set, &name));
                    return;
                }
                Some(_) => {}
                None if self.names.contains(&name) => {}
                None => return self.add_as(name, imported, server),
            }
        }
    }

    /// Whether it was imported before: with the same proof, port, addresses, routes and lifetime.
    fn is_there(&self, there: &PeerEntry, imported: &Imported, own: &TunnelConfig) -> bool {
        let mut alone = Files::default();
        alone.texts.push((there.origin.file.to_string(), imported.text.clone()));
        for path in &imported.named {
            alone.add_secret(path, &read_secret(path));
        }
        if let Some((path, bytes)) = &imported.token {
            alone.add_secret(path, &Ok(bytes.clone()));
        }
        let set = check(&alone, self.hub, own).ok();
        set.is_some_and(|set| set.get(&there.name).is_some_and(|peer| peer.has_tunnel_of(there)))
    }

    fn add_as(&mut self, name: PeerName, imported: Imported, server: &OldServer) {
        let Imported { mut text, token, named, notes } = imported;
        let path = match self.hub.peers.is_file() {
            true => self.hub.peers.clone(),
            false => self.hub.peers.join(format!("{name}.toml")),
        };
        let file = path.display().to_string();
        let before = self.files.texts.iter().find(|(other, _)| *other == file);
        text += &before.map(|(_, before)| against_defaults(before)).unwrap_or_default();
        let secret = |line: &str| match line.starts_with("secret = ") {
            true => "secret = \"…\"\n".to_owned(),
            false => format!("{line}\n"),
        };
        self.shown += &format!("==> {file}\n{}\n", text.lines().map(secret).collect::<String>());
        match self.files.texts.iter_mut().find(|(other, _)| *other == file) {
            Some((_, before)) => *before = format!("{}\n\n{text}", before.trim_end()),
            None => self.files.texts.push((file.clone(), text)),
        }
        for path in named {
            self.files.add_secret(&path, &read_secret(&path));
        }
        if let Some((path, bytes)) = token {
            self.files.add_secret(&path, &Ok(bytes.clone()));
            self.tokens.push((path, bytes));
        }
        self.said += &format!("{name}: from {}, by port {} ({file})\n", server.file, server.port());
        self.said.extend(notes.into_iter().map(|note| note + "\n"));
        if !self.paths.iter().any(|(_, other)| *other == file) {
            self.paths.push((path, file));
        }
        self.names.push(name);
    }

    fn write(&self) -> Result<(), Failure> {
        are_replaceable(self.paths.iter().map(|(path, _)| path))?;
        for (path, bytes) in &self.tokens {
            let directory = self.beside();
            let made = make_private(&directory);
            made.map_err(failed(&directory))?;
            match read_secret(path) {
                Ok(there) if there == *bytes => continue, // of a try that went wrong later
                // Of one that was killed in the middle.
                Ok(half) if bytes.starts_with(&half) => {
                    fs::remove_file(path).map_err(failed(path))?
                }
                Ok(_) | Err(_) => {}
            }
            write_new(path, bytes)?;
        }
        for (path, name) in &self.paths {
            let text = self.files.texts.iter().find(|(file, _)| file == name);
            write(&self.hub.peers, path, text.map(|(_, text)| text.as_str()).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// What is left to do: the old servers have the ports until they end.
fn to_stop(servers: &[OldServer]) -> String {
    let service = |server: &OldServer| {
        let file = Path::new(&server.file);
        let name = file.file_stem()?.to_str()?;
        (file.parent() == Some(Path::new("/etc/ipipou"))).then(|| format!("ipipou@{name}"))
    };
    let services: Vec<_> = servers.iter().filter_map(service).collect();
    match services.is_empty() {
        true => "now end the servers that had these clients: they have the ports\n".to_owned(),
        false => format!(
            "now stop the servers that had these clients: systemctl disable --now {}\n",
            services.join(" ")
        ),
    }
}
