//! The other end of one tunnel: what we know of it, and what it proved.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::Moment;
use super::addresses::Addresses;
use super::calendar::Calendar;
use super::config::{AlternateAddress, ClientConfig, DeviceName, HostName, Reply, ServerConfig};
use super::host::Traffic;
use super::memory::{Memory, Writing};
use super::persistence::{self, Finding, Persistence};
use crate::auth::{Credential, Reject, ReplayMemory};

/// Where no client is.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// One remote, and our end towards it.
#[derive(Debug)]
pub struct Peer {
    /// The interface that leads to it; in the kernel's datapath it has one of its own.
    pub device: DeviceName,
    pub alternate: AlternateAddress,
    /// Inner addresses behind it.
    pub networks: Vec<IpNet>,
    pub end: End,
    /// The kernel refused our outer address for this remote: somebody else's tunnel has the pair.
    pub conflicting_remote: Option<IpAddr>,
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
    /// Where it was, as far as an earlier process remembered.
    remembered: Option<SocketAddr>,
    known: Option<Session>,
    /// It proved itself from another remote. That is to be on the disk before it counts.
    arriving: Option<Arriving>,
}

/// A remote that proved itself, or whose tunnel was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    remote: SocketAddr,
    /// The wall clock at the last valid packet.
    unix: u64,
    /// Our clock when that packet has run out.
    until: Option<Duration>,
    expired: bool,
    /// It was found at the start, and another came after it, or it proved itself by what this process
    /// does not take.
    unproven: bool,
}

#[derive(Debug, Clone)]
struct Arriving {
    known: Session,
    /// The writing of the memory that is waited for.
    writing: Writing,
    /// The payload that is answered.
    request: Vec<u8>,
}

/// What counts now that it is on the disk.
#[derive(Debug)]
pub struct Arrival {
    pub from: SocketAddr,
    pub accepted: Accepted,
    pub reply: Option<Vec<u8>>,
}

/// The server, seen from a client.
#[derive(Debug)]
pub struct RemoteServer {
    config: ClientConfig,
    pub addresses: Addresses,
    /// Monotonic time of the next authentication packet; `None` when none is due.
    next_auth: Option<Duration>,
    calendar: Calendar,
    last_sent: Option<u64>,
    /// `None`: the keepalive does as well.
    persistence: Option<Persistence>,
    /// The counters are to be looked at, and the next packet is another try.
    looking: bool,
    trying: bool,
}

/// The effect of a valid packet.
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

/// What becomes of a valid packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// From where the client is known to be.
    Refreshed,
    /// From elsewhere, after it had run out, or by a clock that is further ahead than it was: it
    /// counts once it is written.
    Arriving,
    /// The same, of one whose writing was asked for.
    BeingWritten,
    /// There is no room: whether somebody has fallen silent, the next reading of the host tells.
    Waiting,
}

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
            End::Server(server) => server.next_deadline(),
            End::Node(_) => None,
        }
    }

    /// The other end, if it is a client.
    pub fn client(&mut self) -> Option<&mut RemoteClient> {
        match &mut self.end {
            End::Client(client) => Some(client),
            End::Server(_) | End::Node(_) => None,
        }
    }

    /// Whether the other end is a server, so that we send and it receives.
    pub fn is_server(&self) -> bool {
        matches!(self.end, End::Server(_))
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        match &self.end {
            End::Client(client) => {
                memory.key = client.config.policy.key();
                memory.seen = client.seen.clone();
                let newest = client.arriving.as_ref().map(|a| a.known).or(client.known);
                // The next start must not take for proven what this one does not.
                memory.authenticated = match (newest, memory.authenticated) {
                    (Some(k), Some((last, unix))) if k.unproven && last != k.remote => {
                        Some((last, unix))
                    }
                    (Some(k), _) if k.unproven => Some((NOBODY, k.unix)),
                    (newest, _) => newest.map(|k| (k.remote, k.unix)),
                };
            }
            End::Server(server) => server.calendar.remember(memory),
            End::Node(_) => {}
        }
    }
}

impl RemoteClient {
    pub fn new(config: ServerConfig, memory: &mut Memory, now: &Moment) -> Self {
        let remembered = memory.authenticated.map(|(remote, _)| remote);
        let seen = memory.replays_of(config.policy.key(), None, now);
        RemoteClient { config, seen, remembered, known: None, arriving: None }
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
        self.known = Some(Session { remote, unix, until, expired, unproven: !taken });
    }

