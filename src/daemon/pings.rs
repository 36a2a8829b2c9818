//! The hellos that somebody asks a running client for, by `ipipou ping`.

use std::time::Duration;

use tokio::sync::oneshot;

use super::requests::Reply;

/// The hello that somebody asked for, and when the last one was.
#[derive(Debug, Default)]
pub struct Pings {
    pub pending: Option<Ping>,
    /// When the last one was said.
    pub last: Option<Duration>,
}

/// Times count from the start of the process.
#[derive(Debug)]
pub struct Ping {
    /// The number of the server, and what it is called.
    pub server: usize,
    pub name: String,
    pub asked: oneshot::Sender<Reply>,
    /// It is said then.
    pub begins: Duration,
    /// It is said, and the answer may take until then.
    pub until: Option<Duration>,
}

impl Pings {
    /// When there is something to do.
    pub fn next_deadline(&self) -> Duration {
        self.pending.as_ref().map_or(Duration::MAX, |ping| ping.until.unwrap_or(ping.begins))
    }
}
