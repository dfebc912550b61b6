//! What a restore drill says was lost, on real servers, against what the tests themselves count there: transactions after the last
//! log that the repository has, none where all of it streams, on another timeline by now, under load, and where nobody can be asked.

use crate::{
    pg::Cluster,
    pg_drill::{estate, left, muster, serves},
    pg_vault::{Background, Vault, archive_all, wait},
};
use serde_json::{Value, json};
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

/// Nothing commits here but what a test does.
pub const STILL: &str = "autovacuum=off\ntrack_commit_timestamp=on\n";

/// A server that archives, with one base backup and three rows after it, all of which the repository has.
pub fn begun(vault: &Vault, settings: &str) -> Cluster {
    estate(vault);
    let cluster = vault.archiving(settings);
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (1), (2), (3)");
    archive_all(&cluster);
    serves(vault, &[("east", &cluster)], "postgres");
    cluster
}

/// The shipped drill: its view, and what its one restoring step said of the loss.
fn drilled(vault: &Vault) -> (Value, Value) {
    let ran = muster(vault, &["drill", "run", "database-restore"]);
    let view = ran.last();
    assert_eq!((ran.code, &view["verdict"]), (Some(0), &"pass".into()), "{view} {}", ran.err);
    assert_eq!(left(vault), Vec::<String>::new());
    let loss = view["restore"]["losses"]["prove"].clone();
    assert_eq!((&view["rpo"]["actual_ms"], &view["rpo"]["upper_bound"]), (&loss["lost_ms"], &loss["upper_bound"]), "{view}");
    assert_eq!(loss, view["steps"][0]["output"]["loss"], "{view}");
    println!("rpo {} of {loss}", view["rpo"]);
    (view, loss)
}

/// From one row's commit to another's, rounded up, by the server's own account.
fn between(cluster: &Cluster, older: i64, newer: i64) -> Value {
    let at = |n: i64| format!("(SELECT pg_xact_commit_timestamp(xmin) FROM ledger WHERE n = {n})");
    json!(cluster.sql(&format!("SELECT ceil(extract(epoch FROM {} - {}) * 1000)", at(newer), at(older))).parse::<u64>().unwrap())
}

fn bytes(cluster: &Cluster, loss: &Value) -> Value {
    let position = |name: &str| loss[name].as_str().unwrap_or_else(|| panic!("no {name} in {loss}")).to_owned();
    json!(
        cluster
            .sql(&format!("SELECT '{}'::pg_lsn - '{}'::pg_lsn", position("primary_position"), position("recovered_position")))
            .parse::<u64>()
            .unwrap()
    )
}

#[test]
fn what_was_committed_after_the_last_archived_log_is_counted_as_lost() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    for n in 4..=8 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    // One with a part of its own is one; what was rolled back, and what only read, is none.
    cluster.sql("BEGIN; INSERT INTO ledger VALUES (9); SAVEPOINT s; INSERT INTO ledger VALUES (10); COMMIT");
    cluster.sql("BEGIN; INSERT INTO ledger VALUES (11); ROLLBACK");
    let end = cluster.sql("SELECT pg_current_wal_flush_lsn()");
    let (view, loss) = drilled(&vault);
    assert_eq!((&loss["lost_commits"], &loss["upper_bound"], &loss["why"]), (&json!(6), &json!(false), &Value::Null), "{loss}");
    assert_eq!(loss["lost_ms"], between(&cluster, 1, 10), "{loss}");
    assert_eq!(loss["lost_bytes"], bytes(&cluster, &loss));
    assert!(cluster.sql(&format!("SELECT '{}'::pg_lsn >= '{end}'::pg_lsn", loss["primary_position"].as_str().unwrap())) == "t", "{loss}");
    assert_eq!((&view["rpo"]["lost_commits"], &view["rpo"]["lost_bytes"]), (&loss["lost_commits"], &loss["lost_bytes"]), "{view}");
    assert_eq!(view["restore"]["lost_at_is"], "the instant at which the primary was asked for its newest commit");
    // Before anything was restored it was on record how the primary stood.
    let shown = muster(&vault, &["show", view["run"].as_str().unwrap()]).out;
    assert!(shown.contains("\"asked\"") && shown.contains(loss["primary_position"].as_str().unwrap()), "{shown}");
    let page = muster(&vault, &["drill", "report", "--output", "report.html"]);
    assert_eq!(page.code, Some(0), "{}", page.err);
    let page = fs::read_to_string(vault.dir().join("report.html")).unwrap();
    assert!(page.contains(&format!("6 transactions in {} bytes of log", loss["lost_bytes"])), "{page}");
    // Held to less than that it fails, and says by how much.
    let drill = fs::read_to_string(vault.dir().join("drills/database-restore.yaml")).unwrap();
    let strict = drill.replace("drill: database-restore", "drill: strict").replace("rpo: 5m", "rpo: 1ms");
    fs::write(vault.dir().join("drills/strict.yaml"), strict).unwrap();
    let ran = muster(&vault, &["drill", "run", "strict"]);
    assert!(ran.code == Some(1) && ran.last()["reasons"].to_string().contains("older than the primary's newest by"), "{}", ran.out);
    // Once the repository has it, nothing is lost.
    archive_all(&cluster);
    let (_, none) = drilled(&vault);
    assert_eq!((&none["lost_commits"], &none["lost_ms"], &none["upper_bound"]), (&json!(0), &json!(0), &json!(false)), "{none}");
}

fn receiving(vault: &Vault, cluster: &Cluster) -> Background {
    let address = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
    let receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot", "--every", "20ms"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    receive
}

