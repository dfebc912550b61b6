//! Segments fetched ahead of being asked for. A recovery asks for one at a time, by a process each; a repository is
//! opened for one as fast as for many. So whoever fetches one fetches those behind it too, and leaves them beside the
//! server's log, whole and checked, in a folder that PostgreSQL takes no notice of.
//!
//! Only whole segments lie here: these never change. Each is written under another name and renamed.

use std::{
    io,
    path::{Path, PathBuf},
};

pub const FOLDER: &str = "muster.ahead";

pub struct Ahead {
    folder: PathBuf,
}

impl Ahead {
    /// Beside the file that a segment is fetched into.
    #[must_use]
    pub fn beside(target: &Path) -> Self {
        Self { folder: target.parent().unwrap_or(Path::new("")).join(FOLDER) }
    }

    /// Moves what was fetched into its place. False: it was not.
    pub fn take(&self, name: &str, target: &Path) -> io::Result<bool> {
        match std::fs::rename(self.folder.join(name), target) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    pub fn keep(&self, name: &str, content: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        place(&self.folder.join(name), content)
    }
}

/// Writes a file that is whole as soon as it is there.
pub fn place(target: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.muster-tmp", std::process::id()));
    let incomplete = target.with_file_name(name);
    let done = std::fs::write(&incomplete, content).and_then(|()| std::fs::rename(&incomplete, target));
    if done.is_err() {
        // A full disk: what there is of it is in nobody's way.
        let _ = std::fs::remove_file(&incomplete);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_ahead_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("RECOVERYXLOG");
        let ahead = Ahead::beside(&target);
        assert!(!ahead.take("a", &target).unwrap() && !ahead.has("a"));
        ahead.keep("a", b"records").unwrap();
        assert!(ahead.has("a") && ahead.take("a", &target).unwrap() && !ahead.take("a", &target).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), b"records");
        assert!(place(&dir.path().join("nowhere/x"), b"").is_err());
    }
}
