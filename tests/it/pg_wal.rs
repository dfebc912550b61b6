//! The log on its way into the repository, from real servers: what is acknowledged is there, whatever is killed; what does
//! not fit is refused; and how much is lost when a server is lost with its disk.

use crate::{
    pg::{Cluster, Home},
    pg_vault::{Vault, archive_all, give, pgbench, wait},
};
use sqlx::Connection;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

const SYSTEM: &str = "7445172393480321234";

/// What a segment of 1 MiB holds: a header that fits, and something.
fn segment(timeline: u32, number: u64, seed: u8) -> (String, Vec<u8>) {
    let mut content = vec![0x10, 0xD1, 7, 0];
    content.extend(timeline.to_le_bytes());
    content.extend((number << 20).to_le_bytes());
    content.extend([0; 8]);
    content.extend(SYSTEM.parse::<u64>().unwrap().to_le_bytes());
    content.extend((1u32 << 20).to_le_bytes());
    content.extend(8192u32.to_le_bytes());
    content.extend((0..(1 << 20) - content.len()).map(|i| (i as u64).wrapping_mul(u64::from(seed) + 0x9E37_79B9) as u8));
    (format!("{timeline:08X}{:08X}{:08X}", number >> 12, number & 0xFFF), content)
}

fn written(vault: &Vault, name: &str, content: &[u8]) -> String {
    let file = vault.dir().join(name);
    fs::write(&file, content).unwrap();
    give(&file);
    file.to_str().unwrap().to_owned()
}

#[test]
fn what_does_not_fit_is_not_archived() {
    let vault = Vault::new();
    let refused = |name: &str, content: &[u8], words: &str| {
        let file = written(&vault, name, content);
        let said = vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(2);
        assert!(said.err.contains(words), "{name}: {}", said.err);
    };
    let (name, content) = segment(1, 5, 1);
    refused(&segment(1, 6, 1).0, &content, "recycled");
    refused(&segment(2, 5, 1).0, &content, "of timeline 1");
    refused(&name, &content[..1000], "1000 bytes");
    refused(&name, &vec![0; 1 << 20], "does not begin as");
    refused("letter.txt", b"dear", "no file of PostgreSQL's write-ahead log");
    refused("00000002.history", b"dear", "no line of a timeline's history");
    let file = written(&vault, &name, &content);
    let said = vault.muster(&["wal", "archive", &file, "--system", "12"]).expect(2);
    assert!(said.err.contains("of the cluster"), "{}", said.err);
    let said = vault.muster(&["wal", "archive", &file]).expect(2);
    assert!(said.err.contains("--system"), "{}", said.err);
    assert!(vault.log().is_empty());

    // Twice is once; something else under that name is another server's.
    let first = vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(0).last();
    assert_eq!(first["there"], false);
    assert_eq!(vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(0).last()["there"], true);
    let stored = fs::read(&vault.log()[0]).unwrap();
    written(&vault, &name, &segment(1, 5, 2).1);
    let said = vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(2);
    assert!(said.err.contains("Two servers write one history"), "{}", said.err);
    assert_eq!(fs::read(&vault.log()[0]).unwrap(), stored);
    let fetched = vault.dir().join("fetched");
    vault.muster(&["wal", "fetch", &name, fetched.to_str().unwrap(), "--system", SYSTEM]).expect(0);
    assert_eq!(fs::read(fetched).unwrap(), content);
}

