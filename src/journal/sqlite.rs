//! The embedded journal: SQLite in the state directory.
//!
//! WAL with `synchronous=FULL`, and `BEGIN IMMEDIATE` for every writing transaction (a deferred one that
//! reads first gets `SQLITE_BUSY` at once, whatever the busy timeout). All that a process writes goes
//! through one [`writer`], which lets those who write at the same time share a commit; who owns a chain is
//! told by the lock file of its process ([`hold`]). The epoch in the store refuses what a deposed owner
//! might still send.
//!
//! Reading goes through sqlx, as does bringing an older journal to today's form. Writing, and reading a chain
//! from end to end ([`reader`]), go through rusqlite, over the same library: a prepared statement is a function
//! call there, and many a millisecond are what the engine asks for.

mod hold;
mod reader;
mod reserve;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

pub use reserve::exists;

use super::{bells::Bells, chain::*, *};
use reader::Reader;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;
use writer::{Answer, Append, Desk, Job, Taken, signed};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a statement waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(10);
/// How long somebody may wait for others of this process to have read: ten thousand runs go on at once after a crash,
/// and that they stand in line is no trouble of the store's.
const QUEUE: Duration = Duration::from_mins(10);
/// After so many pages of 4 KiB what was written moves from the log to its place.
pub const CHECKPOINT: u32 = 2_000;

/// Columns of an event for a dump: its chain's identifier, else what its record says.
const EVENT: &str = "SELECT c.id AS run, e.seq, e.kind, e.hash, e.record FROM events e LEFT JOIN chains c ON c.n = e.chain";

pub struct SqliteJournal {
    read: SqlitePool,
    /// For whole chains.
    reader: Reader,
    dir: PathBuf,
    /// Begun with the first thing that is written.
    desk: Mutex<Option<Desk>>,
    bells: Arc<Bells>,
}

/// What holds a chain while its claim lives.
struct Held {
    desk: Desk,
    chain: i64,
    epoch: u64,
    /// The end of the chain as this process left it: sequence and hash.
    end: Mutex<(u64, String)>,
    /// The chain has ended, or was let go of: nothing is left to be said.
    done: std::sync::atomic::AtomicBool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !*self.done.get_mut() {
            self.desk.send(Job::Release { chain: self.chain, epoch: self.epoch, answer: None });
        }
    }
}

impl SqliteJournal {
    /// Opens the journal of a state directory, making both if they are not there.
    pub async fn open(dir: &Path) -> Result<Self, JournalError> {
        let place = dir.display().to_string();
        let fail = |why: String| JournalError::Store { place: place.clone(), why };
        if reserve::was_cut_off(dir) {
            return Err(fail(
                "it was cut off: journal.db has no bytes, and runs were kept in it; put a copy of the state directory in its place"
                    .to_owned(),
            ));
        }
        std::fs::create_dir_all(dir.join("locks")).map_err(|e| fail(trouble::of_io(&e)))?;
        let options = SqliteConnectOptions::new()
            .filename(dir.join("journal.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let read = SqlitePoolOptions::new().max_connections(2).acquire_timeout(QUEUE);
        let read = read.connect_with(options).await.map_err(|e| fail(trouble::of_sqlx(&e)))?;
        // Of two processes that bring a journal up to date at once, one finds it done when it looks again.
        if MIGRATIONS.run(&read).await.is_err() {
            MIGRATIONS.run(&read).await.map_err(|e| fail(trouble::of_migration(&e)))?;
        }
        let store = read.clone();
        let bells = Arc::new(Bells::new(Box::new(move || Box::pin(waiting(store.clone())))));
        reserve::keep(dir);
        Ok(Self { read, reader: Reader::new(dir), dir: dir.to_owned(), desk: Mutex::default(), bells })
    }

    fn fail(&self, error: &sqlx::Error) -> JournalError {
        JournalError::Store { place: self.dir.display().to_string(), why: trouble::of_sqlx(error) }
    }

    fn trouble(&self, why: String) -> JournalError {
        JournalError::Store { place: self.dir.display().to_string(), why }
    }

    /// What could not be opened on a full disk may be opened when there is room.
    fn desk(&self) -> Result<Desk, JournalError> {
        let mut kept = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(desk) = &*kept {
            return Ok(desk.clone());
        }
        let connection = rusqlite::Connection::open(self.dir.join("journal.db")).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
            connection.set_prepared_statement_cache_capacity(32);
            Ok(connection)
        });
        let connection = connection.map_err(|error| self.trouble(trouble::of_rusqlite(&error)))?;
        let desk = Desk::open(connection, self.dir.clone()).map_err(|why| self.trouble(why))?;
        Ok(kept.insert(desk).clone())
    }

