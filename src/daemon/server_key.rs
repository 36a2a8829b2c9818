//! Keeps the key of a server whose peers are named in files, where none is given: the first start
//! makes it in the state directory, and every later one uses it.
//!
//! The directory is the service's own, so what lies there may be anything that a service which was taken
//! over left for root to read: a symbolic link, another name of a file of somebody else's, a pipe.

use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use zeroize::Zeroizing;

use super::running::{called, running_key};
use super::{Failure, Settings, new_pair};
use crate::auth::{SharedSecret, Signer, key_text, parse_key};
use crate::engine::config::{Config, HubConfig, PeerSource};
use crate::host::{Directories, atomic_file, make_private};

/// Its name in the state directory.
const FILE: &str = "server.key";
/// How a second name of the key begins and ends, which a start that was killed while it made the key has
/// left: where a file cannot be moved to a place only if nothing is there, and before 2.0.
const LEFT: [(&str, &str); 2] = [(".ipipou-", ".new"), ("server.", ".new")];
/// Two lines of 44 characters.
const LONGEST: u64 = 1024;

/// Both halves, as text in the file and as bytes.
type Seed = Zeroizing<[u8; 32]>;

/// Why a file is not used. The message follows the file's name and a colon.
#[derive(Debug, thiserror::Error)]
enum KeyFileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is a symbolic link, not a key of this server: remove it")]
    Link,
    #[error("is not a file of its own: remove it")]
    NotAFile,
    #[error("belongs to another user than its directory: remove it, or give it to that user")]
    Owner,
    #[error("other users can read this key: make a new one (remove the file), or `chmod 600` it")]
    Open,
    #[error(
        "is damaged: put its two lines back from a copy, or remove it for a new key, which every client \
         then needs"
    )]
    Damaged,
}

/// The settings with the server's key, which is made if this is the first start; the same settings, if it
/// needs none.
///
/// # Errors
/// When there is a key that cannot be used, or none can be made.
pub fn with_key(settings: &Settings) -> Result<Settings, Failure> {
    let mut settings = settings.clone();
    let PeerSource::Hub(HubConfig { seed: seed @ None, .. }) = &mut settings.config.peers else {
        return Ok(settings);
    };
    let path = settings.state_dir.join(FILE);
    let failed = |error: KeyFileError| Failure::Usage(format!("{}: {error}", path.display()));
    *seed = Some(match read(&path).map_err(failed)? {
        Some(seed) => seed,
        None => {
            make(&path)?;
            tracing::warn!("{}: this server's key was made", path.display());
            read(&path).map_err(failed)?.ok_or_else(|| failed(KeyFileError::Damaged))?
        }
    });
    Ok(settings)
}

/// The public key of the server called `tunnel`, as far as it is known here: it was given, the running
/// process below `root` says it, or it lies in the state directory.
///
/// # Errors
/// When there is a key that cannot be used.
pub fn public_key(config: &Config, tunnel: &str, root: &Path) -> Result<Option<[u8; 32]>, Failure> {
    if let Some(key) = config.public_key() {
        return Ok(Some(key));
    }
    if config.hub().is_none() {
        return Ok(None);
    }
    if let Some(key) = running_key(root, &called(config, tunnel)) {
        return Ok(Some(key));
    }
    for path in places(config, tunnel) {
        let failed = |error: KeyFileError| Failure::Usage(format!("{}: {error}", path.display()));
        if let Some(seed) = read(&path).map_err(failed)? {
            return Ok(Some(Signer::new(&seed, SharedSecret::new(Vec::new())).public()));
        }
    }
    Ok(None)
}

/// Where the key is of a server that does not run: a service's state directory has the name of its file.
fn places(config: &Config, tunnel: &str) -> [PathBuf; 2] {
    let by_hand = Directories::new(None, None, &config.tunnel.device).state;
    let service = Directories::of_service(tunnel);
    [service, by_hand].map(|directory| directory.join(FILE))
}

/// Reads the key; `None`: there is no such file.
fn read(path: &Path) -> Result<Option<Seed>, KeyFileError> {
    let file = match atomic_file::open_unattended(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(KeyFileError::Link);
        }
        Err(e) => return Err(e.into()),
    };
    let (mut metadata, directory) = (file.metadata()?, fs::metadata(parent(path)?)?);
    if metadata.is_file() && metadata.nlink() != 1 {
        remove_left(parent(path)?, &metadata);
        metadata = file.metadata()?;
    }
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(KeyFileError::NotAFile);
    }
    if metadata.uid() != directory.uid() && metadata.uid() != 0 {
        return Err(KeyFileError::Owner);
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyFileError::Open);
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(LONGEST).read_to_end(&mut text)?;
    seed(&text).map(Some).ok_or(KeyFileError::Damaged)
}

