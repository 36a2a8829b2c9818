//! The host's name servers while a tunnel is up: put in, and put back as they were.
//!
//! Where systemd-resolved has `/etc/resolv.conf`, it is told. Elsewhere the file is saved and
//! written in place: the inode stays, which may be a bind mount, and so do owner and mode. Its
//! first line says whose it is. What has our line is ours, and is put back; what has not, somebody
//! else wrote since, and it stays. Whose line is in it has the file locked while it runs (flock(2)):
//! the line of a process that was killed keeps nobody else out.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::memory::replace as replace_file;
use super::resolved;
use crate::engine::config::DeviceName;
use crate::kernel::lock_file;

/// What the first line of a file of ours begins with; the name of the tunnel's interface follows.
const MARK: &str = "# ipipou: name servers of ";
/// `resolv.conf` is for everybody, whatever our umask.
const MODE: u32 = 0o644;

/// The name servers of one tunnel.
#[derive(Debug)]
pub struct Dns {
    path: PathBuf,
    state_dir: PathBuf,
    device: DeviceName,
    servers: Vec<IpAddr>,
    /// Whether systemd-resolved was told by this process.
    told: bool,
    /// The file while it has our name servers.
    lock: Option<File>,
}

/// What was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Before {
    Contents(Vec<u8>),
    NoFile,
}

impl Dns {
    /// `path` is `/etc/resolv.conf`; what it held is kept in `state_dir`.
    pub fn new(
        path: PathBuf,
        state_dir: PathBuf,
        device: DeviceName,
        servers: Vec<IpAddr>,
    ) -> Self {
        Dns { path, state_dir, device, servers, told: false, lock: None }
    }

    /// Puts the name servers in, if they are not. systemd-resolved is told every time: it forgets
    /// with the interface.
    ///
    /// # Errors
    /// `AlreadyExists` when another tunnel has the file; or what the kernel or `resolvectl` said.
    pub fn apply(&mut self) -> io::Result<()> {
        if resolved::has(&self.path) {
            return self.tell_resolved();
        }
        let alone = self.lock();
        let current = read(&self.path)?;
        let saved = self.saved()?;
        let before = match (&current, saved) {
            (Before::Contents(bytes), _) if bytes.starts_with(MARK.as_bytes()) && !alone => {
                return Err(self.error(
                    io::ErrorKind::AlreadyExists,
                    format_args!("has the name servers of another tunnel; see its first line"),
                ));
            }
            (Before::Contents(bytes), Some(before)) if self.is_ours(bytes, &before) => before,
            (Before::Contents(bytes), _) if bytes.starts_with(self.first_line().as_bytes()) => {
                return Err(self.error(
                    io::ErrorKind::NotFound,
                    format_args!(
                        "has our name servers, but what was there before is gone from {}: \
                         write it anew, without the first line",
                        self.state_dir.display()
                    ),
                ));
            }
            // Whoever wrote this, it is what has to be put back.
            (Before::Contents(_) | Before::NoFile, _) => {
                self.save(&current)?;
                current.clone()
            }
        };
        let ours = self.contents(&before);
        if current == Before::Contents(ours.clone()) {
            return Ok(());
        }
        let written = self.write(&ours, &before);
        written
            .map_err(|e| self.error(e.kind(), format_args!("cannot be written: {}", hint(&e))))?;
        self.lock(); // there may have been no file before
        Ok(())
    }

    /// Locks the file; false when another process has it locked.
    fn lock(&mut self) -> bool {
        let identity = |m: fs::Metadata| (m.dev(), m.ino());
        let locked = self.lock.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        if locked.is_some() && locked == fs::metadata(&self.path).ok().map(identity) {
            return true;
        }
        self.lock = None;
        let Ok(file) = File::open(&self.path) else { return true };
        match lock_file(&file) {
            Ok(true) => {
                self.lock = Some(file);
                true
            }
            Ok(false) => false,
            // Nobody else can lock it either.
            Err(_) => true,
        }
    }

    /// Whether the name servers are in. Of systemd-resolved only what this process told it is
    /// known: after the interface was made anew, apply again.
    pub fn is_applied(&self) -> bool {
        if self.servers.is_empty() {
            return false; // nothing is read for those who do not ask
        }
        if resolved::has(&self.path) {
            return self.told;
        }
        let (Ok(current), Ok(Some(before))) = (read(&self.path), self.saved()) else {
            return false;
        };
        current == Before::Contents(self.contents(&before))
    }

    /// Whether we, or a process that crashed, left something to put back.
    pub fn needs_restoring(&self) -> bool {
        self.in_state_dir(TOLD).exists() || !matches!(self.saved(), Ok(None))
    }

