//! How far a long piece of work has come: numbers that its workers add to and whoever shows them reads, without
//! either waiting for the other.
//!
//! The totals are what is known so far: a walk that goes on finds more. So they may grow, and what is done may for a
//! moment be ahead of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Progress {
    pub total_bytes: AtomicU64,
    pub total_files: AtomicU64,
    pub done_bytes: AtomicU64,
    pub done_files: AtomicU64,
}

/// Its numbers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub total_bytes: u64,
    pub total_files: u64,
    pub done_bytes: u64,
    pub done_files: u64,
}

impl Progress {
    /// So much more is to be done.
    pub fn expect(&self, files: u64, bytes: u64) {
        self.total_files.fetch_add(files, Relaxed);
        self.total_bytes.fetch_add(bytes, Relaxed);
    }
    /// So much more is done.
    pub fn done(&self, files: u64, bytes: u64) {
        self.done_files.fetch_add(files, Relaxed);
        self.done_bytes.fetch_add(bytes, Relaxed);
    }
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            total_bytes: self.total_bytes.load(Relaxed),
            total_files: self.total_files.load(Relaxed),
            done_bytes: self.done_bytes.load(Relaxed),
            done_files: self.done_files.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_shown() {
        let progress = Progress::default();
        progress.expect(2, 10);
        progress.done(1, 4);
        progress.done(0, 6);
        assert_eq!(progress.figures(), Figures { total_bytes: 10, total_files: 2, done_bytes: 10, done_files: 1 });
    }
}
