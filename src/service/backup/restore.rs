//! `backup restore`: from a snapshot back to files.

use super::{
    super::{Muster, ServiceError},
    place::Where,
    watch::Watch,
};
use crate::repository::{
    globs::Globs,
    names::Id,
    restore::{Into, RestoreOptions, Restored, restore},
};
use serde::Serialize;
use std::path::PathBuf;

const GO_ON: &str = "the restore was stopped. What is called by its own name is whole; the same command with --in-place goes on from there";

#[derive(Clone, Debug, Default)]
pub struct Restore {
    pub at: Where,
    pub snapshot: String,
    /// A folder.
    pub to: String,
    pub include: Vec<String>,
    /// The folder may hold something already: what differs is changed.
    pub in_place: bool,
    /// What is not in the snapshot is removed.
    pub delete: bool,
    pub dry_run: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    pub snapshot: Id,
    pub to: String,
    pub dry_run: bool,
    #[serde(flatten)]
    pub restored: Restored,
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
        if ask.to.contains("://") {
            return Err(ServiceError::Usage(format!("{} is no folder to restore into: write --to DIR", ask.to)));
        }
        let include = Globs::new(&ask.include)?;
        let into = if ask.in_place || ask.delete { Into::Place { delete: ask.delete } } else { Into::Empty };
        let opened = self.backup_open(&ask.at).await?;
        let (id, snapshot) = opened.repository.snapshot(&ask.snapshot).await?;
        let _heed = self.heed(watch);
        let options = RestoreOptions { include, into, owner: true, dry_run: ask.dry_run };
        let restored = restore(opened.repository, &snapshot, &PathBuf::from(&ask.to), options, watch.progress.clone()).await;
        let restored = restored.map_err(|error| watch.failed(error, GO_ON))?;
        Ok(RestoreReport { snapshot: id, to: ask.to.clone(), dry_run: ask.dry_run, restored })
    }
}
