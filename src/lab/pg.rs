//! PostgreSQL's own programs, run as PostgreSQL wants it: never as root, no socket file, no shared
//! memory file, every path below the lab's home.

use super::{
    error::{LabError, LabResult, What},
    plan::{LabPlan, Servers, write_secret},
    process::{self, below},
};
use crate::providers::clock::Clock;
use rustix::process::Signal;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

const PROGRAMS: [&str; 3] = ["initdb", "postgres", "pg_basebackup"];
pub const USER: &str = "postgres";

/// The directory that holds the server's programs: Debian's newest, then PATH, then `pg_config`.
/// # Errors
/// When they are not all in one place.
pub fn find_programs() -> LabResult<PathBuf> {
    let has_all = |dir: &Path| PROGRAMS.iter().all(|p| dir.join(p).is_file());
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, dir)| has_all(dir))
        .collect();
    debian.sort();
    if let Some((_, dir)) = debian.pop() {
        return Ok(dir);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(|dir| has_all(dir)) {
        return Ok(dir);
    }
    #[allow(clippy::disallowed_methods)] // it prints one line and reads nothing
    let asked = std::process::Command::new("pg_config").arg("--bindir").output().ok();
    asked
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .map(|text| PathBuf::from(text.trim()))
        .filter(|dir| has_all(dir))
        .ok_or_else(|| LabError::NoPostgres { missing: PROGRAMS.join(", ") })
}

/// Root may not run PostgreSQL: `postgres` if there is such a user, else nobody. Anyone else runs it as oneself.
#[must_use]
pub fn run_as() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
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

/// One server: where its data lie and where it answers.
#[derive(Clone, Debug)]
pub struct Server {
    pub region: String,
    pub instance: String,
    pub data: PathBuf,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// Where a standby streams from.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub address: Ipv4Addr,
    pub port: u16,
}

#[derive(Clone)]
pub struct Postgres {
    pub plan: Arc<LabPlan>,
    pub clock: Arc<dyn Clock>,
    pub password: SecretString,
}

impl Postgres {
    #[must_use]
    pub fn server(&self, region: &str, instance: &str, address: Ipv4Addr, port: u16) -> Server {
        Server { region: region.to_owned(), instance: instance.to_owned(), data: self.plan.data_dir(region, instance), address, port }
    }

    /// Makes an empty cluster and its configuration.
    /// # Errors
    /// When `initdb` fails.
    pub async fn init(&self, server: &Server) -> LabResult<()> {
        self.make_dir(&server.data)?;
        let password = server.data.with_extension("pw");
        write_secret(&password, &self.password)?;
        self.give(&password)?;
        let args = [
            "-D",
            &text(&server.data),
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "--pwfile",
            &text(&password),
            "--data-checksums",
            "-N",
            "--no-locale",
            "-E",
            "UTF8",
        ]
        .map(str::to_owned);
        let done = self.program(&server.region, "initdb", &args, Duration::from_mins(1)).await;
        let _ = fs::remove_file(&password);
        done?;
        self.configure(server, None)
    }

    /// Copies a running server into a data directory, through a replication connection.
    /// # Errors
    /// When `pg_basebackup` fails.
    pub async fn copy(&self, region: &str, from: &Upstream, slot: Option<&str>, to: &Path) -> LabResult<()> {
        if to.exists() {
            fs::remove_dir_all(to).what(text(to))?;
        }
        self.make_dir(to)?;
        let (host, port) = (from.address.to_string(), from.port.to_string());
        let mut args: Vec<String> =
            ["-h", &host, "-p", &port, "-U", USER, "-w", "-D", &text(to), "-X", "stream", "-c", "fast", "--no-sync"]
                .map(str::to_owned)
                .to_vec();
        args.extend(slot.into_iter().flat_map(|s| ["-S".to_owned(), s.to_owned()]));
        self.program(region, "pg_basebackup", &args, Duration::from_mins(2)).await
    }

    /// Writes the server's configuration, all of it in the one file that is kept when the directory is taken back to another
    /// server's state; a standby when `upstream` is given.
    /// # Errors
    /// When the files cannot be written.
    pub fn configure(&self, server: &Server, upstream: Option<&Upstream>) -> LabResult<()> {
        let path = server.data.join("postgresql.conf");
        let mut conf = SETTINGS.to_owned();
        conf.push_str(&format!("listen_addresses = '{}'\nport = {}\ncluster_name = '{}'\n", server.address, server.port, server.instance));
        if let Some(up) = upstream {
            conf.push_str(&format!(
                "primary_conninfo = 'host={} port={} user={USER} password={} application_name={} sslmode=disable'\nprimary_slot_name = '{}'\n",
                up.address, up.port, self.password.expose_secret(), server.instance, self.slot(server),
            ));
            let signal = server.data.join("standby.signal");
            fs::write(&signal, "").what(text(&signal))?;
            self.give(&signal)?;
        }
        write_secret(&path, &SecretString::from(conf))?;
        self.give(&path)
    }