    /// Asks the writer, and waits for what it says: it has then been flushed to the disk.
    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, JournalError> {
        let (answer, answered) = oneshot::channel();
        let gone = || self.trouble("its writer has ended".to_owned());
        if !self.desk()?.send(job(answer)) {
            return Err(gone());
        }
        answered.await.map_err(|_| gone())?
    }

    async fn simple(&self, run: impl FnMut(&rusqlite::Connection) -> rusqlite::Result<i64> + Send + 'static) -> Result<i64, JournalError> {
        self.ask(|answer| Job::Simple { run: Box::new(run), answer, row: 0 }).await
    }

    async fn take(&self, run: &RunId, owner: &str, force: bool) -> Result<Claim, JournalError> {
        let asked = |answer| Job::Take { run: run.clone(), owner: owner.to_owned(), force, answer, taken: None };
        let Taken { chain, epoch, seq, head } = self.ask(asked).await?;
        self.claim_of(run.clone(), owner, chain, epoch, (seq, head))
    }

    fn claim_of(&self, run: RunId, owner: &str, chain: i64, epoch: u64, end: (u64, String)) -> Result<Claim, JournalError> {
        let held = Held { desk: self.desk()?, chain, epoch, end: Mutex::new(end), done: false.into() };
        Ok(Claim { run, epoch, owner: owner.to_owned(), hold: lease::Hold::unlimited(), _guard: Box::new(held) })
    }

    fn rows(&self, rows: Result<Vec<SqliteRow>, sqlx::Error>) -> Result<Vec<ChainRow>, JournalError> {
        let mut seen = BTreeMap::new();
        rows.map_err(|e| self.fail(&e))?
            .iter()
            .map(|row| self.owned_row(row, &mut seen))
            .collect::<Result<_, _>>()
            .map_err(|e| self.fail(&e))
    }

    /// A chain's row with its owner only while that lives, as a shared journal has it. `seen`: of which processes that is known.
    fn owned_row(&self, row: &SqliteRow, seen: &mut BTreeMap<String, bool>) -> Result<ChainRow, sqlx::Error> {
        let mut chain = chain_row(row)?;
        let holder: Option<String> = row.try_get("holder")?;
        // In doubt it lives.
        let lives = |name: &String| hold::lives(&self.dir.join("locks"), name).unwrap_or(true);
        let owned = holder.is_some_and(|name| *seen.entry(name).or_insert_with_key(lives));
        if !owned && !adopt::is_imported(&chain) {
            chain.owner = None;
        }
        Ok(chain)
    }
}

/// The runs for which letters wait.
async fn waiting(store: SqlitePool) -> Vec<String> {
    sqlx::query_scalar("SELECT DISTINCT run FROM inbox WHERE taken = 0").fetch_all(&store).await.unwrap_or_default()
}

