//! PgBouncer: its console, and the file with the line of one database. PAUSE holds the clients, the line is changed,
//! RELOAD reads it, RESUME lets the clients on, and no connection of theirs was ever lost.
//!
//! The console knows the simple protocol only, and refuses parameters that it does not know.

use super::{
    port::*,
    postgres::{Doing, decode},
    remote::{Call, Remote},
    server_scripts as script,
};
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use std::{path::PathBuf, time::Duration};

const CONNECT: Duration = Duration::from_secs(2);
const ASK: Duration = Duration::from_secs(5);

pub struct PgBouncer {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub database: String,
    pub file: PathBuf,
    pub reach: Vec<String>,
}

impl PgBouncer {
    async fn console(&self) -> PortResult<PgConnection> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .database("pgbouncer")
            .ssl_mode(PgSslMode::Prefer)
            .extra_float_digits(None)
            .statement_cache_capacity(0);
        if let Some(password) = &self.password {
            options = options.password(password.expose_secret());
        }
        match tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await {
            Ok(Ok(console)) => Ok(console),
            Ok(Err(e)) => Err(PortError::Unreachable(format!("{}: {e}", self.name()))),
            Err(_) => Err(PortError::Unreachable(format!("{} did not answer within {} s", self.name(), CONNECT.as_secs()))),
        }
    }

    /// The database's name as the console's language takes it.
    fn quoted(&self) -> PortResult<String> {
        if self.database.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) && !self.database.is_empty() {
            return Ok(format!("\"{}\"", self.database));
        }
        Err(PortError::Config(format!("{}: `{}` is no name that its console takes", self.name(), self.database)))
    }

    async fn command(&self, text: String, limit: Duration, already: &str) -> PortResult<()> {
        let mut console = self.console().await?;
        let done = tokio::time::timeout(limit, console.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(text.clone())))).await;
        let done = match done {
            Err(_) => Err(PortError::Unknown(format!("{}: {text} took longer than {} ms", self.name(), limit.as_millis()))),
            Ok(Err(sqlx::Error::Database(e))) if !already.is_empty() && e.message().contains(already) => Ok(()),
            Ok(Err(sqlx::Error::Database(e))) => Err(PortError::Refused(format!("{}: {text}: {e}", self.name()))),
            Ok(Err(e)) => Err(PortError::Unknown(format!("{}: {text}: {e}", self.name()))),
            Ok(Ok(_)) => Ok(()),
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), console.close()).await;
        done
    }

    fn remote(&self) -> Remote {
        Remote { label: self.name(), reach: self.reach.clone(), owned: self.file.clone() }
    }

    async fn file(&self, text: &str, doing: Doing, stdin: Option<Vec<u8>>) -> PortResult<String> {
        let argv = ["sh", "-c", text, "muster"].into_iter().map(str::to_owned).chain([self.file.display().to_string()]).collect();
        let said = self.remote().run(Call { argv, stdin, limit: ASK, doing, into: None }).await?;
        if said.code == 0 {
            return Ok(said.out);
        }
        Err(PortError::Refused(format!("{}: its file {}: {}", self.name(), self.file.display(), said.errors)))
    }
}

fn state(row: &PgRow) -> Result<PoolerState, sqlx::Error> {
    // What the console calls an integer is one of four bytes or of eight, by its version.
    let number = |name: &str| row.try_get::<i32, _>(name).map(i64::from).or_else(|_| row.try_get::<i64, _>(name));
    let port = u16::try_from(number("port")?).map_err(|e| decode("port", e))?;
    let host: Option<String> = row.try_get("host")?;
    Ok(PoolerState { paused: number("paused")? != 0, host: host.unwrap_or_default(), port })
}

/// The file's text with another host and port on the line of one database, and everything else as it was.
fn pointed(text: &str, database: &str, host: &str, port: u16) -> Result<String, String> {
    let mut found = false;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let Some((name, rest)) = line.split_once('=').filter(|(name, _)| name.trim().trim_matches('"') == database) else {
                return line.to_owned();
            };
            found = true;
            let kept = rest.split_whitespace().filter(|word| !word.starts_with("host=") && !word.starts_with("port="));
            let words: Vec<String> = [format!("host={host}"), format!("port={port}")].into_iter().chain(kept.map(str::to_owned)).collect();
            format!("{}= {}", name, words.join(" "))
        })
        .collect();
    if found { Ok(lines.join("\n") + "\n") } else { Err(format!("it has no line for the database `{database}`")) }
}

#[async_trait]
impl PoolerRead for PgBouncer {
    async fn state(&self) -> PortResult<PoolerState> {
        let mut console = self.console().await?;
        let rows = tokio::time::timeout(ASK, console.fetch_all(sqlx::raw_sql("SHOW DATABASES"))).await;
        let trouble = |e: sqlx::Error| PortError::Unreachable(format!("{}: {e}", self.name()));
        let rows = rows.map_err(|_| PortError::Unreachable(format!("{} did not answer", self.name())))?.map_err(trouble)?;
        let _ = tokio::time::timeout(Duration::from_millis(200), console.close()).await;
        let row = rows.iter().find(|row| row.try_get::<String, _>("name").is_ok_and(|name| name == self.database));
        let row = row.ok_or_else(|| PortError::NotFound(format!("{} has no database `{}`", self.name(), self.database)))?;
        state(row).map_err(|e| PortError::Refused(format!("{}: {e}", self.name())))
    }

    fn name(&self) -> String {
        format!("PgBouncer at {}:{}", self.host, self.port)
    }
}

#[async_trait]
impl PoolerWrite for PgBouncer {
    async fn pause(&self, limit: Duration) -> PortResult<()> {
        self.command(format!("PAUSE {}", self.quoted()?), limit, "already suspended/paused").await
    }

    async fn resume(&self) -> PortResult<()> {
        self.command(format!("RESUME {}", self.quoted()?), ASK, "is not paused").await
    }

    async fn point(&self, host: &str, port: u16) -> PortResult<()> {
        let text = self.file(script::READ_FILE, Doing::Reading, None).await?;
        let new = pointed(&text, &self.database, host, port)
            .map_err(|e| PortError::Config(format!("{}: {}: {e}", self.name(), self.file.display())))?;
        if new != text {
            self.file(script::WRITE_FILE, Doing::Writing, Some(new.into_bytes())).await?;
        }
        self.command("RELOAD".to_owned(), ASK, "").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_of_the_one_database_change() {
        let text = "; ours\n[databases]\norders = host=db-east port=5432 dbname=orders pool_size=20\nother = host=db-east port=5432\n";
        let want = "; ours\n[databases]\norders = host=db-west port=5433 dbname=orders pool_size=20\nother = host=db-east port=5432\n";
        assert_eq!(pointed(text, "orders", "db-west", 5433).unwrap(), want);
        assert_eq!(pointed(want, "orders", "db-west", 5433).unwrap(), want, "twice is once");
        assert!(pointed(text, "absent", "a", 1).is_err());
    }
}
