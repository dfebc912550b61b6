//! How somebody looks on while a backup, a restore or a verification works: counters that they read when they like, and
//! sentences that are told as they become true. And how Ctrl-C gets to those who work.

use super::super::{Muster, ServiceError};
use crate::repository::{RepositoryError, progress::Progress};
use serde::Serialize;
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tokio::task::JoinHandle;

/// Something that is told once.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Told {
    /// There was no repository; now there is.
    Initialised {
        place: String,
    },
    /// What follows is compared with this snapshot: only what changed is read.
    Parent {
        snapshot: String,
    },
    Warning {
        text: String,
    },
}

pub struct Watch {
    pub progress: Arc<Progress>,
    tell: Box<dyn Fn(&Told) + Send + Sync>,
    /// Is it worth counting beforehand how much there is to do?
    pub counts: bool,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stand {
    pub files: u64,
    pub bytes: u64,
    /// 0 while they are not known.
    pub total_files: u64,
    pub total_bytes: u64,
}

impl Watch {
    #[must_use]
    pub fn new(counts: bool, tell: impl Fn(&Told) + Send + Sync + 'static) -> Self {
        Self { progress: Arc::default(), tell: Box::new(tell), counts }
    }
    pub fn tell(&self, told: &Told) {
        (self.tell)(told);
    }
    pub fn warn(&self, text: impl std::fmt::Display) {
        self.tell(&Told::Warning { text: text.to_string() });
    }
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader(self.progress.clone())
    }
    /// What a failure amounts to, when it may be that somebody asked for it. `go_on` says how.
    pub(super) fn failed(&self, error: RepositoryError, go_on: &str) -> ServiceError {
        match error {
            RepositoryError::Interrupted(_) if self.progress.is_stopped() => RepositoryError::Interrupted(go_on.to_owned()).into(),
            error => error.into(),
        }
    }
}

/// For the screen.
pub struct Reader(Arc<Progress>);

impl Reader {
    #[must_use]
    pub fn stand(&self) -> Stand {
        let Progress { total_bytes, total_files, done_bytes, done_files, .. } = &*self.0;
        Stand {
            files: done_files.load(Relaxed),
            bytes: done_bytes.load(Relaxed),
            total_files: total_files.load(Relaxed),
            total_bytes: total_bytes.load(Relaxed),
        }
    }
}

/// Ends with the work that it watches over.
pub(super) struct Heed(JoinHandle<()>);

impl Drop for Heed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Muster {
    /// Ctrl-C asks those who work to come to an end.
    pub(super) fn heed(&self, watch: &Watch) -> Heed {
        let (mut interrupt, progress) = (self.interrupt.clone(), watch.progress.clone());
        Heed(tokio::spawn(async move {
            // Without anybody who could interrupt, it ends at once.
            if interrupt.wait_for(|interrupted| *interrupted).await.is_ok() {
                progress.stop();
            }
        }))
    }
}
