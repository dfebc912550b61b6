//! `backup copy`: the same repository in a second place.

use super::{
    super::{Muster, ServiceError},
    look::Filter,
    place::Where,
    watch::Watch,
};
use crate::repository::{copy::copy, names::Id};
use serde::Serialize;

const GO_ON: &str = "copying was stopped; the same command goes on from what is there already";

#[derive(Clone, Debug, Default)]
pub struct Copy {
    pub at: Where,
    /// All, if none is named.
    pub ids: Vec<String>,
    pub filter: Filter,
    pub to: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    pub to: String,
    /// What is there now of what was asked for.
    pub snapshots: Vec<Id>,
    pub snapshots_copied: u64,
    pub packs_copied: u64,
    pub bytes_copied: u64,
    /// Objects of write-ahead logs.
    pub wal_copied: u64,
    pub wal_bytes_copied: u64,
    /// Keys that went along, and how those of both places differ otherwise, with what mends it.
    pub keys_copied: u64,
    pub keys_differ: Vec<String>,
    /// Marks of a prune there that could not be opened: what they mark is not known. Each in a sentence.
    pub marks_unread: Vec<String>,
    /// The provider copied by itself.
    pub server_side: bool,
    pub duration_ms: u64,
    /// What the source no longer has whole, or the place that it is copied to, and the snapshots that are not copied for it.
    pub damaged: Vec<String>,
}

impl Muster {
    pub async fn backup_copy(&self, ask: &Copy, watch: &Watch) -> Result<CopyReport, ServiceError> {
        let began = self.clock.monotonic();
        let (to, place) = self.backup_store(&ask.to)?;
        let opened = self.backup_open(&ask.at).await?;
        if place == opened.repository.place {
            return Err(ServiceError::Usage(format!("{place} is the repository itself: copy to another place")));
        }
        let (mut wanted, mut damaged) = (Vec::new(), Vec::new());
        for name in &ask.ids {
            wanted.push(opened.repository.snapshot(name).await?);
        }
        if ask.ids.is_empty() {
            let found = opened.repository.snapshots().await?;
            damaged = found.damaged.iter().map(ToString::to_string).collect();
            wanted = found.whole;
            wanted.retain(|(_, snapshot)| ask.filter.fits(snapshot));
        }
        let _heed = self.heed(watch);
        let done = copy(&opened.repository, to, &place, &wanted, watch.progress.clone(), &*self.clock).await;
        let done = done.map_err(|error| watch.failed(error, GO_ON))?;
        damaged.extend(done.damaged);
        Ok(CopyReport {
            to: place,
            snapshots: done.there,
            snapshots_copied: done.snapshots,
            packs_copied: done.packs,
            bytes_copied: done.bytes,
            wal_copied: done.wal,
            wal_bytes_copied: done.wal_bytes,
            keys_copied: done.keys.brought,
            keys_differ: done.keys.differ,
            marks_unread: done.marks_unread,
            server_side: done.server_side,
            duration_ms: self.clock.monotonic().saturating_sub(began).as_millis() as u64,
            damaged,
        })
    }
}
