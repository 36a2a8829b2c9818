//! Carries out what operators ask of a process, by commands and by files of peers.

use super::listener::Connected;
use super::lists::{Asker, List};
use super::peers::PeersReader;
use super::process::Process;
use super::reloads::Reloads;
use super::requests::{Answer, Pending, Reply, Request};
use super::snapshot::{Mistakes, PeersAsked};
use crate::engine::Event;
use crate::engine::driver::Driver as _;
use crate::engine::peers_file::PeerSet;
use crate::host::clock;

/// How many peers are noted at a time for a list of them: less than a millisecond.
const PART: usize = 1000;

impl Process<'_> {
    /// Takes another set of peers; true at the end.
    pub async fn take_peers(&mut self, set: PeerSet) -> bool {
        let old = set.peers().iter().filter(|peer| peer.old().is_some()).cloned().collect();
        let done = self.handle(Event::Peers(set)).await;
        self.old.replace(old, clock::unix());
        done
    }

    /// Does what an operator asks for; true at the end.
    pub async fn fulfil(&mut self, pending: Pending, reloads: &mut Reloads) -> bool {
        if pending.1.is_closed() {
            return false; // the caller has gone, and was not answered
        }
        let (request, answer) = match pending {
            (Request::Ping(server), answer) => {
                self.begin_ping(server.as_deref(), answer);
                return false;
            }
            other => other,
        };
        let mut done = false;
        let said = match (request, reloads.reader()) {
            (Request::Where, reader) => {
                Answer { path: reader.map(PeersReader::path), ..Answer::done("") }
            }
            (Request::Reload(Some(files)), Some(_)) => {
                reloads.take(files, answer);
                return false;
            }
            (Request::Reload(None), _) if self.engine.proves_itself() => {
                done = self.handle(Event::ReauthRequested).await;
                Answer::done("authenticating again")
            }
            (Request::Reload(None), _) if self.settings.config.table().is_some() => {
                Answer::done("reading its table again")
            }
            (Request::Reload(None), _) => Answer::done("nothing to reload"),
            (Request::Kick(name), Some(_)) => match name.parse() {
                Ok(name) if self.engine.has_member(&name) => {
                    self.old.kick(&name);
                    done = self.handle(Event::Kick(name)).await;
                    Answer::done("its session is over; it may come back")
                }
                Ok(_) | Err(_) => Answer::refused(format!("no peer is called {name}")),
            },
            (Request::Ping(_), _) => Answer::refused("one at a time"), // it is begun above
            (Request::Reload(Some(_)) | Request::Kick(_), None) => {
                Answer::refused("this tunnel has no files of peers")
            }
            // It has its events from another one.
            (Request::Monitor(_), _) => Answer::refused("no events here"),
            (Request::Show(peers), _) => {
                return self.begin_list(peers, Asker::Request(answer)).await;
            }
        };
        let _ = answer.send(Reply::Said(said)); // the caller may be gone
        done
    }

    /// Notes that the files of peers have mistakes, a line each.
    pub(super) fn note_mistakes(&mut self, lines: &str) {
        self.events.tell_mistakes(lines);
        self.mistakes = Some(Mistakes::now(lines));
    }

    /// Sends the status to a client of the control socket.
    pub async fn tell(&mut self, asker: Connected) -> bool {
        self.begin_list(PeersAsked::All, Asker::Connection(asker)).await
    }

    /// Begins with a status that somebody asked for; true at the end.
    pub async fn begin_list(&mut self, asked: PeersAsked, asker: Asker) -> bool {
        let begin = self.clock.elapsed();
        let done = self.look().await; // for fresh traffic counters
        let snapshot = self.snapshot();
        let longest = self.clock.elapsed().saturating_sub(begin);
        self.lists.0.push_back(List { asked, asker, snapshot, last: None, longest });
        done
    }

    /// Notes the next peers of the first status that is asked for, and answers with it after the last one.
    pub fn go_on_with_list(&mut self) {
        let Some(mut list) = self.lists.0.pop_front() else { return };
        if list.asker.is_gone() {
            return;
        }
        let begin = self.clock.elapsed();
        let has_more = self.note_members(&mut list);
        list.longest = list.longest.max(self.clock.elapsed().saturating_sub(begin));
        match has_more {
            true => self.lists.0.push_front(list),
            false => list.answer(),
        }
    }

    /// Notes the peers of one part. Returns whether there may be more.
    fn note_members(&self, List { asked, snapshot, last, .. }: &mut List) -> bool {
        let (Some(hub), Ok(now)) = (&mut snapshot.hub, self.clock.now()) else { return false };
        let Some(members) = self.engine.members_after(last.as_ref(), &now) else { return false };
        let mut noted = 0;
        let mut name = None;
        for mut member in members.take(PART) {
            noted += 1;
            self.old.note(&mut member);
            name = (noted == PART).then(|| member.entry.name.clone());
            hub.add(member, asked);
        }
        *last = name;
        noted == PART
    }
}
