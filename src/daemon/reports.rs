//! Logs the reports of the engine and failures of the process, each kind within a limit, and tells the
//! service manager.

use std::mem::discriminant;

use tracing::Level;

use super::process::{Failing, Process};
use crate::engine::Report;
use crate::tun::Owner;

impl Process<'_> {
    /// Logs a failure, once while it lasts, and at most once in a while for each kind.
    pub(super) fn log_failure(&mut self, failing: Failing, text: &str) {
        if !self.lasting.is_news(text, self.clock.elapsed()) {
            return;
        }
        if let Some(more) = self.failures.pass(failing, self.clock.elapsed()) {
            tracing::error!("{text}{}", also(more));
        }
    }

    /// Logs a report, hands it to `ipipou monitor`, and shows the service manager what changes the state.
    pub(super) fn tell_report(&mut self, report: &Report) {
        self.events.tell(report);
        let level = match report {
            Report::Rejected { .. }
            | Report::Repairing(_)
            | Report::KeepsBeingUndone(_)
            | Report::Expired(_)
            | Report::OuterMissing(_)
            | Report::OuterOnlyIpv6(_)
            | Report::NameUnusable { .. }
            | Report::LedAstray { .. }
            | Report::InnerTaken { .. }
            | Report::NetworkOfOthers { .. }
            | Report::InVrf(_)
            | Report::TooManyAddresses { .. }
            | Report::AlternateInVrf { .. }
            | Report::RoutedBySource(_)
            | Report::WayLeadsBack(_)
            | Report::Rivals { .. }
            | Report::ReauthIgnored
            | Report::PeerRivals { .. }
            | Report::PeerRefused { .. }
            | Report::PeerUnproven { .. }
            | Report::ServerRefused { .. }
            | Report::Disconnected { .. }
            | Report::NextServer { .. }
            | Report::NoInnerGiven
            | Report::Ipv6GoesPast
            | Report::GivenNotTaken(_)
            | Report::NodeUnusable { .. } => Level::WARN,
            Report::Adopted(_)
            | Report::HostsChanged(_)
            | Report::PeersLoaded(_)
            | Report::PeerUp { .. }
            | Report::PeerMoved { .. }
            | Report::PeerDown { .. }
            | Report::MadeRoom(_)
            | Report::BackToFirst { .. }
            | Report::InnerAwaited
            | Report::InnerGiven(_)
            | Report::NothingBack(_)
            | Report::FastPath(_)
            | Report::ClockJumped(_) => Level::INFO,
            Report::Refreshed(_) | Report::Sent { .. } => return tracing::debug!("{report}"),
            Report::Arrived(_)
            | Report::Moved { .. }
            | Report::Connected { .. }
            | Report::ServerMoved(_)
            | Report::NextAddress { .. }
            | Report::OuterAddress(_) => {
                self.tell_manager(sd_notify::NotifyState::Status(&report.to_string()));
                Level::INFO
            }
        };
        self.adopted |= matches!(report, Report::Adopted(_));
        let now = self.clock.elapsed();
        let passed = if let Report::Rejected { reason, .. } = report {
            self.rejections.pass(*reason, now)
        } else {
            self.changes.pass(discriminant(report), now)
        };
        let Some(more) = passed.map(also) else { return };
        let by = self.ruleset_by.as_ref().filter(|_| matches!(report, Report::KeepsBeingUndone(_)));
        let by = by.map_or_else(String::new, |who| format!("; nftables was last changed by {who}"));
        if level == Level::WARN {
            tracing::warn!("{report}{by}{more}");
        } else {
            tracing::info!("{report}{by}{more}");
        }
    }

    /// Tells the service manager; it knows of the tunnel of the process only.
    pub(super) fn tell_manager(&self, state: sd_notify::NotifyState<'_>) {
        if self.owner == Owner::Tunnel {
            let _ = sd_notify::notify(&[state]);
        }
    }

    /// Logs and tells the service manager that the tunnel is ready.
    pub fn notify_ready(&mut self) {
        self.tell_manager(sd_notify::NotifyState::Ready);
        let datapath = self.chosen.name();
        let offloads = self.datapath.statistics().offloads;
        let offloads = offloads.map_or_else(String::new, |with| format!(" with {with}"));
        tracing::info!(
            "ready on {} as {}, datapath {datapath}{offloads}",
            self.settings.tunnel().port,
            self.role()
        );
    }
}

/// A note of how many lines of the kind were not logged.
fn also(more: u64) -> String {
    match more {
        0 => String::new(),
        _ => format!(" ({more} more since the last such line)"),
    }
}
