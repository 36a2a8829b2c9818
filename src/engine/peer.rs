//! The other end of one tunnel: what we know of it, and what it proved.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Moment;
use ipnet::IpNet;

use super::config::{ClientConfig, DeviceName, Host, PrivateAddress, Reply, ServerConfig};
use crate::auth::{Credential, Reject, ReplayMemory};
use crate::wire::auth_packet;

/// One remote, and our end towards it.
#[derive(Debug)]
pub struct Peer {
    /// The interface that leads to it; in the kernel's datapath it has one of its own.
    pub device: DeviceName,
    pub private: PrivateAddress,
    /// Inner addresses behind it.
    pub networks: Vec<IpNet>,
    pub end: End,
    /// The kernel refused our outer address for this remote: somebody else's tunnel has the pair.
    pub taken_for: Option<IpAddr>,
}

/// What the other end is.
#[derive(Debug)]
pub enum End {
    Client(RemoteClient),
    Server(RemoteServer),
    /// A node of a table: that it is there is all its proof.
    Node(SocketAddr),
}

/// A client, seen from the server: unknown until it proves itself.
#[derive(Debug)]
pub struct RemoteClient {
    config: ServerConfig,
    seen: ReplayMemory,
    known: Option<Known>,
}

/// A remote that proved itself, or whose tunnel was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    remote: SocketAddr,
    /// The wall clock at the last valid packet.
    unix: u64,
    /// Our clock when that packet has run out.
    until: Option<Duration>,
    expired: bool,
}

/// The server, seen from a client.
#[derive(Debug)]
pub struct RemoteServer {
    config: ClientConfig,
    address: Option<IpAddr>,
    /// Monotonic time of the next authentication packet; `None` when none is due.
    next_auth: Option<Duration>,
    /// See [`Memory::reserved`] and [`Memory::clock_from`].
    reserved: u64,
    clock_from: u64,
    /// No packet had a later time than this, unless the clock is past it too.
    used: u64,
    last_sent: Option<u64>,
}

/// What a restart must not forget. Kept in the state directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Server: the public key whose packets `seen` is about.
    pub key: Option<[u8; 32]>,
    /// Server: the newest packet of that key.
    pub seen: ReplayMemory,
    /// Server: when (Unix time) the client last proved itself, and from where.
    pub authenticated: Option<(SocketAddr, u64)>,
    /// Client: no packet had a later time than this.
    pub reserved: u64,
    /// Client: a clock that shows this or more has not gone back, so it is later than any packet.
    pub clock_from: u64,
    /// Server with many clients: where each was, and when (Unix time) it last proved itself.
    pub clients: BTreeMap<SocketAddr, u64>,
    /// Settings of interfaces as they were before us, by name.
    pub settings: BTreeMap<String, Settings>,
}

/// Settings of an interface, as far as we changed them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// It did not forward.
    pub turned_on: Option<TurnedOn>,
    pub rp_filter: Option<u32>,
}

/// When an interface's forwarding was turned on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnedOn {
    /// Whether the host was a router (`net.ipv4.ip_forward`), but for this interface.
    pub ip_forward: bool,
}

/// A valid packet's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// From where we know it to be.
    Refreshed,
    /// For the first time.
    Arrived,
    Moved {
        from: SocketAddr,
    },
}

/// How far ahead of the packets sent the memory on disk is: a client that sends one packet a
/// minute writes to its (often flash) disk once an hour.
const RESERVE_SECONDS: u64 = 3600;

impl Peer {
    /// Where data goes, as far as it is known.
    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.end {
            End::Client(client) => client.known.map(|k| k.remote),
            End::Server(server) => server.remote(),
            End::Node(remote) => Some(*remote),
        }
    }

    /// The remote whose packets may come in.
    pub fn admitted(&self) -> Option<SocketAddr> {
        match &self.end {
            End::Client(client) => client.known.filter(|k| !k.expired).map(|k| k.remote),
            End::Server(server) => server.remote(),
            End::Node(remote) => Some(*remote),
        }
    }

    /// Unix time of the last authentication: accepted by a server, sent by a client.
    pub fn last_authentication(&self) -> Option<u64> {
        match &self.end {
            End::Client(client) => client.known.map(|k| k.unix).filter(|&unix| unix != 0),
            End::Server(server) => server.last_sent,
            End::Node(_) => None,
        }
    }

    /// The earliest time something is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.end {
            End::Client(client) => client.expiry(),
            End::Server(server) => server.remote().and(server.next_auth),
            End::Node(_) => None,
        }
    }

    /// Whether the other end is a server, so that we send and it receives.
    pub fn is_server(&self) -> bool {
        matches!(self.end, End::Server(_))
    }

    pub fn memory(&self) -> Memory {
        match &self.end {
            End::Client(client) => Memory {
                key: client.config.policy.key(),
                seen: client.seen.clone(),
                authenticated: client.known.map(|k| (k.remote, k.unix)),
                ..Memory::default()
            },
            End::Server(server) => Memory {
                reserved: server.reserved,
                clock_from: server.clock_from,
                ..Memory::default()
            },
            End::Node(_) => Memory::default(),
        }
    }
}

impl RemoteClient {
    pub fn new(config: ServerConfig, memory: Memory) -> Self {
        let seen = match memory.key == config.policy.key() {
            true => memory.seen,
            false => ReplayMemory::default(),
        };
        RemoteClient { config, seen, known: None }
    }

