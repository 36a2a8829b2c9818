//! Why the program ends, and with which exit code. The codes are those of the first `ipipou`.

use std::io;

use crate::engine::plan::Step;
use crate::kernel::{ModuleError, QueueError, RulesError, StepError};

/// What made the program end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Generic(String),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error("{0}")]
    Address(String),
    #[error("{0}")]
    Link(String),
    #[error("{0}")]
    Fou(String),
    #[error("cannot {step}: {error}")]
    Step { step: Box<Step>, error: StepError },
    #[error("cannot send the authentication packet: {0}")]
    Sending(#[source] io::Error),
    #[error("{0} of our things could not be removed; see above")]
    Cleanup(usize),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Generic(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Module(_) => 10,
            Failure::Queue(_) => 20,
            Failure::Rules(_) => 40,
            Failure::Address(_) => 51,
            Failure::Link(_) => 52,
            Failure::Fou(_) => 53,
            Failure::Step { error, .. } => match error {
                StepError::Rules(_) => 40,
                StepError::Address(_) => 51,
                StepError::Link(_) | StepError::Tun(_) => 52,
                StepError::Listener(_) | StepError::Socket(_) => 53,
                StepError::Route(_) | StepError::Setting(_) | StepError::Dns(_) => 54,
            },
            Failure::Sending(_) => 120,
            Failure::Cleanup(_) => 200,
        }
    }
}