#[test]
fn absence_and_trouble_are_told_apart() {
    let vault = Vault::new();
    let (name, content) = segment(1, 5, 1);
    let file = written(&vault, &name, &content);
    vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(0);
    let fetch = |name: &str, more: &[&str]| vault.muster(&[&["wal", "fetch", name, "to", "--system", SYSTEM], more].concat());
    fetch(&segment(1, 6, 1).0, &[]).expect(1);
    fetch("00000002.history", &[]).expect(1);
    // What comes after it is there.
    fetch(&segment(1, 4, 1).0, &[]).expect(126);
    fetch("letter.txt", &[]).expect(126);
    fetch(&name, &["--no-such-word"]).expect(126);
    let mut other = vault.command(&["wal", "fetch", &name, "to", "--system", SYSTEM]);
    other.args(["--repo", "/nowhere/at/all"]);
    assert_eq!(crate::pg_vault::said(other).code, Some(126));
    let key = vault.dir().join("other.key");
    fs::write(&key, [1; 64]).unwrap();
    give(&key);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["wal", "fetch", &name, "to", "--system", SYSTEM, "--repo", vault.repo.to_str().unwrap(), "--key-file"]).arg(&key);
    assert_eq!(crate::pg_vault::said(command).code, Some(126));
    // Damage.
    let object = vault.log()[0].clone();
    let mut stored = fs::read(&object).unwrap();
    let last = stored.len() - 1;
    stored[last] ^= 1;
    fs::write(&object, stored).unwrap();
    let said = fetch(&name, &[]).expect(126);
    assert!(said.err.contains("is damaged") && said.err.contains(&name), "{}", said.err);
    // A place that cannot be written.
    let folder = vault.repo.join(format!("wal/{SYSTEM}/00000001"));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&folder, Some(0), Some(0)).unwrap();
    }
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let (name, content) = segment(1, 7, 1);
    let file = written(&vault, &name, &content);
    let said = vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(2);
    assert!(said.err.contains("let the user that Muster runs as read and write there"), "{}", said.err);
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn killed_at_any_time_it_has_kept_what_it_acknowledged() {
    let vault = Vault::new();
    let mut acknowledged = Vec::new();
    for number in 0..40u64 {
        let (name, content) = segment(1, number + 1, number as u8);
        let file = written(&vault, &name, &content);
        let mut archive = vault.spawn("archive", &["wal", "archive", &file, "--system", SYSTEM]);
        let deadline = Instant::now() + Duration::from_millis(5 + number * 7 % 90);
        let ended = loop {
            if let Some(status) = archive.child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => {
                assert!(status.success(), "{}", archive.said());
                acknowledged.push((name, content));
            }
            None => {
                archive.kill();
                // PostgreSQL asks again: it is whole then, whatever the first has left.
                if number % 2 == 0 {
                    vault.muster(&["wal", "archive", &file, "--system", SYSTEM]).expect(0);
                    acknowledged.push((name, content));
                }
            }
        }
    }
    assert!(acknowledged.len() > 15 && acknowledged.len() < 40, "{}", acknowledged.len());
    for (name, content) in acknowledged {
        let to = vault.dir().join("to");
        vault.muster(&["wal", "fetch", &name, to.to_str().unwrap(), "--system", SYSTEM, "--ahead", "0"]).expect(0);
        assert!(fs::read(&to).unwrap() == content, "{name} is not what was acknowledged");
    }
}

/// A client that writes one row after another and knows which of them were acknowledged, and when.
struct Writer {
    stop: Arc<AtomicBool>,
    newest: Arc<AtomicU64>,
    acknowledged: std::thread::JoinHandle<Vec<Instant>>,
}

impl Writer {
    fn start(cluster: &Cluster) -> Self {
        cluster.sql("CREATE TABLE ledger (n bigint primary key, filler text)");
        let (url, stop, newest) = (cluster.url("postgres"), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), newest.clone());
        let acknowledged = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut conn, mut acknowledged) = (sqlx::PgConnection::connect(&url).await.unwrap(), Vec::new());
                while !stopped.load(SeqCst) {
                    let n = i64::try_from(acknowledged.len()).unwrap() + 1;
                    let insert = sqlx::query("INSERT INTO ledger VALUES ($1, repeat('x', 400))").bind(n);
                    match tokio::time::timeout(Duration::from_secs(10), insert.execute(&mut conn)).await {
                        Ok(Ok(_)) => acknowledged.push(Instant::now()),
                        _ => break,
                    }
                    counter.store(n as u64, SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                acknowledged
            })
        });
        Self { stop, newest, acknowledged }
    }
    fn wait_for(&self, rows: u64) {
        wait("the rows", || self.newest.load(SeqCst) >= rows);
    }
    fn end(self) -> Vec<Instant> {
        self.stop.store(true, SeqCst);
        self.acknowledged.join().unwrap()
    }
}

