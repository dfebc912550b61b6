//! A drill that made way for a live failover: its runs are brought to their end, its faults are healed, and it
//! closes without a verdict on anything. Nothing is led back: the estate is somebody else's now.

use super::conduct::{DrillError, Underway};
use crate::journal::JournalError;
use crate::model::{event::*, ids::*, objective::Verdict};

impl Underway {
    /// Puts on record that the drill makes way, if that is what ended its run, or keeps one from beginning.
    pub(super) async fn makes_way(&mut self, to: Option<&RunId>) -> Result<(), DrillError> {
        match to {
            Some(by) if self.state.preempted.is_none() => {
                let reason = format!("pre-empted by run {by}");
                self.append(vec![Body::DrillPreempted { by: by.clone(), reason }]).await
            }
            _ => Ok(()),
        }
    }

    /// What is left to do for a drill that has made way.
    pub(super) async fn give_way(&mut self) -> Result<(), DrillError> {
        let Some(reason) = self.state.preempted.clone() else { return Ok(()) };
        self.end_runs().await?;
        self.heal().await?;
        let reasons = vec![reason];
        let summary = super::summary::summary(&self.state, Verdict::Inconclusive);
        self.append(vec![Body::DrillFinished { verdict: Verdict::Inconclusive, reasons, summary }]).await
    }

    /// Each run of the drill has been asked to end; those that have not are brought to it.
    async fn end_runs(&mut self) -> Result<(), DrillError> {
        let engine = self.conductor.engine.clone();
        for (role, (run, ended)) in self.state.runs.clone() {
            if ended.is_some() {
                continue;
            }
            let row = engine.journal.row(&run).await?;
            if row.finished_at.is_none() {
                let claim = engine.journal.claim(&run, &engine.actor).await?;
                engine.carry_on(claim, true).await?;
            }
            let events = engine.journal.load(&run, 0).await?;
            let state = crate::plan::state::RunState::of(events.iter().map(|stored| &stored.event));
            let status = state.map(|state| state.status).ok_or_else(|| DrillError::Journal(JournalError::NoSuchRun(run.clone())))?;
            self.append(vec![Body::RunEnded { run, role, status }]).await?;
        }
        Ok(())
    }
}
