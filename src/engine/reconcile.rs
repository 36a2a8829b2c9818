//! Works out the steps from the host as last read to what should be there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::applied::Applying;
use super::config::DeviceName;
use super::datapath::delta::{self, delta};
use super::datapath::{WithoutFastPath, fast_path};
use super::endpoint::{Endpoint, OuterFound};
use super::host::plan::{Start, plan};
use super::host::step::{KernelStep, NatStep, Step};
use super::host::wanted::WantedLink;
use super::host::{FastPathFound, Found, forget, give_back};
use super::links;
use super::memory::Settings;
use super::peer::Peer;
use super::wanted::wanted;
use super::{Action, Engine, MOST_AFTER_STEPS, Phase, Report};

/// The peers as they were planned for.
#[derive(Debug, PartialEq, Eq)]
pub struct Remotes {
    outer: Option<OuterFound>,
    peers: Vec<Planned>,
    answering: BTreeSet<SocketAddr>,
}

/// The state of one peer that a plan depends on.
#[derive(Debug, PartialEq, Eq)]
struct Planned {
    /// Its remotes, and whether each is admitted.
    remotes: Vec<(SocketAddr, bool)>,
    conflicting_remote: Option<IpAddr>,
    isolated: bool,
}

impl Engine {
    /// The state beside the host that a plan depends on.
    pub(super) fn remotes(&self) -> Remotes {
        let of_peer = |peer: &Peer| Planned {
            remotes: peer.remotes().collect(),
            conflicting_remote: peer.conflicting_remote,
            isolated: peer.isolated,
        };
        Remotes {
            outer: self.outer,
            peers: self.peers.iter().map(of_peer).collect(),
            answering: self.peers.answering(),
        }
    }

    /// Whether the servers that may answer are where they were when nothing was missing for them: an
    /// address that became known since, or was exchanged for another, is not damage.
    pub(super) fn answering_as_planned(&self) -> bool {
        let planned = self.needs_nothing.as_ref().map(|planned| &planned.answering);
        planned.is_none_or(|planned| *planned == self.peers.answering())
    }

    /// The steps that follow from a change of the peers. They cover only the peers that changed, where
    /// nothing else depends on these and the host was as it should be.
    #[must_use]
    pub(super) fn follow_peers(&mut self, actions: &mut Vec<Action>) -> Vec<Step> {
        let changed = self.peers.take_changed();
        let outer = self.outer.filter(|_| {
            self.phase == Phase::Settled && !self.outer_missing && self.needs_nothing.is_some()
        });
        let delta = outer.zip(self.found.as_ref()).and_then(|(outer, found)| {
            let Engine { endpoint, peers, owned, .. } = &*self;
            delta(delta::Start { endpoint, outer, peers, changed: &changed, found, owned })
        });
        match delta {
            Some(steps) => {
                steps.iter().for_each(|step| self.owned.note(step));
                self.applying = Applying::Delta(steps.clone());
                steps
            }
            None => self.reconcile(actions),
        }
    }

    /// Does what has to come after the steps that were planned: they may come with the next reading only.
    pub(super) fn once_made(&mut self, then: Vec<Action>, actions: &mut Vec<Action>) {
        let room = MOST_AFTER_STEPS.saturating_sub(self.after_steps.len());
        match self.is_old {
            true => self.after_steps.extend(then.into_iter().take(room)),
            false => actions.extend(then),
        }
    }