/// All that is on the server's disk is in the repository.
fn all_received(cluster: &Cluster) {
    wait("all of the log", || {
        cluster.sql("SELECT restart_lsn = pg_current_wal_flush_lsn() FROM pg_replication_slots WHERE slot_name = 'muster'") == "t"
    });
}

#[test]
fn where_the_log_streams_nothing_is_lost_and_under_load_what_the_server_says_is() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    let mut receive = receiving(&vault, &cluster);
    for n in 4..=8 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    all_received(&cluster);
    let (_, loss) = drilled(&vault);
    assert_eq!((&loss["lost_commits"], &loss["lost_ms"], &loss["upper_bound"]), (&json!(0), &json!(0), &json!(false)), "{loss}");

    // It goes on writing while it is restored: what came after the moment of loss is neither lost nor recovered.
    let stop = AtomicBool::new(false);
    let (view, loss) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1_000.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
            }
        });
        wait("a row under load", || cluster.sql("SELECT count(*) > 3 FROM ledger WHERE n >= 1000") == "t");
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drilled(&vault)));
        stop.store(true, Ordering::SeqCst);
        ran.unwrap_or_else(|why| std::panic::resume_unwind(why))
    });
    receive.kill();
    // One writer: its commits are in the order of their times.
    let instant = |name: &str| loss[name].as_str().unwrap_or_else(|| panic!("no {name} in {loss}")).to_owned();
    let (from, to) = (instant("recovered_commit"), instant("primary_commit"));
    let lost = cluster.sql(&format!(
        "SELECT count(*) FROM ledger WHERE pg_xact_commit_timestamp(xmin) > '{from}' AND pg_xact_commit_timestamp(xmin) <= '{to}'"
    ));
    assert_eq!((loss["lost_commits"].to_string(), &loss["upper_bound"]), (lost, &json!(false)), "{loss}");
    assert!(view["restore"]["recovered_point"].as_str().unwrap() <= view["restore"]["lost_at"].as_str().unwrap(), "{view}");
}

/// Another server has taken over, and goes on where the old one's log was left.
#[test]
fn a_primary_on_a_later_timeline_is_compared_through_its_history() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    let west = cluster.standby_named(&vault.home, "west", "archive_mode=off\n", &[]);
    archive_all(&cluster);
    for n in 4..=5 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    wait("the standby", || west.sql("SELECT count(*) FROM ledger") == "5");
    serves(&vault, &[("east", &cluster), ("west", &west)], "postgres");
    let (_, before) = drilled(&vault);
    assert_eq!((&before["region"], &before["lost_commits"]), (&json!("east"), &json!(2)), "{before}");
    cluster.stop();
    west.promote();
    for n in 6..=8 {
        west.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    let (_, loss) = drilled(&vault);
    assert_eq!((&loss["region"], &loss["primary_timeline"], &loss["upper_bound"]), (&json!("west"), &json!(2), &json!(false)), "{loss}");
    assert_eq!((&loss["lost_commits"], &loss["lost_ms"]), (&json!(5), &between(&west, 1, 8)), "{loss}");
    assert_eq!(loss["lost_bytes"], bytes(&west, &loss));
}

#[test]
fn what_cannot_be_told_is_said_and_never_nothing() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    cluster.sql("INSERT INTO ledger VALUES (4)");
    // Who may not read the log hears how much and how long, and not how many.
    cluster.sql("CREATE ROLE reader LOGIN");
    serves(&vault, &[("east", &cluster)], "reader");
    let (_, unread) = drilled(&vault);
    assert_eq!((&unread["lost_commits"], &unread["upper_bound"]), (&Value::Null, &json!(false)), "{unread}");
    assert!(unread["lost_ms"].as_u64() >= between(&cluster, 1, 4).as_u64() && unread["lost_bytes"] == bytes(&cluster, &unread), "{unread}");
    assert!(unread["why"].as_str().is_some_and(|why| why.contains("was not read")), "{unread}");
    // And where no times are kept either, the age is all there is. With the right to read the log there is more.
    fs::write(
        cluster.data.join("postgresql.conf"),
        fs::read_to_string(cluster.data.join("postgresql.conf")).unwrap() + "track_commit_timestamp=off\n",
    )
    .unwrap();
    // Not in good order: then it would archive the rest.
    cluster.stop();
    cluster.start_again();
    let (_, aged) = drilled(&vault);
    assert_eq!((&aged["upper_bound"], &aged["lost_commits"]), (&json!(true), &Value::Null), "{aged}");
    assert!(aged["why"].as_str().is_some_and(|why| why.contains("track_commit_timestamp")), "{aged}");
    serves(&vault, &[("east", &cluster)], "postgres");
    let (_, read) = drilled(&vault);
    assert_eq!((&read["lost_commits"], &read["upper_bound"], &read["why"]), (&json!(2), &json!(false), &Value::Null), "{read}");
    assert!(read["lost_ms"].as_u64() > Some(0) && read["primary_commit"].is_string(), "{read}");
    // It is lost.
    cluster.stop();
    let (view, lost) = drilled(&vault);
    assert_eq!((&lost["upper_bound"], &lost["lost_bytes"], &lost["region"]), (&json!(true), &Value::Null, &Value::Null), "{lost}");
    assert!(lost["why"].as_str().is_some_and(|why| why.contains("no server of `predictions` answers as its primary (east: ")), "{lost}");
    assert!(view["rpo"].get("lost_commits").is_none() && view["rpo"]["actual_ms"].as_u64() > Some(0), "{view}");
    let page = muster(&vault, &["drill", "report", "--output", "report.html"]);
    assert_eq!(page.code, Some(0), "{}", page.err);
    let page = fs::read_to_string(vault.dir().join("report.html")).unwrap();
    assert!(page.contains("≤ ") && page.contains("the data loss of step prove: no server of"), "{page}");
}
