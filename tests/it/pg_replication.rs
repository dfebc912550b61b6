//! The client of the replication protocol against a real server: logins, TLS, refusals that say what to do, slots,
//! a base backup's stream, and the log over the end of a timeline.

use crate::pg::{Cluster, Home, run};
use muster::providers::{
    port::Lsn,
    replication::{Archived, Event, PgError, Progress, Purpose, Reply, Session, Started, Target, WalStream, wire},
};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

fn target(cluster: &Cluster, user: &str, rest: &str) -> Target {
    Target::parse(&format!("postgres://{user}@127.0.0.1:{}/postgres{rest}", cluster.port)).unwrap()
}

async fn open(cluster: &Cluster) -> Session {
    Session::open(&target(cluster, "postgres", ""), Purpose::Replication).await.unwrap()
}

/// One that vouches for itself.
fn certificate(dir: &std::path::Path, name: &str) {
    let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
    let args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"];
    run(dir, "openssl".into(), &[&args[..], &["subjectAltName=DNS:localhost", "-keyout", &key, "-out", &crt]].concat());
}

/// A server that asks everyone but its owner for a password, and offers TLS.
fn guarded(home: &Home) -> Cluster {
    let cluster = Cluster::with(home, "fsync=off\nmax_wal_senders=3\n");
    certificate(home.0.path(), "server");
    for (name, method) in [("scram", "scram-sha-256"), ("md", "md5"), ("clear", "scram-sha-256"), ("sql", "scram-sha-256")] {
        let encryption = if method == "md5" { "md5" } else { "scram-sha-256" };
        let replication = if name == "sql" { "NOREPLICATION" } else { "REPLICATION" };
        cluster.sql_in(
            "postgres",
            &format!("SET password_encryption = '{encryption}'; CREATE ROLE {name} LOGIN {replication} PASSWORD 'pa ss:{name}'"),
        );
    }
    let mut hba = String::from("host all,replication postgres 127.0.0.1/32 trust\n");
    hba.push_str("host all,replication clear 127.0.0.1/32 password\nhost all,replication md 127.0.0.1/32 md5\n");
    hba.push_str("host all,replication scram,sql 127.0.0.1/32 scram-sha-256\n");
    std::fs::write(cluster.data.join("pg_hba.conf"), hba).unwrap();
    cluster.sql("ALTER SYSTEM SET ssl_cert_file = '../server.crt'");
    cluster.sql("ALTER SYSTEM SET ssl_key_file = '../server.key'");
    cluster.sql("ALTER SYSTEM SET ssl = on");
    cluster.sql("SELECT pg_reload_conf()");
    while cluster.sql("SHOW ssl") != "on" {
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster
}

#[tokio::test]
async fn every_login_works_and_every_refusal_says_what_to_do() {
    let home = Home::new();
    let cluster = guarded(&home);
    let (root, other) = (home.0.path().join("server.crt"), home.0.path().join("other.crt"));
    certificate(home.0.path(), "other");
    let (root, other) = (root.display(), other.display());
    let login = async |user: &str, rest: &str, purpose| Session::open(&target(&cluster, user, rest), purpose).await;

    for (user, rest) in [
        ("scram:pa%20ss%3Ascram", "?sslmode=disable"),
        ("scram:pa%20ss%3Ascram", ""),
        ("md:pa%20ss%3Amd", "?sslmode=disable"),
        ("md:pa%20ss%3Amd", "?sslmode=require"),
        ("clear:pa%20ss%3Aclear", "?sslmode=require"),
        ("scram:pa%20ss%3Ascram", &format!("?sslmode=verify-ca&sslrootcert={root}")),
    ] {
        let mut session = login(user, rest, Purpose::Replication).await.unwrap_or_else(|e| panic!("{user} {rest}: {e}"));
        assert_eq!(session.identify().await.unwrap().system_identifier, cluster.sql("SELECT system_identifier FROM pg_control_system()"));
        session.close().await;
    }
    // The name counts for verify-full: the certificate has `localhost`.
    let full = format!("postgres://scram:pa%20ss%3Ascram@localhost:{}/?sslmode=verify-full&sslrootcert={root}", cluster.port);
    Session::open(&Target::parse(&full).unwrap(), Purpose::Replication).await.unwrap();
    let mut session = login("sql:pa%20ss%3Asql", "", Purpose::Sql).await.unwrap();
    assert_eq!(session.one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.unwrap().text(0), Ok("t"));

    for (user, rest, purpose, says) in [
        ("scram:wrong", "", Purpose::Replication, &["28P01", "the password came from the URL", "check the user"][..]),
        ("scram", "?passfile=/dev/null", Purpose::Replication, &["password file"]),
        ("sql:pa%20ss%3Asql", "", Purpose::Replication, &["42501", "ALTER ROLE"]),
        ("nobody", "", Purpose::Replication, &["28000", "pg_hba.conf"]),
        ("clear:pa%20ss%3Aclear", "?sslmode=disable", Purpose::Replication, &["in clear", "sslmode=require"]),
        ("scram:x", &format!("?sslmode=verify-ca&sslrootcert={other}"), Purpose::Sql, &["TLS is not accepted"]),
        ("scram:x", &format!("?sslmode=verify-full&sslrootcert={root}"), Purpose::Sql, &["TLS is not accepted"]),
        ("scram:x", "?sslmode=verify-ca&sslrootcert=system", Purpose::Sql, &["TLS is not accepted"]),
        ("scram:x", "?sslmode=verify-ca&sslrootcert=/dev/null", Purpose::Sql, &["no certificate in it"]),
        ("scram:x", "?sslmode=verify-ca&sslrootcert=/nonexistent", Purpose::Sql, &["/nonexistent"]),
    ] {
        let text = match Target::parse(&format!("postgres://{user}@127.0.0.1:{}/postgres{rest}", cluster.port)) {
            Err(e) => e.to_string(),
            Ok(target) => Session::open(&target, purpose).await.err().unwrap_or_else(|| panic!("{user} {rest} was let in")).to_string(),
        };
        for part in says {
            assert!(text.contains(part), "{user} {rest}: {text}");
        }
        assert!(!text.contains("pa ss"), "{text}");
    }
    // Every sender taken.
    let _held = [open(&cluster).await, open(&cluster).await, open(&cluster).await];
    let text = Session::open(&target(&cluster, "postgres", ""), Purpose::Replication).await.err().unwrap().to_string();
    assert!(text.contains("53300") && text.contains("raise max_wal_senders"), "{text}");
    let text = Session::open(&target(&cluster, "postgres", "").in_database("nowhere"), Purpose::Sql).await.err().unwrap().to_string();
    assert!(text.contains("3D000"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_or_says_nothing_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = Target::parse(&format!("postgres://u@127.0.0.1:{port}/?connect_timeout=1&sslmode=disable")).unwrap();
    let mut held = Vec::new();
    let opened = Session::open(&silent, Purpose::Sql);
    let talks_http = async {
        // The first is left waiting for an answer to its question for TLS; the second hears something else.
        held.push(listener.accept().await.unwrap());
        std::future::pending::<()>().await
    };
    let asking = Target::parse(&format!("postgres://u@127.0.0.1:{port}/?connect_timeout=1")).unwrap();
    tokio::select! { () = talks_http => {}, e = Session::open(&asking, Purpose::Sql) => {
        assert!(matches!(e.err(), Some(PgError::Silent { .. })));
    } }
    drop(opened);
    drop(listener);
    assert!(matches!(Session::open(&silent, Purpose::Sql).await.err(), Some(PgError::Unreachable { .. })));
}

#[tokio::test]
async fn slots_are_made_read_and_dropped_and_a_session_outlives_a_refusal() {
    let home = Home::new();
    let cluster = Cluster::primary(&home);
    let mut session = open(&cluster).await;
    assert!(session.version() >= 150_000 && session.process().is_some());
    assert_eq!(session.segment_size().await.unwrap(), 16 << 20);
    assert_eq!(session.read_slot("mine").await.unwrap(), None);
    session.create_slot("mine", false).await.unwrap();
    let state = session.read_slot("mine").await.unwrap().unwrap();
    assert!(state.physical && state.restart.is_some_and(|(_, timeline)| timeline == 1), "{state:?}");
    let again = session.create_slot("mine", false).await.unwrap_err();
    assert_eq!(again.code(), Some("42710"), "{again}");
    // The refusal was read to its end.
    session.drop_slot("mine").await.unwrap();
    session.create_slot("passing", true).await.unwrap();
    let missing = session.timeline_history(7).await.unwrap_err();
    assert!(missing.server().is_some(), "{missing}");
    session.close().await;
    while cluster.sql("SELECT count(*) FROM pg_replication_slots") != "0" {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_base_backup_streams() {
    let home = Home::new();
    let cluster = Cluster::primary(&home);
    let mut session = open(&cluster).await;
    let ask = "BASE_BACKUP (LABEL 'test', CHECKPOINT 'fast', WAIT false, MANIFEST 'yes', PROGRESS true)";
    session.ask(ask).await.unwrap();
    let (mut rows, mut bytes, mut manifest, mut in_manifest) = (Vec::new(), 0, Vec::new(), false);
    loop {
        match session.reply(ask).await.unwrap() {
            Reply::Row(row) => rows.push(row),
            Reply::Data(data) => match wire::archived(data).unwrap() {
                Archived::New { name, tablespace } => assert_eq!((name.as_str(), tablespace), ("base.tar", None)),
                Archived::Manifest => in_manifest = true,
                Archived::Data(data) if in_manifest => manifest.extend_from_slice(&data),
                Archived::Data(data) => bytes += data.len(),
                Archived::Progress(_) => {}
            },
            Reply::Ready => break,
            _ => {}
        }
    }
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert!(manifest["Files"].as_array().unwrap().len() > 500 && bytes > 10_000_000, "{bytes}");
    let (start, stop): (Lsn, Lsn) = (rows[0].get(0).unwrap(), rows.last().unwrap().get(0).unwrap());
    assert!(start < stop, "{start} {stop}");
}

/// Reads until the log is here up to this position, or the timeline has ended.
async fn read_up_to(stream: &mut WalStream, at: &mut Lsn, end: Lsn) -> bool {
    while *at < end {
        match stream.next(WAIT).await.unwrap().expect("the log does not come") {
            Event::Wal { start, data, server_end } => {
                assert!(start == *at && server_end >= start, "{start} does not follow {at}");
                *at = Lsn(start.0 + data.len() as u64);
            }
            Event::Keepalive { .. } => {}
            Event::End => return false,
        }
    }
    true
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[tokio::test]
async fn the_log_streams_and_goes_on_after_a_promotion() {
    let home = Home::new();
    let cluster = Cluster::primary(&home);
    let standby = cluster.standby(&home);
    let mut session = open(&standby).await;
    assert_eq!(session.parameter("in_hot_standby"), Some("on"));
    session.create_slot("wal", false).await.unwrap();
    let from = Lsn(session.identify().await.unwrap().position.0 / (16 << 20) * (16 << 20));
    let Started::Streaming(mut stream) = session.stream(Some("wal"), from, 1).await.unwrap() else { panic!("ended") };
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 50000) AS n");
    let mut at = from;
    assert!(read_up_to(&mut stream, &mut at, cluster.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()).await);
    stream.report(Progress { written: at, flushed: at, applied: Lsn(0) }, now(), true).await.unwrap();
    // The report has an answer, and the slot stands where it said.
    assert!(matches!(stream.next(WAIT).await.unwrap(), Some(Event::Keepalive { .. } | Event::Wal { .. })));
    let flushed = || standby.sql("SELECT flush_lsn FROM pg_stat_replication").parse::<Lsn>().unwrap();
    assert!(flushed() >= at);

    cluster.stop();
    standby.promote();
    assert!(!read_up_to(&mut stream, &mut at, Lsn(u64::MAX)).await);
    let (mut session, next) = stream.finish().await.unwrap();
    let next = next.unwrap();
    assert_eq!((next.timeline, next.from), (2, at));
    let (name, content) = session.timeline_history(2).await.unwrap();
    assert_eq!(name, "00000002.history");
    assert!(String::from_utf8(content).unwrap().contains(&at.to_string()));
    // What has ended right there is told, not waited for.
    let Started::Ended(session, Some(again)) = session.stream(Some("wal"), at, 1).await.unwrap() else { panic!("it streams") };
    assert_eq!(again, next);
    let Started::Streaming(mut stream) = session.stream(Some("wal"), at, 2).await.unwrap() else { panic!("ended") };
    standby.sql("CREATE TABLE u AS SELECT 1 AS n");
    assert!(read_up_to(&mut stream, &mut at, standby.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()).await);
    // In the middle of it, the session is had back.
    let (mut session, next) = stream.finish().await.unwrap();
    assert_eq!((next, session.identify().await.unwrap().timeline), (None, 2));
}

#[tokio::test]
async fn removed_log_is_a_refusal_with_the_remedy() {
    let home = Home::new();
    let cluster = Cluster::with(&home, "fsync=off\nwal_keep_size=0\nmin_wal_size=32MB\nmax_wal_size=32MB\n");
    for _ in 0..4 {
        cluster.sql("SELECT pg_switch_wal()");
        cluster.sql("CHECKPOINT");
    }
    let session = open(&cluster).await;
    let from: Lsn = "0/1000000".parse().unwrap();
    // The server opens the segment only once it streams.
    let failed = match session.stream(None, from, 1).await {
        Ok(Started::Streaming(mut stream)) => stream.next(WAIT).await.unwrap_err(),
        Ok(Started::Ended(..)) => panic!("ended"),
        Err(e) => e,
    };
    assert!(failed.to_string().contains("keep more of it"), "{failed}");
}
