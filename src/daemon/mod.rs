//! The daemon: checks first, then one loop that passes events to the engine and carries out its
//! actions.

mod control;
mod debounce;
mod driver;
mod failure;
mod locks;
mod memory;
mod memory_log;
mod preflight;
mod process;
mod reauth;
mod record;
mod signals;
mod status;
mod tunnel;

use std::io::Write as _;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::auth;
use crate::engine::config::Config;
pub use crate::host::{Directories, close_memory};
pub use control::{Style, show};
pub use failure::{Exit, Failure};
pub use reauth::reauthenticate;
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

/// Prints a new key pair in base64: private seed and public key, one line each.
///
/// # Errors
/// When there is no randomness, or the output cannot be written.
pub fn keygen(labelled: bool) -> Result<(), Failure> {
    let (private, public) = loop {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        if let Some(pair) = auth::generate_seed(&seed) {
            break pair;
        }
    };
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
