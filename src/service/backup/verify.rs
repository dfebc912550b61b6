//! `backup verify`: is everything there, and what it was?

use super::{
    super::{Muster, ServiceError},
    place::Where,
    watch::Watch,
};
use crate::providers::clock;
use crate::repository::{
    names::Id,
    verify::{Depth, verify},
};
use serde::Serialize;

#[derive(Clone, Debug, Default)]
pub struct Verify {
    pub at: Where,
    /// This snapshot alone.
    pub snapshot: Option<String>,
    /// So many packs of a hundred are read; none if left out.
    pub percent: Option<u8>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    pub good: bool,
    pub snapshots: u64,
    pub files: u64,
    pub packs_read: u64,
    pub chunks_read: u64,
    pub bytes_read: u64,
    pub duration_ms: u64,
    /// Objects that are not what was written, or are missing.
    pub problems: Vec<String>,
    /// The files that can therefore not be restored.
    pub touched: Vec<TouchedFile>,
    /// What is worth knowing and no problem: packs that nobody needs, and what is wrong with them.
    pub notices: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TouchedFile {
    pub snapshot: Id,
    pub path: String,
    pub why: String,
}

impl Muster {
    pub async fn backup_verify(&self, ask: &Verify, watch: &Watch) -> Result<VerifyReport, ServiceError> {
        let began = self.clock.monotonic();
        let opened = self.backup_open(&ask.at).await?;
        let only = match &ask.snapshot {
            Some(name) => Some(vec![opened.repository.snapshot(name).await?]),
            None => None,
        };
        let depth = match ask.percent {
            None => Depth::Structure,
            Some(percent) if percent < 100 => Depth::Share(percent),
            Some(_) => Depth::All,
        };
        let chance = clock::random().map_err(|e| ServiceError::Usage(format!("the operating system gives no random bytes: {e}")))?;
        let _heed = self.heed(watch);
        let found = verify(opened.repository, only, depth, chance, watch.progress.clone()).await;
        let found = found.map_err(|error| watch.failed(error, "verification was stopped; nothing is kept of it, so begin it again"))?;
        let touched = |one: crate::repository::verify::Touched| TouchedFile { snapshot: one.snapshot, path: one.path, why: one.why };
        Ok(VerifyReport {
            good: found.is_good(),
            snapshots: found.snapshots,
            files: found.files,
            packs_read: found.packs,
            chunks_read: found.chunks,
            bytes_read: found.bytes_read,
            duration_ms: self.clock.monotonic().saturating_sub(began).as_millis() as u64,
            problems: found.problems,
            touched: found.touched.into_iter().map(touched).collect(),
            notices: found.notices,
        })
    }
}
