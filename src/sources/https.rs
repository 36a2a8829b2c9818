//! A host table from a web server. Anybody who can change the table can redirect the packets, so the
//! server's certificate and name are checked, and no redirect leads away from HTTPS.

use std::io;
use std::time::Duration;

use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Error};

use super::url::{is_https, shown};
use crate::engine::config::{Authorities, HostsUrl};
use crate::engine::table::MAX_SIZE;

const MAX_REDIRECTS: u32 = 5;

/// Fetches the text of a table. Blocks for at most `timeout`. Uses no proxies.
///
/// # Errors
/// One line that says what is wrong; the same text for the same reason.
pub fn fetch(source: &HostsUrl, roots: RootCerts, timeout: Duration) -> Result<Vec<u8>, String> {
    let say = |what: String| format!("cannot fetch {}: {what}", shown(&source.url));
    let agent: Agent = Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .https_only(is_https(&source.url))
        .max_redirects(MAX_REDIRECTS)
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("ipipou/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let answer = agent.get(&source.url).call().map_err(|e| say(explain(&e, timeout)))?;
    match answer.status() {
        StatusCode::OK => answer
            .into_body()
            .into_with_config()
            .limit(MAX_SIZE as u64 + 1) // ureq fails when it reaches the limit: allow one byte more
            .read_to_vec()
            .map_err(|e| say(explain(&e, timeout))),
        status => Err(say(format!("the server answered {status}"))),
    }
}

/// The certificate authorities that the server's certificate is checked against.
///
/// # Errors
/// When there is none.
pub fn roots(source: &HostsUrl) -> Result<RootCerts, String> {
    let (found, place, missing) = match &source.authorities {
        Authorities::System => {
            let missing = "install ca-certificates, or give --ca-file";
            (load_native_certs(), "the operating system".to_owned(), missing)
        }
        Authorities::File(file) => {
            let found = load_certs_from_paths(Some(file), None);
            (found, file.display().to_string(), "it holds no PEM certificate")
        }
        Authorities::Directory(directory) => {
            let found = load_certs_from_paths(None, Some(directory));
            (found, directory.display().to_string(), "no file in it holds a PEM certificate")
        }
    };
    let CertificateResult { certs, errors, .. } = found;
    // One broken file in a directory does not spoil the others.
    if certs.is_empty() && is_https(&source.url) {
        let why = errors.first().map_or_else(|| missing.to_owned(), ToString::to_string);
        return Err(format!("no certificate authorities from {place}: {why}"));
    }
    Ok(certs.iter().map(|der| Certificate::from_der(der).to_owned()).into())
}

fn explain(error: &Error, timeout: Duration) -> String {
    match error {
        Error::TooManyRedirects => format!("more than {MAX_REDIRECTS} redirects"),
        Error::RequireHttpsOnly(to) => {
            format!("the server leads to {}, which is not https: not followed", shown(to))
        }
        Error::BodyExceedsLimit(_) => format!("it has more than {MAX_SIZE} bytes"),
        Error::Timeout(_) => format!("no complete answer within {} s", timeout.as_secs()),
        Error::HostNotFound => "the server's name cannot be looked up".to_owned(),
        // A handshake runs inside `io::Read`, and so do its errors.
        Error::Io(e) if e.kind() == io::ErrorKind::InvalidData => explain_tls(&e.to_string()),
        Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            "the server ended the connection too early".to_owned()
        }
        Error::Io(e) => e.to_string(),
        Error::Rustls(e) => explain_tls(&e.to_string()),
        other => other.to_string(),
    }
}

/// Explains why a handshake failed. The errors are rustls's, of which only the text arrives here; a
/// text that is not recognised is passed on as it is.
fn explain_tls(text: &str) -> String {
    const KNOWN: [(&str, &str); 4] = [
        (
            "UnknownIssuer",
            "the server's certificate is signed by an unknown authority: give its authority with \
             --ca-file",
        ),
        (
            "CaUsedAsEndEntity",
            "the server's certificate is one of an authority: give the server one with \
             basicConstraints CA:FALSE",
        ),
        ("certificate expired", "the server's certificate has expired (or our clock is wrong)"),
        (
            "certificate not valid yet",
            "the server's certificate is not valid yet (or our clock is wrong)",
        ),
    ];
    // Only here does the text contain names that others have chosen.
    if let Some((_, names)) = text.split_once("certificate not valid for name ") {
        let names: String = names.chars().take(200).collect();
        return format!("the server's certificate is for another name: not for {names}");
    }
    let known = KNOWN.iter().find(|(part, _)| text.contains(part));
    known.map_or_else(|| format!("TLS: {text}"), |(_, meaning)| (*meaning).to_owned())
}
