//! Ensures that there is one process per tunnel interface, and one per UDP port of an address, in a
//! network namespace.

use std::net::{IpAddr, SocketAddr};

use crate::engine::config::DeviceName;
use crate::engine::host::Found;
use crate::host::{Doubt, Holder, Lock, of_interface};

/// The locks of one process.
#[derive(Debug)]
pub struct Locks {
    interface: Lock,
    /// The address and port in use, and their lock.
    port: Option<(SocketAddr, Lock)>,
}

impl Locks {
    /// Takes the interface's lock.
    ///
    /// # Errors
    /// The process that runs the interface already.
    pub async fn open(device: &DeviceName) -> Result<Self, Holder> {
        let lock = wait(&of_interface(device.as_str())).await?;
        Ok(Locks { interface: lock, port: None })
    }

    /// Takes the port's lock for the first time, and waits a moment if it is held.
    ///
    /// # Errors
    /// The process that has the port already.
    pub async fn wait_for_port(&mut self, at: SocketAddr) -> Result<(), Holder> {
        self.port = Some((at, wait(&port_name(at)).await?));
        Ok(())
    }

    /// Takes the lock of a port, and releases the one of the port before.
    ///
    /// # Errors
    /// The process that has the port already.
    pub fn hold_port(&mut self, at: SocketAddr) -> Result<(), Holder> {
        if self.port.as_ref().is_none_or(|(held, _)| *held != at) {
            let name = port_name(at);
            self.port = Some((at, Lock::take(&name, |doubt| tell(&name, &doubt))?));
        }
        Ok(())
    }

    /// Drops the waiting connections of processes that asked who holds the locks, to make room for
    /// others.
    pub fn drain(&self) {
        self.interface.drain();
        if let Some((_, port)) = &self.port {
            port.drain();
        }
    }

    /// Removes from `found` the listeners at our port that another process has made for other
    /// addresses.
    pub fn leave_to_others(&self, port: u16, found: &mut Found) {
        let held = self.port.as_ref().map(|(at, _)| at.ip());
        found.listeners.retain(|listener| match listener.local.map(IpAddr::V4) {
            Some(local) if listener.port == port && Some(local) != held => {
                !Lock::is_held(&port_name(SocketAddr::new(local, port)))
            }
            Some(_) | None => true,
        });
    }
}

fn port_name(at: SocketAddr) -> String {
    format!("ipipou/port/{}/{}", at.port(), at.ip())
}

async fn wait(name: &str) -> Result<Lock, Holder> {
    Lock::wait(name, |doubt| tell(name, &doubt)).await
}

fn tell(name: &str, doubt: &Doubt) {
    tracing::warn!("the name @{name} does not lock: {doubt}");
}
