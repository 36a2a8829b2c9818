//! `ipipou peer add`, `enable`, `disable` and `remove`: changes the files of peers, and makes the
//! running server read them. A mistake is never written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::peer_files::{are_replaceable, goes_with_running, kept_out, taken, write, write_new};
use super::peers::{checked, read_if_there};
use super::peers_lock::PeersLock;
use super::requests::Files;
use super::{Failure, new_pair, server_key};
use crate::auth::{SharedSecret, Signer, key_text, parse_key};
use crate::engine::config::{Config, HubConfig};
use crate::engine::given::is_private;
use crate::engine::peers_file::edit::{ClientConf, Edit, NewPeer, set_enabled, shown_key};
use crate::engine::peers_file::pool::{Exhausted, Networks};
use crate::engine::peers_file::removal::without;
use crate::engine::peers_file::{PeerEntry, PeerName, PeerSet};
use crate::sources::peers::{plain, read_secret};

/// How the line with the private key begins in the file of a client.
const KEY_LINE: &str = "auth-key-b64 ";

/// How the line with the server begins there.
const REMOTE_LINE: &str = "fou-remote ";

/// Changes the files of the server that `config` is, and has the running tunnel called `tunnel`, if there
/// is one, take them. Returns what there is to say.
///
/// # Errors
/// Every mistake that there is, or would be; then nothing has changed.
pub fn edit_peers(
    config: &Config,
    edit: &Edit,
    tunnel: &str,
    root: &Path,
) -> Result<String, Failure> {
    let Some(hub) = config.hub() else {
        return Err(Failure::Usage(format!("{tunnel} is not a server with `peers` in its file")));
    };
    let makes_client = matches!(edit, Edit::Add(peer) if peer.client_conf.is_some());
    let own_key = match makes_client {
        true => server_key::public_key(config, tunnel, root)?,
        false => None,
    };
    let _lock = PeersLock::take(&hub.peers)?;
    goes_with_running(hub, config, tunnel, root)?;
    let (mut files, set) = read_if_there(hub, &config.tunnel)?;
    let (paths, said) = (Vec::new(), String::new());
    let mut changes = Changes { hub, own_key, files: &mut files, paths, conf: None, said };
    let done = match edit {
        Edit::Add(peer) => changes.add(peer, &set, config),
        Edit::Enable(names) => {
            changes.each(names, &set, "enabled", |text, name| set_enabled(text, name, true))
        }
        Edit::Disable(names) => {
            changes.each(names, &set, "disabled", |text, name| set_enabled(text, name, false))
        }
        Edit::Remove(names) => changes.each(names, &set, "removed", without),
    };
    let Changes { paths, conf, mut said, .. } = changes;
    if let Err(failure) = done {
        // Another command may have changed the files and failed after that: a peer that it removed stays out.
        let is_gone = matches!(edit, Edit::Remove(_)) && hub.peers.exists();
        let _ = is_gone.then(|| taken(String::new(), hub, config, tunnel, root));
        return Err(failure);
    }
    let (after, named) = checked(&files, hub, &config.tunnel);
    let after = after.map_err(Failure::Usage)?;
    match edit {
        Edit::Add(peer) => said.extend(kept_out(&after, &peer.name)),
        Edit::Enable(names) => said.extend(names.iter().filter_map(|name| kept_out(&after, name))),
        Edit::Disable(_) | Edit::Remove(_) => {}
    }
    are_replaceable(paths.iter().map(|(path, _)| path))?;
    let made = conf.as_ref().map(|(path, text)| write_new(path, text.as_bytes())).transpose();
    made?;
    for (path, name) in paths {
        let text =
            files.texts.iter().find(|(file, _)| *file == name).map(|(_, text)| text.as_str());
        let written = write(&hub.peers, &path, text.unwrap_or_default());
        if written.is_err()
            && let Some((path, _)) = &conf
        {
            let _ = std::fs::remove_file(path); // no peer has its keys
        }
        written?;
    }
    if matches!(edit, Edit::Remove(_)) {
        said += &left_over(&files, &named);
    }
    match hub.peers.exists() {
        true => taken(said, hub, config, tunnel, root),
        false => Ok(said),
    }
}

