//! Each way to fence a PostgreSQL primary, with the loophole it closes tried: a backend that outlives its postmaster, a
//! session that makes itself writable, a role with its password, a server that somebody starts again.

use crate::{
    pg::Cluster,
    pg_yard::{REWINDABLE, Yard, apply, finish, observed, prepare, session, undo, until},
};
use muster::providers::port::{ServerState, WorldRead, WorldWrite};
use serde_json::{Value, json};
use sqlx::Executor;
use std::{
    process::Command,
    time::{Duration, Instant},
};

async fn fence(yard: &Yard, by: &[&str], planned: bool) -> Value {
    yard.done("database.fence", json!({ "database": "orders", "region": "east", "planned": planned, "by": by })).await["proof"].clone()
}

fn postmaster(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.data.join("postmaster.pid")).unwrap().lines().next().unwrap().to_owned()
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// A transaction that is busy for a while and then writes: it never waits for anything, so it does not notice that its
/// postmaster is gone.
async fn busy_write(port: u16, id: i64) -> sqlx::Result<()> {
    let mut client = session(port, "app", "postgres").await?;
    let text = format!(
        "DO $$ DECLARE until timestamptz := clock_timestamp() + interval '1.5 s'; BEGIN
           WHILE clock_timestamp() < until LOOP END LOOP; INSERT INTO writes VALUES ({id}); END $$"
    );
    client.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(text))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_outlives_its_postmaster_commits_unless_the_server_is_fenced_as_a_whole() {
    let yard = Yard::up(REWINDABLE, json!({}));
    // The loophole: the postmaster is gone, nothing listens, and a write is acknowledged all the same.
    let port = yard.east.port;
    let writing = tokio::spawn(busy_write(port, 1));
    tokio::time::sleep(Duration::from_millis(400)).await;
    kill("-KILL", &postmaster(&yard.east));
    assert!(writing.await.unwrap().is_ok(), "it was acknowledged after its postmaster had been killed");
    until("the last backend ends", || !living(&yard.east));
    yard.start_by_hand("east");
    assert_eq!(yard.east.sql("SELECT count(*) FROM writes WHERE id = 1"), "1");

    // Fenced while such a backend lives: it is not acknowledged, and no process is left.
    let writing = tokio::spawn(busy_write(port, 2));
    tokio::time::sleep(Duration::from_millis(400)).await;
    kill("-KILL", &postmaster(&yard.east));
    assert!(living(&yard.east), "the backend lives");
    let proof = fence(&yard, &["server_stopped"], false).await;
    assert_eq!(proof["kind"], "server_stopped");
    assert!(!living(&yard.east), "and was ended");
    assert!(writing.await.unwrap().is_err(), "its client was told nothing");

    // Whoever starts it again gets a standby that refuses writes.
    yard.start_by_hand("east");
    let refused = session(port, "app", "postgres").await.unwrap().execute("INSERT INTO writes VALUES (3)").await.unwrap_err().to_string();
    assert!(refused.contains("read-only transaction"), "{refused}");
    assert_eq!(yard.writable().await, Vec::<&str>::new());
    // A proof that is looked at again no longer holds: something runs there. Nothing is promoted on it.
    let with = json!({ "database": "orders", "region": "west", "proof": proof });
    assert_eq!(yard.fails("database.promote", with).await.code, "proof_void");
    // Fenced again it is, and the standby may be promoted.
    let proof = fence(&yard, &["server_stopped"], false).await;
    let promoted = yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert_eq!((promoted["timeline_before"].as_u64(), promoted["timeline_after"].as_u64()), (Some(1), Some(2)));
    assert_eq!(yard.writable().await, ["west"]);
}

