//! The control socket: every connection gets the status as JSON and is closed. Both ends of it are here.
//!
//! Only root and the service's own user can connect: the directory and the socket are closed to others.

use std::io;
use std::os::unix::net::UnixStream as Connection;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::Failure;
use super::listener::{Connected, Listener};
use super::requests;
use super::snapshot::{PeersAsked, Snapshot};
use super::stream::{self, MAX_STATUS, read_all};
use crate::host::make_private;
use crate::observe::status::ProcessStatus;
use crate::observe::{is_command, printable};

const SOCKET: &str = "control.sock";

/// How many are answered at a time: a status may be megabytes.
const AT_A_TIME: usize = 8;

/// How long `show` waits for one process, and one process for `show`.
const PATIENCE: Duration = Duration::from_secs(5);

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
    make_private(directory)?;
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

/// Asks the process of this directory for its status. `None` when nothing answers: a process that was killed
/// leaves its socket behind.
///
/// # Errors
/// When it does not answer in time, or this user may not ask.
pub fn ask(directory: &Path, peers: &PeersAsked) -> Result<Option<ProcessStatus>, Failure> {
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

/// The failure to read a directory or a socket of a process.
pub fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => ": only root and the service's user may see it",
        _ => "",
    };
    Failure::Generic(format!("{}: {error}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

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
