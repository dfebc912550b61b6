//! PostgreSQL servers of Muster's own on this machine: started on a restored data directory for a while, asked, stopped.
//!
//! Such a server is nobody's production and must not look like it: it listens on loopback alone, on a port that the
//! system picked, and on a socket in a folder that only its user may enter; it archives nothing, streams from nowhere and
//! waits for no standby. All of that is given on its command line, which no file in the data directory overrides. Whoever
//! comes over the socket is trusted, whoever comes over TCP needs the password that the role has there.
//!
//! PostgreSQL refuses root: then it runs as `postgres`, or as nobody.

use super::{
    clock::Clock,
    port::{PortError, PortResult},
    replication::{PgError, Purpose, Session, Target, target::SslMode},
};
use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

/// How long a server may take to end by itself; then it is killed.
const STOP: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What is to be started.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    pub data: PathBuf,
    /// `server_version_num` of what wrote it.
    pub version: u32,
    /// The folder of its programs; looked for, if left out.
    pub programs: Option<PathBuf>,
    /// A folder for its socket, its access rules and its log; its own, and short.
    pub run: PathBuf,
    /// The role that asks.
    pub role: String,
    /// Settings beyond Muster's.
    pub settings: Vec<(String, String)>,
}

impl ServerSpec {
    fn log(&self) -> PathBuf {
        self.run.join("server.log")
    }
}

/// One that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub port: u16,
    pub run: PathBuf,
    pub role: String,
}

/// How a program of PostgreSQL's ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub ok: bool,
    pub output: String,
}

/// A row of text.
pub type TextRow = Vec<Option<String>>;

#[async_trait]
pub trait Servers: Send + Sync {
    /// Gives a folder and all in it to the user that servers run as.
    async fn own(&self, folder: &Path) -> PortResult<()>;
    /// Starts one; `Refused`, with the end of its log, when it ends instead of answering.
    async fn start(&self, spec: &ServerSpec, patience: Duration) -> PortResult<Running>;
    async fn query(&self, server: &Running, database: &str, text: &str, patience: Duration) -> PortResult<Vec<TextRow>>;
    /// Ends what runs on a data directory: cleanly, if it can be. Nothing runs on it afterwards.
    async fn stop(&self, data: &Path) -> PortResult<()>;
    /// Runs one of PostgreSQL's programs (`pg_checksums`, `pg_amcheck`) as the server's user. `None`: there is none.
    async fn tool(&self, spec: &ServerSpec, name: &str, args: &[String], patience: Duration) -> PortResult<Option<Ended>>;
}

pub struct LocalServers {
    clock: Arc<dyn Clock>,
}

fn trouble(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> PortError {
    let text = format!("{doing} {}", path.display());
    move |e| PortError::Refused(format!("{text}: {e}"))
}

/// Who servers run as, if not as ourselves.
#[must_use]
pub fn run_as() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == "postgres").then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.unwrap_or((65534, 65534)))
}

/// Where the programs of this major version are.
fn programs(spec: &ServerSpec) -> PortResult<PathBuf> {
    let major = spec.version / 10_000;
    let has = |dir: &PathBuf| dir.join("postgres").is_file();
    if let Some(dir) = &spec.programs {
        return Some(dir.clone()).filter(has).ok_or_else(|| {
            PortError::Config(format!("there is no `postgres` in {}: name the folder of PostgreSQL {major}'s programs", dir.display()))
        });
    }
    let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin"), format!("/opt/postgresql/{major}/bin")];
    usual.iter().map(PathBuf::from).find(has).ok_or_else(|| {
        PortError::Config(format!(
            "the programs of PostgreSQL {major}, which wrote this backup, are not on this machine ({}): install them, or say where with `programs`",
            usual.join(", ")
        ))
    })
}

