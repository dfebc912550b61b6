//! The embedded journal: SQLite in the state directory.
//!
//! WAL with `synchronous=FULL`, one writer connection, and `BEGIN IMMEDIATE` for every writing
//! transaction (a deferred one that reads first gets `SQLITE_BUSY` at once, whatever the busy timeout).
//! Ownership of a chain is an OS lock (flock) on a file in the state directory: it ends with the
//! process, so `resume` takes over at once; the epoch in the store then refuses what a deposed owner
//! might still send.

use super::{chain::*, *};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, Sqlite, Transaction};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// Kept back on the disk, so that a run can still say why it stopped when the disk is full: what was under way,
/// and the pause. A commit is a few pages.
const RESERVE: u64 = 1024 * 1024;

/// How long a statement waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(10);

pub struct SqliteJournal {
    write: SqlitePool,
    read: SqlitePool,
    dir: PathBuf,
}

impl SqliteJournal {
    /// Opens the journal of a state directory, making both if they are not there.
    pub async fn open(dir: &Path) -> Result<Self, JournalError> {
        let place = dir.display().to_string();
        let fail = |why: String| JournalError::Store { place: place.clone(), why };
        if was_cut_off(dir) {
            return Err(fail(
                "it was cut off: journal.db has no bytes, and runs were kept in it; put a copy of the state directory in its place"
                    .to_owned(),
            ));
        }
        std::fs::create_dir_all(dir.join("locks")).map_err(|e| fail(explain_io(&e)))?;
        let options = SqliteConnectOptions::new()
            .filename(dir.join("journal.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool = |n| SqlitePoolOptions::new().max_connections(n).acquire_timeout(BUSY);
        let write = pool(1).connect_with(options.clone()).await.map_err(|e| fail(explain(&e)))?;
        MIGRATIONS.run(&write).await.map_err(|e| fail(explain_migration(&e)))?;
        let read = pool(2).connect_with(options).await.map_err(|e| fail(explain(&e)))?;
        let journal = Self { write, read, dir: dir.to_owned() };
        journal.keep_room();
        Ok(journal)
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("journal.reserve")
    }

    /// A disk that has no room for it now may have some when the journal is opened next.
    fn keep_room(&self) {
        use rustix::fs::{FallocateFlags, fallocate};
        let path = self.reserve();
        if path.exists() {
            return;
        }
        let made = std::fs::OpenOptions::new().create_new(true).write(true).open(&path);
        let kept = made.is_ok_and(|file| fallocate(&file, FallocateFlags::empty(), 0, RESERVE).is_ok());
        if !kept {
            tracing::debug!("no room is kept back in {}", path.display());
            // It may not even have been made.
            let _ = std::fs::remove_file(&path);
        }
    }

    fn fail(&self, error: &sqlx::Error) -> JournalError {
        JournalError::Store { place: self.dir.display().to_string(), why: explain(error) }
    }

    async fn begin(&self) -> Result<Transaction<'_, Sqlite>, JournalError> {
        let begun = self.write.begin_with("BEGIN IMMEDIATE").await;
        // SQLite itself ends a transaction that finds the disk full; the driver then believes that it is still open,
        // for as long as the connection lives.
        if matches!(begun, Err(sqlx::Error::InvalidSavePointStatement)) {
            let stuck = self.write.acquire().await.map_err(|e| self.fail(&e))?;
            stuck.close().await.map_err(|e| self.fail(&e))?;
            return self.write.begin_with("BEGIN IMMEDIATE").await.map_err(|e| self.fail(&e));
        }
        begun.map_err(|e| self.fail(&e))
    }

    /// The OS lock of a chain; `None` when another process (or another claim in this one) has it.
    fn lock(&self, run: &RunId) -> Result<Option<std::fs::File>, JournalError> {
        use std::os::unix::fs::MetadataExt;
        let path = self.dir.join("locks").join(format!("{run}.lock"));
        let fail = |why: std::io::Error| JournalError::Store { place: path.display().to_string(), why: explain_io(&why) };
        loop {
            let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
            }
            // Whoever took the chain over meanwhile has put a lock of its own in this one's place.
            let ours = file.metadata().map_err(fail)?;
            if std::fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Some(file));
            }
        }
    }

    /// A lock of our own in place of one whose holder does not let go: nobody else takes the chain when that
    /// holder ends.
    fn replace_lock(&self, run: &RunId, owner: &str) -> Result<std::fs::File, JournalError> {
        let locks = self.dir.join("locks");
        let (path, new) = (locks.join(format!("{run}.lock")), locks.join(format!("{run}.{}", sha256_hex(owner.as_bytes()))));
        let fail = |why: std::io::Error| JournalError::Store { place: path.display().to_string(), why: explain_io(&why) };
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&new).map_err(fail)?;
        file.lock().map_err(fail)?;
        std::fs::rename(&new, &path).map_err(fail)?;
        Ok(file)
    }

    async fn insert(&self, tx: &mut Transaction<'_, Sqlite>, events: &[EventRow]) -> Result<(), JournalError> {
        for event in events {
            sqlx::query("INSERT INTO events (run, seq, at, actor, epoch, kind, prev, hash, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(event.run.as_str())
                .bind(signed(event.seq))
                .bind(&event.at)
                .bind(&event.actor)
                .bind(signed(event.epoch))
                .bind(&event.kind)
                .bind(&event.prev)
                .bind(&event.hash)
                .bind(&event.record)
                .execute(&mut **tx)
                .await
                .map_err(|e| self.fail(&e))?;
        }
        Ok(())
    }

    async fn list_chain(&self, tx: &mut Transaction<'_, Sqlite>, row: &ChainRow) -> Result<(), JournalError> {
        let kind = if row.kind == ChainKind::Drill { "drill" } else { "run" };
        sqlx::query("INSERT INTO chains (id, kind, name, parent, status, started_at, epoch, owner) VALUES (?, ?, ?, ?, ?, ?, 1, ?)")
            .bind(row.id.as_str())
            .bind(kind)
            .bind(&row.name)
            .bind(row.parent.as_ref().map(RunId::as_str))
            .bind(&row.status)
            .bind(row.started_at.to_string())
            .bind(&row.owner)
            .execute(&mut **tx)
            .await
            .map_err(|e| self.fail(&e))?;
        Ok(())
    }

    /// Brings the chain's row up to its last events, and the chain of heads when it has ended.
    async fn advance(&self, tx: &mut Transaction<'_, Sqlite>, row: ChainRow, sealed: &[Sealed]) -> Result<(), JournalError> {
        let mut row = row;
        let ended = row.advance(sealed);
        sqlx::query("UPDATE chains SET seq = ?, head = ?, status = ?, finished_at = ? WHERE id = ?")
            .bind(signed(row.seq))
            .bind(&row.head)
            .bind(&row.status)
            .bind(row.finished_at.map(|at| at.to_string()))
            .bind(row.id.as_str())
            .execute(&mut **tx)
            .await
            .map_err(|e| self.fail(&e))?;
        if ended {
            sqlx::query("DELETE FROM locks WHERE run = ?").bind(row.id.as_str()).execute(&mut **tx).await.map_err(|e| self.fail(&e))?;
            self.head(tx, &row, true, None).await?;
        }
        Ok(())
    }

    async fn head(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        row: &ChainRow,
        ended: bool,
        origin: Option<&adopt::Origin>,
    ) -> Result<(), JournalError> {
        let last =
            sqlx::query("SELECT n, hash FROM heads ORDER BY n DESC LIMIT 1").fetch_optional(&mut **tx).await.map_err(|e| self.fail(&e))?;
        let (n, prev) = last.map_or((1, String::new()), |last| (last.get::<i64, _>(0) + 1, last.get::<String, _>(1)));
        let (record, hash) = match origin {
            None => seal_head(n.unsigned_abs(), &prev, row, ended),
            Some(origin) => seal_adopted(n.unsigned_abs(), &prev, row, origin),
        };
        sqlx::query("INSERT INTO heads (n, run, prev, hash, record) VALUES (?, ?, ?, ?, ?)")
            .bind(n)
            .bind(row.id.as_str())
            .bind(&prev)
            .bind(&hash)
            .bind(&record)
            .execute(&mut **tx)
            .await
            .map_err(|e| self.fail(&e))?;
        Ok(())
    }

    async fn take_locks(&self, tx: &mut Transaction<'_, Sqlite>, chain: &NewChain) -> Result<(), JournalError> {
        for resource in &chain.locks {
            let holder = sqlx::query("SELECT run FROM locks WHERE resource = ?")
                .bind(&resource.0)
                .fetch_optional(&mut **tx)
                .await
                .map_err(|e| self.fail(&e))?;
            if let Some(holder) = holder {
                return Err(JournalError::Locked { resource: resource.clone(), holder: RunId(holder.get(0)) });
            }
            sqlx::query("INSERT INTO locks (resource, run) VALUES (?, ?)")
                .bind(&resource.0)
                .bind(chain.id.as_str())
                .execute(&mut **tx)
                .await
                .map_err(|e| self.fail(&e))?;
        }
        Ok(())
    }

    /// The epoch grows by one, and with it the claim is somebody's.
    async fn raise(&self, run: &RunId, owner: &str, guard: Box<dyn Any + Send + Sync>) -> Result<Claim, JournalError> {
        let mut tx = self.begin().await?;
        let epoch = sqlx::query("UPDATE chains SET epoch = epoch + 1, owner = ? WHERE id = ? RETURNING epoch")
            .bind(owner)
            .bind(run.as_str())
            .fetch_one(&mut *tx)
            .await
            .map_err(|e| self.fail(&e))?;
        tx.commit().await.map_err(|e| self.fail(&e))?;
        let epoch = epoch.get::<i64, _>(0).unsigned_abs();
        Ok(Claim { run: run.clone(), epoch, owner: owner.to_owned(), hold: lease::Hold::unlimited(), _guard: guard })
    }

    fn rows(&self, rows: Result<Vec<SqliteRow>, sqlx::Error>) -> Result<Vec<ChainRow>, JournalError> {
        rows.map_err(|e| self.fail(&e))?.iter().map(chain_row).collect::<Result<_, _>>().map_err(|e| self.fail(&e))
    }
}

