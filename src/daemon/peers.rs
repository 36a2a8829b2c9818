//! Reads the files of peers, checks them, and sends them to a running process. A start goes on with the last
//! good ones when the present ones have mistakes or cannot be read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::demand::{Demand, exceeds, of_peers};
use super::peers_keeper::{Keeper, LastGood};
use super::peers_lock::PeersLock;
use super::requests::{self, Answer, Files, Request, RunsAs};
use super::running::{directory, is_called, known_directory};
use super::{Failure, Settings};
use crate::auth::SharedSecret;
use crate::engine::config::{Datapath, DatapathChoice, HubConfig, TunnelConfig, TunnelName};
use crate::engine::peers_file::{Context, Fault, PeerSet, SourceFile, parse};
use crate::observe::printable;
use crate::sources::exposed;
use crate::sources::peers::{self, read_secret};

/// The last good files, in the state directory.
const LAST_GOOD: &str = "peers.json";

/// What reads and checks files of peers for one server.
#[derive(Debug, Clone)]
pub struct PeersReader {
    hub: HubConfig,
    tunnel: TunnelConfig,
    keeper: Arc<Keeper>,
}

/// What a start found.
#[derive(Debug)]
pub struct AtStart {
    pub set: PeerSet,
    /// What is wrong with the present files, a line each; the set is an earlier one then.
    pub faults: Option<String>,
}

/// Files without mistakes, for a running tunnel.
#[derive(Debug)]
pub struct Good {
    pub set: PeerSet,
    /// Why the datapath in use cannot carry all of them, in one line.
    pub exceeds: Option<String>,
}

impl PeersReader {
    /// The reader of a process' own files; `None`: it has none.
    pub fn of(settings: &Settings) -> Option<Self> {
        Some(PeersReader {
            hub: settings.config.hub()?.clone(),
            tunnel: settings.tunnel().clone(),
            keeper: Arc::new(Keeper::new(settings.state_dir.join(LAST_GOOD))),
        })
    }

    /// Where the files are.
    pub fn path(&self) -> PathBuf {
        std::path::absolute(&self.hub.peers).unwrap_or_else(|_| self.hub.peers.clone())
    }

    /// The peers of a start: those of the files, or else the last good ones.
    ///
    /// # Errors
    /// The mistakes, when there was no good set before.
    pub fn at_start(&self, is_service: bool) -> Result<AtStart, Failure> {
        let faults = match read_checked(&self.hub, &self.tunnel) {
            Ok((files, set)) => {
                warn_of(&files);
                self.keeper.keep(files);
                return Ok(AtStart { set, faults: None });
            }
            Err(faults) => faults,
        };
        let last_good = self.last_good().unwrap_or_else(|why| {
            tracing::warn!("{}: {why}: these peers are lost", self.keeper.path().display());
            None
        });
        match last_good {
            Some(set) => Ok(AtStart { set, faults: Some(faults) }),
            // Its files belong to root, and `ipipou reload` sends them at once.
            None if is_service => Ok(AtStart { set: PeerSet::default(), faults: Some(faults) }),
            None => Err(Failure::Usage(faults)),
        }
    }

    /// Reads the files of this process again. `datapath`: the one in use.
    ///
    /// # Errors
    /// Every mistake, a line each.
    pub fn again(&self, datapath: Datapath) -> Result<Good, String> {
        let (files, set) = read_checked(&self.hub, &self.tunnel)?;
        warn_of(&files);
        Ok(self.accept(files, set, datapath))
    }

    /// Checks files that were sent, and keeps them if they are good. `datapath`: the one in use.
    ///
    /// # Errors
    /// Every mistake, a line each.
    pub fn take(&self, files: Files, datapath: Datapath) -> Result<Good, String> {
        let set = check(&files, &self.hub, &self.tunnel)?;
        Ok(self.accept(files, set, datapath))
    }

    /// The next start chooses a datapath by what is kept; one that is asked for has to carry that.
    fn accept(&self, files: Files, set: PeerSet, datapath: Datapath) -> Good {
        let choice = self.tunnel.datapath;
        let exceeds = exceeds(&set, datapath, choice);
        if exceeds.is_none() || choice == DatapathChoice::Auto {
            self.keeper.keep(files);
        }
        Good { set, exceeds }
    }

    /// The last good peers; `None`: there were none.
    ///
    /// # Errors
    /// Why those that there were are of no use.
    fn last_good(&self) -> Result<Option<PeerSet>, String> {
        let bytes = match fs::read(self.keeper.path()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|e| e.to_string())?,
        };
        let last: LastGood = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        check(&last.files, &self.hub, &self.tunnel).map(Some)
    }
}