fn url(cluster: &Cluster) -> String {
    format!("postgres://postgres@127.0.0.1:{}/", cluster.port)
}

/// The disk is gone with the server.
fn lose(cluster: &Cluster) -> Instant {
    cluster.signal("KILL");
    let at = Instant::now();
    wait("the end of all its processes", || fs::remove_dir_all(&cluster.data).is_ok() || !cluster.data.exists());
    at
}

#[test]
fn less_than_a_second_is_lost_with_the_server() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\n");
    let address = url(&cluster);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    let writer = Writer::start(&cluster);
    writer.wait_for(100);
    let snapshot = vault.base_backup(&cluster);
    let before = writer.newest.load(SeqCst);
    writer.wait_for(before + 600);
    let lost_at = lose(&cluster);
    let acknowledged = writer.end();
    // The receiver is lost with it.
    receive.kill();
    let back = vault.recovered(&snapshot, "back", "latest");
    let rows: usize = back.sql("SELECT count(*) FROM ledger").parse().unwrap();
    assert_eq!(back.sql("SELECT max(n) FROM ledger"), rows.to_string(), "no row is there without those before it");
    assert!(rows > before as usize, "{rows} rows");
    let window = acknowledged.get(rows).map_or(Duration::ZERO, |oldest_lost| lost_at.saturating_duration_since(*oldest_lost));
    eprintln!("{} acknowledged, {rows} recovered, the oldest lost was {} ms old", acknowledged.len(), window.as_millis());
    assert!(window < Duration::from_secs(1), "{window:?}");
}

#[test]
fn nothing_is_lost_where_it_is_the_synchronous_standby() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\n");
    let address = url(&cluster);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot", "--every", "20ms"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    let snapshot = vault.base_backup(&cluster);
    cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'muster'");
    cluster.sql("SELECT pg_reload_conf()");
    wait("it to be synchronous", || cluster.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1");
    let writer = Writer::start(&cluster);
    writer.wait_for(60);
    lose(&cluster);
    let acknowledged = writer.end().len();
    receive.kill();
    let port = crate::pg::free_port();
    vault.restore(&snapshot, "back", &["--port", &port.to_string()]).expect(0);
    // The copy must not wait for a standby that it has not.
    let auto = vault.dir().join("back/postgresql.auto.conf");
    fs::write(&auto, fs::read_to_string(&auto).unwrap() + "synchronous_standby_names = ''\n").unwrap();
    let back = Cluster::on(&vault.dir().join("back"), port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || back.sql("SELECT pg_is_in_recovery()") == "f");
    let rows: usize = back.sql("SELECT count(*) FROM ledger").parse().unwrap();
    assert!(rows >= acknowledged && rows <= acknowledged + 1, "{acknowledged} acknowledged, {rows} recovered");
}

/// All of the log before this position is in the repository, byte for byte what the server has.
fn holds(vault: &Vault, cluster: &Cluster, position: &str) {
    let system = cluster.sql("SELECT system_identifier FROM pg_control_system()");
    let name = cluster.sql(&format!("SELECT pg_walfile_name('{position}')"));
    let offset: usize = cluster.sql(&format!("SELECT file_offset FROM pg_walfile_name_offset('{position}')")).parse().unwrap();
    if offset == 0 {
        return;
    }
    let to = vault.dir().join("held");
    vault.muster(&["wal", "fetch", &name, to.to_str().unwrap(), "--system", &system, "--ahead", "0"]).expect(0);
    let (here, there) = (fs::read(&to).unwrap(), fs::read(cluster.data.join("pg_wal").join(&name)).unwrap());
    assert!(here[..offset] == there[..offset], "{name} differs before {offset}");
}

