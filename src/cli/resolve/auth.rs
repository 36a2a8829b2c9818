//! Resolves the authentication options: what a client authenticates with, and what a server demands
//! and answers.

use std::net::IpAddr;

use zeroize::Zeroizing;

use super::error::UsageError;
use super::peers::Peers;
use super::resolver::Resolver;
use crate::auth::{
    Credential, Policy, Proof, SharedSecret, Signer, Token, Verifier, is_public_key, key_text,
};
use crate::cli::options::Options;
use crate::cli::value::{PublicKey, PublicKeys, Seed, ValueError, unless_zero};
use crate::engine::config::Reply;

/// The first version of `ipipou` has the same default. Everybody knows it, so it protects nothing.
const DEFAULT_SECRET: &str = "netprickle.com";
/// The bytes that fit in one packet on any path: RFC 791's 576 without the IP and UDP headers.
const SAFE_TOKEN: usize = 548;

/// Refuses secrets in files where they have no effect. These options are newer than the first
/// version; what that took in silence causes a warning only.
///
/// # Errors
/// When such an option would be ignored.
pub fn check_files(resolver: &Resolver) -> Result<(), UsageError> {
    let Options { server, reply_on_auth_ok: replies, auth, .. } = resolver.options;
    if matches!(resolver.peers, Peers::Table(_) | Peers::Members(_)) {
        return Ok(());
    }
    let has_remote_key = auth.auth_remote_pubkey_b64.is_some();
    let key_needs = match (server, has_remote_key, replies) {
        (true, false, _) => Some("auth-remote-pubkey-b64"),
        (true, true, false) => Some("reply-on-auth-ok"),
        (true, true, true) | (false, _, _) => None,
    };
    let secret_needs = match (server, has_remote_key, &resolver.secrets.key) {
        (true, false, _) => Some("auth-remote-pubkey-b64"),
        (false, _, None) => Some("auth-key-file"),
        (true, true, _) | (false, _, Some(_)) => None,
    };
    for (option, is_given, needs) in [
        ("auth-key-file", auth.auth_key_file.is_some(), key_needs),
        ("auth-secret-file", auth.auth_secret_file.is_some(), secret_needs),
    ] {
        if let (true, Some(other)) = (is_given, needs) {
            return Err(UsageError::OnlyWith { option, other });
        }
    }
    Ok(())
}

/// Returns what a client sends. A token wins over a key as in the first version, which the peer may
/// be with the same options.
pub fn credential(resolver: &mut Resolver) -> Credential {
    let secrets = resolver.secrets;
    if let Some(token) = &secrets.token {
        warn_of_token(token, resolver);
        if secrets.key.is_some() {
            resolver.warn(TOKEN_BEFORE_KEY);
        }
        return Credential::Token(token.clone());
    }
    match &secrets.key {
        Some(seed) => {
            let signer = Signer::new(seed.as_bytes(), shared_secret(resolver));
            warn_of_public_key(seed, &signer, resolver);
            Credential::Key(signer)
        }
        None => {
            resolver.warn(
                "neither a key nor a token: only a server that asks for nothing takes our packets",
            );
            Credential::Empty
        }
    }
}

/// Returns the key of a server that answers, if one was given, and the secret of peers that have none of
/// their own.
pub fn of_members(resolver: &mut Resolver) -> (Option<Zeroizing<[u8; 32]>>, SharedSecret) {
    let secret = shared_secret(resolver);
    let seed = resolver.secrets.key.as_ref();
    if let Some(seed) = seed {
        warn_of_public_key(seed, &Signer::new(seed.as_bytes(), secret.clone()), resolver);
    }
    (seed.map(|seed| Zeroizing::new(*seed.as_bytes())), secret)
}

/// Returns what a server demands.
pub fn policy(
    resolver: &mut Resolver,
    remote_ip: Option<IpAddr>,
    remote_port: Option<u16>,
) -> Result<Policy, UsageError> {
    let options = resolver.options;
    let remote_key = &options.auth.auth_remote_pubkey_b64;
    let proof = if let Some(token) = &resolver.secrets.token {
        warn_of_token(token, resolver);
        if remote_key.is_some() {
            resolver.warn(TOKEN_BEFORE_KEY);
        }
        Proof::Token(token.clone())
    } else if let Some(public) = only_key(remote_key.as_ref())? {
        let discrepancy = unless_zero(options.auth_max_time_discrepancy);
        let secret = shared_secret(resolver);
        let verifier = Verifier::new(public.as_bytes(), secret, discrepancy)
            .map_err(|_| UsageError::RemoteKey(ValueError::NotAPublicKey))?;
        Proof::Key(verifier)
    } else {
        warn_of_no_proof(remote_ip, resolver);
        Proof::Nothing
    };
    Ok(Policy { remote_ip, remote_port, proof })
}

