//! The host's name servers while a tunnel is up: they are set, and later put back as they were.
//!
//! What manages `/etc/resolv.conf` is asked to set them: systemd-resolved, or `resolvconf`. Where
//! nothing manages it, the file itself is written ([`ResolvFile`]).

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::atomic_file::replace as replace_file;
use super::resolv_file::{self, ResolvFile, forget};
use super::resolvconf::Resolvconf;
use super::resolved;
use crate::engine::config::DeviceName;

/// The name servers of one tunnel.
#[derive(Debug)]
pub struct Dns {
    /// Whether this process has set the servers with systemd-resolved.
    told: bool,
    resolvconf: Resolvconf,
    file: ResolvFile,
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
        Dns { told: false, resolvconf, file }
    }

    fn owner(&self) -> Owner {
        if resolved::has(&self.file.path) {
            Owner::Resolved
        } else if Resolvconf::has(&self.file.path) {
            Owner::Resolvconf
        } else {
            Owner::Nobody
        }
    }

    /// Checks that nothing will keep this process from setting them, as far as that can be seen
    /// beforehand.
    ///
    /// # Errors
    /// Why it cannot, and what to do.
    pub fn check(&self) -> io::Result<()> {
        match self.owner() {
            _ if self.file.servers.is_empty() => Ok(()),
            Owner::Resolved => Ok(()), // polkit's policy decides who may set servers there
            // openresolv reports success when it cannot write the file.
            Owner::Resolvconf | Owner::Nobody => {
                resolv_file::check(&self.file.path, self.settings())
            }
        }
    }

    /// The settings that a service needs for it; the unit's comment has the same.
    fn settings(&self) -> &'static str {
        match self.owner() {
            Owner::Resolved => "DynamicUser=no",
            Owner::Resolvconf if self.file.path.is_symlink() => {
                "DynamicUser=no and ReadWritePaths=/run/resolvconf"
            }
            Owner::Resolvconf => "DynamicUser=no and ReadWritePaths=/run/resolvconf /etc",
            Owner::Nobody => resolv_file::BY_HAND,
        }
    }

    /// Adds a hint to what `resolvectl` or `resolvconf` said. Both obey root; they refuse other users
    /// in many ways, or say that they cannot reach anything.
    fn refused(&self, error: io::Error) -> io::Error {
        if rustix::process::geteuid().is_root() {
            return error;
        }
        let hint = resolv_file::in_service(self.settings());
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
        match self.owner() {
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

    /// Whether the name servers are set. For systemd-resolved only what this process told it is known:
    /// after the interface was made again, apply again.
    pub fn is_applied(&self) -> bool {
        if self.file.servers.is_empty() {
            return false; // nothing is read for a tunnel that does not ask
        }
        match self.owner() {
            Owner::Resolved => self.told,
            Owner::Resolvconf => self.resolvconf.has_ours(),
            Owner::Nobody => self.file.is_applied(),
        }
    }

    /// Whether this process, or one that crashed, left something to put back.
    pub fn needs_restoring(&self) -> bool {
        [TOLD_RESOLVED, TOLD_RESOLVCONF].iter().any(|told| self.file.in_state_dir(told).exists())
            || self.file.needs_restoring()
    }

    /// Puts back what was there, if nobody else has changed it. Must be called while the tunnel's
    /// interface is still there.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn restore(&mut self) -> io::Result<()> {
        let told = self.file.in_state_dir(TOLD_RESOLVED);
        if told.exists() {
            warn(resolved::revert(&self.file.device)); // an interface that is gone has no name servers
            self.told = false;
            forget(&told)?;
        }
        let told = self.file.in_state_dir(TOLD_RESOLVCONF);
        if told.exists() {
            warn(self.resolvconf.delete()); // resolvconf may have been removed from the host since
            forget(&told)?;
        }
        self.file.restore()
    }
}

fn warn(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{error}");
    }
}

/// In the state directory: a mark that the servers were set with systemd-resolved.
const TOLD_RESOLVED: &str = "resolv.conf.resolved";
const TOLD_RESOLVCONF: &str = "resolv.conf.resolvconf";
