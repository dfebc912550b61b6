//! `backup prune`: gives back the space of what no snapshot needs, in two phases, so that running backups need no lock.

use super::{
    super::{Muster, ServiceError},
    place::Where,
    watch::Watch,
};
use crate::model::time::{Span, rfc3339_ms};
use crate::repository::prune::{look, prune};
use serde::Serialize;

const GO_ON: &str = "pruning was stopped; nothing that a snapshot needs was touched, and the same command goes on";
/// Clocks may differ by half of it, and a backup may take so long between its last look and its snapshot.
const SHORTEST: Span = Span::from_secs(60);

#[derive(Clone, Debug)]
pub struct Prune {
    pub at: Where,
    /// Between finding a pack unused and deleting it.
    pub grace: Span,
    pub dry_run: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct PruneReport {
    pub dry_run: bool,
    /// Packs that hold too little that is needed: the rest of them was moved into new ones.
    pub repacked: u64,
    /// Packs found unused now. They are deleted by a run after the grace.
    pub marked: u64,
    pub deleted: u64,
    pub bytes_deleted: u64,
    /// What was read of the copies that are kept of what was deleted, to see that they are whole.
    pub bytes_checked: u64,
    /// Marked, by this run or earlier, and not deleted yet.
    pub waiting: u64,
    /// Not deleted, though their grace is over: the store retains them until the instant below, the last of them.
    pub retained: u64,
    pub retained_until: Option<String>,
    /// Objects of write-ahead logs, by the same two phases.
    pub wal_marked: u64,
    pub wal_deleted: u64,
    pub wal_waiting: u64,
    /// Why pieces are kept though their segment is there whole: it is damaged, or has other bytes. Each in a sentence.
    pub wal_kept: Vec<String>,
    pub grace_ms: u64,
    pub bytes_stored: u64,
    pub bytes_unused: u64,
    pub duration_ms: u64,
}

impl Muster {
    pub async fn backup_prune(&self, ask: &Prune, watch: &Watch) -> Result<PruneReport, ServiceError> {
        if ask.grace < SHORTEST && ask.grace.ms != 0 {
            return Err(ServiceError::Usage(format!(
                "a grace of {} is too short for a backup that runs meanwhile: write at least {SHORTEST}, or 0s if none can be running",
                ask.grace
            )));
        }
        let began = self.clock.monotonic();
        let opened = self.backup_open(&ask.at).await?;
        let _heed = self.heed(watch);
        let seen = look(&opened.repository, self.clock.now()).await?;
        let plan = seen.plan.clone();
        let mut report = PruneReport {
            dry_run: ask.dry_run,
            repacked: plan.repack.len() as u64,
            marked: plan.mark.len() as u64,
            deleted: plan.delete.len() as u64,
            bytes_deleted: plan.delete_bytes,
            bytes_checked: 0,
            waiting: plan.waiting + plan.mark.len() as u64,
            retained: plan.retained,
            retained_until: plan.retained_until.map(rfc3339_ms),
            wal_marked: seen.wal.mark.len() as u64,
            wal_deleted: seen.wal.delete.len() as u64,
            wal_waiting: seen.wal.waiting + seen.wal.mark.len() as u64,
            wal_kept: Vec::new(),
            grace_ms: ask.grace.ms,
            bytes_stored: plan.stored_bytes,
            bytes_unused: plan.unused_bytes,
            duration_ms: 0,
        };
        if !ask.dry_run {
            let done = prune(opened.repository, opened.store, seen, ask.grace.ms / 1000, watch.progress.clone()).await;
            let done = done.map_err(|error| watch.failed(error, GO_ON))?;
            (report.repacked, report.marked, report.deleted) = (done.repacked, done.marked, done.deleted);
            (report.wal_marked, report.wal_deleted, report.wal_waiting) = (done.wal_marked, done.wal_deleted, done.wal_waiting);
            (report.bytes_deleted, report.bytes_checked, report.waiting) = (done.deleted_bytes, done.checked_bytes, done.waiting);
            report.wal_kept = done.wal_kept;
        }
        report.duration_ms = self.clock.monotonic().saturating_sub(began).as_millis() as u64;
        Ok(report)
    }
}
