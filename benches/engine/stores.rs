//! The stores that runs are measured on, and what each of them does by itself with the same records.
//!
//! A store's limit is written as runs write: run by run, a commit for what a run commits, with the bytes that a run
//! of Muster's left in this very store and the journal's settings; the rest (who owns a run, where its chain ends, the
//! chain of heads) is left out.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// A PostgreSQL of this bench's own.
#[path = "../../tests/it/pg.rs"]
#[allow(dead_code)]
mod pg;
#[path = "../../tests/it/ports.rs"]
#[allow(dead_code)]
mod ports;

use muster::journal::{
    Journal,
    chain::EventRow,
    lease::Terms,
    postgres::{Part, PostgresJournal},
    sqlite::{CHECKPOINT, SqliteJournal},
};
use muster::providers::clock::SystemClock;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// The records of one run, a commit at a time.
pub type Commits = Vec<Vec<EventRow>>;

pub trait Store {
    fn name(&self) -> &'static str;
    /// What `limit` does for runs that are at once.
    fn shares(&self) -> &'static str;
    /// A new journal; its tasks live in this runtime.
    fn journal(&self, runtime: &Runtime, place: &Path) -> Arc<dyn Journal>;
    /// So many runs at once, and so many times; how long.
    fn limit(&self, runtime: &Runtime, place: &Path, run: &Commits, at_once: u32, times: u32) -> Duration;
}

/// Those that this machine has.
pub fn all(dir: &Path) -> Vec<Box<dyn Store>> {
    let mut stores: Vec<Box<dyn Store>> = vec![Box::new(Sqlite)];
    if pg::bin().is_some() {
        stores.push(Box::new(Postgres::new(dir)));
    } else {
        println!("\nPostgreSQL is left out: its server programs are not installed (make deps)");
    }
    stores
}

/// What a run left, cut where it waited for the disk.
pub fn commits(events: Vec<EventRow>) -> Commits {
    let mut commits = vec![Vec::new()];
    for event in events {
        let durable = matches!(event.kind.as_str(), "run_created" | "applying" | "run_finished");
        commits.last_mut().expect("one").push(event);
        if durable {
            commits.push(Vec::new());
        }
    }
    commits.pop();
    commits
}

struct Sqlite;

impl Store for Sqlite {
    fn name(&self) -> &'static str {
        "SQLite"
    }

    fn shares(&self) -> &'static str {
        "runs that are at once share each commit"
    }

    fn journal(&self, runtime: &Runtime, place: &Path) -> Arc<dyn Journal> {
        Arc::new(runtime.block_on(SqliteJournal::open(place)).expect("a journal"))
    }

    fn limit(&self, _: &Runtime, place: &Path, run: &Commits, at_once: u32, times: u32) -> Duration {
        let store = rusqlite::Connection::open(place.join("limit.db")).expect("a store");
        store.pragma_update(None, "journal_mode", "WAL").expect("WAL");
        store.pragma_update(None, "synchronous", "FULL").expect("FULL");
        store.pragma_update(None, "wal_autocheckpoint", CHECKPOINT).expect("a length of the log");
        let table = "CREATE TABLE IF NOT EXISTS events (chain INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, hash BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (chain, seq)) STRICT";
        store.execute(table, []).expect("a table");
        let from: u32 = store.query_row("SELECT coalesce(max(chain), 0) + 1 FROM events", [], |row| row.get(0)).expect("a place");
        let begun = Instant::now();
        for first in (0..times).map(|time| from + time * at_once) {
            for commit in run {
                store.execute_batch("BEGIN IMMEDIATE").expect("begins");
                let mut insert = store.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)").expect("prepares");
                for chain in first..first + at_once {
                    for event in commit {
                        let values = rusqlite::params![chain, event.seq.cast_signed(), event.kind, &[0_u8; 32], event.record];
                        insert.execute(values).expect("inserts");
                    }
                }
                drop(insert);
                store.execute_batch("COMMIT").expect("commits");
            }
        }
        begun.elapsed()
    }
}

