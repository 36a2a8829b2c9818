//! Talks to processes that may answer too late or never, or may have gone.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Connection;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::host::clock::Clock;

/// The longest status that is read: there is room for many thousand remotes.
pub const MAX_STATUS: usize = 64 << 20;

/// How often is looked whether somebody has gone.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Connects to a process that listens at `path`. One that takes no connections, as one that was stopped,
/// is waited for as long as `patience` once its queue is full.
///
/// # Errors
/// `TimedOut` after that; otherwise what the kernel said.
pub fn connect(path: &Path, patience: Duration) -> io::Result<Connection> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?; // connect(2) obeys it (unix_stream_connect)
    socket.connect(&SockAddr::unix(path)?).map_err(named)?;
    socket.set_write_timeout(None)?;
    Ok(Connection::from(OwnedFd::from(socket)))
}

/// The error of a time limit has the name of another one (SO_RCVTIMEO in socket(7)).
fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Waits until the other end has closed it, once all that it sent is read.
pub async fn gone(stream: &UnixStream) {
    loop {
        match stream.ready(Interest::ERROR | Interest::WRITABLE).await {
            Ok(ready) if ready.is_write_closed() || ready.is_error() => return,
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            Err(_) => return,
        }
    }
}

/// Reads up to the end. All of it, not each part, has as long as `patience`.
///
/// # Errors
/// When it takes longer, or is longer than `most` bytes and what one call reads.
pub fn read_all(stream: &mut Connection, patience: Duration, most: usize) -> io::Result<Vec<u8>> {
    let start = Clock::start();
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(_) if bytes.len() > most => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(named(e)),
        }
    }
}