    /// Puts back what was there, if nobody else has changed it. To be done while the tunnel's
    /// interface is still there.
    ///
    /// # Errors
    /// When a file cannot be read or written, or `resolvectl` cannot be run.
    pub fn restore(&mut self) -> io::Result<()> {
        if self.in_state_dir(TOLD).exists() {
            if let Err(error) = resolved::revert(&self.device) {
                tracing::warn!("{error}"); // an interface that is gone has no name servers
            }
            self.told = false;
            self.forget(TOLD)?;
        }
        self.lock = None;
        let Some(before) = self.saved()? else { return Ok(()) };
        match (read(&self.path)?, &before) {
            (Before::Contents(current), Before::Contents(bytes))
                if self.is_ours(&current, &before) =>
            {
                replace(&File::options().write(true).open(&self.path)?, bytes)?;
            }
            (Before::Contents(current), Before::NoFile) if self.is_ours(&current, &before) => {
                fs::remove_file(fs::canonicalize(&self.path)?)?; // a link to it stays
            }
            (current, _) if current == before => {}
            _ => tracing::warn!(
                "{} was changed by somebody else, and stays as it is",
                self.path.display()
            ),
        }
        self.forget(SAVED)?;
        self.forget(NO_FILE)
    }

    fn tell_resolved(&mut self) -> io::Result<()> {
        replace_file(&self.in_state_dir(TOLD), &[])?;
        resolved::ask(&self.servers, &self.device)?;
        self.told = true;
        Ok(())
    }

    fn first_line(&self) -> String {
        format!("{MARK}{}, until its tunnel ends\n", self.device)
    }

    /// A crash may have left a part of our first line, or nothing where there was no file.
    fn is_ours(&self, contents: &[u8], before: &Before) -> bool {
        let line = self.first_line();
        match contents {
            [] => *before == Before::NoFile,
            _ => contents.starts_with(line.as_bytes()) || line.as_bytes().starts_with(contents),
        }
    }

    /// Our file: our servers, and what the old one says besides (resolv.conf(5)).
    fn contents(&self, before: &Before) -> Vec<u8> {
        let mut contents = self.first_line().into_bytes();
        for server in &self.servers {
            contents.extend_from_slice(format!("nameserver {server}\n").as_bytes());
        }
        let before: &[u8] = match before {
            Before::Contents(bytes) => bytes,
            Before::NoFile => &[],
        };
        for line in before.split(|&byte| byte == b'\n') {
            let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            if [b"search".as_slice(), b"domain", b"options"].contains(&word) {
                contents.extend_from_slice(line);
                contents.push(b'\n');
            }
        }
        contents
    }