/// The private key of a pair: its first line, to which the second one has to belong.
fn seed(text: &[u8]) -> Option<Seed> {
    let text = std::str::from_utf8(text).ok()?;
    let (private, public) = text.strip_suffix('\n')?.split_once('\n')?;
    let seed = parse_key(private).ok()?;
    let own = Signer::new(&seed, SharedSecret::new(Vec::new())).public();
    (key_text(&own) == public).then_some(seed)
}

/// Makes a key where there is none. The file appears as a whole: neither a crash nor another process that
/// starts now leaves half of one.
fn make(path: &Path) -> Result<(), Failure> {
    let (private, public) = new_pair()?;
    let text = Zeroizing::new(format!("{}\n{public}\n", private.as_str()));
    let write = || -> io::Result<()> {
        make_private(parent(path)?)?;
        match atomic_file::create(path, text.as_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    };
    write().map_err(|e| {
        let path = path.display();
        Failure::Generic(format!("{path}: this server's key cannot be kept there: {e}"))
    })
}

/// Removes further names of the key that the making of one may have left in its directory.
fn remove_left(directory: &Path, key: &Metadata) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_left =
            LEFT.iter().any(|(begin, end)| name.starts_with(begin) && name.ends_with(end));
        // What a link leads to is not looked at (symlink(7)).
        let is_key = |it: Metadata| (it.dev(), it.ino()) == (key.dev(), key.ino());
        if is_left && entry.metadata().is_ok_and(is_key) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidFilename.into())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("ipipou-key-{name}-{}", std::process::id());
            Directory(std::env::temp_dir().join(name))
        }

        fn path(&self) -> PathBuf {
            self.0.join("state").join(FILE)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn said(path: &Path) -> String {
        read(path).unwrap_err().to_string()
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let directory = Directory::new("once");
        let path = directory.path();
        assert!(read(&path).unwrap().is_none());
        make(&path).unwrap();
        let first = read(&path).unwrap().unwrap();
        make(&path).unwrap(); // by another process, at the same time
        assert_eq!(read(&path).unwrap().unwrap(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    /// Both between giving the key its name and taking the one under which it was written from it.
    #[test]
    fn a_start_that_was_killed_or_runs_at_the_same_time_hinders_no_other() {
        let directory = Directory::new("killed");
        let path = directory.path();
        make(&path).unwrap();
        let first = read(&path).unwrap().unwrap();
        for name in ["server.4711.new", ".ipipou-4711-0.new"] {
            fs::hard_link(&path, path.with_file_name(name)).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), first, "{name}");
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
        let starts: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                make(&path).unwrap();
                read(&path).unwrap().unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(starts.iter().all(|seed| *seed == starts[0]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_or_readable_key_is_not_used() {
        let directory = Directory::new("damaged");
        let path = directory.path();
        make(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let damaged = [&b""[..], b"\n", b"x\ny\n", &whole[..44], &whole[..89], &whole[45..]];
        for bytes in damaged {
            fs::write(&path, bytes).unwrap();
            assert!(said(&path).starts_with("is damaged"), "{bytes:?}");
        }
        fs::write(&path, &whole).unwrap();
        assert!(read(&path).unwrap().is_some());
        for mode in [0o604, 0o640, 0o602] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(said(&path).starts_with("other users can read this key"), "{mode:o}");
        }
    }

    /// A service that was taken over leaves them for root.
    #[test]
    fn links_and_pipes_are_not_read_as_keys() {
        let directory = Directory::new("links");
        let path = directory.path();
        make(&path).unwrap();
        let elsewhere = directory.0.join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(said(&path).starts_with("is a symbolic link"));
        fs::remove_file(&path).unwrap();
        fs::hard_link(&elsewhere, &path).unwrap();
        fs::hard_link(&elsewhere, path.with_file_name("server.1.new")).unwrap();
        assert!(said(&path).starts_with("is not a file of its own"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(said(&path).starts_with("is not a file of its own"));
        fs::remove_dir(&path).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        assert!(said(&path).starts_with("is not a file of its own")); // and nothing is waited for
    }
}
