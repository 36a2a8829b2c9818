//! The name servers that the host asks, as far as files tell.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// Where systemd-resolved tells which servers it asks (systemd-resolved.service(8)).
const OF_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Those in `resolv_conf`, and those that systemd-resolved asks, as far as the files are there.
///
/// # Errors
/// When a file that is there cannot be read: then it is unknown.
pub fn name_servers(resolv_conf: &Path) -> io::Result<BTreeSet<IpAddr>> {
    let mut servers = BTreeSet::new();
    for path in [resolv_conf, Path::new(OF_RESOLVED)] {
        match fs::read(path) {
            Ok(bytes) => {
                servers.extend(String::from_utf8_lossy(&bytes).lines().filter_map(name_server));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(servers)
}

/// The address in a line `nameserver ADDRESS`, without an IPv6 address' interface (resolv.conf(5)).
fn name_server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
    address.split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_resolver_file_names_one_server() {
        let address = |text: &str| Some(text.parse().unwrap());
        assert_eq!(name_server("nameserver 192.0.2.53"), address("192.0.2.53"));
        assert_eq!(name_server("nameserver\tfe80::1%eth0  # here"), address("fe80::1"));
        for line in [
            "",
            "nameserver",
            "search nameserver 192.0.2.1",
            "#nameserver 192.0.2.1",
            "nameserver a",
        ] {
            assert_eq!(name_server(line), None, "{line}");
        }
    }
}
