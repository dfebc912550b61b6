//! How far a long piece of work has come: counters that its threads raise and a screen reads. And the word to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Progress {
    /// 0 while it is not known.
    pub total_bytes: AtomicU64,
    pub total_files: AtomicU64,
    pub done_bytes: AtomicU64,
    pub done_files: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Asks everybody to come to an end.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }
    pub fn add(&self, files: u64, bytes: u64) {
        self.done_files.fetch_add(files, Relaxed);
        self.done_bytes.fetch_add(bytes, Relaxed);
    }
}
