//! The host's name servers while a tunnel is up: they are set, and later put back as they were.
//!
//! What manages `/etc/resolv.conf` is asked to set them: systemd-resolved, or `resolvconf`. Where
//! nothing manages it, the file itself is written ([`ResolvFile`]).

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::atomic_file::replace as replace_file;
use super::program::NotDone;
use super::resolv_file::{self, ResolvFile, forget};
use super::resolvconf::Resolvconf;
use super::resolved;
use crate::engine::config::DeviceName;
use crate::engine::host::NameServers;

/// The name servers of one tunnel.
#[derive(Debug)]
pub struct Dns {
    /// Whether this process has set the servers with systemd-resolved.
    told: bool,
    resolvconf: Resolvconf,
    file: ResolvFile,
    /// Whether there is something to put back, once that is known. Only this process changes it: the state
    /// directory is its own.
    left: Option<bool>,
    /// What was seen last.
    last: NameServers,
    /// Why nothing can be seen, as the log has it.
    said: Option<String>,
}

/// What manages the file.
enum Owner {
    Resolved,
    Resolvconf,
    /// No program that is known here.
    Nobody,
}

impl Dns {
    /// `path` is `/etc/resolv.conf`; its earlier contents are kept in `state_dir`.
    pub fn new(
        path: PathBuf,
        state_dir: PathBuf,
        device: DeviceName,
        servers: Vec<IpAddr>,
    ) -> Self {
        let resolvconf = Resolvconf::new(&device);
        let file = ResolvFile::new(path, state_dir, device, servers);
        let last = NameServers::default();
        Dns { told: false, resolvconf, file, left: None, last, said: None }
    }

    /// # Errors
    /// When the file cannot be read.
    fn owner(&self) -> io::Result<Owner> {
        Ok(if resolved::has(&self.file.path) {
            Owner::Resolved
        } else if Resolvconf::has(&self.file.path)? {
            Owner::Resolvconf
        } else {
            Owner::Nobody
        })
    }

    /// Checks that nothing will keep this process from setting them, as far as that can be seen
    /// beforehand.
    ///
    /// # Errors
    /// Why it cannot, and what to do.
    pub fn check(&self) -> io::Result<()> {
        if self.file.servers.is_empty() {
            return Ok(());
        }
        match self.owner()? {
            Owner::Resolved => Ok(()), // polkit's policy decides who may set servers there
            // openresolv reports success when it cannot write the file.
            Owner::Resolvconf | Owner::Nobody => {
                resolv_file::check(&self.file.path, &self.settings())
            }
        }
    }

    /// The settings that a service needs for it; the unit's comment has the same.
    fn settings(&self) -> String {
        let fixed = match self.owner() {
            Ok(Owner::Resolved) => "DynamicUser=no",
            Ok(Owner::Resolvconf) if self.file.path.is_symlink() => {
                "DynamicUser=no and ReadWritePaths=/run/resolvconf"
            }
            Ok(Owner::Resolvconf) => "DynamicUser=no and ReadWritePaths=/run/resolvconf /etc",
            Ok(Owner::Nobody) | Err(_) => return resolv_file::by_hand(&self.file.path),
        };
        fixed.to_owned()
    }

    /// Adds a hint to what `resolvectl` or `resolvconf` said. Both obey root; they refuse other users
    /// in many ways, or say that they cannot reach anything.
    fn refused(&self, why: NotDone) -> io::Error {
        let error = match why {
            NotDone::Refused(error) if !rustix::process::geteuid().is_root() => error,
            NotDone::Refused(error) | NotDone::Unknown(error) => return error,
        };
        let hint = resolv_file::in_service(&self.settings());
        let text = format!("{error}: run as root; {hint}; or leave --dns out");
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    }

    /// Sets the name servers if they are not set. With systemd-resolved they are set every time: it
    /// forgets them together with the interface.
    ///
    /// # Errors
    /// `AlreadyExists` when another tunnel has written the file; otherwise what the kernel,
    /// `resolvectl` or `resolvconf` said.
    pub fn apply(&mut self) -> io::Result<()> {
        self.left = None;
        match self.owner()? {
            Owner::Resolved => {
                replace_file(&self.file.in_state_dir(TOLD_RESOLVED), &[])?;
                resolved::ask(&self.file.servers, &self.file.device)
                    .map_err(|e| self.refused(e))?;
                self.told = true;
                Ok(())
            }
            Owner::Resolvconf => {
                replace_file(&self.file.in_state_dir(TOLD_RESOLVCONF), &[])?;
                let added = self.resolvconf.add(&self.file.servers, &self.file.path);
                added.map_err(|e| self.refused(e))
            }
            Owner::Nobody => self.file.apply(),
        }
    }

    /// Whose name servers the host uses. What cannot be read, as without a free descriptor, has not
    /// changed: it is as it was last, and a line in the log says so once.
    pub fn in_use(&mut self) -> NameServers {
        match self.look().map_err(|error| error.to_string()) {
            Ok(found) => (self.last, self.said) = (found, None),
            Err(why) if self.said.as_ref() != Some(&why) => {
                tracing::warn!("cannot see whose name servers the host uses: {why}; trying again");
                self.said = Some(why);
            }
            Err(_) => {}
        }
        self.last
    }

