//! A load for the engine on this machine: runs that do nothing, as fast as the journal takes them.
//!
//! They are runs like any other: the same engine, the same journal, the same records, each step durable
//! before the next one begins. Only what their steps act on is left out.

use super::{Muster, ServiceError, files::Kind};
use crate::engine::Engine;
use crate::model::{estate::Estate, plan::Plan, status::RunStatus};
use crate::runbook::load;
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// What to do, and for how long.
#[derive(Clone, Debug)]
pub struct Load {
    pub steps: u32,
    /// How many runs are under way at once.
    pub concurrency: u32,
    pub length: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    pub workflows: u64,
    pub steps: u32,
    pub concurrency: u32,
    pub seconds: f64,
    /// From before a run was created until after its end was durable.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Muster {
    /// A plan of so many steps that do nothing, one after the other.
    pub fn noop_plan(&self, steps: u32) -> Result<Plan, ServiceError> {
        let step = |n| format!("  - id: step_{n}\n    uses: condition.check\n    with: {{ that: true }}\n");
        let text = format!("runbook: noop\nsteps:\n{}", (1..=steps).map(step).collect::<String>());
        let book = load::load_runbook("noop.yaml", text.as_bytes()).map_err(ServiceError::Invalid)?;
        self.plan(&book, &Estate::default(), &BTreeMap::new(), Kind { scope: crate::model::plan::Scope::Live, live: false, waive: None })
    }

    /// Keeps so many runs under way in this state directory, until the time is over.
    pub async fn noop(&self, load: &Load) -> Result<Loaded, ServiceError> {
        let plan = Arc::new(self.noop_plan(load.steps)?);
        let engine = self.engine(&Arc::default()).await?;
        one(&engine, &plan).await?;
        let begun = self.clock.monotonic();
        let mut lanes = JoinSet::new();
        for _ in 0..load.concurrency {
            lanes.spawn(lane(engine.clone(), plan.clone(), begun + load.length));
        }
        let mut took = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            took.extend(lane.map_err(|died| ServiceError::Usage(died.to_string()))??);
        }
        let seconds = self.clock.monotonic().saturating_sub(begun).as_secs_f64();
        took.sort_unstable();
        let at = |share: usize| {
            let place = took.len().saturating_sub(1) * share / 100;
            took.get(place).map_or(0.0, |took: &Duration| took.as_secs_f64() * 1e3)
        };
        Ok(Loaded {
            workflows: took.len() as u64,
            steps: load.steps,
            concurrency: load.concurrency,
            seconds,
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: at(100),
        })
    }

    /// The same over a journal of its own beside this one, which is removed afterwards.
    pub async fn noop_apart(&self, load: &Load) -> Result<Loaded, ServiceError> {
        let folder = self.state.join(format!("bench-{}", self.clock.new_id()));
        let apart = Self { state: folder.clone(), opened: Arc::default(), ..self.clone() };
        let loaded = apart.noop(load).await;
        drop(apart);
        let removed = self.remove(&folder).await;
        // The state directory is left as it was found, which may be not at all.
        let _ = std::fs::remove_dir(&self.state);
        let loaded = loaded?;
        removed.map_err(|e| ServiceError::Usage(format!("{} could not be removed: {e}", folder.display())))?;
        Ok(loaded)
    }

    /// The store closes its files after the last one who used it is gone, and may tidy them up meanwhile.
    async fn remove(&self, folder: &Path) -> std::io::Result<()> {
        for _ in 0..20 {
            if std::fs::remove_dir_all(folder).is_ok() {
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        std::fs::remove_dir_all(folder)
    }
}

async fn lane(engine: Engine, plan: Arc<Plan>, until: Duration) -> Result<Vec<Duration>, ServiceError> {
    let mut took = Vec::new();
    loop {
        let begun = engine.clock.monotonic();
        if begun >= until {
            return Ok(took);
        }
        one(&engine, &plan).await?;
        took.push(engine.clock.monotonic().saturating_sub(begun));
    }
}

async fn one(engine: &Engine, plan: &Arc<Plan>) -> Result<(), ServiceError> {
    let (claim, first) = engine.create(plan.clone(), None).await?;
    let run = claim.run.clone();
    let outcome = engine.start(claim, first).await?;
    if outcome.state.status == RunStatus::Succeeded {
        return Ok(());
    }
    Err(ServiceError::Usage(format!("run {run} is {}: {}", outcome.state.status.word(), outcome.state.reason.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many commits the write-ahead log holds: frames that say how large the database is after them.
    fn commits(state: &std::path::Path) -> usize {
        let log = std::fs::read(state.join("journal.db-wal")).unwrap();
        let frames = log.get(32..).unwrap_or_default().chunks_exact(24 + 4_096);
        frames.filter(|frame| frame[4..8] != [0; 4]).count()
    }

    #[tokio::test]
    async fn a_step_costs_one_commit_and_everything_is_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let muster = Muster::new(dir.path().join("state"), dir.path().join("muster.yaml"));
        let journal = muster.journal().await.unwrap();
        let before = commits(&muster.state);
        // No time at all: only the run that comes before the measurement.
        let load = Load { steps: 10, concurrency: 3, length: Duration::ZERO };
        assert_eq!(muster.noop(&load).await.unwrap().workflows, 0);
        // Its creation, each step's intent with the outcome of the one before, its end.
        assert_eq!(commits(&muster.state) - before, 12);
        let found = crate::journal::chain::verify(&journal.dump(None).await.unwrap());
        assert_eq!((found.problems, found.chains, found.events), (Vec::new(), 1, 43));
    }

    #[tokio::test]
    async fn a_journal_apart_is_removed_and_many_at_once_all_end() {
        let dir = tempfile::tempdir().unwrap();
        let muster = Muster::new(dir.path().join("state"), dir.path().join("muster.yaml"));
        let load = Load { steps: 3, concurrency: 20, length: Duration::from_millis(300) };
        let loaded = muster.noop_apart(&load).await.unwrap();
        assert!(loaded.workflows >= 20 && loaded.p50_ms > 0.0 && loaded.p99_ms >= loaded.p50_ms, "{loaded:?}");
        assert!(!muster.state.exists(), "nothing is left behind");
    }
}
