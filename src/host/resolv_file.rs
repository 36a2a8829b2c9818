//! `/etc/resolv.conf` where nothing manages it: saved, written in place, and put back as it was.
//!
//! The file keeps its inode, which may be a bind mount, and its owner and mode. Its first line names
//! the tunnel that wrote it. A file with our line is put back; a file without it was written by
//! somebody else since, and stays. A process that has written its line keeps a lock while it runs, so the
//! line of a process that was killed keeps nobody else out.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::atomic_file::replace as replace_file;
use super::lock::{Lock, of_interface};
use super::lock_file::{LockFile, lock_itself};
use crate::engine::config::DeviceName;

/// How the first line of a file begins that ipipou wrote; the name of the tunnel's interface follows.
const MARK: &str = "# ipipou: name servers of ";
/// How it ends.
const UNTIL: &str = ", until its tunnel ends\n";
/// `resolv.conf` is readable for everybody, whatever this process' umask.
const MODE: u32 = 0o644;

/// The file, with or without the name servers of one tunnel.
#[derive(Debug)]
pub struct ResolvFile {
    pub(super) path: PathBuf,
    state_dir: PathBuf,
    pub(super) device: DeviceName,
    pub(super) servers: Vec<IpAddr>,
    /// The lock while the file has our name servers.
    lock: Option<Locked>,
}

#[derive(Debug)]
struct Locked {
    /// The open file, which is locked as well: for a process that may write it, and not its directory, and for
    /// one that has it in another directory.
    file: File,
    /// The lock in its directory; `None` where there can be none.
    _beside: Option<LockFile>,
}

/// What the file was before.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Before {
    Contents(Vec<u8>),
    NoFile,
}

impl ResolvFile {
    /// `path` is `/etc/resolv.conf`; its earlier contents are kept in `state_dir`.
    pub fn new(
        path: PathBuf,
        state_dir: PathBuf,
        device: DeviceName,
        servers: Vec<IpAddr>,
    ) -> Self {
        ResolvFile { path, state_dir, device, servers, lock: None }
    }

    /// Sets the name servers if they are not set.
    ///
    /// # Errors
    /// `AlreadyExists` when another tunnel has written the file; otherwise what the kernel said.
    pub fn apply(&mut self) -> io::Result<()> {
        let is_locked = self.lock();
        let current = read(&self.path)?;
        if let Before::Contents(bytes) = &current
            && bytes.starts_with(MARK.as_bytes())
            && !(is_locked && self.is_free(bytes))
        {
            self.lock = None; // the other tunnel's now
            return Err(self.error(
                io::ErrorKind::AlreadyExists,
                format_args!("has the name servers of another tunnel; see its first line"),
            ));
        }
        let saved = self.saved()?;
        let before = match (&current, saved) {
            (Before::Contents(bytes), Some(before)) if self.is_ours(bytes, &before) => before,
            (Before::Contents(bytes), _) if bytes.starts_with(self.first_line().as_bytes()) => {
                return Err(self.error(
                    io::ErrorKind::NotFound,
                    format_args!(
                        "has our name servers, but what was there before is gone from {}: \
                         write it again, without the first line",
                        self.state_dir.display()
                    ),
                ));
            }
            // No matter who wrote this: it is what has to be put back.
            (Before::Contents(_) | Before::NoFile, _) => {
                self.save(&current)?;
                current.clone()
            }
        };
        let ours = self.contents(&before);
        if current == Before::Contents(ours.clone()) {
            return Ok(());
        }
        self.write(&ours, &before).map_err(|e| unwritable(&self.path, &e, &by_hand(&self.path)))?;
        self.lock(); // there may have been no file before
        Ok(())
    }

    /// Locks the file; false when another process has it locked. True is not enough to write over the name
    /// servers of another tunnel ([`is_free`](Self::is_free)).
    fn lock(&mut self) -> bool {
        let identity = |m: fs::Metadata| (m.dev(), m.ino());
        let locked = self.lock.as_ref().and_then(|lock| lock.file.metadata().ok()).map(identity);
        if locked.is_some() && locked == fs::metadata(&self.path).ok().map(identity) {
            return true;
        }
        self.lock = None;
        let Ok(file) = File::open(&self.path) else { return true };
        let beside = match beside(&self.path, &file).and_then(|lock| LockFile::take(&lock)) {
            Ok(Ok(beside)) => Some(beside),
            Ok(Err(_)) => return false,
            Err(_) => None,
        };
        // Where there are no locks, no other process can lock it either. Any user can keep the file itself
        // locked, so with a lock beside it that keeps nobody out.
        let is_locked = lock_itself(&file).unwrap_or(true) || beside.is_some();
        if is_locked {
            self.lock = Some(Locked { file, _beside: beside });
        }
        is_locked
    }

