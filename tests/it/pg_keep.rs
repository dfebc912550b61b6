//! What prune, verify and copy do with the log of a real server; and what `wal status` says of it.

use crate::{
    pg_drill::{estate, muster, without_database},
    pg_vault::{Vault, archive_all, give, wait},
};
use std::{fs, path::Path};

fn segments(repo: &Path) -> Vec<String> {
    let mut found: Vec<String> = walk(&repo.join("wal"));
    found.retain(|name| name.len() == 24);
    found.sort();
    found
}

fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

#[test]
fn log_that_nothing_needs_goes_and_the_rest_stays_verified_and_copied() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let first = vault.base_backup(&cluster);
    for n in 1..=3 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
        archive_all(&cluster);
    }
    let second = vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (4)");
    let last = archive_all(&cluster);
    drop(cluster);
    let all = segments(&vault.repo);
    vault.muster(&["backup", "prune", "--grace", "0s"]).expect(0);
    vault.muster(&["backup", "prune", "--grace", "0s"]).expect(0);
    let before = segments(&vault.repo);
    // But for what was archived before the first.
    assert_eq!(before, all[1..], "both base backups need all of it");
    vault.muster(&["backup", "forget", &first]).expect(0);
    let marked = vault.muster(&["backup", "prune", "--grace", "0s"]).expect(0).last();
    assert!(marked["wal_marked"].as_u64().unwrap() >= 3 && marked["wal_deleted"] == 0, "{marked}");
    assert_eq!(segments(&vault.repo), before);
    let pruned = vault.muster(&["backup", "prune", "--grace", "0s"]).expect(0).last();
    assert!(pruned["wal_deleted"].as_u64().unwrap() >= 3, "{pruned}");
    let after = segments(&vault.repo);
    assert!(after.len() + 3 <= before.len() && after.contains(&last), "{before:?} {after:?}");
    vault.muster(&["backup", "verify", "--read-data"]).expect(0);
    let status = vault.muster(&["wal", "status", "--max-age", "1h"]).expect(0).last();
    assert_eq!((&status["good"], &status["clusters"][0]["base_backups"][0]["recoverable"]), (&true.into(), &true.into()), "{status}");

    // The copy leads as far as the original.
    let copy = vault.dir().join("copy");
    let copied = vault.muster(&["backup", "copy", &second, "--to", copy.to_str().unwrap()]).expect(0).last();
    assert!(copied["wal_copied"].as_u64().unwrap() >= 2, "{copied}");
    assert_eq!(segments(&copy), after);
    let from_copy = Vault { home: vault.home, repo: copy, key: vault.key, programs: vault.programs };
    let back = from_copy.recovered(&second, "back", "latest");
    assert_eq!(back.sql("SELECT max(n) || ' ' || count(*) FROM ledger"), "4 4");
    drop(back);

    // What is damaged or missing is named.
    let object = from_copy.log().into_iter().find(|path| path.ends_with(&last)).unwrap();
    let whole = fs::read(&object).unwrap();
    let mut spoiled = whole.clone();
    spoiled[100] ^= 1;
    fs::write(&object, &spoiled).unwrap();
    let said = from_copy.muster(&["backup", "verify", "--read-data"]).expect(1);
    assert!(said.out.contains(&last) && said.out.contains("damaged"), "{}", said.out);
    let first_needed = &after[0];
    let object = from_copy.log().into_iter().find(|path| path.ends_with(first_needed)).unwrap();
    fs::remove_file(object).unwrap();
    let said = from_copy.muster(&["backup", "verify"]).expect(1);
    assert!(said.out.contains(first_needed) && said.out.contains("missing"), "{}", said.out);
    let said = from_copy.muster(&["wal", "status"]).expect(1);
    assert!(said.out.contains("cannot be used") && said.out.contains(first_needed), "{}", said.out);
}

