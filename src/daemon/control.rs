//! The control socket: every connection gets the status as JSON and is closed.
//!
//! Only root and the service's own user can connect: the directory and the socket are closed to others.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::Failure;
use super::listener::{Connected, Listener};
use super::requests;
use super::snapshot::{PeersAsked, Snapshot};
use super::stream::{self, MAX_STATUS, read_all};
use crate::auth;
use crate::engine::config::DeviceName;
use crate::host::Directories;
use crate::host::clock;
use crate::observe::status::ProcessStatus;
use crate::observe::{is_command, peers, printable, printable_json, show};

const SOCKET: &str = "control.sock";

/// How many are answered at a time: a status may be megabytes.
const AT_A_TIME: usize = 8;

/// How long `show` waits for one process, and one process for `show`.
const PATIENCE: Duration = Duration::from_secs(5);

/// How `ipipou show` presents the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A table that fits on a terminal.
    Table,
    /// All columns.
    Wide,
    Json,
}

/// Listens in `directory`, which is made if it is missing. The socket of a dead process is replaced.
///
/// # Errors
/// When the directory cannot be made or written, or another process has its socket there.
pub fn listen(directory: &Path) -> io::Result<Listener> {
    let path = directory.join(SOCKET);
    if stream::connect(&path, PATIENCE).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process has its control socket there",
        ));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    Listener::bind(&path, AT_A_TIME)
}

/// Sends the status in the background, so that a reader that does not read blocks nothing.
pub fn answer((mut stream, place): Connected, snapshot: Snapshot) {
    tokio::spawn(async move {
        let json = snapshot.rendered().await;
        let _ = tokio::time::timeout(PATIENCE, stream.write_all(&json)).await;
        drop(place);
    });
}

/// The text of `ipipou show`: all processes below `root`, or the one called `name`. With it comes why not all
/// of them are in it.
///
/// # Errors
/// When there is nothing to show, or this user may not see it.
pub fn show(
    root: &Path,
    name: Option<&str>,
    style: Style,
) -> Result<(String, Option<Failure>), Failure> {
    let asked = match (name, style) {
        (None, Style::Table | Style::Wide) => PeersAsked::None,
        (Some(_), _) | (None, Style::Json) => PeersAsked::All,
    };
    let (processes, failed) = named_or_all(root, name, &asked)?;
    if let ([], Some(failed)) = (processes.as_slice(), failed.as_ref()) {
        return Err(Failure::Generic(failed.to_string()));
    }
    let processes: Vec<_> = processes.into_iter().map(|(_, process)| process).collect();
    if style == Style::Json {
        return serde_json::to_string_pretty(&processes)
            .map(|text| (printable_json(&text) + "\n", failed))
            .map_err(|e| Failure::Generic(e.to_string()));
    }
    if processes.is_empty() {
        return Ok(("no tunnel is running\n".to_owned(), None));
    }
    let now = clock::unix();
    let mut text = show::table(&processes, now, style == Style::Wide);
    if name.is_some() {
        text.extend(processes.iter().map(|process| show::details(process, now)));
    }
    Ok((text, failed))
}

/// The public key that the server called `name` says is its own; `None`: none is running.
pub fn running_key(root: &Path, name: &str) -> Option<[u8; 32]> {
    let servers = named(root, name, &PeersAsked::None).ok()?;
    let status = servers.into_iter().find_map(|(_, process)| process.peers)?;
    auth::parse_key(&status.public_key).ok().map(|key| *key)
}

/// What the running process of this tunnel is called below `root`: after its file, as a service is, or after
/// its interface.
pub fn running_name(root: &Path, tunnel: &str, device: &DeviceName) -> String {
    let by_hand = Directories::new(None, None, device).runtime;
    let by_hand = by_hand.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_running = |name: &str| named(root, name, &PeersAsked::None).is_ok();
    let is_by_hand = !is_running(tunnel) && is_running(&by_hand);
    if is_by_hand { by_hand } else { tunnel.to_owned() }
}

/// The directory of the process called `name`, or of the only one below `root` that `is_meant`.
///
/// # Errors
/// When there is none, or there are several.
pub fn directory(
    root: &Path,
    name: Option<&str>,
    is_meant: impl Fn(&ProcessStatus) -> bool,
) -> Result<PathBuf, Failure> {
    let mut named = match name {
        Some(name) => named(root, name, &PeersAsked::None)?,
        None => match all(root, &PeersAsked::None)? {
            // It may be the one that is meant.
            (_, Some(silent)) => {
                return Err(Failure::Generic(format!(
                    "{silent}\nwhich tunnel is meant? give its NAME; `ipipou show` lists those that \
                     answer"
                )));
            }
            (processes, None) => processes,
        },
    };
    if name.is_none() {
        named.retain(|(_, process)| is_meant(process));
    }
    match (named.pop(), named.is_empty()) {
        (Some((directory, _)), true) => Ok(directory),
        (Some(_), false) => Err(Failure::Usage(
            "several tunnels are running: which one? give its NAME; `ipipou show` lists them"
                .to_owned(),
        )),
        (None, _) => Err(Failure::Generic(
            "no such tunnel is running here; `ipipou show` lists those that are".to_owned(),
        )),
    }
}