/// Reads and checks the files of a server for a command that changes them; there may be none yet.
///
/// # Errors
/// Every mistake, a line each. When it cannot be seen whether there are any, nothing may be written in their
/// place.
pub(super) fn read_if_there(
    hub: &HubConfig,
    tunnel: &TunnelConfig,
) -> Result<(Files, PeerSet), Failure> {
    let path = &hub.peers;
    peers::plain(path).map_err(Failure::Usage)?;
    match path.try_exists() {
        Ok(true) => read_checked(hub, tunnel).map_err(Failure::Usage),
        Ok(false) => Ok((Files::default(), PeerSet::default())),
        Err(e) => Err(Failure::Generic(format!("{}: {e}", path.display()))),
    }
}

/// A warning about secrets in files that every user can read, for the log of a process that reads its files
/// itself.
fn warn_of(files: &Files) {
    if let Some(warning) = exposed(files) {
        tracing::warn!("{warning}");
    }
}

fn exposed(files: &Files) -> Option<String> {
    let peers = files.texts.iter().map(|(name, text)| (Path::new(name), text.as_str()));
    exposed::warning(peers, files.secrets.keys().map(PathBuf::as_path))
}

/// The same as a line of a command.
pub(super) fn warned(files: &Files) -> String {
    exposed(files).map(|warning| format!("warning: {warning}\n")).unwrap_or_default()
}

impl AtStart {
    /// What these peers ask of a datapath.
    pub fn demand(&self) -> Demand {
        of_peers(&self.set)
    }
}

/// Reads all files that are there, and those of the secrets that they name.
///
/// # Errors
/// What cannot be read, in one line.
fn read(path: &Path) -> Result<Files, String> {
    // Who takes them finds the mistakes; here, they are read for their paths.
    let anybody = Context {
        own_public_key: None,
        port: None,
        inner: std::net::Ipv4Addr::UNSPECIFIED,
        network: ipnet::Ipv4Net::default(),
        inner6: None,
        default_secret: &SharedSecret::new(Vec::new()),
        read_secret: &read_secret,
    };
    read_for(path, &anybody).map(|(files, _)| files)
}

/// Reads the files of a server, and those of the secrets that they name, and checks them.
///
/// # Errors
/// Every mistake, a line each.
pub(super) fn read_checked(
    hub: &HubConfig,
    tunnel: &TunnelConfig,
) -> Result<(Files, PeerSet), String> {
    let (files, set) = read_for(&hub.peers, &context(hub, tunnel, &read_secret))?;
    Ok((files, set.map_err(|faults| lines(&faults))?))
}

type Checked = Result<PeerSet, Vec<Fault>>;

/// Reads files for a server, whose context reads secrets.
fn read_for(path: &Path, server: &Context<'_>) -> Result<(Files, Checked), String> {
    let sources = peers::read(path)?;
    let files = RefCell::new(Files::default());
    let note = |path: &Path| {
        let secret = (server.read_secret)(path);
        files.borrow_mut().add_secret(path, &secret);
        secret
    };
    let set = parse(&sources, &Context { read_secret: &note, ..*server });
    let mut files = files.into_inner();
    files.texts = sources.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
    Ok((files, set))
}

fn context<'a>(
    hub: &'a HubConfig,
    tunnel: &TunnelConfig,
    read_secret: &'a dyn Fn(&Path) -> Result<Vec<u8>, String>,
) -> Context<'a> {
    Context {
        own_public_key: hub.public_key(),
        port: Some(tunnel.port),
        inner: tunnel.inner,
        network: tunnel.inner_peer,
        inner6: tunnel.inner6,
        default_secret: &hub.secret,
        read_secret,
    }
}

/// The peers that files name which were read before.
///
/// # Errors
/// Every mistake, a line each.
pub(super) fn check(
    files: &Files,
    hub: &HubConfig,
    tunnel: &TunnelConfig,
) -> Result<PeerSet, String> {
    checked(files, hub, tunnel).0
}

