//! The URL of a host table.

pub fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// A URL as it may be logged: without what precedes the host (passwords) and without the query
/// (tokens).
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_tokens_are_not_shown() {
        for (url, logged) in [
            ("https://example.org/hosts.json", "https://example.org/hosts.json"),
            ("https://me:secret@example.org/a@b?token=c#d", "https://example.org/a@b"),
            ("http://example.org?token=c", "http://example.org"),
            ("secret", "secret"),
        ] {
            assert_eq!(shown(url), logged);
        }
    }

    #[test]
    fn https_is_known_by_its_scheme() {
        assert!(is_https("HTTPS://example.org"));
        assert!(!is_https("http://example.org") && !is_https("https") && !is_https("httpsé://"));
    }
}
