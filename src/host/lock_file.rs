//! Locks between processes that change the same files (flock(2)). The kernel releases one when the process
//! that holds it ends, however that happens.
//!
//! Any user may lock a file that they can read, and keep it locked. So what is locked is a file of its own,
//! [`LockFile`], which only those can open who may change the files anyway. Where none can be made, a file
//! itself is locked, [`lock_itself`], and such users are told apart as well as can be.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::lock::{Holder, has_net_admin_here};

/// For its owner only.
const PRIVATE: u32 = 0o600;

/// A locked file, which has no other purpose. It is removed when it is dropped.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Makes the file, if it is missing, and locks it at once; otherwise returns who has it. It belongs to the
    /// owner of its directory, whom root must not keep out by a file that a killed process of root's left.
    ///
    /// # Errors
    /// When there can be no such lock: the directory cannot be written, its file system has no locks, or
    /// others may open what is there.
    pub fn take(path: &Path) -> io::Result<Result<Self, Holder>> {
        loop {
            let file = match open(path) {
                Ok(file) => file,
                // Another process made it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return unopened(path, e),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Err(holder(&file.metadata()?))),
                Err(e) => return Err(e.into()),
            }
            // Otherwise the process that had it has removed it meanwhile.
            if is_at(&file, path) {
                return Ok(Ok(LockFile { file, path: path.to_owned() }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let owner = fs::metadata(path.parent().unwrap_or(path))?.uid();
    // Anybody may have put something else there: a link, or a pipe that nobody reads.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(true); // NFS locks only what is open for writing
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
    let ours = rustix::process::geteuid().as_raw();
    let file = match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let file = options.create_new(true).mode(PRIVATE).open(path)?;
            if owner != ours {
                let _ = fchown(&file, Some(owner), None);
            }
            file
        }
        other => other?,
    };
    match is_private(&file.metadata()?, &[0, ours, owner]) {
        true => Ok(file),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether only these users may open a file.
fn is_private(file: &Metadata, users: &[u32]) -> bool {
    file.is_file() && file.mode() & 0o077 == 0 && users.contains(&file.uid())
}

/// A file that this process may not open: another user's, who may have it locked.
fn unopened(path: &Path, error: io::Error) -> io::Result<Result<LockFile, Holder>> {
    let owner = fs::metadata(path.parent().unwrap_or(path))?.uid();
    let there = fs::symlink_metadata(path).ok().filter(|there| is_private(there, &[0, owner]));
    let pid = there.and_then(|there| holders(&there).first().copied());
    pid.map_or(Err(error), |pid| Ok(Err(Holder::of_process(pid))))
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |there: Metadata| (there.dev(), there.ino());
    let here = file.metadata().map(identity).ok();
    here.is_some() && here == fs::symlink_metadata(path).map(identity).ok()
}

/// Locks an open file until it is closed; false when another process that may run a tunnel has it. The lock of
/// any other process is ignored.
///
/// # Errors
/// When the file system has no locks.
pub fn lock_itself(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(true),
        Err(Errno::WOULDBLOCK) => {}
        Err(e) => return Err(e.into()),
    }
    let holders = holders(&file.metadata()?);
    let ourselves = std::process::id();
    let counts = |pid: &i32| u32::try_from(*pid) == Ok(ourselves) || has_net_admin_here(*pid);
    Ok(!holders.is_empty() && !holders.iter().any(counts))
}

fn holder(of: &Metadata) -> Holder {
    let seen = holders(of).first().copied();
    seen.map_or_else(|| Holder::out_of_sight(of.uid()), Holder::of_process)
}

/// The processes that hold a file's lock; empty where that cannot be seen.
fn holders(of: &Metadata) -> Vec<i32> {
    holders_in(&fs::read_to_string("/proc/locks").unwrap_or_default(), of.ino())
}

/// The same, from the text of /proc/locks (proc_locks(5)). The inode's device is not compared: some file systems
/// have another one there than in stat(2).
fn holders_in(locks: &str, inode: u64) -> Vec<i32> {
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None }; // or "->": waits
        (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    };
    locks.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn the_holders_of_a_file_lock_are_found() {
        let locks = "1: FLOCK  ADVISORY  WRITE 708 08:02:13240 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 709 08:02:13240 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 710 00:2a:13240 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 711 08:02:13240 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 712 08:02:324 0 EOF\n5: FLOCK\n";
        assert_eq!(holders_in(locks, 13240), [708, 710]);
        assert_eq!(holders_in(locks, 1), [0; 0]);
    }

    #[test]
    fn a_lock_is_a_private_file_that_is_removed() {
        let name = format!("ipipou-lock-file-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join(".lock");
        fs::write(&path, "").unwrap();
        // What others can read, they can lock.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(LockFile::take(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_file(&path).unwrap();
        symlink("elsewhere", &path).unwrap();
        LockFile::take(&path).unwrap_err();
        assert!(!directory.join("elsewhere").exists());
        fs::remove_file(&path).unwrap();
        let lock = LockFile::take(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE);
        assert!(LockFile::take(&path).unwrap().is_err());
        // A process that was killed leaves the file, and no lock.
        fs::rename(&path, directory.join("moved")).unwrap();
        drop(lock);
        fs::rename(directory.join("moved"), &path).unwrap();
        drop(LockFile::take(&path).unwrap().unwrap());
        assert!(!path.exists());
        fs::remove_dir(&directory).unwrap();
    }
}
