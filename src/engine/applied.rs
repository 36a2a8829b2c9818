//! Takes the result of steps: what was applied, and what was refused.

use super::event::Failed;
use super::host::step::{HostStep, KernelStep, NatStep, Refused, Step};
use super::{Action, Engine, Now, RETRY_AFTER};

/// What is being applied.
#[derive(Debug, Default)]
pub(super) enum Applying {
    /// Steps of a whole plan: a reading shows what came of them.
    #[default]
    Plan,
    /// What a few of the peers need, of which the next regular reading is early enough.
    Delta(Vec<Step>),
}

impl Engine {
    pub(super) fn applied(&mut self, actions: &mut Vec<Action>) {
        match std::mem::take(&mut self.applying) {
            Applying::Plan => actions.push(Action::ReadHost),
            Applying::Delta(steps) => {
                steps.iter().for_each(|step| self.note_done(step));
                self.tell_arrivals(actions);
            }
        }
    }

    pub(super) fn failed(&mut self, failed: &Failed, now: &Now, actions: &mut Vec<Action>) {
        let mut is_answered = false;
        for (step, refused) in &failed.refused {
            is_answered |= self.inner_refused(step, now, actions);
            if let (
                Step::Kernel(KernelStep::CreateLink(link) | KernelStep::ChangeLink(link)),
                Refused::Taken,
            ) = (step, refused)
            {
                self.peers.conflict(&link.device);
                is_answered = true;
            }
        }
        actions.extend(is_answered.then_some(Action::ReadHost));
        match std::mem::take(&mut self.applying) {
            Applying::Delta(_) => failed.done.iter().for_each(|step| self.note_done(step)),
            Applying::Plan => self.is_old = true,
        }
        for step in failed.refused.iter().map(|(step, _)| step).chain(&failed.untried) {
            self.not_made(step);
            self.undone.failed(step);
        }
        self.reread_at = self.reread_at.min(now.monotonic + RETRY_AFTER);
    }

    /// Notes what a step of a part of a plan has left on the host.
    fn note_done(&mut self, step: &Step) {
        if let Some(found) = &mut self.found {
            found.note(step);
        }
        if let Step::Host(HostStep::AddInnerAddress(_, address)) = step {
            self.own_addresses.add(address);
        }
    }

    /// Forgets what was noted when the step was planned.
    pub(super) fn not_made(&mut self, step: &Step) {
        self.needs_nothing = None;
        match step {
            Step::Kernel(KernelStep::InstallRules(..)) => self.owned.installed = None,
            Step::Nat(NatStep::Install(_)) => self.owned.installed_gateway = None,
            Step::Host(HostStep::SetMtu(device, _)) => drop(self.owned.mtus.remove(device)),
            Step::Host(_)
            | Step::Kernel(_)
            | Step::Tun(_)
            | Step::Fast(_)
            | Step::Nat(_)
            | Step::Dns(_) => {}
        }
    }
}
