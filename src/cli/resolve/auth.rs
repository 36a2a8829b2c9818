//! The authentication options: what a client proves itself with, what a server demands and answers.

use std::net::IpAddr;

use super::error::UsageError;
use super::peers::only_with;
use crate::auth::{
    Credential, Policy, Proof, SharedSecret, Signer, Token, Verifier, is_public_key, key_text,
};
use crate::cli::options::Options;
use crate::cli::value::{Seed, ValueError, unless_zero};
use crate::engine::config::Reply;

/// Known to everybody, so no secret; the first version of `ipipou` has it too.
const DEFAULT_SECRET: &str = "netprickle.com";
/// What fits in one packet on any path: RFC 791's 576 bytes without IP and UDP header.
const SAFE_TOKEN: usize = 548;

/// The options of secrets in files, which are newer than the first version, are refused where they
/// cannot matter; what it took in silence is warned about.
///
/// # Errors
/// When such an option would be passed over.
pub fn check_files(options: &Options) -> Result<(), UsageError> {
    let Options { server, reply_on_auth_ok, auth_remote_pubkey_b64: remote, .. } = options;
    let key_file = [("--auth-key-file", options.auth_key_file.is_some())];
    if *server && remote.is_none() {
        only_with("--auth-remote-pubkey-b64", key_file)?;
    }
    if *server && !reply_on_auth_ok {
        only_with("--reply-on-auth-ok", key_file)?;
    }
    let secret_file = [("--auth-secret-file", options.auth_secret_file.is_some())];
    match (server, &options.auth_key_b64, remote) {
        (true, _, None) => only_with("--auth-remote-pubkey-b64", secret_file),
        (false, None, _) => only_with("--auth-key-file", secret_file),
        (true, _, Some(_)) | (false, Some(_), _) => Ok(()),
    }
}

/// What a client sends. A token goes before a key, as in the first version: the other end may be
/// one, and has both too.
pub fn credential(options: &Options, warnings: &mut Vec<String>) -> Credential {
    if let Some(token) = token(options) {
        warn_of_token(token, warnings);
        if options.auth_key_b64.is_some() {
            warnings.push(TOKEN_BEFORE_KEY.to_owned());
        }
        return Credential::Token(token.clone());
    }
    match &options.auth_key_b64 {
        Some(seed) => {
            let signer = Signer::new(seed.as_bytes(), shared_secret(options, warnings));
            warn_of_public_key(seed, &signer, warnings);
            Credential::Key(signer)
        }
        None => {
            warnings.push(
                "neither a key nor a token: only a server that asks for nothing takes our packets"
                    .to_owned(),
            );
            Credential::Empty
        }
    }
}

/// What a server demands.
pub fn policy(
    options: &Options,
    remote_ip: Option<IpAddr>,
    remote_port: Option<u16>,
    warnings: &mut Vec<String>,
) -> Result<Policy, UsageError> {
    let proof = if let Some(token) = token(options) {
        warn_of_token(token, warnings);
        if options.auth_remote_pubkey_b64.is_some() {
            warnings.push(TOKEN_BEFORE_KEY.to_owned());
        }
        Proof::Token(token.clone())
    } else if let Some(public) = &options.auth_remote_pubkey_b64 {
        let discrepancy = unless_zero(options.auth_max_time_discrepancy);
        let secret = shared_secret(options, warnings);
        let verifier = Verifier::new(public.as_bytes(), secret, discrepancy)
            .map_err(|_| UsageError::RemoteKey(ValueError::NotAPublicKey))?;
        Proof::Key(verifier)
    } else {
        warn_of_no_proof(options.peers.learn, remote_ip, warnings);
        Proof::Nothing
    };
    Ok(Policy { remote_ip, remote_port, proof })
}

