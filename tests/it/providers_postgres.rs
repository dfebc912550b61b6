//! The PostgreSQL provider against a real primary and its standby.

use crate::pg::{Cluster, Home, free_port};
use muster::providers::{
    clock::{Clock, SystemClock},
    port::{Lsn, PortError, SqlRead, SqlWrite, TableSum},
    postgres::{Postgres, Settings},
};
use sqlx::{Connection, Executor, PgConnection};
use std::{sync::Arc, time::Duration};

fn provider(port: u16, user: &str) -> Postgres {
    let settings = Settings {
        label: "predictions in test".into(),
        database: "postgres".into(),
        user: user.into(),
        password: None,
        host: Some("127.0.0.1".into()),
        port: Some(port),
        instance: None,
    };
    Postgres::new(settings, None, Arc::new(SystemClock::new()))
}

async fn session(port: u16) -> PgConnection {
    PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name=writer")).await.unwrap()
}

async fn eventually<F: AsyncFn() -> bool>(what: &str, test: F) {
    let clock = SystemClock::new();
    while !test().await {
        assert!(clock.monotonic() < Duration::from_secs(20), "{what} never came about");
        clock.sleep(Duration::from_millis(30)).await;
    }
}

/// Sums of both at one position: what the action does, in short.
async fn paired(one: &Postgres, other: &Postgres, tables: &[String]) -> (Lsn, Vec<TableSum>, Vec<TableSum>) {
    for _ in 0..200 {
        let (a, left) = one.sums(tables).await.unwrap();
        let (b, right) = other.sums(tables).await.unwrap();
        if a == b {
            return (a, left, right);
        }
        SystemClock::new().sleep(Duration::from_millis(30)).await;
    }
    panic!("the standby never came to the primary's position");
}

#[tokio::test]
async fn a_primary_and_its_standby_tell_what_they_are_and_hold() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    let west = east.standby(&home);
    let (primary, standby) = (provider(east.port, "postgres"), provider(west.port, "postgres"));
    let mut writer = session(east.port).await;
    writer
        .execute(
            "CREATE TABLE predictions (id text PRIMARY KEY, label int, score float8, at timestamptz DEFAULT now(), raw bytea);
             INSERT INTO predictions SELECT 'p' || g, g, g / 3.0, now() - g * interval '1 s', decode(md5(g::text), 'hex') FROM generate_series(1, 5000) g;
             CREATE TABLE \"Odd Name\" (n numeric, t uuid); INSERT INTO \"Odd Name\" SELECT g, gen_random_uuid() FROM generate_series(1, 10) g;
             CREATE UNLOGGED TABLE scratch (n int)",
        )
        .await
        .unwrap();
    eventually("streaming", async || standby.state().await.unwrap().streaming).await;

    let (p, s) = (primary.state().await.unwrap(), standby.state().await.unwrap());
    assert!(!p.in_recovery && s.in_recovery && p.timeline == 1 && s.timeline == 1);
    assert!(p.received.is_none() && !p.streaming && p.last_message.is_none() && s.received.is_some() && s.last_message.is_some());
    assert_eq!(p.system_identifier, s.system_identifier);
    assert!(p.position > Lsn(0) && !p.read_only && !s.replay_paused);
    eventually("one standby in step", async || {
        let all = primary.standbys().await.unwrap();
        all.len() == 1 && all[0].name == "west" && all[0].state == "streaming" && all[0].sent == all[0].replayed
    })
    .await;

    let (_, left, right) = paired(&primary, &standby, &[]).await;
    assert_eq!(left, right);
    assert_eq!(
        left.iter().map(|t| (t.table.as_str(), t.rows)).collect::<Vec<_>>(),
        [("public.\"Odd Name\"", 10), ("public.predictions", 5000)]
    );

    // One row less is another sum; so is one value, with the same number of rows.
    let named = ["predictions".to_owned()];
    let before = primary.sums(&named).await.unwrap().1;
    writer.execute("UPDATE predictions SET score = score + 1e-9 WHERE id = 'p7'").await.unwrap();
    let after = primary.sums(&named).await.unwrap().1;
    assert!(before[0].rows == after[0].rows && before[0].sum != after[0].sum);
    let (_, left, right) = paired(&primary, &standby, &named).await;
    assert!(left == right && left == after);

    let ids: Vec<String> = (4_990..=12_000).map(|n| format!("p{n}")).collect();
    let mut present = standby.present("predictions", "id", &ids).await.unwrap();
    present.sort();
    assert_eq!(present.len(), 11, "5001 and on were never written: {present:?}");
    assert_eq!(primary.present("public.predictions", "label", &["7".into(), "-1".into()]).await.unwrap(), ["7"]);
    assert!(matches!(primary.present("predictions", "nope", &[]).await, Err(PortError::NotFound(_))));
    assert!(matches!(primary.sums(&["nope".to_owned()]).await, Err(PortError::NotFound(m)) if m.contains("nope")));
    assert_eq!(primary.sessions().await.unwrap(), 1, "the writer, not ourselves");

    // A standby cannot be written to, and that is said at once.
    assert!(matches!(standby.prove_writable("m").await, Err(PortError::Refused(_))));
    // Promotion: the timeline is the new one at once, though the control file still says the old.
    east.stop();
    west.promote();
    let s = standby.state().await.unwrap();
    assert!(!s.in_recovery && s.timeline == 2 && !s.streaming, "{s:?}");
    standby.prove_writable("m").await.unwrap();
    standby.prove_writable("m").await.unwrap();
    assert!(matches!(primary.state().await, Err(PortError::Unreachable(_))));
    assert!(matches!(primary.make_read_only().await, Err(PortError::Unreachable(_))), "nothing listened: certainly not done");
}

