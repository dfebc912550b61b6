//! The core of what is done to a PostgreSQL of one's own, on versions that Debian 12 does not have: backed up, its log received and
//! archived, brought back to a position and to the end; places exchanged, compared, and back. (What only an old primary has, and its
//! rejoin, `pg_rejoin.rs` tries on all of them.)

use crate::{
    pg::{Cluster, Programs, free_port, run},
    pg_vault::{Vault, archive_all, pgbench, wait},
    pg_yard::{REWINDABLE, Yard},
};
use serde_json::json;
use std::fs;

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

/// A base backup of 14 is not Muster's to make, since its protocol came with 15; its log is, and leads on one that its own programs made.
#[test]
fn the_log_of_14_leads_a_base_backup_of_its_own_programs_on() {
    let vault = Vault::of(Programs::Fourteen);
    let cluster = vault.archiving("");
    let address = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
    let said = vault.muster(&["backup", "create", &address]).expect(2);
    assert!(said.err.contains("a base backup is streamed from 15 on"), "{}", said.err);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let (copy, from) = (vault.dir().join("copy"), cluster.port.to_string());
    let args = ["-h", "127.0.0.1", "-p", &from, "-U", "postgres", "-D", copy.to_str().unwrap(), "-X", "none", "-c", "fast"];
    run(vault.dir(), cluster.program("pg_basebackup"), &args);
    cluster.sql("INSERT INTO ledger VALUES (1)");
    archive_all(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (2)");
    cluster.shut_down();
    assert_eq!(receive.stop(), Some(0), "{}", receive.said());
    let (conf, port) = (copy.join("postgresql.conf"), free_port());
    let fetch =
        format!("{} wal fetch %f %p --repo {} --key-file {}", env!("CARGO_BIN_EXE_muster"), vault.repo.display(), vault.key.display());
    let more = format!("\nport={port}\narchive_mode=off\nrestore_command='{fetch}'\n");
    fs::write(&conf, fs::read_to_string(&conf).unwrap() + &more).unwrap();
    fs::write(copy.join("recovery.signal"), "").unwrap();
    let back = Cluster::on_of(Programs::Fourteen, &copy, port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(back.sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM ledger"), "1 2");
}

async fn exchanged(programs: Programs) {
    let yard = Yard::of(programs, REWINDABLE, json!({}));
    for (to, from) in [("west", "east"), ("east", "west")] {
        yard.cluster(from).sql("INSERT INTO writes (id) SELECT (SELECT count(*) FROM writes) + g FROM generate_series(1, 500) g");
        let out = yard.done("database.switchover", json!({ "database": "orders", "to": to })).await;
        assert_eq!((&out["rejoined"], out["write_pause_ms"].is_u64()), (&true.into(), true), "{out}");
        assert_eq!(yard.writable().await, [to]);
        let checked = yard.done("database.verify_replica", json!({ "database": "orders", "region": from })).await;
        assert!(checked["primary"] == to && checked["tables"].as_u64() >= Some(1), "{checked}");
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
async fn servers_of_14_change_places_and_hold_the_same() {
    exchanged(Programs::Fourteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_16_change_places_and_hold_the_same() {
    exchanged(Programs::Sixteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_17_change_places_and_hold_the_same() {
    exchanged(Programs::Seventeen).await;
}
