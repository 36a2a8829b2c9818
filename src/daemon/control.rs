//! The control socket: whoever connects gets the status as JSON, and the connection is closed.
//!
//! Only root and the service's own user can: the directory and the socket are closed to others.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};

use super::Failure;
use super::clock;
use crate::observe::status::{self, ProcessStatus};

const SOCKET: &str = "control.sock";

/// How long `show` waits for one process.
const PATIENCE: Duration = Duration::from_secs(5);

/// How `ipipou show` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A table that fits on a terminal.
    Table,
    /// All columns.
    Wide,
    Json,
}

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens in `directory`, which is made when missing. A dead process' socket is replaced.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or another process has its socket there.
    pub fn open(directory: &Path) -> io::Result<Self> {
        if Connection::connect(directory.join(SOCKET)).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process has its control socket there",
            ));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(ControlSocket { listener, path })
    }

    /// The next one who asks.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // gone already is as good
    }
}

/// Sends the status in the background, so that a reader who does not read holds nobody up.
pub fn answer(mut stream: UnixStream, status: &ProcessStatus) {
    let Ok(json) = serde_json::to_vec(status) else { return };
    tokio::spawn(async move {
        let _ = tokio::time::timeout(PATIENCE, stream.write_all(&json)).await;
    });
}

/// The text of `ipipou show`: all processes below `root`, or the one called `name`.
///
/// # Errors
/// When there is nothing to show, or it may not be seen.
pub fn show(root: &Path, name: Option<&str>, style: Style) -> Result<String, Failure> {
    let mut processes = Vec::new();
    for directory in directories(root)? {
        let Some(process) = ask(&directory)? else { continue };
        let file_name = directory.file_name().and_then(|n| n.to_str());
        let is_named = |name: &str| {
            file_name == Some(name) || process.tunnels.iter().any(|t| t.interface == name)
        };
        if name.is_none_or(is_named) {
            processes.push(process);
        }
    }
    if let (Some(name), []) = (name, processes.as_slice()) {
        return Err(Failure::Generic(format!(
            "no running tunnel is called {name}; `ipipou show` lists them"
        )));
    }
    if style == Style::Json {
        return serde_json::to_string_pretty(&processes)
            .map(|text| text + "\n")
            .map_err(|e| Failure::Generic(e.to_string()));
    }
    if processes.is_empty() {
        return Ok("no tunnel is running\n".to_owned());
    }
    let now = clock::unix();
    let mut text = status::table(&processes, now, style == Style::Wide);
    if name.is_some() {
        text.extend(processes.iter().map(|process| status::details(process, now)));
    }
    Ok(text)
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

/// `None` when nobody answers: a process that was killed leaves its socket behind.
fn ask(directory: &Path) -> Result<Option<ProcessStatus>, Failure> {
    let path = directory.join(SOCKET);
    let mut stream = match Connection::connect(&path) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(unreadable(&path, &e)),
        Err(_) => return Ok(None),
    };
    let read = || -> io::Result<ProcessStatus> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut json = Vec::new();
        stream.read_to_end(&mut json)?;
        serde_json::from_slice(&json).map_err(io::Error::other)
    };
    let mut read = read;
    read().map(Some).map_err(|e| unreadable(&path, &e))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => ": only root and the service's user may see it",
        _ => "",
    };
    Failure::Generic(format!("{}: {error}{hint}", path.display()))
}
