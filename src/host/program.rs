//! Runs other programs: `nft`, `modprobe`, and what manages the host's name servers.

#![allow(clippy::disallowed_methods)] // the room that owns starting programs

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

/// Where these programs are; a shell from plain `su` does not look there.
const SYSTEM_DIRECTORIES: &str = "/usr/sbin:/sbin";

/// Runs a program with `input` on its standard input and waits for it.
///
/// # Errors
/// When it cannot be started; not when it fails.
pub fn run(name: &str, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
    let mut child = Command::new(name)
        .args(arguments)
        .env("PATH", path())
        .env_remove("NOTIFY_SOCKET") // or resolvectl would tell systemd that the service is ready
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // The program ended before it had read all; its exit status and output tell why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    child.wait_with_output()
}

/// Runs a program that has to succeed. `of`: the package it is from, for the message.
///
/// # Errors
/// When it cannot be started; otherwise what it said.
pub fn run_well(name: &str, of: &str, arguments: &[&str], input: &[u8]) -> io::Result<()> {
    let output = run(name, arguments, input)
        .map_err(|e| io::Error::new(e.kind(), format!("`{name}`{of} cannot be run: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("it failed without a word");
    Err(io::Error::other(format!("{name} {}: {said}", arguments.join(" "))))
}

/// Whether there is a program of this name.
pub fn is_installed(name: &str) -> bool {
    std::env::split_paths(&path()).any(|directory| directory.join(name).is_file())
}

fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(OsString::from(SYSTEM_DIRECTORIES));
    path
}
