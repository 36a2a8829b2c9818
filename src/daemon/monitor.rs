//! `ipipou monitor`: prints the events of a tunnel.

use std::io::Write as _;
use std::path::Path;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;

use super::Failure;
use super::control::directory;
use super::requests::{Request, connect, is_accepted};
use super::signals::{Caught, Signals};
use crate::observe::events::{Happened, Kind};
use crate::observe::printable;

/// The longest line that is read.
const LONGEST_LINE: usize = 64 << 10;

/// Prints the events of the tunnel called `name`, or of the only one below `root`, until SIGINT or SIGTERM.
/// `peer`: only those of this one.
///
/// # Errors
/// When there is no such tunnel, or its process ends.
pub fn monitor(
    root: &Path,
    name: Option<&str>,
    peer: Option<String>,
    json: bool,
) -> Result<(), Failure> {
    let directory = directory(root, name, |_| true)?;
    let stream = connect(&directory, Request::Monitor(peer))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start"))?;
    runtime.block_on(async {
        let mut signals = Signals::catch().map_err(Failure::system("catch signals"))?;
        stream.set_nonblocking(true).map_err(Failure::system("read"))?;
        let stream = UnixStream::from_std(stream).map_err(Failure::system("read"))?;
        let mut lines = Lines { stream: BufReader::new(stream), line: Vec::new() };
        let first = lines.next().await.unwrap_or_default();
        is_accepted(&first)?;
        eprintln!("ipipou: watching; SIGINT (Ctrl-C) ends it");
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                caught = signals.next() => match caught {
                    Caught::End => return Ok(()),
                    Caught::Reauthenticate | Caught::Reload | Caught::Ignored(_) => continue,
                },
            };
            let happened = line.and_then(|line| serde_json::from_slice::<Happened>(&line).ok());
            let Some(happened) = happened else {
                return Err(Failure::Generic("the tunnel's process has ended".to_owned()));
            };
            let shown = match json {
                true => serde_json::to_string(&happened).unwrap_or_default(),
                false => printable(&happened.line()),
            };
            if writeln!(std::io::stdout(), "{shown}").is_err() {
                return Ok(()); // who reads it has seen enough
            }
            if happened.event == Kind::Missed {
                return Err(Failure::Generic("events were missed: see above".to_owned()));
            }
        }
    })
}

/// Lines that may be read in parts.
struct Lines {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line, or what there is without its end; `None` at the end. Safe to cancel.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let part = self.stream.fill_buf().await.unwrap_or_default();
            if part.is_empty() {
                return Some(std::mem::take(&mut self.line)).filter(|line| !line.is_empty());
            }
            let end = part.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(part.len(), |end| end + 1);
            self.line.extend_from_slice(&part[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return Some(std::mem::take(&mut self.line));
            }
            if self.line.len() > LONGEST_LINE {
                return None;
            }
        }
    }
}
