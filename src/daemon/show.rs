//! `ipipou show`, `ipipou peer list` and `ipipou peer show`: prints what running processes answer.

use std::path::Path;

use super::Failure;
use super::running::named_or_all;
use super::snapshot::PeersAsked;
use crate::engine::config::TunnelName;
use crate::host::clock;
use crate::observe::{peers, printable_json, show};

/// How `ipipou show` presents the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A table that fits on a terminal.
    Table,
    /// All columns.
    Wide,
    Json,
}

/// Which peers are to be shown.
#[derive(Debug, Clone)]
pub struct PeersWanted {
    /// Only this one, with everything about it.
    pub name: Option<String>,
    /// Only those in this state.
    pub state: Option<String>,
    pub json: bool,
}

/// The text of `ipipou show`: all processes below `root`, or the one called `name`. With it comes why not all
/// of them are in it.
///
/// # Errors
/// When there is nothing to show, or this user may not see it.
pub fn show(
    root: &Path,
    name: Option<&TunnelName>,
    style: Style,
) -> Result<(String, Option<Failure>), Failure> {
    let asked = match (name, style) {
        (None, Style::Table | Style::Wide) => PeersAsked::None,
        (Some(_), _) | (None, Style::Json) => PeersAsked::All,
    };
    let (processes, failed) = named_or_all(root, name, &asked)?;
    if let ([], Some(failed)) = (processes.as_slice(), failed.as_ref()) {
        return Err(Failure::Generic(failed.to_string()));
    }
    let processes: Vec<_> = processes.into_iter().map(|(_, process)| process).collect();
    if style == Style::Json {
        return serde_json::to_string_pretty(&processes)
            .map(|text| (printable_json(&text) + "\n", failed))
            .map_err(|e| Failure::Generic(e.to_string()));
    }
    if processes.is_empty() {
        return Ok(("no tunnel is running\n".to_owned(), None));
    }
    let now = clock::unix();
    let mut text = show::table(&processes, now, style == Style::Wide);
    if name.is_some() {
        text.extend(processes.iter().map(|process| show::details(process, now)));
    }
    Ok((text, failed))
}

/// The text of `ipipou peer list` and `ipipou peer show`: the peers of the process called `tunnel`, or of
/// the only one that has any, among those that answer. With it comes which do not.
///
/// # Errors
/// When there is no such server or peer, or this user may not see it.
pub fn show_peers(
    root: &Path,
    tunnel: Option<&TunnelName>,
    wanted: &PeersWanted,
) -> Result<(String, Option<Failure>), Failure> {
    let asked = match (&wanted.name, &wanted.state) {
        (Some(name), _) => PeersAsked::Named(name.clone()),
        (None, Some(state)) => PeersAsked::InState(state.clone()),
        (None, None) => PeersAsked::All,
    };
    let (processes, silent) = named_or_all(root, tunnel, &asked)?;
    let with_silent = |text: String| match &silent {
        Some(silent) => format!("{silent}\n{text}"),
        None => text,
    };
    let mut servers: Vec<_> = processes.into_iter().filter_map(|(_, it)| it.peers).collect();
    let mut status = match (servers.pop(), servers.is_empty()) {
        (Some(status), true) => status,
        (Some(_), false) => {
            return Err(Failure::Usage(
                "several servers have peers: which one? -i NAME; `ipipou show` lists them"
                    .to_owned(),
            ));
        }
        (None, _) => {
            let nobody = "no server with --peers is running here; `ipipou show` lists the tunnels";
            return Err(Failure::Generic(with_silent(nobody.to_owned())));
        }
    };
    // A process that is older than this program sends all of them.
    if let Some(name) = &wanted.name {
        status.peers.retain(|peer| peer.name == *name);
        if status.peers.is_empty() {
            let nobody = format!("no peer is called {name}; `ipipou peer list` lists them");
            return Err(Failure::Generic(with_silent(nobody)));
        }
    }
    if let Some(state) = &wanted.state {
        status.peers.retain(|peer| peer.state == *state);
    }
    if wanted.json {
        return serde_json::to_string_pretty(&status.peers)
            .map(|text| (printable_json(&text) + "\n", silent))
            .map_err(|e| Failure::Generic(e.to_string()));
    }
    let now = clock::unix();
    let text = match (&wanted.name, status.peers.first()) {
        (Some(_), Some(peer)) => peers::one(peer, now),
        (Some(_), None) | (None, _) => peers::table(&status, now),
    };
    Ok((text, silent))
}
