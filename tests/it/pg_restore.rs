//! A cluster back from its base backup and its log, on real servers: to the end, to an instant, a position, a transaction,
//! each with exactly the rows that it had then; and what is refused, with what is missing by name.

use crate::{
    pg::{Cluster, Programs, free_port},
    pg_vault::{Vault, archive_all, give, pgbench, wait},
};
use std::fs;

/// One row more, and what it can be found by: the position after it, its transaction, the time after it.
struct Mark {
    rows: i64,
    position: String,
    transaction: String,
    time: String,
}

fn mark(cluster: &Cluster, rows: i64) -> Mark {
    let transaction = cluster.sql("INSERT INTO ledger SELECT coalesce(max(n), 0) + 1 FROM ledger RETURNING txid_current()");
    let answer = cluster.sql(
        "SELECT pg_current_wal_insert_lsn() || ' ' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    let (position, time) = answer.split_once(' ').unwrap();
    let transaction = transaction.lines().next().unwrap().to_owned();
    Mark { rows, position: position.to_owned(), transaction, time: time.to_owned() }
}

fn rows(cluster: &Cluster) -> i64 {
    let answer = cluster.sql("SELECT count(*) || ' ' || coalesce(max(n), 0) FROM ledger");
    let (count, max) = answer.split_once(' ').unwrap();
    assert_eq!(count, max, "rows are there without those before them");
    count.parse().unwrap()
}

#[test]
fn it_comes_back_to_any_point_and_to_no_other() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    pgbench(&cluster, &["-i", "-s", "1", "-q"]);
    mark(&cluster, 1);
    let snapshot = vault.base_backup(&cluster);
    let mut marks = Vec::new();
    for rows in 2..=8 {
        marks.push(mark(&cluster, rows));
        pgbench(&cluster, &["-t", "200", "-c", "2", "-n"]);
    }
    let accounts = cluster.sql("SELECT sum(abalance) || ' ' || count(*) FROM pgbench_accounts");
    archive_all(&cluster);
    drop(cluster);
    fs::remove_dir_all(vault.dir().join("east")).unwrap();

    let latest = vault.recovered(&snapshot, "latest", "latest");
    assert_eq!(rows(&latest), 8);
    assert_eq!(latest.sql("SELECT sum(abalance) || ' ' || count(*) FROM pgbench_accounts"), accounts);
    assert_eq!(latest.sql("SELECT timeline_id FROM pg_control_checkpoint()").parse::<u32>().unwrap().max(2), 2);
    drop(latest);
    for (name, mark, until) in [
        ("time", &marks[2], marks[2].time.clone()),
        ("position", &marks[3], marks[3].position.clone()),
        ("transaction", &marks[4], marks[4].transaction.clone()),
    ] {
        let server = vault.recovered(&snapshot, name, &until);
        assert_eq!(rows(&server), mark.rows, "{name} {until}");
    }
    let at_once = vault.recovered(&snapshot, "immediate", "immediate");
    assert_eq!(rows(&at_once), 1);
    drop(at_once);

    // What cannot be had is told before anything is written.
    let said = vault.restore(&snapshot, "never", &["--until", "FF/0"]).expect(2);
    assert!(said.err.contains("the log in the repository ends at"), "{}", said.err);
    let said = vault.restore(&snapshot, "never", &["--until", "2100-01-01T00:00:00Z"]).expect(2);
    assert!(said.err.contains("the newest log in the repository came at"), "{}", said.err);
    let said = vault.restore(&snapshot, "never", &["--until", "0/100"]).expect(2);
    assert!(said.err.contains("take an older one"), "{}", said.err);
    let said = vault.restore(&snapshot, "never", &["--until", "yesterday"]).expect(2);
    assert!(said.err.contains("no point to recover to"), "{}", said.err);
    let said = vault.restore(&snapshot, "never", &["--timeline", "7"]).expect(2);
    assert!(said.err.contains("does not lead to timeline 7"), "{}", said.err);
    assert!(!vault.dir().join("never").exists());
}

