//! Files that appear as a whole: a crash leaves the old one or the new one.
//!
//! Each is written beside its place, under a name of its own, and moved there. What a process that was
//! killed left beside a place is removed by the next one that writes into the directory.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, OFlags, RenameFlags, StatxAttributes, StatxFlags, XattrFlags,
    flock, renameat_with, statx,
};
use rustix::io::Errno;

use super::make_private;

/// The name of a file that is being written. It is hidden, so that it is not read as a peers file.
const BEGIN: &str = ".ipipou-";
const END: &str = ".new";

/// The permissions of a file that only its owner may read, and those of everybody else, which it has not.
const PRIVATE: u32 = 0o600;
/// Of the permissions of a file, those of its owner.
const OWNERS: u32 = 0o700;

/// How many names are tried for a file that is being written.
const TRIES: usize = 100;

/// How many links are followed from one path, as many as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Where the access control list of a file is kept (acl(5)).
const ACL: &str = "system.posix_acl_access";

/// Writes a file that only its owner may read, in the place of the old one, which may be a link. Makes the
/// directory if it is missing.
///
/// # Errors
/// When the directory cannot be made or written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = parent(path);
    make_private(directory)?;
    let beside = Beside::new(directory)?;
    beside.write(bytes)?;
    beside.over(path)
}

/// Writes a file that only its owner may read, where there was none.
///
/// # Errors
/// `AlreadyExists` when something is there; otherwise when the directory cannot be written. Nothing is
/// left then.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = Beside::new(parent(path))?;
    beside.write(bytes)?;
    beside.place_new(path)
}

/// Writes another text of somebody's file: it stays what it is, with its owner, group, permissions and access
/// control list, and where a link leads to it, the link stays. A text with secrets is not left open to every
/// user. Makes the file, for its owner only, and the directory, if they are missing.
///
/// # Errors
/// When the directory cannot be made or written, or links lead nowhere.
pub fn rewrite(path: &Path, bytes: &[u8], has_secrets: bool) -> io::Result<()> {
    let path = behind_links(path)?;
    let before = match open_unattended(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return replace(&path, bytes),
        Err(e) => return Err(e),
    };
    let beside = Beside::new(parent(&path))?;
    beside.dress_as(&before, has_secrets)?;
    beside.write(bytes)?;
    beside.over(&path)
}

/// Opens a file for reading where anybody may have put something else: it follows no link at the end of the
/// path, and waits for nobody at the other end of a pipe.
///
/// # Errors
/// `ELOOP`: it is a symbolic link (open(2)). Otherwise what open(2) says.
pub fn open_unattended(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Removes a file for good: a crash does not bring it back.
///
/// # Errors
/// When it is not there, or the directory cannot be written.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    File::open(parent(path))?.sync_all()
}

/// Whether something is mounted at a path: rename(2) and unlink(2) refuse that. False where it cannot be seen, as
/// by kernels before 5.8.
pub fn is_mount(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The path of the file that a path leads to, whether there is one or not.
///
/// # Errors
/// When a link cannot be read, or there is no end to them.
pub fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = parent(&path).join(target),
            // InvalidInput: it is not a link (readlink(2)).
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::LOOP.into())
}

