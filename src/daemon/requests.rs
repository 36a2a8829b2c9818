//! The requests of operators to a running process: a socket beside that of the status, to which
//! `ipipou reload` and `ipipou peer kick` send one request each.
//!
//! A request and its answer are JSON, each ends with its direction of the connection, and both have a
//! version. Only root and the service's own user can connect: the directory is closed to others. Who
//! asks reads the files of peers, because a service without rights cannot.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, geteuid};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Failure;
use super::snapshot::{PeersAsked, Snapshot};
use super::stream::{self, MAX_STATUS, read_all};

/// Its name in the runtime directory.
pub(super) const SOCKET: &str = "request.sock";

/// The version of requests and answers.
const VERSION: u32 = 1;

/// The longest request that is read: 10,000 peers need 4 MiB.
pub(super) const LONGEST: u64 = 64 << 20;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 4 << 20;

/// How long one side waits until the other has sent what it has to say at once, or has read it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the answer to a ping is waited for: every server may be asked before, for two seconds each.
const PING_PATIENCE: Duration = Duration::from_secs(60);

/// How long a command waits until its files are checked, after those of earlier commands.
const RELOAD_PATIENCE: Duration = Duration::from_secs(600);

/// How long `show` waits for one process.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Where the files of peers are.
    Where,
    /// Take these files of peers; without files: what SIGUSR1 asks for.
    Reload(Option<Files>),
    /// End the session of a peer, which may come back.
    Kick(String),
    /// The status, with these peers.
    Show(PeersAsked),
    /// A line for each event from now on, or for each of one peer. The answer is a line of its own before.
    Monitor(Option<String>),
    /// Have a client ask the server with this name or address whether it is there; `None`: the one in use.
    Ping(Option<String>),
}

impl Request {
    /// How long the caller waits for the answer.
    fn patience(&self) -> Duration {
        match self {
            Request::Where
            | Request::Reload(None)
            | Request::Kick(_)
            | Request::Show(_)
            | Request::Monitor(_) => PATIENCE,
            Request::Reload(Some(_)) => RELOAD_PATIENCE,
            Request::Ping(_) => PING_PATIENCE,
        }
    }
}

/// Files of peers, and the files of secrets that they name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Name and text of each.
    pub texts: Vec<(String, String)>,
    /// The bytes of each file of a secret in base64, or why it cannot be read.
    pub secrets: BTreeMap<PathBuf, Result<String, String>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    ipipou: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    request: Request,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What there is to say, a line each.
    pub text: String,
    /// Where the files of peers are, for [`Request::Where`]; `None`: this is not a server with such files.
    pub path: Option<PathBuf>,
    /// For [`Request::Ping`]: the server was asked, and did not answer or does not let us in.
    #[serde(default)]
    pub unanswered: bool,
}

impl Answer {
    /// It was done.
    pub fn done(text: impl Into<String>) -> Self {
        Answer { ok: true, text: text.into(), path: None, unanswered: false }
    }

    /// It was not done, and why.
    pub fn refused(text: impl Into<String>) -> Self {
        Answer { ok: false, text: text.into(), path: None, unanswered: false }
    }

    /// The server that was asked said nothing, or nothing good.
    pub fn unanswered(text: impl Into<String>) -> Self {
        Answer { unanswered: true, ..Answer::refused(text) }
    }
}

/// What the process says to a request.
#[derive(Debug)]
pub enum Reply {
    /// An answer.
    Said(Answer),
    /// The status, which is rendered on another thread: ten thousand peers are megabytes.
    Status(Box<Snapshot>),
}

/// A request, and where its answer goes.
pub type Pending = (Request, oneshot::Sender<Reply>);

/// Takes a request apart.
///
/// # Errors
/// Why it is none.
pub(super) fn taken_apart(bytes: &[u8]) -> Result<Request, String> {
    if bytes.len() as u64 > LONGEST {
        return Err(format!("a request has at most {} MiB", LONGEST >> 20));
    }
    let version: Envelope<serde::de::IgnoredAny> = match serde_json::from_slice(bytes) {
        Ok(version) => version,
        Err(e) => return Err(format!("this is not a request: {e}")),
    };
    if version.ipipou != VERSION {
        let other = version.ipipou;
        return Err(format!(
            "the request has version {other} and the running process knows {VERSION}: restart it"
        ));
    }
    let asked: Envelope<Asked> =
        serde_json::from_slice(bytes).map_err(|e| format!("this is not a request: {e}"))?;
    Ok(asked.content.request)
}

