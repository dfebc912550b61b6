//! What every journal must hold, whatever it is kept in: one suite, run against each.

use super::{chain::verify, *};

/// A PostgreSQL of a test's own.
#[path = "../../tests/it/pg.rs"]
#[allow(dead_code, clippy::disallowed_methods)]
pub(super) mod pg;

#[path = "../../tests/it/ports.rs"]
#[allow(dead_code, clippy::disallowed_methods)]
mod ports;

use crate::model::{estate::Estate, plan::*};
use std::{collections::BTreeMap, time::Duration};

pub(super) fn plan() -> Plan {
    Plan {
        runbook: "demo".into(),
        file: "demo.yaml".to_owned(),
        digest: String::new(),
        mode: None,
        scope: Scope::Live,
        live: false,
        inputs: BTreeMap::new(),
        waive: Vec::new(),
        estate: Estate::default().into(),
        locks: Vec::new(),
        steps: Vec::new(),
    }
}

pub(super) fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000 + second).unwrap()
}

pub(super) fn draft(second: i64, body: Body) -> Draft {
    Draft { at: at(second), actor: "tester".to_owned(), body }
}

pub(super) fn new(id: &str, locks: &[&str]) -> NewChain {
    let locks = locks.iter().map(|name| Resource((*name).to_owned())).collect();
    NewChain { id: id.into(), kind: ChainKind::Run, name: "demo".to_owned(), parent: None, locks }
}

pub(super) fn first(second: i64) -> Draft {
    draft(second, Body::RunCreated { plan: plan().into(), drill: None })
}

pub(super) fn finished() -> Body {
    Body::RunFinished { status: RunStatus::Succeeded, reason: None }
}

