//! What carries the packets: the kernel, or this process.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Failure;
use crate::engine::Outgoing;
use crate::engine::config::{Datapath, Outer, Role, TunnelConfig};
use crate::engine::host::{Found, Userspace};
use crate::engine::plan::{LinkKind, Step};
use crate::kernel::{Queue, Queued, RawSender, StepError};
use crate::observe::status::Learned;
use crate::tun::{self, StoredFds};

/// The datapath in use.
pub enum Carrier {
    /// A server's authentication packets come through a queue.
    Kernel {
        queue: Option<Queue>,
        sender: RawSender,
    },
    Tun(tun::Datapath),
}

impl Carrier {
    /// # Errors
    /// When the kernel refuses a socket, or somebody else reads the queue.
    ///
    /// `kept` is what an earlier process of the userspace datapath left.
    pub fn open(
        datapath: Datapath,
        role: &Role,
        tunnel: &TunnelConfig,
        kept: StoredFds,
    ) -> Result<Self, Failure> {
        match datapath {
            Datapath::Kernel => Ok(Carrier::Kernel {
                queue: match role {
                    Role::Server(server) => Some(Queue::bind(server.queue)?),
                    Role::Client(_) | Role::Node(_) => None,
                },
                sender: RawSender::open(tunnel.outer.device()).map_err(Failure::Sending)?,
            }),
            Datapath::Tun => {
                let datapath =
                    tun::Datapath::new(tunnel.queues).map_err(Failure::system("start threads"))?;
                if !kept.is_nothing() {
                    take_over(&datapath, tunnel, kept);
                }
                Ok(Carrier::Tun(datapath))
            }
        }
    }

    /// The next packet that may be an authentication packet; `None` when no more will come.
    pub async fn next(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        match self {
            Carrier::Kernel { queue: Some(queue), .. } => {
                let Queued { from, payload } = queue.recv().await?;
                Some((from.into(), payload))
            }
            Carrier::Kernel { queue: None, .. } => std::future::pending().await,
            Carrier::Tun(datapath) => Some(datapath.control().await),
        }
    }

    /// Sends a packet from the tunnel's own port.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        match self {
            Carrier::Kernel { sender, .. } => sender.send(out),
            Carrier::Tun(datapath) => datapath.send(out),
        }
    }

    /// A remote proved itself again.
    pub fn heard_of(&self, remote: SocketAddr) {
        match self {
            Carrier::Kernel { .. } => {}
            Carrier::Tun(datapath) => datapath.heard_of(remote),
        }
    }

    /// Adds what only the datapath itself knows.
    pub fn read(&self, found: &mut Found) {
        match self {
            Carrier::Kernel { .. } => {}
            Carrier::Tun(datapath) => {
                found.userspace = Userspace {
                    socket: datapath.socket(),
                    interface: datapath.has_interface(),
                    forwarding: datapath.forwarding(),
                    silent: datapath.silent(),
                };
                found.answers = datapath.answers();
            }
        }
    }

    /// Does the steps that are the userspace datapath's; all others are none of its business.
    ///
    /// # Errors
    /// When the port or the interface's name is taken, or the kernel refuses.
    pub fn apply(&self, step: &Step) -> Result<(), StepError> {
        let Carrier::Tun(datapath) = self else { return Ok(()) };
        match step {
            Step::Bind(spec) => {
                datapath.bind(spec).map_err(StepError::Socket)?;
                keep(datapath);
                Ok(())
            }
            Step::Forward(spec) => datapath.set_forwarding(spec.clone()).map_err(StepError::Tun),
            Step::CreateLink(wanted) => match wanted.kind {
                LinkKind::Tun => {
                    datapath.create_interface(&wanted.device).map_err(StepError::Tun)?;
                    keep(datapath);
                    Ok(())
                }
                LinkKind::Ipip(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    pub fn datapath(&self) -> Datapath {
        match self {
            Carrier::Kernel { .. } => Datapath::Kernel,
            Carrier::Tun(_) => Datapath::Tun,
        }
    }

    /// Where the packets go, in a few words.
    pub fn describe(&self) -> (&'static str, Option<String>) {
        match self {
            Carrier::Kernel { .. } => ("kernel", None),
            Carrier::Tun(datapath) => ("tun", Some(datapath.offloads().to_string())),
        }
    }

    /// Packets that were dropped, by reason.
    pub fn dropped(&self) -> BTreeMap<&'static str, u64> {
        match self {
            Carrier::Kernel { .. } => BTreeMap::new(),
            Carrier::Tun(datapath) => datapath.dropped(),
        }
    }

    /// The userspace datapath, if it is the one in use.
    pub fn userspace(&self) -> Option<&tun::Datapath> {
        match self {
            Carrier::Kernel { .. } => None,
            Carrier::Tun(datapath) => Some(datapath),
        }
    }

    /// How many queues of a TUN interface this process holds; `None` without one.
    pub fn queues(&self) -> Option<usize> {
        self.userspace().map(|datapath| datapath.offloads().queues).filter(|held| *held > 0)
    }

    /// What was learned of inner addresses.
    pub fn learned(&self) -> Vec<Learned> {
        let Carrier::Tun(datapath) = self else { return Vec::new() };
        let entry = |(inner, remote, silent): (_, _, Duration)| Learned {
            inner: ToString::to_string(&inner as &std::net::IpAddr),
            remote: ToString::to_string(&remote as &SocketAddr),
            silent: silent.as_secs(),
        };
        let mut learned: Vec<_> = datapath.learned().into_iter().map(entry).collect();
        learned.sort_by(|a, b| a.inner.cmp(&b.inner));
        learned
    }
}

/// Goes on where an earlier process was killed. If that cannot be, all is made anew.
fn take_over(datapath: &tun::Datapath, tunnel: &TunnelConfig, kept: StoredFds) {
    let unspecified = match &tunnel.outer {
        Outer::Address(own) | Outer::AddressOn(own, _) => *own,
        Outer::Device(_) | Outer::Route => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    match datapath.take_over(&tunnel.device, &tunnel.socket(unspecified), kept) {
        Ok(()) => tracing::info!("took over the interface and the socket of an earlier process"),
        Err(error) => {
            tracing::warn!("what an earlier process left is of no use: {error}");
            let _ = tun::forget(); // said below, when there is something to keep
        }
    }
}

/// The tunnel does not depend on it.
fn keep(datapath: &tun::Datapath) {
    if let Err(error) = datapath.keep() {
        tracing::warn!("the service manager does not keep our open files: {error}");
    }
}