/// As which user a process runs that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsAs {
    /// As this one, or as root.
    Us,
    /// As another one, whose word is not ours.
    Another,
    /// As another one than its directory belongs to, which is not ours: the owner may have put a link there
    /// that leads to any socket.
    Elsewhere,
}

/// Asks the process whose directory this is.
///
/// # Errors
/// When it does not answer in time.
pub fn ask(directory: &Path, request: Request) -> Result<(Answer, RunsAs), Failure> {
    let path = directory.join(SOCKET);
    let patience = request.patience();
    let mut stream = connect(directory, request)?;
    let answer = answer(&mut stream, &path, patience)?;
    Ok((answer, runs_as(&stream, directory).map_err(|e| failed(&path, &e))?))
}

/// Sends files of peers, with their secrets, to the process whose directory this is, if it runs as the one that
/// was asked for them.
///
/// # Errors
/// When another one is there now, or it does not answer in time.
pub fn hand_over(directory: &Path, files: Files, to: RunsAs) -> Result<Answer, Failure> {
    let path = directory.join(SOCKET);
    let failed = |e: io::Error| failed(&path, &e);
    let mut stream = stream::connect(&path, PATIENCE).map_err(failed)?;
    if runs_as(&stream, directory).map_err(failed)? != to {
        return Err(not_its_owner(directory));
    }
    let request = Request::Reload(Some(files));
    let patience = request.patience();
    send(&mut stream, request).map_err(failed)?;
    answer(&mut stream, &path, patience)
}

/// The failure of a process that answers in the place of somebody else.
pub fn not_its_owner(directory: &Path) -> Failure {
    Failure::Usage(format!(
        "{}: the process that answers there runs as another user than the directory belongs to: it gets no \
         files of peers",
        directory.display()
    ))
}

fn answer(stream: &mut Connection, path: &Path, patience: Duration) -> Result<Answer, Failure> {
    let answer = read_all(stream, patience, LONGEST_ANSWER).map_err(|e| failed(path, &e))?;
    let answer: Envelope<Answer> = serde_json::from_slice(&answer)
        .map_err(|e| Failure::Generic(format!("{}: no answer: {e}", path.display())))?;
    Ok(answer.content)
}

fn runs_as(stream: &Connection, directory: &Path) -> io::Result<RunsAs> {
    let user = socket_peercred(stream)?.uid;
    Ok(match (is_ours(user), belongs_to_us(directory)?) {
        (true, true) => RunsAs::Us,
        (false, true) => RunsAs::Another,
        (true | false, false) if user == owner(directory)? => RunsAs::Another,
        (true | false, false) => RunsAs::Elsewhere,
    })
}

/// Whether a directory is this user's, or root's: nobody else has put anything there.
///
/// # Errors
/// When it is gone.
pub(super) fn belongs_to_us(directory: &Path) -> io::Result<bool> {
    owner(directory).map(is_ours)
}

fn owner(directory: &Path) -> io::Result<Uid> {
    Ok(Uid::from_raw(fs::metadata(directory)?.uid()))
}

fn is_ours(user: Uid) -> bool {
    user.is_root() || user == geteuid()
}

