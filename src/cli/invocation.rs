//! What a command line asks for.

use std::path::PathBuf;

use super::options::Document;
use crate::engine::config::Config;

/// What the program is asked to do.
#[derive(Debug, Clone)]
pub enum Invocation {
    /// Print a new key pair.
    Keygen { labelled: bool },
    /// Show the tunnels whose control sockets are in directories below `runtime_root`.
    Show { json: bool, wide: bool, name: Option<String>, runtime_root: PathBuf },
    /// Print that there are no mistakes, and what else is to be said.
    Checked(String),
    /// Print the text that [`super::render`] makes.
    Generate(Document),
    /// Send one authentication packet; the configuration is that of a client.
    Reauth(Box<Run>),
    /// Be a tunnel.
    Run(Box<Run>),
}

/// A tunnel, and what its process needs beside it.
#[derive(Debug, Clone)]
pub struct Run {
    pub config: Config,
    pub log: LogConfig,
    /// Where the replay memory is kept, if that is given.
    pub state_dir: Option<PathBuf>,
    /// Where the control socket is, if that is given.
    pub runtime_dir: Option<PathBuf>,
    /// To be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Warnings and errors at 0, then what happens, every packet, everything.
    pub verbosity: u8,
    /// Whether lines begin with the time.
    pub time: bool,
    /// Whether lines have the process number.
    pub pid: bool,
}
