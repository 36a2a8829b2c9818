//! Running the two programs we cannot do without: `nft` and `modprobe`.

#![allow(clippy::disallowed_methods)] // the room that owns starting programs

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

/// Where they are; a shell from plain `su` does not look there.
const SYSTEM_DIRECTORIES: &str = "/usr/sbin:/sbin";

/// Runs a program with `input` on its standard input and waits for it.
///
/// # Errors
/// When it cannot be started; not when it fails.
pub fn run(name: &str, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(OsString::from(SYSTEM_DIRECTORIES));
    let mut child = Command::new(name)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // It ended before it read all; its exit status and words tell why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    child.wait_with_output()
}
