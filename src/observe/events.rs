//! The events of `ipipou monitor`: reports of the engine that a program may want to act on.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::engine::Report;

/// The version of the fields of [`Happened`].
pub const SCHEMA: u32 = 1;

/// One event. Field names are part of the interface; every field is always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// The version of these fields; fields that are added do not change it.
    pub schema: u32,
    /// Unix time.
    pub at: u64,
    /// What the tunnel is called, as in `ipipou show NAME`.
    pub tunnel: String,
    pub event: Kind,
    /// The name of a peer that a file names.
    pub peer: Option<String>,
    /// An outer address and port: the peer's or the server's.
    pub remote: Option<String>,
    /// Where it was before.
    pub from: Option<String>,
    /// In words.
    pub why: Option<String>,
    /// How many events the reader was too slow for; then it gets no more.
    pub missed: Option<u64>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A peer is connected.
    PeerUp,
    /// A peer is at another remote.
    PeerMoved,
    /// A peer is not connected any more.
    PeerDown,
    /// Two hosts with one key take the tunnel from each other, at `remote` and at `from`.
    Rivals,
    /// A packet proves nothing, or its sender may not come in.
    Refused,
    /// The files of peers were read, and taken.
    Reloaded,
    /// The files of peers were read, and have mistakes.
    ReloadFailed,
    /// Something that was missing on the host was put back.
    Repaired,
    /// Our server answers.
    Connected,
    /// Our server does not answer, or does not let us in.
    NotConnected,
    /// Our server is at another address.
    ServerChanged,
    /// The reader was too slow.
    Missed,
}

impl Kind {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::PeerUp => "peer-up",
            Kind::PeerMoved => "peer-moved",
            Kind::PeerDown => "peer-down",
            Kind::Rivals => "rivals",
            Kind::Refused => "refused",
            Kind::Reloaded => "reloaded",
            Kind::ReloadFailed => "reload-failed",
            Kind::Repaired => "repaired",
            Kind::Connected => "connected",
            Kind::NotConnected => "not-connected",
            Kind::ServerChanged => "server-changed",
            Kind::Missed => "missed",
        }
    }
}

impl Happened {
    /// An event with no further fields.
    pub fn new(tunnel: &str, at: u64, event: Kind) -> Self {
        Happened {
            schema: SCHEMA,
            at,
            tunnel: tunnel.to_owned(),
            event,
            peer: None,
            remote: None,
            from: None,
            why: None,
            missed: None,
        }
    }

