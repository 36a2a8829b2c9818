//! systemd-resolved, where it manages `/etc/resolv.conf`: there, name servers belong to interfaces
//! (resolvectl(1)).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::program::{self, NotDone};
use crate::engine::config::DeviceName;

/// Where it keeps the file that `/etc/resolv.conf` is a link to.
const DIRECTORY: &str = "run/systemd/resolve";

/// Whether it manages the file: a link into its directory, which is not there before it runs.
pub fn has(file: &Path) -> bool {
    let target = fs::canonicalize(file).or_else(|_| fs::read_link(file));
    target.is_ok_and(|target| target.parent().is_some_and(|at| at.ends_with(DIRECTORY)))
}

/// Sets an interface's servers. From then on they are asked for all names.
///
/// # Errors
/// What `resolvectl` said, or that it cannot be run.
pub fn ask(servers: &[IpAddr], device: &DeviceName) -> Result<(), NotDone> {
    let servers: Vec<_> = servers.iter().map(IpAddr::to_string).collect();
    let mut arguments = vec!["dns", device.as_str()];
    arguments.extend(servers.iter().map(String::as_str));
    resolvectl(&arguments)?;
    resolvectl(&["domain", device.as_str(), "~."]) // for every domain, not only for some
}

/// Forgets the interface's servers.
///
/// # Errors
/// The same as [`ask`]; an interface that is gone has no servers.
pub fn revert(device: &DeviceName) -> Result<(), NotDone> {
    resolvectl(&["revert", device.as_str()])
}

fn resolvectl(arguments: &[&str]) -> Result<(), NotDone> {
    program::run_well("resolvectl", " of systemd-resolved", arguments, &[])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn systemd_resolved_is_recognised_by_the_symbolic_link() {
        let place = std::env::temp_dir().join(format!("ipipou-resolved-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let file = place.join("resolv.conf");
        for (target, expected) in [
            ("../run/systemd/resolve/stub-resolv.conf", true),
            ("/run/systemd/resolve/resolv.conf", true),
            ("/run/NetworkManager/resolv.conf", false),
            ("/run/resolvconf/resolv.conf", false),
        ] {
            symlink(target, &file).unwrap();
            assert_eq!(has(&file), expected, "{target}");
            fs::remove_file(&file).unwrap();
        }
        fs::remove_dir(&place).unwrap();
    }
}
