//! Where a process keeps its files.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::engine::config::DeviceName;
use crate::host::Namespace;

const STATE: &str = "/var/lib/ipipou";
const RUNTIME: &str = "/run/ipipou";

/// The directories of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Where the replay memory is kept.
    pub state: PathBuf,
    /// Where the control socket is.
    pub runtime: PathBuf,
    /// A warning about them, for the log.
    pub warning: Option<String>,
}

impl Directories {
    /// Takes the directories that are given; the others are named after the interface, in this network
    /// namespace.
    pub fn new(state: Option<PathBuf>, runtime: Option<PathBuf>, device: &DeviceName) -> Self {
        let namespace = match (&state, &runtime) {
            (Some(_), Some(_)) => Namespace::Own,
            (None, _) | (_, None) => Namespace::current(),
        };
        Directories::within(&namespace, state, runtime, device)
    }

    /// Where the service of this name has its state (StateDirectory= of its unit).
    pub fn of_service(name: &str) -> PathBuf {
        Path::new(STATE).join(name)
    }

    /// Whether a directory is called as that of a process which was given none, in any network namespace.
    pub fn are_by_hand(directory: &Path, device: &DeviceName) -> bool {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(device.as_str())
            .is_some_and(|namespace| namespace.is_empty() || namespace.ends_with('@'))
    }

    fn within(
        namespace: &Namespace,
        state: Option<PathBuf>,
        runtime: Option<PathBuf>,
        device: &DeviceName,
    ) -> Self {
        let name = match namespace {
            Namespace::Own => device.to_string(),
            Namespace::Named(name) => format!("{name}@{device}"),
            Namespace::Unnamed(number) => format!("namespace-{number}@{device}"),
        };
        let below = |root: &str| Path::new(root).join(&name);
        let (root, warning) = match (namespace, &state) {
            // Nothing would find it again: the next namespace has another number.
            (Namespace::Unnamed(_), None) => (
                RUNTIME,
                Some(
                    "this network namespace has no name in /run/netns: replays are not remembered \
                     when it is made again; give --memory-dir"
                        .to_owned(),
                ),
            ),
            (Namespace::Unnamed(_) | Namespace::Own | Namespace::Named(_), _) => (STATE, None),
        };
        Directories {
            state: state.unwrap_or_else(|| below(root)),
            runtime: runtime.unwrap_or_else(|| below(RUNTIME)),
            warning,
        }
    }
}

/// Makes a directory for its owner only, if it is missing. Those above it are of all tunnels, whose processes are of
/// different users: everybody may go through.
///
/// # Errors
/// What mkdir(2) says.
pub fn make_private(directory: &Path) -> io::Result<()> {
    let above = directory.parent().unwrap_or(directory);
    DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    if [STATE, RUNTIME].map(Path::new).contains(&above) {
        open_to_all(above)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made,
    }
}

/// Lets everybody go through a directory of ours that is its owner's alone: by his umask(2), or by an earlier
/// version of this program. A service, which has a user of its own, would not reach what is below.
fn open_to_all(directory: &Path) -> io::Result<()> {
    let there = fs::metadata(directory)?;
    let is_private = there.mode() & 0o7777 == 0o700;
    let is_ours = there.uid() == rustix::process::geteuid().as_raw();
    if is_private && is_ours {
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_directory_is_private() {
        let root = std::env::temp_dir().join(format!("ipipou-directories-{}", std::process::id()));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let last = root.join("var/ipipou0");
        for _ in 0..2 {
            make_private(&last).unwrap();
            assert_eq!((mode(&last), mode(&root.join("var")) & 0o055), (0o700, 0o055));
        }
        fs::set_permissions(root.join("var"), Permissions::from_mode(0o700)).unwrap();
        open_to_all(&root.join("var")).unwrap();
        assert_eq!(mode(&root.join("var")), 0o755);
        // Whoever chose another mode keeps it.
        fs::set_permissions(root.join("var"), Permissions::from_mode(0o750)).unwrap();
        open_to_all(&root.join("var")).unwrap();
        assert_eq!(mode(&root.join("var")), 0o750);
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(
            make_private(&root.join("file")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        fs::remove_dir_all(&root).unwrap();
    }

    fn default_in(namespace: &Namespace) -> (String, String, bool) {
        let device = "ipipou0".parse().unwrap();
        let directories = Directories::within(namespace, None, None, &device);
        let [state, runtime] = [&directories.state, &directories.runtime];
        (state.display().to_string(), runtime.display().to_string(), directories.warning.is_some())
    }

    #[test]
    fn the_default_directories_contain_the_namespace() {
        let same =
            |state: &str, runtime: &str, warned| (state.to_owned(), runtime.to_owned(), warned);
        assert_eq!(
            default_in(&Namespace::Own),
            same("/var/lib/ipipou/ipipou0", "/run/ipipou/ipipou0", false)
        );
        assert_eq!(
            default_in(&Namespace::Named("blue".to_owned())),
            same("/var/lib/ipipou/blue@ipipou0", "/run/ipipou/blue@ipipou0", false)
        );
        let of_run = "/run/ipipou/namespace-7@ipipou0";
        assert_eq!(default_in(&Namespace::Unnamed(7)), same(of_run, of_run, true));
        let device = "ipipou0".parse().unwrap();
        for (name, is_by_hand) in
            [("ipipou0", true), ("blue@ipipou0", true), (of_run, true), ("hub-ipipou0", false)]
        {
            assert_eq!(Directories::are_by_hand(Path::new(name), &device), is_by_hand, "{name}");
        }
    }

    #[test]
    fn given_directories_are_used_in_every_namespace() {
        for namespace in
            [Namespace::Own, Namespace::Named("blue".to_owned()), Namespace::Unnamed(7)]
        {
            let given = [Some("/s".into()), Some("/r".into())];
            let [state, runtime] = given;
            let device = "ipipou0".parse().unwrap();
            let directories = Directories::within(&namespace, state, runtime, &device);
            let expected = Directories { state: "/s".into(), runtime: "/r".into(), warning: None };
            assert_eq!(directories, expected);
        }
    }
}
