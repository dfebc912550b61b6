//! `muster replica verify` against real servers: each state of a replica by its name, with its cause.

use crate::pg::{Cluster, Home, Programs};
use serde_json::Value;
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The rights that the documents name, and no others.
pub const READER: &str = "CREATE ROLE muster LOGIN; GRANT pg_monitor, pg_read_all_data TO muster";

pub fn url(cluster: &Cluster, user: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/postgres", cluster.port)
}

pub fn command(primary: &Cluster, standby: &Cluster, user: &str, state: &Home) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.env_remove("MUSTER_ESTATE").env_remove("MUSTER_STATE").args(["--state", state.0.path().join("state").to_str().unwrap()]);
    command.args(["replica", "verify", "--json", "--primary-url", &url(primary, user), "--standby-url", &url(standby, user)]);
    command
}

/// The exit code and the last object of a verification.
pub fn verify_as(user: &str, primary: &Cluster, standby: &Cluster, home: &Home, args: &[&str]) -> (i32, Value) {
    let done = command(primary, standby, user, home).args(args).output().unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    let last = out.lines().last().unwrap_or_else(|| panic!("no output: {}", String::from_utf8_lossy(&done.stderr)));
    (done.status.code().unwrap(), serde_json::from_str(last).unwrap())
}

pub fn verify(primary: &Cluster, standby: &Cluster, home: &Home, args: &[&str]) -> (i32, Value) {
    verify_as("muster", primary, standby, home, args)
}

pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    for _ in 0..400 {
        if test() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} never came about");
}

