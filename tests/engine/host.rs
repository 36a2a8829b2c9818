//! A simulated host: it does what the kernel does with our steps, and lets a test break it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipipou::engine::config::{
    AlternateAddress, DatapathChoice, DeviceName, FastPathChoice, GatewayConfig, Outer,
    RulesConfig, SourceCheck, TunnelConfig,
};
use ipipou::engine::host::step::{
    DnsStep, FastStep, HostStep, KernelLink, KernelStep, NatStep, Refused, Step, TunStep,
};
use ipipou::engine::host::{
    Address, Admitted, Encapsulation, Family, FastPathFound, Found, GatewayFound, GatewaySpec,
    Interface, InterfaceAddress, InterfaceKind, IpipLink, LinkForwarding, Listener, NameServers,
    PolicyRule, Route, RouteTarget, RuleSpec, RulesFound, Traffic, Way,
};
use ipnet::IpNet;

pub const LOOPBACK: u32 = 1;
pub const ETH0: u32 = 2;
pub const OUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const STRANGER: &str = "stranger0";

/// A tunnel of two hosts, as it is without options.
pub fn tunnel() -> TunnelConfig {
    TunnelConfig {
        device: "ipipou0".parse().unwrap(),
        inner: "172.28.0.0".parse().unwrap(),
        inner_peer: "172.28.0.1/32".parse().unwrap(),
        inner6: None,
        inner_from_server: false,
        mtu: None,
        outer: Outer::Device("eth0".parse().unwrap()),
        port: 10000.try_into().unwrap(),
        alternate: AlternateAddress::WhenTaken("172.29.0.0".parse().unwrap()),
        checksum: None,
        source_check: SourceCheck::Strict,
        auth_ttl: None,
        rules: RulesConfig { table: "ipipou-0".to_owned(), counters: true },
        gateway: GatewayConfig::default(),
        beside: None,
        datapath: DatapathChoice::Auto,
        fast_path: FastPathChoice::Auto,
        queues: None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeHost {
    pub found: Found,
    /// Steps with these words fail.
    pub broken: &'static str,
    /// A link in another network namespace leads from our outer address to this one.
    pub taken_elsewhere: Option<Ipv4Addr>,
    /// What the table in the kernel says, while there is one.
    pub rules: Option<RuleSpec>,
    /// The gateways' rules that were installed, one after the other.
    pub gateways: Vec<GatewaySpec>,
    /// The policy rules, in the order in which they are asked.
    pub policy_rules: Vec<PolicyRule>,
    /// Whom the rules let in as our steps made them; others may have changed them since.
    let_in: BTreeSet<Admitted>,
    next_index: u32,
    last_made: u32,
}

impl FakeHost {
    /// `lo` and `eth0` with one address each.
    pub fn new() -> Self {
        let mut host = FakeHost {
            found: Found::default(),
            broken: "",
            taken_elsewhere: None,
            rules: None,
            gateways: Vec::new(),
            policy_rules: Vec::new(),
            let_in: BTreeSet::new(),
            next_index: 3,
            last_made: 0,
        };
        host.add_interface("lo", LOOPBACK, InterfaceKind::Other);
        host.add_interface("eth0", ETH0, InterfaceKind::Other);
        host.add_address(LOOPBACK, Ipv4Addr::LOCALHOST, 8);
        host.add_address(ETH0, OUTER, 24);
        host.found.way = Some(Way { source: OUTER.into(), interface: ETH0, router: None });
        host
    }

    pub fn add_interface(&mut self, name: &str, index: u32, kind: InterfaceKind) {
        self.last_made = index;
        self.found.interfaces.insert(Interface {
            index,
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            label: None,
            rp_filter: Some(0),
            forwarding: Some(false),
            promotes: Some(false),
            mtu: 1500,
            master: None,
            queueing: Some("noqueue".to_owned()),
            kind,
            traffic: Traffic::default(),
        });
    }

    pub fn add_address(&mut self, interface: u32, local: Ipv4Addr, prefix: u8) {
        self.add_address_of(interface, IpNet::new(local.into(), prefix).unwrap());
    }

    pub fn add_address_of(&mut self, interface: u32, network: IpNet) {
        let value = InterfaceAddress::new(network.addr(), network);
        self.found.addresses.add(Address::new(interface, value));
    }

    /// Somebody else's `ipip` link from our outer address.
    pub fn add_strange_link(&mut self, remote: Ipv4Addr) {
        self.add_interface(STRANGER, 1000, InterfaceKind::Ipip(plain_ipip(OUTER, remote)));
    }

    /// The link of another tunnel of this host, from this address.
    pub fn add_link_of_tunnel(&mut self, name: &str, index: u32, local: Ipv4Addr) {
        let kind = InterfaceKind::Ipip(plain_ipip(local, [198, 51, 100, 77].into()));
        self.add_interface(name, index, kind);
        self.found.interfaces.change(index, |interface| {
            interface.label = Some(LinkForwarding::HostDefault.label().to_owned());
        });
    }

    pub fn remove_interface(&mut self, name: &str) {
        if let Some(gone) = self.found.interfaces.named(name).map(|interface| interface.index) {
            self.found.interfaces.remove(gone);
            self.found.addresses.remove_all_on(gone);
            self.found.routes.retain(|route| route.target != RouteTarget::Interface(gone));
            self.found.lost_routes.retain(|route| route.interface != gone);
        }
        self.found.userspace.interface &= name == STRANGER || name == "eth0";
    }

    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Interface)) {
        let index = self.found.interfaces.named(name).expect("no such interface").index;
        self.found.interfaces.change(index, change);
    }

    /// Changes the one that was made last.
    pub fn change_last(&mut self, change: impl FnOnce(&mut Interface)) {
        assert!(self.found.interfaces.at(self.last_made).is_some(), "no interface");
        self.found.interfaces.change(self.last_made, change);
    }

    pub fn last_index(&self) -> u32 {
        self.last_made
    }

    pub fn change_each(&mut self, change: impl Fn(&mut Interface)) {
        let all: Vec<_> = self.found.interfaces.iter().map(|i| i.index).collect();
        all.into_iter().for_each(|index| self.found.interfaces.change(index, &change));
    }

    pub fn change_addresses(&mut self, change: impl FnOnce(&mut Vec<Address>)) {
        let mut all = self.found.addresses.to_vec();
        change(&mut all);
        self.found.addresses = all.into_iter().collect();
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        self.change(from, |interface| to.clone_into(&mut interface.name));
    }

    pub fn link(&self, name: &str) -> Option<IpipLink> {
        self.found.interfaces.named(name).and_then(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some(link),
            InterfaceKind::Tun | InterfaceKind::Other => None,
        })
    }

    pub fn admitted(&self) -> BTreeSet<ipipou::engine::host::Admitted> {
        match &self.found.rules {
            RulesFound::Intact(admitted) => admitted.clone(),
            RulesFound::Missing | RulesFound::Unknown | RulesFound::Unavailable => BTreeSet::new(),
        }
    }

    /// What a test compares: no interface numbers of links that came and went.
    pub fn shape(&self) -> Found {
        self.found.clone()
    }

    pub fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        if !self.broken.is_empty() && step.to_string().contains(self.broken) {
            return Err(Refused::Otherwise);
        }
        match step {
            Step::Kernel(step) => self.apply_kernel(step)?,
            Step::Host(HostStep::AddInnerAddress(device, value)) => {
                let address = Address::new(self.index(device), *value);
                if self.found.addresses.contains(&address) {
                    return Err(Refused::Otherwise); // EEXIST
                }
                self.found.addresses.add(address);
            }
            Step::Host(step) => self.apply_host(step),
            Step::Tun(TunStep::Bind(spec)) => self.found.userspace.socket = Some(spec.clone()),
            Step::Tun(TunStep::Forward(spec)) => self.found.userspace.forwarding = spec.clone(),
            Step::Tun(TunStep::AddRemote(remote, spec)) => {
                self.found.userspace.forwarding.remotes.insert(*remote, spec.clone());
            }
            Step::Tun(TunStep::RemoveRemote(remote)) => {
                let gone = self.found.userspace.forwarding.remotes.remove(remote);
                assert!(gone.is_some(), "no such remote: {remote}");
            }
            Step::Tun(TunStep::CreateLink { device, mtu }) => {
                self.create(device, InterfaceKind::Tun, *mtu);
                self.found.userspace.interface = true;
            }
            Step::Fast(FastStep::Withdraw(remotes)) => {
                let FastPathFound::Intact(path) = &mut self.found.fast_path else {
                    panic!("there is no fast path")
                };
                let peers = Arc::make_mut(&mut path.peers);
                remotes.iter().for_each(|remote| assert!(peers.remove(remote).is_some()));
            }
            Step::Fast(FastStep::Install(path)) => {
                let (FastPathFound::Missing | FastPathFound::Intact(_)) = &self.found.fast_path
                else {
                    panic!("it cannot be made")
                };
                self.found.fast_path = FastPathFound::Intact(path.clone());
            }
            Step::Fast(FastStep::Add(remote, peer)) => {
                let FastPathFound::Intact(path) = &mut self.found.fast_path else {
                    panic!("there is no fast path")
                };
                assert!(path.links.contains(&peer.link), "no such link: {}", peer.link);
                assert_eq!(Arc::make_mut(&mut path.peers).insert(*remote, peer.clone()), None);
            }
            Step::Fast(FastStep::Remove) => self.found.fast_path = FastPathFound::Missing,
            Step::Nat(NatStep::Install(spec)) => {
                self.gateways.push(spec.clone());
                self.found.gateway = GatewayFound::Intact;
            }
            Step::Nat(NatStep::Remove) => self.found.gateway = GatewayFound::Missing,
            Step::Dns(DnsStep::Use) => self.found.name_servers = NameServers::Ours,
            Step::Dns(DnsStep::Restore) => self.found.name_servers = NameServers::Theirs,
        }
        self.check_fast_path();
        Ok(())
    }

    /// Nobody is let in by the fast path whom the datapath does not let in.
    pub fn check_fast_path(&self) {
        let FastPathFound::Intact(path) = &self.found.fast_path else { return };
        for remote in path.peers.keys() {
            let here = &self.found.userspace.forwarding.remotes;
            let by_tun = here.get(&(*remote).into()).is_some_and(|spec| !spec.sources.is_empty());
            let direct = |one: &Admitted| one.remote == *remote && one.alternate.is_none();
            assert!(by_tun || self.let_in.iter().any(direct), "{remote} is on the fast path alone");
        }
    }

    fn apply_kernel(&mut self, step: &KernelStep) -> Result<(), Refused> {
        match step {
            KernelStep::InstallRules(spec, admitted) => {
                self.rules = Some(spec.clone());
                self.found.rules = RulesFound::Intact(admitted.clone());
                self.let_in.clone_from(admitted);
                self.check_guarded();
            }
            KernelStep::Admit(admitted) => {
                self.found.rules = RulesFound::Intact(admitted.clone());
                self.let_in.clone_from(admitted);
            }
            KernelStep::AdmitToo(one) => {
                assert!(self.let_in().insert(one.clone()), "{one} is let in");
                self.let_in.insert(one.clone());
            }
            KernelStep::AdmitNoMore(one) => {
                assert!(self.let_in().remove(one), "{one} is not let in");
                self.let_in.remove(one);
            }
            KernelStep::AdmitInstead { old, new } => {
                assert!(self.let_in().remove(old), "{old} is not let in");
                assert!(self.let_in().insert(new.clone()), "{new} is let in");
                self.let_in.remove(old);
                self.let_in.insert(new.clone());
            }
            KernelStep::RemoveRules => {
                self.found.rules = RulesFound::Missing;
                self.check_guarded();
            }
            KernelStep::AddAlternateAddress(alternate) => {
                self.add_address(LOOPBACK, *alternate, 32)
            }
            KernelStep::RemoveAlternateAddress(alternate) => {
                let gone = (LOOPBACK, IpAddr::V4(*alternate));
                self.found.addresses.retain(|a| (a.interface, a.value.local) != gone);
            }
            KernelStep::AddListener(listener) => self.add_listener(*listener),
            KernelStep::RemoveListener(listener) => {
                assert!(self.found.listeners.remove(listener), "no such listener: {listener}");
            }
            KernelStep::CreateLink(wanted) => {
                self.check_free(wanted)?;
                self.create(&wanted.device, InterfaceKind::Ipip(wanted.link), wanted.mtu);
            }
            KernelStep::ChangeLink(wanted) => {
                self.check_free(wanted)?;
                let kind = InterfaceKind::Ipip(wanted.link);
                self.change(wanted.device.as_str(), |i| (i.kind, i.mtu) = (kind, wanted.mtu));
            }
        }
        Ok(())
    }

    fn let_in(&mut self) -> &mut BTreeSet<Admitted> {
        match &mut self.found.rules {
            RulesFound::Intact(admitted) => admitted,
            RulesFound::Missing | RulesFound::Unknown | RulesFound::Unavailable => {
                panic!("there are no rules")
            }
        }
    }

    fn apply_host(&mut self, step: &HostStep) {
        match step {
            HostStep::ConfigureLink(wanted) => self.change(wanted.device.as_str(), |interface| {
                if wanted.forwards != LinkForwarding::HostDefault {
                    interface.forwarding = Some(true);
                }
                interface.up = true;
                interface.promotes = Some(true);
                interface.label = Some(wanted.forwards.label().to_owned());
                // As ip-sysctl.rst has them.
                match wanted.source_check {
                    SourceCheck::Off => {}
                    SourceCheck::Strict => interface.rp_filter = Some(1),
                    SourceCheck::Loose => interface.rp_filter = Some(2),
                }
            }),
            HostStep::SetMtu(device, mtu) => self.change(device.as_str(), |i| i.mtu = *mtu),
            HostStep::AddInnerAddress(device, value) => {
                panic!("{value} on {device} may be refused");
            }
            HostStep::RemoveInnerAddress(address) => self.remove_address(address),
            HostStep::RemoveLink(device) => self.remove_interface(device.as_str()),
            HostStep::RestoreRoute(_, route) => {
                assert!(self.found.lost_routes.remove(route), "{route}");
            }
            HostStep::AddRoute(route) => assert!(self.found.routes.insert(*route), "{route}"),
            HostStep::ReplaceRoute(route) => {
                let is_same = |there: &&Route| {
                    (there.destination, there.table) == (route.destination, route.table)
                };
                let before = self.found.routes.iter().find(is_same).copied();
                assert!(self.found.routes.remove(&before.expect("a route to replace")), "{route}");
                self.found.routes.insert(*route);
            }
            HostStep::RemoveRoute(route) => assert!(self.found.routes.remove(route), "{route}"),
            HostStep::AddPolicyRule(rule) => {
                let is_new = !self.found.policy_rules.contains(rule);
                assert!(is_new || rule.leads_into_tunnel(), "{rule}");
                self.policy_rules.retain(|there| there != rule);
                self.policy_rules.push(*rule);
                self.ask_policy_rules();
            }
            HostStep::RemovePolicyRule(rule) => {
                assert!(self.found.policy_rules.contains(rule), "{rule}");
                self.lose_policy_rule(rule);
            }
            HostStep::SetForwarding { interface, on } => {
                self.change(interface, |i| i.forwarding = Some(*on));
            }
            HostStep::SetRpFilter { interface, value } => {
                self.change(interface, |i| i.rp_filter = Some(*value));
            }
        }
    }

    /// Somebody removes one of our policy rules.
    pub fn lose_policy_rule(&mut self, rule: &PolicyRule) {
        self.policy_rules.retain(|there| there != rule);
        self.ask_policy_rules();
    }

    /// An exception from the rules that lead into a tunnel has to come before them.
    fn ask_policy_rules(&mut self) {
        let rules = self.policy_rules.iter().copied();
        self.found.policy_rules = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| {
                let all = rules.clone().filter(move |rule| rule.family == family);
                let before = all.clone().take_while(|rule| !rule.leads_into_tunnel());
                before.chain(all.filter(PolicyRule::leads_into_tunnel))
            })
            .collect();
    }

    /// As `__inet_del_ifa` in net/ipv4/devinet.c: the first IPv4 address of a network takes those after
    /// it along, unless the interface promotes them, and the last one of an interface all its routes.
    fn remove_address(&mut self, gone: &Address) {
        let found = &mut self.found;
        found.lost_routes.retain(|route| route.address != gone.value);
        let of_network = |a: &Address| {
            (a.interface, a.value.network.trunc()) == (gone.interface, gone.value.network.trunc())
                && a.value.local.is_ipv4()
        };
        let promotes =
            found.interfaces.iter().any(|i| i.index == gone.interface && i.promotes != Some(false));
        let is_first = found.addresses.iter().find(|a| of_network(a)) == Some(gone);
        found.addresses.retain(|a| a != gone && !(is_first && !promotes && of_network(a)));
        let is_on_it = |a: &Address| a.interface == gone.interface && a.value.local.is_ipv4();
        if gone.value.local.is_ipv4() && !found.addresses.iter().any(is_on_it) {
            found.routes.retain(|r| r.target != RouteTarget::Interface(gone.interface));
        }
    }

    /// The rules come before what they guard.
    fn add_listener(&mut self, listener: Listener) {
        assert!(self.found.listeners.insert(listener), "the port is taken: {listener}");
        self.check_guarded();
    }

    /// Nobody reaches a listener past the rules: they are for its address and port.
    pub fn check_guarded(&self) {
        let guards = match self.found.rules {
            RulesFound::Missing => None,
            RulesFound::Unknown | RulesFound::Intact(_) => self.rules.as_ref(),
            RulesFound::Unavailable => return, // not asked for
        };
        for listener in &self.found.listeners {
            let is_guarded = |rules: &RuleSpec| {
                let local = listener.local.expect("a listener on every address");
                rules.port == listener.port
                    && (rules.outer == local || rules.alternate.contains(&local))
            };
            assert!(guards.is_some_and(is_guarded), "{listener} is unguarded: {guards:?}");
        }
    }

    fn create(&mut self, device: &DeviceName, kind: InterfaceKind, mtu: u32) {
        let index = self.next_index;
        self.next_index += 1;
        self.add_interface(device.as_str(), index, kind);
        self.change_last(|interface| (interface.up, interface.mtu) = (false, mtu));
    }

    /// `ip_tunnel_find`: no two links with the same pair of addresses.
    fn check_free(&self, wanted: &KernelLink) -> Result<(), Refused> {
        let clash = self.found.interfaces.iter().any(|i| match i.kind {
            InterfaceKind::Ipip(link) => {
                i.name != wanted.device.as_str()
                    && (link.local, link.remote) == (wanted.link.local, wanted.link.remote)
            }
            InterfaceKind::Tun | InterfaceKind::Other => false,
        });
        let elsewhere =
            wanted.link.local == OUTER && Some(wanted.link.remote) == self.taken_elsewhere;
        if clash || elsewhere { Err(Refused::Taken) } else { Ok(()) }
    }

    fn index(&self, device: &DeviceName) -> u32 {
        self.found.interface(device).expect("no such interface").index
    }
}

/// An `ipip` link of somebody else, without UDP around its packets.
pub fn plain_ipip(local: Ipv4Addr, remote: Ipv4Addr) -> IpipLink {
    IpipLink {
        local,
        remote,
        bound_to: None,
        ttl: 0,
        path_mtu_discovery: true,
        mark: 0,
        encapsulation: Encapsulation::NoneOrOther,
    }
}
