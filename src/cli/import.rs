//! `ipipou peer import`: the files of servers with one client each are read as their own start would read
//! them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::check::{Read, understood};
use super::error::{CliError, usage};
use super::options::Options;
use super::places;
use super::secrets::Secrets;
use crate::auth::Proof;
use crate::engine::config::{Admits, Config, Expects};
use crate::engine::peers_file::PeerName;
use crate::engine::peers_file::import::{Kept, OldProof, OldServer};

/// Returns the servers of these files.
///
/// # Errors
/// Everything that is wrong with all of them.
pub fn servers(files: &[PathBuf], command: &mut clap::Command) -> Result<Vec<OldServer>, CliError> {
    let (mut servers, mut problems) = (Vec::new(), Vec::new());
    for file in files {
        match server(&as_path(file), command) {
            Ok(server) => servers.push(server),
            Err(problem) => problems.push(problem.to_string()),
        }
    }
    match problems.is_empty() {
        true => Ok(servers),
        false => Err(CliError::Usage(problems.join("\n"))),
    }
}

/// `server*.conf` of a shell means files here; a name without an end is one in /etc/ipipou.
fn as_path(file: &Path) -> PathBuf {
    let is_file =
        file.extension().is_some_and(|end| end == "conf") || file.components().count() > 1;
    match is_file && file.is_relative() {
        true => Path::new(".").join(file),
        false => file.to_owned(),
    }
}

fn server(name: &Path, command: &mut clap::Command) -> Result<OldServer, CliError> {
    let path = places::conf_path(name);
    let Read { options, conf, secrets, run, .. } = understood(name, command)?;
    let file = path.display().to_string();
    let named = |what: &str| usage(format!("{file}: {what}"));
    let Config { tunnel, .. } = &run.config;
    let expects = match run.config.expects() {
        Some(expects) if expects.admits == Admits::One => expects,
        Some(_) | None => return Err(named("this is not a server with one client")),
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: PeerName = stem.replace([' ', '@'], "-").parse().map_err(|why| {
        named(&format!("a peer takes the file's name, and {stem} {why}: rename it"))
    })?;
    let given = options.given.iter().map(|given| given.attributes.name);
    let lines: BTreeMap<_, _> =
        given.filter_map(|option| Some((option, conf.line(option)?))).collect();
    Ok(OldServer {
        name,
        proof: proof(expects, &options, &secrets),
        lifetime: expects.lifetime,
        tunnel: tunnel.clone(),
        file,
        lines,
    })
}

fn proof(expects: &Expects, options: &Options, secrets: &Secrets) -> Option<OldProof> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let auth = &options.auth;
    match &expects.policy.proof {
        Proof::Nothing => None,
        Proof::Token(token) => {
            let file = auth.auth_token_file.as_ref().map(absolute);
            Some(OldProof::Token(Kept { secret: token.clone(), file }))
        }
        Proof::Key(_) => {
            let key = *auth.auth_remote_pubkey_b64.as_ref()?.first.as_bytes();
            let file = auth.auth_secret_file.as_ref().map(absolute);
            let secret = secrets.shared.clone().unwrap_or_else(super::resolve::default_secret);
            Some(OldProof::Key(key, Kept { secret, file }))
        }
    }
}