    /// The slot in which its primary keeps the log for it; of servers of one's own it is the one that Muster would make.
    #[must_use]
    pub fn slot(&self, server: &Server) -> String {
        match self.plan.servers {
            Servers::Rds => slot_name(&server.instance),
            Servers::Own => format!("muster_{}", server.region),
        }
    }

    /// Starts the server and waits until it answers queries.
    /// # Errors
    /// When it does not within `limit`.
    pub async fn start(&self, server: &Server, limit: Duration) -> LabResult<()> {
        if !below(&server.data).is_empty() {
            return self.wait_ready(server, limit).await;
        }
        // Nothing stands in the data directory, so a number left by a killed server means nothing, though
        // another process may bear it by now.
        let _ = fs::remove_file(server.data.join("postmaster.pid"));
        process::spawn(&self.plan, &server.region, &format!("postgres:{}", server.instance))?;
        self.wait_ready(server, limit).await
    }

    async fn wait_ready(&self, server: &Server, limit: Duration) -> LabResult<()> {
        let end = self.clock.monotonic() + limit;
        while self.clock.monotonic() < end {
            if let Ok(link) = self.connect(server.address, server.port).await {
                close(link).await;
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        let role = format!("postgres:{}", server.instance);
        let log = self.plan.log(&server.region, &role);
        let output = process::tail(&log);
        Err(LabError::NotReady { role, place: server.region.clone(), seconds: limit.as_secs(), log, output })
    }

    /// A fast shutdown; an immediate one when it takes too long, SIGKILL at last.
    /// # Errors
    /// When even that does not end it.
    pub async fn stop(&self, server: &Server) -> LabResult<()> {
        for (how, patience) in [(Signal::INT, 5_000), (Signal::QUIT, 3_000), (Signal::KILL, 3_000)] {
            let all = below(&server.data);
            if all.is_empty() {
                return Ok(());
            }
            let ours: Vec<i32> = all.iter().map(|p| p.pid).collect();
            // Children of the postmaster get their orders from it, unless it is to be killed.
            for proc in all.iter().filter(|p| how == Signal::KILL || !ours.contains(&p.parent)) {
                process::signal(proc.pid, how);
            }
            let end = self.clock.monotonic() + Duration::from_millis(patience);
            while self.clock.monotonic() < end && !below(&server.data).is_empty() {
                self.clock.sleep(Duration::from_millis(20)).await;
            }
        }
        match below(&server.data).len() {
            0 => Ok(()),
            left => Err(LabError::Undead(left)),
        }
    }

    /// # Errors
    /// When the server does not answer within two seconds.
    pub async fn connect(&self, address: Ipv4Addr, port: u16) -> LabResult<PgConnection> {
        let options = connect_options(address, port, &self.password);
        let fail = |cause: String| LabError::Sql { region: format!("{address}:{port}"), cause };
        tokio::time::timeout(Duration::from_secs(2), PgConnection::connect_with(&options))
            .await
            .map_err(|_| fail("no answer within 2 s".to_owned()))?
            .map_err(|e| fail(e.to_string()))
    }

    /// One statement on a connection of its own.
    /// # Errors
    /// When it is refused or takes longer than `limit`.
    pub async fn execute(
        &self,
        address: Ipv4Addr,
        port: u16,
        statement: &'static str,
        argument: Option<&str>,
        limit: Duration,
    ) -> LabResult<()> {
        let mut link = self.connect(address, port).await?;
        let fail = |cause: String| LabError::Sql { region: format!("{address}:{port}"), cause };
        let mut query = sqlx::query(statement);
        if let Some(argument) = argument {
            query = query.bind(argument.to_owned());
        }
        let done = tokio::time::timeout(limit, query.execute(&mut link)).await;
        close(link).await;
        done.map_err(|_| fail(format!("no answer within {} s", limit.as_secs())))?.map_err(|e| fail(e.to_string()))?;
        Ok(())
    }

    /// A slot keeps for the standby what it has not received yet.
    /// # Errors
    /// When the server refuses.
    pub async fn make_slot(&self, at: &Upstream, slot: &str) -> LabResult<()> {
        const MAKE: &str =
            "select pg_create_physical_replication_slot($1, true) where not exists (select from pg_replication_slots where slot_name = $1)";
        self.execute(at.address, at.port, MAKE, Some(slot), Duration::from_secs(10)).await
    }

    /// # Errors
    /// When the server refuses, as it does while the slot is in use.
    pub async fn drop_slot(&self, at: &Upstream, slot: &str) -> LabResult<()> {
        const DROP: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active";
        self.execute(at.address, at.port, DROP, Some(slot), Duration::from_secs(5)).await
    }

    /// Ends recovery; a server that is a primary already is left as it is.
    /// # Errors
    /// When it is not writable within a minute.
    pub async fn promote(&self, server: &Server) -> LabResult<()> {
        const PROMOTE: &str = "select case when pg_is_in_recovery() then pg_promote(true, 60) else true end";
        self.execute(server.address, server.port, PROMOTE, None, Duration::from_secs(70)).await?;
        self.configure(server, None)
    }

    fn make_dir(&self, path: &Path) -> LabResult<()> {
        fs::create_dir_all(path).what(text(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).what(text(path))?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> LabResult<()> {
        match self.plan.run_as {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)).what(text(path)),
            None => Ok(()),
        }
    }

    async fn program(&self, region: &str, name: &str, args: &[String], limit: Duration) -> LabResult<()> {
        let mut command = tokio::process::Command::new(self.plan.pg_bin.join(name));
        command.args(args).current_dir(self.plan.dir(region).join("pg")).stdin(Stdio::null()).kill_on_drop(true);
        command.process_group(0).env("PGPASSWORD", self.password.expose_secret()).env("LC_ALL", "C").env("PGSSLMODE", "disable");
        if let Some((uid, gid)) = self.plan.run_as {
            command.uid(uid).gid(gid);
        }
        let fail = |how: String, output: &[u8]| {
            let output: String = String::from_utf8_lossy(output).trim().to_owned();
            let at = output.char_indices().rev().nth(600).map_or(0, |(i, _)| i);
            LabError::Program { program: name.to_owned(), how, output: output.get(at..).unwrap_or_default().to_owned() }
        };
        let out = tokio::time::timeout(limit, command.output())
            .await
            .map_err(|_| fail(format!("no end within {} s", limit.as_secs()), b""))?
            .what(format!("starting {name}"))?;
        if out.status.success() { Ok(()) } else { Err(fail(out.status.to_string(), &[out.stdout, out.stderr].concat())) }
    }
}

/// Replaces this process by the server. Only returns when that fails.
#[must_use]
pub fn become_server(plan: &LabPlan, region: &str, instance: &str) -> LabError {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(plan.pg_bin.join("postgres"));
    command.arg("-D").arg(plan.data_dir(region, instance)).env("LC_ALL", "C");
    if let Some((uid, gid)) = plan.run_as {
        command.uid(uid).gid(gid);
    }
    LabError::Io { what: "starting postgres".to_owned(), source: command.exec() }
}

async fn close(link: PgConnection) {
    let _ = tokio::time::timeout(Duration::from_millis(500), link.close()).await;
}

#[must_use]
pub fn connect_options(address: Ipv4Addr, port: u16, password: &SecretString) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&address.to_string())
        .port(port)
        .username(USER)
        .password(password.expose_secret())
        .database(USER)
        .ssl_mode(PgSslMode::Disable)
}

