//! Signals: those that end the tunnel, authenticate again or read the table again, and those that must
//! not end it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that mean something here, or that would end the process.
pub struct Signals {
    end: [Signal; 2],
    reauthenticate: Signal,
    reload: Signal,
    ignored: Signal,
}

/// What a signal requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// SIGTERM, SIGINT.
    End,
    /// SIGUSR1.
    Reauthenticate,
    /// SIGHUP.
    Reload,
    /// A signal of this name, which is ignored.
    Ignored(&'static str),
}

impl Signals {
    /// Catches the signals: from now on none of them ends the process by itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn catch() -> io::Result<Self> {
        Ok(Signals {
            end: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
            reauthenticate: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
            ignored: signal(SignalKind::user_defined2())?,
        })
    }

    pub async fn next(&mut self) -> Caught {
        let [terminate, interrupt] = &mut self.end;
        tokio::select! {
            _ = terminate.recv() => Caught::End,
            _ = interrupt.recv() => Caught::End,
            _ = self.reauthenticate.recv() => Caught::Reauthenticate,
            _ = self.reload.recv() => Caught::Reload,
            _ = self.ignored.recv() => Caught::Ignored("SIGUSR2"),
        }
    }
}