async fn appends_are_chained_and_conditional(journal: &dyn Journal) {
    let (claim, stored) = journal.create(new("run-a", &[]), "one", first(0)).await.unwrap();
    assert_eq!((stored.event.seq, stored.event.prev.as_str()), (1, ""));
    let more = journal.append(&claim, 1, vec![draft(1, Body::Resumed), draft(2, finished())]).await.unwrap();
    assert_eq!(more.iter().map(|one| one.event.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(more[0].event.prev, stored.hash);
    assert_eq!(more[1].event.prev, more[0].hash);
    let behind = journal.append(&claim, 1, vec![draft(3, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(behind, JournalError::Behind { ours: 1, now: 3, .. }), "{behind}");
    let loaded = journal.load(&"run-a".into(), 1).await.unwrap();
    assert_eq!(loaded.iter().map(|one| one.hash.clone()).collect::<Vec<_>>(), [more[0].hash.clone(), more[1].hash.clone()]);
    let row = journal.row(&"run-a".into()).await.unwrap();
    assert_eq!((row.status.as_str(), row.finished_at, row.seq), ("succeeded", Some(at(2)), 3));
}

async fn a_deposed_owner_is_refused_by_the_store(journal: &dyn Journal) {
    let (claim, _) = journal.create(new("run-b", &[]), "one", first(0)).await.unwrap();
    let owned = journal.claim(&"run-b".into(), "two").await.unwrap_err();
    assert!(matches!(owned, JournalError::Owned { .. }), "{owned}");
    let (run, hold) = (claim.run.clone(), lease::Hold::unlimited());
    let stale = Claim { run, epoch: claim.epoch, owner: "one".to_owned(), hold, _guard: Box::new(()) };
    journal.release(claim).await;
    let claim = journal.claim(&"run-b".into(), "two").await.unwrap();
    assert_eq!(claim.epoch, 2);
    let fenced = journal.append(&stale, 1, vec![draft(1, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(fenced, JournalError::Fenced { ours: 1, now: 2, .. }), "{fenced}");
    assert_eq!(journal.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap()[0].event.epoch, 2);
    // Taken over while it is owned: the owner is refused, and letting go of its claim frees nothing.
    let seized = journal.seize(&"run-b".into(), "three").await.unwrap();
    let fenced = journal.append(&claim, 2, vec![draft(2, finished())]).await.unwrap_err();
    assert!(matches!(fenced, JournalError::Fenced { ours: 2, now: 3, .. }), "{fenced}");
    journal.release(claim).await;
    journal.append(&seized, 2, vec![draft(2, Body::Resumed)]).await.unwrap();
    journal.release(seized).await;
    let claim = journal.claim(&"run-b".into(), "four").await.unwrap();
    assert_eq!(journal.append(&claim, 3, vec![draft(3, finished())]).await.unwrap()[0].event.epoch, 4);
    assert!(matches!(journal.seize(&"run-z".into(), "one").await, Err(JournalError::NoSuchRun(_))));
}

async fn a_resource_has_one_run_at_a_time(journal: &dyn Journal) {
    let (claim, _) = journal.create(new("run-c", &["database/x", "endpoint/y"]), "one", first(0)).await.unwrap();
    let refused = journal.create(new("run-d", &["endpoint/y"]), "one", first(0)).await.unwrap_err();
    assert!(matches!(&refused, JournalError::Locked { holder, .. } if holder.as_str() == "run-c"), "{refused}");
    assert!(journal.row(&"run-d".into()).await.is_err(), "a refused run leaves nothing behind");
    journal.append(&claim, 1, vec![draft(1, finished())]).await.unwrap();
    journal.create(new("run-d", &["endpoint/y"]), "one", first(2)).await.unwrap();
}

async fn letters_are_read_once(journal: &dyn Journal) {
    let run = RunId::from("run-c");
    let command = Command::Pause { reason: "tea".to_owned() };
    let id = journal.post(&run, at(0), "ana", &command).await.unwrap();
    let (bell, other) = (journal.bell(&run), journal.bell(&"run-d".into()));
    if let (Some(bell), Some(other)) = (bell, other) {
        tokio::time::timeout(Duration::from_secs(30), bell.rung()).await.expect("it rings");
        assert!(tokio::time::timeout(Duration::from_millis(300), other.rung()).await.is_err(), "it was not for another run");
    }
    let letters = journal.letters(&run).await.unwrap();
    assert_eq!(letters.iter().map(|l| (l.id, l.actor.as_str(), l.command.clone())).collect::<Vec<_>>(), [(id, "ana", command)]);
    journal.taken(id).await.unwrap();
    assert!(journal.letters(&run).await.unwrap().is_empty());
}

async fn the_whole_verifies_and_lists(journal: &dyn Journal) {
    let asked = ["run-a", "run-b", "run-c"].map(RunId::from);
    assert_eq!(journal.holding(&asked, "resumed").await.unwrap().len(), 2, "of those that were asked for, two were resumed");
    let whole = verify(&journal.dump(None).await.unwrap());
    assert_eq!(whole.problems, Vec::<String>::new());
    assert_eq!((whole.chains, whole.events), (4, 10));
    let one = verify(&journal.dump(Some(&["run-a".into()])).await.unwrap());
    assert_eq!((one.verified, one.chains, one.events, one.head), (true, 1, 3, None));
    assert_eq!(journal.find("run-a").await.unwrap().as_str(), "run-a");
    assert!(matches!(journal.find("run-").await, Err(JournalError::Ambiguous(..))));
    assert!(matches!(journal.find("nope").await, Err(JournalError::NoSuchRun(_))));
    assert_eq!(journal.open().await.unwrap().len(), 1);
    assert_eq!(journal.list(ChainKind::Run, 2).await.unwrap()[0].id.as_str(), "run-d");
    journal.consider("weekly", at(5)).await.unwrap();
    journal.consider("weekly", at(9)).await.unwrap();
    assert_eq!(journal.considered("weekly").await.unwrap(), Some(at(9)));
    // The whole of one is that one, also when another begins with it.
    journal.create(new("run-a-missed", &[]), "one", first(0)).await.unwrap();
    assert_eq!(journal.find("run-a").await.unwrap().as_str(), "run-a");
}

/// What was written elsewhere comes in with its bytes, once, and nobody goes on with it here.
async fn chains_are_taken_in(journal: &dyn Journal) {
    let there = mem::MemJournal::default();
    let (claim, _) = there.create(new("run-x", &["bucket/m"]), "laptop", first(0)).await.unwrap();
    there.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap();
    let origin = adopt::Origin { place: "laptop:/state".to_owned(), head: None, by: "ana".to_owned(), at: at(50) };
    for (adopted, present) in [(1, 0), (0, 1)] {
        let (theirs, ours) = (there.dump(None).await.unwrap(), journal.dump(None).await.unwrap());
        let judged = adopt::judge(&theirs, &ours, &origin).unwrap();
        assert_eq!((judged.adopted.len(), judged.present.len(), judged.conflicts.len()), (adopted, present, 0));
        journal.adopt(judged.adopted, &origin).await.unwrap();
    }
    let bytes = |dump: chain::Dump| dump.events.into_iter().map(|event| (event.seq, event.record)).collect::<Vec<_>>();
    let only = [RunId::from("run-x")];
    assert_eq!(bytes(journal.dump(Some(&only)).await.unwrap()), bytes(there.dump(Some(&only)).await.unwrap()));
    assert_eq!(journal.load(&only[0], 0).await.unwrap().len(), 2);
    for refused in [journal.claim(&only[0], "two").await, journal.seize(&only[0], "two").await] {
        assert!(matches!(refused, Err(JournalError::Imported { .. })), "{refused:?}");
    }
    assert!(adopt::is_imported(&journal.row(&only[0]).await.unwrap()));
    // It went on where it was begun, and ended: the rest comes in as well.
    there.append(&claim, 2, vec![draft(2, finished())]).await.unwrap();
    let judged = adopt::judge(&there.dump(None).await.unwrap(), &journal.dump(None).await.unwrap(), &origin).unwrap();
    journal.adopt(judged.adopted, &origin).await.unwrap();
    assert_eq!(journal.row(&only[0]).await.unwrap().status, "succeeded");
    let whole = verify(&journal.dump(None).await.unwrap());
    assert_eq!(whole.problems, Vec::<String>::new());
}

async fn suite(journal: &dyn Journal) {
    appends_are_chained_and_conditional(journal).await;
    a_deposed_owner_is_refused_by_the_store(journal).await;
    a_resource_has_one_run_at_a_time(journal).await;
    letters_are_read_once(journal).await;
    the_whole_verifies_and_lists(journal).await;
    chains_are_taken_in(journal).await;
}

#[tokio::test]
async fn in_memory() {
    suite(&mem::MemJournal::default()).await;
}

#[tokio::test]
async fn on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    suite(&sqlite::SqliteJournal::open(dir.path()).await.unwrap()).await;
    // What one process wrote, the next one reads.
    let again = sqlite::SqliteJournal::open(dir.path()).await.unwrap();
    assert!(verify(&again.dump(None).await.unwrap()).verified);
}

pub(super) async fn postgres(url: &str) -> Result<postgres::PostgresJournal, JournalError> {
    let part = postgres::Part { terms: lease::Terms::default(), serves: false };
    let clock = std::sync::Arc::new(crate::providers::clock::SystemClock::new());
    postgres::PostgresJournal::open(&secrecy::SecretString::from(url), part, clock, true).await
}

#[tokio::test]
async fn on_postgres() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    suite(&postgres(&url).await.unwrap()).await;
    let again = postgres(&url).await.unwrap();
    assert!(verify(&again.dump(None).await.unwrap()).verified);
}

/// Every way in which somebody may tamper with the store; `EDIT` is how it replaces text in bytes.
const TAMPERING: [(&str, &str); 17] = [
    ("an edited record", "UPDATE events SET record = EDIT(tester, nobody) WHERE run = 'run-a' AND seq = 2"),
    ("an edited record with its hash made to fit", "UPDATE events SET hash = 'x' WHERE run = 'run-a' AND seq = 2"),
    ("an edited column", "UPDATE events SET actor = 'nobody' WHERE run = 'run-a' AND seq = 2"),
    ("a removed event", "DELETE FROM events WHERE run = 'run-a' AND seq = 2"),
    ("a cut-off end", "DELETE FROM events WHERE run = 'run-a' AND seq = 3"),
    ("swapped events", "UPDATE events SET seq = 5 - seq WHERE run = 'run-a' AND seq IN (2, 3)"),
    ("a removed run", "DELETE FROM events WHERE run = 'run-a'"),
    ("a removed run, with its entry in the list", "DELETE FROM chains WHERE id = 'run-a'"),
    ("a status that was made better", "UPDATE chains SET status = 'failed' WHERE id = 'run-a'"),
    ("another name in the list", "UPDATE chains SET name = 'other' WHERE id = 'run-a'"),
    ("a run listed as a drill", "UPDATE chains SET kind = 'drill' WHERE id = 'run-a'"),
    ("another drill in the list", "UPDATE chains SET parent = 'other' WHERE id = 'run-a'"),
    ("another beginning in the list", "UPDATE chains SET started_at = '2020-01-01T00:00:00Z' WHERE id = 'run-a'"),
    ("another end in the list", "UPDATE chains SET finished_at = '2020-01-01T00:00:00Z' WHERE id = 'run-a'"),
    ("a removed head", "DELETE FROM heads WHERE n = 2"),
    ("the head of an end", "DELETE FROM heads WHERE n = (SELECT max(n) FROM heads)"),
    ("an edited head", "UPDATE heads SET record = EDIT(run-a, run-b) WHERE n = 1"),
];

/// The statements of one way to tamper, the first of which the store must refuse if it is about what is only
/// ever added to.
fn statements(what: &str, edit: &str, replace: impl Fn(&str, &str) -> String) -> Vec<String> {
    let edit = match edit.split_once("EDIT(") {
        Some((before, rest)) => {
            let (words, after) = rest.split_once(')').unwrap();
            let (from, to) = words.split_once(", ").unwrap();
            format!("{before}{}{after}", replace(from, to))
        }
        None => edit.to_owned(),
    };
    if what.starts_with("swapped") {
        let apart = "UPDATE events SET seq = seq + 100 WHERE run = 'run-a' AND seq IN (2, 3)";
        let back = "UPDATE events SET seq = 105 - seq WHERE run = 'run-a' AND seq > 100".to_owned();
        let run = if edit.contains("chain =") { lean } else { str::to_owned };
        return vec![run(apart), run(&back)];
    }
    vec![edit]
}

/// The same on SQLite, where events refer to their chain by its number and keep fewer columns beside the record.
fn lean(edit: &str) -> String {
    let edit = edit.replace("run = 'run-a'", "chain = (SELECT n FROM chains WHERE id = 'run-a')");
    edit.replace("hash = 'x'", "hash = x'00'").replace("actor = ", "kind = ")
}

fn guarded(edit: &str) -> bool {
    !edit.contains(" chains ")
}

#[tokio::test]
async fn tampering_is_found() {
    for (what, edit) in TAMPERING {
        let dir = tempfile::tempdir().unwrap();
        let journal = sqlite::SqliteJournal::open(dir.path()).await.unwrap();
        suite(&journal).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("journal.db"));
        let pool = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
        let edits = statements(what, &lean(edit), |from, to| format!("CAST(replace(CAST(record AS TEXT), '{from}', '{to}') AS BLOB)"));
        assert!(!guarded(edit) || sqlx::query(sqlx::AssertSqlSafe(edits[0].clone())).execute(&pool).await.is_err(), "{what} was allowed");
        for trigger in ["events_keep", "events_stay", "heads_keep", "heads_stay"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"))).execute(&pool).await.unwrap();
        }
        for edit in edits {
            sqlx::query(sqlx::AssertSqlSafe(edit)).execute(&pool).await.unwrap();
        }
        let found = verify(&journal.dump(None).await.unwrap());
        assert!(!found.verified && !found.problems.is_empty(), "{what} was not found");
    }
}

#[tokio::test]
async fn tampering_is_found_on_postgres() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    for (n, (what, edit)) in TAMPERING.into_iter().enumerate() {
        let url = server.database(&format!("journal{n}"));
        let journal = postgres(&url).await.unwrap();
        suite(&journal).await;
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
        let edits =
            statements(what, edit, |from, to| format!("convert_to(replace(convert_from(record, 'UTF8'), '{from}', '{to}'), 'UTF8')"));
        assert!(
            !guarded(edit) || sqlx::query(sqlx::AssertSqlSafe(edits[0].clone())).execute(&mut conn).await.is_err(),
            "{what} was allowed"
        );
        assert!(sqlx::query("TRUNCATE events").execute(&mut conn).await.is_err());
        for (trigger, table) in [("events_keep", "events"), ("events_stay", "events"), ("heads_keep", "heads"), ("heads_stay", "heads")] {
            sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger} ON {table}"))).execute(&mut conn).await.unwrap();
        }
        for edit in edits {
            sqlx::query(sqlx::AssertSqlSafe(edit)).execute(&mut conn).await.unwrap();
        }
        let found = verify(&journal.dump(None).await.unwrap());
        assert!(!found.verified && !found.problems.is_empty(), "{what} was not found");
    }
}
