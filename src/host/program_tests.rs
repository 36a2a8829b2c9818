use std::fs;
use std::path::Path;

use rustix::process::{getpid, set_child_subreaper};

use super::*;

/// Long enough for a program that ends, however busy the machine is.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

/// Runs a script under a name of its own: a program that hangs is not started again.
fn script(name: &str, limit: Duration, text: &str, input: &[u8]) -> Result<Output, ProgramError> {
    let shell = std::env::temp_dir().join(format!("ipipou-{}-{name}", std::process::id()));
    std::os::unix::fs::symlink("/bin/sh", &shell).unwrap();
    let result = run_within(limit, shell.to_str().unwrap(), &["-c", text], input);
    fs::remove_file(shell).unwrap();
    result
}

/// Starts a script, as the daemon starts a program.
fn start(text: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", text]).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Whether a process is there, and no zombie.
fn is_there(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn more_than_a_pipe_holds_goes_in_and_comes_out() {
    let input = vec![b'x'; 1 << 20];
    let output = script("cat", LONG, "cat; echo said >&2; exit 3", &input).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    assert_eq!(output.stderr, b"said\n");
}

#[test]
fn a_program_that_reads_nothing_is_judged_by_its_end() {
    let output = script("deaf", LONG, "exit 4", &vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_program_that_hangs_is_killed_with_what_it_started() {
    // As process 1 of a container, this process has to wait for what has lost its parent.
    set_child_subreaper(Some(getpid())).unwrap();
    let mut running = Running::from(start("sleep 1000 & echo $$ $!; wait"));
    let mut line = String::new();
    let stdout = running.child.stdout.as_mut().unwrap();
    io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
    let (own, started) = line.trim().split_once(' ').unwrap();
    assert!(is_there(own) && is_there(started));
    assert!(running.output(b"", Instant::now() + SHORT).unwrap().is_none());
    assert_eq!(running.kill(Instant::now() + LONG), None);
    for pid in [own, started] {
        assert!(!Path::new("/proc").join(pid).exists(), "it was not waited for");
    }
    set_child_subreaper(None).unwrap();
}

#[test]
fn a_program_that_cannot_be_killed_is_not_started_again() {
    let name = "/bin/sh";
    let running = Running::from(start("exec sleep 1000"));
    let group = Pid::from_child(&running.child);
    let paused = Paused { until: Instant::now(), pause: PAUSE, killed: Some(group) };
    PAUSED.lock().unwrap().insert(name.to_owned(), paused);
    assert!(is_paused(name));
    assert_eq!(running.kill(Instant::now() + LONG), None);
    assert!(!is_paused(name));
    assert!(PAUSED.lock().unwrap()[name].killed.is_none());
}

#[test]
fn a_program_that_hung_does_not_hold_the_loop_up_again_at_once() {
    let text = "exec sleep 1000";
    let said = script("again", SHORT, text, b"").unwrap_err().to_string();
    assert!(
        said.contains("again` did not end within 20 seconds and was stopped: run it"),
        "{said}"
    );
    let begin = Instant::now();
    assert!(matches!(script("again", LONG, text, b""), Err(ProgramError::Hung { .. })));
    assert!(begin.elapsed() < LONG / 2);
    assert!(script("other", LONG, "exit 0", b"").is_ok());
    // At the end of a tunnel it is tried once more. Each time it is left alone for longer, until it has ended.
    let pause =
        || PAUSED.lock().unwrap().iter().find(|(n, _)| n.ends_with("again")).unwrap().1.pause;
    assert_eq!(pause(), PAUSE);
    end_pauses();
    assert!(matches!(script("again", SHORT, text, b""), Err(ProgramError::Hung { .. })));
    assert_eq!(pause(), 2 * PAUSE);
    assert!(matches!(script("again", LONG, "exit 0", b""), Err(ProgramError::Hung { .. })));
    end_pauses();
    assert!(script("again", LONG, "exit 0", b"").is_ok());
    assert!(matches!(script("again", SHORT, text, b""), Err(ProgramError::Hung { .. })));
    assert_eq!(pause(), PAUSE);
}

#[test]
fn only_a_program_that_ends_by_itself_has_answered() {
    let shell = |text: &str| run_well("sh", "", &["-c", text], b"");
    assert!(shell("exit 0").is_ok());
    let Err(NotDone::Refused(error)) = shell("echo no >&2; echo more >&2; exit 1") else {
        panic!()
    };
    assert!(error.to_string().ends_with("exit 1: no"), "{error}");
    let Err(NotDone::Unknown(error)) = shell("kill -9 $$") else { panic!() };
    assert!(error.to_string().ends_with("signal: 9 (SIGKILL)"), "{error}");
    let missing = run_well("ipipou-no-such-program", " of nobody", &[], b"");
    assert!(matches!(missing, Err(NotDone::Refused(e)) if e.kind() == ErrorKind::NotFound));
}

#[test]
fn what_a_program_leaves_running_is_not_waited_for() {
    let pid = std::env::temp_dir().join(format!("ipipou-left-{}", std::process::id()));
    let text = format!("sleep 1000 & echo $! >{}; echo said", pid.display());
    let begin = Instant::now();
    let output = script("leaves", LONG, &text, b"").unwrap();
    assert_eq!(output.stdout, b"said\n");
    assert!(begin.elapsed() < LONG / 2);
    let left = fs::read_to_string(&pid).unwrap();
    fs::remove_file(&pid).unwrap();
    assert!(is_there(left.trim()));
    let left = Pid::from_raw(left.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(left, Signal::KILL).unwrap();
}

#[test]
fn a_kernel_that_does_not_tell_the_end_is_asked_for_it() {
    let mut running = Running { child: start("exec >&- 2>&-; exit 5"), end: None };
    let output = running.output(b"", Instant::now() + LONG).unwrap().unwrap();
    assert_eq!(output.status.code(), Some(5));
}
