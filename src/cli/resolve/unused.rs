//! Options that have no effect. Those of the first version were taken in silence, so files have
//! them: they are one warning.

use super::Ends;
use crate::cli::options::Options;
use crate::cli::value::unless_zero;

/// Names the options that do nothing at this end of a tunnel.
pub fn warning(options: &Options, ends: Ends) -> Option<String> {
    let counts = |seconds| unless_zero(seconds).is_some();
    let key = match ends {
        Ends::Client | Ends::Clients => options.auth_remote_pubkey_b64.is_some(),
        Ends::Server | Ends::Hosts => options.auth_key_b64.is_some(),
    };
    let of_server = [
        ("--queue-number", options.queue_number.is_some()),
        ("--auth-by-remote-ip", options.auth_by_remote_ip),
        ("--auth-by-remote-port", options.auth_by_remote_port),
        ("--auth-remote-pubkey-b64", options.auth_remote_pubkey_b64.is_some()),
        ("--auth-max-time-discrepancy", counts(options.auth_max_time_discrepancy)),
        ("--auth-lifetime", counts(options.auth_lifetime)),
        ("--reply-on-auth-ok", options.reply_on_auth_ok),
        ("--auth-secret, without a key,", options.auth_secret.is_some() && !key),
    ];
    let of_client = [
        ("--keepalive", counts(options.keepalive)),
        ("--auth-secret, without --auth-remote-pubkey-b64,", options.auth_secret.is_some() && !key),
    ];
    let of_both =
        [("--server", options.server), ("--queue-number", options.queue_number.is_some())];
    let (role, given) = match ends {
        Ends::Client | Ends::Clients => ("a server", &of_client[..]),
        Ends::Server => ("a client", &of_server[..]),
        Ends::Hosts => ("a host of a table", &of_both[..]),
    };
    let unused: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    let names = unused.join(", ");
    let names = names.trim_end_matches(',');
    (!unused.is_empty()).then(|| format!("{names}: {role} has no use for it, and goes on without"))
}