#[test]
fn killed_at_any_time_the_receiver_has_what_the_server_was_told() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\nwal_sender_timeout=2s\n");
    let address = url(&cluster);
    pgbench(&cluster, &["-i", "-s", "1", "-q"]);
    let writer = Writer::start(&cluster);
    let args = ["wal", "receive", &address, "--slot", "muster", "--every", "50ms"];
    // From here on, since nobody was told anything yet.
    let unheard = cluster.sql("SELECT lsn FROM pg_create_physical_replication_slot('muster', true)");
    let mut told = 0;
    for after in [30u64, 150, 300, 450, 600, 750, 900] {
        let mut receive = vault.spawn("receive", &args);
        wait("the stream", || receive.said().contains("\"streaming\""));
        std::thread::sleep(Duration::from_millis(after));
        receive.kill();
        let restart = cluster.sql("SELECT coalesce(restart_lsn, '0/0') FROM pg_replication_slots");
        if restart != unheard {
            told += 1;
            holds(&vault, &cluster, &restart);
        }
        if after == 450 {
            pgbench(&cluster, &["-t", "3000", "-c", "2", "-n", "-N"]);
        }
    }
    assert!(told >= 1, "nothing was told in 7 tries");
    // And stopped by hand it leaves nothing behind that was committed before.
    let mut receive = vault.spawn("receive", &args);
    wait("the stream", || receive.said().contains("\"streaming\""));
    writer.end();
    let position = cluster.sql("SELECT pg_current_wal_flush_lsn()");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(receive.stop(), Some(0), "{}", receive.said());
    holds(&vault, &cluster, &position);
}