fn kind_word(kind: ChainKind) -> &'static str {
    if kind == ChainKind::Drill { "drill" } else { "run" }
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
        let run = chain.id.clone();
        let sealed = seal(&run, 1, 0, "", vec![first])?;
        let asked = |answer| Job::Create { chain, owner: owner.to_owned(), first: sealed, answer, number: 0 };
        let (number, stored) = self.ask(asked).await?;
        let claim = self.claim_of(run, owner, number, 1, (1, stored.hash.clone()))?;
        Ok((claim, stored))
    }

    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        self.take(run, owner, false).await
    }

    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        self.take(run, owner, true).await
    }

    async fn release(&self, claim: Claim) {
        let Some(held) = claim.kept::<Held>() else { return };
        if !held.done.swap(true, std::sync::atomic::Ordering::SeqCst) {
            let (chain, epoch) = (held.chain, held.epoch);
            // If the store cannot take it down now, the writer does with its next commit.
            let _ = self.ask(|answer| Job::Release { chain, epoch, answer: Some(answer) }).await;
        }
    }

    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError> {
        let held = claim.kept::<Held>().filter(|held| held.epoch == claim.epoch);
        let end = held.map(|held| held.end.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let known = end.filter(|(seq, _)| *seq == after).map(|(_, hash)| hash);
        let chain = held.map(|held| held.chain).filter(|_| known.is_some());
        let prev = known.unwrap_or_default();
        // Sealed here, on the caller's thread; the writer seals again if the chain does not end so.
        let sealed = seal(&claim.run, claim.epoch, after, &prev, drafts)?;
        let run = claim.run.clone();
        let asked = |answer| Job::Append(Append { run, chain, epoch: claim.epoch, after, prev, sealed, answer });
        let stored: Vec<_> = self.ask(asked).await?.into_iter().map(|one| one.stored).collect();
        if let (Some(held), Some(last)) = (held, stored.last()) {
            *held.end.lock().unwrap_or_else(PoisonError::into_inner) = (last.event.seq, last.hash.clone());
            if stored.iter().any(|one| project(&one.event.body).is_some_and(|(_, end)| end)) {
                held.done.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        Ok(stored)
    }

    async fn make_room(&self) -> bool {
        reserve::spend(&self.dir)
    }

    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError> {
        self.reader.load(run, after).await.map_err(|why| self.trouble(why))?
    }

    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError> {
        let row = sqlx::query("SELECT * FROM chains WHERE id = ?").bind(run.as_str()).fetch_optional(&self.read).await;
        let row = row.map_err(|e| self.fail(&e))?.ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        self.owned_row(&row, &mut BTreeMap::new()).map_err(|e| self.fail(&e))
    }

    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM chains WHERE kind = ? ORDER BY started_at DESC, id DESC LIMIT ?");
        self.rows(rows.bind(kind_word(kind)).bind(i64::from(limit)).fetch_all(&self.read).await)
    }

    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM chains WHERE parent = ? ORDER BY started_at, id").bind(parent.as_str());
        self.rows(rows.fetch_all(&self.read).await)
    }

    async fn open(&self) -> Result<Vec<ChainRow>, JournalError> {
        let rows = sqlx::query("SELECT * FROM chains WHERE finished_at IS NULL ORDER BY started_at, id");
        self.rows(rows.fetch_all(&self.read).await)
    }

    async fn holding(&self, chains: &[RunId], kind: &str) -> Result<Vec<RunId>, JournalError> {
        let chains = serde_json::to_string(chains).unwrap_or_default();
        let rows = sqlx::query("SELECT DISTINCT c.id FROM json_each(?) AS asked JOIN chains c ON c.id = asked.value JOIN events e ON e.chain = c.n WHERE e.kind = ?")
            .bind(chains)
            .bind(kind)
            .fetch_all(&self.read)
            .await
            .map_err(|e| self.fail(&e))?;
        Ok(rows.iter().map(|row| RunId(row.get(0))).collect())
    }

    async fn find(&self, prefix: &str) -> Result<RunId, JournalError> {
        let rows = sqlx::query("SELECT id FROM chains WHERE id >= ?1 AND id < ?1 || char(1114111) ORDER BY id LIMIT 3")
            .bind(prefix)
            .fetch_all(&self.read)
            .await;
        match rows.map_err(|e| self.fail(&e))?.as_slice() {
            [] => Err(JournalError::NoSuchRun(RunId::from(prefix))),
            [one] => Ok(RunId(one.get(0))),
            // The whole identifier comes before those that begin with it.
            [one, ..] if one.get::<String, _>(0) == prefix => Ok(RunId(one.get(0))),
            _ => Err(JournalError::Ambiguous(prefix.to_owned())),
        }
    }

    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError> {
        let (run, at, actor) = (run.0.clone(), at.to_string(), actor.to_owned());
        let text = serde_json::to_string(command).unwrap_or_default();
        let insert = "INSERT INTO inbox (run, at, actor, command) VALUES (?1, ?2, ?3, ?4)";
        self.simple(move |store| store.prepare_cached(insert)?.insert([&run, &at, &actor, &text])).await
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
        let take = "UPDATE inbox SET taken = 1 WHERE id = ?1";
        self.simple(move |store| store.prepare_cached(take)?.execute([letter]).map(|_| letter)).await.map(|_| ())
    }

    fn bell(&self, run: &RunId) -> Option<Bell> {
        Some(Bells::hang(&self.bells, run))
    }

    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError> {
        let row = sqlx::query("SELECT considered FROM schedules WHERE drill = ?").bind(drill).fetch_optional(&self.read).await;
        Ok(row.map_err(|e| self.fail(&e))?.and_then(|row| row.get::<String, _>(0).parse().ok()))
    }

    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError> {
        let (drill, until) = (drill.to_owned(), until.to_string());
        let put =
            "INSERT INTO schedules (drill, considered) VALUES (?1, ?2) ON CONFLICT (drill) DO UPDATE SET considered = excluded.considered";
        self.simple(move |store| store.prepare_cached(put)?.execute([&drill, &until]).map(|_| 0)).await.map(|_| ())
    }

    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let origin = origin.clone();
        self.ask(|answer| Job::Adopt { chains, origin, answer }).await
    }

    async fn dump(&self, only: Option<&[RunId]>) -> Result<Dump, JournalError> {
        let only = only.map(|only| serde_json::to_string(only).unwrap_or_default());
        // One snapshot for all three, so that a run in progress does not look like damage.
        let mut tx = self.read.begin().await.map_err(|e| self.fail(&e))?;
        // Some are found by the index, however many there are; `OR` with the other case would read them all.
        let few = if only.is_some() { " WHERE id IN (SELECT value FROM json_each(?1))" } else { "" };
        let rows = format!("SELECT * FROM chains{few} ORDER BY started_at, id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(rows)).bind(&only).fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?;
        let few = " WHERE e.chain IN (SELECT n FROM chains WHERE id IN (SELECT value FROM json_each(?1)))";
        let which = if only.is_some() { few } else { "" };
        let events = format!("{EVENT}{which} ORDER BY c.id, e.chain, e.seq");
        let events = sqlx::query(sqlx::AssertSqlSafe(events)).bind(&only).fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?;
        let heads = match only {
            Some(_) => None,
            None => Some(sqlx::query("SELECT * FROM heads ORDER BY n").fetch_all(&mut *tx).await.map_err(|e| self.fail(&e))?),
        };
        let rows = rows.iter().map(chain_row).collect::<Result<_, _>>().map_err(|e| self.fail(&e))?;
        let heads = heads.map(|heads| heads.iter().map(head_row).collect());
        Ok(Dump { rows, events: events.iter().map(event_row).collect(), heads })
    }
}

/// Whose the event is, its place, kind and hash are copies beside the record; the rest stands in it alone.
fn event_row(row: &SqliteRow) -> EventRow {
    let record: Vec<u8> = row.get("record");
    let event = serde_json::from_slice::<Event>(&record).ok();
    let said = |what: fn(&Event) -> String| event.as_ref().map(what).unwrap_or_default();
    EventRow {
        run: RunId(row.get::<Option<String>, _>("run").unwrap_or_else(|| said(|event| event.run.0.clone()))),
        seq: row.get::<i64, _>("seq").unsigned_abs(),
        at: said(|event| event.at.to_string()),
        actor: said(|event| event.actor.clone()),
        epoch: event.as_ref().map_or(0, |event| event.epoch),
        kind: row.get("kind"),
        prev: said(|event| event.prev.clone()),
        hash: hex::encode(row.get::<&[u8], _>("hash")),
        record,
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
