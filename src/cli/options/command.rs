//! The program can do other things than run a tunnel. Each of them is a command, the first word of
//! the command line.

use std::path::PathBuf;

use clap::{ArgAction, Subcommand, ValueEnum};

use crate::cli::value;

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
    /// Print the man page or shell completions
    #[command(hide = true)]
    Generate {
        document: Document,
        /// Print this help
        #[arg(short = 'h', long, action = ArgAction::Help)]
        help: Option<bool>,
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