pub fn in_step(primary: &Cluster, standby: &Cluster) {
    let at = primary.sql("SELECT pg_current_wal_lsn()");
    eventually("the standby is in step", || standby.sql(&format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{at}', false)")) == "t");
}

/// Clients that write, until it is dropped.
pub struct Load(Child);

impl Load {
    /// So many transactions a second, each this script of `pgbench`.
    pub fn begin(cluster: &Cluster, home: &Home, rate: &str, script: &str) -> Self {
        let file = home.0.path().join("load.sql");
        std::fs::write(&file, script).unwrap();
        let mut command = Command::new(cluster.program("pgbench"));
        command.args(["-h", "127.0.0.1", "-p", &cluster.port.to_string(), "-U", "postgres", "-n", "-c", "4", "-T", "3600", "-R", rate]);
        command.args(["-f", file.to_str().unwrap(), "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
    pub fn goes_on(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn state(answer: &Value) -> (String, String) {
    let text = |name: &str| answer["replica"][name].as_str().unwrap_or_default().to_owned();
    if text("state") != "streaming" {
        assert!(text("why").len() > 10 && text("cure").len() > 10, "{answer}");
    }
    (text("state"), text("cause"))
}

fn is(wanted: (&str, &str), primary: &Cluster, standby: &Cluster, home: &Home) -> Value {
    let (code, answer) = verify(primary, standby, home, &["--state-only"]);
    assert_eq!(state(&answer), (wanted.0.to_owned(), wanted.1.to_owned()), "{answer}");
    assert_eq!(code, i32::from(wanted.0 != "streaming"), "{answer}");
    answer
}

fn receiver(standby: &Cluster) -> String {
    standby.sql("SELECT pid FROM pg_stat_wal_receiver")
}

fn signal(pid: &str, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), pid]).status().unwrap().success());
}

/// One pair goes from one state to the next.
fn states(programs: Programs) {
    let home = Home::new();
    let east = Cluster::of(&home, programs, "max_connections=20\nfsync=off\nmax_slot_wal_keep_size=64MB\nwal_keep_size=0\n");
    east.sql(READER);
    let west = east.standby_named(&home, "west", "wal_retrieve_retry_interval=5s\n", &["-C", "-S", "west"]);
    east.sql("CREATE TABLE t (id int PRIMARY KEY)");
    in_step(&east, &west);
    let answer = is(("streaming", ""), &east, &west, &home);
    assert!(answer["notes"].as_array().unwrap().iter().any(|n| n["what"] == "wal_retrieve_retry_interval"), "{answer}");
    // Not more often: each time that it tries, it is seen to stream for an instant.
    west.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '300ms'");
    west.sql("SELECT pg_reload_conf()");

    west.sql("SELECT pg_wal_replay_pause()");
    east.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let answer = is(("stalled", "replay_paused"), &east, &west, &home);
    assert!(answer["replica"]["lag_bytes"].as_u64().unwrap() > 50_000 && answer["replica"]["lag_ms"].as_u64().unwrap() > 0, "{answer}");
    west.sql("SELECT pg_wal_replay_resume()");
    in_step(&east, &west);

    let pid = receiver(&west);
    signal(&pid, "STOP");
    east.sql("INSERT INTO t SELECT generate_series(1001, 2000)");
    is(("stalled", "receiver_stuck"), &east, &west, &home);
    signal(&pid, "CONT");
    in_step(&east, &west);

    // A transaction on the standby that stands in the way of what a vacuum removed.
    let mut reader = Command::new(west.program("psql"));
    reader.args([&url(&west, "postgres"), "-c", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; SELECT pg_sleep(60)"]);
    let mut reader = reader.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    east.sql("DELETE FROM t WHERE id > 1000");
    east.sql("VACUUM t");
    is(("stalled", "recovery_conflict"), &east, &west, &home);
    reader.kill().unwrap();
    reader.wait().unwrap();
    west.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()");
    in_step(&east, &west);

    // Nothing listens where it is told that its primary is.
    west.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 user=postgres'");
    west.sql("SELECT pg_reload_conf()");
    eventually("the receiver is gone", || receiver(&west).is_empty());
    let answer = is(("not_replicating", "no_receiver"), &east, &west, &home);
    assert!(answer["replica"]["why"].as_str().unwrap().contains("`west` on the primary is not in use"), "{answer}");
    east.drop_slot("west");
    west.sql(&format!("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", east.port));
    west.sql("SELECT pg_reload_conf()");
    is(("not_replicating", "slot_missing"), &east, &west, &home);
    east.sql("SELECT pg_create_physical_replication_slot('west')");
    in_step(&east, &west);
    is(("streaming", ""), &east, &west, &home);

    // It is not told anything; then its primary throws away what it would need.
    west.sql("ALTER SYSTEM SET primary_conninfo = ''");
    west.sql("SELECT pg_reload_conf()");
    eventually("the receiver is gone", || receiver(&west).is_empty());
    is(("not_replicating", "not_configured"), &east, &west, &home);
    east.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    east.sql("SELECT pg_reload_conf()");
    for _ in 0..3 {
        east.sql("SELECT pg_switch_wal()");
        east.sql("INSERT INTO t SELECT max(id) + 1 FROM t");
    }
    east.sql("CHECKPOINT");
    east.sql("CHECKPOINT");
    assert_eq!(east.sql("SELECT wal_status FROM pg_replication_slots"), "lost");
    west.sql(&format!("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", east.port));
    west.sql("SELECT pg_reload_conf()");
    is(("not_replicating", "slot_lost"), &east, &west, &home);
    east.drop_slot("west");
    west.sql("ALTER SYSTEM SET primary_slot_name = ''");
    west.sql("SELECT pg_reload_conf()");
    std::thread::sleep(Duration::from_millis(300));
    is(("not_replicating", "wal_removed"), &east, &west, &home);
}

#[test]
fn each_state_of_a_standby_has_its_name() {
    states(Programs::Debian);
}

#[test]
fn each_state_of_a_standby_has_its_name_in_18() {
    states(Programs::Eighteen);
}

/// What looks like a replica and is one of something else.
#[test]
fn a_replica_of_another_history_is_no_replica() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    east.sql(READER);
    east.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let (west, north) = (east.standby(&home), east.standby_named(&home, "north", "", &[]));
    in_step(&east, &west);
    let other = Cluster::named(&home, "other", Programs::Debian, "max_connections=20\nfsync=off\n", &[]);
    other.sql(READER);
    is(("not_replicating", "another_cluster"), &other, &north, &home);

    west.promote();
    west.sql("INSERT INTO t VALUES (1)");
    is(("not_replicating", "no_standby"), &east, &west, &home);
    // One that follows the promoted copy: of its new timeline the primary knows nothing.
    let south = west.standby_named(&home, "south", "", &[]);
    is(("not_replicating", "wrong_timeline"), &east, &south, &home);
    // And the other way round: one that went on with the old primary is no replica of the new one.
    east.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    in_step(&east, &north);
    is(("unknown", "wrong_timeline"), &west, &north, &home);
    west.sql("GRANT EXECUTE ON FUNCTION pg_read_file(text, bigint, bigint, boolean) TO muster");
    is(("not_replicating", "wrong_timeline"), &west, &north, &home);
    // Who cannot be asked is not known; and without a primary nothing is said to be equal.
    let north_url = url(&north, "muster");
    north.stop();
    let (code, answer) = verify(&east, &north, &home, &["--state-only"]);
    assert_eq!((code, state(&answer)), (2, ("unknown".to_owned(), "cannot_ask".to_owned())), "{answer} {north_url}");
    east.stop();
    let (code, answer) = verify(&east, &south, &home, &[]);
    assert_eq!((code, answer["verdict"].as_str().unwrap()), (2, "unknown"), "{answer}");
    assert!(answer["tables"].is_null() && answer["primary"].is_string(), "{answer}");
}

/// Somebody brings the primary back from an older copy of its disk; and a standby that is left with the archive.
#[test]
fn a_primary_that_was_set_back_and_a_standby_that_has_only_the_archive_are_named() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    east.sql(READER);
    east.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let west = east.standby(&home);
    in_step(&east, &west);
    east.shut_down();
    let copy = home.0.path().join("older");
    assert!(Command::new("cp").arg("-a").args([&east.data, &copy]).status().unwrap().success());
    east.start_again();
    east.sql("INSERT INTO t SELECT generate_series(1, 10000)");
    in_step(&east, &west);
    east.shut_down();
    let older = east.again(&copy);
    let answer = is(("not_replicating", "ahead_of_primary"), &older, &west, &home);
    assert!(answer["replica"]["why"].as_str().unwrap().contains("the primary has only written"), "{answer}");
    older.shut_down();

    west.sql("ALTER SYSTEM SET primary_conninfo = ''");
    west.sql("ALTER SYSTEM SET restore_command = 'false'");
    west.sql("SELECT pg_reload_conf()");
    east.start_again();
    eventually("the receiver is gone", || receiver(&west).is_empty());
    is(("not_replicating", "archive_only"), &east, &west, &home);
}

#[test]
fn settings_that_stop_replay_are_named() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    east.sql(READER);
    let west = east.standby_named(&home, "west", "timezone='Asia/Tokyo'\n", &[]);
    in_step(&east, &west);
    // The server's own time zone is in its file, which only some may read.
    let (code, answer) = verify_as("postgres", &east, &west, &home, &[]);
    assert_eq!(code, 0, "{answer}");
    let zone = answer["structure"].as_array().unwrap().iter().find(|d| d["what"] == "setting TimeZone").unwrap();
    assert_eq!((&zone["replica"], &zone["bad"]), (&"Asia/Tokyo".into(), &false.into()));
    // The primary gets more connections than the standby could have.
    east.sql("ALTER SYSTEM SET max_connections = 40");
    east.shut_down();
    east.start_again();
    eventually("the standby has stopped", || west.sql("SELECT pg_is_wal_replay_paused()") == "t");
    let answer = is(("stalled", "settings_too_low"), &east, &west, &home);
    assert!(answer["replica"]["why"].as_str().unwrap().contains("max_connections is 20 and the primary's 40"), "{answer}");
    assert!(answer["notes"].as_array().unwrap().iter().any(|n| n["what"] == "settings_too_low"), "{answer}");
}

/// A standby whose clock is an hour ahead: a real one, by a library that shifts what the system says.
#[test]
fn a_clock_that_is_wrong_is_no_lag() {
    let home = Home::new();
    let source = home.0.path().join("skew.c");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <sys/syscall.h>\n#include <sys/time.h>\n#include <time.h>\n#include <unistd.h>\n\
         int clock_gettime(clockid_t id, struct timespec *t) { int r = syscall(SYS_clock_gettime, id, t); if (!r && id == CLOCK_REALTIME) t->tv_sec += 3600; return r; }\n\
         int gettimeofday(struct timeval *v, void *z) { struct timespec t; (void)z; clock_gettime(CLOCK_REALTIME, &t); v->tv_sec = t.tv_sec; v->tv_usec = t.tv_nsec / 1000; return 0; }\n\
         time_t time(time_t *s) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); if (s) *s = t.tv_sec; return t.tv_sec; }\n",
    )
    .unwrap();
    let library = home.0.path().join("skew.so");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]).status().unwrap();
    assert!(made.success());
    let east = Cluster::primary(&home);
    east.sql(READER);
    east.sql("CREATE TABLE t (id bigserial PRIMARY KEY, at timestamptz DEFAULT now())");
    let west = east.standby(&home);
    west.shut_down();
    west.start_with(&format!("LD_PRELOAD={}", library.display()));
    let ahead: f64 = west.sql("SELECT extract(epoch FROM clock_timestamp())").parse::<f64>().unwrap()
        - east.sql("SELECT extract(epoch FROM clock_timestamp())").parse::<f64>().unwrap();
    assert!(ahead > 3_590.0, "the standby's clock is only {ahead} s ahead");
    let _load = Load::begin(&east, &home, "200", "INSERT INTO t DEFAULT VALUES;\n");
    eventually("rows arrive", || west.sql("SELECT count(*) > 20 FROM t") == "t");
    for _ in 0..3 {
        let answer = is(("streaming", ""), &east, &west, &home);
        assert!(answer["replica"]["lag_ms"].as_u64().is_some_and(|ms| ms < 10_000), "{answer}");
        assert!(answer["notes"].as_array().unwrap().iter().any(|n| n["what"] == "clock_skew"), "{answer}");
    }
}
