//! The secrets of peers, written down or in files of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::fault::{Mistake, quoted};
use super::field::Field;
use crate::auth::{SharedSecret, Token, is_placeholder};

/// Reads the files that hold secrets, each once.
pub struct Secrets<'a> {
    read: &'a dyn Fn(&Path) -> Result<Vec<u8>, String>,
    known: BTreeMap<PathBuf, Result<SharedSecret, Mistake>>,
}

impl<'a> Secrets<'a> {
    pub fn new(read: &'a dyn Fn(&Path) -> Result<Vec<u8>, String>) -> Self {
        Secrets { read, known: BTreeMap::new() }
    }

    /// The secret in the file of a `secret-file`.
    pub fn in_file(&mut self, path: &str) -> Result<SharedSecret, Mistake> {
        let read = self.read;
        match self.known.get(Path::new(path)) {
            Some(known) => known.clone(),
            None => {
                let secret = bytes_in(Field::SecretFile, path, read).map(SharedSecret::new);
                self.known.insert(path.into(), secret.clone());
                secret
            }
        }
    }

    /// The token in the file of a `token-file`.
    pub fn token_in(&mut self, path: &str) -> Result<Token, Mistake> {
        let bytes = bytes_in(Field::TokenFile, path, self.read)?;
        Token::new(bytes).map_err(|why| {
            let what = format!("`token-file` {}: {why}", quoted(path));
            Mistake::new(what, "write the token of the old server into it")
        })
    }
}

/// What stands in the file that a field names.
fn bytes_in(
    field: Field,
    path: &str,
    read: &dyn Fn(&Path) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, Mistake> {
    let say = |what: &str, todo: &str| {
        Mistake::new(format!("`{}` {}{what}", field.name(), quoted(path)), todo)
    };
    if !Path::new(path).is_absolute() {
        return Err(say(" is not an absolute path", "write the whole path, from / on"));
    }
    let mut bytes = read(Path::new(path))
        .map_err(|error| say(&format!(": {error}"), "mend that, or name another file"))?;
    // As in files of --auth-secret-file and --auth-token-file: one newline at the end does not belong to it.
    let line = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let length = line.map_or(bytes.len(), <[u8]>::len);
    bytes.truncate(length);
    if bytes.is_empty() {
        return Err(say(" is empty", "write it into the file"));
    }
    if str::from_utf8(&bytes).is_ok_and(is_placeholder) {
        return Err(say(" holds a placeholder", "write it into the file"));
    }
    Ok(bytes)
}

/// Takes a secret as it is written, with all its blanks.
pub fn written(text: &str) -> Result<SharedSecret, Mistake> {
    match is_placeholder(text) {
        true => Err(Mistake::new("`secret` is a placeholder", "put the secret in its place")),
        false => Ok(SharedSecret::new(text.as_bytes().to_vec())),
    }
}
