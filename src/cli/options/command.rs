//! The program can do other things than run a tunnel. Each of them is a command, the first word of
//! the command line.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::cli::address::{self, PeerAddress};
use crate::cli::endpoint;
use crate::cli::value::{self, PublicKey};
use crate::engine::config::HostName;
use crate::engine::peers_file::PeerName;

/// What else the program does, besides being a tunnel.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show the tunnels of this host
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// All columns, however wide: local and inner addresses, packets accepted and refused
        #[arg(long, conflicts_with = "json")]
        wide: bool,
        /// Where the tunnels' control sockets are
        #[arg(long, value_name = "DIR", default_value = "/run/ipipou",
              value_parser = value::path)]
        runtime_root: PathBuf,
        /// Only this tunnel
        #[arg(value_name = "NAME", value_parser = value::tunnel_name)]
        name: Option<String>,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Check the .conf file NAME, or the options of a start, without touching a tunnel
    Check {
        /// Name the options that this earlier copy of the file has otherwise
        #[arg(long, value_name = "FILE", value_parser = value::path, hide = true)]
        running: Option<PathBuf>,
        /// As in --config
        #[arg(value_name = "NAME", value_parser = value::path)]
        name: PathBuf,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Have a running tunnel take its files of peers as they are now; one without authenticates again
    Reload {
        /// Leave a tunnel without such files alone
        #[arg(long, hide = true)]
        if_peers: bool,
        /// Where the tunnels' control sockets are
        #[arg(long, value_name = "DIR", default_value = "/run/ipipou",
              value_parser = value::path)]
        runtime_root: PathBuf,
        /// The tunnel's file or interface, where several run
        #[arg(value_name = "NAME", value_parser = value::tunnel_name)]
        name: Option<String>,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Have a running client ask its server whether it is there, as often as once a second
    Ping {
        /// How many times
        #[arg(short = 'c', long, value_name = "COUNT", default_value_t = 3,
              value_parser = value::pings)]
        count: u32,
        /// The client's file or interface, where several run
        #[arg(short = 'i', long, value_name = "NAME", value_parser = value::tunnel_name)]
        tunnel: Option<String>,
        /// Where the tunnels' control sockets are
        #[arg(long, value_name = "DIR", default_value = "/run/ipipou",
              value_parser = value::path)]
        runtime_root: PathBuf,
        /// Which of several servers, as in -r [default: the one in use]
        #[arg(value_name = "HOST")]
        host: Option<String>,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Print a line for each thing that happens to a tunnel: peers that come, move and go, what is refused
    /// and repaired, and whether a client is connected
    Monitor {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only what happens to this peer
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
        #[command(flatten)]
        running: RunningOptions,
    },
    /// Print a new private key in base64
    Genkey {
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Print the public key of the tunnel NAME, or of a private key that is read from the standard input
    Pubkey {
        /// As in --config
        #[arg(value_name = "NAME", value_parser = value::path)]
        name: Option<PathBuf>,
        /// Where the tunnels' control sockets are
        #[arg(long, value_name = "DIR", default_value = "/run/ipipou",
              value_parser = value::path)]
        runtime_root: PathBuf,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Show, name, keep out or remove the peers of a server whose peers are named in files
    Peer {
        #[command(subcommand)]
        command: PeerCommand,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
    /// Print the man page or shell completions
    #[command(hide = true)]
    Generate {
        document: Document,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
    },
}

/// Which server's files are changed.
#[derive(Debug, Clone, Args)]
pub struct ServerOptions {
    /// The server's file, as in --config [default: the only one in /etc/ipipou that has `peers`]
    #[arg(short = 'i', long = "tunnel", value_name = "NAME", value_parser = value::path)]
    pub file: Option<PathBuf>,
    /// Where the tunnels' control sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/ipipou", value_parser = value::path)]
    pub runtime_root: PathBuf,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    pub help: Option<bool>,
}

/// Which running server is asked.
#[derive(Debug, Clone, Args)]
pub struct RunningOptions {
    /// The server's file or interface, where several run
    #[arg(short = 'i', long, value_name = "NAME", value_parser = value::tunnel_name)]
    pub tunnel: Option<String>,
    /// Where the tunnels' control sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/ipipou", value_parser = value::path)]
    pub runtime_root: PathBuf,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    pub help: Option<bool>,
}

/// What is done with peers.
#[derive(Debug, Clone, Subcommand)]
pub enum PeerCommand {
    /// A table of all peers
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only those that are connected, away, new, expired or disabled
        #[arg(long, value_name = "STATE", value_parser = value::peer_state)]
        state: Option<String>,
        #[command(flatten)]
        running: RunningOptions,
    },
    /// Name one more peer in a file of its own, and have the running server take it. Twice the same changes
    /// nothing
    Add {
        /// The peer's name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
        #[arg(value_name = "NAME")]
        name: PeerName,
        /// Its ed25519 public key in base64
        #[arg(long, value_name = "BASE64", value_parser = value::public_key, conflicts_with = "client_conf")]
        public_key: Option<PublicKey>,
        /// Make a key pair for it, and write the file that its client is started with
        #[arg(long, value_name = "FILE", value_parser = value::path)]
        client_conf: Option<PathBuf>,
        /// In that file: name or address of this server, as clients reach it
        #[arg(long, value_name = "HOST", value_parser = endpoint::host, requires = "client_conf")]
        server_host: Option<HostName>,
        /// Its address inside the tunnel; may be repeated. "auto": the first of the server's --pool
        /// that is free [default: auto]
        #[arg(long, value_name = "IP", action = ArgAction::Append, value_parser = address::of_peer)]
        address: Vec<PeerAddress>,
        /// A network behind it; may be repeated
        #[arg(long, value_name = "NETWORK", action = ArgAction::Append)]
        route: Vec<IpNet>,
        /// Its last day, as 2027-01-31
        #[arg(long, value_name = "DATE", value_parser = value::date)]
        expires: Option<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Make peers of servers with one client each, whose clients stay as they are. Nothing is written if
    /// one of them cannot be
    Import {
        /// The servers' files
        #[arg(value_name = "FILE", required = true, value_parser = value::path)]
        files: Vec<PathBuf>,
        /// Print what would be written, without secrets
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Let peers in again that were disabled
    Enable {
        /// The peers
        #[arg(value_name = "NAME", required = true)]
        names: Vec<PeerName>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Keep peers out: `enabled = false` in their files
    Disable {
        /// The peers
        #[arg(value_name = "NAME", required = true)]
        names: Vec<PeerName>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Take peers out of their files
    Remove {
        /// The peers
        #[arg(value_name = "NAME", required = true)]
        names: Vec<PeerName>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// End the session of a peer, which may come back: `enabled = false` in its file keeps it out
    Kick {
        /// The peer
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        running: RunningOptions,
    },
    /// Everything about one peer
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The peer
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        running: RunningOptions,
    },
}

/// What `ipipou generate` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Document {
    Man,
    Bash,
    Zsh,
    Fish,
}
