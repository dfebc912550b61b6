//! `pg_dump`: a logical dump of one database, as a stream that never lies on a disk. It moves a database across versions,
//! which a base backup cannot.
//!
//! The dump is not compressed (`-Z0`): the repository does that, and finds again what did not change since the last one.
//! The password goes by the environment of that one process, never by its arguments.

use super::{
    port::{PortError, PortResult},
    replication::{
        Target,
        target::{Roots, SslMode},
    },
};
use secrecy::ExposeSecret;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

/// What it says of its troubles, at most.
const MOST_SAID: u64 = 16 * 1024;

/// A dump that is under way; dropped, it is killed.
pub struct Dump {
    child: Child,
    program: PathBuf,
    said: tokio::task::JoinHandle<String>,
}

impl Dump {
    /// Starts it, and gives what it writes.
    /// # Errors
    /// When there is no `pg_dump` that can dump a server of this version.
    pub fn start(target: &Target, database: &str, version: u32, bin: Option<&Path>) -> PortResult<(Self, Box<dyn Read + Send>)> {
        let program = program(version / 10_000, bin)?;
        let mut command = Command::new(&program);
        command.args(["--format=custom", "--compress=0", "--no-password", "--lock-wait-timeout=60000"]);
        command.env("PGHOST", &target.host).env("PGPORT", target.port.to_string()).env("PGUSER", &target.user);
        command.env("PGDATABASE", database).env("PGAPPNAME", "muster").env("PGSSLMODE", ssl(target.ssl));
        match &target.roots {
            Some(Roots::System) => command.env("PGSSLROOTCERT", "system"),
            Some(Roots::File(file)) => command.env("PGSSLROOTCERT", file),
            None => &mut command,
        };
        match &target.password {
            Some(word) => command.env("PGPASSWORD", word.expose_secret()),
            None => &mut command,
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let fail = |why: &dyn std::fmt::Display| PortError::Config(format!("{} cannot be run: {why}", program.display()));
        let mut child = command.spawn().map_err(|e| fail(&e))?;
        let (Some(out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else { return Err(fail(&"it has no output")) };
        let out = File::from(out.into_owned_fd().map_err(|e| fail(&e))?);
        let said = tokio::spawn(async move {
            let mut said = Vec::new();
            // What it said before it broke off is what there is.
            let _ = (&mut err).take(MOST_SAID).read_to_end(&mut said).await;
            let _ = tokio::io::copy(&mut err, &mut tokio::io::sink()).await;
            String::from_utf8_lossy(&said).trim().to_owned()
        });
        Ok((Self { child, program, said }, Box::new(out)))
    }

    /// Waits for its end, after all that it wrote was read.
    /// # Errors
    /// When it failed: what came is then no dump.
    pub async fn end(mut self) -> PortResult<()> {
        let fail = |why: String| PortError::Refused(format!("{} failed: {why}", self.program.display()));
        let status = self.child.wait().await.map_err(|e| fail(e.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let said = self.said.await.unwrap_or_default();
        Err(fail(if said.is_empty() { status.to_string() } else { said }))
    }
}

fn ssl(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

/// The server's own version, else the next newer one that is installed, else what PATH has: it refuses what it cannot.
fn program(major: u32, bin: Option<&Path>) -> PortResult<PathBuf> {
    if let Some(bin) = bin {
        let program = bin.join("pg_dump");
        return if program.is_file() {
            Ok(program)
        } else {
            Err(PortError::Config(format!("there is no pg_dump in {}: name the folder of PostgreSQL's programs", bin.display())))
        };
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let mut versions: Vec<(u32, PathBuf)> = installed
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin/pg_dump"))))
        .filter(|(version, program)| *version >= major && program.is_file())
        .collect();
    versions.sort();
    if let Some((_, program)) = versions.into_iter().next() {
        return Ok(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("pg_dump")).find(|program| program.is_file());
    found.ok_or_else(|| {
        PortError::Config(format!("no pg_dump of version {major} or newer is installed: install postgresql-client, or say --bin DIR"))
    })
}
