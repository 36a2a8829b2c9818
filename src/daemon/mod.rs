//! The daemon: checks first, then one loop that passes events to the engine and carries out its
//! actions.

mod check;
mod choice;
mod control;
mod debounce;
mod demand;
mod disk;
mod driver;
mod events;
mod failure;
mod fulfil;
mod leftovers;
mod listener;
mod lists;
mod locks;
mod memory;
mod memory_log;
mod monitor;
mod next;
mod old;
mod old_leftovers;
mod old_settings;
mod old_tunnel;
mod opening;
mod peer_edit;
mod peer_files;
mod peer_import;
mod peers;
mod peers_keeper;
mod peers_lock;
mod ping;
mod pings;
mod preflight;
mod process;
mod reauth;
mod record;
mod reloads;
mod reports;
mod request_socket;
mod requests;
mod requirements;
mod running;
mod server_key;
mod session_file;
mod show;
mod signals;
mod snapshot;
mod status;
mod stream;
mod tunnel;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::auth;
use crate::engine::config::Config;
pub use crate::host::{Directories, close_memory};
pub use check::check_files;
pub use failure::{Exit, Failure};
pub use monitor::monitor;
pub use peer_edit::edit_peers;
pub use peer_import::import_peers;
pub use peers::{kick, reload};
pub use ping::ping;
pub use reauth::reauthenticate;
pub use show::{PeersWanted, Style, show, show_peers};
pub use tunnel::run;

/// Everything a tunnel process needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: Config,
    /// Where the replay memory is kept.
    pub state_dir: PathBuf,
    /// Where the control socket is.
    pub runtime_dir: PathBuf,
}

/// Prints a new private key in base64.
///
/// # Errors
/// When there is no randomness, or the output cannot be written.
pub fn genkey() -> Result<(), Failure> {
    let (private, _) = new_pair()?;
    writeln!(std::io::stdout(), "{}", private.as_str()).map_err(|e| Failure::Generic(e.to_string()))
}

/// Reads a private key in base64 from the standard input, and prints its public key. What
/// `--auth-keygen` prints is read as well.
///
/// # Errors
/// When it is not a private key, or the output cannot be written.
pub fn pubkey() -> Result<(), Failure> {
    /// Both keys have 44 characters, and a newline each.
    const MOST: u64 = 1024;
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .take(MOST)
        .read_to_string(&mut text)
        .map_err(|e| Failure::Generic(format!("cannot read the key: {e}")))?;
    let first = text.lines().next().unwrap_or_default();
    let seed = auth::parse_key(first)
        .map_err(|e| Failure::Usage(format!("the standard input holds no private key: {e}")))?;
    let public = auth::Signer::new(&seed, auth::SharedSecret::new(Vec::new())).public();
    writeln!(std::io::stdout(), "{}", auth::key_text(&public))
        .map_err(|e| Failure::Generic(e.to_string()))
}

/// The public key of the tunnel called `tunnel`, a line.
///
/// # Errors
/// When it has none that can be used.
pub fn pubkey_of(config: &Config, tunnel: &str, root: &Path) -> Result<String, Failure> {
    let key = server_key::public_key(config, tunnel, root)?;
    let none = match config.hub() {
        Some(_) => "this server has no key yet: its first start makes it",
        None => "this tunnel has no key of its own",
    };
    key.map(|key| auth::key_text(&key) + "\n").ok_or_else(|| Failure::Generic(none.to_owned()))
}

fn new_pair() -> Result<(Zeroizing<String>, String), Failure> {
    loop {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        if let Some(pair) = auth::generate_seed(&seed) {
            return Ok(pair);
        }
    }
}

/// Prints a new key pair in base64: private seed and public key, one line each.
///
/// # Errors
/// When there is no randomness, or the output cannot be written.
pub fn keygen(labelled: bool) -> Result<(), Failure> {
    let (private, public) = new_pair()?;
    let [private_label, public_label] = match labelled {
        true => ["Private key (ed25519, 32 bytes): ", "Public  key (ed25519, 32 bytes): "],
        false => ["", ""],
    };
    writeln!(std::io::stdout(), "{private_label}{}\n{public_label}{public}", private.as_str())
        .map_err(|e| Failure::Generic(e.to_string()))
}

impl Settings {
    fn tunnel(&self) -> &crate::engine::config::TunnelConfig {
        &self.config.tunnel
    }
}
