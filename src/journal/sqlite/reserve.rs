//! Room that is kept back on the disk, so that a run can still say why it stopped when the disk is full: what
//! was under way, and the pause. A commit is a few pages.

use rustix::fs::{FallocateFlags, fallocate};
use std::path::{Path, PathBuf};

const RESERVE: u64 = 1024 * 1024;

fn file(dir: &Path) -> PathBuf {
    dir.join("journal.reserve")
}

/// A disk that has no room for it now may have some when the journal is opened next.
pub fn keep(dir: &Path) {
    let path = file(dir);
    if path.exists() {
        return;
    }
    let made = std::fs::OpenOptions::new().create_new(true).write(true).open(&path);
    let kept = made.is_ok_and(|file| fallocate(&file, FallocateFlags::empty(), 0, RESERVE).is_ok());
    if !kept {
        tracing::debug!("no room is kept back in {}", path.display());
        // It may not even have been made.
        let _ = std::fs::remove_file(&path);
    }
}

/// Is there a journal in this directory? A process that was killed before its first write leaves an empty file.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    is_empty(dir).is_some_and(|empty| !empty || was_cut_off(dir))
}

/// SQLite takes a file of no length for a new database, and would answer that all is well. What is kept back is
/// made once the journal has its tables: beside it no journal is empty.
pub fn was_cut_off(dir: &Path) -> bool {
    is_empty(dir) == Some(true) && file(dir).exists()
}

fn is_empty(dir: &Path) -> Option<bool> {
    std::fs::metadata(dir.join("journal.db")).ok().map(|about| about.len() == 0)
}

/// False when there is none.
pub fn spend(dir: &Path) -> bool {
    std::fs::remove_file(file(dir)).is_ok()
}
