//! What only this store has: commits that are shared, owners told by lock files, a form that was another once.

use super::*;
use crate::journal::chain::verify;
use crate::model::status::RunStatus;
use std::collections::BTreeMap;

fn draft(body: Body) -> Draft {
    Draft { at: jiff::Timestamp::from_second(1_700_000_000).unwrap(), actor: "tester".to_owned(), body }
}

fn first() -> Draft {
    let plan = crate::model::plan::Plan {
        runbook: "demo".into(),
        file: "demo.yaml".to_owned(),
        digest: String::new(),
        mode: None,
        scope: crate::model::plan::Scope::Live,
        live: false,
        inputs: BTreeMap::new(),
        waive: Vec::new(),
        estate: crate::model::estate::Estate::default().into(),
        locks: Vec::new(),
        steps: Vec::new(),
    };
    draft(Body::RunCreated { plan: plan.into(), drill: None })
}

fn new(id: &str, locks: &[&str]) -> NewChain {
    let locks = locks.iter().map(|name| Resource((*name).to_owned())).collect();
    NewChain { id: id.into(), kind: ChainKind::Run, name: "demo".to_owned(), parent: None, locks }
}

fn finished() -> Body {
    Body::RunFinished { status: RunStatus::Succeeded, reason: None }
}

/// How many commits the write-ahead log holds: frames that say how large the database is after them.
fn commits(dir: &Path) -> usize {
    let log = std::fs::read(dir.join("journal.db-wal")).unwrap();
    let frames = log.get(32..).unwrap_or_default().chunks_exact(24 + 4_096);
    frames.filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_together_shares_a_commit_and_a_refusal_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(SqliteJournal::open(dir.path()).await.unwrap());
    let mut claims = Vec::new();
    for n in 0..60 {
        let locks: &[&str] = if n == 0 { &["database/x"] } else { &[] };
        claims.push(journal.create(new(&format!("run-{n}"), locks), "one", first()).await.unwrap().0);
    }
    let deposed = journal.create(new("deposed", &[]), "one", first()).await.unwrap().0;
    let _now = journal.seize(&"deposed".into(), "two").await.unwrap();
    // Somebody else writes: what is asked for meanwhile waits, together.
    let other = rusqlite::Connection::open(dir.path().join("journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = commits(dir.path());
    let mut asked = tokio::task::JoinSet::new();
    for claim in claims {
        let journal = journal.clone();
        asked.spawn(async move { journal.append(&claim, 1, vec![draft(Body::Resumed), draft(finished())]).await.map(|_| ()) });
    }
    let behind = journal.clone();
    asked.spawn(async move { behind.append(&deposed, 1, vec![draft(Body::Resumed)]).await.map(|_| ()) });
    let locked = journal.clone();
    asked.spawn(async move { locked.create(new("late", &["database/x"]), "one", first()).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    other.execute_batch("ROLLBACK").unwrap();
    let (mut good, mut refused) = (0, Vec::new());
    while let Some(done) = asked.join_next().await {
        match done.unwrap() {
            Ok(()) => good += 1,
            Err(error) => refused.push(error),
        }
    }
    // The lock may be free or not by the time that `late` is looked at, in the order that they came in.
    assert!(good >= 60 && good + refused.len() == 62, "{refused:?}");
    assert!(refused.iter().all(|why| matches!(why, JournalError::Fenced { .. } | JournalError::Locked { .. })), "{refused:?}");
    assert!(refused.iter().any(|why| matches!(why, JournalError::Fenced { .. })), "{refused:?}");
    let made = commits(dir.path()) - before;
    assert!((1..20).contains(&made), "{made} commits for 62 requests");
    let whole = verify(&journal.dump(None).await.unwrap());
    assert_eq!(whole.problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_chain_is_free_as_soon_as_its_owner_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunId::from("run-a");
    let (one, two) = (SqliteJournal::open(dir.path()).await.unwrap(), SqliteJournal::open(dir.path()).await.unwrap());
    let (claim, _) = one.create(new("run-a", &[]), "one", first()).await.unwrap();
    let owned = two.claim(&run, "two").await.unwrap_err();
    assert!(matches!(&owned, JournalError::Owned { owner, .. } if owner == "one"), "{owned}");
    let owner = async || two.row(&run).await.unwrap().owner;
    assert_eq!(owner().await.as_deref(), Some("one"));
    // Nothing is said, as when a process is killed: its lock is gone with it.
    let held = claim.kept::<Held>().unwrap();
    held.done.store(true, std::sync::atomic::Ordering::SeqCst);
    drop((claim, one));
    assert_eq!((owner().await, two.open().await.unwrap().remove(0).owner), (None, None), "who only looks sees that nobody has it");
    let claim = two.claim(&run, "two").await.unwrap();
    assert_eq!((claim.epoch, owner().await.as_deref()), (2, Some("two")));
    // A claim that is dropped, and not released, is let go of all the same.
    drop(claim);
    let claim = two.claim(&run, "three").await.unwrap();
    two.append(&claim, 1, vec![draft(finished())]).await.unwrap();
    assert_eq!(two.row(&run).await.unwrap().status, "succeeded");
    drop((claim, two));
    assert_eq!(std::fs::read_dir(dir.path().join("locks")).unwrap().count(), 0, "no lock file is left behind");
}

#[tokio::test]
async fn a_bell_rings_for_a_letter_of_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, other) = (SqliteJournal::open(dir.path()).await.unwrap(), SqliteJournal::open(dir.path()).await.unwrap());
    let (a, b) = (owner.bell(&"run-a".into()).unwrap(), owner.bell(&"run-b".into()).unwrap());
    let command = Command::Pause { reason: "tea".to_owned() };
    other.post(&"run-a".into(), draft(Body::Resumed).at, "ana", &command).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), a.rung()).await.expect("it rings");
    assert!(tokio::time::timeout(Duration::from_millis(300), b.rung()).await.is_err(), "it was not for b");
    // Hung up later, it rings for what has been waiting.
    drop((a, b));
    let again = owner.bell(&"run-a".into()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), again.rung()).await.expect("it rings");
}

