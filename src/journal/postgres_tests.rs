//! What the shared journal must hold beyond what every journal must: sessions of several processes, answers
//! that were not heard, servers that may not be trusted.

use super::{chain::verify, conformance::*, lease::*, postgres::*, *};
use crate::providers::clock::{Clock, SystemClock};
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use std::{sync::Arc, time::Duration};

/// Long enough that a slow machine renews in time, short enough to wait for.
const TTL: Duration = Duration::from_secs(4);

async fn node(url: &str) -> PostgresJournal {
    node_of(url, Terms::of(TTL)).await.unwrap()
}

async fn node_of(url: &str, terms: Terms) -> Result<PostgresJournal, JournalError> {
    PostgresJournal::open(&SecretString::from(url), Part { terms, serves: true }, Arc::new(SystemClock::new()), true).await
}

async fn sql(url: &str, statement: &'static str) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::query(statement).execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn a_session_keeps_others_out_until_the_server_says_that_it_ran_out() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let clock = SystemClock::new();
    let (one, two) = (node(&url).await, node(&url).await);
    let run = RunId::from("r");
    let (claim, _) = one.create(new("r", &["x"]), "one", first(0)).await.unwrap();
    let (other, _) = one.create(new("s", &[]), "one", first(0)).await.unwrap();
    // Renewed over and over: well past its first end it still holds.
    clock.sleep(TTL * 3 / 2).await;
    let owned = two.claim(&run, "two").await.unwrap_err();
    assert!(matches!(&owned, JournalError::Owned { owner, .. } if owner == "one"), "{owned}");
    assert!(claim.hold.permits(Duration::ZERO) && !claim.hold.is_lost());
    assert!(two.orphans("node").await.unwrap().rows.is_empty());
    // The server lets it run out, as if the process had stood still: one renewal too late, and all is lost.
    sql(&url, "UPDATE nodes SET expires_at = clock_timestamp() - interval '1 ms' WHERE name = 'one'").await;
    assert_eq!(two.orphans("node").await.unwrap().rows.len(), 2);
    let taken = two.claim(&run, "two").await.unwrap();
    assert_eq!(taken.epoch, 2);
    let late = one.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(late, JournalError::Fenced { ours: 1, now: 2, .. }), "{late}");
    while !claim.hold.is_lost() {
        clock.sleep(Duration::from_millis(20)).await;
    }
    assert!(other.hold.is_lost(), "one session is all or nothing");
    two.append(&taken, 1, vec![draft(1, Body::Resumed)]).await.unwrap();
    // Nobody took the other one over: what ended meanwhile may still be put on record, and a new session goes on.
    one.append(&other, 1, vec![draft(1, Body::Resumed)]).await.unwrap();
    one.release(other).await;
    let again = one.claim(&"s".into(), "one").await.unwrap();
    assert!(!again.hold.is_lost() && again.epoch == 2);
    one.append(&again, 2, vec![draft(2, finished())]).await.unwrap();
    // Whoever leaves keeps nobody waiting.
    two.leave().await.unwrap();
    assert_eq!(one.claim(&run, "one").await.unwrap().epoch, 3);
    assert!(verify(&one.dump(None).await.unwrap()).verified);
}

