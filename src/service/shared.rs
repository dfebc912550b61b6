//! The shared journal as a command was pointed at it: opened once a process, however many ask for it, so
//! that a process is one session with one lease.

use super::{Muster, ServiceError};
use crate::journal::{
    lease::Terms,
    postgres::{Part, PostgresJournal},
};
use crate::model::time::Span;
use secrecy::{ExposeSecret, SecretString};
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
    /// How it is named in commands; the environment's need not be.
    named: Option<String>,
}

impl Shared {
    #[must_use]
    pub fn new(url: SecretString, lease: Span) -> Self {
        let named = std::env::var("MUSTER_JOURNAL").is_err().then(|| without_password(url.expose_secret()));
        let part = Part { terms: Terms::of(lease.duration()), serves: false };
        Self { url, part, open: Arc::default(), named }
    }

    #[must_use]
    pub fn lease(&self) -> std::time::Duration {
        self.part.terms.ttl
    }

    /// This process goes on with what others leave. To be said before the journal is first asked for.
    pub fn serves(&mut self) {
        self.part.serves = true;
    }
}

/// The part of a URL that may be told.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "URL".to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('?').next().unwrap_or_default();
    let (user, hosts) =
        authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user.split(':').next().unwrap_or_default(), hosts));
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    format!("{scheme}://{user}{hosts}{path}")
}

impl Muster {
    /// How Muster is called for this state directory and this journal.
    #[must_use]
    pub fn program(&self) -> String {
        self.program_in(&self.state)
    }

    /// The same for whoever reads it elsewhere, in a notice.
    #[must_use]
    pub fn program_anywhere(&self) -> String {
        self.program_in(&std::path::absolute(&self.state).unwrap_or_else(|_| self.state.clone()))
    }

    fn program_in(&self, state: &std::path::Path) -> String {
        let program = super::next::program(state);
        match self.shared.as_ref().and_then(|shared| shared.named.as_ref()) {
            Some(named) => format!("{program} --journal {}", super::next::quoted(named)),
            None => program,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_told_holds_no_password() {
        let told = without_password("postgres://ana:se:cr@et@db1:6000,db2/journal?password=secret&sslmode=require");
        assert_eq!(told, "postgres://ana@db1:6000,db2/journal");
        assert_eq!(without_password("postgres://db/journal"), "postgres://db/journal");
    }
}
