//! The peers files of a server, and the files of secrets that they name.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::file;
use crate::engine::peers_file::SourceFile;

/// How much is read.
struct Limits {
    /// The most files of a directory.
    files: usize,
    /// Bytes of the longest file: some 80,000 peers.
    each: usize,
    /// Bytes of all files.
    all: usize,
}

const LIMITS: Limits = Limits { files: 10_000, each: 16 << 20, all: 64 << 20 };

/// The longest secret, in bytes. A longer file is the wrong one.
const MAX_SECRET: usize = 1 << 16;

/// Reads one peers file, or those of a directory, sorted by name: whatever ends in `.toml` and is not
/// hidden. A directory without any is an empty set.
///
/// # Errors
/// One line that names the file that cannot be read, is not UTF-8, or is one too many.
pub fn read(path: &Path) -> Result<Vec<SourceFile>, String> {
    read_within(&LIMITS, path)
}

fn read_within(limits: &Limits, path: &Path) -> Result<Vec<SourceFile>, String> {
    plain(path)?;
    let metadata = fs::metadata(path).map_err(|e| format!("{}: {e}", shown(path)))?;
    let paths = match metadata.is_dir() {
        true => listed(limits, path)?,
        false => vec![path.to_owned()],
    };
    let (mut files, mut left) = (Vec::with_capacity(paths.len()), limits.all);
    for path in paths {
        let file = read_file(limits, &path)?;
        left = left.checked_sub(file.text.len()).ok_or_else(|| {
            format!("{}: with it, all files have more than {} bytes", file.name, limits.all)
        })?;
        files.push(file);
    }
    Ok(files)
}

/// Reads the bytes of a file that a peer's `secret-file` names. What is said goes on after its path.
///
/// # Errors
/// When it cannot be read, is not a file, or is too long for a secret.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    file::contents(path, MAX_SECRET).map_err(|e| e.to_string())
}