const FULL: &str = "its disk is full: make room there";

/// Is there a journal in this directory? A process that was killed before its first write leaves an empty file.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    let empty = std::fs::metadata(dir.join("journal.db")).map(|about| about.len() == 0);
    empty.is_ok_and(|empty| !empty || was_cut_off(dir))
}

/// SQLite takes a file of no length for a new database, and would answer that all is well; every run has left a lock.
fn was_cut_off(dir: &Path) -> bool {
    let empty = std::fs::metadata(dir.join("journal.db")).is_ok_and(|about| about.len() == 0);
    empty && std::fs::read_dir(dir.join("locks")).is_ok_and(|mut locks| locks.next().is_some())
}

fn explain_io(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::StorageFull { FULL.to_owned() } else { error.to_string() }
}

/// What is wrong with the store, in words for a person.
fn explain(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code).and_then(|code| code.parse::<u32>().ok());
    // The primary code is in the lowest byte: 11 is SQLITE_CORRUPT, 26 SQLITE_NOTADB.
    match code.map(|code| code & 0xff) {
        Some(13) => FULL.to_owned(),
        // SQLITE_IOERR_SHMSIZE: not even the file through which processes share the log can be made.
        Some(10) if code == Some(4874) => FULL.to_owned(),
        Some(11 | 26) => {
            format!("journal.db is damaged or was cut off ({error}); keep it, and put a copy of the state directory in its place")
        }
        _ => error.to_string(),
    }
}

