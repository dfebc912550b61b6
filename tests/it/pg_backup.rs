//! A running PostgreSQL cluster is backed up, restored, and started: what is in the repository is all that it takes.

use crate::{
    pg::{Cluster, Home, other_user, run},
    place::{Place, Said},
};
use muster::{
    providers::directory::Directory,
    repository::{
        keys::Unlock,
        open::Repository,
        wal::WalStore,
        wal_name::{SegmentName, WalName},
    },
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

const SEGMENT: usize = 16 << 20;

pub fn place() -> Place {
    let place = Place::new();
    place.file("pw", "tide-and-ebb\n");
    place
}

pub fn backup(place: &Place, args: &[&str]) -> Said {
    place.muster(&[&["backup"], args, &["--repo", "vault", "--password-file", "pw"]].concat())
}

fn create(place: &Place, cluster: &Cluster) -> Value {
    backup(place, &["create", &cluster.url("")]).expect(0).last()
}

pub fn checked(home: &Home) -> Cluster {
    Cluster::with_initdb(home, &["--data-checksums"], "fsync=off\nautovacuum=off\nfull_page_writes=on\n")
}

/// Lays a snapshot out as it is, with the tool that shares nothing with us: `muster backup restore` adds what a recovery takes.
pub fn restore(place: &Place, home: &Home, snapshot: &str, name: &str) -> PathBuf {
    let to = home.0.path().join(name);
    by_the_tool(place, snapshot, &to);
    to
}

fn by_the_tool(place: &Place, snapshot: &str, to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "there is no {}: `make deps` makes it", python.display());
    let done = Command::new(python)
        .arg(root.join("tools/restore.py"))
        .args([&place.path("vault"), Path::new(snapshot), to])
        .arg("--password-file")
        .arg(place.path("pw"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The program restores the same files, but for the settings of a recovery.
fn restored_by_us(place: &Place, like: &Path) {
    backup(place, &["restore", "latest", "--to", "ours"]).expect(0);
    let log = ["--exclude=postgresql.auto.conf", "--exclude=recovery.signal", "--exclude=pg_wal", "--exclude=postgresql.conf"];
    let diff = Command::new("diff").arg("-r").args(log).args([like, &place.path("ours")]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    fs::remove_dir_all(place.path("ours")).unwrap();
}

/// Puts the log that is in the repository where the server looks for it.
pub fn put_log(place: &Place, made: &Value, data: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Directory::new(place.path("vault")));
        let unlock = Unlock::Passphrase("tide-and-ebb".to_owned().into());
        let repository = Arc::new(Repository::open(store.clone(), "vault", &unlock).await.unwrap());
        let system = made["cluster"]["system_identifier"].as_str().unwrap().to_owned();
        let wal = WalStore::new(repository, store, system).unwrap();
        let mut segments = BTreeSet::new();
        for listed in wal.list().await.unwrap() {
            match listed.name {
                WalName::File(name @ (SegmentName::Whole(_) | SegmentName::History(_))) => {
                    fs::write(data.join("pg_wal").join(name.to_string()), wal.get(&name).await.unwrap().unwrap()).unwrap();
                }
                WalName::Piece(piece) => drop(segments.insert(piece.segment)),
                WalName::File(_) => {}
            }
        }
        for segment in segments {
            let file = data.join("pg_wal").join(segment.to_string());
            if !file.exists() {
                let mut bytes = wal.get_pieces(segment).await.unwrap().unwrap();
                bytes.resize(SEGMENT, 0);
                fs::write(file, bytes).unwrap();
            }
        }
    });
    if let Some((uid, gid)) = other_user() {
        for file in fs::read_dir(data.join("pg_wal")).unwrap() {
            chown(file.unwrap().path(), Some(uid), Some(gid)).unwrap();
        }
    }
}

/// Every file is what the server's own manifest says.
fn verified(cluster: &Cluster, data: &Path) {
    run(data.parent().unwrap(), cluster.bin.join("pg_verifybackup"), &["-n", data.to_str().unwrap()]);
}

pub fn amcheck(cluster: &Cluster) {
    let port = cluster.port.to_string();
    cluster.sql("CREATE EXTENSION IF NOT EXISTS amcheck");
    let args = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--all", "--heapallindexed"];
    run(cluster.data.parent().unwrap(), cluster.bin.join("pg_amcheck"), &args);
}

/// Writes until told to stop; counts what was acknowledged.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn on(cluster: &Cluster) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (url, ends, count) = (cluster.url("postgres"), stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
                while !ends.load(SeqCst) {
                    let n = count.load(SeqCst) + 1;
                    let sql = format!(
                        "INSERT INTO load VALUES ({n}, repeat('{n} ', 40)); UPDATE big SET note = 'under load {n}' WHERE id = {}",
                        n % 4000
                    );
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
                    count.store(n, SeqCst);
                }
            });
        });
        Self { stop, acknowledged, thread: Some(thread) }
    }
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }
    pub fn end(mut self) {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn fill(cluster: &Cluster, rows: u32) {
    cluster.sql("CREATE TABLE load (n int PRIMARY KEY, t text)");
    cluster.sql(&format!(
        "CREATE TABLE big AS SELECT n AS id, md5(n::text) || md5((n * 7)::text) || md5((n * 13)::text) AS body, 'as it was'::text AS note \
         FROM generate_series(0, {}) n",
        rows - 1
    ));
    cluster.sql("ALTER TABLE big ADD PRIMARY KEY (id)");
    cluster.sql("CHECKPOINT");
}

#[test]
fn a_cluster_under_load_comes_back_with_its_tablespace() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    let ts = home.0.path().join("ts");
    fs::create_dir(&ts).unwrap();
    if let Some((uid, gid)) = other_user() {
        chown(&ts, Some(uid), Some(gid)).unwrap();
    }
    cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", ts.display()));
    fill(&cluster, 40_000);
    cluster.sql("CREATE TABLE there TABLESPACE fast AS SELECT * FROM big");
    let load = Load::on(&cluster);
    place.until("some writes", || load.acknowledged() > 20);
    let before = load.acknowledged();
    let made = create(&place, &cluster);
    let after = load.acknowledged();
    load.end();
    assert!(after > before, "nothing was written during the backup");
    assert_eq!(made["cluster"]["from_standby"], false);
    let oid = cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    assert_eq!(made["cluster"]["tablespaces"][&oid], ts.to_str().unwrap());
    // Nothing of it is left on the server.
    assert_eq!(cluster.sql("SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_replication)"), "0");

    let data = restore(&place, &home, "latest", "back");
    verified(&cluster, &data);
    assert!(data.join("backup_label").exists() && data.join("backup_manifest").exists() && !data.join("postmaster.pid").exists());
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    restored_by_us(&place, &data);

    let (content, link) = (home.0.path().join("ts-back"), data.join("pg_tblspc").join(&oid));
    fs::rename(&link, &content).unwrap();
    symlink(&content, &link).unwrap();
    put_log(&place, &made, &data);
    let back = cluster.again(&data);
    let count: u64 = back.sql("SELECT count(*) FROM load").parse().unwrap();
    assert!((before..=after + 1).contains(&count), "{before} {count} {after}");
    assert_eq!(back.sql("SELECT count(*) || ' ' || sum(id) FROM big"), cluster.sql("SELECT count(*) || ' ' || sum(id) FROM big"));
    assert_eq!(
        back.sql("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM there t"),
        cluster.sql("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM there t")
    );
    assert_eq!(back.sql("SELECT current_setting('data_checksums')"), "on");
    amcheck(&back);
}