#[tokio::test]
async fn sums_are_honest_while_writes_go_on() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    let west = east.standby(&home);
    let (primary, standby) = (provider(east.port, "postgres"), provider(west.port, "postgres"));
    session(east.port).await.execute("CREATE TABLE t (id bigserial, x text)").await.unwrap();
    let port = east.port;
    let load = tokio::spawn(async move {
        let mut writer = session(port).await;
        for n in 0..400 {
            sqlx::query("INSERT INTO t (x) VALUES ($1)").bind(format!("{n}")).execute(&mut writer).await.unwrap();
            SystemClock::new().sleep(Duration::from_millis(5)).await;
        }
    });
    let mut seen = Vec::new();
    while !load.is_finished() {
        match primary.sums(&["t".to_owned()]).await {
            Ok((at, sums)) => seen.push((at, sums[0].rows)),
            Err(PortError::Throttled { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    load.await.unwrap();
    assert!(seen.len() > 5, "only {} sums", seen.len());
    assert!(seen.is_sorted(), "more rows never stand at an earlier position: {seen:?}");
    let (_, left, right) = paired(&primary, &standby, &[]).await;
    assert!(left == right && left[0].rows == 400);
}

#[tokio::test]
async fn read_only_ends_sessions_that_could_still_write() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    let sql = provider(east.port, "postgres");
    let mut open = session(east.port).await;
    open.execute("CREATE TABLE t (n int); GRANT ALL ON t TO public; CREATE ROLE clerk LOGIN").await.unwrap();
    // One in the middle of a transaction, and one that made itself writable for good.
    open.execute("BEGIN").await.unwrap();
    open.execute("INSERT INTO t VALUES (1)").await.unwrap();
    let mut stubborn = session(east.port).await;
    stubborn.execute("SET default_transaction_read_only = off").await.unwrap();
    stubborn.execute("INSERT INTO t VALUES (2)").await.unwrap();

    sql.make_read_only().await.unwrap();
    assert!(open.execute("COMMIT").await.is_err(), "the transaction that was open is gone");
    assert!(stubborn.execute("INSERT INTO t VALUES (3)").await.is_err(), "and so is the other session");
    assert!(sql.state().await.unwrap().read_only && sql.sessions().await.unwrap() == 0);
    let mut fresh = session(east.port).await;
    let error = fresh.execute("INSERT INTO t VALUES (4)").await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "25006");
    assert!(matches!(sql.prove_writable("x").await, Err(PortError::Refused(m)) if m.contains("read-only")));
    sql.make_read_only().await.unwrap();

    sql.make_writable().await.unwrap();
    assert!(!sql.state().await.unwrap().read_only);
    sql.prove_writable("x").await.unwrap();
    let rows: Vec<(i32,)> = sqlx::query_as("SELECT n FROM t").fetch_all(&mut session(east.port).await).await.unwrap();
    assert_eq!(rows, [(2,)]);

    // What cannot be done is said with its remedy, and what would undermine it is found first.
    let clerk = provider(east.port, "clerk");
    assert!(matches!(clerk.make_read_only().await, Err(PortError::Refused(m)) if m.contains("GRANT ALTER SYSTEM") && m.contains("clerk")));
    assert!(matches!(clerk.standbys().await, Ok(v) if v.is_empty()));
    session(east.port).await.execute("ALTER ROLE clerk SET default_transaction_read_only = off").await.unwrap();
    assert!(matches!(sql.make_read_only().await, Err(PortError::Refused(m)) if m.contains("role clerk")));
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_unreachable() {
    assert!(matches!(provider(free_port(), "postgres").state().await, Err(PortError::Unreachable(_))));
    // Accepts and says nothing, as a frozen server does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let clock = SystemClock::new();
    let answer = provider(silent.local_addr().unwrap().port(), "postgres").state().await;
    assert!(matches!(answer, Err(PortError::Unreachable(m)) if m.contains("within 2 s")));
    assert!(clock.monotonic() < Duration::from_secs(4));
}