    fn look(&mut self) -> io::Result<NameServers> {
        if self.is_applied()? {
            return Ok(NameServers::Ours);
        }
        let left = match self.left {
            Some(left) => left,
            None => *self.left.insert(self.needs_restoring()?),
        };
        Ok(if left { NameServers::Changed } else { NameServers::Theirs })
    }

    /// Whether the name servers are set. For systemd-resolved only what this process told it is known:
    /// after the interface was made again, apply again.
    fn is_applied(&self) -> io::Result<bool> {
        if self.file.servers.is_empty() {
            return Ok(false); // nothing is read for a tunnel that does not ask
        }
        match self.owner()? {
            Owner::Resolved => Ok(self.told),
            Owner::Resolvconf => self.resolvconf.has_ours(),
            Owner::Nobody => self.file.is_applied(),
        }
    }

    /// Whether this process, or one that crashed, left something to put back.
    fn needs_restoring(&self) -> io::Result<bool> {
        for told in [TOLD_RESOLVED, TOLD_RESOLVCONF] {
            if self.file.in_state_dir(told).try_exists()? {
                return Ok(true);
            }
        }
        self.file.needs_restoring()
    }

    /// Puts back what was there, if nobody else has changed it. Must be called while the tunnel's
    /// interface is still there.
    ///
    /// # Errors
    /// When a file cannot be read or written, or when it is not known what `resolvectl` or `resolvconf` has
    /// done: then there is still something to put back.
    pub fn restore(&mut self) -> io::Result<()> {
        self.left = None;
        let Dns { told, resolvconf, file, .. } = self;
        let revert = || {
            *told = false;
            resolved::revert(&file.device) // an interface that is gone has no name servers
        };
        let reverted = take_back(&file.in_state_dir(TOLD_RESOLVED), revert);
        // resolvconf may have been removed from the host since.
        let deleted = take_back(&file.in_state_dir(TOLD_RESOLVCONF), || resolvconf.delete());
        let restored = file.restore();
        reverted.and(deleted).and(restored)
    }
}

/// Takes back what the mark at this path stands for, if there is one, and removes the mark. A program that refuses
/// has nothing of ours; the mark of one that has said nothing stays.
fn take_back(mark: &Path, take: impl FnOnce() -> Result<(), NotDone>) -> io::Result<()> {
    if !mark.try_exists()? {
        return Ok(());
    }
    match take() {
        Ok(()) => {}
        Err(NotDone::Refused(error)) => tracing::warn!("{error}"),
        Err(unknown @ NotDone::Unknown(_)) => return Err(unknown.into()),
    }
    forget(mark)
}

/// A mark in the state directory: the servers were set with systemd-resolved.
const TOLD_RESOLVED: &str = "resolv.conf.resolved";
const TOLD_RESOLVCONF: &str = "resolv.conf.resolvconf";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_mark_stays_until_a_program_has_answered() {
        let mark = std::env::temp_dir().join(format!("ipipou-told-{}", std::process::id()));
        take_back(&mark, || panic!("there is nothing to take back")).unwrap();
        for (answer, stays) in [
            (Err(NotDone::Unknown(io::ErrorKind::TimedOut.into())), true),
            (Err(NotDone::Refused(io::ErrorKind::NotFound.into())), false),
            (Ok(()), false),
        ] {
            fs::write(&mark, "").unwrap();
            assert_eq!(take_back(&mark, || answer).is_err(), stays);
            assert_eq!(mark.exists(), stays);
        }
    }

    #[test]
    fn the_state_directory_is_read_once_and_after_each_change() {
        let place = std::env::temp_dir().join(format!("ipipou-left-over-{}", std::process::id()));
        let (path, state) = (place.join("resolv.conf"), place.join("state"));
        fs::create_dir_all(&state).unwrap();
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let leftover = state.join("resolv.conf.before");
        let of =
            |servers| Dns::new(path.clone(), state.clone(), "ipipou0".parse().unwrap(), servers);

        let mut without = of(Vec::new());
        assert_eq!(without.in_use(), NameServers::Theirs);
        fs::write(&leftover, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(without.in_use(), NameServers::Theirs, "it was read again");
        // What an earlier process left is seen, and put back once.
        let mut after_a_crash = of(Vec::new());
        assert_eq!(after_a_crash.in_use(), NameServers::Changed);
        after_a_crash.restore().unwrap();
        assert_eq!(after_a_crash.in_use(), NameServers::Theirs);
        assert!(!leftover.exists());

        let mut with = of(vec![IpAddr::from([192, 0, 2, 53])]);
        assert_eq!(with.in_use(), NameServers::Theirs);
        with.apply().unwrap();
        assert_eq!(with.in_use(), NameServers::Ours);
        fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        assert_eq!(with.in_use(), NameServers::Changed);
        with.restore().unwrap();
        assert_eq!(with.in_use(), NameServers::Theirs);
        fs::remove_dir_all(place).unwrap();
    }
}
