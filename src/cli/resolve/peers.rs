//! What the options of tunnels with many peers mean: a server that learns who its
//! clients are, and hosts that know each other from a table.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::error::UsageError;
use crate::cli::options::Options;
use crate::cli::options::peers::PeersOptions;
use crate::engine::config::{Authorities, HostsSource, HostsUrl, LearnConfig};

const LEARN_LIFETIME: Duration = Duration::from_secs(60);
const LEARN_LIMIT: usize = 1024;
const FETCH_INTERVAL: Duration = Duration::from_secs(300);

/// Where the table of hosts is, if there is one.
pub fn hosts(options: &Options) -> Result<Option<HostsSource>, UsageError> {
    let given = &options.peers;
    let of_url = [
        ("--hosts-url-interval", given.hosts_url_interval.is_some()),
        ("--ca-file", given.ca_file.is_some()),
        ("--ca-path", given.ca_path.is_some()),
    ];
    if given.hosts_url.is_none() {
        only_with("--hosts-url", of_url)?;
    }
    let is_https = |url: &String| url.to_ascii_lowercase().starts_with("https:");
    if given.hosts_url.as_ref().is_some_and(|url| !is_https(url)) {
        only_with("a --hosts-url with https://", [of_url[1], of_url[2]])?;
    }
    let source = match (&given.hosts_file, &given.hosts_url) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(UsageError::TwoTables),
        (Some(file), None) => HostsSource::File(file.clone()),
        (None, Some(url)) => HostsSource::Url(HostsUrl {
            url: url.clone(),
            interval: given.hosts_url_interval.unwrap_or(FETCH_INTERVAL),
            authorities: authorities(given)?,
        }),
    };
    match not_with_table(options) {
        Some(option) => Err(UsageError::NotWithTable(option)),
        None => Ok(Some(source)),
    }
}

/// Whether clients are learned, and how.
pub fn learn(options: &Options) -> Result<Option<LearnConfig>, UsageError> {
    let given = &options.peers;
    if !given.learn {
        let of_learning = [
            ("--learn-lifetime", given.learn_lifetime.is_some()),
            ("--learn-limit", given.learn_limit.is_some()),
        ];
        only_with("--learn", of_learning)?;
        return Ok(None);
    }
    if !options.server {
        return Err(UsageError::LearnOnClient);
    }
    Ok(Some(LearnConfig {
        lifetime: given.learn_lifetime.unwrap_or(LEARN_LIFETIME),
        limit: given.learn_limit.map_or(LEARN_LIMIT, NonZeroUsize::get),
    }))
}

fn authorities(given: &PeersOptions) -> Result<Authorities, UsageError> {
    match (given.ca_file.clone(), given.ca_path.clone()) {
        (None, None) => Ok(Authorities::System),
        (Some(file), None) => Ok(Authorities::File(file)),
        (None, Some(directory)) => Ok(Authorities::Directory(directory)),
        (Some(_), Some(_)) => Err(UsageError::TwoAuthorities),
    }
}

/// For options that were given although `other` was not.
pub fn only_with<const N: usize>(
    other: &'static str,
    options: [(&'static str, bool); N],
) -> Result<(), UsageError> {
    match options.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(UsageError::OnlyWith { option, other }),
        None => Ok(()),
    }
}

/// The first option that has no meaning beside a table of hosts. Somebody who gives a key would
/// think that it is asked for.
fn not_with_table(options: &Options) -> Option<&'static str> {
    let given = [
        ("--client", options.client),
        ("--learn", options.peers.learn),
        ("--learn-lifetime", options.peers.learn_lifetime.is_some()),
        ("--learn-limit", options.peers.learn_limit.is_some()),
        ("--fou-remote", options.fou_remote.is_some()),
        ("--fou-remote-ip", options.fou_remote_ip.is_some()),
        ("--fou-remote-port", options.fou_remote_port.is_some()),
        ("--auth-key-file", options.auth_key_file.is_some()),
        ("--auth-key-b64", options.auth_key_b64.is_some()),
        ("--auth-remote-pubkey-b64", options.auth_remote_pubkey_b64.is_some()),
        ("--auth-secret-file", options.auth_secret_file.is_some()),
        ("--auth-secret", options.auth_secret.is_some()),
        ("--auth-token-file", options.auth_token_file.is_some()),
        ("--auth-token", options.auth_token.is_some()),
        ("--auth-token-b64", options.auth_token_b64.is_some()),
        ("--auth-key-type", options.auth_key_type.is_some()),
        ("--auth-packet-ttl", options.auth_packet_ttl.is_some()),
        ("--auth-by-remote-ip", options.auth_by_remote_ip),
        ("--auth-by-remote-port", options.auth_by_remote_port),
        ("--auth-max-time-discrepancy", options.auth_max_time_discrepancy.is_some()),
        ("--auth-lifetime", options.auth_lifetime.is_some()),
        ("--reply-on-auth-ok", options.reply_on_auth_ok),
        ("--keepalive", options.keepalive.is_some()),
        ("--reauth-only", options.reauth_only),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
}