    /// The steps that add what is missing on the host as last read; also notes what will be owned.
    /// `actions` receives what has to come before them.
    #[must_use]
    pub(super) fn reconcile(&mut self, actions: &mut Vec<Action>) -> Vec<Step> {
        if self.is_old {
            actions.push(Action::ReadHost);
            return Vec::new();
        }
        self.applying = Applying::Plan;
        self.judge_inner(actions);
        let Some(found) = &self.found else { return Vec::new() };
        let mut before = self.memory.settings.clone();
        forget(&mut before, found);
        let Some(outer) = self.outer else {
            let known = self.peers.is_anywhere();
            let steps = give_back(found, &self.endpoint.tunnel, known, &mut before);
            self.note_settings(before, actions);
            return steps;
        };
        let mut wanted = wanted(&self.endpoint, outer, &self.peers, found, &before);
        let path = fast_path(&self.endpoint, outer, &wanted, &self.peers, found);
        let told = match &path {
            Ok(path) => Ok((path.uplinks.keys().copied().collect(), path.ends.takes)),
            Err(why) => Err(why.clone()),
        };
        // What the kernel refuses was none.
        let is_news = match &told {
            Ok(_) => matches!(found.fast_path, FastPathFound::Intact(_)),
            Err(why) => !why.is_known(),
        };
        if is_news && self.fast_path.replace(told.clone()) != Some(told) {
            let name = |uplink: &u32| found.interface_at(*uplink).map(|i| i.name.clone());
            let on = path
                .as_ref()
                .map(|path| (path.uplinks.keys().filter_map(name).collect(), path.ends.takes));
            actions.push(Action::Report(Report::FastPath(on.map_err(WithoutFastPath::clone))));
        }
        // That one was told by who was refused; what comes after it is news.
        if path.as_ref().err() == Some(&WithoutFastPath::Unavailable) {
            self.fast_path = None;
        }
        self.why_no_fast_path = path.as_ref().err().cloned();
        wanted.fast_path = path.ok();
        self.policy_rules.plan(&wanted.gateway.policy_rules);
        let start = Start { tunnel: &self.endpoint.tunnel, found, owned: &self.owned };
        let steps = plan(&wanted, start, &mut before);
        for step in &steps {
            match step {
                Step::Kernel(KernelStep::InstallRules(spec, _)) => {
                    self.owned.installed = Some(spec.clone());
                }
                Step::Kernel(KernelStep::AddListener(listener)) => {
                    self.owned.listeners.insert(*listener);
                }
                Step::Kernel(KernelStep::AddAlternateAddress(alternate)) => {
                    self.owned.alternate.insert(*alternate);
                    // This is reported before the steps, which may fail because of it.
                    if let Some(uplink) = outer.bound_to.and_then(|bound| found.interface_at(bound))
                        && uplink.in_vrf()
                    {
                        let (alternate, uplink) = (*alternate, uplink.name.clone());
                        actions.push(Action::Report(Report::AlternateInVrf { alternate, uplink }));
                    }
                }
                Step::Nat(NatStep::Install(spec)) => {
                    self.owned.installed_gateway = Some(spec.clone())
                }
                Step::Host(_)
                | Step::Kernel(_)
                | Step::Tun(_)
                | Step::Fast(_)
                | Step::Nat(_)
                | Step::Dns(_) => {}
            }
        }
        let mtu = |link: &WantedLink| (link.device.clone(), link.mtu.bytes);
        self.owned.mtus = wanted.links.iter().map(mtu).collect();
        // Nothing follows from a change of the fast path, which is made of what was found.
        let changes_datapath = steps.iter().any(|step| !matches!(step, Step::Fast(_)));
        if changes_datapath && self.phase != Phase::Ending {
            self.phase = Phase::Settling;
        }
        let needs_nothing = steps.is_empty() && before == self.memory.settings;
        self.needs_nothing = needs_nothing.then(|| self.remotes());
        if needs_nothing {
            self.forget_given();
            // Nothing of that port is left: what comes there from now on is another tunnel's.
            let own = self.endpoint.tunnel.port.get();
            self.owned.former_port = None;
            self.owned.listeners.retain(|listener| listener.port == own);
        }
        self.note_settings(before, actions);
        steps
    }

    /// Takes the settings to put back. They are on the disk before one is changed, or a crash would leave it so.
    fn note_settings(&mut self, before: BTreeMap<String, Settings>, actions: &mut Vec<Action>) {
        if before != self.memory.settings {
            self.memory.settings = before;
            actions.push(Action::Remember(self.memory()));
        }
    }

    /// All interfaces of this tunnel that exist or should exist.
    pub(super) fn devices(&self, found: &Found) -> Vec<DeviceName> {
        let Endpoint { tunnel, datapath, .. } = &self.endpoint;
        match tunnel.is_network() && datapath.capabilities().link_per_remote {
            true => links::interfaces(found, tunnel),
            false => vec![tunnel.device.clone()],
        }
    }
}
