//! A repository beside a PostgreSQL server of a test's own: the real program, run as the server's user and opened by a
//! key file, as `archive_command` has it.

use crate::{
    pg::{Cluster, Home, Programs, free_port, other_user, run},
    place::Said,
};
use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Vault {
    pub home: Home,
    pub repo: PathBuf,
    pub key: PathBuf,
    /// Of its servers.
    pub programs: Programs,
}

impl Vault {
    pub fn new() -> Self {
        Self::of(Programs::Debian)
    }

    /// One for servers of another version.
    pub fn of(programs: Programs) -> Self {
        let home = Home::new();
        let (repo, key) = (home.0.path().join("vault"), home.0.path().join("vault.key"));
        std::fs::write(&key, [7u8; 64].iter().zip(0u8..).map(|(a, b)| a ^ b).collect::<Vec<u8>>()).unwrap();
        give(&key);
        let vault = Self { home, repo, key, programs };
        let dummy = vault.home.0.path().join("dummy");
        std::fs::write(&dummy, "x").unwrap();
        give(&dummy);
        vault.muster(&["backup", "create", dummy.to_str().unwrap()]).expect(0);
        vault
    }

    pub fn dir(&self) -> &Path {
        self.home.0.path()
    }

    /// The program on this repository, as the server's user.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).args(["--json", "--repo", self.repo.to_str().unwrap(), "--key-file", self.key.to_str().unwrap()]);
        command.current_dir(self.dir()).stdin(Stdio::null()).env("HOME", self.dir()).env_remove("MUSTER_REPO_PASSWORD");
        if let Some((uid, gid)) = other_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub fn muster(&self, args: &[&str]) -> Said {
        said(self.command(args))
    }

    /// In the background, its words in files.
    pub fn spawn(&self, name: &str, args: &[&str]) -> Background {
        let file = |kind: &str| std::fs::File::create(self.dir().join(format!("{name}.{kind}"))).unwrap();
        let child = self.command(args).stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Background { child, out: self.dir().join(format!("{name}.out")), err: self.dir().join(format!("{name}.err")) }
    }

    /// A server that archives here.
    pub fn archiving(&self, more: &str) -> Cluster {
        self.archiving_as(&[], more)
    }

    /// The same, made by `initdb` with these options as well.
    pub fn archiving_as(&self, initdb: &[&str], more: &str) -> Cluster {
        let command =
            format!("{} wal archive %p --repo {} --key-file {}", env!("CARGO_BIN_EXE_muster"), self.repo.display(), self.key.display());
        let settings = format!("fsync=off\narchive_mode=on\narchive_command='{command}'\nmax_wal_senders=6\n{more}");
        Cluster::named(&self.home, "east", self.programs, &settings, initdb)
    }

    /// A base backup of a server, as a snapshot of this repository; gives its identifier.
    pub fn base_backup(&self, cluster: &Cluster) -> String {
        let url = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
        let made = self.muster(&["backup", "create", &url]).expect(0).last();
        made["snapshot"].as_str().unwrap().to_owned()
    }

    /// Restores a base backup into a new folder, with a port of its own, and starts a server on it.
    pub fn recovered(&self, snapshot: &str, name: &str, until: &str) -> Cluster {
        let port = free_port();
        self.restore(snapshot, name, &["--until", until, "--port", &port.to_string()]).expect(0);
        let cluster = Cluster::on_of(self.programs, &self.dir().join(name), port).unwrap_or_else(|log| panic!("it did not start: {log}"));
        wait("the end of recovery", || cluster.sql("SELECT pg_is_in_recovery()") == "f");
        cluster
    }

    pub fn restore(&self, snapshot: &str, name: &str, more: &[&str]) -> Said {
        let to = self.dir().join(name);
        self.muster(&[&["backup", "restore", snapshot, "--to", to.to_str().unwrap()], more].concat())
    }

    /// Every object of the log, by its path.
    pub fn log(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.repo.join("wal"), &mut found);
        found.sort();
        found
    }
}

pub struct Background {
    pub child: Child,
    pub out: PathBuf,
    pub err: PathBuf,
}

impl Background {
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
    pub fn said(&self) -> String {
        [&self.out, &self.err].map(|file| std::fs::read_to_string(file).unwrap_or_default()).concat()
    }
    /// Ctrl-C, and its end.
    pub fn stop(&mut self) -> Option<i32> {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn said(mut command: Command) -> Said {
    let out = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) }
}

/// Gives a file to the server's user.
pub fn give(path: &Path) {
    if let Some((uid, gid)) = other_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The current segment is archived, with all that was written up to now.
pub fn archive_all(cluster: &Cluster) -> String {
    let segment = cluster.sql("SELECT pg_walfile_name(pg_switch_wal())");
    wait("the segment in the archive", || {
        let last = cluster.sql("SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver");
        last.get(..24).is_some_and(|last| last >= segment.as_str())
    });
    segment
}

pub fn pgbench(cluster: &Cluster, args: &[&str]) {
    let port = cluster.port.to_string();
    let all = [&["-h", "127.0.0.1", "-p", port.as_str(), "-U", "postgres"], args, &["postgres"]].concat();
    run(cluster.data.parent().unwrap(), cluster.bin.join("pgbench"), &all);
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}
