//! Signals: the end, a new authentication, and those that must not end a tunnel.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that mean something, or at least do not end the process.
pub struct Signals {
    end: [Signal; 2],
    reauthenticate: Signal,
    ignored: [Signal; 2],
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// SIGTERM, SIGINT.
    End,
    /// SIGUSR1.
    Reauthenticate,
    /// Its name.
    Ignored(&'static str),
}

impl Signals {
    /// From now on none of them ends the process by itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn catch() -> io::Result<Self> {
        Ok(Signals {
            end: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
            reauthenticate: signal(SignalKind::user_defined1())?,
            ignored: [signal(SignalKind::user_defined2())?, signal(SignalKind::hangup())?],
        })
    }

    pub async fn next(&mut self) -> Caught {
        let [terminate, interrupt] = &mut self.end;
        let [user2, hangup] = &mut self.ignored;
        tokio::select! {
            _ = terminate.recv() => Caught::End,
            _ = interrupt.recv() => Caught::End,
            _ = self.reauthenticate.recv() => Caught::Reauthenticate,
            _ = user2.recv() => Caught::Ignored("SIGUSR2"),
            _ = hangup.recv() => Caught::Ignored("SIGHUP"),
        }
    }
}