/// All chunks are what they were. Nobody archives here, so the log has gaps from one backup to the next.
fn sound(place: &Place) {
    let found = backup(place, &["verify", "--read-data"]).last();
    let gap = |touched: &Value| touched["path"].as_str().unwrap().starts_with("log of cluster");
    assert!(found["problems"] == serde_json::json!([]) && found["touched"].as_array().unwrap().iter().all(gap), "{found}");
}

#[test]
fn scattered_updates_store_their_pages_and_little_more() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    fill(&cluster, 200_000);
    let first = create(&place, &cluster);
    let number = |made: &Value, name: &str| made[name].as_u64().unwrap();
    assert!(number(&first, "bytes") > 50 << 20, "{first}");

    // In place, on pages far from each other: the table is loosely filled nowhere, so new versions go to its end.
    cluster.sql("UPDATE big SET note = 'changed' WHERE id % 4000 = 7");
    cluster.sql("CHECKPOINT");
    let second = create(&place, &cluster);
    assert_eq!(second["parent"], first["snapshot"]);
    // 50 rows on 50 pages, and what the catalog and the log of transactions changed.
    assert!(number(&second, "bytes_new") < 2 << 20, "{second}");
    let old = restore(&place, &home, first["snapshot"].as_str().unwrap(), "first");
    verified(&cluster, &old);
    let data = restore(&place, &home, "latest", "second");
    verified(&cluster, &data);
    restored_by_us(&place, &data);
    put_log(&place, &second, &data);
    let back = cluster.again(&data);
    assert_eq!(back.sql("SELECT count(*) FROM big WHERE note = 'changed'"), "50");
    amcheck(&back);
    back.stop();

    // What has not changed is known again though it is put together from parts; and patches are patched.
    let third = create(&place, &cluster);
    assert!(number(&third, "bytes_new") < 1 << 20, "{third}");
    cluster.sql("UPDATE big SET note = 'again' WHERE id % 4000 = 9");
    cluster.sql("CHECKPOINT");
    let fourth = create(&place, &cluster);
    assert!(number(&fourth, "bytes_new") < 2 << 20, "{fourth}");
    sound(&place);
    // Without the oldest snapshots their chunks live on as far as parts of them do.
    backup(&place, &["forget", first["snapshot"].as_str().unwrap(), second["snapshot"].as_str().unwrap()]).expect(0);
    backup(&place, &["prune", "--grace", "0s"]).expect(0);
    backup(&place, &["prune", "--grace", "0s"]).expect(0);
    sound(&place);
    place.muster(&["backup", "copy", "--repo", "vault", "--to", "other", "--password-file", "pw"]).expect(0);
    let moved = home.0.path().join("fourth");
    place
        .muster(&[
            "backup",
            "restore",
            "latest",
            "--repo",
            "other",
            "--password-file",
            "pw",
            "--files-only",
            "--to",
            moved.to_str().unwrap(),
        ])
        .expect(0);
    verified(&cluster, &moved);
    // In place over the older one: what is put together from parts is seen to be there, or written.
    let said =
        backup(&place, &["restore", "latest", "--to", old.to_str().unwrap(), "--files-only", "--in-place", "--delete"]).expect(0).last();
    assert!(number(&said, "bytes_written") < number(&said, "bytes") / 2, "{said}");
    verified(&cluster, &old);
    let said = backup(&place, &["restore", "latest", "--to", old.to_str().unwrap(), "--files-only", "--in-place"]).expect(0).last();
    assert_eq!(number(&said, "bytes_written"), 0, "{said}");
}