    /// Whether these contents are not the name servers of another tunnel that runs in this network namespace. The
    /// first to have its own in the file keeps it: while a user has the file itself locked, a tunnel that has it in
    /// another directory, with another lock there, would find no lock.
    fn is_free(&self, contents: &[u8]) -> bool {
        let contents = String::from_utf8_lossy(contents);
        let line = contents.strip_prefix(MARK).and_then(|line| line.split_once(UNTIL));
        line.is_none_or(|(device, _)| {
            device == self.device.as_str() || !Lock::is_held(&of_interface(device))
        })
    }

    /// Whether the name servers are set.
    ///
    /// # Errors
    /// When a file cannot be read: it is not known then.
    pub fn is_applied(&self) -> io::Result<bool> {
        let (current, saved) = (read(&self.path)?, self.saved()?);
        Ok(saved.is_some_and(|before| current == Before::Contents(self.contents(&before))))
    }

    /// Whether this process, or one that crashed, left something to put back.
    ///
    /// # Errors
    /// When that cannot be read: it is not known then.
    pub fn needs_restoring(&self) -> io::Result<bool> {
        Ok(self.saved()?.is_some())
    }

    /// Puts back what was there, if nobody else has changed it.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn restore(&mut self) -> io::Result<()> {
        if let Some(before) = self.saved()? {
            self.lock(); // which removes the lock that a killed process left
            let restored = self.put_back(&before);
            self.lock = None;
            restored?;
            self.forget(SAVED)?;
            self.forget(NO_FILE)?;
        }
        self.lock = None;
        Ok(())
    }

    fn put_back(&self, before: &Before) -> io::Result<()> {
        match (read(&self.path)?, before) {
            (Before::Contents(current), Before::Contents(bytes))
                if self.is_ours(&current, before) =>
            {
                replace(&File::options().write(true).open(&self.path)?, bytes)?;
            }
            (Before::Contents(current), Before::NoFile) if self.is_ours(&current, before) => {
                fs::remove_file(fs::canonicalize(&self.path)?)?; // a link to it stays
            }
            (current, _) if current == *before => {}
            _ => tracing::warn!(
                "{} was changed by somebody else, and stays as it is",
                self.path.display()
            ),
        }
        Ok(())
    }

    fn first_line(&self) -> String {
        format!("{MARK}{}{UNTIL}", self.device)
    }

    /// Whether ipipou wrote the file. A crash may have left a part of its first line, or nothing where
    /// there was no file.
    fn is_ours(&self, contents: &[u8], before: &Before) -> bool {
        let line = self.first_line();
        match contents {
            [] => *before == Before::NoFile,
            _ => contents.starts_with(line.as_bytes()) || line.as_bytes().starts_with(contents),
        }
    }

    /// The file as ipipou writes it: its own servers, and everything else from the old file.
    fn contents(&self, before: &Before) -> Vec<u8> {
        let mut contents = self.first_line().into_bytes();
        for server in &self.servers {
            contents.extend_from_slice(format!("nameserver {server}\n").as_bytes());
        }
        let before: &[u8] = match before {
            Before::Contents(bytes) => bytes,
            Before::NoFile => &[],
        };
        contents.extend_from_slice(&besides_servers(before));
        contents
    }

    /// Writes our file in place. The first line goes first: after a crash at any later moment, the file
    /// is recognised as ours.
    fn write(&self, ours: &[u8], before: &Before) -> io::Result<()> {
        let file = File::options().write(true).create(true).truncate(false).open(&self.path)?;
        if *before == Before::NoFile {
            file.set_permissions(Permissions::from_mode(MODE))?;
        }
        file.write_all_at(self.first_line().as_bytes(), 0)?;
        replace(&file, ours)
    }

    fn save(&self, before: &Before) -> io::Result<()> {
        match before {
            Before::Contents(bytes) => {
                replace_file(&self.in_state_dir(SAVED), bytes)?;
                self.forget(NO_FILE)
            }
            Before::NoFile => {
                replace_file(&self.in_state_dir(NO_FILE), &[])?;
                self.forget(SAVED)
            }
        }
    }

    fn saved(&self) -> io::Result<Option<Before>> {
        Ok(match read(&self.in_state_dir(SAVED))? {
            Before::NoFile => self.in_state_dir(NO_FILE).try_exists()?.then_some(Before::NoFile),
            saved @ Before::Contents(_) => Some(saved),
        })
    }

    pub(super) fn in_state_dir(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        forget(&self.in_state_dir(name))
    }

    fn error(&self, kind: io::ErrorKind, what: std::fmt::Arguments<'_>) -> io::Error {
        io::Error::new(kind, format!("{} {what}", self.path.display()))
    }
}

