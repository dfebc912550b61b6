//! The journal: how long a durable append takes, beside what the store needs for a bare commit; and how
//! long a long history takes to load, fold and verify.
//!
//! Appends and bare commits alternate in the same directory and the same run, so that their ratio does not
//! depend on how busy the disk was at one moment.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use muster::journal::{ChainKind, Claim, Draft, Journal, NewChain, Stored, chain, sqlite::SqliteJournal};
use muster::model::{event::Body, ids::*};
use muster::plan::state::RunState;
use sqlx::{Connection as _, sqlite::*};
use std::{path::Path, time::Duration, time::Instant};
use support::*;

const APPENDS: usize = 1_500;
const EVENTS: u64 = 10_000;

fn draft(body: Body) -> Draft {
    Draft { at: jiff::Timestamp::now(), actor: "muster@bench:1".to_owned(), body }
}

fn applying(n: u64) -> Body {
    Body::Applying { step: "promote".into(), attempt: u32::try_from(n).unwrap(), epoch: 1, key: "5f".repeat(32) }
}

async fn begin(journal: &SqliteJournal, id: &str) -> Claim {
    let plan = plan("regional-failover", &[("from", "east"), ("to", "west")]);
    let chain = NewChain { id: id.into(), kind: ChainKind::Run, name: plan.runbook.to_string(), parent: None, locks: Vec::new() };
    let first = draft(Body::RunCreated { plan: plan.into(), drill: None });
    journal.create(chain, "muster@bench:1", first).await.expect("a chain").0
}

/// The store as the journal opens it, without anything of Muster's.
async fn bare(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut store = SqliteConnection::connect_with(&options).await.expect("a store");
    sqlx::query("CREATE TABLE t (n INTEGER PRIMARY KEY, record BLOB NOT NULL)").execute(&mut store).await.expect("a table");
    store
}

async fn commit(store: &mut SqliteConnection, record: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut tx = store.begin_with("BEGIN IMMEDIATE").await.expect("begins");
    sqlx::query("INSERT INTO t (record) VALUES (?)").bind(record).execute(&mut *tx).await.expect("inserts");
    tx.commit().await.expect("commits");
    begun.elapsed()
}

async fn append(journal: &SqliteJournal, claim: &Claim, after: u64) -> Duration {
    let begun = Instant::now();
    journal.append(claim, after, vec![draft(applying(after))]).await.expect("appends");
    begun.elapsed()
}

fn told(what: &str, mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    let total: Duration = took.iter().sum();
    let rate = took.len() as f64 / total.as_secs_f64();
    println!("{what:<44} {:>12.2?} median, {:>10.2?} p99, {rate:>10.0} a second", at(50), at(99));
    at(50)
}

async fn durable(dir: &Path) {
    let journal = SqliteJournal::open(dir).await.expect("a journal");
    let claim = begin(&journal, "appends").await;
    let mut store = bare(&dir.join("bare.db")).await;
    let record = vec![b'x'; 400];
    let (mut appends, mut commits) = (Vec::new(), Vec::new());
    for n in 1..=APPENDS as u64 {
        commits.push(commit(&mut store, &record).await);
        appends.push(append(&journal, &claim, n).await);
    }
    let bare = told("bare commit (WAL, synchronous=FULL)", commits);
    let ours = told("journal append of one event", appends);
    println!("{:<44} {:>12.2}", "append / bare commit, by the medians", ours.as_secs_f64() / bare.as_secs_f64());
}

/// A run with a history of `EVENTS`, written a hundred to a commit.
async fn long(journal: &SqliteJournal) -> Vec<Stored> {
    let claim = begin(journal, "long").await;
    let mut seq = 1;
    while seq < EVENTS {
        let drafts: Vec<_> = (0..100_u64.min(EVENTS - seq)).map(|n| draft(applying(seq + n))).collect();
        seq += drafts.len() as u64;
        journal.append(&claim, seq - drafts.len() as u64, drafts).await.expect("appends");
    }
    journal.load(&"long".into(), 0).await.expect("loads")
}

fn main() {
    let dir = tempfile::Builder::new().prefix("muster-bench-").tempdir().expect("a directory");
    let runtime = runtime();
    runtime.block_on(durable(dir.path()));
    let journal = runtime.block_on(SqliteJournal::open(&dir.path().join("long"))).expect("a journal");
    let history = runtime.block_on(long(&journal));
    assert_eq!(history.len() as u64, EVENTS);
    let run: RunId = "long".into();
    measure(7, || runtime.block_on(journal.load(&run, 0)).expect("loads")).print("load 10,000 events", EVENTS);
    measure(7, || RunState::of(history.iter().map(|stored| &stored.event)).expect("a run")).print("fold 10,000 events", EVENTS);
    let dump = runtime.block_on(journal.dump(None)).expect("dumps");
    let verified = measure(7, || {
        let found = chain::verify(&dump);
        assert!(found.verified, "{:?}", found.problems);
    });
    verified.print("verify 10,000 events", EVENTS);
}