#[test]
fn a_standby_is_a_source_as_well() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    let standby = cluster.standby(&home);
    fill(&cluster, 20_000);
    let load = Load::on(&cluster);
    place.until("some writes", || load.acknowledged() > 20);
    let made = create(&place, &standby);
    load.end();
    assert_eq!((made["cluster"]["from_standby"].as_bool(), made["cluster"]["timeline"].as_u64()), (Some(true), Some(1)));
    let data = restore(&place, &home, "latest", "back");
    verified(&cluster, &data);
    assert!(fs::read_to_string(data.join("backup_label")).unwrap().contains("BACKUP FROM: standby"));
    put_log(&place, &made, &data);
    fs::remove_file(data.join("standby.signal")).unwrap();
    let back = cluster.again(&data);
    assert_eq!(back.sql("SELECT count(*) FROM big"), "20000");
    amcheck(&back);
}

/// Another version, with what it alone has (checksums without being asked for, page versions, incremental manifests).
#[test]
fn a_cluster_of_18_comes_back_as_well() {
    let (home, place) = (Home::new(), place());
    let cluster = Cluster::of(&home, crate::pg::Programs::Eighteen, "fsync=off\nautovacuum=off\nmax_wal_senders=6\n");
    assert_eq!(cluster.sql("SHOW data_checksums"), "on");
    fill(&cluster, 4000);
    create(&place, &cluster);
    cluster.sql("UPDATE big SET note = 'changed' WHERE id % 100 = 0");
    cluster.sql("CHECKPOINT");
    let made = create(&place, &cluster);
    assert!(made["bytes_new"].as_u64() < made["bytes_read"].as_u64().map(|all| all / 4), "{made}");
    let data = restore(&place, &home, made["snapshot"].as_str().unwrap(), "again");
    put_log(&place, &made, &data);
    let again = cluster.again(&data);
    assert_eq!(again.sql("SELECT count(*) FROM big WHERE note = 'changed'"), "40");
    // The wheel has no amcheck, and its `pg_verifybackup` crashes: every page is looked at.
    again.shut_down();
    run(home.0.path(), again.program("pg_checksums"), &["--check", "-D", data.to_str().unwrap()]);
}

