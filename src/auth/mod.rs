//! Who may have a tunnel: keys, tokens, the policy of a server, and the memory that refuses replays.
//!
//! This room is pure: time and salt come in as arguments.

mod credential;
mod policy;
mod replay;
mod replay_disk;
mod secret;

pub use credential::{Credential, Signer};
pub use policy::{Policy, Proof, Reject, Verifier};
pub use replay::{ReplayMemory, ServerTime, Stale};
pub use secret::{
    KeyError, MAX_TOKEN, SharedSecret, Token, TokenError, generate_seed, is_public_key, key_text,
    parse_key,
};
