//! Secrets by reference: an environment variable or a file. The value goes into a `SecretString` at
//! once and is never printed; errors name the variable or the file, never what it holds.

use super::port::{PortError, PortResult};
use crate::model::estate::SecretRef;
use secrecy::SecretString;

/// More than any password or key: a larger file is a mistake in the estate.
const LARGEST: u64 = 64 * 1024;

/// The value behind a reference, less one trailing newline, as editors and `echo` add one.
pub fn read(reference: &SecretRef) -> PortResult<SecretString> {
    read_for(reference, "the estate")
}

/// The same, named by something else than the estate: `who` stands in errors.
pub fn read_for(reference: &SecretRef, who: &str) -> PortResult<SecretString> {
    let (mut text, from) = match reference {
        SecretRef::Env(name) => (from_environment(name, who)?, format!("the environment variable `{name}`")),
        SecretRef::File(path) => (from_file(path, who)?, format!("the file `{}`", path.display())),
    };
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(PortError::Config(format!("the secret in {from} is empty: put the value there")));
    }
    Ok(SecretString::from(text))
}

fn from_environment(name: &str, who: &str) -> PortResult<String> {
    std::env::var(name).map_err(|e| match e {
        std::env::VarError::NotPresent => PortError::Config(format!(
            "the environment variable `{name}`, which {who} names for a secret, is not set: set it, or name another"
        )),
        std::env::VarError::NotUnicode(_) => {
            PortError::Config(format!("the environment variable `{name}` is not UTF-8: a secret must be text"))
        }
    })
}

fn from_file(path: &std::path::Path, who: &str) -> PortResult<String> {
    let fail = |why: &dyn std::fmt::Display| {
        PortError::Config(format!(
            "the secret file `{}` cannot be read: {why}; {who} names it, and Muster's user must be able to read it",
            path.display()
        ))
    };
    let size = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
    if size > LARGEST {
        return Err(fail(&format!("it has {size} bytes, more than any secret ({LARGEST})")));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
    // Not the error itself: it would hold the bytes.
    String::from_utf8(bytes).map_err(|_| fail(&"it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn file(content: &[u8]) -> (tempfile::TempDir, SecretRef) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        (dir, SecretRef::File(path))
    }

    #[test]
    fn exactly_one_trailing_newline_is_dropped() {
        for (content, want) in [
            (&b"s3cret"[..], "s3cret"),
            (b"s3cret\n", "s3cret"),
            (b"s3cret\n\n", "s3cret\n"),
            (b"s3cret\r\n", "s3cret"),
            (b" a b ", " a b "),
        ] {
            let (_dir, reference) = file(content);
            assert_eq!(read(&reference).unwrap().expose_secret(), want);
        }
    }

    #[test]
    fn errors_name_the_place_and_never_the_value() {
        let (_dir, reference) = file(b"hunter2\xff");
        let text = read(&reference).unwrap_err().to_string();
        assert!(text.contains("secret`") && text.contains("UTF-8") && !text.contains("hunter2"), "{text}");

        let text = read(&SecretRef::Env("MUSTER_TEST_NEVER_SET".to_owned())).unwrap_err().to_string();
        assert!(text.contains("`MUSTER_TEST_NEVER_SET`") && text.contains("not set"), "{text}");

        let text = read(&SecretRef::File("/nonexistent/secret".into())).unwrap_err().to_string();
        assert!(text.contains("`/nonexistent/secret`"), "{text}");
    }

    #[test]
    fn empty_and_enormous_files_are_refused() {
        for content in [Vec::new(), b"\n".to_vec(), vec![b'a'; 70_000]] {
            let (_dir, reference) = file(&content);
            assert!(matches!(read(&reference), Err(PortError::Config(_))));
        }
    }

    #[test]
    fn the_environment_is_read() {
        // Cargo sets this one for every test.
        assert_eq!(read(&SecretRef::Env("CARGO_PKG_NAME".to_owned())).unwrap().expose_secret(), "muster");
    }
}
