//! Reads `.conf` files.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use zeroize::Zeroizing;

use super::conf::{self, ConfError, ConfErrors};
use super::{options, places};

/// The largest file that is read. A larger one is not a list of options, but a device, or the wrong
/// file.
const MAX_SIZE: u64 = 1 << 20;

/// The arguments of one file, and a warning about it.
#[derive(Debug)]
pub struct ConfFile {
    pub arguments: Vec<OsString>,
    path: PathBuf,
    /// The line of each argument, from 1.
    lines: Vec<usize>,
    pub warning: Option<String>,
}

/// # Errors
/// When the file cannot be read, is too big, or has a line that is not an option.
pub fn read(name: &Path, command: &mut clap::Command) -> Result<ConfFile, ConfErrors> {
    let path = places::conf_path(name);
    let fail = |problem| ConfErrors(vec![ConfError { file: path.clone(), line: None, problem }]);
    let (text, readable_by_all) = contents(&path, MAX_SIZE)
        .map_err(|error| fail(format!("cannot be read: {error}{}", shorter(name, &error))))?
        .ok_or_else(|| fail("is larger than 1 MiB: that is not a configuration file".to_owned()))?;
    let (lines, arguments): (Vec<_>, Vec<_>) =
        conf::numbered(&text, &path, command)?.into_iter().unzip();
    let secret = arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        let attributes = options::attributes(name.trim_start_matches('-'));
        attributes.is_some_and(|option| option.secrecy.is_secret(value.as_bytes()))
    });
    let warning = warning_if_open(&path, secret && readable_by_all);
    Ok(ConfFile { arguments, path, lines, warning })
}

impl ConfFile {
    /// Where an option stands last, as the beginning of a message about it.
    pub fn place(&self, option: &str) -> Option<String> {
        Some(format!("{}:{}", self.path.display(), self.line(option)?))
    }

    /// The line in which an option stands last, from 1. `-v`, which has no long name, stands in none.
    pub fn line(&self, option: &str) -> Option<usize> {
        let is_option = |argument: &OsString| {
            let argument = argument.as_encoded_bytes();
            let name = argument.split(|&byte| byte == b'=').next().unwrap_or_default();
            name.strip_prefix(b"--") == Some(option.as_bytes())
        };
        let at = self.arguments.iter().rposition(is_option)?;
        self.lines.get(at).copied()
    }
}

/// Returns a hint for users who gave the file's whole name instead of the part before `.conf`.
fn shorter(name: &Path, error: &io::Error) -> String {
    let bare = name.to_str().and_then(|name| name.strip_suffix(".conf"));
    match bare
        .filter(|_| error.kind() == io::ErrorKind::NotFound && places::conf_path(name) != name)
    {
        Some(bare) => format!("; did you mean {bare}?"),
        None => String::new(),
    }
}

/// Returns the bytes of a file, which may hold secrets, and whether every user can read them.
/// Returns nothing if there are more than `max`. Waits for nobody to write, unless a shell does, which has
/// made the pipe for this (`<(…)`), which has no name (pipefs_dname in fs/pipe.c).
pub fn contents(path: &Path, max: u64) -> io::Result<Option<(Zeroizing<Vec<u8>>, bool)>> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_fifo() {
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        if !name.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") {
            return Err(io::Error::other("is a named pipe, not a file"));
        }
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    }
    let mode = metadata.permissions().mode();
    let mut text = Zeroizing::new(Vec::new());
    file.take(max + 1).read_to_end(&mut text)?;
    let fits = text.len() as u64 <= max;
    Ok(fits.then_some((text, mode & 0o004 != 0)))
}

/// Returns a warning about a secret that every user can read.
pub fn warning_if_open(path: &Path, open: bool) -> Option<String> {
    let path = path.display();
    open.then(|| format!("{path} holds a secret and every user can read it: chmod o-r {path}"))
}
