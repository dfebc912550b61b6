//! What the tests of drills and demos share: a directory of their own with the shipped files, the real
//! binary run in it, a lab that is taken down however a test ends, and a look at what is left.

use muster::{
    journal::{Journal, Stored, sqlite::SqliteJournal},
    lab::{Lab, process},
    model::ids::RunId,
};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Far beyond what a command needs, also on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(240);

/// A directory with an estate, its runbooks and drills, and perhaps a lab.
pub struct Desk {
    dir: tempfile::TempDir,
    commands: AtomicU32,
}

impl Desk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir(dir.path().join("tmp")).unwrap();
        for folder in ["runbooks", "drills"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            for entry in fs::read_dir(from.join(folder)).unwrap().map(Result::unwrap) {
                fs::copy(entry.path(), dir.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
        fs::copy(from.join("muster.yaml"), dir.path().join("muster.yaml")).unwrap();
        // PostgreSQL's user must be able to pass through.
        for open in [dir.path().to_owned(), dir.path().join("tmp")] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir, commands: AtomicU32::new(0) }
    }

    /// With a lab that is up.
    pub fn with_lab() -> Self {
        let desk = Self::new();
        let up = desk.muster(&["lab", "up"]);
        assert_eq!(up.code, Some(0), "{up:?}");
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where temporary files of the commands go.
    pub fn tmp(&self) -> PathBuf {
        self.path("tmp")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn lab(&self) -> Lab {
        Lab::attach(&self.state()).unwrap()
    }

    /// The keys to the lab's APIs.
    pub fn credentials(&self) -> aws_credential_types::Credentials {
        let lab = self.lab();
        let secret = |name: &str| lab.plan().secret(name).unwrap().expose_secret().to_owned();
        aws_credential_types::Credentials::new(secret("access_key_id"), secret("secret_access_key"), None, None, "test")
    }

    /// Starts a command, with JSON on its stdout.
    pub fn start(&self, args: &[&str]) -> Running {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.path(&format!("out-{number}")), self.path(&format!("err-{number}")));
        let child = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(args)
            .arg("--json")
            .current_dir(self.dir.path())
            .env("TMPDIR", self.tmp())
            .env("MUSTER_STATE", self.state())
            .env_remove("MUSTER_ESTATE")
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Running { child, out, err, began: Instant::now(), peak_kib: 0 }
    }

    /// Runs a command to its end.
    pub fn muster(&self, args: &[&str]) -> Ran {
        self.start(args).end()
    }

    /// Writes the shipped drill under another name, changed; every change must hit.
    pub fn drill(&self, name: &str, changes: &[(&str, &str)]) {
        let mut text = include_str!("../../drills/region-loss.yaml").replace("drill: region-loss", &format!("drill: {name}"));
        for (from, to) in changes.iter().chain(&[("steady: 5s", "steady: 1s")]) {
            assert!(text.contains(from), "the shipped drill has no {from:?}");
            text = text.replace(from, to);
        }
        fs::write(self.path(&format!("drills/{name}.yaml")), text).unwrap();
    }

    /// What a query gives as text, one string a row, in the region's database.
    pub fn sql(&self, region: &str, query: &str) -> Vec<String> {
        let lab = self.lab();
        let place = &lab.plan().regions[region];
        let options = muster::lab::pg::connect_options(place.address, place.postgres, &lab.plan().secret("database_password").unwrap());
        let query = sqlx::AssertSqlSafe(query.to_owned());
        wait_for(async {
            use sqlx::{Connection, Row};
            let mut link = sqlx::PgConnection::connect_with(&options).await.unwrap();
            let rows = sqlx::query(query).fetch_all(&mut link).await.unwrap();
            rows.iter().map(|row| row.get::<String, _>(0)).collect()
        })
    }

    /// The timeline that the primary in this region writes.
    pub fn timeline(&self, region: &str) -> u32 {
        let file = self.sql(region, "select pg_walfile_name(pg_current_wal_lsn())").remove(0);
        u32::from_str_radix(&file[..8], 16).unwrap()
    }

    /// The events of one chain, a run's or a drill's.
    pub fn events(&self, id: &str) -> Vec<Stored> {
        wait_for(async {
            let journal = SqliteJournal::open(&self.state()).await.unwrap();
            journal.load(&RunId(id.to_owned()), 0).await.unwrap()
        })
    }

    pub fn evidence_holds(&self) {
        let verified = self.muster(&["evidence", "verify"]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
    }

    /// Processes that stand in this directory or name it, whatever they are.
    pub fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        let me = std::process::id().to_string();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let look = |pid: String| {
            let proc = Path::new("/proc").join(&pid);
            let argv = String::from_utf8_lossy(&fs::read(proc.join("cmdline")).ok()?).replace('\0', " ");
            let cwd = fs::read_link(proc.join("cwd")).unwrap_or_default();
            let stat = fs::read_to_string(proc.join("stat")).ok()?;
            let zombie = stat.get(stat.rfind(')')? + 1..)?.trim_start().starts_with('Z');
            (pid != me && !zombie && (argv.contains(&dir) || cwd.starts_with(&dir))).then(|| format!("{pid} {argv}"))
        };
        pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).filter_map(look).collect()
    }

    /// What lies among the temporary files.
    pub fn leavings(&self) -> BTreeSet<String> {
        fs::read_dir(self.tmp()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let demos =
            self.leavings().into_iter().filter(|name| name.starts_with("muster-demo-")).map(|name| self.tmp().join(name).join("state"));
        for state in demos.chain([self.state()]).filter(|state| state.is_dir()) {
            let down = Command::new(env!("CARGO_BIN_EXE_muster"))
                .args(["lab", "down", "--state"])
                .arg(state)
                .env("TMPDIR", self.tmp())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(std::thread::panicking() || down.is_ok_and(|status| status.success()));
        }
        for proc in process::below(self.dir.path()) {
            process::signal(proc.pid, Signal::KILL);
        }
    }
}

/// A command under way; killed when dropped.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    began: Instant,
    peak_kib: u64,
}

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// The JSON lines written so far.
    pub fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.out).unwrap();
        // The last one may be half-written.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What was told to people so far.
    pub fn story(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// Waits until something holds; false when the command ended first.
    pub fn until(&mut self, holds: impl Fn(&Self) -> bool) -> bool {
        while !holds(self) {
            if self.child.try_wait().unwrap().is_some() {
                return holds(self);
            }
            assert!(self.began.elapsed() < LIMIT, "it never came: {:?} {}", self.lines(), self.story());
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits until so many events are durable; false when the command ended first.
    pub fn until_events(&mut self, count: usize) -> bool {
        self.until(|running| running.lines().iter().filter(|line| line.get("event").is_some()).count() >= count)
    }

    /// Waits until an event of this kind is durable.
    pub fn until_event(&mut self, kind: &str) {
        assert!(self.until(|running| running.lines().iter().any(|line| line["event"]["body"]["kind"] == kind)), "{kind}: {}", self.story());
    }

    pub fn end(mut self) -> Ran {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            self.peak_kib = self.peak_kib.max(peak_kib(self.child.id()));
            assert!(self.began.elapsed() < LIMIT, "it does not end: {:?} {}", self.lines(), self.story());
            std::thread::sleep(Duration::from_millis(10));
        };
        Ran { code: status.code(), lines: self.lines(), story: self.story(), peak_kib: self.peak_kib, took: self.began.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The most memory that a process ever held, as the kernel kept it.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub lines: Vec<Value>,
    pub story: String,
    pub peak_kib: u64,
    pub took: Duration,
}

impl Ran {
    /// The result: the last line.
    pub fn result(&self) -> &Value {
        self.lines.last().unwrap_or_else(|| panic!("no result: {}", self.story))
    }

    /// The events told on the way, each with its body.
    pub fn events(&self) -> Vec<&Value> {
        self.lines.iter().filter_map(|line| line.get("event")).collect()
    }

    /// The first event of this kind, and its place among all.
    pub fn event(&self, kind: &str) -> (usize, &Value) {
        let events = self.events();
        let at = events.iter().position(|event| event["body"]["kind"] == kind);
        let at = at.unwrap_or_else(|| panic!("no event {kind}: {}", self.story));
        (at, events[at])
    }
}

pub const PARTS: [&str; 5] = ["detect", "decide", "act", "propagate", "verify"];

/// The five parts of a recovery time, which must add up to it.
pub fn parts(view: &Value) -> [i64; 5] {
    let parts = PARTS.map(|part| view["rto"]["parts_ms"][part].as_i64().unwrap_or_else(|| panic!("{part} was not measured: {view}")));
    assert_eq!(parts.iter().sum::<i64>(), view["rto"]["actual_ms"].as_i64().unwrap(), "{view}");
    parts
}

/// The sentences that say why a drill is no pass.
pub fn reasons(view: &Value) -> String {
    let reasons: Vec<&str> = view["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    reasons.join("; ")
}

pub fn instant(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no instant: {value}")).parse().unwrap()
}

pub fn wait_for<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
