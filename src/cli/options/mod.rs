//! The one table of options: parser, help, man page and completions all come from it. Three groups
//! of its rows are in `auth`, `peers` and `gateway`.
//!
//! The row of an option is a field with what clap needs to parse it, and a line of attributes below
//! the fields. These are the options as given; `resolve` decides what they mean together.

pub mod attributes;
pub mod auth;
mod choices;
pub mod command;
mod gateway;
mod given;
pub mod help;
pub mod peers;

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgMatches, FromArgMatches as _, Parser};
use ipnet::Ipv6Net;

pub use self::choices::{DatapathOption, FastPathOption, RpFilter};
pub use self::command::{Command, Document, PeerCommand};

use self::attributes::Misplaced::{Ignored, Refused};
use self::attributes::Proposals::{ConfFiles, Devices, LocalEnds};
use self::attributes::{Attributes, Secrecy, both, client, server};
use self::auth::AuthOptions;
use self::gateway::GatewayOptions;
use self::given::Given;
use self::help::{EXAMPLES, USAGE};
use self::peers::PeersOptions;
use super::address::{self, GivenInner};
use super::endpoint::{self, LocalEnd, RemoteEnds};
use super::value;
use crate::engine::config::{DeviceName, HostName};

/// Authenticated, unencrypted IP tunnels over UDP at kernel speed (IPIP over FOU)
#[derive(Debug, Clone, Parser)]
#[command(
    name = "ipipou",
    bin_name = "ipipou",
    version,
    override_usage = USAGE,
    after_help = format!("Examples:\n{EXAMPLES}"),
    max_term_width = 100,
    args_override_self = true,
    infer_long_args = true,
    allow_negative_numbers = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_flag = true,
    disable_help_subcommand = true,
    disable_version_flag = true
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Which of the options below were given.
    #[arg(skip)]
    pub given: Given,

    /// Client: know the server, make the tunnel at once, prove who we are [default]
    #[arg(short = 'c', long, help_heading = "Role")]
    pub client: bool,
    /// Server: wait for an authenticated packet and make the tunnel towards its source
    #[arg(short = 's', long, help_heading = "Role")]
    pub server: bool,
    /// Number of the tunnel. Defaults that come from it: --tunl-dev ipipouN, --fou-local-port
    /// 10000+N, --tunl-ip (server) 172.28.0.0+2N, --fou-local-ip-alt 172.29.0.0+N,
    /// --queue-number N [default: 0; on a server Q, if only -q Q is given, 1..999]
    #[arg(short, long, value_name = "N", value_parser = value::number, help_heading = "Role")]
    pub number: Option<u32>,

    #[command(flatten)]
    pub auth: AuthOptions,

    /// Our end as [IP][:PORT][@DEV], any part of it; wins over the single options. IPv6 stands in
    /// brackets. @DEV without IP means an address of DEV: a client's that of its route; else the first
    /// that is good beyond the link, which stays while it is there. @auto, on a client: the address of
    /// the route to the server, from network to network
    #[arg(short = 'b', long, value_name = "LOCAL", value_parser = endpoint::local,
          help_heading = "Outer packets")]
    pub fou_local: Option<LocalEnd>,
    /// Our address. Either this or an interface is required
    #[arg(long, value_name = "IP", value_parser = address::any,
          help_heading = "Outer packets")]
    pub fou_local_ip: Option<IpAddr>,
    /// Our UDP port, 1..65535 [default: 10000+N]
    #[arg(long, value_name = "PORT", value_parser = value::port,
          help_heading = "Outer packets")]
    pub fou_local_port: Option<NonZeroU16>,
    /// Our interface: listener and tunnel are bound to it
    #[arg(long, value_name = "DEV", value_parser = value::device,
          help_heading = "Outer packets")]
    pub fou_dev: Option<DeviceName>,
    /// Alternate address for our end of the tunnel, used when another tunnel already goes from our
    /// address to the same remote address [default: 172.29.0.0+N]
    #[arg(long, value_name = "IP", value_parser = address::v4,
          help_heading = "Outer packets")]
    pub fou_local_ip_alt: Option<Ipv4Addr>,
    // `--for` meant this before there was `--forward`, as `--h` meant help.
    /// Use the alternate address in any case
    #[arg(long, alias = "for", help_heading = "Outer packets")]
    pub force_fou_local_ip_alt: bool,
    /// The other end as [IP-or-name][:PORT], IPv6 in brackets; wins over the single options. A
    /// client needs both parts; it looks a name up again when the server may have moved. With the
    /// servers' keys it may have several, with commas: when one does not answer for 3 s, or refuses,
    /// the next is asked
    #[arg(short = 'r', long, value_name = "REMOTE", value_parser = endpoint::remotes,
          help_heading = "Outer packets")]
    pub fou_remote: Option<RemoteEnds>,
    /// Address or name of the other end
    #[arg(long, value_name = "HOST", value_parser = endpoint::host,
          help_heading = "Outer packets")]
    pub fou_remote_ip: Option<HostName>,
    /// UDP port of the other end, 1..65535
    #[arg(long, value_name = "PORT", value_parser = value::port,
          help_heading = "Outer packets")]
    pub fou_remote_port: Option<NonZeroU16>,
    /// Send outer packets with a UDP checksum, but for tunnels with an alternate address [default: the
    /// kernel's choice]
    #[arg(long, help_heading = "Outer packets")]
    pub encap_csum: bool,
    /// Send outer packets without a UDP checksum
    #[arg(long, help_heading = "Outer packets")]
    pub no_encap_csum: bool,

    /// Name of the tunnel interface, at most 15 bytes [default: ipipouN]
    #[arg(long, value_name = "DEV", value_parser = value::device, help_heading = "Tunnel")]
    pub tunl_dev: Option<DeviceName>,
    /// Our address inside the tunnel; a client must give it [default on a server: 172.28.0.0+2N].
    /// With many peers also the network that all inner addresses are from. "auto", on a client that
    /// knows its server's key: the addresses, of both families, that the server has for it
    #[arg(long, value_name = "IP[/LEN]", value_parser = address::given_inner, help_heading = "Tunnel")]
    pub tunl_ip: Option<GivenInner>,
    /// The other end's address inside the tunnel [default: on a server --tunl-ip plus 1, on a
    /// client minus 1]
    #[arg(long, value_name = "IP", value_parser = address::v4, help_heading = "Tunnel")]
    pub tunl_peer_ip: Option<Ipv4Addr>,
    /// Our IPv6 address inside the tunnel, and the length of the network there, which the other end
    /// is in too [default length: 64]. For --datapath tun. Nothing link-local is carried, so Babel and
    /// OSPFv3 do not run over it
    #[arg(long, value_name = "IP[/LEN]", value_parser = address::inner6, help_heading = "Tunnel")]
    pub ip6: Option<Ipv6Net>,
    /// Bytes of the largest packet inside the tunnel, 68..65507 (with --ip6 at least 1280), for a path
    /// that is narrower than the interface it begins with [default: the MTU of that interface, which
    /// is followed, minus 28, with IPv6 outside 48]
    #[arg(long, value_name = "BYTES", value_parser = value::mtu, help_heading = "Tunnel")]
    pub mtu: Option<u32>,
    /// Source addresses that inner packets may have: "strict", only those routed back into the
    /// tunnel; "loose", any that has a route; "off", whatever the interface is set to
    #[arg(
        long,
        value_name = "CHECK",
        default_value = "strict",
        hide_possible_values = true,
        help_heading = "Tunnel"
    )]
    pub rp_filter: RpFilter,

    /// Who carries the packets: "kernel", its FOU and IPIP; "tun", this process, through a TUN
    /// interface; "auto", the kernel if it has both and can do what is asked, else this process
    #[arg(
        long,
        value_name = "WHO",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Datapath"
    )]
    pub datapath: DatapathOption,
    /// BPF programs that carry ordinary IPv4 packets past the datapath: "on", "off", or "auto", where
    /// they make it faster: with the kernel's datapath; with this process if the interface that outer
    /// packets leave by takes many at once, and else for what comes without UDP checksums
    #[arg(
        long,
        value_name = "WHETHER",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Datapath"
    )]
    pub fast_path: FastPathOption,
    /// Threads of this process that read from the TUN interface, 1..16 [default: by number of CPUs]
    #[arg(long, value_name = "N", value_parser = value::queues, help_heading = "Datapath")]
    pub tun_queues: Option<NonZeroUsize>,

    /// Answer valid authentication packets: signed if the server has both keys, otherwise with the
    /// payload reversed
    #[arg(long, help_heading = "Server")]
    pub reply_on_auth_ok: bool,
    /// Accept packets from --fou-remote's address only
    #[arg(long, help_heading = "Server")]
    pub auth_by_remote_ip: bool,
    /// Accept packets from --fou-remote's port only
    #[arg(long, help_heading = "Server")]
    pub auth_by_remote_port: bool,
    /// How far the clocks of client and server may differ, in seconds; 0: any clock will do, but with
    /// --learn 120 [default: 0]
    #[arg(long, value_name = "SEC", value_parser = value::seconds, help_heading = "Server")]
    pub auth_max_time_discrepancy: Option<Duration>,
    /// How long an authentication is good for, in seconds; 0: it never expires [default: 0]
    #[arg(long, value_name = "SEC", value_parser = value::seconds, help_heading = "Server")]
    pub auth_lifetime: Option<Duration>,

    /// Authenticate again every SEC seconds, which keeps NAT mappings open; 0: never [default: 0]
    #[arg(long, value_name = "SEC", value_parser = value::seconds, help_heading = "Client")]
    pub keepalive: Option<Duration>,
    /// Version of the control protocol: 1, packets that an older server takes, and never answers; 2, hellos,
    /// which a server answers [default: 2 with the server's key (--auth-remote-pubkey-b64), else 1]
    #[arg(long, value_name = "VERSION", value_parser = value::protocol, help_heading = "Client")]
    pub protocol: Option<u8>,
    /// Send one authentication packet for a tunnel that is already up, and exit
    #[arg(long, help_heading = "Client")]
    pub reauth_only: bool,

    #[command(flatten)]
    pub peers: PeersOptions,

    #[command(flatten)]
    pub gateway: GatewayOptions,

    /// Netfilter queue of the server, 0..65535 [default: N]
    #[arg(short = 'q', long, value_name = "Q", value_parser = value::queue,
          help_heading = "Netfilter")]
    pub queue_number: Option<u16>,
    /// How many packets wait in the queue at most
    #[arg(long, value_name = "PACKETS", default_value = "24", value_parser = value::queue_length,
          help_heading = "Netfilter")]
    pub nfq_max_len: NonZeroU32,
    /// First part of the name of the nftables table; the tunnel's own table is NAME-N
    /// [default: ipipou]
    #[arg(long, value_name = "NAME", value_parser = value::table, help_heading = "Netfilter")]
    pub nft_table: Option<String>,
    /// Leave the counters out of the rules
    #[arg(long, help_heading = "Netfilter")]
    pub no_nft_counter: bool,

    /// Log more than warnings: -v what happens too, -vv every packet too, -vvv all there is
    #[arg(short = 'v', action = ArgAction::Count, help_heading = "Logging")]
    pub verbose: u8,
    /// Added to the number of -v
    #[arg(long, value_name = "N", value_parser = value::verbosity, help_heading = "Logging")]
    pub verb: Option<u8>,
    /// Leave the time out of log lines
    #[arg(long, help_heading = "Logging")]
    pub no_log_time: bool,
    /// Leave the process number out of log lines
    #[arg(long, help_heading = "Logging")]
    pub no_log_pid: bool,

    /// Read options from /etc/ipipou/NAME.conf, or from a path that starts with /, ./ or ../: one
    /// option per line, without hyphens. May be repeated; the command line wins over files
    #[arg(long, value_name = "NAME", action = ArgAction::Append, value_parser = value::path,
          help_heading = "Files")]
    pub config: Vec<PathBuf>,
    /// Where the tunnel's replay memory is kept [default: $STATE_DIRECTORY, otherwise
    /// /var/lib/ipipou/TUNL_DEV, in a network namespace …/NAME@TUNL_DEV]
    #[arg(long, value_name = "DIR", value_parser = value::path, help_heading = "Files")]
    pub memory_dir: Option<PathBuf>,
    /// Where the tunnel's control socket is [default: $RUNTIME_DIRECTORY, otherwise
    /// /run/ipipou/TUNL_DEV, in a network namespace …/NAME@TUNL_DEV]
    #[arg(long, value_name = "DIR", value_parser = value::path, help_heading = "Files")]
    pub runtime_dir: Option<PathBuf>,

    /// Print this help
    #[arg(short = 'h', long, alias = "h", action = ArgAction::Help, help_heading = "Help")]
    pub help: Option<bool>,
    /// Print the version
    #[arg(long, action = ArgAction::Version, help_heading = "Help")]
    pub version: Option<bool>,
}

