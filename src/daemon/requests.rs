//! What an operator asks of a running process: a socket beside that of the status, to which `ipipou
//! reload` and `ipipou peer kick` send one request each.
//!
//! A request and its answer are JSON, each ends with its direction of the connection, and both have a
//! version. Only root and the service's own user can connect: the directory is closed to others. Who
//! asks reads the files of peers, because a service without rights cannot.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::Failure;
use super::events::Events;
use super::snapshot::{PeersAsked, Snapshot};
use super::stream::{MAX_STATUS, read_all};

const SOCKET: &str = "request.sock";

/// The version of requests and answers.
const VERSION: u32 = 1;

/// The longest request that is read: 10,000 peers need 4 MiB.
const LONGEST: u64 = 64 << 20;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 4 << 20;

/// How many are asked for something at a time: each may be long.
const AT_A_TIME: usize = 8;

/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Where the files of peers are, for [`Request::Where`]; `None`: this is no server with such files.
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

/// What is asked, one after the other. The socket is removed when it is dropped.
#[derive(Debug)]
pub struct Requests {
    pending: mpsc::Receiver<Pending>,
    path: PathBuf,
}

impl Requests {
    /// Waits for the next request.
    pub async fn next(&mut self) -> Option<Pending> {
        self.pending.recv().await
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // it is fine if it is gone already
    }
}

/// Listens in `directory`.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(directory: &Path, events: &Events) -> io::Result<Requests> {
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let (sender, pending) = mpsc::channel(1);
    let events = events.clone();
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await
            && let Ok((stream, _)) = listener.accept().await
        {
            let (sender, events) = (sender.clone(), events.clone());
            tokio::spawn(async move {
                let _ = tokio::time::timeout(PATIENCE, serve(stream, &sender, &events)).await;
                drop(place);
            });
        }
    });
    Ok(Requests { pending, path })
}

async fn serve(
    mut stream: UnixStream,
    requests: &mpsc::Sender<Pending>,
    events: &Events,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    (&mut stream).take(LONGEST + 1).read_to_end(&mut bytes).await?;
    // That many bytes would hold the loop.
    let request = spawn_blocking(move || read(&bytes)).await.map_err(io::Error::other)?;
    let reply = match request {
        Ok(Request::Monitor(peer)) => match events.follow(stream, peer, accepted()) {
            Ok(()) => return Ok(()),
            Err((back, why)) => {
                stream = back;
                Reply::Said(Answer::refused(why))
            }
        },
        Ok(request) => {
            let (sender, answer) = oneshot::channel();
            let closed = || Reply::Said(Answer::refused("the process is ending"));
            match requests.send((request, sender)).await {
                Ok(()) => answer.await.unwrap_or_else(|_| closed()),
                Err(_) => closed(),
            }
        }
        Err(why) => Reply::Said(Answer::refused(why)),
    };
    let bytes = match reply {
        Reply::Said(answer) => {
            let envelope = Envelope { ipipou: VERSION, content: answer };
            serde_json::to_vec(&envelope).unwrap_or_default()
        }
        Reply::Status(snapshot) => snapshot.rendered().await,
    };
    stream.write_all(&bytes).await
}

/// Takes a request apart.
///
/// # Errors
/// Why it is none.
fn read(bytes: &[u8]) -> Result<Request, String> {
    if bytes.len() as u64 > LONGEST {
        return Err(format!("a request has at most {} MiB", LONGEST >> 20));
    }
    let version: Envelope<serde::de::IgnoredAny> = match serde_json::from_slice(bytes) {
        Ok(version) => version,
        Err(e) => return Err(format!("this is no request: {e}")),
    };
    if version.ipipou != VERSION {
        let other = version.ipipou;
        return Err(format!(
            "the request has version {other} and the running process knows {VERSION}: restart it"
        ));
    }
    let asked: Envelope<Asked> =
        serde_json::from_slice(bytes).map_err(|e| format!("this is no request: {e}"))?;
    Ok(asked.content.request)
}

/// As which user a process runs that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsAs {
    /// As this one, or as root.
    Us,
    /// As another one, whose word is not ours.
    Another,
}

/// Asks the process whose directory this is.
///
/// # Errors
/// When it does not answer in time.
pub fn ask(directory: &Path, request: Request) -> Result<(Answer, RunsAs), Failure> {
    let path = directory.join(SOCKET);
    let mut stream = connect(directory, request)?;
    let answer = read_all(&mut stream, PATIENCE, LONGEST_ANSWER).map_err(|e| failed(&path, &e))?;
    let user = socket_peercred(&stream).map_err(|e| failed(&path, &e.into()))?.uid;
    let is_ours = user.is_root() || user == geteuid();
    let runs_as = if is_ours { RunsAs::Us } else { RunsAs::Another };
    let answer: Envelope<Answer> = serde_json::from_slice(&answer)
        .map_err(|e| Failure::Generic(format!("{}: no answer: {e}", path.display())))?;
    Ok((answer.content, runs_as))
}

/// Asks for the status with some of the peers. `None`: the process has no such socket, or does not know
/// this request, or is ending.
///
/// # Errors
/// When it does not answer in time.
pub fn ask_status(directory: &Path, peers: PeersAsked) -> Result<Option<Vec<u8>>, Failure> {
    let path = directory.join(SOCKET);
    let Ok(mut stream) = Connection::connect(&path) else { return Ok(None) };
    let failed = |e: io::Error| failed(&path, &e);
    send(&mut stream, Request::Show(peers)).map_err(failed)?;
    let answer = read_all(&mut stream, STATUS_PATIENCE, MAX_STATUS).map_err(failed)?;
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
    let mut stream = Connection::connect(&path).map_err(failed)?;
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

/// The line that precedes events.
fn accepted() -> Vec<u8> {
    let envelope = Envelope { ipipou: VERSION, content: Answer::done("") };
    let mut line = serde_json::to_vec(&envelope).unwrap_or_default();
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
        assert!(read(later).unwrap_err().contains("version 2"));
        let unknown = br#"{"ipipou":1,"request":{"dance":7}}"#;
        assert!(read(unknown).unwrap_err().contains("no request"));
        assert!(read(b"").unwrap_err().contains("no request"));
        let kick = br#"{"ipipou":1,"request":{"kick":"anna"}}"#;
        assert_eq!(read(kick), Ok(Request::Kick("anna".to_owned())));
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
