//! Tells repairs from other steps, and puts off what keeps being undone.

use super::host::needs::needs;
use super::host::step::{FastStep, HostStep, KernelStep, Step};
use super::host::undone::Verdict;
use super::host::{FastPathFound, RulesFound};
use super::{Action, Engine, Now, Phase, Report};

impl Engine {
    /// Reports the repairs among `steps`, or puts them off. If the host was not `settled`, a step
    /// counts as a repair only if the same thing was repaired a moment ago.
    pub(super) fn judge_repairs(
        &mut self,
        mut steps: Vec<Step>,
        settled: bool,
        now: &Now,
        actions: &mut Vec<Action>,
    ) {
        let waits = |step: &Step| self.undone.wait(step, now.monotonic);
        if let Some(until) = steps.iter().filter_map(waits).max() {
            // One step may need another, which is put off, then, too; except for steps that guard.
            let (mut made, mut put_off) = (Vec::new(), Vec::new());
            for step in steps {
                let is_late = self.undone.wait(&step, now.monotonic).is_some()
                    || put_off.iter().any(|missing| needs(&step, missing));
                if is_late && !step.guards() { put_off.push(step) } else { made.push(step) }
            }
            put_off.iter().for_each(|step| self.not_made(step));
            steps = made;
            self.reread_at = self.reread_at.min(until);
        }
        if steps.is_empty() {
            self.phase = Phase::Settled;
        }
        let is_repair =
            |step: &&Step| self.mends(step) && (settled || self.undone.knows(step, now.monotonic));
        let repairs: Vec<Step> = steps.iter().filter(is_repair).cloned().collect();
        self.counters.repaired += repairs.len() as u64;
        for step in repairs {
            let report = match self.undone.made(&step, now.monotonic) {
                Verdict::Repair => Report::Repairing(step),
                Verdict::Last => Report::KeepsBeingUndone(step),
                Verdict::Again => continue,
            };
            actions.push(Action::Report(report));
        }
        actions.extend(Action::apply(steps));
    }

    /// Whether a step undoes what another program did. Following the uplink is not a repair. Nor is an
    /// exchange of rules that are as they were installed, because another program began to track
    /// connections or made another tunnel; nor is a fast path that follows the tunnel.
    pub(super) fn mends(&self, step: &Step) -> bool {
        let rules = self.found.as_ref().map(|found| &found.rules);
        let follows =
            self.endpoint.tunnel.mtu.is_none() && matches!(step, Step::Host(HostStep::SetMtu(..)));
        let others = matches!(
            (step, rules),
            (Step::Kernel(KernelStep::InstallRules(..)), Some(RulesFound::Intact(_)))
        );
        let there = self.found.as_ref().map(|found| &found.fast_path);
        let grows = match step {
            Step::Fast(FastStep::Install(_)) => there != Some(&FastPathFound::Unknown),
            Step::Fast(FastStep::Withdraw(_) | FastStep::Add(..) | FastStep::Remove) => true,
            Step::Host(_) | Step::Kernel(_) | Step::Tun(_) | Step::Nat(_) | Step::Dns(_) => false,
        };
        !follows && !others && !grows
    }
}