/// Says which files of secrets the peers named that were removed, and no other one names: they stay, because
/// somebody else may need them.
fn left_over(files: &Files, named: &BTreeSet<PathBuf>) -> String {
    let left = files.secrets.keys().filter(|path| !named.contains(*path) && path.exists());
    let line = |path: &PathBuf| {
        format!(
            "{}: stays, and no peer names it: remove it if nothing else needs it\n",
            path.display()
        )
    };
    left.map(line).collect()
}

/// What is to be written.
struct Changes<'a> {
    hub: &'a HubConfig,
    /// The server's public key, if it has one yet.
    own_key: Option<[u8; 32]>,
    files: &'a mut Files,
    /// The files that have another text, each by its path and its name in messages.
    paths: Vec<(PathBuf, String)>,
    /// The file of a client that was made with its keys.
    conf: Option<(PathBuf, Zeroizing<String>)>,
    said: String,
}

impl Changes<'_> {
    fn add(&mut self, peer: &NewPeer, set: &PeerSet, config: &Config) -> Result<(), Failure> {
        let name = &peer.name;
        if let Some(there) = set.get(name) {
            let mut differences = peer.differences(there);
            if let Some(conf) = &peer.client_conf {
                differences.extend(differences_of(conf, there));
            }
            if differences.is_empty() {
                self.said += &format!("{name}: unchanged ({})\n", there.origin);
                return Ok(());
            }
            return Err(Failure::Usage(format!(
                "{}: peer {name} is there already, and not as asked: {}: change it there, or remove it \
                 first",
                there.origin,
                differences.join("; ")
            )));
        }
        let place = peer.client_conf.as_ref().map(|conf| self.place(&conf.path)).transpose()?;
        let mut peer = peer.clone();
        if peer.addresses.is_empty() {
            let tunnel = &config.tunnel;
            let networks =
                Networks { inner: tunnel.inner, network: tunnel.inner_peer, inner6: tunnel.inner6 };
            let free = self.hub.pool.free(set, &networks);
            peer.addresses = free.map_err(|Exhausted(network)| {
                Failure::Usage(format!(
                    "{network} has no free address: remove a peer, or give --address or a larger --pool"
                ))
            })?;
        }
        let (private, public) = match peer.public_key {
            Some(public) => (None, public),
            None => {
                let (private, public) = new_pair()?;
                let public = parse_key(&public).map_err(|e| Failure::Generic(e.to_string()))?;
                (Some(private), *public)
            }
        };
        let is_file = self.hub.peers.is_file();
        let path = match is_file {
            true => self.hub.peers.clone(),
            false => self.hub.peers.join(format!("{name}.toml")),
        };
        let shown = path.display().to_string();
        match self.files.texts.iter_mut().find(|(file, _)| *file == shown) {
            Some((_, text)) => *text = format!("{}\n{}", text.trim_end(), peer.text(&public)),
            None => self.files.texts.push((shown.clone(), peer.text(&public))),
        }
        let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
        self.said += &format!("{name}: added with {} ({shown})\n", addresses.join(", "));
        self.paths.push((path, shown));
        if let (Some(conf), Some(place), Some(private)) = (&peer.client_conf, place, private) {
            let own = self.own_key.ok_or_else(|| {
                Failure::Usage(
                    "this server has no key yet, which its client has to know: start it once, or give it \
                     --auth-key-file"
                        .to_owned(),
                )
            })?;
            let text = client_conf(&peer, conf, &private, &own, config, self.hub);
            self.said += &format!("{name}: its client's file is {place}\n");
            self.conf = Some((conf.path.clone(), text));
        }
        Ok(())
    }

    /// Where the file of a client goes, as text: it has a private key, and the server does not read it.
    fn place(&self, conf: &Path) -> Result<String, Failure> {
        let place = plain(conf).map_err(|e| Failure::Usage(format!("--client-conf {e}")))?;
        let directory = conf.parent().filter(|parent| *parent != Path::new(""));
        let directory = directory.unwrap_or(Path::new(".")).canonicalize();
        let peers = self.hub.peers.canonicalize();
        if directory.is_ok_and(|directory| peers.is_ok_and(|peers| directory == peers)) {
            return Err(Failure::Usage(format!(
                "--client-conf {place}: that is the directory of the peers files: choose another one"
            )));
        }
        Ok(place)
    }

    fn each(
        &mut self,
        names: &[PeerName],
        set: &PeerSet,
        what: &str,
        change: impl Fn(&str, &PeerName) -> Option<String>,
    ) -> Result<(), Failure> {
        for name in names {
            let Some(there) = set.get(name) else {
                return Err(Failure::Usage(format!(
                    "no peer is called {name}; `ipipou peer list` lists them"
                )));
            };
            let file: &str = &there.origin.file;
            let text = self.files.texts.iter_mut().find(|(other, _)| other == file);
            let Some((_, text)) = text else { continue };
            let changed = change(text, name).ok_or_else(|| {
                Failure::Usage(format!("{}: peer {name}: change this file by hand", there.origin))
            })?;
            if *text == changed {
                self.said += &format!("{name}: unchanged ({file})\n");
                continue;
            }
            *text = changed;
            self.said += &format!("{name}: {what} ({file})\n");
            if !self.paths.iter().any(|(_, other)| other == file) {
                self.paths.push((PathBuf::from(file), file.to_owned()));
            }
        }
        Ok(())
    }
}

