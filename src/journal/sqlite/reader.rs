//! A chain read from the store: what a run is gone on with after a crash, while somebody waits.
//!
//! Through rusqlite, on a thread that may block: sqlx hands each row from its thread to the asker's, which for ten thousand
//! events takes longer than reading them. Rows are fetched under one connection, which is kept, and decoded without it, on all
//! processors where there are many.

use super::{BUSY, QUEUE, signed, trouble};
use crate::journal::{JournalError, Stored, open_record};
use crate::model::ids::RunId;
use rusqlite::{Connection, OpenFlags};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;

/// Fewer events than this are decoded sooner than a thread is begun.
const WORTH_A_THREAD: usize = 1_000;

pub struct Reader {
    path: PathBuf,
    /// Opened with the first chain that is asked for.
    kept: Arc<Mutex<Option<Connection>>>,
}

/// An event as the store has it.
struct Row {
    seq: u64,
    digest: Vec<u8>,
    record: Vec<u8>,
}

impl Reader {
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("journal.db"), kept: Arc::default() }
    }

    /// The events of a chain behind `after`; a text where the store could not be read.
    pub async fn load(&self, run: &RunId, after: u64) -> Result<Result<Vec<Stored>, JournalError>, String> {
        let waiting = tokio::time::timeout(QUEUE, self.kept.clone().lock_owned());
        let mut kept = waiting.await.map_err(|_| "others have been reading for ten minutes".to_owned())?;
        let (path, run) = (self.path.clone(), run.clone());
        let work = tokio::task::spawn_blocking(move || {
            let rows = fetch(&mut kept, &path, &run, after);
            drop(kept);
            rows.map(|rows| decode(&run, &rows))
        });
        // Bounded by the store's own patience, and by what there is to read.
        work.await.map_err(|died| died.to_string())?.map_err(|error| trouble::of_rusqlite(&error))
    }
}

fn fetch(kept: &mut Option<Connection>, path: &Path, run: &RunId, after: u64) -> rusqlite::Result<Vec<Row>> {
    let connection = match kept.take() {
        Some(connection) => connection,
        None => {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(BUSY)?;
            connection
        }
    };
    let rows = {
        let of = "SELECT seq, hash, record FROM events WHERE chain = (SELECT n FROM chains WHERE id = ?1) AND seq > ?2 ORDER BY seq";
        let mut select = connection.prepare_cached(of)?;
        let row = |row: &rusqlite::Row<'_>| {
            let bytes = |at| Ok::<_, rusqlite::Error>(row.get_ref(at)?.as_bytes()?.to_vec());
            Ok(Row { seq: row.get::<_, i64>(0)?.unsigned_abs(), digest: bytes(1)?, record: bytes(2)? })
        };
        select.query_map(rusqlite::params![run.as_str(), signed(after)], row)?.collect::<Result<Vec<_>, _>>()?
    };
    // One that failed is not used again.
    *kept = Some(connection);
    Ok(rows)
}

/// Every event is compared with its hash, so the first that is damaged is the one that is named.
fn decode(run: &RunId, rows: &[Row]) -> Result<Vec<Stored>, JournalError> {
    let open = |rows: &[Row]| rows.iter().map(|row| open_record(run, row.seq, &row.digest, &row.record)).collect::<Result<Vec<_>, _>>();
    let hands = std::thread::available_parallelism().map_or(1, usize::from).min(rows.len() / WORTH_A_THREAD).max(1);
    if hands == 1 {
        return open(rows);
    }
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = rows.chunks(rows.len().div_ceil(hands)).map(|part| scope.spawn(move || open(part))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect::<Vec<_>>()
    });
    let mut events = Vec::with_capacity(rows.len());
    for part in parts {
        events.extend(part?);
    }
    Ok(events)
}
