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

    fn dns(&self, device: &str, servers: &[&str]) -> ResolvFile {
        ResolvFile::new(
            self.file(),
            self.0.join("state").join(device),
            device.parse().unwrap(),
            servers.iter().map(|s| s.parse().unwrap()).collect(),
        )
    }

    fn ipipou0(&self) -> ResolvFile {
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
fn the_file_is_restored_byte_for_byte_in_the_same_inode() {
    let place = Place::with(ORIGINAL);
    fs::set_permissions(place.file(), Permissions::from_mode(0o664)).unwrap();
    let inode = || fs::metadata(place.file()).map(|m| (m.ino(), m.mode())).unwrap();
    let (before, mut dns) = (inode(), place.ipipou0());
    assert!(!dns.is_applied().unwrap() && !dns.needs_restoring().unwrap());
    for _ in 0..2 {
        dns.apply().unwrap();
        assert_eq!((place.contents().as_str(), inode()), (OURS, before));
        assert!(dns.is_applied().unwrap() && dns.needs_restoring().unwrap());
    }
    for _ in 0..2 {
        dns.restore().unwrap();
        assert_eq!((fs::read(place.file()).unwrap().as_slice(), inode()), (ORIGINAL, before));
        assert!(!dns.is_applied().unwrap() && !dns.needs_restoring().unwrap());
    }
}

#[test]
fn a_process_after_a_crash_knows_the_original() {
    let place = Place::with(ORIGINAL);
    place.ipipou0().apply().unwrap();
    assert!(place.ipipou0().is_applied().unwrap());
    place.ipipou0().apply().unwrap();
    let mut other_servers = place.dns("ipipou0", &["10.0.0.54", "fd00::53"]);
    assert!(!other_servers.is_applied().unwrap());
    other_servers.apply().unwrap();
    assert!(place.contents().contains("\nnameserver 10.0.0.54\nnameserver fd00::53\n"));
    let mut without = place.dns("ipipou0", &[]);
    assert!(without.needs_restoring().unwrap());
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
        states.push(cut); // cut, in order to be put back
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
fn a_change_by_another_program_stays() {
    let place = Place::with(ORIGINAL);
    let mut dns = place.ipipou0();
    dns.apply().unwrap();
    fs::write(place.file(), "nameserver 198.51.100.1\n").unwrap();
    assert!(!dns.is_applied().unwrap());
    dns.restore().unwrap();
    assert_eq!(place.contents(), "nameserver 198.51.100.1\n");
    assert!(!dns.needs_restoring().unwrap());
}

#[test]
fn a_change_by_another_program_is_restored_after_a_repair() {
    let place = Place::with(ORIGINAL);
    let mut dns = place.ipipou0();
    dns.apply().unwrap();
    fs::write(place.file(), "nameserver 198.51.100.1\n").unwrap();
    dns.apply().unwrap();
    assert!(dns.is_applied().unwrap());
    dns.restore().unwrap();
    assert_eq!(place.contents(), "nameserver 198.51.100.1\n");
}

#[test]
fn a_file_that_did_not_exist_is_removed_again() {
    let place = Place::empty();
    place.ipipou0().apply().unwrap();
    assert_eq!(fs::metadata(place.file()).unwrap().mode() & 0o777, 0o644);
    assert!(place.ipipou0().is_applied().unwrap());
    place.ipipou0().apply().unwrap();
    place.ipipou0().restore().unwrap();
    assert!(!place.file().exists());
    assert!(!place.ipipou0().needs_restoring().unwrap());
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
fn symbolic_links_are_followed_and_kept() {
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
        assert!(!second.is_applied().unwrap() && !second.needs_restoring().unwrap());
    }
    assert_eq!(place.contents(), OURS);
}

#[test]
fn the_mark_of_a_killed_process_blocks_no_other() {
    let place = Place::with(ORIGINAL);
    let mut first = place.ipipou0();
    first.apply().unwrap();
    drop(first); // killed
    let mut second = place.dns("ipipou1", &["10.1.0.53"]);
    second.apply().unwrap();
    assert!(second.is_applied().unwrap());
    // The first process is started again: now the second one has the file.
    let mut again = place.ipipou0();
    assert_eq!(again.apply().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    second.restore().unwrap();
    assert_eq!(place.contents(), OURS);
    again.apply().unwrap();
    again.restore().unwrap();
    assert_eq!(fs::read(place.file()).unwrap(), ORIGINAL);
}

#[test]
fn a_tunnel_of_the_same_name_in_another_namespace_is_another() {
    let place = Place::with(ORIGINAL);
    let mut one = place.ipipou0();
    one.apply().unwrap();
    assert_eq!(place.ipipou0().apply().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    one.restore().unwrap();
    assert_eq!(fs::read(place.file()).unwrap(), ORIGINAL);
}

#[test]
fn a_write_error_names_its_reason() {
    for (errno, words) in [
        (libc::EROFS, "put DynamicUser=no and ReadWritePaths=/etc below [Service]"),
        (libc::EPERM, "chattr -i"),
        (libc::EACCES, "run as root; in a service, put DynamicUser=no and ReadWritePaths="),
        (libc::ENOSPC, "No space left"),
    ] {
        let by_hand = by_hand("/etc/resolv.conf.is.nowhere".as_ref());
        let hint = hint(&io::Error::from_raw_os_error(errno), &by_hand);
        assert!(hint.contains(words) && hint.contains("leave --dns out"), "{hint}");
    }
}

/// Another program may replace the file, and the link too.
#[test]
fn the_directory_of_the_file_is_to_be_writable() {
    let place = Place::with(ORIGINAL);
    let (there, link) = (place.0.join("there"), place.0.join("link"));
    fs::create_dir(&there).unwrap();
    fs::rename(place.file(), there.join("resolv.conf")).unwrap();
    symlink(there.join("resolv.conf"), &link).unwrap();
    let there = fs::canonicalize(there).unwrap();
    assert!(by_hand(&link).ends_with(&format!(" ReadWritePaths={}", there.display())));
}

#[test]
fn without_a_saved_copy_the_tunnels_file_is_not_taken_for_the_original() {
    let place = Place::with(ORIGINAL);
    place.ipipou0().apply().unwrap();
    fs::remove_dir_all(place.0.join("state")).unwrap();
    assert_eq!(place.ipipou0().apply().unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!place.ipipou0().needs_restoring().unwrap());
}

/// A file that cannot be read may be there or not.
#[test]
fn what_cannot_be_read_is_neither_there_nor_absent() {
    let place = Place::with(ORIGINAL);
    let dns = place.ipipou0();
    fs::create_dir_all(dns.in_state_dir(SAVED)).unwrap(); // which no user can read as a file
    assert!(dns.needs_restoring().is_err() && dns.is_applied().is_err());
    fs::remove_dir(dns.in_state_dir(SAVED)).unwrap();
    symlink(dns.in_state_dir(NO_FILE), dns.in_state_dir(NO_FILE)).unwrap(); // ELOOP
    assert!(dns.needs_restoring().is_err() && dns.is_applied().is_err());
    fs::remove_file(dns.in_state_dir(NO_FILE)).unwrap();
    assert!(!dns.needs_restoring().unwrap() && !dns.is_applied().unwrap());
}
