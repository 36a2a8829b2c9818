//! Runs other programs: `nft`, `modprobe`, and what manages the host's name servers.
//!
//! The daemon's loop stands still meanwhile, so each program has a limited time to end in. Then it is
//! killed, with the programs that it started, and is not started again for a while: a program that
//! hangs would otherwise take nearly all of the loop's time.

#![allow(clippy::disallowed_methods)] // the room that owns starting programs

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpgid,
};

/// Where these programs are; a shell from plain `su` does not look there.
const SYSTEM_DIRECTORIES: &str = "/usr/sbin:/sbin";
/// How long a program may take. All of them take a fraction of a second on an idle host, and some seconds on one
/// that is starved; keepalives are due every 25 seconds.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a program that was killed for that is not started again: twice as long each time, up to a limit.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long one that was killed is waited for: in the kernel, a signal may have to wait.
const KILLED: Duration = Duration::from_secs(1);
/// How often the end of a program that was killed is asked for, and of any where the kernel cannot tell it
/// (before 5.3).
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why a program did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{0}")]
    NotRun(#[source] io::Error),
    #[error(
        "`{name}` did not end within {} seconds and was stopped: run it by hand to see what it waits for; \
         it is not started again for a while",
        LIMIT.as_secs()
    )]
    Hung { name: String },
}

/// Why a program has not done what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// It said so, or there is no such program that this process may run.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// It was killed, or it could not be started for now: nobody knows what it has done.
    #[error("{0}")]
    Unknown(#[source] io::Error),
}

/// What is unknown has the kind `TimedOut`.
impl From<NotDone> for io::Error {
    fn from(why: NotDone) -> Self {
        match why {
            NotDone::Refused(error) => error,
            NotDone::Unknown(error) => io::Error::new(ErrorKind::TimedOut, error),
        }
    }
}

/// The programs that were killed because they did not end.
static PAUSED: Mutex<BTreeMap<String, Paused>> = Mutex::new(BTreeMap::new());

/// A program that is not started again for a while, nor while the kernel keeps the last one from ending: there
/// would be ever more of them.
struct Paused {
    until: Instant,
    pause: Duration,
    /// The last one and what it started, if some of that has not ended.
    killed: Option<Pid>,
}

/// Runs a program with `input` on its standard input and waits for it, but not for ever.
///
/// # Errors
/// When it cannot be started, or does not end; not when it fails.
pub fn run(name: &str, arguments: &[&str], input: &[u8]) -> Result<Output, ProgramError> {
    run_within(LIMIT, name, arguments, input)
}

fn run_within(
    limit: Duration,
    name: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<Output, ProgramError> {
    let hung = || ProgramError::Hung { name: name.to_owned() };
    if is_paused(name) {
        return Err(hung());
    }
    let begin = Instant::now();
    let child = Command::new(name)
        .args(arguments)
        .env("PATH", path())
        .env_remove("NOTIFY_SOCKET") // or resolvectl would tell systemd that the service is ready
        .process_group(0) // which is killed as a whole
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ProgramError::NotRun)?;
    let mut running = Running::from(child);
    match running.output(input, begin + limit) {
        Ok(Some(output)) => {
            paused().remove(name);
            Ok(output)
        }
        Ok(None) => {
            pause(name, |last| (2 * last).clamp(PAUSE, LONGEST_PAUSE), running);
            Err(hung())
        }
        Err(error) => {
            pause(name, |_| Duration::ZERO, running);
            Err(ProgramError::NotRun(error))
        }
    }
}

fn paused() -> MutexGuard<'static, BTreeMap<String, Paused>> {
    PAUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_paused(name: &str) -> bool {
    let mut all = paused();
    let Some(Paused { until, killed, .. }) = all.get_mut(name) else { return false };
    if Instant::now() < *until || killed.is_some_and(|group| !has_ended(group)) {
        return true;
    }
    *killed = None; // the number of what has ended is somebody else's soon
    false
}

/// Kills a program, and does not start it again for so long, which depends on the last time.
fn pause(name: &str, pause: impl FnOnce(Duration) -> Duration, running: Running) {
    let killed = running.kill(Instant::now() + KILLED);
    let mut all = paused();
    let pause = pause(all.get(name).map_or(Duration::ZERO, |last| last.pause));
    all.insert(name.to_owned(), Paused { until: Instant::now() + pause, pause, killed });
}

/// Whether all processes of a group have ended that this process has to wait for: the program, and as process
/// 1 of a container also what it started, so that no zombie stays.
fn has_ended(group: Pid) -> bool {
    loop {
        match waitpgid(group, WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true, // there is none
        }
    }
}

/// Lets each program that did not end be started once more at once, at the end of a tunnel: what it does not take
/// back then would stay. One that the kernel keeps from ending is not started beside the last one.
pub fn end_pauses() {
    let mut all = paused();
    all.values_mut().for_each(|paused| paused.until = Instant::now());
}

