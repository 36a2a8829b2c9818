//! The authentication options as given. Options that only a server has are in the main table.

use std::num::NonZeroU8;
use std::path::PathBuf;

use clap::Args;

use super::attributes::{Attributes, Secrecy, both};
use super::choices::KeyType;
use crate::auth::{SharedSecret, Token};
use crate::cli::value::{self, PublicKeys, Seed};

/// The authentication options as given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Authentication")]
pub struct AuthOptions {
    /// Ed25519 private key: a client signs its packets with it, a server its replies. FILE is what
    /// `ipipou genkey` or --auth-keygen prints
    #[arg(long, value_name = "FILE", value_parser = value::path,
          overrides_with = "auth_key_b64")]
    pub auth_key_file: Option<PathBuf>,
    /// The same as 32 bytes in base64, for .conf files: every user sees a command line
    #[arg(long, value_name = "BASE64", value_parser = value::seed,
          overrides_with = "auth_key_file")]
    pub auth_key_b64: Option<Seed>,
    /// Ed25519 public key of the other end, 32 bytes in base64. A client that has it asks its server to
    /// answer, and knows whether it is connected; of several servers it has one key for all, or one
    /// each, with commas
    #[arg(long, value_name = "BASE64", value_parser = value::public_keys)]
    pub auth_remote_pubkey_b64: Option<PublicKeys>,
    /// Secret that both ends share beside the keys; it is signed and never sent. One newline at the
    /// end of FILE is not part of it [default: netprickle.com]
    #[arg(long, value_name = "FILE", value_parser = value::path,
          overrides_with = "auth_secret")]
    pub auth_secret_file: Option<PathBuf>,
    // The aliases, here and below: these prefixes meant this option before there was another that
    // begins so.
    /// The same as a string, for .conf files
    #[arg(long, value_name = "STRING", value_parser = value::shared_secret,
          aliases = ["auth-s", "auth-se", "auth-sec", "auth-secr", "auth-secre"],
          overrides_with = "auth_secret_file")]
    pub auth_secret: Option<SharedSecret>,
    /// Token, at most 1472 bytes. It is sent as it is: anybody who sees it on the wire can use it. Wins
    /// over a key. One newline at the end of FILE is not part of it
    #[arg(long, value_name = "FILE", value_parser = value::path,
          overrides_with_all = ["auth_token", "auth_token_b64"])]
    pub auth_token_file: Option<PathBuf>,
    /// The same as a string, for .conf files
    #[arg(long, value_name = "STRING", value_parser = value::token,
          overrides_with_all = ["auth_token_file", "auth_token_b64"])]
    pub auth_token: Option<Token>,
    /// The same in base64, for bytes that are not text
    #[arg(long, value_name = "BASE64", value_parser = value::token_b64, alias = "auth-token-",
          overrides_with_all = ["auth_token", "auth_token_file"])]
    pub auth_token_b64: Option<Token>,
    /// Type of the keys; ed25519 is the only one [default: ed25519]
    #[arg(long, value_name = "TYPE", hide_possible_values = true)]
    pub auth_key_type: Option<KeyType>,
    /// Print a new private key and its public key in base64, a line each (-v: labelled), and exit.
    /// `ipipou genkey` prints the private key alone, `ipipou pubkey` the public one that belongs to it
    #[arg(long)]
    pub auth_keygen: bool,
    /// Time to live of authentication packets, 1..255 [default: the kernel's]
    #[arg(long, value_name = "TTL", value_parser = value::ttl)]
    pub auth_packet_ttl: Option<NonZeroU8>,
}

pub const ATTRIBUTES: &[Attributes] = &[
    both("auth-key-file").not_with_table(),
    both("auth-key-b64").not_with_table().value(Secrecy::Secret),
    both("auth-remote-pubkey-b64").not_with_table().not_with_peers().value(Secrecy::PublicKey),
    both("auth-secret-file").not_with_table(),
    both("auth-secret").not_with_table().value(Secrecy::Secret),
    both("auth-token-file").not_with_table().not_with_peers(),
    both("auth-token").not_with_table().not_with_peers().value(Secrecy::Secret),
    both("auth-token-b64").not_with_table().not_with_peers().value(Secrecy::Secret),
    both("auth-key-type").not_with_table(),
    both("auth-keygen"),
    both("auth-packet-ttl").not_with_table(),
];
