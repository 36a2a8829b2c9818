//! Carries out an engine's actions. The rules for that exist once, here: the daemon drives a real
//! host by them, the tests drive one in memory.

use std::collections::VecDeque;

use super::event::Failed;
use super::host::Found;
use super::host::needs::needs;
use super::host::step::{Refused, Step};
use super::{Action, Engine, Event, Memory, Now, Outgoing, Report, Writing};

/// How often the host is read at most within one event, while steps fail. The engine asks again at its
/// next deadline.
const MAX_READINGS: usize = 6;

/// What an engine needs of the world: a host, a disk, a clock and a network.
///
/// The engine runs when [`handle`](Driver::handle) is called with an event; between two events
/// nothing happens but that [`Engine::next_deadline`] comes.
#[allow(async_fn_in_trait)] // a driver and its engine stay on one thread
pub trait Driver {
    /// The engine that is driven.
    fn engine(&mut self) -> &mut Engine;

    /// The instant that an event is handled at; `None` when the kernel has no random numbers, and the
    /// event is lost.
    fn now(&mut self) -> Option<Now>;

    /// Reads the host; `None` when the kernel refuses.
    async fn read(&mut self) -> Option<Found>;

    /// Makes one change to the host.
    ///
    /// # Errors
    /// When the host refused it. Removing what is not there succeeds.
    async fn apply(&mut self, step: &Step) -> Result<(), Refused>;

    /// Writes the memory to the disk before it returns.
    async fn remember(&mut self, memory: &Memory);

    /// Starts to write [`Engine::memory`]; [`Event::Written`] comes later.
    fn write(&mut self, writing: Writing);

    /// Sends a packet; false when that failed.
    fn send(&mut self, packet: &Outgoing) -> bool;

    /// Tells the datapath that a remote authenticated again.
    fn peer_alive(&mut self, remote: std::net::SocketAddr);

    /// Tells a person, usually by a line in the log.
    fn report(&mut self, report: &Report);

    /// Keeps what [`Engine::changed_sessions`] tells for the next process, if it was asked to tell: after each
    /// event, before anything of it is done.
    fn keep_sessions(&mut self) {}

    /// The engine asks for another reading, and the host was read as often as it may be within one event.
    fn found_no_rest(&mut self) {}

    /// Hands an event to the engine and carries out what it asks for; true at the end.
    async fn handle(&mut self, event: Event<'_>) -> bool {
        let mut work = VecDeque::new();
        feed(self, event, &mut work);
        let mut readings = 0;
        while let Some(action) = work.pop_front() {
            match action {
                Action::Apply(steps) => {
                    let result = apply_all(self, steps).await;
                    feed(self, Event::Applied(result), &mut work);
                }
                Action::TearDown(steps) => {
                    let mut failed = 0;
                    for step in steps {
                        failed += usize::from(self.apply(&step).await.is_err());
                    }
                    feed(self, Event::TornDown { failed }, &mut work);
                }
                Action::Send(packet) => {
                    if !self.send(&packet) {
                        feed(self, Event::SendFailed, &mut work);
                    }
                }
                Action::ReadHost if work.contains(&Action::ReadHost) => {}
                Action::ReadHost if work.iter().any(|next| matches!(next, Action::Apply(_))) => {
                    work.push_back(Action::ReadHost);
                }
                Action::ReadHost if readings < MAX_READINGS => {
                    readings += 1;
                    if let Some(found) = self.read().await {
                        feed(self, Event::HostRead(found), &mut work);
                    }
                }
                Action::ReadHost => self.found_no_rest(),
                Action::PeerAlive(remote) => self.peer_alive(remote),
                Action::Remember(memory) => self.remember(&memory).await,
                Action::Write(writing) => self.write(writing),
                Action::Report(report) => self.report(&report),
                Action::Exit => return true,
            }
        }
        false
    }
}

fn feed<D: Driver + ?Sized>(driver: &mut D, event: Event<'_>, work: &mut VecDeque<Action>) {
    let Some(now) = driver.now() else { return };
    let mut actions = Vec::new();
    driver.engine().handle(event, &now, &mut actions);
    driver.keep_sessions();
    work.extend(actions);
}

/// Applies the steps in order. One may need another: then it is not tried when that was refused.
async fn apply_all<D: Driver + ?Sized>(driver: &mut D, steps: Vec<Step>) -> Result<(), Failed> {
    let mut failed = Failed::default();
    for step in steps {
        let refused = failed.refused.iter().map(|(refused, _)| refused);
        if refused.chain(&failed.untried).any(|missing| needs(&step, missing)) {
            failed.untried.push(step);
        } else {
            match driver.apply(&step).await {
                Ok(()) => failed.done.push(step),
                Err(refused) => failed.refused.push((step, refused)),
            }
        }
    }
    if failed.refused.is_empty() { Ok(()) } else { Err(failed) }
}