fn explain_migration(error: &sqlx::migrate::MigrateError) -> String {
    use sqlx::migrate::MigrateError::{Execute, VersionMismatch, VersionMissing};
    let ours = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match error {
        VersionMissing(theirs) => {
            format!("a newer Muster wrote it: its schema is version {theirs}, and this Muster knows {ours}; use the newer one")
        }
        VersionMismatch(version) => format!("its schema {version} is not the one that Muster made"),
        Execute(error) => explain(error),
        other => other.to_string(),
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn chain_row(row: &SqliteRow) -> Result<ChainRow, sqlx::Error> {
    let time = |text: String| text.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)));
    let kind = if row.try_get::<String, _>("kind")? == "drill" { ChainKind::Drill } else { ChainKind::Run };
    Ok(ChainRow {
        id: RunId(row.try_get("id")?),
        kind,
        name: row.try_get("name")?,
        parent: row.try_get::<Option<String>, _>("parent")?.map(RunId),
        status: row.try_get("status")?,
        started_at: time(row.try_get("started_at")?)?,
        finished_at: row.try_get::<Option<String>, _>("finished_at")?.map(time).transpose()?,
        seq: row.try_get::<i64, _>("seq")?.unsigned_abs(),
        head: row.try_get("head")?,
        owner: row.try_get("owner")?,
    })
}

