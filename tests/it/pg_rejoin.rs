//! After a failover: what only the old primary has is listed, row by row, before its directory is touched; then it
//! follows the new one, rewound or copied, and nothing of its own configuration is lost.

use crate::pg_yard::{REWINDABLE, Yard, session, until};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::Executor;
use std::{collections::BTreeSet, time::Duration};

/// East writes what west never gets; then east is killed, fenced, and west promoted.
async fn diverge(yard: &Yard) -> Value {
    yard.east.sql("CREATE TABLE \"Odd 'Name\" (k int PRIMARY KEY, v text, j json)");
    yard.east.sql("INSERT INTO \"Odd 'Name\" SELECT g, 'old', '{}' FROM generate_series(1, 100) g");
    yard.east.sql("CREATE DATABASE other");
    yard.east.sql_in("other", "CREATE TABLE t (k int)");
    until("west has it all", || yard.west.sql("SELECT pg_last_wal_replay_lsn()") == yard.east.sql("SELECT pg_current_wal_lsn()"));
    // From here on west hears nothing, whatever is still on its way.
    yard.west.sql("ALTER SYSTEM SET primary_conninfo = ''");
    yard.west.sql("SELECT pg_reload_conf()");
    until("west hears nothing", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    let mut client = session(yard.east.port, "postgres", "postgres").await.unwrap();
    client.execute("INSERT INTO writes (id) SELECT g FROM generate_series(1000, 1009) g").await.unwrap();
    client.execute("BEGIN; UPDATE \"Odd 'Name\" SET v = 'new', j = '{\"a\":\n1}' WHERE k = 5; SAVEPOINT s; INSERT INTO \"Odd 'Name\" VALUES (200, 'sub'); COMMIT").await.unwrap();
    client.execute("DELETE FROM \"Odd 'Name\" WHERE k = 7").await.unwrap();
    client.execute("BEGIN; INSERT INTO writes (id) VALUES (5000); ROLLBACK").await.unwrap();
    yard.east.sql_in("other", "INSERT INTO t VALUES (42)");
    let mut open = session(yard.east.port, "postgres", "postgres").await.unwrap();
    open.execute("BEGIN; INSERT INTO writes (id) VALUES (6000)").await.unwrap();
    client.execute("CHECKPOINT").await.unwrap();
    yard.east.signal("KILL");
    let proof = yard.done("database.fence", json!({ "database": "orders", "region": "east" })).await["proof"].clone();
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    yard.west.sql("INSERT INTO writes (id) VALUES (1)");
    proof
}

fn lines(out: &Value) -> Vec<Value> {
    let text = std::fs::read_to_string(out["stranded"]["file"].as_str().unwrap_or_else(|| panic!("nothing stranded: {out}"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn exactly_what_is_stranded(out: &Value) {
    let all = lines(out);
    let rows: BTreeSet<String> = all
        .iter()
        .filter(|l| l.get("row").is_some())
        .map(|l| format!("{}.{} {}", l["database"].as_str().unwrap(), l["table"].as_str().unwrap(), l["row"]))
        .collect();
    let ids: Vec<i64> = all.iter().filter(|l| l["table"] == "public.writes").filter_map(|l| l["row"]["id"].as_i64()).collect();
    assert_eq!(ids.iter().copied().collect::<BTreeSet<_>>(), (1000..=1009).collect(), "not the one rolled back, not the open one");
    let odd: Vec<&Value> = all.iter().filter(|l| l["table"] == "public.\"Odd 'Name\"").map(|l| &l["row"]).collect();
    assert_eq!(odd.len(), 2, "{rows:?}");
    assert!(odd.iter().any(|r| r["k"] == 5 && r["v"] == "new" && r["j"]["a"] == 1) && odd.iter().any(|r| r["k"] == 200), "{odd:?}");
    assert!(all.iter().any(|l| l["database"] == "other" && l["row"]["k"] == 42));
    assert_eq!(rows.len(), 13);
    assert_eq!((out["stranded"]["rows"].as_u64(), out["stranded"]["deleted"].as_u64()), (Some(13), Some(1)));
    let transactions: Vec<&Value> = all.iter().filter(|l| l.get("committed_at").is_some()).collect();
    assert_eq!(transactions.len() as u64, out["stranded"]["transactions"].as_u64().unwrap());
    assert_eq!(transactions.len(), 4, "{transactions:?}");
    let bytes = std::fs::read(out["stranded"]["file"].as_str().unwrap()).unwrap();
    assert_eq!(out["stranded"]["sha256"], format!("sha256:{}", hex::encode(Sha256::digest(bytes))));
}

fn follows(yard: &Yard) {
    yard.west.sql("INSERT INTO writes (id) VALUES (2)");
    until("east follows west", || yard.east.sql("SELECT count(*) FROM writes WHERE id IN (1, 2)") == "2");
    assert_eq!(yard.east.sql("SELECT count(*) FROM writes WHERE id >= 1000"), "0");
    assert_eq!(yard.east.sql("SHOW port"), yard.east.port.to_string());
    assert_eq!(yard.east.sql("SHOW cluster_name"), "east");
    assert_eq!(yard.west.sql("SELECT slot_name || active FROM pg_replication_slots"), "muster_easttrue");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound() {
    let yard = Yard::up(REWINDABLE, json!({}));
    diverge(&yard).await;
    let out = yard.done("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await;
    assert_eq!(out["how"], "rewound", "{out}");
    exactly_what_is_stranded(&out);
    follows(&yard);
    // The same checks as for a database of Amazon's.
    let checked = yard.done("database.verify_replica", json!({ "database": "orders", "region": "east", "max_lag": "30s" })).await;
    assert_eq!(checked["primary"], "west");
    let ready = yard.done("readiness.check", json!({ "region": "east" })).await.to_string();
    assert!(ready.contains("database/orders machine") && ready.contains("\"quick\""), "{ready}");
    yard.east.sql("ALTER SYSTEM RESET wal_retrieve_retry_interval");
    let conf = yard.east.data.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap().replace("wal_retrieve_retry_interval=50ms", "");
    std::fs::write(&conf, text).unwrap();
    yard.east.sql("SELECT pg_reload_conf()");
    until("the default is in force", || yard.east.sql("SHOW wal_retrieve_retry_interval") == "5s");
    let slow = yard.done("readiness.check", json!({ "region": "east" })).await.to_string();
    assert!(slow.contains("\"slow\"") && slow.contains("set it to 50ms"), "{slow}");
    assert_eq!(yard.writable().await, ["west"]);
    // Nothing is left to do, and nothing is done.
    let again = yard.done("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await;
    assert!(again["how"].is_null(), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rewound_is_copied_and_the_old_directory_stays() {
    let yard = Yard::up("max_connections=60\nfsync=off\n", json!({}));
    diverge(&yard).await;
    let out = yard.done("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await;
    assert_eq!(out["how"], "copied", "{out}");
    exactly_what_is_stranded(&out);
    let old = std::path::Path::new(out["old_directory"].as_str().unwrap());
    assert!(old.join("PG_VERSION").exists() && old != yard.east.data);
    follows(&yard);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_serves_is_never_touched() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let with = json!({ "database": "orders", "region": "east", "primary": "west" });
    assert_eq!(yard.fails("database.rejoin", with.clone()).await.code, "not_primary");
    // Both are primaries: somebody promoted without a fence.
    yard.west.promote();
    assert_eq!(yard.fails("database.rejoin", with).await.code, "not_fenced");
    assert_eq!(yard.east.sql("SELECT pg_is_in_recovery()"), "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stopped_in_order_only_starts() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let proof = yard.done("database.fence", json!({ "database": "orders", "region": "east", "planned": true })).await["proof"].clone();
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    yard.west.sql("INSERT INTO writes (id) VALUES (1)");
    let out = yard.done("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await;
    assert_eq!(out["how"], "started", "{out}");
    assert!(out["stranded"].is_null(), "{out}");
    follows(&yard);
    tokio::time::sleep(Duration::from_millis(10)).await;
}
