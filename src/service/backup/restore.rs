//! `backup restore`: from a snapshot back to files.

use super::{
    super::{Muster, ServiceError},
    place::Where,
    restore_cluster::{Recover, RecoveryReport},
    watch::Watch,
};
use crate::providers::port::ObjectRead;
use crate::repository::{
    globs::Globs,
    names::Id,
    recovery::Cluster,
    restore::{Into, Lost, RestoreOptions, Restored, nothing_fits, restore},
    restore_bucket,
};
use serde::Serialize;
use std::{path::PathBuf, sync::atomic::Ordering::Relaxed};

const GO_ON: &str = "the restore was stopped. What is called by its own name is whole; the same command with --in-place goes on from there";

#[derive(Clone, Debug, Default)]
pub struct Restore {
    pub at: Where,
    pub snapshot: String,
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub to: String,
    pub include: Vec<String>,
    /// The folder may hold something already: what differs is changed.
    pub in_place: bool,
    /// What is not in the snapshot is removed.
    pub delete: bool,
    pub dry_run: bool,
    /// A base backup as the files that it has, not made ready to recover.
    pub files_only: bool,
    /// Of a base backup.
    pub recover: Recover,
}

#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    pub snapshot: Id,
    pub to: String,
    pub dry_run: bool,
    #[serde(flatten)]
    pub restored: Restored,
    /// Of a base backup: how the server will recover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryReport>,
}

impl RestoreReport {
    /// Is everything there, as it was?
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.restored.damaged.is_empty()
    }
}

impl Muster {
    pub async fn backup_restore(&self, ask: &Restore, watch: &Watch) -> Result<RestoreReport, ServiceError> {
        if ask.to.starts_with("s3:") {
            if ask.recover.is_asked() {
                return Err(ServiceError::Usage("a server is restored into a folder: --to DIR".to_owned()));
            }
            return self.backup_restore_objects(ask, watch).await;
        }
        if ask.to.contains("://") {
            return Err(ServiceError::Usage(format!("{} is no place to restore into: write --to DIR or --to s3://BUCKET/PREFIX", ask.to)));
        }
        let include = Globs::new(&ask.include)?;
        let into = if ask.in_place || ask.delete { Into::Place { delete: ask.delete } } else { Into::Empty };
        let opened = self.backup_open(&ask.at).await?;
        let (id, snapshot) = opened.repository.snapshot(&ask.snapshot).await?;
        match Cluster::of(&snapshot) {
            // Single files of it are files.
            Some(cluster) if include.is_empty() && !ask.files_only => {
                return self.backup_restore_cluster(ask, &cluster, opened, (id, &snapshot), watch).await;
            }
            _ if ask.recover.is_asked() => {
                return Err(ServiceError::Usage(format!(
                    "snapshot {} is {} of {}: --until, --timeline, --port, --tablespace, --other-cluster and --discard-wal are for a base backup of PostgreSQL that is made ready to recover",
                    id.short(),
                    if include.is_empty() { "restored as files, and is one" } else { "restored in part, and is one" },
                    snapshot.source.shown()
                )));
            }
            _ => {}
        }
        let _heed = self.heed(watch);
        let options = RestoreOptions { include, into, owner: true, dry_run: ask.dry_run };
        let restored = restore(opened.repository, &snapshot, &PathBuf::from(&ask.to), options, watch.progress.clone()).await;
        let restored = restored.map_err(|error| watch.failed(error, GO_ON))?;
        Ok(RestoreReport { snapshot: id, to: ask.to.clone(), dry_run: ask.dry_run, restored, recovery: None })
    }

    /// Into a bucket. What is there already is not written again; what is there under another name stays, unless its
    /// removal is asked for.
    async fn backup_restore_objects(&self, ask: &Restore, watch: &Watch) -> Result<RestoreReport, ServiceError> {
        let began = self.clock.monotonic();
        let include = Globs::new(&ask.include)?;
        let to = self.backup_objects(&ask.to)?;
        let opened = self.backup_open(&ask.at).await?;
        let (id, snapshot) = opened.repository.snapshot(&ask.snapshot).await?;
        if ask.delete && within_one_another(&*opened.repository.store, &*to) {
            return Err(ServiceError::Usage(format!(
                "{} is where the repository lies, or lies in it: --delete would remove the repository. Restore to another place",
                ask.to
            )));
        }
        let _heed = self.heed(watch);
        if include.is_empty() {
            watch.progress.total_files.store(snapshot.stats.files, Relaxed);
            watch.progress.total_bytes.store(snapshot.stats.bytes, Relaxed);
        }
        let wanted = move |path: &[u8]| include.is_empty() || include.fits_within(path);
        let how = restore_bucket::How { dry_run: ask.dry_run, delete: ask.delete };
        let done = restore_bucket::restore(opened.repository, &snapshot, to, wanted, how, watch.progress.clone()).await;
        let done = done.map_err(|error| watch.failed(error, "the restore was stopped; the same command goes on from there"))?;
        if !ask.include.is_empty() && done.objects + done.skipped == 0 && done.lost.is_empty() {
            return Err(nothing_fits().into());
        }
        let restored = Restored {
            files: done.objects + done.skipped,
            bytes: done.bytes + done.skipped_bytes,
            bytes_written: done.bytes,
            bytes_in_place: done.skipped_bytes,
            deleted: done.deleted,
            damaged: done.lost.into_iter().map(|(path, why)| Lost { path, why }).collect(),
            notes: done.notes,
            duration_ms: self.clock.monotonic().saturating_sub(began).as_millis() as u64,
            ..Restored::default()
        };
        Ok(RestoreReport { snapshot: id, to: ask.to.clone(), dry_run: ask.dry_run, restored, recovery: None })
    }
}

/// Is one of the places a part of the other? Different servers may have buckets of the same name; then it is refused too.
fn within_one_another(one: &dyn ObjectRead, other: &dyn ObjectRead) -> bool {
    let (Some(one), Some(other)) = (one.place(""), other.place("")) else { return false };
    one.bucket == other.bucket && (one.key.starts_with(&other.key) || other.key.starts_with(&one.key))
}
