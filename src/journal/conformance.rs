//! What every journal must hold, whatever it is kept in: one suite, run against each.

use super::{chain::verify, *};
use crate::model::{estate::Estate, plan::*};
use std::collections::BTreeMap;

fn plan() -> Plan {
    Plan {
        runbook: "demo".into(),
        file: "demo.yaml".to_owned(),
        digest: String::new(),
        mode: None,
        scope: Scope::Live,
        live: false,
        inputs: BTreeMap::new(),
        waive: Vec::new(),
        estate: Estate::default(),
        locks: Vec::new(),
        steps: Vec::new(),
    }
}

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn draft(second: i64, body: Body) -> Draft {
    Draft { at: at(second), actor: "tester".to_owned(), body }
}

fn new(id: &str, locks: &[&str]) -> NewChain {
    let locks = locks.iter().map(|name| Resource((*name).to_owned())).collect();
    NewChain { id: id.into(), kind: ChainKind::Run, name: "demo".to_owned(), parent: None, locks }
}

fn first(second: i64) -> Draft {
    draft(second, Body::RunCreated { plan: Box::new(plan()), drill: None })
}

fn finished() -> Body {
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
    let letters = journal.letters(&run).await.unwrap();
    assert_eq!(letters.iter().map(|l| (l.id, l.actor.as_str(), l.command.clone())).collect::<Vec<_>>(), [(id, "ana", command)]);
    journal.taken(id).await.unwrap();
    assert!(journal.letters(&run).await.unwrap().is_empty());
}

async fn the_whole_verifies_and_lists(journal: &dyn Journal) {
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

async fn suite(journal: &dyn Journal) {
    appends_are_chained_and_conditional(journal).await;
    a_deposed_owner_is_refused_by_the_store(journal).await;
    a_resource_has_one_run_at_a_time(journal).await;
    letters_are_read_once(journal).await;
    the_whole_verifies_and_lists(journal).await;
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

/// Every way in which somebody may tamper with the file is found.
#[tokio::test]
async fn tampering_is_found() {
    let edits = [
        (
            "an edited record",
            "UPDATE events SET record = CAST(replace(CAST(record AS TEXT), 'tester', 'nobody') AS BLOB) WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq = 2",
        ),
        (
            "an edited record with its hash made to fit",
            "UPDATE events SET hash = x'00' WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq = 2",
        ),
        ("an edited column", "UPDATE events SET kind = 'nobody' WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq = 2"),
        ("a removed event", "DELETE FROM events WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq = 2"),
        ("a cut-off end", "DELETE FROM events WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq = 3"),
        ("swapped events", "UPDATE events SET seq = 5 - seq WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq IN (2, 3)"),
        ("a removed run", "DELETE FROM events WHERE chain = (SELECT n FROM chains WHERE id = 'run-a')"),
        ("a removed run, with its entry in the list", "DELETE FROM chains WHERE id = 'run-a'"),
        ("a status that was made better", "UPDATE chains SET status = 'failed' WHERE id = 'run-a'"),
        ("a removed head", "DELETE FROM heads WHERE n = 2"),
        ("an edited head", "UPDATE heads SET record = CAST(replace(CAST(record AS TEXT), 'run-a', 'run-b') AS BLOB) WHERE n = 1"),
    ];
    for (what, edit) in edits {
        let dir = tempfile::tempdir().unwrap();
        let journal = sqlite::SqliteJournal::open(dir.path()).await.unwrap();
        suite(&journal).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("journal.db"));
        let pool = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
        assert!(
            edit.starts_with("UPDATE chains") || edit.starts_with("DELETE FROM chains") || sqlx::query(edit).execute(&pool).await.is_err()
        );
        for trigger in ["events_keep", "events_stay", "heads_keep", "heads_stay"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"))).execute(&pool).await.unwrap();
        }
        if what.starts_with("swapped") {
            sqlx::query("UPDATE events SET seq = seq + 100 WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq IN (2, 3)")
                .execute(&pool)
                .await
                .unwrap();
            sqlx::query("UPDATE events SET seq = 105 - seq WHERE chain = (SELECT n FROM chains WHERE id = 'run-a') AND seq > 100")
                .execute(&pool)
                .await
                .unwrap();
        } else {
            sqlx::query(edit).execute(&pool).await.unwrap();
        }
        let found = verify(&journal.dump(None).await.unwrap());
        assert!(!found.verified && !found.problems.is_empty(), "{what} was not found");
    }
}
