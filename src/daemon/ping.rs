//! `ipipou ping`: a running client asks a server whether it is there, and prints the answer.

use std::io::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Failure;
use super::pings::Ping;
use super::process::Process;
use super::requests::{self, Answer, Reply, Request};
use super::running::directory;
use crate::engine::config::{HostName, TunnelName};
use crate::engine::driver::Driver as _;
use crate::engine::{Event, Pong, ServerStatus};
use crate::host::clock::Clock;

/// The least time between two hellos that commands ask for.
const EVERY: Duration = Duration::from_secs(1);

/// How long an answer is waited for: it may take two round trips.
const PATIENCE: Duration = Duration::from_secs(2);

impl Process<'_> {
    /// Begins to ask a server whether it is there, or says why that is not possible.
    pub(super) fn begin_ping(&mut self, server: Option<&str>, asked: oneshot::Sender<Reply>) {
        match self.server_called(server) {
            Ok((server, name)) => self.pings.add(server, name, asked),
            Err(why) => drop(asked.send(Reply::Said(Answer::refused(why)))), // the caller may be gone
        }
    }

    /// The number of the server that is called so, and its name. Without a name, of the one in use.
    fn server_called(&self, called: Option<&str>) -> Result<(usize, String), String> {
        if self.settings.config.hub().is_some() {
            return Err(
                "this is a server: `ipipou peer list` says which clients are connected".to_owned()
            );
        }
        if self.settings.config.expects().is_some() {
            return Err(
                "this is a server: `ipipou show` says when its client was heard last".to_owned()
            );
        }
        let conversation = self.settings.config.shows().and_then(|shows| shows.server.as_ref());
        if conversation.is_none() {
            return Err("this tunnel's other end is not asked, as it has no key that we know \
                        (--auth-remote-pubkey-b64): `ping` its address inside the tunnel"
                .to_owned());
        }
        let servers = self.engine.servers();
        let is_called = |server: &ServerStatus| match called {
            None => server.is_in_use,
            Some(name) => {
                let remote = server.remote.map(|remote| remote.to_string());
                let ip = server.remote.map(|remote| remote.ip().to_string());
                server.name.to_string() == name
                    || server.name.host.to_string() == name
                    || [remote, ip].contains(&Some(name.to_owned()))
            }
        };
        let number = servers.iter().position(is_called);
        number.zip(number.and_then(|number| servers.get(number))).map_or_else(
            || {
                let names: Vec<_> = servers.iter().map(|server| server.name.to_string()).collect();
                let called = called.unwrap_or_default();
                Err(format!("no server is called {called}; -r has {}", names.join(", ")))
            },
            |(number, server)| Ok((number, server.name.to_string())),
        )
    }

    /// Sends the hello that is due, and passes the answer on to the commands that asked for it.
    pub(super) async fn go_on_with_ping(&mut self) {
        let now = self.clock.elapsed();
        self.pings.turn(EVERY);
        let Some(Ping { server, begins, until, .. }) = &mut self.pings.pending else { return };
        match until {
            None if now < *begins => return,
            None => {
                *until = Some(now.saturating_add(PATIENCE));
                self.pings.last = Some(now);
                let server = *server;
                self.engine.take_pong(); // what is left of an earlier one
                self.handle(Event::Ping(server)).await;
            }
            Some(_) => {}
        }
        let pong = self.engine.take_pong();
        let Some(ping) = &self.pings.pending else { return };
        let answer = match pong {
            Some(pong) => told(&pong, &self.engine.servers(), ping.server),
            None if ping.until.is_some_and(|until| now >= until) => {
                Answer::unanswered(format!("no answer from {}", ping.name))
            }
            None => return,
        };
        if let Some(ping) = self.pings.pending.take() {
            for asked in ping.asked {
                let _ = asked.send(Reply::Said(answer.clone())); // the caller may be gone
            }
            self.pings.turn(EVERY);
        }
    }
}

fn told(pong: &Pong, servers: &[ServerStatus], number: usize) -> Answer {
    let name = servers.get(number).map(|server| match &server.name.host {
        HostName::Name(name) => format!(" ({name})"),
        HostName::Address(_) => String::new(),
    });
    let name = name.unwrap_or_default();
    match pong {
        Pong::Answered { from, .. } => Answer::done(format!("answer from {from}{name}: {pong}")),
        Pong::Refused { from, .. } => {
            Answer::unanswered(format!("answer from {from}{name}: {pong}"))
        }
    }
}

/// Makes the client called `tunnel`, or the only one below `root`, ask a server `count` times whether it is
/// there, and prints each answer as a line.
///
/// # Errors
/// When nothing answered, or there is no such client or server.
pub fn ping(
    root: &Path,
    tunnel: Option<&TunnelName>,
    host: Option<&str>,
    count: u32,
) -> Result<(), Failure> {
    // A server answers with what to use instead.
    let directory = directory(root, tunnel, |process| process.role == "client")
        .or_else(|_| directory(root, tunnel, |_| true))?;
    let (mut answered, mut last) = (false, String::new());
    for number in 0..count {
        let clock = Clock::start();
        let (answer, _) = requests::ask(&directory, Request::Ping(host.map(str::to_owned)))?;
        if !answer.ok && !answer.unanswered {
            return Err(Failure::Usage(answer.text));
        }
        answered |= answer.ok;
        let _ = writeln!(std::io::stdout(), "{}", crate::observe::printable(&answer.text));
        last = answer.text;
        if number + 1 < count {
            sleep(EVERY.saturating_sub(clock.elapsed()));
        }
    }
    match answered {
        true => Ok(()),
        false => Err(Failure::Generic(last)),
    }
}
