//! An invocation is what a command line asks for.

use std::path::PathBuf;

use super::options::Document;
use crate::engine::config::{Config, TunnelName};
use crate::engine::peers_file::edit::Edit;
use crate::engine::peers_file::import::OldServer;

/// What the program is asked to do.
#[derive(Debug, Clone)]
pub enum Invocation {
    /// Print a new key pair.
    Keygen { labelled: bool },
    /// Show the tunnels whose control sockets are in directories below `runtime_root`.
    Show { json: bool, wide: bool, name: Option<TunnelName>, runtime_root: PathBuf },
    /// Print a new private key.
    Genkey,
    /// Print the public key of the private one that comes by the standard input.
    Pubkey,
    /// Print the public key of the tunnel called `tunnel`, which has this configuration.
    PubkeyOf { config: Box<Config>, tunnel: String, runtime_root: PathBuf },
    /// Show the peers of a server.
    Peers(PeersQuestion),
    /// Change the files of peers of the server that this configuration is; its tunnel is called `tunnel`.
    EditPeers { edit: Edit, config: Box<Config>, tunnel: String, runtime_root: PathBuf },
    /// Make peers of the server that this configuration is from servers with one client.
    ImportPeers {
        servers: Vec<OldServer>,
        dry_run: bool,
        config: Box<Config>,
        tunnel: String,
        runtime_root: PathBuf,
    },
    /// Print what happens from now on, to one peer or to all.
    Monitor { peer: Option<String>, tunnel: Option<TunnelName>, runtime_root: PathBuf, json: bool },
    /// End the session of a peer.
    Kick { peer: String, tunnel: Option<TunnelName>, runtime_root: PathBuf },
    /// Have a running client ask its server whether it is there.
    Ping { host: Option<String>, tunnel: Option<TunnelName>, count: u32, runtime_root: PathBuf },
    /// Have a running tunnel take its files of peers.
    Reload {
        tunnel: Option<TunnelName>,
        runtime_root: PathBuf,
        if_peers: bool,
        /// Where the files of peers are by the tunnel's `.conf` file, if that is known.
        peers: Option<PathBuf>,
    },
    /// Print that there are no mistakes, and what else there is to say, if the files of peers have none
    /// either.
    Checked { text: String, config: Box<Config> },
    /// Print the text that [`super::render`] makes.
    Generate(Document),
    /// Send one authentication packet; the configuration is that of a client.
    Reauth(Box<Run>),
    /// Run a tunnel.
    Run(Box<Run>),
}

/// Which peers are to be shown.
#[derive(Debug, Clone)]
pub struct PeersQuestion {
    /// Only this one.
    pub name: Option<String>,
    /// Only those in this state.
    pub state: Option<String>,
    /// The server's file or interface; `None`: there is one.
    pub tunnel: Option<TunnelName>,
    /// The control sockets are in directories below this one.
    pub runtime_root: PathBuf,
    pub json: bool,
}

/// A tunnel, and what else its process needs.
#[derive(Debug, Clone)]
pub struct Run {
    pub config: Config,
    pub log: LogConfig,
    /// The directory of the replay memory, if it was given.
    pub state_dir: Option<PathBuf>,
    /// The directory of the control socket, if it was given.
    pub runtime_dir: Option<PathBuf>,
    /// Warnings to log once logging is set up.
    pub warnings: Vec<String>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// 0 logs warnings and errors, 1 also what happens, 2 every packet, 3 everything.
    pub verbosity: u8,
    /// Whether lines begin with the time.
    pub time: bool,
    /// Whether lines have the process number.
    pub pid: bool,
}