/// Returns what a server answers. It answers only a client that proved something, otherwise anybody
/// could make it send packets to others. It signs if it has both keys: without the client's key it
/// does not use keys at all.
pub fn reply(resolver: &mut Resolver, policy: &Policy) -> Reply {
    let options = resolver.options;
    let proves_nothing = policy.proof.is_nothing() && policy.remote_ip.is_none();
    let unsigned = match options.reply_on_auth_ok {
        true if proves_nothing => {
            resolver.warn(
                "--reply-on-auth-ok: nobody is answered, as no key, token or address is asked for",
            );
            Reply::Silent
        }
        true => Reply::Reversed,
        false => Reply::Silent,
    };
    let remote_key = options.auth.auth_remote_pubkey_b64.as_ref().map(|keys| keys.first);
    match (&resolver.secrets.key, &remote_key) {
        (Some(own), Some(remote)) => {
            // Where the client's key is used, the secret has been warned about.
            let secret = resolver.secrets.shared.clone().unwrap_or_else(default_secret);
            let signer = Signer::new(own.as_bytes(), secret);
            warn_of_public_key(own, &signer, resolver);
            if signer.public() == *remote.as_bytes() {
                resolver.warn(
                    "--auth-remote-pubkey-b64 belongs to our own --auth-key-b64: give every end \
                     its own key",
                );
            }
            if options.reply_on_auth_ok { Reply::Signed(signer) } else { Reply::Silent }
        }
        (Some(_), None) => {
            resolver.warn(
                "--auth-key-b64: on a server it signs replies, and needs --auth-remote-pubkey-b64",
            );
            unsigned
        }
        (None, _) => unsigned,
    }
}

/// Returns the key of a server's one client.
fn only_key(keys: Option<&PublicKeys>) -> Result<Option<PublicKey>, UsageError> {
    match keys {
        Some(keys) if !keys.others.is_empty() => Err(UsageError::KeysOfOneClient),
        keys => Ok(keys.map(|keys| keys.first)),
    }
}

/// Warns of a public key in the place of a private one: any 32 bytes are a private key, so the
/// parser cannot refuse it. Private keys that this program made are never mistaken for public ones;
/// one in sixteen of those of other programs is.
fn warn_of_public_key(seed: &Seed, signer: &Signer, resolver: &mut Resolver) {
    if is_public_key(seed.as_bytes()) {
        resolver.warn(format!(
            "--auth-key-b64 looks like a public key: give the private one, which `ipipou genkey` prints. (One \
             old private key in 16 looks so, too: it is right if the other end has {})",
            key_text(&signer.public())
        ));
    }
}

const TOKEN_BEFORE_KEY: &str =
    "both a token and a key: the token is used, leave it out at both ends to use the keys";

/// Returns the secret where none is given.
pub fn default_secret() -> SharedSecret {
    SharedSecret::new(DEFAULT_SECRET.into())
}

fn shared_secret(resolver: &mut Resolver) -> SharedSecret {
    let Some(secret) = &resolver.secrets.shared else {
        resolver.warn(
            "--auth-secret is the default, which everybody knows: give both ends another one",
        );
        return default_secret();
    };
    let bytes = secret.as_bytes();
    if bytes.is_empty() || bytes == DEFAULT_SECRET.as_bytes() {
        resolver.warn("--auth-secret is not secret: give both ends another one");
    }
    warn_of_ends("--auth-secret", bytes, resolver);
    secret.clone()
}

fn warn_of_token(token: &Token, resolver: &mut Resolver) {
    resolver.warn(
        "--auth-token: anybody who sees the packet can send it again and take the tunnel; use keys",
    );
    let bytes = token.as_bytes();
    if bytes.len() > SAFE_TOKEN {
        resolver.warn(format!(
            "--auth-token has {} bytes: more than {SAFE_TOKEN} may not fit in one packet",
            bytes.len()
        ));
    }
    warn_of_ends("--auth-token", bytes, resolver);
}

/// Warns of what is easily taken for no part of a value, although it is a part: the peer must have
/// the same bytes.
fn warn_of_ends(option: &str, bytes: &[u8], resolver: &mut Resolver) {
    let quotes =
        |quote: u8| bytes.len() > 1 && bytes.starts_with(&[quote]) && bytes.ends_with(&[quote]);
    let comment = bytes.windows(2).any(|pair| matches!(pair, b" #" | b"\t#"));
    for (is_so, what) in [
        (bytes.trim_ascii().len() != bytes.len(), "begins or ends with a blank, which is"),
        (quotes(b'"') || quotes(b'\''), "begins and ends with a quote; the quotes are"),
        (comment, "has a # behind a blank; this is not a comment, it is"),
    ] {
        if is_so {
            resolver.warn(format!("{option} {what} part of it"));
        }
    }
}

fn warn_of_no_proof(remote_ip: Option<IpAddr>, resolver: &mut Resolver) {
    let is_hub = matches!(resolver.peers, Peers::Clients(_));
    let warning = match (is_hub, remote_ip) {
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
    resolver.warn(warning);
}