/// Removes what processes that were killed left in a directory while they wrote files there.
pub fn tidy(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(BEGIN.as_bytes()) && name.ends_with(END.as_bytes()) {
            // A process that still writes it has its lock. One that has just made it sees ours, until it is
            // removed.
            if let Ok(file) = open_unattended(&entry.path())
                && is_locked_now(&file)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The directory that a path is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn is_locked_now(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// A file that is being written, and is locked meanwhile. It is removed if it does not come to its place.
struct Beside {
    file: File,
    path: PathBuf,
    /// Whether it still has the name that it was written under.
    is_there: bool,
}

impl Beside {
    /// A new, empty file for its owner only.
    fn new(directory: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static TIDIED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let is_first =
            TIDIED.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.into());
        if is_first {
            tidy(directory);
        }
        for _ in 0..TRIES {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{BEGIN}{}-{number}{END}", std::process::id());
            let path = directory.join(name);
            let mut options = OpenOptions::new();
            let file = match options.write(true).create_new(true).mode(PRIVATE).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            // Another process takes it for a leftover, and is about to remove it. (Some file systems have no
            // locks.)
            if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                continue;
            }
            // Or it has done so before this.
            if file.metadata()?.nlink() > 0 {
                return Ok(Beside { file, path, is_there: true });
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Takes over owner, group, permissions and access control list of another file. What cannot be taken over
    /// is left out, which never allows more.
    fn dress_as(&self, other: &File, has_secrets: bool) -> io::Result<()> {
        let (theirs, ours) = (other.metadata()?, self.file.metadata()?);
        let belongs = |ours: &Metadata| (ours.uid(), ours.gid()) == (theirs.uid(), theirs.gid());
        let (uid, gid) = (Some(theirs.uid()), Some(theirs.gid()));
        let is_given = belongs(&ours)
            || fchown(&self.file, uid, gid).is_ok()
            || fchown(&self.file, None, gid).is_ok();
        let mut mode = theirs.mode() & 0o777;
        if has_secrets {
            mode &= !0o007;
        }
        // Beside a list, the group's permissions are the most that anybody in the list has.
        if !is_given || !has_list_of(&self.file, other) {
            mode &= OWNERS;
        }
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)?;
        self.file.sync_data()
    }

    /// Moves it to its place, whatever is there.
    fn over(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.is_there = false;
        File::open(parent(path))?.sync_all()
    }

    /// Moves it to its place, where nothing is.
    fn place_new(mut self, path: &Path) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_there = false,
            // The file system does not know the flag (renameat2(2)).
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::hard_link(&self.path, path)?,
            Err(e) => return Err(e.into()),
        }
        File::open(parent(path))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if self.is_there {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives a file the access control list of another one; false when it cannot be given.
fn has_list_of(file: &File, other: &File) -> bool {
    let mut list = Vec::with_capacity(1 << 16); // the longest (xattr(7))
    match rustix::fs::fgetxattr(other, ACL, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => rustix::fs::fsetxattr(file, ACL, &list, XattrFlags::empty()).is_ok(),
        // There is none, or the file system has none.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => true,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("ipipou-atomic-{name}-{}", std::process::id());
            let directory = Directory(std::env::temp_dir().join(name));
            fs::create_dir(&directory.0).unwrap();
            directory
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_made_where_there_is_none() {
        let directory = Directory::new("create");
        let path = directory.0.join("token");
        create(&path, b"one").unwrap();
        assert_eq!(create(&path, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode(&path)), (&b"one"[..], 0o600));
        let link = directory.0.join("link");
        symlink("nowhere", &link).unwrap();
        assert_eq!(create(&link, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(directory.names(), ["link", "token"]);
    }

    #[test]
    fn writers_of_one_file_do_not_meet() {
        let directory = Directory::new("writers");
        let path = directory.0.join("file");
        std::thread::scope(|scope| {
            for byte in b'a'..=b'h' {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace(path, &[byte; 5000]).unwrap();
                    }
                });
            }
        });
        let written = fs::read(&path).unwrap();
        assert_eq!(written, vec![written[0]; 5000]);
        assert_eq!(directory.names(), ["file"]);
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let directory = Directory::new("left");
        fs::write(directory.0.join(".ipipou-1-0.new"), "half").unwrap();
        let busy = directory.0.join(".ipipou-1-1.new");
        let writer = File::create(&busy).unwrap();
        assert!(is_locked_now(&writer));
        replace(&directory.0.join("file"), b"x").unwrap();
        assert_eq!(directory.names(), [".ipipou-1-1.new", "file"]);
        drop(writer);
        tidy(&directory.0);
        assert_eq!(directory.names(), ["file"]);
    }

    #[test]
    fn a_file_that_was_just_begun_is_left_alone() {
        let directory = Directory::new("begun");
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    tidy(&directory.0);
                }
            });
            let writers = (0..2).map(|_| {
                scope.spawn(|| {
                    let begun = (0..3000).map(|_| Beside::new(&directory.0).unwrap());
                    let is_there = |one: Beside| {
                        std::thread::sleep(std::time::Duration::from_micros(50));
                        one.path.exists()
                    };
                    begun.map(is_there).filter(|is_there| !is_there).count()
                })
            });
            let writers: Vec<_> = writers.collect();
            let removed: usize = writers.into_iter().map(|one| one.join().unwrap()).sum();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(removed, 0);
        });
        tidy(&directory.0);
        assert!(directory.names().is_empty());
    }

    #[test]
    fn a_file_that_is_written_again_stays_what_it_is() {
        let directory = Directory::new("rewrite");
        let (file, link) = (directory.0.join("file"), directory.0.join("link"));
        symlink("file", &link).unwrap();
        rewrite(&link, b"1", false).unwrap(); // a link that leads nowhere yet
        assert_eq!(mode(&file), 0o600);
        let modes = [(false, 0o644, 0o644), (false, 0o660, 0o660), (true, 0o664, 0o660)];
        for (has_secrets, before, after) in modes {
            fs::set_permissions(&file, Permissions::from_mode(before)).unwrap();
            rewrite(&link, b"2", has_secrets).unwrap();
            assert_eq!(mode(&file), after, "{before:o}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"2");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("file"));
        fs::remove_file(&file).unwrap();
        symlink("link", &file).unwrap();
        let circle = rewrite(&link, b"3", false).unwrap_err();
        assert_eq!(circle.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert_eq!(directory.names(), ["file", "link"]);
    }
}