/// Messages that name several options name them in this order.
const ATTRIBUTES: &[Attributes] = &[
    both("client").not_with_table().opposite_of("server"),
    server("server", Ignored).opposite_of("client"),
    both("number"),
    server("queue-number", Ignored),
    both("fou-local").propose(LocalEnds),
    both("fou-local-ip"),
    both("fou-local-port"),
    both("fou-dev").propose(Devices),
    both("fou-local-ip-alt"),
    both("force-fou-local-ip-alt"),
    both("fou-remote").not_with_table(),
    both("fou-remote-ip").not_with_table(),
    both("fou-remote-port").not_with_table(),
    both("encap-csum").opposite_of("no-encap-csum"),
    both("no-encap-csum").opposite_of("encap-csum"),
    both("tunl-dev").propose(Devices),
    both("tunl-ip"),
    both("tunl-peer-ip"),
    both("ip6").userspace_only(),
    both("mtu"),
    both("rp-filter"),
    both("datapath"),
    both("fast-path"),
    both("tun-queues").userspace_only(),
    server("auth-by-remote-ip", Ignored).not_with_table().not_with_peers(),
    server("auth-by-remote-port", Ignored).not_with_table().not_with_peers(),
    server("auth-max-time-discrepancy", Ignored).not_with_table().not_with_peers(),
    server("auth-lifetime", Ignored).not_with_table().not_with_peers(),
    server("reply-on-auth-ok", Ignored).not_with_table().not_with_peers(),
    client("keepalive", Ignored).not_with_table(),
    client("protocol", Refused).not_with_table(),
    client("reauth-only", Refused).not_with_table(),
    both("nfq-max-len"),
    both("nft-table"),
    both("no-nft-counter"),
    both("verbose"),
    both("verb"),
    both("no-log-time"),
    both("no-log-pid"),
    both("config").not_in_files().propose(ConfFiles),
    both("memory-dir"),
    both("runtime-dir"),
    both("help").not_in_files(),
    both("version").not_in_files(),
];

