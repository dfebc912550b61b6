//! After a failover: what only the old primary has is listed, row by row, before its directory is touched; then it
//! follows the new one, rewound or copied, and nothing of its own configuration is lost. Where that cannot be told, it is
//! said, and nothing is touched.

use crate::{
    pg::{Cluster, Home, Programs},
    pg_yard::{REWINDABLE, Yard, apply, finish, prepare, session, until},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::Executor;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// East writes what west never gets, and `more`; then east is killed, fenced, and west promoted.
async fn diverge<T>(yard: &Yard, more: impl FnOnce(&Cluster) -> T) -> T {
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
    client.execute("COPY writes (id) FROM PROGRAM 'seq 2000 2004'").await.unwrap();
    client.execute("BEGIN; INSERT INTO writes (id) VALUES (5000); ROLLBACK").await.unwrap();
    yard.east.sql_in("other", "INSERT INTO t VALUES (42)");
    let more = more(&yard.east);
    let mut open = session(yard.east.port, "postgres", "postgres").await.unwrap();
    open.execute("BEGIN; INSERT INTO writes (id) VALUES (6000)").await.unwrap();
    client.execute("CHECKPOINT").await.unwrap();
    yard.east.signal("KILL");
    let proof = yard.done("database.fence", json!({ "database": "orders", "region": "east" })).await["proof"].clone();
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    yard.west.sql("INSERT INTO writes (id) VALUES (1)");
    more
}

fn nothing_more(_: &Cluster) {}

async fn rejoined(yard: &Yard) -> Value {
    yard.done("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await
}

fn lines(out: &Value) -> Vec<Value> {
    let text = fs::read_to_string(out["stranded"]["file"].as_str().unwrap_or_else(|| panic!("nothing stranded: {out}"))).unwrap();
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
    assert_eq!(
        ids.iter().copied().collect::<BTreeSet<_>>(),
        (1000..=1009).chain(2000..=2004).collect(),
        "not the one rolled back, not the open one"
    );
    let odd: Vec<&Value> = all.iter().filter(|l| l["table"] == "public.\"Odd 'Name\"").map(|l| &l["row"]).collect();
    assert_eq!(odd.len(), 2, "{rows:?}");
    assert!(odd.iter().any(|r| r["k"] == 5 && r["v"] == "new" && r["j"]["a"] == 1) && odd.iter().any(|r| r["k"] == 200), "{odd:?}");
    assert!(all.iter().any(|l| l["database"] == "other" && l["row"]["k"] == 42));
    assert_eq!(rows.len(), 18);
    assert_eq!((out["stranded"]["rows"].as_u64(), out["stranded"]["deleted"].as_u64()), (Some(18), Some(1)));
    assert!(out["stranded"]["unlisted"] == 0 && out["stranded_unknown"].is_null(), "{out}");
    // The deleted row stood at its place, the seventh of the first block; and what was copied in counts row by row.
    let did: Vec<&Value> = all.iter().filter_map(|l| l["tables"].as_array()).flatten().collect();
    assert!(did.iter().any(|t| t["table"] == "public.\"Odd 'Name\"" && t["deleted"] == json!(["(0,7)"])), "{did:?}");
    assert!(did.iter().any(|t| t["table"] == "public.writes" && t["inserted"] == 5), "{did:?}");
    let transactions: Vec<&Value> = all.iter().filter(|l| l.get("committed_at").is_some()).collect();
    assert_eq!(transactions.len() as u64, out["stranded"]["transactions"].as_u64().unwrap());
    assert_eq!(transactions.len(), 5, "{transactions:?}");
    let bytes = fs::read(out["stranded"]["file"].as_str().unwrap()).unwrap();
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

/// Segments as a server makes them beforehand, all zeros: so many that one of them is come upon first.
fn made_for_later(yard: &Yard) {
    for number in 0x40..0x80 {
        let file = fs::File::create(yard.east.data.join(format!("pg_wal/0000000100000000{number:08X}"))).unwrap();
        file.set_len(16 << 20).unwrap();
    }
}

async fn listed_and_rewound(programs: Programs) {
    let yard = Yard::of(programs, REWINDABLE, json!({}));
    diverge(&yard, nothing_more).await;
    made_for_later(&yard);
    let out = rejoined(&yard).await;
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
    let text = fs::read_to_string(&conf).unwrap().replace("wal_retrieve_retry_interval=50ms", "");
    fs::write(&conf, text).unwrap();
    yard.east.sql("SELECT pg_reload_conf()");
    until("the default is in force", || yard.east.sql("SHOW wal_retrieve_retry_interval") == "5s");
    let slow = yard.done("readiness.check", json!({ "region": "east" })).await.to_string();
    assert!(slow.contains("\"slow\"") && slow.contains("set it to 50ms"), "{slow}");
    assert_eq!(yard.writable().await, ["west"]);
    // Nothing is left to do, and nothing is done.
    let again = rejoined(&yard).await;
    assert!(again["how"].is_null(), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound() {
    listed_and_rewound(Programs::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound_in_18() {
    listed_and_rewound(Programs::Eighteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound_in_14() {
    listed_and_rewound(Programs::Fourteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound_in_16() {
    listed_and_rewound(Programs::Sixteen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_has_is_listed_to_the_row_and_it_is_rewound_in_17() {
    listed_and_rewound(Programs::Seventeen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rewound_is_copied_and_the_old_directory_stays() {
    let yard = Yard::up("max_connections=60\nfsync=off\n", json!({}));
    diverge(&yard, nothing_more).await;
    let out = rejoined(&yard).await;
    assert_eq!(out["how"], "copied", "{out}");
    exactly_what_is_stranded(&out);
    kept(&yard, &out);
    follows(&yard);
}

/// The old directory, which stays beside the new one.
fn kept<'a>(yard: &Yard, out: &'a Value) -> &'a Path {
    let old = Path::new(out["old_directory"].as_str().unwrap_or_else(|| panic!("nothing is kept: {out}")));
    assert!(old.join("PG_VERSION").exists() && old != yard.east.data);
    old
}

/// East's log beyond the point where they part goes over four segments, of which something is spoilt; `why` is said, nothing is
/// called listed, and the directory stays, though it could be rewound.
async fn nobody_can_tell(spoil: impl Fn(&[std::path::PathBuf]), why: &str) {
    let yard = Yard::up(REWINDABLE, json!({}));
    let segments: Vec<String> = diverge(&yard, |east| {
        let mut done: Vec<String> = Vec::new();
        for id in 3000..3003 {
            done.push(east.sql("SELECT pg_walfile_name(pg_switch_wal())"));
            east.sql(&format!("INSERT INTO writes (id) VALUES ({id})"));
        }
        done.push(east.sql("SELECT pg_walfile_name(pg_current_wal_lsn())"));
        done
    })
    .await;
    assert_eq!(segments.iter().collect::<BTreeSet<_>>().len(), 4, "{segments:?}");
    let files: Vec<_> = segments.iter().map(|name| yard.east.data.join("pg_wal").join(name)).collect();
    spoil(&files);
    let out = rejoined(&yard).await;
    assert_eq!(out["how"], "copied", "{out}");
    assert!(out["stranded"].is_null(), "{out}");
    let said = out["stranded_unknown"].as_str().unwrap_or_else(|| panic!("it is called nothing: {out}"));
    let why = segments.iter().enumerate().fold(why.to_owned(), |why, (n, name)| why.replace(&format!("segment {n}"), name));
    assert!(said.contains(&why), "no `{why}` in `{said}`");
    let old = kept(&yard, &out);
    assert!(old.join("pg_wal").join(&segments[3]).exists());
    follows(&yard);
}

/// What the log holds from this offset on is gone, as after a disk's failure.
fn zeroed(file: &Path, from: u64) {
    let length = fs::metadata(file).unwrap().len();
    let zeros = vec![0; usize::try_from(length - from).unwrap()];
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(&zeros, from).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_old_primarys_log_is_not_taken_for_nothing_stranded() {
    nobody_can_tell(|segments| fs::remove_file(&segments[1]).unwrap(), "segment 1 is missing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_old_primarys_log_is_not_taken_for_its_end() {
    nobody_can_tell(|segments| zeroed(&segments[1], 40), "the log cannot be read beyond").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_its_own_checkpoint_does_not_end_there() {
    nobody_can_tell(|segments| zeroed(&segments[3], 40), "its latest checkpoint is at").await;
}

/// Both were promoted by themselves: each has a timeline 2 of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_of_the_same_number_is_not_taken_for_the_same_history() {
    let yard = Yard::up(REWINDABLE, json!({}));
    diverge(&yard, nothing_more).await;
    // Somebody makes the old one a primary again, behind everybody's back.
    yard.start_by_hand("east");
    yard.east.promote();
    yard.east.sql("INSERT INTO writes (id) VALUES (7000)");
    yard.east.sql("CHECKPOINT");
    assert_eq!(
        yard.fails("database.rejoin", json!({ "database": "orders", "region": "east", "primary": "west" })).await.code,
        "not_fenced"
    );
    yard.east.shut_down();
    let out = rejoined(&yard).await;
    assert_eq!((out["how"].as_str(), out["stranded"].is_null()), (Some("copied"), true), "{out}");
    assert!(out["stranded_unknown"].as_str().is_some_and(|why| why.contains("another timeline 2")), "{out}");
    // What was kept has what nobody listed.
    let old = kept(&yard, &out);
    let truth = yard.east.again(old);
    assert_eq!(truth.sql("SELECT count(*) FROM writes WHERE id IN (1000, 2004, 7000)"), "3");
    drop(truth);
    follows(&yard);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_was_rewritten_afterwards_are_counted() {
    rewritten(Programs::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_was_rewritten_afterwards_are_counted_in_18() {
    rewritten(Programs::Eighteen).await;
}

/// A table that was rewritten after it was written to has another file: what was done to the old one is counted.
async fn rewritten(programs: Programs) {
    let yard = Yard::of(programs, REWINDABLE, json!({}));
    diverge(&yard, |east| {
        east.sql("VACUUM FULL writes");
        // What has no rows to list is named by whom somebody had for himself alone.
        for sql in ["CREATE TABLE made (k int)", "TRUNCATE made", "CREATE TABLE dropped (k int)", "DROP TABLE dropped"] {
            east.sql(sql);
        }
    })
    .await;
    let out = rejoined(&yard).await;
    let count = |name: &str| out["stranded"][name].as_u64();
    assert_eq!((count("unlisted"), count("rows"), count("deleted")), (Some(15), Some(3), Some(1)), "{out}");
    let gone: Vec<u64> = lines(&out)
        .iter()
        .filter_map(|l| l["gone"].as_array())
        .flatten()
        .map(|file| file["inserted"].as_u64().unwrap_or_else(|| panic!("{file}")))
        .collect();
    assert_eq!(gone, [10, 5], "{out}");
    let all = lines(&out);
    let each = |name: &str| all.iter().filter_map(|l| l[name].as_array()).flatten().cloned().collect::<Vec<_>>();
    let alone = each("alone")
        .iter()
        .map(|one| format!("{} {}", one["database"].as_str().unwrap(), one["table"].as_str().unwrap()))
        .collect::<Vec<_>>();
    assert_eq!(
        alone.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from(["postgres public.writes", "postgres public.made"]),
        "{all:?}"
    );
    assert_eq!(alone.iter().filter(|one| one.ends_with("made")).count(), 2, "made, and truncated: {all:?}");
    assert!(each("alone_gone").iter().any(|one| one["relation_number"].as_u64() > Some(0)), "{all:?}");
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
    let out = rejoined(&yard).await;
    assert_eq!(out["how"], "started", "{out}");
    assert!(out["stranded"].is_null(), "{out}");
    follows(&yard);
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// The processes of a base backup into east, its second one included, which streams the log.
fn base_backups(yard: &Yard) -> BTreeSet<u32> {
    let east = yard.east.data.display().to_string();
    let read = |file: std::path::PathBuf| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| Some((entry.as_ref().ok()?.path(), entry.ok()?)));
    let ours = all.filter(|(path, _)| read(path.join("comm")).trim() == "pg_basebackup" && read(path.join("cmdline")).contains(&east));
    ours.filter_map(|(_, entry)| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The programs, but for one that is replaced.
fn programs_but(name: &str, script: &str) -> (Home, std::path::PathBuf) {
    let (home, real) = (Home::new(), crate::pg::bin().unwrap());
    for program in fs::read_dir(&real).unwrap().map(|e| e.unwrap()) {
        std::os::unix::fs::symlink(program.path(), home.0.path().join(program.file_name())).unwrap();
    }
    let (replaced, real) = (home.0.path().join(name), real.join(name));
    fs::remove_file(&replaced).unwrap();
    fs::write(&replaced, format!("#!/bin/sh\nexec {} {script}\n", real.display())).unwrap();
    fs::set_permissions(&replaced, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (home, real)
}

/// The attempt is cut off, and its shell killed with it; the base backup that it began runs on.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_that_outlives_its_attempt_is_seen_and_no_second_one_begun() {
    let (tools, real) = programs_but("pg_basebackup", "-r 64k \"$@\"");
    let bin = json!({ "instances": { "east": { "server": { "bin": tools.0.path() } } } });
    let yard = Yard::up("max_connections=60\nfsync=off\n", bin);
    diverge(&yard, nothing_more).await;
    let cx = yard.next("database.rejoin");
    let intent = prepare(&cx, "database.rejoin", &json!({ "database": "orders", "region": "east", "primary": "west" })).await.unwrap();
    let both_run = async {
        while base_backups(&yard).len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = apply(&cx, "database.rejoin", &intent) => panic!("it was not cut off: {done:?}"),
        () = both_run => {}
    }
    let running = base_backups(&yard);
    for _ in 0..2 {
        let again = tokio::time::timeout(Duration::from_secs(20), apply(&cx, "database.rejoin", &intent)).await;
        let again = again.expect("it did not come to an end: another base backup was begun").unwrap_err();
        assert!(again.code == "under_way" && again.message.contains("pg_basebackup of an earlier attempt still runs"), "{again}");
        assert_eq!(base_backups(&yard), running);
    }
    // That one comes to nothing; the next attempt makes its own.
    for process in &running {
        let _ = Command::new("kill").args(["-KILL", &process.to_string()]).stderr(Stdio::null()).status().unwrap();
    }
    until("they are gone", || base_backups(&yard).is_empty());
    fs::remove_file(tools.0.path().join("pg_basebackup")).unwrap();
    std::os::unix::fs::symlink(real, tools.0.path().join("pg_basebackup")).unwrap();
    let out = finish(&cx, "database.rejoin", &intent).await.unwrap();
    assert_eq!(out["how"], "copied", "{out}");
    exactly_what_is_stranded(&out);
    follows(&yard);
}

/// West with a tablespace of its own, at another place than east has it: made anew, as on one machine it must be.
fn with_tablespace(yard: &Yard) -> (std::path::PathBuf, String) {
    let home = yard.home.0.path();
    let (east, west) = (home.join("fast east"), home.join("fast=west"));
    for folder in [&east, &west] {
        fs::create_dir(folder).unwrap();
        if let Some((uid, gid)) = crate::pg::other_user() {
            std::os::unix::fs::chown(folder, Some(uid), Some(gid)).unwrap();
        }
    }
    yard.west.stop();
    fs::remove_dir_all(&yard.west.data).unwrap();
    yard.east.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", east.display()));
    yard.east.sql("CREATE TABLE quick (k int) TABLESPACE fast");
    yard.east.sql("INSERT INTO quick VALUES (1)");
    let (from, data) = (yard.east.port.to_string(), yard.west.data.to_str().unwrap());
    let map = format!("{}={}", east.display(), west.display().to_string().replace('=', "\\="));
    let args = ["-h", "127.0.0.1", "-p", &from, "-U", "postgres", "-D", data, "-R", "-X", "stream", "-c", "fast", "-T", &map];
    crate::pg::run(home, yard.west.program("pg_basebackup"), &args);
    let conf = yard.west.data.join("postgresql.conf");
    fs::write(&conf, fs::read_to_string(&conf).unwrap() + &format!("\nport={}\ncluster_name='west'\n", yard.west.port)).unwrap();
    yard.west.start_again();
    until("the standby streams", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1");
    (east, yard.east.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_its_tablespaces_where_nothing_was_and_the_old_directory_keeps_its_own() {
    copied_with_tablespaces(Programs::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_its_tablespaces_where_nothing_was_and_the_old_directory_keeps_its_own_in_18() {
    copied_with_tablespaces(Programs::Eighteen).await;
}

async fn copied_with_tablespaces(programs: Programs) {
    let yard = Yard::of(programs, "max_connections=60\nfsync=off\n", json!({}));
    let (place, number) = with_tablespace(&yard);
    diverge(&yard, |east| east.sql("INSERT INTO quick VALUES (99)")).await;
    let with = |tablespaces: Value| json!({ "database": "orders", "region": "east", "primary": "west", "tablespaces": tablespaces });
    let refused = yard.fails("database.rejoin", with(json!({ "4711": "/srv/fast" }))).await;
    assert!(refused.code == "tablespaces" && refused.message.contains("no tablespace 4711"), "{refused}");
    // Where the old one has its own there is no room, and nothing is touched.
    let full = yard.fails("database.rejoin", with(json!({ number.clone(): place }))).await;
    assert!(full.code == "tablespaces" && full.message.contains("something is there already"), "{full}");
    let beside = |what: &str| Path::new(&format!("{}{what}", yard.east.data.display())).to_owned();
    assert!(yard.east.data.join("PG_VERSION").exists() && !beside(".muster-new").exists() && !beside(".muster-own").exists());

    let out = rejoined(&yard).await;
    assert_eq!(out["how"], "copied", "{out}");
    assert!(lines(&out).iter().any(|line| line["table"] == "public.quick" && line["row"]["k"] == 99), "{out}");
    let old = kept(&yard, &out);
    follows(&yard);
    let now = yard.east.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'");
    assert_eq!(now, beside(&format!(".tablespaces/{number}")).display().to_string());
    yard.west.sql("INSERT INTO quick VALUES (2)");
    until("the table follows", || yard.east.sql("SELECT string_agg(k::text, ' ' ORDER BY k) FROM quick") == "1 2");
    // The old directory is whole, with the row that nobody else has.
    assert_eq!(fs::read_link(old.join("pg_tblspc").join(&number)).unwrap(), place);
    yard.east.shut_down();
    let truth = yard.east.again(old);
    assert_eq!(truth.sql("SELECT string_agg(k::text, ' ' ORDER BY k) FROM quick"), "1 99");
}
