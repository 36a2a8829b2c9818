//! Finds the `.conf` file of a tunnel that is given by name, and the files of its peers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The directory of `.conf` files that are given by name.
const CONF_DIRECTORY: &str = "/etc/ipipou";

/// Returns the file that `--config NAME` means.
pub fn conf_path(name: &Path) -> PathBuf {
    let bytes = name.as_os_str().as_encoded_bytes();
    if [&b"/"[..], b"./", b"../"].iter().any(|start| bytes.starts_with(start)) {
        return name.to_owned();
    }
    let mut file = name.as_os_str().to_owned();
    file.push(".conf");
    Path::new(CONF_DIRECTORY).join(file)
}

/// Returns the names of the files that `--config NAME` can mean, sorted.
pub fn conf_names() -> Vec<String> {
    let entries = std::fs::read_dir(CONF_DIRECTORY).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.strip_suffix(".conf").map(str::to_owned)
    };
    let mut names: Vec<_> = entries.filter_map(name).collect();
    names.sort();
    names
}

/// Returns where the files of peers of the tunnel with this name are by default.
pub fn peers_path(name: &OsStr) -> PathBuf {
    let mut directory = name.to_owned();
    directory.push(".peers.d");
    Path::new(CONF_DIRECTORY).join(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_a_file_in_etc_and_a_path_means_itself() {
        for (name, path) in [
            ("server0", "/etc/ipipou/server0.conf"),
            ("a.b", "/etc/ipipou/a.b.conf"),
            ("/tmp/x", "/tmp/x"),
            ("./x", "./x"),
            ("../x.conf", "../x.conf"),
            ("x/y", "/etc/ipipou/x/y.conf"),
        ] {
            assert_eq!(conf_path(Path::new(name)), Path::new(path));
        }
    }
}
