//! Decides who may have a tunnel: keys, tokens, the policy of a server, and the memory that refuses
//! replays.
//!
//! This room is pure: time and salt come in as arguments.

mod cookie;
mod credential;
mod key_check;
mod pair;
mod policy;
mod replay;
mod replay_disk;
mod secret;

pub use cookie::{CookieSecrets, Ends};
pub use credential::{Credential, Signer};
pub use key_check::{check_public_key, check_public_keys, is_public_key};
pub use pair::{Pair, hint, keys_digest, unsigned_hello};
pub use policy::{Policy, Proof, Reject, Verifier};
pub use replay::{ReplayMemory, ServerTime, Stale};
pub use secret::{
    KeyError, MAX_TOKEN, SharedSecret, Token, TokenError, generate_seed, is_placeholder, key_text,
    parse_key,
};
