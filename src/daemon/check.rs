//! `ipipou check`: reads the other files that a start would read.

use std::path::Path;

use super::Failure;
use super::demand::{Demand, of_peers, suits};
use super::peers::{read_checked, warned};
use crate::engine::config::{Config, HostsSource};
use crate::sources::table;

/// Checks the files of peers or of a table of hosts that a configuration names, and those of certificate
/// authorities. What has an URL is not fetched. Returns what there is to say.
///
/// # Errors
/// Every mistake, a line each.
pub fn check_files(config: &Config) -> Result<String, Failure> {
    match config.table() {
        None => check_peers(config),
        Some(HostsSource::Url(url)) => {
            table::check_authorities(url).map_err(Failure::Usage)?;
            Ok(String::new())
        }
        Some(HostsSource::File(path)) => {
            let table = table::read_file(path).map_err(Failure::Usage)?;
            suits(config, &Demand { remotes: table.remotes(), isolated: None })?;
            Ok(no_mistakes(path, table.hosts().count(), "node"))
        }
    }
}

/// Checks the peers files of a configuration.
fn check_peers(config: &Config) -> Result<String, Failure> {
    let Some(hub) = config.hub() else { return Ok(String::new()) };
    let (files, set) = read_checked(hub, &config.tunnel).map_err(Failure::Usage)?;
    suits(config, &of_peers(&set))?;
    Ok(warned(&files) + &no_mistakes(&hub.peers, set.len(), "peer"))
}

/// The line about a file without mistakes in which `count` of these were found.
fn no_mistakes(path: &Path, count: usize, one: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{}: {count} {one}{ending}, no mistakes\n", path.display())
}