/// Runs a program that has to succeed. `of`: the package it is from, for the message.
///
/// # Errors
/// What it said, or why it could not be started; apart from that, whether it is known what it has done.
pub fn run_well(name: &str, of: &str, arguments: &[&str], input: &[u8]) -> Result<(), NotDone> {
    let output = run(name, arguments, input).map_err(|error| match error {
        ProgramError::NotRun(e) => {
            let is_lasting = matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
            let e = io::Error::new(e.kind(), format!("`{name}`{of} cannot be run: {e}"));
            if is_lasting { NotDone::Refused(e) } else { NotDone::Unknown(e) }
        }
        ProgramError::Hung { .. } => NotDone::Unknown(io::Error::new(ErrorKind::TimedOut, error)),
    })?;
    let asked = || format!("{name} {}", arguments.join(" "));
    match output.status.code() {
        Some(0) => Ok(()),
        Some(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it failed without a word");
            Err(NotDone::Refused(io::Error::other(format!("{}: {said}", asked()))))
        }
        // Somebody killed it.
        None => {
            let text = format!("{}: it ended by {}", asked(), output.status);
            Err(NotDone::Unknown(io::Error::other(text)))
        }
    }
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

/// A program that was started.
struct Running {
    child: Child,
    /// Becomes readable when the program ends.
    end: Option<OwnedFd>,
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Running { child, end }
    }
}

impl Running {
    /// Hands over the input and collects what the program says until it ends; `None`: it has not ended
    /// until then. What it started may live on, with its output open.
    fn output(&mut self, mut input: &[u8], until: Instant) -> io::Result<Option<Output>> {
        let mut stdin = self.child.stdin.take();
        let mut stdout = Said::of(self.child.stdout.take());
        let mut stderr = Said::of(self.child.stderr.take());
        let pipes = [stdin.as_ref().map(AsFd::as_fd), stdout.fd(), stderr.fd()];
        for pipe in pipes.into_iter().flatten() {
            ioctl_fionbio(pipe, true)?;
        }
        loop {
            feed(&mut stdin, &mut input)?;
            // Whether it has ended is asked first: then all that it has said is in the pipes.
            let status = self.child.try_wait()?;
            stdout.read()?;
            stderr.read()?;
            if let Some(status) = status {
                return Ok(Some(Output { status, stdout: stdout.bytes, stderr: stderr.bytes }));
            }
            let says = [stdout.fd(), stderr.fd()].map(|fd| (fd, PollFlags::IN));
            let takes = (stdin.as_ref().map(AsFd::as_fd), PollFlags::OUT);
            if !self.wait(says.into_iter().chain([takes]), until)? {
                return Ok(None);
            }
        }
    }

    /// Waits for the end, or for one of the pipes; false when the time is over.
    fn wait<'a>(
        &'a self,
        pipes: impl Iterator<Item = (Option<BorrowedFd<'a>>, PollFlags)>,
        until: Instant,
    ) -> io::Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let end = (self.end.as_ref().map(AsFd::as_fd), PollFlags::IN);
        let mut all: Vec<_> = pipes
            .chain([end])
            .filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd(fd?, flags)))
            .collect();
        let longest = if self.end.is_some() { left } else { left.min(LOOK_EVERY) };
        let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
        match poll(&mut all, Some(&longest)) {
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Kills the program and what it started, except what has left its process group, and waits for the end until
    /// then. Returns the group if some of it has not ended.
    fn kill(self, until: Instant) -> Option<Pid> {
        // It has not been waited for, so the number is still its own.
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        while !has_ended(group) {
            if Instant::now() >= until {
                return Some(group);
            }
            thread::sleep(LOOK_EVERY);
        }
        None
    }
}

/// What a program has written to one of its pipes.
struct Said<R> {
    pipe: Option<R>,
    bytes: Vec<u8>,
}

impl<R: Read + AsFd> Said<R> {
    fn of(pipe: Option<R>) -> Self {
        Said { pipe, bytes: Vec::new() }
    }

    /// The pipe, unless it has ended.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there, as much as a pipe holds: more may come as fast as it is read.
    fn read(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &mut self.pipe else { return Ok(()) };
            match pipe.read(&mut part) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.bytes.extend(part.iter().take(length)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Writes as much of the input as the pipe takes, and closes it after the end.
fn feed(stdin: &mut Option<ChildStdin>, input: &mut &[u8]) -> io::Result<()> {
    while let Some(pipe) = stdin.as_mut().filter(|_| !input.is_empty()) {
        match pipe.write(input) {
            Ok(length) => *input = input.get(length..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The program ended before it had read all; its exit status and output tell why.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
            Err(e) => return Err(e),
        }
    }
    *stdin = None;
    Ok(())
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
