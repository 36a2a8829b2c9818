//! Finds secrets in files of peers that every user of the host can read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A warning that names the files with secrets which every user can read, and what to do; `None`: there is
/// none. `peers` are peers files, with their texts, `secrets` are files of secrets.
pub fn warning<'a>(
    peers: impl Iterator<Item = (&'a Path, &'a str)>,
    secrets: impl Iterator<Item = &'a Path>,
) -> Option<String> {
    let with_secrets = peers.filter(|(_, text)| has_secret(text)).map(|(path, _)| path);
    let open: Vec<_> = with_secrets
        .chain(secrets)
        .filter(|path| is_open(path))
        .map(|path| path.display().to_string().replace(char::is_control, "?"))
        .collect();
    let (hold, them) =
        if open.len() == 1 { ("holds a secret", "it") } else { ("hold secrets", "them") };
    let said = || {
        format!(
            "{} {hold} and every user can read {them}: chmod o-r {}",
            open.join(", "),
            open.join(" ")
        )
    };
    (!open.is_empty()).then(said)
}

/// Whether a text has the field `secret`, wherever in it. That of `secret-file` names a file only.
pub fn has_secret(text: &str) -> bool {
    const NAME: &str = "secret";
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.into_iter().any(|line| {
        line.match_indices(NAME).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + NAME.len()..].trim_start_matches(['"', '\'', ' ', '\t']);
            after.starts_with('=') && before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '-')
        })
    })
}

/// Whether every user can read a file, and get at it in its directory.
fn is_open(path: &Path) -> bool {
    let allows = |path: &Path, bit| {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bit != 0)
    };
    allows(path, 0o004) && path.parent().is_none_or(|directory| allows(directory, 0o001))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_secret_is_seen_however_it_is_written() {
        for text in [
            "[peer.a]\nsecret = \"x\"\n",
            "secret='x'",
            "  secret\t= 'x'",
            "\"secret\" = \"x\"",
            "peer.a = { old = 1, secret = \"x\" }",
            "peer.a.secret = \"x\"",
        ] {
            assert!(has_secret(text), "{text}");
        }
        for text in [
            "",
            "secret-file = \"/x\"",
            "# secret = \"x\"",
            "note = \"no secret\"",
            "my-secret = 1",
        ] {
            assert!(!has_secret(text), "{text}");
        }
    }

    /// A directory of its own, removed at the end.
    struct Directory(PathBuf);

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn one_warning_names_all_files_that_are_open() {
        let directory = format!("ipipou-exposed-{}", std::process::id());
        let directory = Directory(std::env::temp_dir().join(directory));
        fs::create_dir(&directory.0).unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let path = |name: &str| directory.0.join(name);
        for (name, mode) in [("a.toml", 0o644), ("b.toml", 0o644), ("c.toml", 0o640), ("t", 0o604)]
        {
            fs::write(path(name), "").unwrap();
            set(&path(name), mode);
        }
        let said = |names: &[&str]| {
            let texts =
                [("a.toml", "secret = 'x'"), ("b.toml", "note = ''"), ("c.toml", "secret = 'x'")];
            let texts = texts.map(|(name, text)| (path(name), text));
            let secrets: Vec<_> = names.iter().map(|name| path(name)).collect();
            let peers = texts.iter().map(|(path, text)| (path.as_path(), *text));
            let said = warning(peers, secrets.iter().map(PathBuf::as_path))?;
            Some(said.replace(&directory.0.display().to_string(), "DIR"))
        };
        set(&directory.0, 0o755);
        let one = "DIR/a.toml holds a secret and every user can read it: chmod o-r DIR/a.toml";
        assert_eq!(said(&[]).as_deref(), Some(one));
        let two = "DIR/a.toml, DIR/t hold secrets and every user can read them: chmod o-r DIR/a.toml DIR/t";
        assert_eq!(said(&["t"]).as_deref(), Some(two));
        set(&directory.0, 0o750);
        assert_eq!(said(&["t"]), None);
    }
}
