//! The options say who the peers are: one server, one client, clients that are learned, or the
//! hosts of a table.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::UsageError;
use crate::cli::options::peers::PeersOptions;
use crate::cli::options::{Options, RpFilter};
use crate::cli::places;
use crate::engine::config::{Authorities, HostsSource, HostsUrl, LearnConfig};

const LEARN_LIFETIME: Duration = Duration::from_secs(60);
const LEARN_LIMIT: usize = 1024;
const FETCH_INTERVAL: Duration = Duration::from_secs(300);

/// The peers of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    Server,
    Client,
    /// Clients whose inner addresses are learned.
    Clients(LearnConfig),
    /// The hosts of a table.
    Table(HostsSource),
    /// Clients that are named in files.
    Members(PathBuf),
}

impl Peers {
    /// Decides who the peers are.
    ///
    /// # Errors
    /// When options of different kinds of peers were given.
    pub fn of(options: &Options) -> Result<Self, UsageError> {
        check_company(options)?;
        let table = table(options)?;
        let learn = learn(options)?;
        if let Some(path) = &options.peers.peers {
            return members(path, options);
        }
        if options.server && options.reauth_only {
            return Err(UsageError::ReauthOnServer);
        }
        Ok(match (table, learn, options.server) {
            (Some(table), _, _) => Peers::Table(table),
            (None, Some(learn), _) => Peers::Clients(learn),
            (None, None, true) => Peers::Client,
            (None, None, false) => Peers::Server,
        })
    }
}

/// Refuses options that have no effect with a table of hosts, or without another option. Somebody
/// who gives a key for a table would think that the peers must prove they have it.
fn check_company(options: &Options) -> Result<(), UsageError> {
    let given = &options.given;
    let has_peers = given.has("peers");
    let has_table = !has_peers && (given.has("hosts-file") || given.has("hosts-url"));
    for option in given.iter().map(|given| given.attributes) {
        if has_table && !option.with_table {
            return Err(UsageError::NotWithTable(option.name));
        }
        if has_peers && !option.with_peers {
            return Err(UsageError::NotWithPeers(option.name));
        }
        if let Some(other) = option.only_with.filter(|other| !given.has(other)) {
            return Err(UsageError::OnlyWith { option: option.name, other });
        }
    }
    Ok(())
}

/// Returns the files that name the peers: without a path those that belong to the last `--config NAME`.
fn members(path: &Path, options: &Options) -> Result<Peers, UsageError> {
    if !options.server {
        return Err(UsageError::OtherRole { option: "peers", role: "server" });
    }
    if options.rp_filter != RpFilter::Strict {
        return Err(UsageError::LooseMembers);
    }
    if !path.as_os_str().is_empty() {
        return Ok(Peers::Members(path.to_owned()));
    }
    let of_file = |name: &PathBuf| Some(places::peers_path(places::conf_path(name).file_stem()?));
    let path = options.config.last().and_then(of_file);
    path.map(Peers::Members).ok_or(UsageError::NoPeersPath)
}

/// Returns where the table of hosts is, if there is one.
fn table(options: &Options) -> Result<Option<HostsSource>, UsageError> {
    let given = &options.peers;
    let is_https = |url: &String| url.to_ascii_lowercase().starts_with("https:");
    let authority = options.given.first(|option| ["ca-file", "ca-path"].contains(&option.name));
    if let (Some(url), Some(option)) = (&given.hosts_url, authority)
        && !is_https(url)
    {
        return Err(UsageError::OnlyWithHttps(option));
    }
    match (&given.hosts_file, &given.hosts_url) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(UsageError::TwoTables),
        (None, Some(_)) if cfg!(not(feature = "hosts-url")) => Err(UsageError::HostsUrlNotBuiltIn),
        (Some(file), None) => Ok(Some(HostsSource::File(file.clone()))),
        (None, Some(url)) => Ok(Some(HostsSource::Url(HostsUrl {
            url: url.clone(),
            interval: given.hosts_url_interval.unwrap_or(FETCH_INTERVAL),
            authorities: authorities(given)?,
        }))),
    }
}

/// Returns how clients are learned, if they are.
fn learn(options: &Options) -> Result<Option<LearnConfig>, UsageError> {
    let given = &options.peers;
    match (given.learn, options.server) {
        (false, _) => Ok(None),
        (true, false) => Err(UsageError::LearnOnClient),
        (true, true) => Ok(Some(LearnConfig {
            lifetime: given.learn_lifetime.unwrap_or(LEARN_LIFETIME),
            limit: given.learn_limit.map_or(LEARN_LIMIT, NonZeroUsize::get),
        })),
    }
}

fn authorities(given: &PeersOptions) -> Result<Authorities, UsageError> {
    match (given.ca_file.clone(), given.ca_path.clone()) {
        (None, None) => Ok(Authorities::System),
        (Some(file), None) => Ok(Authorities::File(file)),
        (None, Some(directory)) => Ok(Authorities::Directory(directory)),
        (Some(_), Some(_)) => Err(UsageError::TwoAuthorities),
    }
}
