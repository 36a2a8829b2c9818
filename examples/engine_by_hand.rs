//! The engine driven by hand: a server on a host that exists in memory only, and one authentication
//! packet of a client. Nothing leaves the process but its output, which is the same each time:
//!
//! ```text
//! cargo run --example engine_by_hand
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use ipipou::auth::{Policy, Proof, SharedSecret, Signer, Verifier};
use ipipou::engine::config::{
    Admits, AlternateAddress, Config, Datapath, DatapathChoice, Expects, FastPathChoice,
    GatewayConfig, Outer, QueueConfig, Reply, RulesConfig, SourceCheck, TunnelConfig,
};
use ipipou::engine::driver::Driver;
use ipipou::engine::host::step::{HostStep, KernelLink, KernelStep, Refused, Step};
use ipipou::engine::host::{
    Address, Found, Interface, InterfaceAddress, InterfaceKind, LinkForwarding, RulesFound, Traffic,
};
use ipipou::engine::{Engine, Event, Memory, Now, Outgoing, Report, Writing};

struct World {
    engine: Engine,
    host: Found,
    instants: u8,
    writing: Option<Writing>,
    said: Vec<String>,
}

/// A program reads the clocks, and draws the random bytes from getrandom(2).
fn moment(i: u8) -> Now {
    let (started, monotonic) = (1_700_000_000, Duration::from_secs(i.into()));
    Now { monotonic, boot: monotonic, unix: started + u64::from(i), started, random: [i; 64] }
}

impl Driver for World {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        self.instants += 1;
        Some(moment(self.instants))
    }

    async fn read(&mut self) -> Option<Found> {
        Some(self.host.clone())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        self.said.push(format!("  step: {step}"));
        match step {
            Step::Kernel(KernelStep::InstallRules(_, remotes) | KernelStep::Admit(remotes)) => {
                self.host.rules = RulesFound::Intact(remotes.clone());
            }
            Step::Kernel(KernelStep::AddListener(new)) => drop(self.host.listeners.insert(*new)),
            Step::Kernel(KernelStep::CreateLink(link)) => self.host.interfaces.insert(made(link)),
            Step::Host(HostStep::ConfigureLink(_)) => {} // made() did
            Step::Host(HostStep::AddInnerAddress(_, address)) => {
                self.host.addresses.add(Address::new(3, *address));
            }
            // This server asks for no other step.
            Step::Kernel(_)
            | Step::Host(_)
            | Step::Tun(_)
            | Step::Fast(_)
            | Step::Nat(_)
            | Step::Dns(_) => {
                return Err(Refused::Otherwise);
            }
        }
        Ok(())
    }

    async fn remember(&mut self, _memory: &Memory) {}
    fn write(&mut self, writing: Writing) {
        self.writing = Some(writing);
    }
    fn send(&mut self, _packet: &Outgoing) -> bool {
        true
    }
    fn peer_alive(&mut self, _remote: SocketAddr) {}
    fn report(&mut self, report: &Report) {
        self.said.push(format!("  report: {report}"));
    }
}

fn made(KernelLink { device, link, mtu }: &KernelLink) -> Interface {
    Interface {
        index: 3,
        name: device.to_string(),
        up: true,
        loopback: false,
        label: Some(LinkForwarding::HostDefault.label().to_owned()),
        rp_filter: None,
        forwarding: None,
        promotes: None,
        mtu: *mtu,
        master: None,
        queueing: None,
        kind: InterfaceKind::Ipip(*link),
        traffic: Traffic::default(),
    }
}

fn config(verifier: Verifier) -> Result<Config, Box<dyn Error>> {
    let tunnel = TunnelConfig {
        device: "ipipou0".parse()?,
        inner: "172.28.0.0".parse()?,
        inner_peer: "172.28.0.1/32".parse()?,
        inner6: None,
        inner_from_server: false,
        mtu: None,
        outer: Outer::Address("203.0.113.1".parse()?),
        port: 10000.try_into()?,
        alternate: AlternateAddress::WhenTaken("172.29.0.0".parse()?),
        checksum: None,
        source_check: SourceCheck::Off,
        auth_ttl: None,
        rules: RulesConfig { table: "ipipou-0".to_owned(), counters: true },
        gateway: GatewayConfig::default(),
        beside: None,
        datapath: DatapathChoice::Only(Datapath::Kernel),
        fast_path: FastPathChoice::Off,
        queues: None,
    };
    let policy = Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) };
    let (reply, admits) = (Reply::Silent, Admits::One);
    let queue = QueueConfig { number: 0, max_len: 24 };
    Ok(Config::server(tunnel, Expects { queue, policy, lifetime: None, reply, admits }))
}

/// What happens, a line each.
pub fn play() -> Result<Vec<String>, Box<dyn Error>> {
    let secret = || SharedSecret::new(b"known to both ends".to_vec());
    let client = Signer::new(&[7; 32], secret());
    let config = config(Verifier::new(&client.public(), secret(), None)?)?;
    let engine = Engine::new(config, Datapath::Kernel, Memory::default(), &moment(0));
    let (host, said) = (Found::default(), Vec::new());
    let mut world = World { engine, host, instants: 0, writing: None, said };
    let outer = InterfaceAddress::new("203.0.113.1".parse()?, "203.0.113.0/24".parse()?);
    world.host.addresses.add(Address::new(2, outer));

    let payload = client.packet(1_700_000_000, [1; 4]);
    let hello = || Event::Datagram { from: ([198, 51, 100, 7], 4500).into(), payload: &payload };
    let events = [("start", Event::Deadline), ("hello", hello()), ("replay", hello())];
    for (what, event) in events {
        world.said.push(format!("{what}:"));
        world.handle(event).now_or_never().ok_or("nothing here waits")?;
        while let Some(writing) = world.writing.take() {
            // The memory is "on the disk" at once: only now the remote is let in.
            world.handle(Event::Written(writing)).now_or_never().ok_or("nothing here waits")?;
        }
    }
    world.said.push(format!("{:?}", world.engine.counters()));
    Ok(world.said)
}

fn main() -> Result<(), Box<dyn Error>> {
    play()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