/// Reads the files of peers, and the files of secrets that they name.
pub(super) fn checked(
    files: &Files,
    hub: &HubConfig,
    tunnel: &TunnelConfig,
) -> (Result<PeerSet, String>, BTreeSet<PathBuf>) {
    let source =
        |(name, text): &(String, String)| SourceFile { name: name.clone(), text: text.clone() };
    let sources: Vec<_> = files.texts.iter().map(source).collect();
    let named = RefCell::new(BTreeSet::new());
    let read_secret = |path: &Path| {
        named.borrow_mut().insert(path.to_owned());
        files.secret(path)
    };
    let set = parse(&sources, &context(hub, tunnel, &read_secret));
    (set.map_err(|faults| lines(&faults)), named.into_inner())
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The files of peers of a tunnel by its `.conf` file. A path from a process of another user is not read,
/// because it may be any file.
struct ByFile<'a> {
    /// The name of that file.
    tunnel: &'a str,
    peers: PathBuf,
}

/// Sends the files of peers to the process of the tunnel called `name`, or to the only one below `root`;
/// a process without any authenticates again, unless `if_peers`. `peers` is where they are by the tunnel's
/// `.conf` file. Returns what there is to say. A command that is about to change the files is waited for, if
/// it comes to an end: otherwise what it changed might be sent before what was read here.
///
/// # Errors
/// Every mistake, a line each; then nothing has changed.
pub fn reload(
    root: &Path,
    name: Option<&TunnelName>,
    if_peers: bool,
    peers: Option<PathBuf>,
) -> Result<String, Failure> {
    let by_file = name.zip(peers);
    let directory = match &by_file {
        Some((name, _)) => known_directory(root, name)?,
        None => directory(root, name, |process| !if_peers || process.peers.is_some())?,
    };
    let by_file = by_file.map(|(name, peers)| ByFile { tunnel: &name.name, peers });
    send(&directory, if_peers, by_file, |peers| PeersLock::take(peers).ok())
}

/// The same for a command that changes the files at `peers` of `tunnel`, and is the one that does. The process
/// has this directory.
///
/// # Errors
/// As [`reload`].
pub(super) fn send_again(
    directory: &Path,
    tunnel: &str,
    peers: PathBuf,
) -> Result<String, Failure> {
    send(directory, true, Some(ByFile { tunnel, peers }), |_| None)
}

fn send(
    directory: &Path,
    if_peers: bool,
    by_file: Option<ByFile<'_>>,
    lock: impl Fn(&Path) -> Option<PeersLock>,
) -> Result<String, Failure> {
    // What a process calls itself brings it no files.
    let by_file = by_file.filter(|by_file| is_called(directory, by_file.tunnel));
    let (path, to) = match requests::ask(directory, Request::Where) {
        Ok((Answer { path: None, .. }, to)) => (None, to),
        Ok((Answer { path, .. }, RunsAs::Us)) => (path, RunsAs::Us),
        Ok((Answer { path: Some(theirs), .. }, RunsAs::Another)) => {
            let by_file = by_file.ok_or_else(|| {
                Failure::Usage(
                    "the process runs as another user: give the NAME of its file \
                     /etc/ipipou/NAME.conf, which has to say `peers`"
                        .to_owned(),
                )
            })?;
            let ours = std::path::absolute(&by_file.peers).unwrap_or(by_file.peers);
            if theirs != ours {
                return Err(Failure::Usage(format!(
                    "it runs with the peers in {}, and its file says {}: restart it, or say so in full there",
                    printable(&theirs.display().to_string()),
                    ours.display()
                )));
            }
            (Some(ours), RunsAs::Another)
        }
        Ok((Answer { path: Some(_), .. }, RunsAs::Elsewhere)) => {
            return Err(requests::not_its_owner(directory));
        }
        // It is older than this program, and has no peers.
        Err(_) if if_peers => return Ok(String::new()),
        Err(failure) => return Err(failure),
    };
    let Some(path) = path else {
        return match if_peers {
            true => Ok(String::new()),
            false => said(requests::ask(directory, Request::Reload(None))?.0),
        };
    };
    let _lock = lock(&path);
    let files = read(&path).map_err(Failure::Usage)?;
    let warning = warned(&files);
    Ok(warning + &said(requests::hand_over(directory, files, to)?)?)
}

/// Ends the session of a peer of the tunnel called `name`, or of the only server below `root` that has
/// any.
///
/// # Errors
/// When there is no such tunnel or peer.
pub fn kick(root: &Path, name: Option<&TunnelName>, peer: String) -> Result<String, Failure> {
    let directory = directory(root, name, |process| process.peers.is_some())?;
    said(requests::ask(&directory, Request::Kick(peer))?.0)
}

fn said(answer: Answer) -> Result<String, Failure> {
    match answer.ok {
        true => Ok(answer.text + "\n"),
        false => Err(Failure::Usage(answer.text)),
    }
}