    /// Takes over a tunnel that an earlier process left running. Who proved himself to that process
    /// by what this one does not take has to do it again before he is let in.
    pub fn adopt(&mut self, remote: SocketAddr, memory: &Memory, now: &Moment) {
        let policy = &self.config.policy;
        // One whom another came after before the tunnel could follow has to do it again, too.
        let (unix, is_last) = match memory.authenticated {
            Some((at, unix)) => (unix, at == remote && memory.key == policy.key()),
            None => (now.unix, true),
        };
        let taken = is_last && policy.check_remote(remote).is_ok();
        let until = self.config.valid_until(now.since(unix), now);
        let expired = !taken || until.is_some_and(|until| until <= now.monotonic);
        self.known = Some(Known { remote, unix, until, expired });
    }

    /// Judges a packet from the queue.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        now: &Moment,
    ) -> Result<Accepted, Reject> {
        self.config.policy.check(from, payload, now.unix, &mut self.seen)?;
        let until = self.config.valid_until(Duration::ZERO, now);
        let known = Known { remote: from, unix: now.unix, until, expired: false };
        let before = self.known.replace(known);
        Ok(match before {
            None => Accepted::Arrived,
            Some(known) if known.remote == from => Accepted::Refreshed,
            Some(known) => Accepted::Moved { from: known.remote },
        })
    }

    /// What is sent back to a client that sent `request`.
    pub fn reply(&self, request: &[u8], now: &Moment) -> Option<Vec<u8>> {
        reply(&self.config.reply, request, now)
    }

    fn expiry(&self) -> Option<Duration> {
        self.known.filter(|k| !k.expired)?.until
    }

    /// Ends an authentication that has run out; tells whose it was.
    pub fn expire(&mut self, now: &Moment) -> Option<SocketAddr> {
        if self.expiry()? > now.monotonic {
            return None;
        }
        let known = self.known.as_mut()?;
        known.expired = true;
        Some(known.remote)
    }
}

/// What is sent back to a client that sent `request`.
pub fn reply(how: &Reply, request: &[u8], now: &Moment) -> Option<Vec<u8>> {
    match how {
        Reply::Silent => None,
        Reply::Signed(signer) => Some(signer.control_packet(now.unix, now.salts())),
        Reply::Reversed => Some(request.iter().rev().copied().collect()),
    }
}

impl RemoteServer {
    pub fn new(config: ClientConfig, memory: &Memory, now: &Moment) -> Self {
        let address = match &config.server.host {
            Host::Address(address) => Some(*address),
            Host::Name(_) => None,
        };
        RemoteServer {
            config,
            address,
            next_auth: Some(now.monotonic),
            reserved: memory.reserved,
            clock_from: memory.clock_from,
            // When the clock has gone back, what was set aside may have been used.
            used: if now.unix < memory.clock_from { memory.reserved } else { 0 },
            last_sent: None,
        }
    }

    fn remote(&self) -> Option<SocketAddr> {
        self.address.map(|ip| SocketAddr::new(ip, self.config.server.port.get()))
    }

    /// Takes the answer to a name lookup. An address that is still among the answers is kept.
    ///
    /// Tells the new address, if it changed.
    pub fn resolved(&mut self, addresses: &[IpAddr]) -> Option<IpAddr> {
        if self.address.is_some_and(|current| addresses.contains(&current)) {
            return None;
        }
        self.address = Some(*addresses.first()?);
        self.address
    }

    /// Takes over the address that the tunnel of an earlier process goes to, until the name is
    /// looked up.
    pub fn adopt(&mut self, remote: SocketAddr) {
        if self.address.is_none() && remote.port() == self.config.server.port.get() {
            self.address = Some(remote.ip());
        }
    }

    pub fn authenticate_at(&mut self, when: Duration) {
        self.next_auth = Some(self.next_auth.map_or(when, |due| due.min(when)));
    }

    /// The packet that is due, and where to; sets the time of the next.
    pub fn due_packet(&mut self, now: &Moment) -> Option<(SocketAddr, Vec<u8>)> {
        let remote = self.remote()?;
        if self.next_auth? > now.monotonic {
            return None;
        }
        self.next_auth = self.config.keepalive.map(|every| now.monotonic.saturating_add(every));
        Some((remote, self.packet(now)))
    }

    /// A packet that proves us.
    pub fn packet(&mut self, now: &Moment) -> Vec<u8> {
        self.last_sent = Some(now.unix);
        match &self.config.credential {
            Credential::Empty => Vec::new(),
            Credential::Token(token) => token.as_bytes().to_vec(),
            Credential::Key(signer) => {
                // A server refuses what is older than the newest it has seen. So time never goes
                // back here, though the clock may: after a power cut it may say 1970. And it goes
                // on, as a server takes few packets of one second.
                let seconds = if now.unix < self.used { self.used + 1 } else { now.unix };
                let seconds = seconds.min(auth_packet::MAX_SECONDS);
                self.used = seconds;
                signer.control_packet(seconds, now.salts())
            }
        }
    }

    /// Sets more time aside when what was set aside is used up, and notes when the clock goes back
    /// and when it has caught up; true when that must be kept.
    pub fn reserve(&mut self) -> bool {
        let (Credential::Key(_), Some(clock)) = (&self.config.credential, self.last_sent) else {
            return false;
        };
        let before = (self.reserved, self.clock_from);
        if self.used >= self.reserved {
            self.reserved = self.used.saturating_add(RESERVE_SECONDS);
            self.clock_from = clock;
        }
        self.clock_from = match clock < self.used {
            true => self.reserved,
            false => self.clock_from.min(clock),
        };
        before != (self.reserved, self.clock_from)
    }
}
