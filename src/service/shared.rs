//! The shared journal as a command was pointed at it: opened once a process, however many ask for it, so
//! that a process is one session with one lease.

use super::{Muster, ServiceError};
use crate::journal::{
    lease::Terms,
    postgres::{Part, PostgresJournal},
};
use crate::model::time::Span;
use secrecy::SecretString;
use std::sync::Arc;
use tokio::sync::Mutex;

/// How long leaving may take: a process that ends does not wait for a store that is gone.
const LEAVE: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Default)]
struct Open {
    journal: Option<Arc<PostgresJournal>>,
    /// Its tables are there.
    made: bool,
}

#[derive(Clone)]
pub struct Shared {
    /// It may hold a password.
    url: SecretString,
    part: Part,
    open: Arc<Mutex<Open>>,
}

impl Shared {
    #[must_use]
    pub fn new(url: SecretString, lease: Span) -> Self {
        let part = Part { terms: Terms::of(lease.duration()), serves: false };
        Self { url, part, open: Arc::default() }
    }

    /// This process goes on with what others leave. To be said before the journal is first asked for.
    pub fn serves(&mut self) {
        self.part.serves = true;
    }
}

impl Muster {
    /// The shared journal; `make` its tables if they are not there.
    pub(super) async fn shared_journal(&self, shared: &Shared, make: bool) -> Result<Arc<PostgresJournal>, ServiceError> {
        let mut open = shared.open.lock().await;
        let journal = match open.journal.clone() {
            Some(journal) => journal,
            None => Arc::new(PostgresJournal::open(&shared.url, shared.part, self.clock.clone(), false).await?),
        };
        open.journal = Some(journal.clone());
        if make && !open.made {
            journal.make().await?;
            open.made = true;
        }
        Ok(journal)
    }

    /// Says that this process owns nothing any more. What a crash leaves undone here, the lease's end does.
    pub async fn leave(&self) {
        let Some(shared) = &self.shared else { return };
        let Some(journal) = shared.open.lock().await.journal.clone() else { return };
        match tokio::time::timeout(LEAVE, journal.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("what this process owned is free when its lease runs out: {error}"),
            Err(_) => tracing::warn!("what this process owned is free when its lease runs out: the journal does not answer"),
        }
    }
}