#[tokio::test]
async fn a_journal_of_the_first_form_still_opens() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("journal.db")).create_if_missing(true);
    let old = SqlitePool::connect_with(options).await.unwrap();
    MIGRATIONS.run_to(1, &old).await.unwrap();
    let run = RunId::from("run-a");
    let sealed = seal(&run, 1, 0, "", vec![first(), draft(Body::Resumed)]).unwrap();
    let mut row = ChainRow {
        id: run.clone(),
        kind: ChainKind::Run,
        name: "demo".to_owned(),
        parent: None,
        status: "running".to_owned(),
        started_at: draft(Body::Resumed).at,
        finished_at: None,
        seq: 0,
        head: String::new(),
        owner: Some("one".to_owned()),
    };
    row.advance(&sealed[..1]);
    let (record, hash) = seal_head(1, "", &row, false);
    row.advance(&sealed);
    sqlx::query("INSERT INTO heads VALUES (1, 'run-a', '', ?, ?)").bind(hash).bind(record).execute(&old).await.unwrap();
    sqlx::query("INSERT INTO chains VALUES ('run-a', 'run', 'demo', NULL, 'running', ?, NULL, 1, 'one', 2, ?)")
        .bind(row.started_at.to_string())
        .bind(&row.head)
        .execute(&old)
        .await
        .unwrap();
    for one in &sealed {
        let event = &one.stored.event;
        let insert = sqlx::query("INSERT INTO events VALUES ('run-a', ?, ?, 'tester', 1, ?, ?, ?, ?)").bind(signed(event.seq));
        let insert = insert.bind(event.at.to_string()).bind(&one.kind).bind(&event.prev).bind(&one.stored.hash).bind(&one.record);
        insert.execute(&old).await.unwrap();
    }
    old.close().await;
    let journal = SqliteJournal::open(dir.path()).await.unwrap();
    let claim = journal.claim(&run, "two").await.unwrap();
    assert_eq!(claim.epoch, 2);
    journal.append(&claim, 2, vec![draft(finished())]).await.unwrap();
    let whole = verify(&journal.dump(None).await.unwrap());
    assert_eq!((whole.problems, whole.events), (Vec::new(), 3));
}
