//! Names the files that a service cannot read although root can: it runs as a user of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::process::geteuid;

use super::options::Options;
use super::places;

/// What the unit hides from its process (ProtectHome= and PrivateTmp= in systemd.exec(5)).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Returns a line about each file that the service of the tunnel called `name` could not read. Root asks for
/// that, by the name that a service would have.
pub fn unreadable(name: &Path, options: &Options) -> Vec<String> {
    let conf = places::conf_path(name);
    if conf == name || !geteuid().is_root() {
        return Vec::new();
    }
    let secret = |option: &str| {
        format!("put it into {} as `{option}`, which systemd hands over", conf.display())
    };
    let open = || "make it and its directories readable for all, below /etc/ipipou".to_owned();
    let (auth, peers) = (&options.auth, &options.peers);
    let files = [
        (&auth.auth_key_file, secret("auth-key-b64")),
        (&auth.auth_secret_file, secret("auth-secret")),
        (&auth.auth_token_file, secret("auth-token")),
        (&peers.hosts_file, open()),
        (&peers.ca_file, open()),
        (&peers.ca_path, open()),
    ];
    let closed = files.into_iter().filter_map(|(path, advice)| {
        let path = path.as_deref().filter(|path| is_closed(path))?;
        Some(format!(
            "{}: the service ipipou@{} has a user of its own and cannot read it: {advice}",
            path.display(),
            name.display()
        ))
    });
    closed.collect()
}

/// Whether other users than root are kept out of a file, by itself or by a directory above it.
fn is_closed(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let lacks = |path: &Path, bits: u32| {
        fs::metadata(path).is_ok_and(|there| there.permissions().mode() & bits != bits)
    };
    let bits = if path.is_dir() { 0o005 } else { 0o004 };
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
        || lacks(&path, bits)
        || path.ancestors().skip(1).any(|directory| lacks(directory, 0o001))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_closed_by_its_mode_and_by_its_directories() {
        let directory = std::env::temp_dir().join(format!("ipipou-service-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let hidden = directory.join("key");
        fs::write(&hidden, "key").unwrap();
        assert!(is_closed(&hidden), "the service has a /tmp of its own");
        fs::remove_dir_all(&directory).unwrap();
        assert!(!is_closed(Path::new("/etc/passwd")));
        assert!(is_closed(Path::new("/etc/shadow")));
        assert!(!is_closed(Path::new("/nowhere")), "that is another mistake");
    }
}