fn listed(limits: &Limits, directory: &Path) -> Result<Vec<PathBuf>, String> {
    let say = |e: std::io::Error| format!("{}: {e}", shown(directory));
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(say)? {
        let name = entry.map_err(say)?.file_name();
        if is_peers_file(&name) {
            names.push(name);
        }
        if names.len() > limits.files {
            let most = limits.files;
            return Err(format!("{}: has more than {most} files", shown(directory)));
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn is_peers_file(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

fn read_file(limits: &Limits, path: &Path) -> Result<SourceFile, String> {
    let name = plain(path)?;
    let bytes = file::contents(path, limits.each).map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(good);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        format!("{name}:{line}: this is not UTF-8")
    })?;
    Ok(SourceFile { name, text })
}

/// A path as text, by which commands name the file and find it again.
///
/// # Errors
/// Text cannot say every path: one line says which has to be renamed.
pub fn plain(path: &Path) -> Result<String, String> {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => Ok(text.to_owned()),
        Some(_) => Err(format!("{}: this path has control characters: rename it", shown(path))),
        None => Err(format!("{}: this path is not UTF-8: rename it", shown(path))),
    }
}

/// A path in one line.
fn shown(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("ipipou-peers-{name}-{}", std::process::id());
            let directory = Directory(std::env::temp_dir().join(name));
            fs::create_dir_all(&directory.0).unwrap();
            directory
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }

        /// What is said, with `DIR` for the directory.
        fn error(&self, path: &Path) -> String {
            read(path).unwrap_err().replace(&self.0.display().to_string(), "DIR")
        }

        fn texts(&self) -> Vec<String> {
            let files = read(&self.0).unwrap();
            files.iter().map(|file| format!("{}: {}", file.name, file.text)).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_files_of_a_directory_are_sorted_and_hidden_ones_left_out() {
        let directory = Directory::new("sorted");
        assert!(directory.texts().is_empty());
        for (name, text) in
            [("20-b.toml", "b"), ("10-é.toml", "a"), (".toml", "x"), (".c.toml", "x")]
        {
            directory.write(name, text);
        }
        directory.write("30-c.toml~", "x");
        directory.write("README", "x");
        symlink(directory.0.join("20-b.toml"), directory.0.join("a.toml")).unwrap();
        let name = |name: &str| directory.0.join(name).display().to_string();
        let expected = [("10-é.toml", "a"), ("20-b.toml", "b"), ("a.toml", "b")]
            .map(|(file, text)| format!("{}: {text}", name(file)));
        assert_eq!(directory.texts(), expected);
    }

    #[test]
    fn one_file_is_read_whatever_its_name() {
        let directory = Directory::new("one");
        let path = directory.write(".peers", "text");
        let files = read(&path).unwrap();
        assert_eq!((files.len(), files[0].text.as_str()), (1, "text"));
        assert_eq!(files[0].name, path.display().to_string());
    }

    #[test]
    fn what_is_not_a_file_is_refused_in_one_line_and_not_waited_for() {
        let directory = Directory::new("bad");
        let missing = directory.0.join("x");
        assert_eq!(directory.error(&missing), "DIR/x: No such file or directory (os error 2)");
        assert_eq!(directory.error(Path::new("/dev/zero")), "/dev/zero: is not a file");
        let bad = directory.write("20.toml", b"\n\n\xff");
        assert_eq!(directory.error(&bad), "DIR/20.toml:3: this is not UTF-8");
        let pipe = directory.0.join("10.toml");
        let (end, _other) = std::io::pipe().unwrap();
        symlink(format!("/proc/self/fd/{}", end.as_raw_fd()), &pipe).unwrap();
        assert_eq!(directory.error(&directory.0), "DIR/10.toml: is not a file");
        assert_eq!(read_secret(&pipe), Err("is not a file".to_owned()));
        fs::remove_file(&pipe).unwrap();
        fs::create_dir(&pipe).unwrap();
        assert_eq!(directory.error(&directory.0), "DIR/10.toml: is not a file");
    }

    /// A command that changes a peer would write another file.
    #[test]
    fn a_path_that_is_not_text_is_reported() {
        let directory = Directory::new("plain");
        let control = directory.write("a\x1bb.toml", "");
        let said = "DIR/a?b.toml: this path has control characters: rename it";
        assert_eq!(directory.error(&directory.0), said);
        fs::remove_file(control).unwrap();
        let latin = OsStr::from_bytes(b"b\xfcro.toml");
        fs::write(directory.0.join(latin), "").unwrap();
        let said = "DIR/b\u{fffd}ro.toml: this path is not UTF-8: rename it";
        assert_eq!(directory.error(&directory.0), said);
        let said = "DIR/x?y: this path has control characters: rename it";
        assert_eq!(directory.error(&directory.0.join("x\ny")), said);
    }

    #[test]
    fn what_is_read_has_bounds() {
        let directory = Directory::new("bounds");
        let limits = Limits { files: 3, each: 10, all: 25 };
        let read = |path: &Path| {
            let read = read_within(&limits, path).map(|files| files.len());
            read.map_err(|error| error.replace(&directory.0.display().to_string(), "DIR"))
        };
        let said = |line: &str| Err(line.to_owned());
        let long = directory.write("1.toml", "01234567890");
        assert_eq!(read(&long), said("DIR/1.toml: has more than 10 bytes"));
        for (name, text) in
            [("1.toml", "0123456789"), ("2.toml", "0123456789"), ("3.toml", "01234")]
        {
            directory.write(name, text);
        }
        assert_eq!(read(&directory.0), Ok(3));
        directory.write("3.toml", "012345");
        let all = "DIR/3.toml: with it, all files have more than 25 bytes";
        assert_eq!(read(&directory.0), said(all));
        directory.write("4.toml", "");
        assert_eq!(read(&directory.0), said("DIR: has more than 3 files"));
    }

    #[test]
    fn a_secret_has_a_bound() {
        let directory = Directory::new("secret");
        let most = directory.write("most", "x".repeat(MAX_SECRET));
        assert_eq!(read_secret(&most).map(|secret| secret.len()), Ok(MAX_SECRET));
        let more = directory.write("more", "x".repeat(MAX_SECRET + 1));
        assert_eq!(read_secret(&more), Err("has more than 65536 bytes".to_owned()));
    }
}