#[tokio::test]
async fn what_was_not_heard_is_recognised() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let (one, two) = (node(&url).await, node(&url).await);
    // The answer to a creation is lost: nobody here holds it, and asking again gives what there is.
    let (claim, stored) = one.create(new("r", &["x"]), "one", first(0)).await.unwrap();
    one.forget(&claim.run).await;
    let (again, same) = one.create(new("r", &["x"]), "one", first(0)).await.unwrap();
    assert_eq!((again.epoch, same.hash), (1, stored.hash));
    for (journal, at) in [(&one, 0), (&two, 0), (&one, 7)] {
        let twice = journal.create(new("r", &["x"]), "one", first(at)).await.unwrap_err();
        assert!(matches!(twice, JournalError::Exists { .. }), "{twice}");
    }
    // The answer to a claim is lost.
    one.forget(&claim.run).await;
    assert!(matches!(two.claim(&claim.run, "two").await, Err(JournalError::Owned { .. })));
    assert_eq!(one.orphans("node").await.unwrap().rows.len(), 1, "ours, and nobody's here");
    let third = one.claim(&claim.run, "one").await.unwrap();
    assert_eq!(third.epoch, 2);
    assert!(matches!(one.claim(&claim.run, "one").await, Err(JournalError::Owned { .. })), "another task of ours has it");
    drop((again, claim));
    assert!(matches!(two.claim(&third.run, "two").await, Err(JournalError::Owned { .. })), "an old claim frees nothing");
    // A claim that is dropped frees the chain soon.
    let run = third.run.clone();
    drop(third);
    let clock = SystemClock::new();
    while two.claim(&run, "two").await.is_err() {
        clock.sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_lost_what_it_acknowledged_is_refused() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let one = node(&url).await;
    let (claim, stored) = one.create(new("r", &[]), "one", first(0)).await.unwrap();
    one.append(&claim, 1, vec![draft(1, Body::Resumed), draft(2, Body::Resumed)]).await.unwrap();
    sql(&url, "DROP TRIGGER events_stay ON events").await;
    sql(&url, "DELETE FROM events WHERE seq = 3").await;
    sql(&url, "UPDATE chains SET seq = 2, head = (SELECT hash FROM events WHERE seq = 2)").await;
    let lost = one.append(&claim, 3, vec![draft(3, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(lost, JournalError::Lost { ours: 3, now: 2, .. }), "{lost}");
    // As long as what was known, and not the same.
    sql(&url, "UPDATE chains SET seq = 3, head = (SELECT hash FROM events WHERE seq = 1)").await;
    let lost = one.append(&claim, 3, vec![draft(3, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(lost, JournalError::Lost { ours: 3, now: 3, .. }), "{lost}");
    assert!(!stored.hash.is_empty());
}

#[tokio::test]
async fn another_servers_clock_means_nothing() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let (one, two) = (node(&url).await, node(&url).await);
    let (_claim, _) = one.create(new("r", &[]), "one", first(0)).await.unwrap();
    // As a server finds it that took over from one whose clock was behind: ended, by a clock that is not its own.
    sql(&url, "UPDATE nodes SET server = server - 1, expires_at = clock_timestamp() - interval '1 hour' WHERE name = 'one'").await;
    let owned = two.claim(&"r".into(), "two").await.unwrap_err();
    assert!(matches!(owned, JournalError::Owned { .. }), "{owned}");
    assert!(two.orphans("node").await.unwrap().rows.is_empty());
    let clock = SystemClock::new();
    clock.sleep(TTL).await;
    assert!(matches!(two.claim(&"r".into(), "two").await, Err(JournalError::Owned { .. })), "it was renewed meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_chain_of_heads_has_no_gap_however_many_write() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let nodes: Vec<_> = futures::future::join_all((0..3).map(|_| node(&url))).await.into_iter().map(Arc::new).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..24 {
        let journal = nodes[n % 3].clone();
        tasks.spawn(async move {
            // Each resource is wanted by several, in orders of their own; each name by two.
            let locks = [format!("r{}", n % 5), format!("r{}", (n * 7 + 1) % 5)];
            let mut locks: Vec<_> = locks.iter().map(String::as_str).collect();
            locks.dedup();
            let id = format!("run-{}", n / 2);
            match journal.create(new(&id, &locks), "node", first(0)).await {
                Ok((claim, _)) => {
                    journal.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap();
                    journal.append(&claim, 2, vec![draft(2, finished())]).await.unwrap();
                    true
                }
                Err(JournalError::Exists { .. } | JournalError::Locked { .. }) => false,
                Err(other) => panic!("{other}"),
            }
        });
    }
    let created = tasks.join_all().await.into_iter().filter(|created| *created).count();
    let whole = verify(&nodes[0].dump(None).await.unwrap());
    assert_eq!(whole.problems, Vec::<String>::new());
    assert!((1..=12).contains(&created) && whole.chains == created as u64 && whole.events == 3 * whole.chains);
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM locks").fetch_one(&mut conn).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn one_at_a_time_has_a_reservation() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let (one, two) = (node(&url).await, node(&url).await);
    assert!(one.reserve("calendar", "one").await.unwrap() && one.reserve("calendar", "one").await.unwrap());
    assert!(!two.reserve("calendar", "two").await.unwrap());
    two.free("calendar").await.unwrap();
    assert!(!two.reserve("calendar", "two").await.unwrap(), "nobody frees what is another's");
    one.free("calendar").await.unwrap();
    assert!(two.reserve("calendar", "two").await.unwrap());
    two.leave().await.unwrap();
    assert!(one.reserve("calendar", "one").await.unwrap(), "it ends with its session");
}

#[tokio::test]
async fn what_may_not_be_trusted_is_refused() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    let why = async |url: &str, terms| node_of(url, terms).await.err().map(|e| e.to_string()).unwrap_or_default();
    let fine = Terms::default();
    assert_eq!(why(&url, fine).await, "");
    let short = Terms { ttl: Duration::from_secs(5), ..fine };
    assert!(why(&url, short).await.contains("too short"));
    for (setting, word) in [("fsync", "power cut"), ("synchronous_commit", "failover")] {
        server.sql(&format!("ALTER SYSTEM SET {setting} = off"));
        server.sql("SELECT pg_reload_conf()");
        let clock = SystemClock::new();
        while !why(&url, fine).await.contains(word) {
            clock.sleep(Duration::from_millis(50)).await;
        }
        server.sql(&format!("ALTER SYSTEM RESET {setting}"));
        server.sql("SELECT pg_reload_conf()");
        while !why(&url, fine).await.is_empty() {
            clock.sleep(Duration::from_millis(50)).await;
        }
    }
    let standby = server.standby(&home);
    let alone = why(&standby.url("journal"), fine).await;
    assert!(alone.contains("standby") && alone.contains(&standby.port.to_string()), "{alone}");
    // Named together, the one that takes writes is found, whichever comes first.
    let both = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/journal?target_session_attrs=read-write", standby.port, server.port);
    let journal = node_of(&both, fine).await.unwrap();
    // What the standby did not have would be lost with the primary.
    server.await_standby();
    let (claim, _) = journal.create(new("r", &[]), "one", first(0)).await.unwrap();
    server.stop();
    let gone = journal.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap_err();
    assert!(matches!(gone, JournalError::Store { .. }), "{gone}");
    standby.promote();
    let clock = SystemClock::new();
    let mut tries = 0;
    while let Err(error) = journal.append(&claim, 1, vec![draft(1, Body::Resumed)]).await {
        tries += 1;
        assert!(matches!(error, JournalError::Store { .. }) && tries < 100, "{error}");
        clock.sleep(Duration::from_millis(100)).await;
    }
    // The old one comes back, and says that it takes writes.
    server.start_again();
    standby.stop();
    let mut old = String::new();
    while !old.contains("old primary that came back") {
        // The first to ask hears that its connection is gone.
        tries += 1;
        assert!(tries < 100, "{old}");
        old = journal.row(&"r".into()).await.unwrap_err().to_string();
    }
    let nobody = why("postgres://ana:SECRET@127.0.0.1:1/journal", fine).await;
    assert!(nobody.contains("127.0.0.1:1/journal") && !nobody.contains("SECRET"), "{nobody}");
}

#[tokio::test]
async fn a_role_that_may_only_add_is_enough() {
    let home = pg::Home::new();
    let server = pg::Cluster::durable(&home);
    let url = server.database("journal");
    node(&url).await;
    for statement in [
        "CREATE ROLE node LOGIN",
        "GRANT SELECT, INSERT ON events, heads TO node",
        "GRANT SELECT ON _sqlx_migrations TO node",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON nodes, chains, tail, locks, inbox, schedules, reservations TO node",
    ] {
        sql(&url, statement).await;
    }
    let url = url.replace("postgres@", "node@");
    let one = node(&url).await;
    let (claim, _) = one.create(new("r", &["x"]), "one", first(0)).await.unwrap();
    one.append(&claim, 1, vec![draft(1, Body::Resumed)]).await.unwrap();
    one.post(&"r".into(), at(1), "ana", &Command::Pause { reason: "tea".to_owned() }).await.unwrap();
    assert!(one.reserve("calendar", "one").await.unwrap() && one.orphans("one").await.unwrap().rows.is_empty());
    one.append(&claim, 2, vec![draft(2, finished())]).await.unwrap();
    one.leave().await.unwrap();
    assert!(verify(&one.dump(None).await.unwrap()).verified);
    let mut conn = PgConnection::connect(&url).await.unwrap();
    for statement in ["DROP TRIGGER events_keep ON events", "ALTER TABLE events DISABLE TRIGGER ALL", "DELETE FROM heads"] {
        assert!(sqlx::query(statement).execute(&mut conn).await.is_err(), "{statement}");
    }
}
