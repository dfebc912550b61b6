//! `wal archive`: PostgreSQL's `archive_command`. It answers that all is well only when the segment is durable in the
//! repository, and never before; then the server may recycle its own copy. Whatever else happens, the server keeps the
//! segment and asks again.

use super::{
    super::{Muster, ServiceError, backup::place::Where},
    cluster::system_of,
};
use crate::repository::{
    RepositoryError,
    wal::{Put, WalStore},
    wal_history::History,
    wal_name::{Segment, SegmentName},
    wal_page,
};
use bytes::Bytes;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// No file of a log is larger than the largest segment.
const LARGEST: u64 = 1 << 30;

#[derive(Clone, Debug, Default)]
pub struct Archive {
    pub at: Where,
    /// `%p`.
    pub file: PathBuf,
    /// What it is called, if not as the file is.
    pub name: Option<String>,
    pub system: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ArchiveReport {
    pub system_identifier: String,
    pub name: String,
    /// It was there already, the same to the byte.
    pub there: bool,
    pub bytes: u64,
    pub duration_ms: u64,
}

impl Muster {
    pub async fn wal_archive(&self, ask: &Archive) -> Result<ArchiveReport, ServiceError> {
        let began = self.clock.monotonic();
        let name = match &ask.name {
            Some(name) => name.clone(),
            None => ask.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        let name: SegmentName = name.parse().map_err(ServiceError::Usage)?;
        let system = system_of(&ask.file, ask.system.as_deref())?;
        let content = read(&ask.file)?;
        // The key is derived while nothing else waits for it.
        let opened = self.backup_open(&ask.at).await?;
        let wal = WalStore::new(opened.repository, opened.store, system.clone())?;
        let refused = |why: String| {
            ServiceError::Repository(RepositoryError::Refused(format!("{} is not archived as {name}: {why}", ask.file.display())))
        };
        match name {
            SegmentName::Whole(segment) => fits(&wal, &ask.file, segment, &content, true).await?.map_err(refused)?,
            SegmentName::Partial(segment) => fits(&wal, &ask.file, segment, &content, false).await?.map_err(refused)?,
            SegmentName::History(timeline) => drop(History::parse(timeline, &content).map_err(refused)?),
            SegmentName::Backup(..) => {}
        }
        let bytes = content.len() as u64;
        let put = wal.put(&name, content).await?;
        let duration_ms = self.clock.monotonic().saturating_sub(began).as_millis() as u64;
        Ok(ArchiveReport { system_identifier: system, name: name.to_string(), there: put == Put::Same, bytes, duration_ms })
    }
}

fn read(file: &Path) -> Result<Bytes, ServiceError> {
    let fail =
        |why: &dyn std::fmt::Display| ServiceError::Repository(RepositoryError::File { path: file.to_owned(), why: why.to_string() });
    let size = std::fs::metadata(file).map_err(|e| fail(&e))?.len();
    if size > LARGEST {
        return Err(fail(&format!("it has {size} bytes, more than any segment")));
    }
    Ok(std::fs::read(file).map_err(|e| fail(&e))?.into())
}

/// Is this what a segment of that name holds? The inner error says why not.
async fn fits(wal: &WalStore, file: &Path, segment: Segment, content: &[u8], whole: bool) -> Result<Result<(), String>, ServiceError> {
    let history = match wal_page::first_page(content) {
        // Most often: no history is needed.
        Ok(page) if page.timeline == segment.timeline => None,
        _ => history(wal, file, segment.timeline).await?,
    };
    Ok(wal_page::check(&segment, content, whole, history.as_ref()).and_then(|page| match wal.system_identifier() {
        system if page.system.to_string() == system => Ok(()),
        system => Err(format!("it is of the cluster {}, and this is {system}", page.system)),
    }))
}

/// A timeline's history, from beside the segment or from the repository.
async fn history(wal: &WalStore, file: &Path, timeline: u32) -> Result<Option<History>, ServiceError> {
    let name = SegmentName::History(timeline);
    let content = match std::fs::read(file.with_file_name(name.to_string())) {
        Ok(content) => Some(content),
        Err(_) => wal.get(&name).await?,
    };
    Ok(content.and_then(|content| History::parse(timeline, &content).ok()))
}