/// The attributes of all options, those of the groups last.
pub fn all_attributes() -> impl Iterator<Item = &'static Attributes> {
    ATTRIBUTES.iter().chain(auth::ATTRIBUTES).chain(peers::ATTRIBUTES).chain(gateway::ATTRIBUTES)
}

/// The attributes of the option with this long name.
pub fn attributes(name: &str) -> Option<&'static Attributes> {
    all_attributes().find(|attributes| attributes.name == name)
}

/// Whether a long name, which may be shortened, begins as that of a secret does (`auth`): the words
/// after it may be the rest of one.
pub fn begins_as_secret(name: &str) -> bool {
    let given = name.split('-').next().unwrap_or_default();
    let mut secrets = all_attributes().filter(|option| option.secrecy == Secrecy::Secret);
    !given.is_empty()
        && secrets.any(|option| {
            let first_part = option.name.split('-').next().unwrap_or_default();
            first_part.starts_with(given)
        })
}

impl Options {
    /// The options of a parsed command line.
    ///
    /// # Errors
    /// As clap's.
    pub fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Options::from_arg_matches(matches)?;
        let given = Given::new(matches, all_attributes());
        for (flag, name) in [
            (&mut options.client, "client"),
            (&mut options.server, "server"),
            (&mut options.encap_csum, "encap-csum"),
            (&mut options.no_encap_csum, "no-encap-csum"),
        ] {
            *flag = given.has(name);
        }
        Ok(Options { given, ..options })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_option_table_is_valid() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_option_has_attributes_and_all_attributes_belong_to_options() {
        let name = |arg: &clap::Arg| match arg.get_long() {
            Some(long) => {
                assert_eq!(arg.get_id().as_str(), long.replace('-', "_"));
                long.to_owned()
            }
            None => arg.get_id().to_string(),
        };
        let mut options: Vec<_> = Options::command().get_arguments().map(name).collect();
        let mut rows: Vec<_> = all_attributes().map(|row| row.name.to_owned()).collect();
        options.sort();
        rows.sort();
        assert_eq!(options, rows);
    }

    #[test]
    fn attributes_name_other_options() {
        for row in all_attributes() {
            for other in [row.only_with, row.opposite].into_iter().flatten() {
                assert!(attributes(other).is_some(), "{}: {other}", row.name);
            }
            if let Some(opposite) = row.opposite.and_then(attributes) {
                assert_eq!(opposite.opposite, Some(row.name));
            }
        }
    }

    #[test]
    fn every_option_has_a_long_name_except_v() {
        let command = Options::command();
        let short: Vec<_> =
            command.get_arguments().filter(|arg| arg.get_long().is_none()).collect();
        assert_eq!(short.iter().map(|arg| arg.get_short()).collect::<Vec<_>>(), [Some('v')]);
    }
}
