//! Drives the engine of a process: carries out each action.

use std::io;
use std::net::SocketAddr;

use super::process::{Failing, Process, Starting};
use super::session_file::{Keeping, SessionFile};
use super::{Failure, record};
use crate::bpf::FastPathError;
use crate::engine::config::FastPathChoice;
use crate::engine::driver::Driver;
use crate::engine::host::Found;
use crate::engine::host::step::{DnsStep, FastStep, HostStep, KernelStep, Refused, Step};
use crate::engine::{Engine, Memory, Now, Outgoing, Report, Writing};
use crate::host::StepError;
use crate::tun;

impl Driver for Process<'_> {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn now(&mut self) -> Option<Now> {
        self.clock.now().inspect_err(|e| tracing::error!("no random numbers: {e}")).ok()
    }

    async fn read(&mut self) -> Option<Found> {
        if let Keeping::Failed = self.sessions {
            self.sessions = Keeping::NotYet;
        }
        match self.read_host().await {
            Ok(found) => Some(found),
            Err(error) => {
                self.log_failure(Failing::Read, &format!("cannot read the host: {error}"));
                None
            }
        }
    }

    async fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        tracing::debug!("{step}");
        let Err(error) = self.try_apply(step).await else {
            if self.lasting.is_over(format_args!("cannot {step}: ")) {
                tracing::info!("{step}: this works now");
            }
            return Ok(());
        };
        let refused = if error.is_taken() { Refused::Taken } else { Refused::Otherwise };
        let failing = Failing::Step(step.kind());
        if let Some(failed) = &mut self.ending {
            *failed += 1;
            tracing::error!("cannot {step}: {error}");
        } else if refused == Refused::Taken && matches!(error, StepError::Link(_)) {
            let text = format!(
                "cannot {step}: another link has its addresses, perhaps in another network namespace; \
                 trying an alternate local address"
            );
            self.log_failure(failing, &text);
        } else if self.engine.can_do_without(step) {
            self.log_failure(failing, &format!("cannot {step}: {error}; going on without it"));
        } else if let (Starting::Well, false) = (&self.starting, is_put_off(step, &error)) {
            self.starting = Starting::Failed(Failure::Step { step: Box::new(step.clone()), error });
        } else {
            self.log_failure(failing, &format!("cannot {step}: {error}; trying again"));
        }
        Err(refused)
    }

    async fn remember(&mut self, memory: &Memory) {
        let result = self.memory.save(memory, &mut self.engine).await;
        self.note_write(result);
    }

    fn write(&mut self, writing: Writing) {
        self.memory.write(writing, &mut self.engine);
    }

    fn send(&mut self, packet: &Outgoing) -> bool {
        let Err(e) = self.datapath.send(packet) else { return true };
        let text = format!("cannot send to {}: {e}; trying again", packet.to);
        self.log_failure(Failing::Send, &text);
        false
    }

    fn peer_alive(&mut self, remote: SocketAddr) {
        self.datapath.peer_alive(remote);
    }

    fn report(&mut self, report: &Report) {
        self.tell_report(report);
    }

    fn keep_sessions(&mut self) {
        let Err(error) = self.try_keep_sessions() else { return };
        let text = format!("a restart will not know who is connected now: {error}");
        self.log_failure(Failing::Keep, &text);
        // Part of the truth would be worse.
        self.sessions = Keeping::Failed;
        let _ = tun::keep_sessions(None);
    }
}

impl Process<'_> {
    fn try_keep_sessions(&mut self) -> io::Result<()> {
        match self.sessions {
            Keeping::NotYet => self.engine.tell_all_sessions(),
            Keeping::All(_) | Keeping::Failed => {}
        }
        let Some(mut changed) = self.engine.changed_sessions() else { return Ok(()) };
        if self.ending.is_some() {
            return Ok(());
        }
        let mut note = |file: &mut SessionFile| {
            changed.try_for_each(|(peer, session)| file.note(peer, session.as_ref()))
        };
        match &mut self.sessions {
            Keeping::NotYet => {
                let mut file = SessionFile::new()?;
                note(&mut file)?;
                file.store()?;
                self.sessions = Keeping::All(file);
                Ok(())
            }
            Keeping::All(file) => note(file),
            Keeping::Failed => Ok(()),
        }
    }

    async fn try_apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.surroundings_due = true;
        self.host.expect_changes();
        match step {
            Step::Host(step) => {
                if let HostStep::ConfigureLink(link) = step {
                    self.fast_path.prepare(&link.device);
                }
                self.host.apply(step).await
            }
            Step::Nat(step) => self.host.apply_nat(step),
            Step::Dns(DnsStep::Use) => self.dns.apply().map_err(StepError::Dns),
            Step::Dns(DnsStep::Restore) => self.dns.restore().map_err(StepError::Dns),
            Step::Kernel(of_kernel) => {
                self.keep_record(of_kernel).await;
                self.datapath.apply(step).await
            }
            Step::Tun(_) => self.datapath.apply(step).await,
            Step::Fast(step) => {
                let path = &mut self.fast_path;
                let result = match step {
                    FastStep::Withdraw(remotes) => path.withdraw(remotes),
                    FastStep::Install(wanted) => path.install(wanted),
                    FastStep::Add(remote, peer) => path.add(*remote, peer),
                    FastStep::Remove => path.remove(),
                };
                // The datapath below is complete: nothing fails for want of a fast path.
                result.unwrap_or_else(|error| self.without_fast_path(&error));
                Ok(())
            }
        }
    }

    /// Leaves all packets to the datapath, because the kernel refused this; says so once.
    pub(super) fn without_fast_path(&mut self, error: &FastPathError) {
        match (self.fast_path.give_up(error), self.settings.tunnel().fast_path) {
            (true, FastPathChoice::On) => tracing::warn!("--fast-path: {error}; going on without"),
            (true, FastPathChoice::Auto | FastPathChoice::Off) => {
                tracing::info!("no fast path: {error}");
            }
            (false, _) => tracing::debug!("no fast path: {error}"),
        }
    }

    /// Records the FOU listener before it is made: after a crash in between, the record names a
    /// listener that does not exist.
    async fn keep_record(&self, step: &KernelStep) {
        let directory = &self.settings.state_dir;
        match step {
            KernelStep::AddListener(listener) => {
                if let Err(e) = record::write(directory, listener.port).await {
                    let directory = directory.display();
                    tracing::warn!("{directory}: {e}: a restart may not know its FOU listener");
                }
            }
            KernelStep::RemoveRules => record::remove(directory).await,
            KernelStep::InstallRules(..)
            | KernelStep::Admit(_)
            | KernelStep::AdmitToo(_)
            | KernelStep::AdmitNoMore(_)
            | KernelStep::AdmitInstead { .. }
            | KernelStep::AddAlternateAddress(_)
            | KernelStep::RemoveAlternateAddress(_)
            | KernelStep::RemoveListener(_)
            | KernelStep::CreateLink(_)
            | KernelStep::ChangeLink(_) => {}
        }
    }
}

/// Whether a tunnel starts without this: what an earlier process left with a program that does not end.
fn is_put_off(step: &Step, error: &StepError) -> bool {
    let StepError::Dns(error) = error else { return false };
    *step == Step::Dns(DnsStep::Restore) && error.kind() == io::ErrorKind::TimedOut
}