/// What makes it harmless, whatever its own files say.
fn settings(spec: &ServerSpec, port: u16) -> Vec<(String, String)> {
    let run = spec.run.display();
    let fixed = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", run.to_string()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("hba_file", format!("{run}/hba.conf")),
        ("ident_file", format!("{run}/ident.conf")),
        ("external_pid_file", String::new()),
        ("archive_mode", "off".to_owned()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        ("recovery_min_apply_delay", "0".to_owned()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("ssl", "off".to_owned()),
        ("cluster_name", "muster_restored".to_owned()),
        ("hot_standby", "on".to_owned()),
        ("shared_buffers", "128MB".to_owned()),
        ("huge_pages", "off".to_owned()),
        // It is thrown away: what a power cut would cost does not matter.
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("autovacuum", "off".to_owned()),
        // Tablespaces are folders in it, and no links that lead to where the original has them.
        ("allow_in_place_tablespaces", "on".to_owned()),
    ];
    fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(spec.settings.iter().cloned()).collect()
}

impl LocalServers {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }

    /// What stands in the folder for its socket.
    fn furnish(spec: &ServerSpec) -> PortResult<()> {
        let mut dir = fs::DirBuilder::new();
        dir.recursive(true).mode(0o700).create(&spec.run).map_err(trouble("making", &spec.run))?;
        let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        for (name, text) in [("hba.conf", hba), ("ident.conf", ""), ("server.log", "")] {
            let file = spec.run.join(name);
            fs::write(&file, text).map_err(trouble("writing", &file))?;
        }
        give(&spec.run)
    }

    fn command(spec: &ServerSpec, program: &Path) -> PortResult<tokio::process::Command> {
        let mut command = tokio::process::Command::new(program);
        let log = fs::OpenOptions::new().append(true).create(true).open(spec.log()).map_err(trouble("opening", &spec.log()))?;
        let other = log.try_clone().map_err(trouble("opening", &spec.log()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(other).current_dir(&spec.run).process_group(0);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C").env("TZ", "UTC").env("HOME", &spec.run);
        if let Some((uid, gid)) = run_as() {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    }

    /// The server's last words.
    fn last_words(spec: &ServerSpec) -> String {
        let text = fs::read_to_string(spec.log()).unwrap_or_default();
        // That it was asked too early is our doing.
        let early = |line: &&str| !line.contains("is starting up") && !line.contains("not yet accepting");
        let lines: Vec<&str> = text.lines().filter(early).collect();
        let telling = |line: &&&str| line.contains("FATAL") || line.contains("PANIC") || line.contains("error:") || line.contains("HINT");
        let told: Vec<&str> = lines.iter().rev().filter(telling).take(4).copied().collect();
        let told = if told.is_empty() { lines.iter().rev().take(4).copied().collect() } else { told };
        told.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

fn give(folder: &Path) -> PortResult<()> {
    let Some((uid, gid)) = run_as() else { return Ok(()) };
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(trouble("giving away", &path))?;
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            let entries = fs::read_dir(&path).map_err(trouble("reading", &path))?;
            waiting.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
        }
    }
    // The folder itself last: now it is theirs.
    chown(folder, Some(uid), Some(gid)).map_err(trouble("giving away", folder))
}

/// A port that nobody has at the moment.
fn free_port() -> PortResult<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|e| PortError::Refused(format!("there is no free port: {e}")))
}

/// The postmaster of a data directory, if it lives.
fn postmaster(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    // A number may be another process's by now; a child that nobody has waited for yet has no folder any more.
    let works_in = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    (works_in == fs::canonicalize(data).ok()?).then_some(pid)
}

/// Over its socket, where nobody needs a password.
fn target(server: &Running, database: &str) -> Target {
    Target {
        host: server.run.display().to_string(),
        port: server.port,
        user: server.role.clone(),
        database: Some(database.to_owned()),
        password: None,
        password_from: "nowhere".to_owned(),
        ssl: SslMode::Disable,
        roots: None,
        connect_timeout: CONNECT,
    }
}

#[async_trait]
impl Servers for LocalServers {
    async fn own(&self, folder: &Path) -> PortResult<()> {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || give(&folder)).await.map_err(|e| PortError::Refused(e.to_string()))?
    }

    async fn start(&self, spec: &ServerSpec, patience: Duration) -> PortResult<Running> {
        let program = programs(spec)?.join("postgres");
        Self::furnish(spec)?;
        let port = free_port()?;
        let mut command = Self::command(spec, &program)?;
        command.arg("-D").arg(&spec.data);
        if !spec.data.join("postgresql.conf").exists() {
            // Distributions keep it elsewhere: then Muster's settings are all there are.
            let file = spec.run.join("postgresql.conf");
            fs::write(&file, "").map_err(trouble("writing", &file))?;
            give(&spec.run)?;
            command.arg("-c").arg(format!("config_file={}", file.display()));
        }
        for (name, value) in settings(spec, port) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut child = command.spawn().map_err(trouble("starting", &program))?;
        let running = Running { port, run: spec.run.clone(), role: spec.role.clone() };
        let until = self.clock.monotonic() + patience;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(PortError::Refused(format!(
                    "the server on {} ended ({status}): {}",
                    spec.data.display(),
                    Self::last_words(spec)
                )));
            }
            let asked = self.query(&running, "postgres", "SELECT pg_is_in_recovery()", Duration::from_secs(5)).await;
            match asked {
                Ok(rows) if rows.first().and_then(|row| row.first()).is_some_and(|cell| cell.as_deref() == Some("f")) => break,
                // Such as a role that it does not have: it will not come by waiting.
                Err(error @ (PortError::Refused(_) | PortError::Config(_))) => {
                    self.stop(&spec.data).await?;
                    return Err(error);
                }
                asked if self.clock.monotonic() > until => {
                    self.stop(&spec.data).await?;
                    let why = asked.err().map_or_else(|| "it still recovers".to_owned(), |e| e.to_string());
                    return Err(PortError::Refused(format!(
                        "the server on {} was not there in time ({why}): {}",
                        spec.data.display(),
                        Self::last_words(spec)
                    )));
                }
                _ => self.clock.sleep(POLL).await,
            }
        }
        // Whoever stops it need not be us: somebody must wait for it all the same.
        tokio::spawn(async move { drop(child.wait().await) });
        Ok(running)
    }

    async fn query(&self, server: &Running, database: &str, text: &str, patience: Duration) -> PortResult<Vec<TextRow>> {
        let mut session = Session::open(&target(server, database), Purpose::Sql).await?;
        session.set_patience(patience);
        let rows = session.query(text).await.map_err(PgError::into);
        session.close().await;
        Ok(rows.map_err(|e: PortError| e)?.into_iter().map(|row| row.0).collect())
    }

    async fn stop(&self, data: &Path) -> PortResult<()> {
        for (signal, patience) in [(Signal::INT, STOP), (Signal::QUIT, STOP / 4), (Signal::KILL, STOP / 4)] {
            let until = self.clock.monotonic() + patience;
            while let Some(pid) = postmaster(data) {
                if self.clock.monotonic() > until {
                    break;
                }
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, signal);
                self.clock.sleep(POLL * 5).await;
            }
            if postmaster(data).is_none() {
                return Ok(());
            }
        }
        Err(PortError::Refused(format!("the server on {} does not end", data.display())))
    }

    async fn tool(&self, spec: &ServerSpec, name: &str, args: &[String], patience: Duration) -> PortResult<Option<Ended>> {
        let program = programs(spec)?.join(name);
        if !program.is_file() {
            return Ok(None);
        }
        let mut command = Self::command(spec, &program)?;
        // What was recovered may have been recovered to a moment at which its databases were read-only.
        command.env("PGOPTIONS", "-c default_transaction_read_only=off");
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(trouble("starting", &program))?;
        match tokio::time::timeout(patience, child.wait_with_output()).await {
            Ok(Ok(out)) => {
                let output = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
                Ok(Some(Ended { ok: out.status.success(), output }))
            }
            Ok(Err(e)) => Err(trouble("waiting for", &program)(e)),
            Err(_) => Err(PortError::Refused(format!("{name} did not end in time"))),
        }
    }
}
