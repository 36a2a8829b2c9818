//! `ipipou monitor`: prints the events of a tunnel.

use std::io::{self, Write as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Failure;
use super::requests::{Request, connect, is_accepted};
use super::running::directory;
use super::stream::LOOK_EVERY;
use crate::engine::config::TunnelName;
use crate::observe::events::{Happened, Kind};
use crate::observe::{printable, printable_json};

/// The longest line that is read.
const LONGEST_LINE: usize = 64 << 10;

/// Prints the events of the tunnel called `name`, or of the only one below `root`, until SIGINT or SIGTERM.
/// `peer`: only those of this one.
///
/// # Errors
/// When there is no such tunnel, or its process ends.
pub fn monitor(
    root: &Path,
    name: Option<&TunnelName>,
    peer: Option<String>,
    json: bool,
) -> Result<(), Failure> {
    let directory = directory(root, name, |_| true)?;
    let stream = connect(&directory, Request::Monitor(peer))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start"))?;
    let result = runtime.block_on(async {
        let mut end = End::catch().map_err(Failure::system("catch signals"))?;
        stream.set_nonblocking(true).map_err(Failure::system("read"))?;
        let stream = UnixStream::from_std(stream).map_err(Failure::system("read"))?;
        tokio::select! {
            biased;
            () = end.comes() => Ok(()),
            result = watch(stream, json) => result,
            () = reader_gone() => Ok(()),
        }
    });
    // A line that cannot be written delays nothing.
    runtime.shutdown_background();
    result
}

/// Prints the events that come from a process until nobody reads them any more.
async fn watch(stream: UnixStream, json: bool) -> Result<(), Failure> {
    let ended = || Failure::Generic("the tunnel's process has ended".to_owned());
    let mut lines = Lines { stream: BufReader::new(stream), line: Vec::new() };
    is_accepted(&lines.next().await.ok_or_else(ended)?)?;
    eprintln!("ipipou: watching; SIGINT (Ctrl-C) ends it");
    loop {
        let line = lines.next().await;
        let happened = line.and_then(|line| serde_json::from_slice::<Happened>(&line).ok());
        let happened = happened.ok_or_else(ended)?;
        let shown = match json {
            true => printable_json(&serde_json::to_string(&happened).unwrap_or_default()),
            false => printable(&happened.line()),
        };
        // The reader may be slow, and the pipe full.
        let written = spawn_blocking(move || writeln!(std::io::stdout(), "{shown}")).await;
        if !written.is_ok_and(|written| written.is_ok()) {
            return Ok(()); // the reader has seen enough
        }
        if happened.event == Kind::Missed {
            return Err(Failure::Generic("events were missed: see above".to_owned()));
        }
    }
}

/// The signals that end it in good order; all others do what they do to any program.
struct End([Signal; 2]);

impl End {
    fn catch() -> io::Result<Self> {
        Ok(End([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn comes(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// Waits until nobody reads the standard output any more, which is never so of a file or a terminal.
async fn reader_gone() {
    loop {
        let output = io::stdout();
        let mut output = [PollFd::new(&output, PollFlags::empty())];
        let _ = poll(&mut output, Some(&Timespec::default())); // it is looked at again
        let [output] = output;
        if output.revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
        sleep(LOOK_EVERY).await;
    }
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
