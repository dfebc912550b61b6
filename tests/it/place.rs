//! A directory of a test's own with the real program in it: files to run, a state directory, and what the
//! program said. Every answer with `--json` is held to be JSON Lines by the way.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Longer than anything should take, on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Place {
    dir: tempfile::TempDir,
    /// A journal of its own on a server that is there for all.
    journal: Option<String>,
}

/// Where tests make their journals, when they are to use PostgreSQL.
pub const SERVER: &str = "MUSTER_TEST_JOURNAL";

/// A database of one test's own on this server.
fn database(server: &str) -> String {
    let name = format!("place_{}", uuid::Uuid::now_v7().simple());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&format!("{server}/postgres")).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
    });
    format!("{server}/{name}")
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Each line of stdout is one JSON object.
    pub fn lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("stdout is not JSON Lines ({e}): {line}")))
            .collect()
    }
    /// The object that it ended with.
    pub fn last(&self) -> Value {
        self.lines().pop().unwrap_or_else(|| panic!("nothing on stdout; stderr: {}", self.err))
    }
    pub fn step(&self, id: &str) -> Value {
        let last = self.last();
        let steps = last["steps"].as_array().unwrap_or_else(|| panic!("no steps in {last}"));
        steps.iter().find(|step| step["id"] == id).unwrap_or_else(|| panic!("no step {id} in {last}")).clone()
    }
    /// The status of each step, in the order of the file.
    pub fn statuses(&self) -> Vec<String> {
        let last = self.last();
        last["steps"].as_array().unwrap().iter().map(|step| step["status"].as_str().unwrap().to_owned()).collect()
    }
    pub fn run(&self) -> String {
        self.last()["run"].as_str().unwrap_or_else(|| panic!("no run in {}; stderr: {}", self.out, self.err)).to_owned()
    }
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }
}

/// A process that is killed when the test lets go of it.
pub struct Running {
    child: Option<Child>,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }
    /// It may have ended by itself.
    pub fn signal_if_there(&self, name: &str) {
        let _ = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).stderr(Stdio::null()).status().unwrap();
    }
    /// What it has printed so far.
    pub fn out_so_far(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }
    /// What it has told so far.
    pub fn told(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }
    pub fn end(mut self) -> Said {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end; it said: {}", std::fs::read_to_string(&self.err).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = |path| String::from_utf8(std::fs::read(path).unwrap()).unwrap();
        Said { code: status.code(), out: text(&self.out), err: text(&self.err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Place {
    pub fn new() -> Self {
        let journal = std::env::var(SERVER).ok().map(|server| database(&server));
        Self { dir: tempfile::tempdir().unwrap(), journal }
    }
    /// Is the journal one that several processes share? Then what is about the file is not tested.
    pub fn is_shared(&self) -> bool {
        self.journal.is_some()
    }
    /// A place below a directory other than the usual one.
    pub fn within(dir: &str) -> Self {
        Self { dir: tempfile::tempdir_in(dir).unwrap(), journal: None }
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn root(&self) -> &Path {
        self.dir.path()
    }
    /// Writes a file; `@` stands for the directory.
    pub fn file(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.path(name), text.replace('@', self.dir.path().to_str().unwrap())).unwrap();
        self
    }
    /// A runbook `book.yaml` of these steps.
    pub fn book(&self, steps: &str) -> &Self {
        self.file("book.yaml", &format!("runbook: book\nsteps:\n{steps}"))
    }
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
    pub fn words(&self, name: &str) -> Vec<String> {
        self.read(name).split_whitespace().map(str::to_owned).collect()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).current_dir(self.root()).stdin(Stdio::null());
        for name in ["MUSTER_STATE", "MUSTER_ESTATE", "MUSTER_LOG", "MUSTER_USER", "MUSTER_JOURNAL", "MUSTER_LEASE"] {
            command.env_remove(name);
        }
        if let Some(journal) = &self.journal {
            command.env("MUSTER_JOURNAL", journal).env("MUSTER_LEASE", "3s");
        }
        command
    }
    pub fn spawn(&self, mut command: Command) -> Running {
        let name = format!("said-{}", std::fs::read_dir(self.root()).unwrap().count());
        let (out, err) = (self.path(&format!("{name}.out")), self.path(&format!("{name}.err")));
        let file = |path: &PathBuf| std::fs::File::create(path).unwrap();
        let child = command.stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
        Running { child: Some(child), out, err }
    }
    pub fn start(&self, args: &[&str]) -> Running {
        self.spawn(self.command(args))
    }
    /// A command as a person gives it.
    pub fn plain(&self, args: &[&str]) -> Said {
        self.start(args).end()
    }
    /// A command as a program gives it.
    pub fn muster(&self, args: &[&str]) -> Said {
        let said = self.plain(&[args, &["--json"]].concat());
        said.lines();
        said
    }
    /// A command that may also end with this code.
    #[track_caller]
    pub fn muster_or(&self, args: &[&str], code: i32) -> Said {
        let said = self.muster(args);
        assert!(said.code == Some(0) || said.code == Some(code), "{}\n{}", said.out, said.err);
        said
    }
    pub fn run_book(&self) -> Said {
        self.muster(&["run", "book.yaml"])
    }
    /// The identifier of the newest run.
    pub fn newest(&self) -> String {
        let runs = self.muster(&["runs"]).expect(0).last();
        runs["runs"][0]["id"].as_str().unwrap().to_owned()
    }
    #[track_caller]
    #[allow(clippy::unused_self)] // a place is where one waits
    pub fn until(&self, what: &str, mut true_now: impl FnMut() -> bool) {
        let began = Instant::now();
        while !true_now() {
            assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    #[track_caller]
    #[allow(clippy::unused_self)] // a place is where one waits
    pub fn until_told(&self, what: &str, mut true_now: impl FnMut() -> bool, told: impl Fn() -> String) {
        let began = Instant::now();
        while !true_now() {
            assert!(began.elapsed() < PATIENCE, "waited in vain: {what}\n{}", told());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    pub fn until_there(&self, name: &str) {
        self.until(name, || self.path(name).exists());
    }
}

/// A zombie that nobody reaps is dead all the same.
pub fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