/// The process called `name`, or all below `root`, and why not all of them are among these.
fn named_or_all(
    root: &Path,
    name: Option<&str>,
    peers: &PeersAsked,
) -> Result<(Vec<Found>, Option<Failure>), Failure> {
    match name {
        Some(name) => Ok((named(root, name, peers)?, None)),
        None => all(root, peers),
    }
}

/// A process, and its directory.
type Found = (PathBuf, ProcessStatus);

/// Those below `root` that are called so. One that is meant by nobody may stand still.
fn named(root: &Path, name: &str, peers: &PeersAsked) -> Result<Vec<Found>, Failure> {
    let (called, others): (Vec<_>, Vec<_>) = directories(root)?
        .into_iter()
        .partition(|directory| directory.file_name().is_some_and(|file| file == name));
    for directory in called {
        if let Some(process) = ask(&directory, peers)? {
            return Ok(vec![(directory, process)]);
        }
    }
    // Who is asked for by the name of an interface is found out without the peers of all others.
    let (mut processes, failed) = each(others, &PeersAsked::None);
    processes.retain(|(_, it)| it.tunnels.iter().any(|tunnel| tunnel.interface == name));
    if processes.is_empty() {
        return Err(failed.unwrap_or_else(|| {
            Failure::Generic(format!(
                "no running tunnel is called {name}; `ipipou show` lists them"
            ))
        }));
    }
    let again =
        processes.into_iter().map(|(directory, _)| Ok((ask(&directory, peers)?, directory)));
    let again = again.collect::<Result<Vec<_>, Failure>>()?;
    Ok(again.into_iter().filter_map(|(process, directory)| Some((directory, process?))).collect())
}

/// All processes below `root`, and why some of them could not be asked, a line each.
fn all(root: &Path, peers: &PeersAsked) -> Result<(Vec<Found>, Option<Failure>), Failure> {
    Ok(each(directories(root)?, peers))
}

/// Asks all of them at once: each that stands still is waited for.
fn each(directories: Vec<PathBuf>, peers: &PeersAsked) -> (Vec<Found>, Option<Failure>) {
    let answers: Vec<_> = thread::scope(|scope| {
        let asked = directories.iter().map(|directory| {
            thread::Builder::new().spawn_scoped(scope, move || ask(directory, peers))
        });
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(|one| one.map(|one| one.join())).collect()
    });
    let (mut processes, mut silent) = (Vec::new(), Vec::new());
    for (directory, answer) in directories.into_iter().zip(answers) {
        match answer {
            Ok(Ok(Ok(process))) => processes.extend(process.map(|process| (directory, process))),
            Ok(Ok(Err(failure))) => silent.push(failure.to_string()),
            Ok(Err(_)) => silent.push(format!("{}: its answer is of no use", directory.display())),
            Err(e) => silent.push(format!("{}: {e}", directory.display())),
        }
    }
    (processes, (!silent.is_empty()).then(|| Failure::Generic(silent.join("\n"))))
}

/// Which peers are to be shown.
#[derive(Debug, Clone)]
pub struct PeersWanted {
    /// Only this one, with everything about it.
    pub name: Option<String>,
    /// Only those in this state.
    pub state: Option<String>,
    pub json: bool,
}

/// The text of `ipipou peer list` and `ipipou peer show`: the peers of the process called `tunnel`, or of
/// the only one that has any, among those that answer. With it comes which do not.
///
/// # Errors
/// When there is no such server or peer, or this user may not see it.
pub fn show_peers(
    root: &Path,
    tunnel: Option<&str>,
    wanted: &PeersWanted,
) -> Result<(String, Option<Failure>), Failure> {
    let asked = match (&wanted.name, &wanted.state) {
        (Some(name), _) => PeersAsked::Named(name.clone()),
        (None, Some(state)) => PeersAsked::InState(state.clone()),
        (None, None) => PeersAsked::All,
    };
    let (processes, silent) = named_or_all(root, tunnel, &asked)?;
    let with_silent = |text: String| match &silent {
        Some(silent) => format!("{silent}\n{text}"),
        None => text,
    };
    let mut servers: Vec<_> = processes.into_iter().filter_map(|(_, it)| it.peers).collect();
    let mut status = match (servers.pop(), servers.is_empty()) {
        (Some(status), true) => status,
        (Some(_), false) => {
            return Err(Failure::Usage(
                "several servers have peers: which one? -i NAME; `ipipou show` lists them"
                    .to_owned(),
            ));
        }
        (None, _) => {
            let nobody = "no server with --peers is running here; `ipipou show` lists the tunnels";
            return Err(Failure::Generic(with_silent(nobody.to_owned())));
        }
    };
    // A process that is older than this program sends all of them.
    if let Some(name) = &wanted.name {
        status.peers.retain(|peer| peer.name == *name);
        if status.peers.is_empty() {
            let nobody = format!("no peer is called {name}; `ipipou peer list` lists them");
            return Err(Failure::Generic(with_silent(nobody)));
        }
    }
    if let Some(state) = &wanted.state {
        status.peers.retain(|peer| peer.state == *state);
    }
    if wanted.json {
        return serde_json::to_string_pretty(&status.peers)
            .map(|text| (printable_json(&text) + "\n", silent))
            .map_err(|e| Failure::Generic(e.to_string()));
    }
    let now = clock::unix();
    let text = match (&wanted.name, status.peers.first()) {
        (Some(_), Some(peer)) => peers::one(peer, now),
        (Some(_), None) | (None, _) => peers::table(&status, now),
    };
    Ok((text, silent))
}