/// What the file of a client has otherwise than is asked for, which may not be there, a phrase each.
fn differences_of(conf: &ClientConf, there: &PeerEntry) -> Vec<String> {
    let path = conf.path.display();
    let text = read_secret(&conf.path).ok().map(Zeroizing::new);
    let text = text.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let key = key_of(text);
    if key.is_none() || key.as_ref() != there.public_key() {
        let key = shown_key(there);
        return vec![format!("its `public-key` is {key}, which {path} does not hold")];
    }
    let Some(host) = conf.server.as_deref().map(bracketed) else { return Vec::new() };
    let remotes = text.lines().filter_map(|line| line.strip_prefix(REMOTE_LINE));
    let remotes: Vec<_> = remotes.flat_map(|line| line.split(',')).map(str::trim).collect();
    let is_asked = |remote: &&str| {
        remote.rsplit_once(':').is_some_and(|(known, _)| known.eq_ignore_ascii_case(&host))
    };
    match remotes.iter().any(is_asked) {
        true => Vec::new(),
        false => {
            vec![format!("`fou-remote` in {path} is {}, not {host}", remotes.join(","))]
        }
    }
}

/// The public key of a client whose file this is.
fn key_of(conf: &str) -> Option<[u8; 32]> {
    let seed = parse_key(conf.lines().find_map(|line| line.strip_prefix(KEY_LINE))?).ok()?;
    Some(Signer::new(&seed, SharedSecret::new(Vec::new())).public())
}

/// The name or address of a host, as it stands before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// What the client of a new peer is started with.
fn client_conf(
    peer: &NewPeer,
    conf: &ClientConf,
    private: &str,
    own: &[u8; 32],
    config: &Config,
    hub: &HubConfig,
) -> Zeroizing<String> {
    let tunnel = &config.tunnel;
    let name = &peer.name;
    let host = conf.server.as_deref().map(bracketed);
    let host = host.as_deref().unwrap_or("<the server's address>");
    let mut text = Zeroizing::new(format!(
        "# The client {name}: `ipipou --config {name}`, or `systemctl start ipipou@{name}`, once this is\n\
         # /etc/ipipou/{name}.conf. It holds secrets: chmod 600.\n\n\
         client\n\n\
         # Whatever interface leads to the server.\n\
         fou-local @auto\n\
         {REMOTE_LINE}{host}:{}\n\n",
        tunnel.port
    ));
    *text += "# The server tells the address.\ntunl-ip auto\n";
    let networks = [IpNet::V4(tunnel.inner_peer)].into_iter().chain(tunnel.inner6.map(IpNet::V6));
    for network in networks.filter(|network| !is_private(network)) {
        *text += &format!(
            "# A server gives away only addresses for private use, and what its client names.\n\
             route {}\n",
            network.trunc()
        );
    }
    if peer.addresses.iter().any(IpAddr::is_ipv6) {
        *text += "# The kernel's datapath carries IPv4 only.\ndatapath tun\n";
    }
    text.push('\n');
    *text += &format!("{KEY_LINE}{private}\n");
    *text += &format!("auth-remote-pubkey-b64 {}\n", key_text(own));
    // A line of such a file cannot hold any bytes.
    let secret = std::str::from_utf8(hub.secret.as_bytes()).ok();
    let secret =
        secret.filter(|secret| secret.trim() == *secret && !secret.contains(char::is_control));
    *text += &format!("auth-secret {}\n", secret.unwrap_or("<the shared secret>"));
    text
}
