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

/// False when there is none.
pub fn spend(dir: &Path) -> bool {
    std::fs::remove_file(file(dir)).is_ok()
}
