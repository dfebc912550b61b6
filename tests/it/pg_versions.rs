//! The core of what is done to a PostgreSQL of one's own, on versions that Debian 12 does not have: backed up, its log received and
//! archived, brought back to a position and to the end; places exchanged, compared, and back. (What only an old primary has, and its
//! rejoin, `pg_rejoin.rs` tries on all of them.)

use crate::{
    pg::Programs,
    pg_vault::{Vault, archive_all, pgbench, wait},
    pg_yard::{REWINDABLE, Yard},
};
use serde_json::json;

fn brought_back(programs: Programs) {
    let vault = Vault::of(programs);
    let cluster = vault.archiving("");
    assert_eq!(cluster.sql("SHOW server_version").split('.').next().unwrap(), programs.number().to_string());
    let address = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    pgbench(&cluster, &["-i", "-s", "3", "-q"]);
    let first = vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (1)");
    let position = cluster.sql("SELECT pg_current_wal_insert_lsn()");
    cluster.sql("INSERT INTO ledger VALUES (2)");
    archive_all(&cluster);
    // Of the second base backup only what changed is kept.
    let made = vault.muster(&["backup", "create", &address]).expect(0).last();
    assert!(made["bytes_new"].as_u64() < made["bytes_read"].as_u64().map(|all| all / 4), "{made}");
    cluster.sql("INSERT INTO ledger VALUES (3)");
    let accounts = cluster.sql("SELECT sum(abalance) || ' ' || count(*) FROM pgbench_accounts");
    // In order: it ends when the receiver has it all.
    cluster.shut_down();
    assert_eq!(receive.stop(), Some(0), "{}", receive.said());
    vault.muster(&["backup", "verify", "--read-data"]).expect(0);
    let then = vault.recovered(&first, "then", &position);
    assert_eq!(then.sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM ledger"), "1");
    drop(then);
    let latest = vault.recovered(made["snapshot"].as_str().unwrap(), "latest", "latest");
    assert_eq!(latest.sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM ledger"), "1 2 3");
    assert_eq!(latest.sql("SELECT sum(abalance) || ' ' || count(*) FROM pgbench_accounts"), accounts);
}

async fn exchanged(programs: Programs) {
    let yard = Yard::of(programs, REWINDABLE, json!({}));
    for (to, from) in [("west", "east"), ("east", "west")] {
        yard.cluster(from).sql("INSERT INTO writes (id) SELECT (SELECT count(*) FROM writes) + g FROM generate_series(1, 500) g");
        let out = yard.done("database.switchover", json!({ "database": "orders", "to": to })).await;
        assert_eq!((&out["rejoined"], out["write_pause_ms"].is_u64()), (&true.into(), true), "{out}");
        assert_eq!(yard.writable().await, [to]);
        let checked = yard.done("database.verify_replica", json!({ "database": "orders", "region": from })).await;
        assert_eq!((&checked["primary"], checked["tables"].as_u64()), (&to.into(), Some(1)), "{checked}");
    }
    assert_eq!(yard.east.sql("SELECT count(*) FROM writes"), "1000");
}

#[test]
fn a_cluster_of_16_and_its_log_come_back_to_any_point() {
    brought_back(Programs::Sixteen);
}

#[test]
fn a_cluster_of_17_and_its_log_come_back_to_any_point() {
    brought_back(Programs::Seventeen);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_16_change_places_and_hold_the_same() {
    exchanged(Programs::Sixteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_17_change_places_and_hold_the_same() {
    exchanged(Programs::Seventeen).await;
}