fn directories(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(root, &e)),
    };
    let mut directories: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    directories.sort();
    Ok(directories)
}

/// `None` when nothing answers: a process that was killed leaves its socket behind.
fn ask(directory: &Path, peers: &PeersAsked) -> Result<Option<ProcessStatus>, Failure> {
    let path = directory.join(SOCKET);
    if let Some(json) = requests::ask_status(directory, peers.clone())? {
        return parsed(&json).map(Some).map_err(|e| unreadable(&path, &e));
    }
    // It may be older than this program, or not running.
    let mut stream = match stream::connect(&path, PATIENCE) {
        Ok(stream) => stream,
        Err(e) if is_nobody(&e) => return Ok(None),
        Err(e) => return Err(unreadable(&path, &e)),
    };
    read_status(&mut stream).map(Some).map_err(|e| unreadable(&path, &e))
}

/// Whether an error says that no process listens there.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    matches!(error.kind(), ConnectionRefused | NotADirectory | NotFound)
}

/// Reads a status. The process that answers may not be the one it claims to be, so its answer is
/// limited in time and length, and cannot affect a terminal.
fn read_status(stream: &mut Connection) -> io::Result<ProcessStatus> {
    parsed(&read_all(stream, PATIENCE, MAX_STATUS)?)
}

fn parsed(json: &[u8]) -> io::Result<ProcessStatus> {
    if !may_hold_controls(json) {
        return serde_json::from_slice(json).map_err(io::Error::other);
    }
    let mut status = serde_json::from_slice(json).map_err(io::Error::other)?;
    make_printable(&mut status);
    serde_json::from_value(status).map_err(io::Error::other)
}

/// Whether any string in this JSON may have a character that a terminal obeys ([`is_command`]): an escape
/// (RFC 8259, 7), DEL, or the first byte of one in UTF-8.
fn may_hold_controls(json: &[u8]) -> bool {
    json.iter().any(|byte| matches!(byte, b'\\' | 0x7f | 0xc2 | 0xd8 | 0xe2))
}

/// Escapes control characters in all strings.
fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(is_command) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(make_printable),
        Value::Object(fields) => {
            let escape = |(name, mut value): (String, Value)| {
                make_printable(&mut value);
                (printable(&name), value)
            };
            *fields = std::mem::take(fields).into_iter().map(escape).collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => ": only root and the service's user may see it",
        _ => "",
    };
    Failure::Generic(format!("{}: {error}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn answered_by(answer: impl FnOnce(Connection) + Send + 'static) -> io::Result<ProcessStatus> {
        let (mut ours, theirs) = Connection::pair().unwrap();
        let other = thread::spawn(move || answer(theirs));
        let result = read_status(&mut ours);
        drop(ours);
        other.join().unwrap();
        result
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let endless = |mut stream: Connection| while stream.write_all(&[b' '; 65536]).is_ok() {};
        assert_eq!(answered_by(endless).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_process_that_does_not_answer_times_out() {
        let (done, waits) = std::sync::mpsc::channel();
        let silent = move |stream: Connection| {
            let _: Result<(), _> = waits.recv();
            drop(stream);
        };
        let (mut ours, theirs) = Connection::pair().unwrap();
        let other = thread::spawn(move || silent(theirs));
        let error = read_status(&mut ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(done);
        other.join().unwrap();
    }

    #[test]
    fn terminal_control_characters_are_escaped() {
        let text = r#"{"version":"\u001b[2Jx\u009b","pid":1,"role":"a\nb","datapath":"tun",
            "offloads":null,"uptime":1,"rules":"ä","tunnels":[],"accepted":0,"moved":0,"sent":0,
            "repaired":0,"rejected":{"\u0007":1},"dropped":{},"learned":[]}"#;
        let status = answered_by(move |mut stream| stream.write_all(text.as_bytes()).unwrap());
        let status = status.unwrap();
        assert_eq!(status.version, r"\u{1b}[2Jx\u{9b}");
        assert_eq!((status.role.as_str(), status.rules.as_str()), (r"a\nb", "ä"));
        assert_eq!(status.rejected.keys().collect::<Vec<_>>(), [r"\u{7}"]);
    }
}
