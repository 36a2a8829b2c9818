//! `ipipou check` reads the files that a start would read besides its own.

use super::Failure;
use super::demand::{Demand, suits};
use super::peers::check_peers;
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
            let count = table.hosts().count();
            let nodes = if count == 1 { "node" } else { "nodes" };
            Ok(format!("{}: {count} {nodes}, no mistakes\n", path.display()))
        }
    }
}
