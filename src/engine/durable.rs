//! Putting something on record in spite of a store that is in trouble for a while, and of answers that are
//! lost: for what has no run's loop around it, such as a chain's beginning and a drill's phases.

use super::{Engine, INBOX};
use crate::journal::{Claim, Draft, JournalError, NewChain, Stored};
use crate::model::event::Body;
use std::time::Duration;

/// How long a beginning is tried again: nothing has happened yet, and somebody may be waiting.
const BEGIN_PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// Begins a chain. A store that took it and could not say so knows it again when it is asked again.
    pub async fn begin_chain(&self, chain: NewChain, first: Draft) -> Result<(Claim, Stored), JournalError> {
        let begun = self.clock.monotonic();
        loop {
            match self.journal.create(chain.clone(), &self.actor, first.clone()).await {
                Err(JournalError::Store { place, why }) if self.clock.monotonic().saturating_sub(begun) < BEGIN_PATIENCE => {
                    tracing::warn!("the journal in {place} does not take the beginning of {} ({why}); trying again", chain.id);
                    self.clock.sleep(INBOX).await;
                }
                done => return done,
            }
        }
    }

    /// Appends what happened, for as long as the claim holds and patience lasts.
    pub async fn append_for(&self, claim: &Claim, after: u64, bodies: Vec<Body>) -> Result<Vec<Stored>, JournalError> {
        let drafts: Vec<_> = bodies.into_iter().map(|body| self.draft(body)).collect();
        let begun = self.clock.monotonic();
        let mut unheard = false;
        loop {
            let now = self.clock.monotonic();
            let patient = now.saturating_sub(begun) < super::APPEND_PATIENCE && claim.hold.permits(now);
            match self.journal.append(claim, after, drafts.clone()).await {
                Err(JournalError::Store { place, why }) if patient => {
                    tracing::warn!("the journal in {place} does not take what happened ({why}); trying again");
                    unheard = true;
                    self.clock.sleep(INBOX).await;
                }
                Err(behind @ JournalError::Behind { .. }) if unheard => {
                    let there = self.journal.load(&claim.run, after).await?;
                    return if super::are_ours(claim, &there, &drafts) { Ok(there) } else { Err(behind) };
                }
                done => return done,
            }
        }
    }
}