/// What a server answers, and only to who proved something: else everybody could have it send
/// packets to others. To sign it takes both keys: without the client's it does not use keys.
pub fn reply(options: &Options, policy: &Policy, warnings: &mut Vec<String>) -> Reply {
    let proves_nothing = matches!(policy.proof, Proof::Nothing) && policy.remote_ip.is_none();
    let unsigned = match options.reply_on_auth_ok {
        true if proves_nothing => {
            warnings.push(
                "--reply-on-auth-ok: nobody is answered, as no key, token or address is asked for"
                    .to_owned(),
            );
            Reply::Silent
        }
        true => Reply::Reversed,
        false => Reply::Silent,
    };
    match (&options.auth_key_b64, &options.auth_remote_pubkey_b64) {
        (Some(own), Some(remote)) => {
            // The secret has been warned about where the client's key was.
            let signer = Signer::new(own.as_bytes(), shared_secret(options, &mut Vec::new()));
            warn_of_public_key(own, &signer, warnings);
            if signer.public() == *remote.as_bytes() {
                warnings.push(
                    "--auth-remote-pubkey-b64 belongs to our own --auth-key-b64: give every end \
                     its own key"
                        .to_owned(),
                );
            }
            if options.reply_on_auth_ok { Reply::Signed(signer) } else { Reply::Silent }
        }
        (Some(_), None) => {
            warnings.push(
                "--auth-key-b64: on a server it signs replies, and needs --auth-remote-pubkey-b64"
                    .to_owned(),
            );
            unsigned
        }
        (None, _) => unsigned,
    }
}

/// Any 32 bytes are a private key, those of a public one too. The program's own private keys cannot
/// be mistaken for public ones; of older keys one in sixteen can.
fn warn_of_public_key(seed: &Seed, signer: &Signer, warnings: &mut Vec<String>) {
    if is_public_key(seed.as_bytes()) {
        warnings.push(format!(
            "--auth-key-b64 looks like a public key: give the first line of --auth-keygen. (One old \
             private key in 16 looks so, too: it is right if the other end has {})",
            key_text(&signer.public())
        ));
    }
}

const TOKEN_BEFORE_KEY: &str =
    "both a token and a key: the token is used, leave it out at both ends to use the keys";

/// The parser lets only the last of the two options stand.
fn token(options: &Options) -> Option<&Token> {
    options.auth_token.as_ref().or(options.auth_token_b64.as_ref())
}

fn shared_secret(options: &Options, warnings: &mut Vec<String>) -> SharedSecret {
    let Some(secret) = &options.auth_secret else {
        warnings.push(
            "--auth-secret is the default, which everybody knows: give both ends another one"
                .to_owned(),
        );
        return SharedSecret::new(DEFAULT_SECRET.into());
    };
    let bytes = secret.as_bytes();
    if bytes.is_empty() || bytes == DEFAULT_SECRET.as_bytes() {
        warnings.push("--auth-secret is no secret: give both ends another one".to_owned());
    }
    warn_of_ends("--auth-secret", bytes, warnings);
    secret.clone()
}

fn warn_of_token(token: &Token, warnings: &mut Vec<String>) {
    warnings.push(
        "--auth-token: whoever sees the packet can send it again and take the tunnel; use keys"
            .to_owned(),
    );
    let bytes = token.as_bytes();
    if bytes.len() > SAFE_TOKEN {
        warnings.push(format!(
            "--auth-token has {} bytes: more than {SAFE_TOKEN} may not fit in one packet",
            bytes.len()
        ));
    }
    warn_of_ends("--auth-token", bytes, warnings);
}

/// Says what is easily thought to be no part of a value. It is: the other end has the same bytes.
fn warn_of_ends(option: &str, bytes: &[u8], warnings: &mut Vec<String>) {
    let quotes =
        |quote: u8| bytes.len() > 1 && bytes.starts_with(&[quote]) && bytes.ends_with(&[quote]);
    let comment = bytes.windows(2).any(|pair| matches!(pair, b" #" | b"\t#"));
    for (is_so, what) in [
        (bytes.trim_ascii().len() != bytes.len(), "begins or ends with a blank, which is"),
        (quotes(b'"') || quotes(b'\''), "begins and ends with a quote; the quotes are"),
        (comment, "has a # behind a blank; this is no comment, it is"),
    ] {
        if is_so {
            warnings.push(format!("{option} {what} part of it"));
        }
    }
}

fn warn_of_no_proof(learn: bool, remote_ip: Option<IpAddr>, warnings: &mut Vec<String>) {
    let warning = match (learn, remote_ip) {
        (true, None) => "--learn with no key, no token, no --auth-by-remote-ip: anybody is let in",
        (true, Some(_)) => {
            "no key and no token: anybody who forges the address of --fou-remote is let in"
        }
        (false, None) => {
            "no key, no token, no --auth-by-remote-ip: anybody who sends a packet takes the tunnel"
        }
        (false, Some(_)) => {
            "no key and no token: anybody who forges the address of --fou-remote takes the tunnel"
        }
    };
    warnings.push(warning.to_owned());
}