#[test]
fn the_receiver_follows_a_promotion_and_a_server_that_comes_back() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\n");
    let standby = cluster.standby(&vault.home);
    let address = url(&standby);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let snapshot = vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (1)");
    let position = cluster.sql("SELECT pg_current_wal_flush_lsn()");
    wait("the row on the standby", || standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t");
    cluster.stop();
    standby.promote();
    standby.sql("INSERT INTO ledger VALUES (2)");
    wait("the new timeline", || receive.said().contains("\"timeline\":2"));
    standby.stop();
    wait("the trouble", || receive.said().contains("\"trouble\""));
    standby.start_again();
    standby.sql("INSERT INTO ledger VALUES (3)");
    let position = standby.sql("SELECT pg_current_wal_flush_lsn()");
    wait("the last row", || {
        let flushed = standby.sql("SELECT coalesce(max(flush_lsn), '0/0') FROM pg_stat_replication");
        standby.sql(&format!("SELECT '{flushed}'::pg_lsn >= '{position}'::pg_lsn")) == "t"
    });
    assert_eq!(receive.stop(), Some(0), "{}", receive.said());
    let back = vault.recovered(&snapshot, "back", "latest");
    assert_eq!(back.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM ledger"), "1,2,3");
    drop(back);
    // The old timeline is still to be had.
    let port = crate::pg::free_port();
    vault.restore(&snapshot, "old", &["--timeline", "1", "--port", &port.to_string()]).expect(0);
    let old = Cluster::on(&vault.dir().join("old"), port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || old.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(old.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM ledger"), "1");
}

/// A server that is shut down ends only when all is flushed that it sent: the receiver does not let it wait for its next piece.
#[test]
fn a_server_that_is_shut_down_does_not_wait_for_the_receivers_turn() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\n");
    let address = url(&cluster);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot", "--every", "40s"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let began = Instant::now();
    cluster.shut_down();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?} to shut down");
    // And is there when it comes back.
    wait("the trouble", || receive.said().contains("the server was shut down"));
    cluster.start_again();
    wait("the stream again", || receive.said().matches("\"streaming\"").count() == 2);
    assert_eq!(receive.stop(), Some(0), "{}", receive.said());
}

#[test]
fn what_cannot_go_on_says_why() {
    let vault = Vault::new();
    let cluster = Cluster::with(&vault.home, "fsync=off\nmax_wal_senders=6\nwal_keep_size=0\nmin_wal_size=32MB\nmax_wal_size=64MB\n");
    let address = url(&cluster);
    let said = vault.muster(&["wal", "receive", &address, "--slot", "muster"]).expect(2);
    assert!(said.err.contains("no replication slot `muster`") && said.err.contains("--create-slot"), "{}", said.err);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    assert_eq!(receive.stop(), Some(0));
    // The slot is dropped behind its back, and the server removes what was not received.
    cluster.drop_slot("muster");
    for _ in 0..6 {
        cluster.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)");
        cluster.sql("SELECT pg_switch_wal()");
        cluster.sql("CHECKPOINT");
    }
    let said = vault.muster(&["wal", "receive", &address, "--slot", "muster", "--create-slot"]).expect(2);
    assert!(said.err.contains("is lost to the repository") && said.err.contains("--accept-gap"), "{}", said.err);
    let mut receive = vault.spawn("receive", &["wal", "receive", &address, "--slot", "muster", "--accept-gap"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    assert!(receive.said().contains("\"gap\""), "{}", receive.said());
    receive.stop();
    // Another cluster under the same address and port is not taken for it: it has a place of its own.
    let other = Home::new();
    let foreign = Cluster::primary(&other);
    let mut receive = vault.spawn("receive", &["wal", "receive", &url(&foreign), "--slot", "muster", "--create-slot"]);
    wait("the stream", || receive.said().contains("\"streaming\""));
    receive.stop();
    let systems: std::collections::BTreeSet<_> = vault
        .log()
        .iter()
        .map(|path| path.strip_prefix(&vault.repo).unwrap().components().nth(1).unwrap().as_os_str().to_owned())
        .collect();
    assert!(!systems.is_empty() && Path::new(&vault.repo).exists());
}

/// The old primary was taken for lost, and a copy of its disk started in its place; then it turns out to live, and archives.
#[test]
fn two_servers_of_one_history_are_heard() {
    let vault = Vault::new();
    let old = vault.archiving("");
    old.sql("CREATE TABLE ledger (n bigint primary key)");
    archive_all(&old);
    old.shut_down();
    let copy = vault.dir().join("copy");
    assert!(std::process::Command::new("cp").arg("-a").args([&old.data, &copy]).status().unwrap().success());
    let new = old.again(&copy);
    new.sql("INSERT INTO ledger VALUES (1)");
    let segment = archive_all(&new);
    let object = vault.log().into_iter().find(|path| path.ends_with(&segment)).unwrap();
    let stored = fs::read(&object).unwrap();
    old.start_again();
    old.sql("INSERT INTO ledger VALUES (2)");
    assert_eq!(old.sql("SELECT pg_walfile_name(pg_switch_wal())"), segment, "both are in the same segment of the same timeline");
    wait("the refusal", || old.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    assert_eq!(old.sql("SELECT last_failed_wal FROM pg_stat_archiver"), segment);
    let log = fs::read_to_string(old.data.with_extension("log")).unwrap();
    assert!(log.contains("Two servers write one history"), "{log}");
    assert_eq!(fs::read(&object).unwrap(), stored, "what was archived first stays");
}

/// A copy that was restored looks in the archive for a timeline that nobody has taken.
#[test]
fn a_restored_copy_takes_a_timeline_of_its_own() {
    let vault = Vault::new();
    let cluster = vault.archiving("");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    let snapshot = vault.base_backup(&cluster);
    archive_all(&cluster);
    let first = vault.recovered(&snapshot, "first", "latest");
    first.sql("INSERT INTO ledger VALUES (1)");
    archive_all(&first);
    let port = crate::pg::free_port();
    vault.restore(&snapshot, "second", &["--timeline", "1", "--port", &port.to_string()]).expect(0);
    let second = Cluster::on(&vault.dir().join("second"), port).unwrap_or_else(|log| panic!("{log}"));
    wait("the end of recovery", || second.sql("SELECT pg_is_in_recovery()") == "f");
    let timeline = |cluster: &Cluster| cluster.sql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)");
    assert_eq!((timeline(&first), timeline(&second)), ("00000002".to_owned(), "00000003".to_owned()));
}