/// Asks for the status with some of the peers. `None`: the process has no such socket, or does not know
/// this request, or is ending, or has other things to do there (one that is older than this program).
///
/// # Errors
/// When what it answers cannot be read.
pub fn ask_status(directory: &Path, peers: PeersAsked) -> Result<Option<Vec<u8>>, Failure> {
    let path = directory.join(SOCKET);
    let Ok(mut stream) = stream::connect(&path, STATUS_PATIENCE) else { return Ok(None) };
    let asked = send(&mut stream, Request::Show(peers));
    let answer = match asked.and_then(|()| read_all(&mut stream, STATUS_PATIENCE, MAX_STATUS)) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(None),
        answer => answer.map_err(|e| failed(&path, &e))?,
    };
    // A refusal is an answer in its envelope; a status has none, and may be megabytes.
    Ok((!answer.is_empty() && !answer.starts_with(br#"{"ipipou":"#)).then_some(answer))
}

/// Sends a request to the process whose directory this is.
///
/// # Errors
/// When there is no such process, or this user may not ask.
pub(super) fn connect(directory: &Path, request: Request) -> Result<Connection, Failure> {
    let path = directory.join(SOCKET);
    let failed = |e: io::Error| failed(&path, &e);
    let mut stream = stream::connect(&path, PATIENCE).map_err(failed)?;
    send(&mut stream, request).map_err(failed)?;
    Ok(stream)
}

fn send(stream: &mut Connection, request: Request) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let envelope = Envelope { ipipou: VERSION, content: Asked { request } };
    stream.write_all(&serde_json::to_vec(&envelope)?)?;
    stream.shutdown(Shutdown::Write)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::Generic(format!(
            "{}: no process answers there: it is not running, or older than this program; see \
             `ipipou show`",
            path.display()
        )),
        io::ErrorKind::PermissionDenied => Failure::Generic(format!(
            "{}: {error}: only root and the service's user may ask",
            path.display()
        )),
        _ => Failure::Generic(format!("{}: {error}", path.display())),
    }
}

/// An answer as it is sent.
pub(super) fn rendered(answer: Answer) -> Vec<u8> {
    let envelope = Envelope { ipipou: VERSION, content: answer };
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// The line that precedes events.
pub(super) fn accepted() -> Vec<u8> {
    let mut line = rendered(Answer::done(""));
    line.push(b'\n');
    line
}

/// Whether an answer says that it is done.
///
/// # Errors
/// What it says otherwise.
pub(super) fn is_accepted(answer: &[u8]) -> Result<(), Failure> {
    let answer: Envelope<Answer> = serde_json::from_slice(answer)
        .map_err(|_| Failure::Generic("the process is older than this program".to_owned()))?;
    match answer.content.ok {
        true => Ok(()),
        false => Err(Failure::Generic(answer.content.text)),
    }
}

impl Files {
    /// The bytes of a file of a secret.
    ///
    /// # Errors
    /// Why there are none.
    pub fn secret(&self, path: &Path) -> Result<Vec<u8>, String> {
        let bytes =
            self.secrets.get(path).cloned().unwrap_or_else(|| Err("was not read".to_owned()))?;
        STANDARD.decode(bytes).map_err(|e| e.to_string())
    }

    /// Adds the bytes of a file of a secret, or why it cannot be read.
    pub fn add_secret(&mut self, path: &Path, read: &Result<Vec<u8>, String>) {
        let text = read.as_ref().map(|bytes| STANDARD.encode(bytes)).map_err(Clone::clone);
        self.secrets.insert(path.to_owned(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_version_is_refused_by_its_number() {
        let later = br#"{"ipipou":2,"request":{"dance":7}}"#;
        assert!(taken_apart(later).unwrap_err().contains("version 2"));
        let unknown = br#"{"ipipou":1,"request":{"dance":7}}"#;
        assert!(taken_apart(unknown).unwrap_err().contains("not a request"));
        assert!(taken_apart(b"").unwrap_err().contains("not a request"));
        let kick = br#"{"ipipou":1,"request":{"kick":"anna"}}"#;
        assert_eq!(taken_apart(kick), Ok(Request::Kick("anna".to_owned())));
    }

    #[test]
    fn the_bytes_of_secrets_arrive_as_they_were() {
        let mut files = Files::default();
        let (here, gone) = (Path::new("/a"), Path::new("/b"));
        files.add_secret(here, &Ok(vec![0, 255, 10]));
        files.add_secret(gone, &Err("is a fifo".to_owned()));
        let text = serde_json::to_vec(&files).unwrap();
        let files: Files = serde_json::from_slice(&text).unwrap();
        assert_eq!(files.secret(here), Ok(vec![0, 255, 10]));
        assert_eq!(files.secret(gone), Err("is a fifo".to_owned()));
        assert_eq!(files.secret(Path::new("/c")), Err("was not read".to_owned()));
    }
}
