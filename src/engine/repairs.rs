//! Tells repairs from other steps, and puts off what keeps being undone.

use std::collections::BTreeSet;

use super::host::needs::needs;
use super::host::step::{FastStep, HostStep, KernelStep, NatStep, Step};
use super::host::undone::Verdict;
use super::host::{FastPathFound, Found, GatewayFound, PolicyRule, PolicyRuleKind, RulesFound};
use super::{Action, Engine, Now, Phase, Report};

/// The policy rules that the last two plans wanted: what an earlier one did not is new.
#[derive(Debug, Default)]
pub struct PolicyRules {
    wanted: BTreeSet<PolicyRule>,
    new: BTreeSet<PolicyRule>,
}

impl PolicyRules {
    /// Notes what is wanted now.
    pub(super) fn plan(&mut self, wanted: &BTreeSet<PolicyRule>) {
        self.new = wanted.difference(&self.wanted).copied().collect();
        self.wanted.clone_from(wanted);
    }

    /// Whether a step follows the addresses of the host, or moves a rule behind the one that it makes.
    fn follow(&self, step: &HostStep, found: &Found) -> bool {
        match step {
            HostStep::AddPolicyRule(rule) => {
                self.new.contains(rule) || found.policy_rules.contains(rule)
            }
            HostStep::RemovePolicyRule(rule) => match rule.kind {
                PolicyRuleKind::FromOwn(_) => true,
                PolicyRuleKind::MainButDefault | PolicyRuleKind::UnlessMarked { .. } => false,
            },
            HostStep::ConfigureLink(_)
            | HostStep::SetMtu(..)
            | HostStep::AddInnerAddress(..)
            | HostStep::RemoveInnerAddress(_)
            | HostStep::RestoreRoute(..)
            | HostStep::RemoveLink(_)
            | HostStep::AddRoute(_)
            | HostStep::ReplaceRoute(_)
            | HostStep::RemoveRoute(_)
            | HostStep::SetForwarding { .. }
            | HostStep::SetRpFilter { .. } => false,
        }
    }
}

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

    /// Whether a step undoes what another program did. Following the uplink, or the host's addresses, is not
    /// a repair. Nor is an exchange of rules that are as they were installed, because another program began to track
    /// connections or made another tunnel; nor is a fast path that follows the tunnel.
    pub(super) fn mends(&self, step: &Step) -> bool {
        let found = self.found.as_ref();
        let follows = match step {
            Step::Host(HostStep::SetMtu(..)) => self.endpoint.tunnel.mtu.is_none(),
            Step::Host(step) => found.is_some_and(|found| self.policy_rules.follow(step, found)),
            Step::Kernel(_) | Step::Tun(_) | Step::Fast(_) | Step::Nat(_) | Step::Dns(_) => false,
        };
        let others = match (step, found) {
            (Step::Kernel(KernelStep::InstallRules(..)), Some(found)) => {
                matches!(found.rules, RulesFound::Intact(_))
            }
            (Step::Nat(NatStep::Install(_)), Some(found)) => found.gateway == GatewayFound::Intact,
            (
                Step::Host(_)
                | Step::Kernel(_)
                | Step::Tun(_)
                | Step::Fast(_)
                | Step::Nat(_)
                | Step::Dns(_),
                _,
            ) => false,
        };
        let there = found.map(|found| &found.fast_path);
        let grows = match step {
            Step::Fast(FastStep::Install(_)) => there != Some(&FastPathFound::Unknown),
            Step::Fast(FastStep::Withdraw(_) | FastStep::Add(..) | FastStep::Remove) => true,
            Step::Host(_) | Step::Kernel(_) | Step::Tun(_) | Step::Nat(_) | Step::Dns(_) => false,
        };
        !follows && !others && !grows
    }
}
