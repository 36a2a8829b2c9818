//! A host that is played: it does what the kernel does with our steps, and lets a test break it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipipou::engine::host::{
    Address, Encapsulation, Found, Interface, InterfaceKind, IpipLink, Listener, RulesFound,
    Traffic,
};
use ipipou::engine::plan::{LABEL, Step, WantedLink, rp_filter};

pub const LOOPBACK: u32 = 1;
pub const ETH0: u32 = 2;
pub const OUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const STRANGER: &str = "stranger0";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlayedHost {
    pub found: Found,
    next_index: u32,
}

/// The kernel's `EEXIST`.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken;

impl PlayedHost {
    /// `lo` and `eth0` with one address each.
    pub fn new() -> Self {
        let mut host = PlayedHost { found: Found::default(), next_index: 3 };
        host.add_interface("lo", LOOPBACK, InterfaceKind::Other);
        host.add_interface("eth0", ETH0, InterfaceKind::Other);
        host.add_address(LOOPBACK, Ipv4Addr::LOCALHOST, 8);
        host.add_address(ETH0, OUTER, 24);
        host.found.route_source = Some(OUTER);
        host
    }

    fn add_interface(&mut self, name: &str, index: u32, kind: InterfaceKind) {
        self.found.interfaces.push(Interface {
            index,
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            label: None,
            rp_filter: Some(0),
            kind,
            traffic: Traffic::default(),
        });
    }

    pub fn add_address(&mut self, interface: u32, local: Ipv4Addr, prefix: u8) {
        self.found.addresses.push(Address { interface, local, peer: local, prefix });
    }

    /// Somebody else's `ipip` link from our outer address.
    pub fn add_strange_link(&mut self, remote: Ipv4Addr) {
        let link = IpipLink {
            local: OUTER,
            remote,
            bound_to: None,
            ttl: 0,
            path_mtu_discovery: true,
            encapsulation: Encapsulation::NoneOrOther,
        };
        self.add_interface(STRANGER, 1000, InterfaceKind::Ipip(link));
    }

    pub fn remove_interface(&mut self, name: &str) {
        let gone: Vec<_> =
            self.found.interfaces.iter().filter(|i| i.name == name).map(|i| i.index).collect();
        self.found.interfaces.retain(|i| i.name != name);
        self.found.addresses.retain(|a| !gone.contains(&a.interface));
    }

    pub fn link(&self, name: &str) -> Option<IpipLink> {
        self.found.interfaces.iter().find(|i| i.name == name).and_then(|i| match i.kind {
            InterfaceKind::Ipip(link) => Some(link),
            InterfaceKind::Other => None,
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

    pub fn apply(&mut self, step: &Step) -> Result<(), Taken> {
        match step {
            Step::InstallRules(_, admitted) | Step::Admit(admitted) => {
                self.found.rules = RulesFound::Intact(admitted.clone());
            }
            Step::RemoveRules => self.found.rules = RulesFound::Missing,
            Step::AddPrivateAddress(private) => self.add_address(LOOPBACK, *private, 32),
            Step::RemovePrivateAddress(private) => {
                self.found.addresses.retain(|a| (a.interface, a.local) != (LOOPBACK, *private));
            }
            Step::AddListener(listener) => self.add_listener(*listener),
            Step::RemoveListener(listener) => {
                assert!(self.found.listeners.remove(listener), "no such listener: {listener}");
            }
            Step::CreateLink(wanted) => self.create(wanted)?,
            Step::ChangeLink(wanted) => self.change(wanted)?,
            Step::DressLink(wanted) => {
                let interface = self.interface(wanted);
                interface.up = true;
                interface.label = Some(LABEL.to_owned());
                interface.rp_filter = rp_filter(wanted.source_check).or(interface.rp_filter);
            }
            Step::AddInnerAddress(wanted) => {
                let index = self.interface(wanted).index;
                self.found.addresses.push(Address {
                    interface: index,
                    local: wanted.inner,
                    peer: wanted.inner_peer,
                    prefix: 32,
                });
            }
            Step::RemoveInnerAddress(address) => self.found.addresses.retain(|a| a != address),
            Step::RemoveLink(device) => self.remove_interface(device.as_str()),
        }
        Ok(())
    }

    /// The rules come before what they guard.
    fn add_listener(&mut self, listener: Listener) {
        assert!(!matches!(self.found.rules, RulesFound::Missing), "an unguarded listener");
        assert!(self.found.listeners.insert(listener), "the port is taken: {listener}");
    }

    fn create(&mut self, wanted: &WantedLink) -> Result<(), Taken> {
        self.check_free(wanted)?;
        let index = self.next_index;
        self.next_index += 1;
        self.add_interface(wanted.device.as_str(), index, InterfaceKind::Ipip(wanted.link));
        self.interface(wanted).up = false;
        Ok(())
    }

    fn change(&mut self, wanted: &WantedLink) -> Result<(), Taken> {
        self.check_free(wanted)?;
        self.interface(wanted).kind = InterfaceKind::Ipip(wanted.link);
        Ok(())
    }

    /// `ip_tunnel_find`: no two links with the same pair of addresses.
    fn check_free(&self, wanted: &WantedLink) -> Result<(), Taken> {
        let clash = self.found.interfaces.iter().any(|i| match i.kind {
            InterfaceKind::Ipip(link) => {
                i.name != wanted.device.as_str()
                    && (link.local, link.remote) == (wanted.link.local, wanted.link.remote)
            }
            InterfaceKind::Other => false,
        });
        if clash { Err(Taken) } else { Ok(()) }
    }

    fn interface(&mut self, wanted: &WantedLink) -> &mut Interface {
        let name = wanted.device.as_str();
        self.found.interfaces.iter_mut().find(|i| i.name == name).expect("a step on a missing link")
    }
}