/// Files of the state directory: the old contents, and a mark that there was no file.
const SAVED: &str = "resolv.conf.before";
const NO_FILE: &str = "resolv.conf.absent";

/// The lines that do not name servers but that programs obey (resolv.conf(5)).
pub fn besides_servers(contents: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in contents.split(|&byte| byte == b'\n') {
        let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        if [b"search".as_slice(), b"domain", b"options"].contains(&word) {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    kept
}

/// Removes a file of the state directory; nothing happens if it is not there.
pub fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The settings that let a service write the file; the unit's comment has the same. With the file alone, the
/// service would keep the one that is there at its start, which another program replaces by rename(2), and could
/// not write what takes its place.
pub fn by_hand(path: &Path) -> String {
    let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = file.parent().unwrap_or(Path::new("/etc"));
    format!("DynamicUser=no and ReadWritePaths={}", directory.display())
}

/// Checks that this process may write a file. If there is none, only writing can tell. `settings`: what
/// a service needs for it.
///
/// # Errors
/// Why it may not, and what to do.
pub fn check(path: &Path, settings: &str) -> io::Result<()> {
    match File::options().write(true).open(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unwritable(path, &e, settings)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn unwritable(path: &Path, error: &io::Error, settings: &str) -> io::Error {
    let hint = hint(error, settings);
    io::Error::new(error.kind(), format!("{} cannot be written: {hint}", path.display()))
}

/// The settings that give a service the right that is missing, as a hint.
pub fn in_service(settings: &str) -> String {
    format!("in a service, put {settings} below [Service] by `systemctl edit`")
}

/// Why a file cannot be written, and what to do.
fn hint(error: &io::Error, settings: &str) -> String {
    let what = match error.raw_os_error() {
        // A unit with DynamicUser= gets this error, and so does root with ProtectSystem=
        // (systemd.exec(5)): neither setting alone is enough.
        Some(libc::EACCES) => format!(": run as root; {}", in_service(settings)),
        Some(libc::EROFS) => format!(": {}", in_service(settings)),
        Some(libc::EPERM) => ": it is immutable, see `lsattr` and `chattr -i`".to_owned(),
        _ => String::new(),
    };
    format!("{error}{what}; or leave --dns out")
}

/// The path of the lock of an open file, in the directory of the file. Processes with another file mounted at
/// this path have another lock.
fn beside(path: &Path, file: &File) -> io::Result<PathBuf> {
    let there = file.metadata()?;
    let name = format!(".ipipou-{}-{}.lock", there.dev(), there.ino());
    Ok(fs::canonicalize(path)?.with_file_name(name))
}

fn read(path: &Path) -> io::Result<Before> {
    match fs::read(path) {
        Ok(bytes) => Ok(Before::Contents(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Before::NoFile),
        Err(e) => Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    }
}

/// Replaces a file's contents. It is truncated before it is written: a crash leaves the beginning of
/// the contents, and never the end of the old ones behind the new.
fn replace(file: &File, contents: &[u8]) -> io::Result<()> {
    let length = contents.len() as u64;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    file.write_all_at(contents, 0)?;
    file.sync_all()
}

#[cfg(test)]
#[path = "resolv_file_tests.rs"]
mod tests;
