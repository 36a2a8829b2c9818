//! The program `nft`: tables of many chains and rules are handed to it as JSON (libnftables-json(5)).
//! The crate `nftables` has the types; its faults are worked around in
//! [`expression`](super::expression).

use std::io;

use super::program::{self, ProgramError};

/// Why `nft` or the kernel refused our rules.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("`nft` cannot be run ({0}): install the package nftables")]
    NoProgram(#[source] io::Error),
    /// `nft` did not end.
    #[error(transparent)]
    Hung(ProgramError),
    #[error("nft: {0}")]
    Refused(String),
    #[error("nftables over netlink: {0}")]
    Netlink(#[from] io::Error),
}

/// Runs `nft` on JSON. The crate's own function for this does not return what `nft` said.
/// # Errors
/// When it cannot be run, or refuses.
pub fn nft(arguments: &[&str], input: &str) -> Result<(), NftError> {
    said(&[&["-j"], arguments].concat(), input).map(drop)
}

/// Runs `nft` on its own language, for what its JSON cannot say.
///
/// # Errors
/// When it cannot be run, or refuses.
pub fn nft_in_words(input: &str) -> Result<(), NftError> {
    said(&["-f", "-"], input).map(drop)
}

/// Lets `nft` and the kernel check the same, and changes nothing.
///
/// # Errors
/// When it cannot be run, or refuses.
pub fn check_in_words(input: &str) -> Result<(), NftError> {
    said(&["-c", "-f", "-"], input).map(drop)
}

/// What `nft` says of a table of the family `ip`, in its own language, all in numbers.
///
/// # Errors
/// When it cannot be run, or refuses.
pub fn listed(table: &str) -> Result<String, NftError> {
    said(&["-n", "list", "table", "ip", table], "")
}

fn said(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let output = program::run("nft", arguments, input.as_bytes()).map_err(|error| match error {
        ProgramError::NotRun(error) => NftError::NoProgram(error),
        ProgramError::Hung { .. } => NftError::Hung(error),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // The first line names the fault; the others repeat the input.
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NftError::Refused(said.lines().next().unwrap_or("it failed without a word").to_owned()))
}
