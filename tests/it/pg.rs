//! A PostgreSQL primary and its standby, made for one test and gone with it. The journal's own unit tests
//! use it as well.

use std::{
    net::TcpListener,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub struct Cluster {
    pub bin: PathBuf,
    pub data: PathBuf,
    pub port: u16,
}

/// Removed with everything in it, whoever owns that.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// A new directory within this one, which the server's user must be able to reach.
    pub fn within(place: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("muster-pg-").tempdir_in(place).unwrap();
        if let Some((uid, gid)) = other_user() {
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        Self(dir)
    }
}

/// PostgreSQL refuses to run as root: then it is run as `postgres`, or as nobody.
pub fn other_user() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|l| l.starts_with("postgres:"));
    let ids = line.map(|l| l.split(':').skip(2).take(2).map(|n| n.parse().unwrap()).collect::<Vec<u32>>());
    Some(ids.map_or((65534, 65534), |i| (i[0], i[1])))
}

/// Where the server's programs are, if they are installed.
pub fn bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.map(|e| e.unwrap().path().join("bin")).filter(|p| p.join("initdb").exists()).max()
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(dir: &Path, program: PathBuf, args: &[&str]) {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(&program);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    let log = dir.join("run.log");
    command.stderr(std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap());
    let status = command.status().unwrap();
    assert!(status.success(), "{} failed: {}", program.display(), std::fs::read_to_string(&log).unwrap());
}

impl Cluster {
    /// One that is in a hurry, and would lose everything in a power cut.
    pub fn primary(home: &Home) -> Self {
        Self::with(home, "max_connections=20\nfsync=off\n")
    }

    /// One to which a journal may be trusted.
    pub fn durable(home: &Home) -> Self {
        Self::with(home, "max_connections=100\n")
    }

    /// With settings of the test's own.
    pub fn with(home: &Home, settings: &str) -> Self {
        let dir = home.0.path();
        let bin = bin().expect("no initdb under /usr/lib/postgresql: make deps");
        let (data, port) = (dir.join("east"), free_port());
        run(dir, bin.join("initdb"), &["-D", data.to_str().unwrap(), "-U", "postgres", "-A", "trust", "-N", "--no-instructions"]);
        let conf = format!(
            "\nlisten_addresses='127.0.0.1'\nport={port}\nunix_socket_directories=''\nwal_level=replica\nhot_standby=on\nwal_keep_size=64MB\n\
             shared_buffers=16MB\ncluster_name='east'\nwal_retrieve_retry_interval=50ms\n{settings}"
        );
        let file = data.join("postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &conf).unwrap();
        let made = Self { bin, data, port };
        made.start(dir);
        made
    }

    pub fn standby(&self, home: &Home) -> Self {
        let dir = home.0.path();
        let (data, port) = (dir.join("west"), free_port());
        let from = self.port.to_string();
        let args = ["-h", "127.0.0.1", "-p", &from, "-U", "postgres", "-D", data.to_str().unwrap(), "-R", "-X", "stream", "-c", "fast"];
        run(dir, self.bin.join("pg_basebackup"), &args);
        let file = data.join("postgresql.conf");
        let conf = std::fs::read_to_string(&file).unwrap() + &format!("\nport={port}\ncluster_name='west'\n");
        std::fs::write(&file, conf).unwrap();
        let made = Self { bin: self.bin.clone(), data, port };
        made.start(dir);
        made
    }

    /// Where a journal in a database of this server is.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn database(&self, name: &str) -> String {
        let args = ["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", name];
        run(self.data.parent().unwrap(), self.bin.join("createdb"), &args);
        self.url(name)
    }

    /// One statement, as the server's owner gives it; its answer without ornament.
    pub fn sql(&self, statement: &str) -> String {
        self.sql_in("postgres", statement)
    }

    /// The same in a database of this server.
    pub fn sql_in(&self, database: &str, statement: &str) -> String {
        let out = Command::new(self.bin.join("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-d", database, "-AtXc", statement])
            .output()
            .unwrap();
        assert!(out.status.success(), "{statement}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// From now on a commit is acknowledged when the standby has it as well.
    pub fn await_standby(&self) {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.sql("SELECT pg_reload_conf()");
        while self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1" {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Its processes, the first one first.
    fn processes(&self) -> Vec<String> {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        let master = file.lines().next().unwrap().to_owned();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        let children: Vec<_> = children.split_whitespace().map(str::to_owned).collect();
        [vec![master], children].concat()
    }

    /// Sends a signal to the server and to all that it started.
    pub fn signal(&self, name: &str) {
        for process in self.processes() {
            // One that has ended meanwhile needs none.
            let _ = Command::new("kill").args([&format!("-{name}"), &process]).stderr(Stdio::null()).status().unwrap();
        }
    }

    pub fn start_again(&self) {
        self.start(self.data.parent().unwrap());
    }

    fn start(&self, dir: &Path) {
        let log = self.data.with_extension("log");
        run(dir, self.bin.join("pg_ctl"), &["-D", self.data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-w", "start"]);
    }

    pub fn promote(&self) {
        run(self.data.parent().unwrap(), self.bin.join("pg_ctl"), &["-D", self.data.to_str().unwrap(), "-w", "promote"]);
    }

    pub fn stop(&self) {
        // One that was killed has left its file.
        let master = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        if master.lines().next().is_some_and(|pid| Path::new("/proc").join(pid.trim()).join("cwd").exists()) {
            run(
                self.data.parent().unwrap(),
                self.bin.join("pg_ctl"),
                &["-D", self.data.to_str().unwrap(), "-m", "immediate", "-w", "stop"],
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that fails must leave no server behind; a second panic would hide the first.
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.stop()));
        if stopped.is_err() {
            eprintln!("PostgreSQL in {} could not be stopped", self.data.display());
        }
    }
}