#[test]
fn a_gap_or_damage_in_the_log_is_named_and_never_passed_over() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    mark(&cluster, 1);
    let snapshot = vault.base_backup(&cluster);
    let mut segments = Vec::new();
    for rows in 2..=4 {
        mark(&cluster, rows);
        segments.push(archive_all(&cluster));
    }
    drop(cluster);
    let object = |name: &str| vault.log().into_iter().find(|path| path.ends_with(name)).unwrap();
    let gone = object(&segments[1]);
    let aside = vault.dir().join("aside");
    fs::rename(&gone, &aside).unwrap();
    let said = vault.restore(&snapshot, "never", &[]).expect(2);
    assert!(said.err.contains(&segments[1]) && said.err.contains("--until"), "{}", said.err);
    assert!(!vault.dir().join("never").exists());
    // As far as it says it comes.
    let far = said.err.split("the recovery comes to ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    let port = free_port();
    vault.restore(&snapshot, "far", &["--until", &far, "--port", &port.to_string()]).expect(0);
    // A server that asks for it is not told that the log has ended there.
    let said = vault.muster(&["wal", "fetch", &segments[1], "fetched", "--system", &system_of(&gone)]).expect(126);
    assert!(said.err.contains("the log has a gap"), "{}", said.err);

    // The next one stands for it: refused by its name. Damaged: refused by its tag.
    fs::copy(object(&segments[2]), &gone).unwrap();
    give(&gone);
    let port = free_port();
    vault.restore(&snapshot, "damaged", &["--port", &port.to_string()]).expect(0);
    let log = Cluster::on(&vault.dir().join("damaged"), port).err().expect("it started on damaged log");
    assert!(log.contains("is damaged") && log.contains(&segments[1]), "{log}");
    // Mended, it goes on from where it stopped.
    fs::rename(&aside, &gone).unwrap();
    let mended = Cluster::on(&vault.dir().join("damaged"), port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || mended.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(rows(&mended), 4);
}

fn system_of(object: &std::path::Path) -> String {
    object.parent().unwrap().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_target_is_never_damaged_by_mistake() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    mark(&cluster, 1);
    let snapshot = vault.base_backup(&cluster);
    mark(&cluster, 2);
    archive_all(&cluster);
    let refused = |name: &str, more: &[&str], words: &str| {
        let said = vault.restore(&snapshot, name, more).expect(2);
        assert!(said.err.contains(words), "{words}: {}", said.err);
    };
    refused("east", &["--in-place"], "a server works on it");
    fs::create_dir(vault.dir().join("letters")).unwrap();
    fs::write(vault.dir().join("letters/dear.txt"), "you").unwrap();
    refused("letters", &["--in-place"], "no data directory");
    mark(&cluster, 3);
    let (data, port) = (cluster.data.clone(), cluster.port);
    drop(cluster);
    refused("east", &[], "is a data directory already");
    // The third row is nowhere but in its own log.
    refused("east", &["--in-place"], "of the log that the repository lacks");
    for entry in fs::read_dir(data.join("pg_wal")).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() && file.file_name().unwrap().len() == 24 {
            // Recycled ones do not fit their names, and need not be kept.
            let _ = vault.muster(&["wal", "archive", file.to_str().unwrap()]);
        }
    }
    let said = vault.restore(&snapshot, "east", &["--in-place"]).expect(0).last();
    let (written, there) = (said["bytes_written"].as_u64().unwrap(), said["bytes_in_place"].as_u64().unwrap());
    assert!(written * 3 < there, "{written} bytes were written and {there} were there");
    let back = Cluster::on(&data, port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(rows(&back), 3);
    drop(back);
    // Another cluster's directory.
    let other = Vault::new();
    let foreign = Cluster::primary(&other.home);
    foreign.stop();
    let said = vault.muster(&["backup", "restore", &snapshot, "--to", foreign.data.to_str().unwrap(), "--in-place"]).expect(2);
    assert!(said.err.contains("of another cluster"), "{}", said.err);
    assert!(foreign.data.join("global/pg_control").exists());
}

#[test]
fn an_interrupted_restore_goes_on_and_no_server_starts_meanwhile() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    pgbench(&cluster, &["-i", "-s", "8", "-q"]);
    mark(&cluster, 1);
    let snapshot = vault.base_backup(&cluster);
    archive_all(&cluster);
    drop(cluster);
    let (to, port) = (vault.dir().join("back"), free_port().to_string());
    // Killed as soon as there is something that looks like a cluster; then a little later each time, going on from there.
    for after in [0u64, 20, 60] {
        let args = ["backup", "restore", &snapshot, "--to", to.to_str().unwrap(), "--port", &port];
        let mut restore = vault.spawn("restore", &args);
        wait("some of its files", || to.join("muster.restoring").exists() && to.join("PG_VERSION").exists());
        std::thread::sleep(std::time::Duration::from_millis(after));
        restore.kill();
        assert!(to.join("muster.restoring").exists(), "it was done before it could be killed");
        assert!(Cluster::on(&to, free_port()).is_err(), "a server started on a half of it");
    }
    vault.restore(&snapshot, "back", &["--port", &port]).expect(0);
    assert!(!to.join("muster.restoring").exists());
    let back = Cluster::on(&to, port.parse().unwrap()).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!((rows(&back), back.sql("SELECT count(*) FROM pgbench_accounts")), (1, "800000".to_owned()));
}

fn tablespaces_back(programs: Programs) {
    let vault = Vault::of(programs);
    let cluster = vault.archiving("");
    let place = vault.dir().join("fast");
    fs::create_dir(&place).unwrap();
    give(&place);
    cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()));
    cluster.sql("CREATE TABLE ledger (n bigint primary key) TABLESPACE fast");
    cluster.sql("INSERT INTO ledger SELECT generate_series(1, 1000)");
    let number = cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let snapshot = vault.base_backup(&cluster);
    mark(&cluster, 1001);
    archive_all(&cluster);
    drop(cluster);
    fs::remove_dir_all(&place).unwrap();
    let within = vault.recovered(&snapshot, "within", "latest");
    assert_eq!(rows(&within), 1001);
    let beside = vault.dir().join("within.tablespaces").join(&number);
    assert_eq!(within.sql(&format!("SELECT pg_tablespace_location({number})")), beside.to_str().unwrap());
    drop(within);
    assert!(!place.exists(), "nothing goes to where the original had it");
    let other = vault.dir().join("other");
    let mapped = format!("{number}={}", other.display());
    let port = free_port();
    vault.restore(&snapshot, "apart", &["--tablespace", &mapped, "--port", &port.to_string()]).expect(0);
    let apart = Cluster::on_of(programs, &vault.dir().join("apart"), port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || apart.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(rows(&apart), 1001);
    assert_eq!(apart.sql(&format!("SELECT pg_tablespace_location({number})")), other.to_str().unwrap());
    let said = vault.restore(&snapshot, "never", &["--tablespace", "7=/srv/x"]).expect(2);
    assert!(said.err.contains("has no tablespace 7"), "{}", said.err);
    let said = vault.restore(&snapshot, "never", &["--tablespace", &mapped]).expect(2);
    assert!(said.err.contains("it is not empty"), "{}", said.err);
}

#[test]
fn tablespaces_come_back_beside_or_where_they_are_told() {
    tablespaces_back(Programs::Debian);
}

#[test]
fn tablespaces_come_back_beside_or_where_they_are_told_in_18() {
    tablespaces_back(Programs::Eighteen);
}
