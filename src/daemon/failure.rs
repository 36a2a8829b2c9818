//! Why the program ends, and with which exit code. The codes are the same as in the first `ipipou`.

use std::io;

use crate::engine::host::step::Step;
use crate::host::nft::NftError;
use crate::host::{ModuleError, StepError};
use crate::kernel::{QueueError, StartError};

/// The exit codes in use. The man page's table is made from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Generic = 1,
    Usage = 2,
    Module = 10,
    Queue = 20,
    Rules = 40,
    Address = 51,
    Link = 52,
    Port = 53,
    Settings = 54,
    Sending = 120,
    Cleanup = 200,
}

impl Exit {
    pub const ALL: [Exit; 12] = [
        Exit::Ok,
        Exit::Generic,
        Exit::Usage,
        Exit::Module,
        Exit::Queue,
        Exit::Rules,
        Exit::Address,
        Exit::Link,
        Exit::Port,
        Exit::Settings,
        Exit::Sending,
        Exit::Cleanup,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of the code, as a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "The tunnel was removed, or everything asked for was done.",
            Exit::Generic => "Any other failure.",
            Exit::Usage => {
                "Usage: wrong options, a mistake in a file, or an interface that does not exist; as a \
                 service, also a right that the unit does not give."
            }
            Exit::Module => "A kernel module could not be loaded.",
            Exit::Queue => "The netfilter queue.",
            Exit::Rules => "The nftables rules.",
            Exit::Address => "An address.",
            Exit::Link => "The tunnel interface.",
            Exit::Port => "The UDP port: the FOU listener, or our own socket.",
            Exit::Settings => "A route, a setting of an interface, or the name servers.",
            Exit::Sending => "Sending an authentication packet.",
            Exit::Cleanup => "The tunnel could not be removed completely.",
        }
    }
}

/// Why the program ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Generic(String),
    #[error("the kernel refuses a netlink request: {0}")]
    Netlink(#[source] io::Error),
    #[error("the kernel has no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The system refused something that the process itself needs.
    #[error("cannot {doing}: {error}")]
    System { doing: &'static str, error: io::Error },
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Rules(#[from] NftError),
    /// The process lacks a capability.
    #[error("{0}")]
    Capability(String),
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
    #[error("{0} things could not be removed; see above")]
    Cleanup(usize),
}

impl Failure {
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Generic(_)
            | Failure::Capability(_)
            | Failure::Netlink(_)
            | Failure::Random(_)
            | Failure::System { .. } => Exit::Generic,
            Failure::Usage(_) => Exit::Usage,
            Failure::Module(_) => Exit::Module,
            Failure::Queue(_) => Exit::Queue,
            Failure::Rules(_) => Exit::Rules,
            Failure::Address(_) => Exit::Address,
            Failure::Link(_) => Exit::Link,
            Failure::Fou(_) => Exit::Port,
            Failure::Step { error, .. } => match error {
                StepError::Rules(_) => Exit::Rules,
                StepError::Address(_) => Exit::Address,
                StepError::Link(_) | StepError::Tun(_) => Exit::Link,
                StepError::Listener(_) | StepError::Socket(_) => Exit::Port,
                StepError::Route(_) | StepError::Setting(_) | StepError::Dns(_) => Exit::Settings,
            },
            Failure::Sending(_) => Exit::Sending,
            Failure::Cleanup(_) => Exit::Cleanup,
        }
    }

    /// The failure of a service. A failure that lasts until somebody changes the service's rights or a
    /// file counts as usage; after any other, the unit is started again (`RestartPreventExitStatus=`).
    pub fn of_service(self) -> Failure {
        let is_refusal = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            )
        };
        let stays = matches!(&self, Failure::Capability(_))
            || matches!(
                &self,
                Failure::Step { error: StepError::Dns(error), .. } if is_refusal(error)
            );
        if stays { Failure::Usage(self.to_string()) } else { self }
    }

    /// Makes a [`Failure::System`] of an error that happened while doing this.
    pub fn system(doing: &'static str) -> impl Fn(io::Error) -> Failure {
        move |error| Failure::System { doing, error }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Queue(error) => Failure::Queue(error),
            StartError::Sending(error) => Failure::Sending(error),
        }
    }
}
