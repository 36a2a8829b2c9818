//! Distributes events to the programs that watch a tunnel.
//!
//! The loop puts them into a ring and waits for nobody. Each reader has a task of its own; one that is too
//! slow for the ring learns how many it missed, and is let go.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};

use super::stream::gone;
use crate::engine::Report;
use crate::engine::peers_file::PeerName;
use crate::host::clock;
use crate::observe::events::{Happened, Kind};

/// How many events wait for a slow reader.
const RING: usize = 1024;

/// How many readers there may be.
const READERS: usize = 8;

/// How long a reader may read nothing while there is something for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where events go.
#[derive(Debug, Clone)]
pub struct Events {
    tunnel: Arc<str>,
    /// The peer that they are about, where a report does not name one.
    peer: Option<PeerName>,
    sender: broadcast::Sender<Arc<Line>>,
    places: Arc<Semaphore>,
}

/// An event, as it is sent to all readers.
#[derive(Debug)]
struct Line {
    peer: Option<String>,
    json: Vec<u8>,
}

impl Events {
    /// Those of the tunnel whose runtime directory this is.
    pub fn of(directory: &Path) -> Self {
        let tunnel = directory.file_name().unwrap_or_default().to_string_lossy();
        Events {
            tunnel: tunnel.into(),
            peer: None,
            sender: broadcast::Sender::new(RING),
            places: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// The same, about this peer.
    pub fn about(&self, peer: PeerName) -> Self {
        Events { peer: Some(peer), ..self.clone() }
    }

    /// The peer that they are about, unless they name another one.
    pub fn peer(&self) -> Option<&PeerName> {
        self.peer.as_ref()
    }

    /// Tells all readers of a report.
    pub fn tell(&self, report: &Report) {
        if self.sender.receiver_count() > 0
            && let Some(happened) = Happened::of(report, &self.tunnel, clock::unix())
        {
            let peer = || Some(self.peer.as_ref()?.to_string());
            self.send(Happened { peer: happened.peer.or_else(peer), ..happened });
        }
    }

    /// Tells all readers that the files of peers have mistakes.
    pub fn tell_mistakes(&self, lines: &str) {
        let first = lines.lines().next().unwrap_or_default();
        let new = Happened::new(&self.tunnel, clock::unix(), Kind::ReloadFailed);
        self.send(Happened { why: Some(first.to_owned()), ..new });
    }

    fn send(&self, happened: Happened) {
        let json = line(&happened);
        let _ = self.sender.send(Arc::new(Line { peer: happened.peer, json })); // nobody may listen
    }

    /// Writes events to a reader as long as it follows, and this first. `peer`: only those of this one.
    ///
    /// # Errors
    /// When there are readers enough, in one line.
    pub fn follow(
        &self,
        mut stream: UnixStream,
        peer: Option<String>,
        first: Vec<u8>,
    ) -> Result<(), (UnixStream, String)> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let Ok(place) = place else {
            return Err((stream, format!("{READERS} others watch this tunnel already")));
        };
        let (mut events, tunnel) = (self.sender.subscribe(), Arc::clone(&self.tunnel));
        tokio::spawn(async move {
            let mut bytes = first;
            loop {
                match tokio::time::timeout(PATIENCE, stream.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => break,
                }
                bytes = match next(&mut events, &stream, peer.as_deref()).await {
                    Next::Line(line) => line.json.clone(),
                    Next::Missed(missed) => {
                        let new = Happened::new(&tunnel, clock::unix(), Kind::Missed);
                        let last = line(&Happened { missed: Some(missed), ..new });
                        let _ = tokio::time::timeout(PATIENCE, stream.write_all(&last)).await;
                        break;
                    }
                    Next::End => break,
                };
            }
            drop(place);
        });
        Ok(())
    }
}

fn line(happened: &Happened) -> Vec<u8> {
    let mut json = serde_json::to_vec(happened).unwrap_or_default();
    json.push(b'\n');
    json
}

enum Next {
    Line(Arc<Line>),
    /// The reader was too slow: it missed this many.
    Missed(u64),
    /// The reader or the process ends.
    End,
}

/// Waits for the next event of this peer, or of any.
async fn next(
    events: &mut broadcast::Receiver<Arc<Line>>,
    stream: &UnixStream,
    peer: Option<&str>,
) -> Next {
    loop {
        let received = tokio::select! {
            received = events.recv() => received,
            () = gone(stream) => return Next::End,
        };
        match received {
            Ok(line) if peer.is_none() || line.peer.as_deref() == peer => return Next::Line(line),
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => return Next::Missed(missed),
            Err(RecvError::Closed) => return Next::End,
        }
    }
}
