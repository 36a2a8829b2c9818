//! Ends a process: its servers hear that it goes, and what it made is removed.

use std::net::IpAddr;

use super::datapath::kernel::renamed;
use super::endpoint::OuterFound;
use super::host::plan::{Start, plan};
use super::host::wanted::Wanted;
use super::host::{Found, forget};
use super::peer::Peer;
use super::{Action, Engine, Now, Phase};

impl Engine {
    pub(super) fn shutdown(&mut self, found: &Found, now: &Now, actions: &mut Vec<Action>) {
        self.say_goodbye(now, actions);
        self.phase = Phase::Ending;
        let tunnel = &self.endpoint.tunnel;
        let mut unwanted = self.devices(found);
        if let Some(OuterFound { address: IpAddr::V4(outer), .. }) = self.outer {
            unwanted.extend(renamed(tunnel, outer, &self.peers, found));
        }
        let nothing = Wanted { unwanted, ..Wanted::default() };
        let mut before = std::mem::take(&mut self.memory.settings);
        forget(&mut before, found);
        let start = Start { tunnel, found, owned: &self.owned };
        let steps = plan(&nothing, start, &mut before);
        actions.push(Action::TearDown(steps));
        self.memory.running = false;
    }

    /// Whether a client's server has still to hear that we go, or to answer that.
    pub fn says_goodbye(&self, now: &Now) -> bool {
        let mut provers = self.peers.iter().filter_map(|peer| peer.prover.as_ref());
        self.can_send() && provers.any(|prover| prover.says_goodbye(now))
    }

    /// Tells the server that we go, before the way there is taken away.
    pub(super) fn say_goodbye(&mut self, now: &Now, actions: &mut Vec<Action>) {
        let to_server = |peer: &mut Peer| {
            let to = peer.remote();
            Some((to?, peer.prover.as_mut()?.close(now)?))
        };
        let goodbyes: Vec<_> = self.peers.own_mut().filter_map(to_server).collect();
        if self.can_send() {
            goodbyes.into_iter().for_each(|(to, payload)| self.send(to, payload, actions));
        }
    }

    /// Ends the process. If something could not be removed, the old memory is kept, by which the next
    /// start puts it back.
    pub(super) fn torn_down(&mut self, failed: usize, actions: &mut Vec<Action>) {
        if failed == 0 {
            actions.push(Action::Remember(self.memory()));
        }
        actions.push(Action::Exit);
    }
}