    /// What a report is to a program; `None`: nothing that it would act on.
    pub fn of(report: &Report, tunnel: &str, at: u64) -> Option<Self> {
        let new = |event| Happened::new(tunnel, at, event);
        let text = |remote: &SocketAddr| Some(remote.to_string());
        Some(match report {
            Report::PeerUp { name, remote } => {
                Happened { peer: Some(name.to_string()), remote: text(remote), ..new(Kind::PeerUp) }
            }
            Report::PeerMoved { name, from, to } => Happened {
                peer: Some(name.to_string()),
                remote: text(to),
                from: text(from),
                ..new(Kind::PeerMoved)
            },
            Report::PeerDown { name, remote, why } => Happened {
                peer: Some(name.to_string()),
                remote: text(remote),
                why: Some(why.to_string()),
                ..new(Kind::PeerDown)
            },
            Report::PeerRivals { name, one, other } => Happened {
                peer: Some(name.to_string()),
                remote: text(one),
                from: text(other),
                why: Some("two hosts have its key".to_owned()),
                ..new(Kind::Rivals)
            },
            Report::Rivals { one, other } => Happened {
                remote: text(one),
                from: text(other),
                why: Some("two hosts have one key".to_owned()),
                ..new(Kind::Rivals)
            },
            Report::PeerRefused { name, remote, why } => Happened {
                peer: Some(name.to_string()),
                remote: text(remote),
                why: Some(Report::refusal(*why).to_owned()),
                ..new(Kind::Refused)
            },
            Report::PeerUnproven { name, from } => Happened {
                peer: Some(name.to_string()),
                remote: text(from),
                why: Some("it does not prove to be this peer".to_owned()),
                ..new(Kind::Refused)
            },
            Report::Rejected { from, reason, length: _ } => {
                Happened { remote: text(from), why: Some(reason.to_string()), ..new(Kind::Refused) }
            }
            Report::Arrived(remote) | Report::Adopted(remote) => {
                Happened { remote: text(remote), ..new(Kind::PeerUp) }
            }
            Report::Moved { from, to } => {
                Happened { remote: text(to), from: text(from), ..new(Kind::PeerMoved) }
            }
            Report::Expired(remote) => Happened {
                remote: text(remote),
                why: Some("its authentication has run out".to_owned()),
                ..new(Kind::PeerDown)
            },
            Report::MadeRoom(remote) => Happened {
                remote: text(remote),
                why: Some("it was silent, and another one has its place".to_owned()),
                ..new(Kind::PeerDown)
            },
            Report::PeersLoaded(loaded) => {
                Happened { why: Some(loaded.to_string()), ..new(Kind::Reloaded) }
            }
            Report::Repairing(step) => {
                Happened { why: Some(step.to_string()), ..new(Kind::Repaired) }
            }
            Report::Connected { server, .. } => {
                Happened { remote: text(server), ..new(Kind::Connected) }
            }
            Report::ServerRefused { server, why } => Happened {
                remote: text(server),
                why: Some(Report::told(*why).to_owned()),
                ..new(Kind::NotConnected)
            },
            Report::Disconnected { server, .. } => Happened {
                remote: text(server),
                why: Some(report.to_string()),
                ..new(Kind::NotConnected)
            },
            Report::NothingBack(server) => Happened {
                remote: text(server),
                why: Some("nothing has come back so far".to_owned()),
                ..new(Kind::NotConnected)
            },
            Report::ServerMoved(address) => {
                Happened { remote: Some(address.to_string()), ..new(Kind::ServerChanged) }
            }
            Report::NextServer { from, to, .. } => Happened {
                remote: Some(to.to_string()),
                from: Some(from.to_string()),
                why: Some(report.to_string()),
                ..new(Kind::ServerChanged)
            },
            Report::BackToFirst { to, .. } => Happened {
                remote: Some(to.to_string()),
                why: Some(report.to_string()),
                ..new(Kind::ServerChanged)
            },
            Report::NextAddress { from, to, silent: _ } => Happened {
                remote: Some(to.to_string()),
                from: Some(from.to_string()),
                why: Some("nothing has come back from the address before".to_owned()),
                ..new(Kind::ServerChanged)
            },
            Report::Refreshed(_)
            | Report::NameUnusable { .. }
            | Report::Sent { .. }
            | Report::OuterAddress(_)
            | Report::OuterMissing(_)
            | Report::OuterOnlyIpv6(_)
            | Report::WayLeadsBack(_)
            | Report::HostsChanged(_)
            | Report::NodeUnusable { .. }
            | Report::LedAstray { .. }
            | Report::InnerTaken { .. }
            | Report::NetworkOfOthers { .. }
            | Report::InVrf(_)
            | Report::TooManyAddresses { .. }
            | Report::AlternateInVrf { .. }
            | Report::RoutedBySource(_)
            | Report::InnerAwaited
            | Report::InnerGiven(_)
            | Report::NoInnerGiven
            | Report::Ipv6GoesPast
            | Report::GivenNotTaken(_)
            | Report::KeepsBeingUndone(_)
            | Report::ReauthIgnored
            | Report::FastPath(_)
            | Report::ClockJumped(_) => return None,
        })
    }

    /// The line for people.
    pub fn line(&self) -> String {
        let Happened { schema: _, at, tunnel, event, peer, remote, from, why, missed } = self;
        let seconds = at % 86_400;
        let clock = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(|n| format!("{n:02}"));
        let mut line = format!("{}Z {tunnel} {}", clock.join(":"), event.name());
        let parts = [("", peer), ("at ", remote), ("from ", from)];
        for (word, value) in parts {
            if let Some(value) = value {
                line.push_str(&format!(" {word}{value}"));
            }
        }
        if let Some(why) = why {
            line.push_str(&format!(": {why}"));
        }
        if let Some(missed) = missed {
            line.push_str(&format!(
                ": this reader is too slow: it missed {missed} events and gets no more"
            ));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_for_people_and_one_for_programs() {
        let report = Report::PeerMoved {
            name: "anna".parse().unwrap(),
            from: "192.0.2.1:4000".parse().unwrap(),
            to: "192.0.2.1:4001".parse().unwrap(),
        };
        let happened = Happened::of(&report, "hub0", 86_400 * 7 + 3661).unwrap();
        assert_eq!(
            happened.line(),
            "01:01:01Z hub0 peer-moved anna at 192.0.2.1:4001 from 192.0.2.1:4000"
        );
        let json = serde_json::to_string(&happened).unwrap();
        assert_eq!(
            json,
            r#"{"schema":1,"at":608461,"tunnel":"hub0","event":"peer-moved","peer":"anna","remote":"192.0.2.1:4001","from":"192.0.2.1:4000","why":null,"missed":null}"#
        );
        let missed = Happened { missed: Some(7), ..Happened::new("hub0", 0, Kind::Missed) };
        assert!(
            missed
                .line()
                .ends_with("missed: this reader is too slow: it missed 7 events and gets no more")
        );
    }

    #[test]
    fn the_name_of_a_kind_is_that_of_json() {
        let kinds =
            [Kind::PeerUp, Kind::Rivals, Kind::ReloadFailed, Kind::NotConnected, Kind::Missed];
        for kind in kinds {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
        }
    }
}