/// Does any process work in its data directory?
fn living(cluster: &Cluster) -> bool {
    let at = std::fs::canonicalize(&cluster.data).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|e| std::fs::read_link(e.path().join("cwd")).ok()).any(|cwd| cwd == at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_backend_is_not_taken_for_a_dead_one() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let mut held = session(yard.east.port, "app", "postgres").await.unwrap();
    held.execute("BEGIN; INSERT INTO writes VALUES (7)").await.unwrap();
    let backend = yard.east.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'");
    kill("-STOP", &backend);
    kill("-KILL", &postmaster(&yard.east));
    let proof = fence(&yard, &["server_stopped"], false).await;
    assert!(proof["detail"].as_str().unwrap().contains("no process"));
    assert!(!living(&yard.east), "it was frozen, and would have thawed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_is_undone_as_it_was() {
    let yard = Yard::up(REWINDABLE, json!({}));
    yard.east.sql("INSERT INTO writes VALUES (1)");
    let cx = yard.next("fence");
    let with = json!({ "database": "orders", "region": "east", "planned": true });
    let intent = prepare(&cx, "database.fence", &with).await.unwrap();
    let proof = finish(&cx, "database.fence", &intent).await.unwrap()["proof"].clone();
    assert_eq!(proof["kind"], "server_stopped", "what the estate has: {proof}");
    assert!(proof["lsn"].is_string(), "{proof}");
    // Twice is once.
    apply(&cx, "database.fence", &intent).await.unwrap();
    observed(&cx, "database.fence", &intent).await.unwrap();
    for _ in 0..2 {
        undo(&cx, "database.fence", &intent).await.unwrap();
        assert_eq!(yard.writable().await, ["east"]);
    }
    until("the standby follows again", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept_out_and_let_in_again_exactly_as_they_were() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let mut held = session(yard.east.port, "app", "postgres").await.unwrap();
    // Read-only alone stops who obeys; the loophole:
    held.execute("SET default_transaction_read_only = off; INSERT INTO writes VALUES (1)").await.unwrap();
    let logins = "SELECT string_agg(rolname || rolcanlogin, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'";
    let before = yard.east.sql(logins);
    let cx = yard.next("fence");
    let with = json!({ "database": "orders", "region": "east", "planned": true, "by": ["access_revoked"] });
    let intent = prepare(&cx, "database.fence", &with).await.unwrap();
    let proof = finish(&cx, "database.fence", &intent).await.unwrap()["proof"].clone();
    assert_eq!(proof["kind"], "access_revoked");
    assert!(held.execute("INSERT INTO writes VALUES (2)").await.is_err(), "its session was ended");
    let refused = session(yard.east.port, "app", "postgres").await.unwrap_err().to_string();
    assert!(refused.contains("not permitted to log in"), "{refused}");
    undo(&cx, "database.fence", &intent).await.unwrap();
    assert_eq!(yard.east.sql(logins), before, "also who could not log in before");
    session(yard.east.port, "app", "postgres").await.unwrap().execute("INSERT INTO writes VALUES (3)").await.unwrap();

    // Somebody lets one of them in again: the proof is void.
    let proof = fence(&yard, &["access_revoked"], true).await;
    let mut own = session(yard.east.port, "muster", "postgres").await.unwrap();
    own.execute("SET default_transaction_read_only = off").await.unwrap();
    own.execute("ALTER ROLE app LOGIN").await.unwrap();
    void(&yard, &proof, "`access_revoked` does not hold any more").await;

    // Promoted under it, the new primary lets them in when it is admitted, and not before.
    let proof = fence(&yard, &["access_revoked"], true).await;
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert!(session(yard.west.port, "app", "postgres").await.is_err());
    yard.done("database.admit", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    session(yard.west.port, "app", "postgres").await.unwrap().execute("INSERT INTO writes VALUES (4)").await.unwrap();
    assert_eq!(yard.west.sql(logins), before);
}

const STRICT: &str =
    "# ours\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 trust\n";

/// East asks for passwords, as it should be; the loophole is a role that has one. With the folder of Muster's own.
fn asking_for_passwords() -> (Yard, tempfile::TempDir) {
    let secret = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(secret.path().join(name), text).unwrap();
        json!({ "file": secret.path().join(name) })
    };
    let extra = json!({ "password": file("m", "m"), "replication": { "password": file("r", "r") } });
    let yard = Yard::up(REWINDABLE, extra);
    std::fs::write(yard.east.data.join("pg_hba.conf"), STRICT).unwrap();
    yard.east.sql("SELECT pg_reload_conf()");
    (yard, secret)
}

async fn refused(port: u16) -> String {
    match session(port, "app", "postgres").await {
        Ok(_) => panic!("it was let in"),
        Err(why) => why.to_string(),
    }
}

/// A moment after the server was told to read its file again.
async fn let_in(port: u16, wanted: bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while session(port, "app", "postgres").await.is_ok() != wanted {
        assert!(Instant::now() < end, "whether clients are let in never became {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asked as Muster does, since nobody else may be let in.
async fn west(yard: &Yard) -> ServerState {
    yard.world.sql("orders", "west").unwrap().state().await.unwrap()
}

/// The standby follows as the role that the estate names; one that came by another role would be kept out as well, as soon
/// as it had to begin anew.
fn follow_as_replication(yard: &Yard) {
    let conninfo = format!("host=127.0.0.1 port={} user=repl password=r", yard.east.port);
    yard.west.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'"));
    yard.west.sql("SELECT pg_reload_conf()");
    let repl = "SELECT count(*) FROM pg_stat_replication WHERE usename = 'repl' AND state = 'streaming'";
    until("the standby follows as that role", || yard.east.sql(repl) == "1");
}

async fn streams(yard: &Yard) {
    let end = Instant::now() + Duration::from_secs(30);
    while !west(yard).await.streaming {
        assert!(Instant::now() < end, "the standby does not stream");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// `database.promote` with this proof is refused, for this reason, and nothing is promoted.
async fn void(yard: &Yard, proof: &Value, why: &str) {
    let failed = yard.fails("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert!(failed.code == "proof_void" && failed.to_string().contains(why), "{}: {failed}", failed.code);
    assert!(west(yard).await.in_recovery);
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_hba_is_closed_and_put_back_byte_for_byte() {
    let (yard, _secret) = asking_for_passwords();
    let hba = yard.east.data.join("pg_hba.conf");
    let mut held = session(yard.east.port, "app", "postgres").await.unwrap();
    let cx = yard.next("fence");
    let with = json!({ "database": "orders", "region": "east", "planned": true, "by": ["hba_closed", "pooler_paused"] });
    let intent = prepare(&cx, "database.fence", &with).await.unwrap();
    let proof = finish(&cx, "database.fence", &intent).await.unwrap()["proof"].clone();
    assert_eq!((proof["kind"].as_str(), proof["also"][0].as_str()), (Some("hba_closed"), Some("pooler_paused")));
    assert!(proof["expires"].is_string(), "a pause may be ended by anybody: {proof}");
    assert!(held.execute("INSERT INTO writes VALUES (1)").await.is_err());
    assert!(refused(yard.east.port).await.contains("pg_hba.conf"));
    assert!(yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1", "replication goes on");
    // Somebody puts back what stood in pg_hba.conf, and the server reads it: clients write again, and the proof is void.
    let closed = std::fs::read_to_string(&hba).unwrap();
    let read_again = |text: &str| {
        std::fs::write(&hba, text).unwrap();
        kill("-HUP", &postmaster(&yard.east));
    };
    read_again(STRICT);
    let_in(yard.east.port, true).await;
    void(&yard, &proof, "`hba_closed` does not hold any more").await;
    read_again(&closed);
    let_in(yard.east.port, false).await;
    // Somebody opens another part of it.
    let pooler = yard.world.poolers_mut("orders").unwrap().remove(0);
    pooler.resume().await.unwrap();
    void(&yard, &proof, "`pooler_paused` does not hold any more").await;
    undo(&cx, "database.fence", &intent).await.unwrap();
    assert_eq!(std::fs::read_to_string(&hba).unwrap(), STRICT);
    assert!(!yard.east.data.join("pg_hba.conf.muster-open").exists());
    session(yard.east.port, "app", "postgres").await.unwrap().execute("INSERT INTO writes VALUES (2)").await.unwrap();
}

/// What is closed stays closed when the server is started again, and may be promoted on.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pg_hba_outlives_a_restart_of_the_primary() {
    let (yard, _secret) = asking_for_passwords();
    follow_as_replication(&yard);
    let proof = fence(&yard, &["hba_closed"], true).await;
    yard.east.shut_down();
    yard.east.start_again();
    streams(&yard).await;
    assert!(refused(yard.east.port).await.contains("pg_hba.conf"));
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert_eq!(yard.writable().await, ["west"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_are_kept_out_stay_out_after_a_crash_of_the_primary() {
    let yard = Yard::up(REWINDABLE, json!({}));
    follow_as_replication(&yard);
    let proof = fence(&yard, &["access_revoked"], true).await;
    yard.east.signal("KILL");
    until("the last process ends", || !living(&yard.east));
    yard.start_by_hand("east");
    streams(&yard).await;
    assert!(refused(yard.east.port).await.contains("not permitted to log in"));
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    yard.done("database.admit", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert_eq!(yard.writable().await, ["west"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_keep_every_writer_out_is_refused() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let with = |by: &[&str]| json!({ "database": "orders", "region": "east", "by": by });
    assert_eq!(yard.fails("database.fence", with(&["pooler_paused"])).await.code, "unsound");
    assert_eq!(yard.fails("database.fence", with(&["read_only"])).await.code, "no_lease");
    assert_eq!(yard.fails("database.fence", with(&["network_cut"])).await.code, "no_network");
    let lie = json!({ "kind": "pooler_paused", "database": "orders", "region": "east", "at": "2026-01-01T00:00:00Z", "detail": "" });
    let with = json!({ "database": "orders", "region": "west", "proof": lie });
    assert_eq!(yard.fails("database.promote", with).await.code, "proof_void");
    let lie = json!({ "kind": "server_stopped", "database": "orders", "region": "east", "at": "2026-01-01T00:00:00Z", "detail": "" });
    let with = json!({ "database": "orders", "region": "west", "proof": lie });
    assert_eq!(yard.fails("database.promote", with).await.code, "proof_void", "it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_counts_while_it_is_seen_to_be_cut() {
    let marks = tempfile::tempdir().unwrap();
    let mark = marks.path().join("cut");
    let network = json!({ "cut": ["touch", mark], "verify": ["test", "-e", mark], "open": ["rm", "-f", mark] });
    let yard = Yard::up(REWINDABLE, json!({ "instances": { "east": { "network": network } } }));
    let cx = yard.next("fence");
    let with = json!({ "database": "orders", "region": "east", "by": ["network_cut"] });
    let intent = prepare(&cx, "database.fence", &with).await.unwrap();
    let proof = finish(&cx, "database.fence", &intent).await.unwrap()["proof"].clone();
    assert_eq!(proof["kind"], "network_cut");
    undo(&cx, "database.fence", &intent).await.unwrap();
    assert!(!mark.exists());
    let with = json!({ "database": "orders", "region": "west", "proof": proof });
    assert_eq!(yard.fails("database.promote", with).await.code, "proof_void");
}
