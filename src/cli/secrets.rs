//! Keys, secrets and tokens are given as values of options, or in files of their own, where `ps`
//! does not show them.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::conf_file::{contents, warning_if_open};
use super::options::auth::AuthOptions;
use super::value::{self, Seed, ValueError};
use crate::auth::{SharedSecret, Signer, Token, is_placeholder};

/// The longest secret that is read. A larger file is a device, or the wrong file.
const MAX_SIZE: u64 = 1 << 16;

/// Says what is wrong with such a file.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {}: {problem}", path.display())]
pub struct SecretFileError {
    option: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(
        "cannot be read: {0} (a service's keys stand in its .conf file, which systemd hands over)"
    )]
    NotAllowed(#[source] io::Error),
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    #[error("is larger than {} KiB: that is too long for a secret", MAX_SIZE >> 10)]
    TooBig,
    #[error("is empty")]
    Empty,
    #[error("the value {0}")]
    Value(#[from] ValueError),
    #[error("has more lines than the two of a key pair")]
    MoreThanAPair,
    #[error("the second line is not the public key of the first: give what `ipipou genkey` prints")]
    NotAPair,
}

/// The keys and secrets that only both ends of a tunnel know, whether it was given as a value or in a file.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// Our private key.
    pub key: Option<Seed>,
    /// The secret that is signed together with the time.
    pub shared: Option<SharedSecret>,
    pub token: Option<Token>,
}

impl Secrets {
    /// Takes the secrets that were given, and reads the files that hold the others. The parser lets
    /// only one option for each secret stand.
    ///
    /// # Errors
    /// When a file cannot be read, or holds no value of its option.
    pub fn read(
        options: &AuthOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Secrets, SecretFileError> {
        let key = match &options.auth_key_file {
            Some(path) => Some(value_in("--auth-key-file", path, seed, warnings)?),
            None => options.auth_key_b64.clone(),
        };
        let secret = |bytes: &[u8]| Ok(SharedSecret::new(bytes.to_vec()));
        let shared = match &options.auth_secret_file {
            Some(path) => Some(value_in("--auth-secret-file", path, secret, warnings)?),
            None => options.auth_secret.clone(),
        };
        let token = |bytes: &[u8]| Ok(value::token_of(bytes.to_vec())?);
        let token = match &options.auth_token_file {
            Some(path) => Some(value_in("--auth-token-file", path, token, warnings)?),
            None => options.auth_token.clone().or_else(|| options.auth_token_b64.clone()),
        };
        Ok(Secrets { key, shared, token })
    }
}

fn value_in<T>(
    option: &'static str,
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, Problem>,
    warnings: &mut Vec<String>,
) -> Result<T, SecretFileError> {
    bytes(path, warnings).and_then(|bytes| parse(&bytes)).map_err(|problem| SecretFileError {
        option,
        path: path.to_owned(),
        problem,
    })
}

/// Reads a file, without one newline at its end.
fn bytes(path: &Path, warnings: &mut Vec<String>) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let (mut bytes, open) = contents(path, MAX_SIZE)
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Problem::NotAllowed(error),
            _ => Problem::Unreadable(error),
        })?
        .ok_or(Problem::TooBig)?;
    // As in a `.conf` file, whose lines may end in both.
    let line = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let length = line.map_or(bytes.len(), <[u8]>::len);
    bytes.truncate(length);
    if bytes.is_empty() {
        return Err(Problem::Empty);
    }
    if std::str::from_utf8(&bytes).is_ok_and(is_placeholder) {
        return Err(ValueError::Placeholder.into());
    }
    // A service has a user of its own, for whom root's files are closed then.
    let how = ", if root runs this; of a service, put the secret into its .conf file first";
    warnings.extend(warning_if_open(path, open).map(|warning| warning + how));
    Ok(bytes)
}

/// Parses a private key, alone or with its public key in the next line.
fn seed(bytes: &[u8]) -> Result<Seed, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| ValueError::NotBase64)?.trim();
    let mut lines = text.lines();
    let seed = value::seed(lines.next().unwrap_or_default())?;
    if let Some(public) = lines.next() {
        let public = value::public_key(public).map_err(|_| Problem::NotAPair)?;
        let signer = Signer::new(seed.as_bytes(), SharedSecret::new(Vec::new()));
        if signer.public() != *public.as_bytes() {
            return Err(Problem::NotAPair);
        }
    }
    match lines.next() {
        Some(_) => Err(Problem::MoreThanAPair),
        None => Ok(seed),
    }
}