#[must_use]
pub fn slot_name(instance: &str) -> String {
    instance.replace('-', "_")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The System V segment that a killed server leaves behind (its interlock) is named in its pid file.
pub async fn remove_interlock(data: &Path) {
    let pid_file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(id) = pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else { return };
    remove_segment(id).await;
}

/// Removes one System V segment; that it is gone already is no error.
pub async fn remove_segment(id: &str) {
    let mut command = tokio::process::Command::new("ipcrm");
    command.args(["-m", id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let _ = tokio::time::timeout(Duration::from_secs(2), command.status()).await;
}

/// What all servers of the lab have in common.
const SETTINGS: &str = "\
# Written by the lab; overwritten when the server becomes a primary or a standby.
unix_socket_directories = ''
dynamic_shared_memory_type = mmap
shared_buffers = 16MB
max_connections = 60
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
max_slot_wal_keep_size = 256MB
wal_keep_size = 64MB
wal_log_hints = on
hot_standby = on
hot_standby_feedback = on
track_commit_timestamp = on
wal_retrieve_retry_interval = 50ms
wal_receiver_status_interval = 1s
jit = off
autovacuum_naptime = 1min
logging_collector = off
log_destination = stderr
log_line_prefix = '%m [%p] '
timezone = UTC
log_timezone = UTC
lc_messages = C
";
