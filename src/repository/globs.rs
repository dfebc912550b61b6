//! Patterns that choose paths, as restic's and `.gitignore`'s do: `*.tmp` and `cache/old` fit at any depth, `/cache`
//! only right below the root; `*` and `?` stay within one name, `**` goes over folders. What fits a folder fits all
//! that is in it.

use super::{RepositoryError, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

#[derive(Clone, Debug, Default)]
pub struct Globs {
    set: GlobSet,
    /// What is not chosen, whatever else fits it.
    except: Option<Box<Globs>>,
}

impl Globs {
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let refused = |why: &str| RepositoryError::Refused(format!("`{pattern}` is no pattern for paths: {why}"));
            let bare = pattern.trim_end_matches('/');
            if bare.is_empty() {
                return Err(refused("it names nothing"));
            }
            let whole = bare.strip_prefix('/').map_or_else(|| format!("**/{bare}"), str::to_owned);
            let glob = GlobBuilder::new(&whole).literal_separator(true).backslash_escape(true).build();
            set.add(glob.map_err(|e| refused(&e.kind().to_string()))?);
        }
        let set = set.build().map_err(|e| RepositoryError::Refused(format!("the patterns for paths: {e}")))?;
        Ok(Self { set, except: None })
    }
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }
    /// The same without what these fit.
    pub fn but<S: AsRef<str>>(self, patterns: &[S]) -> Result<Self> {
        Ok(Self { except: Some(Box::new(Self::new(patterns)?)), ..self })
    }

    /// Is it chosen: by a pattern, or, where there is none, since everything is?
    #[must_use]
    pub fn chooses(&self, path: &[u8]) -> bool {
        (self.is_empty() || self.fits_within(path)) && !self.except.as_ref().is_some_and(|except| except.fits_within(path))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Does one fit this very path? The "/" at a folder's end does not count.
    #[must_use]
    pub fn fits(&self, path: &[u8]) -> bool {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        !self.is_empty() && self.set.is_match(Path::new(OsStr::from_bytes(path)))
    }

    /// Does one fit this path or a folder that it is in?
    #[must_use]
    pub fn fits_within(&self, path: &[u8]) -> bool {
        let folders = path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && at + 1 < path.len());
        !self.is_empty() && (folders.into_iter().any(|(at, _)| self.fits(&path[..at])) || self.fits(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excepted_is_not_chosen() {
        let globs = Globs::none().but(&["/pg_tblspc/16385"]).unwrap();
        assert!(globs.chooses(b"base/1/2") && globs.chooses(b"pg_tblspc/") && globs.chooses(b"pg_tblspc/163851/x"));
        assert!(!globs.chooses(b"pg_tblspc/16385/") && !globs.chooses(b"pg_tblspc/16385/PG_15/1"));
        assert!(!Globs::new(&["a"]).unwrap().but(&["a/b"]).unwrap().chooses(b"c"));
    }

    #[test]
    fn patterns_fit_as_restics_do() {
        let globs = Globs::new(&["*.tmp", "cache/old", "/top", "logs/**/*.gz", "data/"]).unwrap();
        for path in ["a.tmp", "x/y/a.tmp", "cache/old", "x/cache/old", "x/cache/old/", "top", "top/", "logs/a/b/c.gz", "data/"] {
            assert!(globs.fits(path.as_bytes()), "{path}");
        }
        for path in ["a.tmpx", "old", "x/top", "top/x", "cache/older", ""] {
            assert!(!globs.fits(path.as_bytes()), "{path}");
        }
        assert!(globs.fits_within(b"data/x/y") && globs.fits_within(b"x/data/") && globs.fits_within(b"top/x"));
        assert!(!globs.fits_within(b"x/top/y") && !globs.fits_within(b""));
        assert!(globs.fits(b"\xff\xfe.tmp"), "names need not be UTF-8");
        assert!(!Globs::none().fits(b"a") && Globs::none().is_empty());
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for wrong in ["[a", "/", ""] {
            let error = Globs::new(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }
}
