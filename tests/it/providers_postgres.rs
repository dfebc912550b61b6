//! The PostgreSQL provider against a real primary and its standby.

use crate::pg::{Cluster, Home, free_port};
use muster::providers::{
    clock::{Clock, SystemClock},
    port::{Look, Lsn, Piece, PortError, SqlRead, SqlWrite, Stretch, Version},
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

/// Every table's stretches, as the server shows them.
async fn sums(sql: &Postgres, names: &[String]) -> Vec<(String, Vec<Stretch>)> {
    let mut rows = sql.rows().await.unwrap();
    let mut all = Vec::new();
    for table in rows.tables(names).await.unwrap().into_iter().filter(|table| !table.unlogged) {
        let piece = Piece { per: 16, first: 0, last: table.blocks / 16, open: true };
        let look = rows.stretches(&table, piece, 7, true).await.unwrap();
        all.push((table.name, look.seen));
    }
    all
}

fn count(stretches: &[Stretch]) -> u64 {
    stretches.iter().map(|s| s.rows).sum()
}

/// A look at the primary, and one at the standby once it has replayed what the first shows.
async fn two_looks(primary: &Postgres, standby: &Postgres, table: &str) -> (Look<Version>, Look<Version>) {
    let (mut here, mut there) = (primary.rows().await.unwrap(), standby.rows().await.unwrap());
    let all = [(0, u32::MAX)];
    let first = here.versions(table, &all, true).await.unwrap();
    eventually("the standby comes to the primary's position", async || standby.state().await.unwrap().position >= first.at).await;
    (first, there.versions(table, &all, false).await.unwrap())
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

    let left = sums(&primary, &[]).await;
    assert_eq!(left, sums(&standby, &[]).await);
    let counts: Vec<(&str, u64)> = left.iter().map(|(name, all)| (name.as_str(), count(all))).collect();
    assert_eq!(counts, [("public.\"Odd Name\"", 10), ("public.predictions", 5000)]);

    // One value is another sum, with the same number of rows: also in a column that is called like a row.
    let named = ["predictions".to_owned(), "\"Odd Name\"".to_owned()];
    let before = sums(&primary, &named).await;
    writer
        .execute("UPDATE predictions SET score = score + 1e-9 WHERE id = 'p7'; UPDATE \"Odd Name\" SET n = 77 WHERE n = 7")
        .await
        .unwrap();
    let after = sums(&primary, &named).await;
    for (old, new) in before.iter().zip(&after) {
        assert!(count(&old.1) == count(&new.1) && old.1 != new.1, "{}", old.0);
    }
    let (first, there) = two_looks(&primary, &standby, "public.predictions").await;
    assert!(first.shape == there.shape && first.seen.len() == 5000 && !first.busy);
    let untouched = |look: &Look<Version>| -> Vec<Version> { look.seen.iter().map(|v| Version { touched: false, ..v.clone() }).collect() };
    assert_eq!(untouched(&first), untouched(&there), "a standby has each row at the same place");

    let ids: Vec<String> = (4_990..=12_000).map(|n| format!("p{n}")).collect();
    let mut present = standby.present("predictions", "id", &ids).await.unwrap();
    present.sort();
    assert_eq!(present.len(), 11, "5001 and on were never written: {present:?}");
    assert_eq!(primary.present("public.predictions", "label", &["7".into(), "-1".into()]).await.unwrap(), ["7"]);
    assert!(matches!(primary.present("predictions", "nope", &[]).await, Err(PortError::NotFound(_))));
    let mut rows = primary.rows().await.unwrap();
    assert!(matches!(rows.tables(&["nope".to_owned()]).await, Err(PortError::NotFound(m)) if m.contains("nope")));
    drop(rows);
    eventually("our own sessions have ended", async || primary.sessions().await.unwrap() == 1).await;

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
async fn a_standby_at_the_position_shows_what_the_primary_showed() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    let west = east.standby(&home);
    let (primary, standby) = (provider(east.port, "postgres"), provider(west.port, "postgres"));
    session(east.port)
        .await
        .execute("CREATE TABLE t (id bigserial, t text) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (1000000)")
        .await
        .unwrap();
    let port = east.port;
    let load = tokio::spawn(async move {
        let mut writer = session(port).await;
        for n in 0..400 {
            sqlx::query("INSERT INTO t (t) VALUES ($1)").bind(format!("{n}")).execute(&mut writer).await.unwrap();
            SystemClock::new().sleep(Duration::from_millis(3)).await;
        }
    });
    let mut looks = 0;
    while !load.is_finished() {
        let (first, there) = two_looks(&primary, &standby, "public.t1").await;
        for version in &first.seen {
            assert!(there.seen.contains(version), "at {}: {version:?} was shown and is not on the standby at {}", first.at, there.at);
        }
        looks += 1;
    }
    load.await.unwrap();
    assert!(looks > 3, "only {looks} looks");
    // By the name of the whole table, its partitions.
    let all = sums(&primary, &["t".to_owned()]).await;
    assert!(all.len() == 1 && all[0].0 == "public.t1" && count(&all[0].1) == 400, "{all:?}");
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

    // The owner of the database needs no other right, as on RDS; and only this database is meant.
    open = session(east.port).await;
    open.execute("CREATE ROLE master LOGIN; GRANT pg_monitor, pg_signal_backend TO master; ALTER DATABASE postgres OWNER TO master")
        .await
        .unwrap();
    drop(open);
    let master = provider(east.port, "master");
    eventually("superusers have left, whom the owner may not end", async || master.sessions().await.unwrap() == 0).await;
    master.make_read_only().await.unwrap();
    assert!(master.state().await.unwrap().read_only);
    let elsewhere = PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{}/template1", east.port)).await.unwrap();
    let read_only: String = sqlx::query_scalar("SHOW default_transaction_read_only").fetch_one(&mut { elsewhere }).await.unwrap();
    assert_eq!(read_only, "off");
    let mut late = session(east.port).await;
    sql.make_writable().await.unwrap();
    assert!(late.execute("SELECT 1").await.is_err(), "a session that began read-only would stay so");

    // What cannot be done is said with its remedy, and what would undermine it is found first.
    let clerk = provider(east.port, "clerk");
    assert!(matches!(clerk.make_read_only().await, Err(PortError::Refused(m)) if m.contains("own the database") && m.contains("clerk")));
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
