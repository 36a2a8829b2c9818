//! The options of tunnels with many peers as given. A server can learn who its clients are, and
//! hosts can know each other from a table.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::attributes::Misplaced::Refused;
use super::attributes::{Attributes, Secrecy, both, server};
use crate::cli::{address, value};
use crate::engine::peers_file::pool::Pool;

/// The options of many peers as given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Many peers")]
pub struct PeersOptions {
    /// Server: many clients, each with a key and addresses of its own, from a file or from the *.toml
    /// files of a directory; read again at SIGHUP. In a .conf file NAME.conf the value may be missing:
    /// /etc/ipipou/NAME.peers.d
    #[arg(long, value_name = "PATH", value_parser = value::path_or_none,
          num_args = 0..=1, default_missing_value = "")]
    pub peers: Option<PathBuf>,
    /// With --peers: the networks of new peers' addresses, one of IPv4 and one of IPv6 at most, within
    /// the server's own [default: its network of IPv4]
    #[arg(long, value_name = "NETWORK[,NETWORK]", value_parser = address::pool)]
    pub pool: Option<Pool>,
    /// Server: many clients, who reach each other too. From their packets learn which inner address
    /// is whose; all are from the network of --tunl-ip IP/LEN. For --datapath tun
    #[arg(long)]
    pub learn: bool,
    /// Free an inner address that was silent for SEC seconds for other clients [default: 60]
    #[arg(long, value_name = "SEC", value_parser = value::lifetime)]
    pub learn_lifetime: Option<Duration>,
    /// How many inner addresses are learned at most, and from how many clients, 1..65536
    /// [default: 1024]
    #[arg(long, value_name = "N", value_parser = value::learn_limit)]
    pub learn_limit: Option<NonZeroUsize>,
    /// Table of all hosts by inner address, in JSON; read again when it changes. No server, no
    /// client, no keys: hosts know each other by their outer addresses
    #[arg(long, value_name = "FILE", value_parser = value::path)]
    pub hosts_file: Option<PathBuf>,
    /// The table, from an http:// or https:// URL
    #[arg(long, value_name = "URL", value_parser = value::url)]
    pub hosts_url: Option<String>,
    /// Fetch the table every SEC seconds, at least 10 [default: 300]
    #[arg(long, value_name = "SEC", value_parser = value::interval)]
    pub hosts_url_interval: Option<Duration>,
    /// Who may sign the certificate of the table's server: PEM certificates in a file [default:
    /// those of the system]
    #[arg(long, value_name = "FILE", value_parser = value::path)]
    pub ca_file: Option<PathBuf>,
    /// The same, in the files of a directory
    #[arg(long, value_name = "DIR", value_parser = value::path)]
    pub ca_path: Option<PathBuf>,
}

pub const ATTRIBUTES: &[Attributes] = &[
    server("peers", Refused).not_with_table(),
    server("pool", Refused).not_with_table().only_with("peers").for_commands(),
    server("learn", Refused).not_with_table().not_with_peers().userspace_only(),
    server("learn-lifetime", Refused).not_with_table().only_with("learn"),
    server("learn-limit", Refused).not_with_table().only_with("learn"),
    both("hosts-file").not_with_peers(),
    both("hosts-url").not_with_peers().value(Secrecy::Url),
    both("hosts-url-interval").only_with("hosts-url"),
    both("ca-file").only_with("hosts-url"),
    both("ca-path").only_with("hosts-url"),
];