#[async_trait]
impl Journal for SqliteJournal {
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Result<(Claim, Stored), JournalError> {
        let guard = self.lock(&chain.id)?.ok_or_else(|| JournalError::Exists { run: chain.id.clone() })?;
        let at = first.at;
        let mut tx = self.begin().await?;
        let there = sqlx::query("SELECT 1 FROM chains WHERE id = ?").bind(chain.id.as_str()).fetch_optional(&mut *tx).await;
        if there.map_err(|e| self.fail(&e))?.is_some() {
            return Err(JournalError::Exists { run: chain.id });
        }
        self.take_locks(&mut tx, &chain).await?;
        let sealed = seal(&chain.id, 1, 0, "", vec![first])?;
        let row = ChainRow {
            id: chain.id.clone(),
            kind: chain.kind,
            name: chain.name,
            parent: chain.parent,
            status: "running".to_owned(),
            started_at: at,
            finished_at: None,
            seq: 1,
            head: sealed.first().map(|one| one.stored.hash.clone()).unwrap_or_default(),
            owner: Some(owner.to_owned()),
        };
        self.list_chain(&mut tx, &row).await?;
        self.insert(&mut tx, &rows(&sealed)).await?;
        self.head(&mut tx, &row, false, None).await?;
        self.advance(&mut tx, row, &sealed).await?;
        tx.commit().await.map_err(|e| self.fail(&e))?;
        let stored = sealed.into_iter().next().map(|one| one.stored);
        let claim =
            Claim { run: chain.id.clone(), epoch: 1, owner: owner.to_owned(), hold: lease::Hold::unlimited(), _guard: Box::new(guard) };
        stored.map(|stored| (claim, stored)).ok_or(JournalError::NoSuchRun(chain.id))
    }

    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        let row = self.row(run).await?;
        adopt::own(&row)?;
        let Some(guard) = self.lock(run)? else {
            return Err(JournalError::Owned { run: run.clone(), owner: row.owner.unwrap_or_else(|| "unknown".to_owned()) });
        };
        self.raise(run, owner, Box::new(guard)).await
    }

    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        adopt::own(&self.row(run).await?)?;
        // A frozen owner keeps its lock, which is then nobody's; the epoch refuses what it would append.
        let guard = match self.lock(run)? {
            Some(guard) => guard,
            None => self.replace_lock(run, owner)?,
        };
        self.raise(run, owner, Box::new(guard)).await
    }

    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError> {
        let run = &claim.run;
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT * FROM chains WHERE id = ?")
            .bind(run.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(|e| self.fail(&e))?
            .ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        let epoch = row.get::<i64, _>("epoch").unsigned_abs();
        let row = chain_row(&row).map_err(|e| self.fail(&e))?;
        if epoch != claim.epoch {
            return Err(JournalError::Fenced { run: run.clone(), ours: claim.epoch, now: epoch });
        }
        if row.seq != after {
            return Err(JournalError::Behind { run: run.clone(), ours: after, now: row.seq });
        }
        let sealed = seal(run, claim.epoch, after, &row.head, drafts)?;
        self.insert(&mut tx, &rows(&sealed)).await?;
        self.advance(&mut tx, row, &sealed).await?;
        tx.commit().await.map_err(|e| self.fail(&e))?;
        Ok(sealed.into_iter().map(|one| one.stored).collect())
    }

    async fn make_room(&self) -> bool {
        std::fs::remove_file(self.reserve()).is_ok()
    }

    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError> {
        let rows = sqlx::query("SELECT seq, hash, record FROM events WHERE run = ? AND seq > ? ORDER BY seq")
            .bind(run.as_str())
            .bind(signed(after))
            .fetch_all(&self.read)
            .await
            .map_err(|e| self.fail(&e))?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let seq = row.get::<i64, _>(0).unsigned_abs();
            let (hash, record): (String, Vec<u8>) = (row.get(1), row.get(2));
            let corrupt = |why: String| JournalError::Corrupt { run: run.clone(), seq, why };
            if sha256_hex(&record) != hash {
                return Err(corrupt("its bytes do not have the hash on record".to_owned()));
            }
            let event = serde_json::from_slice(&record).map_err(|e| corrupt(e.to_string()))?;
            events.push(Stored { event, hash });
        }
        Ok(events)
    }

    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError> {
        let row = sqlx::query("SELECT * FROM chains WHERE id = ?").bind(run.as_str()).fetch_optional(&self.read).await;
        let row = row.map_err(|e| self.fail(&e))?.ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        chain_row(&row).map_err(|e| self.fail(&e))
    }

    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError> {
        let kind = if kind == ChainKind::Drill { "drill" } else { "run" };
        let rows = sqlx::query("SELECT * FROM chains WHERE kind = ? ORDER BY started_at DESC, id DESC LIMIT ?");
        self.rows(rows.bind(kind).bind(i64::from(limit)).fetch_all(&self.read).await)
    }

    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM chains WHERE parent = ? ORDER BY started_at, id").bind(parent.as_str());
        self.rows(rows.fetch_all(&self.read).await)
    }

    async fn open(&self) -> Result<Vec<ChainRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM chains WHERE finished_at IS NULL ORDER BY started_at, id");
        self.rows(rows.fetch_all(&self.read).await)
    }

    async fn find(&self, prefix: &str) -> Result<RunId, JournalError> {
        let rows = sqlx::query("SELECT id FROM chains WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id LIMIT 3")
            .bind(prefix)
            .fetch_all(&self.read)
            .await;
        match rows.map_err(|e| self.fail(&e))?.as_slice() {
            [] => Err(JournalError::NoSuchRun(RunId::from(prefix))),
            [one] => Ok(RunId(one.get(0))),
            // The whole identifier comes before those that begin with it.
            [one, ..] if one.get::<String, _>(0) == prefix => Ok(RunId(one.get(0))),
            several => Err(JournalError::Ambiguous(prefix.to_owned(), several.len())),
        }
    }

    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError> {
        let text = serde_json::to_string(command).unwrap_or_default();
        let done = sqlx::query("INSERT INTO inbox (run, at, actor, command) VALUES (?, ?, ?, ?)")
            .bind(run.as_str())
            .bind(at.to_string())
            .bind(actor)
            .bind(text)
            .execute(&self.write)
            .await
            .map_err(|e| self.fail(&e))?;
        Ok(done.last_insert_rowid())
    }

    async fn letters(&self, run: &RunId) -> Result<Vec<Letter>, JournalError> {
        let rows = sqlx::query("SELECT id, actor, command FROM inbox WHERE run = ? AND taken = 0 ORDER BY id")
            .bind(run.as_str())
            .fetch_all(&self.read)
            .await
            .map_err(|e| self.fail(&e))?;
        let read = |row: &SqliteRow| {
            let command = serde_json::from_str(&row.get::<String, _>(2)).ok()?;
            Some(Letter { id: row.get(0), actor: row.get(1), command })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    async fn taken(&self, letter: i64) -> Result<(), JournalError> {
        let done = sqlx::query("UPDATE inbox SET taken = 1 WHERE id = ?").bind(letter).execute(&self.write).await;
        done.map(|_| ()).map_err(|e| self.fail(&e))
    }

    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError> {
        let row = sqlx::query("SELECT considered FROM schedules WHERE drill = ?").bind(drill).fetch_optional(&self.read).await;
        Ok(row.map_err(|e| self.fail(&e))?.and_then(|row| row.get::<String, _>(0).parse().ok()))
    }

    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError> {
        let done = sqlx::query(
            "INSERT INTO schedules (drill, considered) VALUES (?, ?) ON CONFLICT (drill) DO UPDATE SET considered = excluded.considered",
        )
        .bind(drill)
        .bind(until.to_string())
        .execute(&self.write)
        .await;
        done.map(|_| ()).map_err(|e| self.fail(&e))
    }

    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let mut tx = self.begin().await?;
        for adopt::Adopted { row, events, known } in &chains {
            if !known {
                self.list_chain(&mut tx, row).await?;
            }
            self.insert(&mut tx, events).await?;
            sqlx::query("UPDATE chains SET seq = ?, head = ?, status = ?, finished_at = ?, owner = ? WHERE id = ?")
                .bind(signed(row.seq))
                .bind(&row.head)
                .bind(&row.status)
                .bind(row.finished_at.map(|at| at.to_string()))
                .bind(&row.owner)
                .bind(row.id.as_str())
                .execute(&mut *tx)
                .await
                .map_err(|e| self.fail(&e))?;
            self.head(&mut tx, row, false, Some(origin)).await?;
        }
        tx.commit().await.map_err(|e| self.fail(&e))
    }

    async fn dump(&self, only: Option<&[RunId]>) -> Result<Dump, JournalError> {
        let only = only.map(|only| serde_json::to_string(only).unwrap_or_default());
        // One snapshot for all three, so that a run in progress does not look like damage.
        let mut tx = self.read.begin().await.map_err(|e| self.fail(&e))?;
        let rows = "SELECT * FROM chains WHERE ?1 IS NULL OR id IN (SELECT value FROM json_each(?1)) ORDER BY started_at, id";
        let rows = sqlx::query(rows).bind(&only).fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?;
        let events = "SELECT * FROM events WHERE ?1 IS NULL OR run IN (SELECT value FROM json_each(?1)) ORDER BY run, seq";
        let events = sqlx::query(events).bind(&only).fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?;
        let heads = sqlx::query("SELECT * FROM heads ORDER BY n").fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?;
        let rows = rows.iter().map(chain_row).collect::<Result<_, _>>().map_err(|e| self.fail(&e))?;
        let heads = only.is_none().then(|| heads.iter().map(head_row).collect());
        Ok(Dump { rows, events: events.iter().map(event_row).collect(), heads })
    }
}

fn event_row(row: &SqliteRow) -> EventRow {
    EventRow {
        run: RunId(row.get("run")),
        seq: row.get::<i64, _>("seq").unsigned_abs(),
        at: row.get("at"),
        actor: row.get("actor"),
        epoch: row.get::<i64, _>("epoch").unsigned_abs(),
        kind: row.get("kind"),
        prev: row.get("prev"),
        hash: row.get("hash"),
        record: row.get("record"),
    }
}

fn head_row(row: &SqliteRow) -> HeadRow {
    HeadRow {
        n: row.get::<i64, _>("n").unsigned_abs(),
        run: RunId(row.get("run")),
        prev: row.get("prev"),
        hash: row.get("hash"),
        record: row.get("record"),
    }
}