    /// Writes our file in place. The first line goes first: whenever we crash after that, the file
    /// is known to be ours.
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
        match read(&self.in_state_dir(SAVED))? {
            Before::NoFile if self.in_state_dir(NO_FILE).exists() => Ok(Some(Before::NoFile)),
            Before::NoFile => Ok(None),
            saved @ Before::Contents(_) => Ok(Some(saved)),
        }
    }

    fn in_state_dir(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.in_state_dir(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn error(&self, kind: io::ErrorKind, what: std::fmt::Arguments<'_>) -> io::Error {
        io::Error::new(kind, format!("{} {what}", self.path.display()))
    }
}

/// In the state directory: what the file held; that there was none; that systemd-resolved was told.
const SAVED: &str = "resolv.conf.before";
const NO_FILE: &str = "resolv.conf.absent";
const TOLD: &str = "resolv.conf.resolved";

/// Why a file cannot be written, and what to do.
fn hint(error: &io::Error) -> String {
    match error.raw_os_error() {
        // What a unit with ProtectSystem= sees (systemd.exec(5)).
        Some(libc::EROFS) => format!(
            "{error}: in a service, allow it with ReadWritePaths=, as the unit says; or leave --dns out"
        ),
        Some(libc::EPERM) => {
            format!("{error}: it is immutable, see `lsattr` and `chattr -i`; or leave --dns out")
        }
        Some(libc::EACCES) => format!("{error}: run as root, or leave --dns out"),
        _ => format!("{error}; or leave --dns out"),
    }
}

fn read(path: &Path) -> io::Result<Before> {
    match fs::read(path) {
        Ok(bytes) => Ok(Before::Contents(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Before::NoFile),
        Err(e) => Err(e),
    }
}

/// Gives a file other contents. It is cut before it is written: what a crash leaves is the
/// beginning of the old, and never the old after the new.
fn replace(file: &File, contents: &[u8]) -> io::Result<()> {
    let length = contents.len() as u64;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    file.write_all_at(contents, 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const ORIGINAL: &[u8] = b"# by hand\nsearch example.org\nnameserver 192.0.2.53\n\
                              nameserver 192.0.2.54\noptions edns0";
    const OURS: &str = "# ipipou: name servers of ipipou0, until its tunnel ends\n\
                        nameserver 10.0.0.53\nsearch example.org\noptions edns0\n";

    /// A directory with a `resolv.conf` and room for state; removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn empty() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("ipipou-dns-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Place(path)
        }

        fn with(contents: &[u8]) -> Self {
            let place = Place::empty();
            fs::write(place.file(), contents).unwrap();
            place
        }

        fn file(&self) -> PathBuf {
            self.0.join("resolv.conf")
        }

        fn dns(&self, device: &str, servers: &[&str]) -> Dns {
            Dns::new(
                self.file(),
                self.0.join("state").join(device),
                device.parse().unwrap(),
                servers.iter().map(|s| s.parse().unwrap()).collect(),
            )
        }

        fn ipipou0(&self) -> Dns {
            self.dns("ipipou0", &["10.0.0.53"])
        }

        fn contents(&self) -> String {
            fs::read_to_string(self.file()).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_file_is_put_back_byte_for_byte_in_the_same_inode() {
        let place = Place::with(ORIGINAL);
        fs::set_permissions(place.file(), Permissions::from_mode(0o664)).unwrap();
        let inode = || fs::metadata(place.file()).map(|m| (m.ino(), m.mode())).unwrap();
        let (before, mut dns) = (inode(), place.ipipou0());
        assert!(!dns.is_applied() && !dns.needs_restoring());
        for _ in 0..2 {
            dns.apply().unwrap();
            assert_eq!((place.contents().as_str(), inode()), (OURS, before));
            assert!(dns.is_applied() && dns.needs_restoring());
        }
        for _ in 0..2 {
            dns.restore().unwrap();
            assert_eq!((fs::read(place.file()).unwrap().as_slice(), inode()), (ORIGINAL, before));
            assert!(!dns.is_applied() && !dns.needs_restoring());
        }
    }

    #[test]
    fn a_process_after_a_crash_knows_the_original() {
        let place = Place::with(ORIGINAL);
        place.ipipou0().apply().unwrap();
        assert!(place.ipipou0().is_applied());
        place.ipipou0().apply().unwrap();
        let mut other_servers = place.dns("ipipou0", &["10.0.0.54", "fd00::53"]);
        assert!(!other_servers.is_applied());
        other_servers.apply().unwrap();
        assert!(place.contents().contains("\nnameserver 10.0.0.54\nnameserver fd00::53\n"));
        let mut without = place.dns("ipipou0", &[]);
        assert!(without.needs_restoring());
        without.restore().unwrap();
        assert_eq!(fs::read(place.file()).unwrap(), ORIGINAL);
    }

    /// Every state that a crash can leave: before, between and after the single system calls.
    #[test]
    fn a_crash_in_the_middle_of_writing_does_no_harm() {
        for original in [ORIGINAL, b"", b"nameserver 192.0.2.53\n", &[b'#'; 500]] {
            let line = place_line();
            let mut states = vec![original.to_vec(), OURS.as_bytes().to_vec()];
            let mut over = line.clone();
            over.extend(original.get(line.len()..).unwrap_or_default());
            states.push(over.clone()); // the first line is written
            over.truncate(OURS.len());
            states.push(over); // and the file cut
            let mut cut = OURS.as_bytes().to_vec();
            cut.truncate(original.len());
            states.push(cut); // cut, to be put back
            for state in states {
                let place = Place::with(original);
                place.ipipou0().apply().unwrap();
                fs::write(place.file(), &state).unwrap();
                place.ipipou0().restore().unwrap();
                assert_eq!(fs::read(place.file()).unwrap(), original, "{state:?}");
                place.ipipou0().apply().unwrap();
                fs::write(place.file(), &state).unwrap();
                place.ipipou0().apply().unwrap();
                place.ipipou0().restore().unwrap();
                assert_eq!(fs::read(place.file()).unwrap(), original, "{state:?}");
            }
        }
    }

    fn place_line() -> Vec<u8> {
        OURS.split_inclusive('\n').next().unwrap().as_bytes().to_vec()
    }

    #[test]
    fn what_somebody_else_wrote_stays() {
        let place = Place::with(ORIGINAL);
        let mut dns = place.ipipou0();
        dns.apply().unwrap();
        fs::write(place.file(), "nameserver 198.51.100.1\n").unwrap();
        assert!(!dns.is_applied());
        dns.restore().unwrap();
        assert_eq!(place.contents(), "nameserver 198.51.100.1\n");
        assert!(!dns.needs_restoring());
    }

    #[test]
    fn what_somebody_else_wrote_is_put_back_after_a_repair() {
        let place = Place::with(ORIGINAL);
        let mut dns = place.ipipou0();
        dns.apply().unwrap();
        fs::write(place.file(), "nameserver 198.51.100.1\n").unwrap();
        dns.apply().unwrap();
        assert!(dns.is_applied());
        dns.restore().unwrap();
        assert_eq!(place.contents(), "nameserver 198.51.100.1\n");
    }

    #[test]
    fn a_file_that_was_not_there_goes_again() {
        let place = Place::empty();
        place.ipipou0().apply().unwrap();
        assert_eq!(fs::metadata(place.file()).unwrap().mode() & 0o777, 0o644);
        assert!(place.ipipou0().is_applied());
        place.ipipou0().apply().unwrap();
        place.ipipou0().restore().unwrap();
        assert!(!place.file().exists());
        assert!(!place.ipipou0().needs_restoring());
        for crashed in ["", "# ipip", OURS] {
            place.ipipou0().apply().unwrap();
            fs::write(place.file(), crashed).unwrap();
            place.ipipou0().apply().unwrap();
            fs::write(place.file(), crashed).unwrap();
            place.ipipou0().restore().unwrap();
            assert!(!place.file().exists(), "{crashed}");
        }
    }

    #[test]
    fn links_are_followed_and_stay() {
        let place = Place::empty();
        let target = place.0.join("elsewhere");
        symlink("elsewhere", place.file()).unwrap();
        let mut dns = place.ipipou0();
        dns.apply().unwrap();
        assert!(target.exists());
        dns.restore().unwrap();
        assert!(!target.exists() && place.file().is_symlink());
        fs::write(&target, ORIGINAL).unwrap();
        dns.apply().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), OURS);
        dns.restore().unwrap();
        assert_eq!(fs::read(&target).unwrap(), ORIGINAL);
        assert!(place.file().is_symlink());
    }

    #[test]
    fn a_second_tunnel_is_refused() {
        let place = Place::with(ORIGINAL);
        let mut first = place.ipipou0();
        first.apply().unwrap();
        first.apply().unwrap();
        for name in ["ipipou1", "ipipou", "ipipou00"] {
            let mut second = place.dns(name, &["10.1.0.53"]);
            let error = second.apply().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert!(error.to_string().contains("another tunnel"), "{error}");
            assert!(!second.is_applied() && !second.needs_restoring());
        }
        assert_eq!(place.contents(), OURS);
    }

    #[test]
    fn the_mark_of_a_process_that_was_killed_keeps_nobody_out() {
        let place = Place::with(ORIGINAL);
        let mut first = place.ipipou0();
        first.apply().unwrap();
        drop(first); // killed
        let mut second = place.dns("ipipou1", &["10.1.0.53"]);
        second.apply().unwrap();
        assert!(second.is_applied());
        // The first is started again: now it is the second that has the file.
        let mut again = place.ipipou0();
        assert_eq!(again.apply().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        second.restore().unwrap();
        assert_eq!(place.contents(), OURS);
        again.apply().unwrap();
        again.restore().unwrap();
        assert_eq!(fs::read(place.file()).unwrap(), ORIGINAL);
    }

    #[test]
    fn the_same_tunnel_in_another_namespace_is_another() {
        let place = Place::with(ORIGINAL);
        let mut one = place.ipipou0();
        one.apply().unwrap();
        assert_eq!(place.ipipou0().apply().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        one.restore().unwrap();
        assert_eq!(fs::read(place.file()).unwrap(), ORIGINAL);
    }

    #[test]
    fn the_reason_is_named() {
        for (errno, words) in [
            (libc::EROFS, "ReadWritePaths="),
            (libc::EPERM, "chattr -i"),
            (libc::EACCES, "run as root"),
            (libc::ENOSPC, "No space left"),
        ] {
            let hint = hint(&io::Error::from_raw_os_error(errno));
            assert!(hint.contains(words) && hint.contains("leave --dns out"), "{hint}");
        }
    }

    #[test]
    fn without_its_saved_copy_our_file_is_not_taken_for_the_original() {
        let place = Place::with(ORIGINAL);
        place.ipipou0().apply().unwrap();
        fs::remove_dir_all(place.0.join("state")).unwrap();
        assert_eq!(place.ipipou0().apply().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!place.ipipou0().needs_restoring());
    }

    #[test]
    fn systemd_resolved_is_known_by_the_link() {
        for (target, expected) in [
            ("../run/systemd/resolve/stub-resolv.conf", true),
            ("/run/systemd/resolve/resolv.conf", true),
            ("/run/NetworkManager/resolv.conf", false),
        ] {
            let place = Place::empty();
            symlink(target, place.file()).unwrap();
            assert_eq!(resolved::has(&place.file()), expected, "{target}");
        }
    }
}