/// At most so many connections, as the journal has.
const CONNECTIONS: u32 = 12;

struct Postgres {
    server: pg::Cluster,
    /// How many runs the bare commits have written.
    written: AtomicU32,
    // After the server, which lives in it.
    _home: pg::Home,
}

impl Postgres {
    fn new(dir: &Path) -> Self {
        let home = pg::Home::within(dir);
        Self { server: pg::Cluster::durable(&home), written: AtomicU32::new(0), _home: home }
    }
}

/// A place has a database of its name.
fn database(place: &Path) -> &str {
    place.file_name().and_then(|name| name.to_str()).expect("a name")
}

impl Store for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn shares(&self) -> &'static str {
        "a connection for each run that is at once, 12 at most"
    }

    fn journal(&self, runtime: &Runtime, place: &Path) -> Arc<dyn Journal> {
        let url = SecretString::from(self.server.database(database(place)));
        let part = Part { terms: Terms::default(), serves: false };
        let opened = PostgresJournal::open(&url, part, Arc::new(SystemClock::new()), true);
        let journal = runtime.block_on(opened).expect("a journal");
        self.server.sql_in(database(place), "CREATE TABLE bare (LIKE events INCLUDING INDEXES)");
        Arc::new(journal)
    }

    fn limit(&self, runtime: &Runtime, place: &Path, run: &Commits, at_once: u32, times: u32) -> Duration {
        let commits = Arc::new(run.iter().map(|commit| Columns::of(commit)).collect::<Vec<_>>());
        let url = self.server.url(database(place));
        let connect = |_| runtime.block_on(PgConnection::connect(&url)).expect("a connection");
        let connections: Vec<_> = (0..at_once.min(CONNECTIONS)).map(connect).collect();
        let first = self.written.fetch_add(at_once * times, Ordering::Relaxed);
        let next = Arc::new(AtomicU32::new(first));
        let begun = Instant::now();
        let lanes: Vec<_> = connections
            .into_iter()
            .map(|connection| runtime.spawn(bare(connection, commits.clone(), next.clone(), first + at_once * times)))
            .collect();
        for lane in lanes {
            runtime.block_on(lane).expect("a lane");
        }
        begun.elapsed()
    }
}

/// What one commit puts into the table, a column at a time.
#[derive(Default)]
struct Columns {
    seq: Vec<i64>,
    texts: [Vec<String>; 5],
    record: Vec<Vec<u8>>,
}

impl Columns {
    fn of(commit: &[EventRow]) -> Self {
        let mut columns = Self::default();
        for event in commit {
            columns.seq.push(event.seq.cast_signed());
            columns.record.push(event.record.clone());
            let texts = [&event.at, &event.actor, &event.kind, &event.prev, &event.hash];
            columns.texts.iter_mut().zip(texts).for_each(|(column, text)| column.push(text.clone()));
        }
        columns
    }
}

/// One run after the other, each commit a statement of its own.
async fn bare(mut connection: PgConnection, commits: Arc<Vec<Columns>>, next: Arc<AtomicU32>, end: u32) {
    const INSERT: &str = "INSERT INTO bare (run, seq, at, actor, epoch, kind, prev, hash, record) \
                          SELECT $1, e.seq, e.at, e.actor, 1, e.kind, e.prev, e.hash, e.record \
                          FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[]) \
                          AS e (seq, at, actor, kind, prev, hash, record)";
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= end {
            return;
        }
        let run = format!("{n:036}");
        for commit in commits.iter() {
            let insert = sqlx::query(INSERT).bind(&run).bind(&commit.seq);
            let insert = commit.texts.iter().fold(insert, sqlx::query::Query::bind);
            insert.bind(&commit.record).execute(&mut connection).await.expect("inserts");
        }
    }
}