#[test]
fn a_corrupt_page_is_named_and_the_rest_is_kept() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    fill(&cluster, 20_000);
    let file = cluster.sql("SELECT pg_relation_filepath('big')");
    cluster.sql("CHECKPOINT");
    let on_disk = fs::OpenOptions::new().write(true).open(cluster.data.join(&file)).unwrap();
    on_disk.write_all_at(b"rot", 8192 * 41 + 5000).unwrap();
    let said = backup(&place, &["create", &cluster.url("")]).expect(1);
    assert_eq!(said.last()["corrupt"], serde_json::json!([format!("{file} block 41")]));
    // It is kept as it is: somebody may want the other pages.
    let data = restore(&place, &home, "latest", "back");
    assert_eq!(fs::read(data.join(&file)).unwrap(), fs::read(cluster.data.join(&file)).unwrap());
}

#[test]
fn killed_in_the_middle_nothing_counts_and_nothing_lingers() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    fill(&cluster, 200_000);
    backup(&place, &["list"]);
    for round in 0..3u64 {
        let mut child = place
            .command(&["backup", "create", &cluster.url(""), "--repo", "vault", "--password-file", "pw"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        place.until("the stream", || cluster.sql("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'") == "1");
        std::thread::sleep(Duration::from_millis(40 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        place.until("the server to notice", || {
            cluster.sql("SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_replication)") == "0"
        });
    }
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"], serde_json::json!([]));
    assert!(!cluster.data.join("backup_label").exists());
    create(&place, &cluster);
    backup(&place, &["verify", "--read-data"]).expect(0);
}

#[test]
fn what_is_refused_says_what_to_do() {
    let (place, home) = (place(), Home::new());
    let cluster = Cluster::with(&home, "fsync=off\nmax_wal_senders=1\n");
    cluster.sql("CREATE ROLE plain LOGIN PASSWORD 'word'; ");
    let hba = "host all,replication postgres 127.0.0.1/32 trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n";
    fs::write(cluster.data.join("pg_hba.conf"), hba).unwrap();
    cluster.sql("SELECT pg_reload_conf()");
    let refused = |url: &str, says: &[&str]| {
        let said = backup(&place, &["create", url]).expect(2);
        for part in says {
            assert!(said.err.contains(part), "{url}: {}", said.err);
        }
        assert!(!said.err.contains("sesame"), "{}", said.err);
    };
    let port = cluster.port;
    refused(&format!("postgres://plain:sesame@127.0.0.1:{port}/"), &["28P01", "came from the URL"]);
    refused(&format!("postgres://plain:word@127.0.0.1:{port}/"), &["42501", "REPLICATION LOGIN"]);
    refused(&format!("postgres://postgres@127.0.0.1:{port}/"), &["53300", "raise max_wal_senders"]);
    refused("postgres://postgres@127.0.0.1:1/", &["cannot be reached"]);
    refused(&format!("postgres://postgres@127.0.0.1:{port}/?sslmode=verify-full&sslrootcert=/nonexistent"), &["asks for it"]);
    let said = backup(&place, &["create", "src", "--logical"]).expect(2);
    assert!(said.err.contains("postgres://"), "{}", said.err);
}

/// What logical dumps are for: the next version.
#[test]
fn a_logical_dump_moves_a_database_into_18() {
    let (place, home, newer) = (place(), Home::new(), Home::new());
    let cluster = Cluster::primary(&home);
    cluster.database("app");
    cluster.sql_in("app", "CREATE TABLE t (n bigserial PRIMARY KEY, h text NOT NULL, at timestamptz DEFAULT now())");
    cluster.sql_in("app", "INSERT INTO t (h) SELECT md5(g::text) FROM generate_series(1, 20000) g");
    cluster.sql_in("app", "CREATE INDEX by_hash ON t (h)");
    cluster.sql_in("app", "CREATE VIEW few AS SELECT h FROM t WHERE n < 10");
    backup(&place, &["create", &cluster.url("app"), "--logical"]).expect(0);
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    let eighteen = Cluster::of(&newer, crate::pg::Programs::Eighteen, "max_connections=20\nfsync=off\n");
    assert!(eighteen.sql("SHOW server_version").starts_with("18") && !cluster.sql("SHOW server_version").starts_with("18"));
    eighteen.database("app");
    let (port, dump) = (eighteen.port.to_string(), place.path("out/app.dump"));
    let args = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--exit-on-error", "-d", "app", dump.to_str().unwrap()];
    let done = Command::new(eighteen.program("pg_restore")).args(args).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for ask in [
        "SELECT count(*) || md5(string_agg(h, ',' ORDER BY n)) || sum(extract(epoch FROM at)) FROM t",
        "SELECT string_agg(h, ',' ORDER BY h) FROM few",
        "SELECT last_value FROM t_n_seq",
        "SELECT string_agg(indexdef, ',' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'public'",
    ] {
        assert_eq!(eighteen.sql_in("app", ask), cluster.sql_in("app", ask), "{ask}");
    }
}

#[test]
fn a_logical_dump_is_a_stream_and_a_failed_one_is_none() {
    let (place, home) = (place(), Home::new());
    let cluster = Cluster::primary(&home);
    cluster.database("app");
    cluster.sql_in("app", "CREATE TABLE t AS SELECT n, md5(n::text) AS h FROM generate_series(1, 250000) n");
    let made = backup(&place, &["create", &cluster.url(""), "--logical", "--database", "app"]).expect(0).last();
    assert_eq!((made["source"].as_str(), made["files"].as_u64()), (Some("app.dump"), Some(1)));
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    cluster.database("copy");
    let (port, dump) = (cluster.port.to_string(), place.path("out/app.dump"));
    let args = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "copy", dump.to_str().unwrap()];
    let done = Command::new(cluster.bin.join("pg_restore")).args(args).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let sum = "SELECT count(*) || md5(string_agg(h, ',' ORDER BY n)) FROM t";
    assert_eq!(cluster.sql_in("copy", sum), cluster.sql_in("app", sum));
    // Of the same again only the chunk with its time is new.
    let again = backup(&place, &["create", &cluster.url("app"), "--logical"]).expect(0).last();
    assert_eq!(again["parent"], made["snapshot"]);
    let (new, all) = (again["bytes_new"].as_u64().unwrap(), again["bytes"].as_u64().unwrap());
    assert!(new < all / 2, "{again}");

    // A role that may not read all of it.
    cluster.sql("CREATE ROLE plain LOGIN");
    let url = format!("postgres://plain@127.0.0.1:{}/app", cluster.port);
    let said = backup(&place, &["create", &url, "--logical"]).expect(2);
    assert!(said.err.contains("permission denied"), "{}", said.err);
    let listed = backup(&place, &["list"]).expect(0).last();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 2);
    let said = backup(&place, &["create", &url, "--logical", "--bin", "/nonexistent"]).expect(2);
    assert!(said.err.contains("no pg_dump in /nonexistent"), "{}", said.err);
}