    /// Judges a packet from the queue. When its source is new, that counts once `writing` is done.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        payload: &[u8],
        writing: Writing,
        now: &Moment,
    ) -> Result<Verdict, Reject> {
        // One whom another came after is none of them, although the tunnel still leads to him.
        let is_known = self.remembered == Some(from)
            || self.known.is_some_and(|k| k.remote == from && !k.unproven);
        let time = now.server_time();
        self.config.policy.check(from, payload, time, is_known, &mut self.seen)?;
        let until = self.config.valid_until(Duration::ZERO, now);
        let known =
            Session { remote: from, unix: now.unix, until, expired: false, unproven: false };
        let must_write = self.seen.must_write();
        if let Some(before) = self.known.as_mut().filter(|before| before.remote == from)
            && !must_write
            && !before.expired
        {
            *before = known;
            self.arriving = None; // it is back
            return Ok(Verdict::Refreshed);
        }
        // One that is being written already must not have to wait for ever longer.
        if let Some(arriving) = self.arriving.as_mut().filter(|a| a.known.remote == from)
            && !must_write
        {
            arriving.known = known;
            return Ok(Verdict::BeingWritten);
        }
        self.arriving = Some(Arriving { known, writing, request: payload.to_vec() });
        Ok(Verdict::Arriving)
    }

    /// Lets count what waited for this writing of the memory.
    pub fn written(&mut self, writing: Writing, now: &Moment) -> Option<Arrival> {
        let Arriving { known, request, .. } =
            self.arriving.take_if(|arriving| arriving.writing <= writing)?;
        let accepted = match self.known.replace(known) {
            None => Accepted::Arrived,
            Some(before) if before.remote == known.remote => Accepted::Refreshed,
            Some(before) => Accepted::Moved { from: before.remote },
        };
        Some(Arrival { from: known.remote, accepted, reply: self.reply(&request, now) })
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
            HostName::Address(address) => Some(*address),
            HostName::Name(_) => None,
        };
        let often = config.keepalive.is_some_and(|every| every <= persistence::LONGEST);
        RemoteServer {
            config,
            addresses: Addresses::new(address),
            next_auth: Some(now.monotonic),
            calendar: Calendar::new(memory, now.unix),
            last_sent: None,
            persistence: (!often).then(Persistence::new),
            looking: false,
            trying: false,
        }
    }

    fn remote(&self) -> Option<SocketAddr> {
        self.addresses.in_use().map(|ip| SocketAddr::new(ip, self.config.server.port.get()))
    }

    /// Takes over the address that the tunnel of an earlier process goes to, until the name is
    /// looked up.
    pub fn adopt(&mut self, remote: SocketAddr) {
        if self.addresses.in_use().is_none() && remote.port() == self.config.server.port.get() {
            self.addresses.use_one(remote.ip());
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
        if !std::mem::take(&mut self.trying)
            && let Some(persistence) = &mut self.persistence
        {
            persistence.sent(now.monotonic);
            self.looking = false;
        }
        Some((remote, self.packet(now)))
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.remote()?;
        let look_at = self.persistence.as_ref().map(Persistence::look_at);
        self.next_auth.into_iter().chain(look_at).min()
    }

    /// Whether the host should be read, to see whether something came back.
    pub fn asks_for_traffic(&mut self, now: &Moment) -> bool {
        let asks = self.persistence.as_mut().is_some_and(|p| p.asks(now.monotonic));
        self.looking |= asks;
        asks
    }

    /// Takes the counters of the tunnel's interface: when nothing comes back, it is tried again.
    /// Tells the server's address when that should be said.
    pub fn read_traffic(&mut self, traffic: Traffic, now: &Moment) -> Option<SocketAddr> {
        let looking = std::mem::take(&mut self.looking);
        let finding = self.persistence.as_mut()?.read(traffic, looking, now.monotonic);
        let Finding::Silence { say } = finding else { return None };
        // What is due anyway is no other try.
        self.trying = self.next_auth.is_none_or(|due| due > now.monotonic);
        self.authenticate_at(now.monotonic);
        self.remote().filter(|_| say)
    }

    /// A packet that proves us.
    pub fn packet(&mut self, now: &Moment) -> Vec<u8> {
        self.last_sent = Some(now.unix);
        match &self.config.credential {
            Credential::Empty => Vec::new(),
            Credential::Token(token) => token.as_bytes().to_vec(),
            Credential::Key(signer) => {
                signer.control_packet(self.calendar.date(now.unix), now.salts())
            }
        }
    }

    /// Whether the times of the last packet must be written before it is sent.
    pub fn must_write(&mut self) -> bool {
        matches!(self.config.credential, Credential::Key(_)) && self.calendar.must_write()
    }

    /// Nothing more will be sent.
    pub fn close(&mut self) {
        self.calendar.close();
    }
}
