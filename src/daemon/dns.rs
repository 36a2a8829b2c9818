//! The host's name servers while a tunnel is up: put in, and put back as they were.
//!
//! Who has `/etc/resolv.conf` is told: systemd-resolved, or `resolvconf`. Where nobody has it, the
//! file itself is written ([`ResolvFile`]).

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::memory::replace as replace_file;
use super::resolv_file::{ResolvFile, forget};
use super::resolvconf::Resolvconf;
use super::resolved;
use crate::engine::config::DeviceName;

/// The name servers of one tunnel.
#[derive(Debug)]
pub struct Dns {
    path: PathBuf,
    state_dir: PathBuf,
    device: DeviceName,
    servers: Vec<IpAddr>,
    /// Whether systemd-resolved was told by this process.
    told: bool,
    resolvconf: Resolvconf,
    file: ResolvFile,
}

/// Who writes the file.
enum Owner {
    Resolved,
    Resolvconf,
    /// Nobody is known to.
    Nobody,
}

impl Dns {
    /// `path` is `/etc/resolv.conf`; what it held is kept in `state_dir`.
    pub fn new(
        path: PathBuf,
        state_dir: PathBuf,
        device: DeviceName,
        servers: Vec<IpAddr>,
    ) -> Self {
        let file =
            ResolvFile::new(path.clone(), state_dir.clone(), device.clone(), servers.clone());
        let resolvconf = Resolvconf::new(&device);
        Dns { path, state_dir, device, servers, told: false, resolvconf, file }
    }

    fn owner(&self) -> Owner {
        if resolved::has(&self.path) {
            Owner::Resolved
        } else if Resolvconf::has(&self.path) {
            Owner::Resolvconf
        } else {
            Owner::Nobody
        }
    }

    /// Puts the name servers in, if they are not. systemd-resolved is told every time: it forgets
    /// with the interface.
    ///
    /// # Errors
    /// `AlreadyExists` when another tunnel has the file; or what the kernel, `resolvectl` or
    /// `resolvconf` said.
    pub fn apply(&mut self) -> io::Result<()> {
        match self.owner() {
            Owner::Resolved => {
                replace_file(&self.state_dir.join(TOLD_RESOLVED), &[])?;
                resolved::ask(&self.servers, &self.device)?;
                self.told = true;
                Ok(())
            }
            Owner::Resolvconf => {
                replace_file(&self.state_dir.join(TOLD_RESOLVCONF), &[])?;
                self.resolvconf.add(&self.servers, &self.path)
            }
            Owner::Nobody => self.file.apply(),
        }
    }

    /// Whether the name servers are in. Of systemd-resolved only what this process told it is
    /// known: after the interface was made anew, apply again.
    pub fn is_applied(&self) -> bool {
        if self.servers.is_empty() {
            return false; // nothing is read for those who do not ask
        }
        match self.owner() {
            Owner::Resolved => self.told,
            Owner::Resolvconf => self.resolvconf.has_ours(),
            Owner::Nobody => self.file.is_applied(),
        }
    }

    /// Whether we, or a process that crashed, left something to put back.
    pub fn needs_restoring(&self) -> bool {
        [TOLD_RESOLVED, TOLD_RESOLVCONF].iter().any(|told| self.state_dir.join(told).exists())
            || self.file.needs_restoring()
    }

    /// Puts back what was there, if nobody else has changed it. To be done while the tunnel's
    /// interface is still there.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn restore(&mut self) -> io::Result<()> {
        let told = self.state_dir.join(TOLD_RESOLVED);
        if told.exists() {
            warn(resolved::revert(&self.device)); // an interface that is gone has no name servers
            self.told = false;
            forget(&told)?;
        }
        let told = self.state_dir.join(TOLD_RESOLVCONF);
        if told.exists() {
            warn(self.resolvconf.delete()); // it may have been removed from the host since
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

/// In the state directory: who was told.
const TOLD_RESOLVED: &str = "resolv.conf.resolved";
const TOLD_RESOLVCONF: &str = "resolv.conf.resolvconf";