#[test]
fn a_server_that_cannot_archive_and_a_slot_that_nobody_holds_are_told() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", cluster.port);
    cluster.sql("CREATE TABLE t AS SELECT 1");
    vault.base_backup(&cluster);
    archive_all(&cluster);
    let good = vault.muster(&["wal", "status", "--server", &url, "--max-age", "1h", "--max-lag", "33554432"]).expect(0).last();
    assert!(good["server"]["lag_bytes"].as_u64().unwrap() <= 32 << 20, "{good}");
    // The repository is locked against the server.
    let key = vault.dir().join("other.key");
    fs::write(&key, [9; 64]).unwrap();
    give(&key);
    let broken = format!("{} wal archive %p --repo {} --key-file {}", env!("CARGO_BIN_EXE_muster"), vault.repo.display(), key.display());
    cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{broken}'"));
    cluster.sql("SELECT pg_reload_conf()");
    cluster.sql("CREATE TABLE u AS SELECT 1");
    cluster.sql("SELECT pg_switch_wal()");
    wait("the failure", || cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    let told = |args: &[&str], words: &str| {
        let said = vault.muster(&[&["wal", "status", "--server", &url], args].concat()).expect(1);
        assert!(said.out.contains(words), "{words}: {}", said.out);
    };
    told(&[], "cannot archive");
    told(&["--slot", "muster"], "has no replication slot `muster`");
    cluster.sql("SELECT pg_create_physical_replication_slot('muster', true)");
    told(&["--slot", "muster"], "nothing receives by the slot `muster`");
    told(&["--max-age", "0s"], "older than");
    for _ in 0..3 {
        cluster.sql("CREATE TABLE IF NOT EXISTS v (n int); INSERT INTO v VALUES (1)");
        cluster.sql("SELECT pg_switch_wal()");
    }
    told(&["--max-lag", "1000"], "bytes behind");
    // It holds too little for what was not received.
    cluster.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    cluster.sql("SELECT pg_reload_conf()");
    for _ in 0..8 {
        cluster.sql("INSERT INTO v VALUES (1)");
        cluster.sql("SELECT pg_switch_wal()");
    }
    cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    cluster.sql("ALTER SYSTEM SET wal_keep_size = 0");
    cluster.sql("SELECT pg_reload_conf()");
    wait("the loss", || {
        cluster.sql("SELECT pg_switch_wal()");
        cluster.sql("CHECKPOINT");
        cluster.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    told(&["--slot", "muster"], "is lost");
}

const READY: &str = "runbook: ready
inputs: { age: { type: string } }
steps:
  - { id: ready, uses: readiness.check, on_failure: stop, with: { region: east, repositories: [vault], max_log_age: \"{{ inputs.age }}\" } }
";

/// Takes a segment out of the repository, its pieces as well; gives what puts it back.
fn taken(vault: &Vault, segment: &str) -> impl FnOnce() + use<> {
    let aside = vault.dir().join("aside");
    fs::create_dir_all(&aside).unwrap();
    let objects = vault.log().into_iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(segment));
    let moved: Vec<_> = objects.map(|path| (aside.join(path.file_name().unwrap()), path)).collect();
    assert!(!moved.is_empty(), "the repository has no {segment}");
    moved.iter().for_each(|(to, from)| fs::rename(from, to).unwrap());
    move || moved.iter().for_each(|(from, to)| fs::rename(from, to).unwrap())
}

/// Before a failover, and with the repository alone.
#[test]
fn readiness_names_a_base_backup_without_its_log_a_gap_and_a_log_that_stands_still() {
    let vault = Vault::new();
    estate(&vault);
    let path = vault.dir().join("runbooks/ready.yaml");
    fs::write(&path, READY).unwrap();
    give(&path);
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let url = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
    let made = vault.muster(&["backup", "create", &url]).expect(0).last();
    let start = made["cluster"]["start"].as_str().unwrap().to_owned();
    let first = cluster.sql(&format!("SELECT pg_walfile_name('{start}')"));
    let mut segments = Vec::new();
    for n in 1..=3 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
        segments.push(archive_all(&cluster));
    }
    let ready = |age: &str| muster(&vault, &["run", "ready", "-i", &format!("age={age}"), "--live"]);
    let told = |age: &str, words: &[&str]| {
        let said = ready(age);
        assert_eq!(said.code, Some(1), "{} {}", said.out, said.err);
        words.iter().for_each(|word| assert!(said.out.contains(word), "no `{word}` in {}", said.out));
    };
    // Whatever is said below is said of the log alone.
    assert_eq!(muster(&vault, &["drill", "run", "database-restore"]).code, Some(0));
    without_database(&vault);
    let whole = ready("1h");
    assert!(whole.code == Some(0) && whole.out.contains("\"whole\""), "{} {}", whole.out, whole.err);

    let put_back = taken(&vault, &segments[1]);
    told("1h", &["gap", &segments[1]]);
    put_back();
    let put_back = taken(&vault, &first);
    told("1h", &["unusable", &first]);
    put_back();
    // The archiver stands still, and the server goes on.
    cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    cluster.sql("SELECT pg_reload_conf()");
    cluster.sql("INSERT INTO ledger VALUES (4)");
    cluster.sql("SELECT pg_switch_wal()");
    wait("its failure", || cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    told("2s", &["stalled"]);
    cluster.sql("ALTER SYSTEM RESET archive_command");
    cluster.sql("SELECT pg_reload_conf()");
    archive_all(&cluster);
    let again = ready("1h");
    assert_eq!(again.code, Some(0), "{} {}", again.out, again.err);
}
