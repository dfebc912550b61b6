//! PostgreSQL, asked through SQL. One connection a call: after a failover nothing stale is left to
//! answer, and a frozen server costs one connect timeout, not a pool. The address comes from the estate,
//! or else from the control plane, whose answer is kept until a connection to it fails.
//!
//! Read-only is a setting of the *database* (`ALTER DATABASE ... SET default_transaction_read_only`), not of the
//! server: RDS forbids `ALTER SYSTEM`, and to own the database is enough for this one. It reaches only sessions
//! that begin later, so it counts from when a fresh session saw it, and every older one is ended. It is in
//! the catalog, so it replicates: a replica of a read-only primary is promoted read-only, until it is made
//! writable. It stops whoever obeys, and is not a lock: a session that asks for `READ WRITE` gets it. What
//! makes a fence sound is the write lease; this keeps ordinary clients out and the log at its last position.
//!
//! Rows are compared through `postgres_rows`, which keeps its connection.

use super::{
    clock::Clock,
    port::{InstanceRead, Inventory, Lsn, Newest, PortError, PortResult, Replication, RowRead, ServerState, SqlRead, SqlWrite, Standby},
    postgres_facts as facts,
    postgres_rows::Rows,
    postgres_sql as sql,
};
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow},
};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const CONNECT: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(15);
pub(super) const SUMS: Duration = Duration::from_mins(5);
/// How long a changed setting may take to be in force, and sessions to end.
const SETTLE: Duration = Duration::from_secs(10);
const BATCH: usize = 5_000;

/// Where the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// What the estate says of one instance.
pub struct Settings {
    /// For messages: `predictions in west`.
    pub label: String,
    pub database: String,
    pub user: String,
    pub password: Option<SecretString>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub instance: Option<String>,
}

pub struct Postgres {
    pub(super) settings: Settings,
    instances: Option<Arc<dyn InstanceRead>>,
    pub(super) clock: Arc<dyn Clock>,
    asked: Mutex<Option<Address>>,
}

/// Whether what failed may have changed something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Reading,
    Writing,
}

impl Postgres {
    #[must_use]
    pub fn new(settings: Settings, instances: Option<Arc<dyn InstanceRead>>, clock: Arc<dyn Clock>) -> Self {
        Self { settings, instances, clock, asked: Mutex::new(None) }
    }

    fn remember(&self, address: Option<Address>) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    async fn address(&self) -> PortResult<Address> {
        let s = &self.settings;
        if let Some(host) = &s.host {
            return Ok(Address { host: host.clone(), port: s.port.unwrap_or(5432) });
        }
        let kept = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(address) = kept {
            return Ok(address);
        }
        let (Some(id), Some(instances)) = (&s.instance, &self.instances) else {
            return Err(PortError::Config(format!(
                "the estate does not say where {} answers: give its instance a `host`, or an `id` and the region an `aws`",
                s.label
            )));
        };
        let info = instances.instance(id).await?;
        let info = info.ok_or_else(|| PortError::NotFound(format!("{}: there is no DB instance `{id}`", s.label)))?;
        let host = info.host.ok_or_else(|| {
            PortError::Unreachable(format!("{}: the DB instance `{id}` has no address yet (it is {})", s.label, info.status))
        })?;
        let address = Address { host, port: s.port.or(info.port).unwrap_or(5432) };
        self.remember(Some(address.clone()));
        Ok(address)
    }

    pub(super) async fn connect(&self) -> PortResult<PgConnection> {
        self.connect_as(&self.settings.user, self.settings.password.as_ref()).await
    }

    pub(super) async fn connect_as(&self, user: &str, password: Option<&SecretString>) -> PortResult<PgConnection> {
        let s = &self.settings;
        let address = self.address().await?;
        // `new_without_pgpass`: only what the estate says counts, not the environment of whoever runs us.
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&address.host)
            .port(address.port)
            .database(&s.database)
            .username(user)
            .application_name("muster")
            .statement_cache_capacity(0)
            .options([("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "330s")]);
        if let Some(password) = password {
            options = options.password(password.expose_secret());
        }
        let answer = tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await;
        let at = format!("{} ({}:{})", s.label, address.host, address.port);
        let failed = match answer {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(e)) => connect_error(&e, &at, user),
            Err(_) => PortError::Unreachable(format!("{at} did not answer within {} s", CONNECT.as_secs())),
        };
        self.remember(None);
        Err(failed)
    }

    /// Runs one exchange with a connection of its own, within a time limit.
    pub(super) async fn with<T, F>(&self, doing: Doing, limit: Duration, work: impl FnOnce(PgConnection) -> F + Send) -> PortResult<T>
    where
        F: Future<Output = PortResult<T>> + Send,
        T: Send,
    {
        let connection = self.connect().await?;
        let label = &self.settings.label;
        match (tokio::time::timeout(limit, work(connection)).await, doing) {
            (Ok(done), _) => done,
            (Err(_), Doing::Reading) => Err(PortError::Unreachable(format!("{label} did not answer within {} s", limit.as_secs()))),
            (Err(_), Doing::Writing) => Err(PortError::Unknown(format!("{label} did not answer within {} s", limit.as_secs()))),
        }
    }

    pub(super) fn reading(&self) -> impl Fn(sqlx::Error) -> PortError + Copy + Send + '_ {
        |e| query_error(&e, Doing::Reading, &self.settings.label, &self.settings.user)
    }
    pub(super) fn writing(&self) -> impl Fn(sqlx::Error) -> PortError + Copy + Send + '_ {
        |e| query_error(&e, Doing::Writing, &self.settings.label, &self.settings.user)
    }

    /// Waits until new sessions start as was told, as one of them sees it; the server's clock at that moment.
    async fn until_in_force(&self, want: bool) -> PortResult<i64> {
        let until = self.clock.monotonic() + SETTLE;
        loop {
            let mut fresh = self.connect().await.map_err(half_done)?;
            let row = sqlx::query(sql::IN_FORCE).fetch_one(&mut fresh).await.map_err(self.writing())?;
            close(fresh).await;
            let read_only: bool = row.try_get("read_only").map_err(self.writing())?;
            if read_only == want {
                return row.try_get("now").map_err(self.writing());
            }
            if self.clock.monotonic() >= until {
                let label = &self.settings.label;
                return Err(if want {
                    PortError::Unknown(format!(
                        "{label}: the database was made read-only, but {} s later new sessions are not",
                        SETTLE.as_secs()
                    ))
                } else {
                    PortError::Refused(format!(
                        "{label}: the database's setting was reset, but new sessions still start read-only: it is set elsewhere too (the server's configuration or parameter group, or the role)"
                    ))
                });
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends every session in the database that began before its setting was in force: it goes by the old one.
    async fn end_sessions(&self, c: &mut PgConnection, began_before: i64) -> PortResult<()> {
        let until = self.clock.monotonic() + SETTLE;
        loop {
            sqlx::query(sql::END_SESSIONS).bind(began_before).fetch_all(&mut *c).await.map_err(self.writing())?;
            let row = sqlx::query(sql::OLD_SESSIONS).bind(began_before).fetch_one(&mut *c).await.map_err(self.writing())?;
            let left: i64 = row.try_get("n").map_err(self.writing())?;
            if left == 0 {
                return Ok(());
            }
            if self.clock.monotonic() >= until {
                return Err(PortError::Unknown(format!(
                    "{}: {left} sessions that go by the old setting would not end",
                    self.settings.label
                )));
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    async fn set_read_only(&self, c: &mut PgConnection, on: bool) -> PortResult<()> {
        let row = sqlx::query(sql::ALTER_DATABASE).bind(on).fetch_one(&mut *c).await.map_err(self.writing())?;
        let alter: String = row.try_get("alter").map_err(self.writing())?;
        // This session may itself have begun read-only.
        sqlx::query("SET default_transaction_read_only = off").execute(&mut *c).await.map_err(self.writing())?;
        sqlx::query(AssertSqlSafe(alter)).execute(&mut *c).await.map_err(self.writing())?;
        Ok(())
    }
}

pub(super) fn decode(column: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }
}

pub(super) fn lsn(row: &PgRow, column: &str) -> Result<Option<Lsn>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|t| t.parse()).transpose().map_err(|e: String| decode(column, e))
}

fn instant(row: &PgRow, column: &str) -> Result<Option<jiff::Timestamp>, sqlx::Error> {
    let micros: Option<i64> = row.try_get(column)?;
    micros.map(jiff::Timestamp::from_microsecond).transpose().map_err(|e| decode(column, e))
}

pub(super) fn server_state(row: &PgRow) -> Result<ServerState, sqlx::Error> {
    let timeline: i64 = row.try_get("timeline")?;
    Ok(ServerState {
        in_recovery: row.try_get("in_recovery")?,
        timeline: u32::try_from(timeline).map_err(|e| decode("timeline", e))?,
        position: lsn(row, "position")?.unwrap_or_default(),
        received: lsn(row, "received")?,
        replay_paused: row.try_get("replay_paused")?,
        streaming: row.try_get("streaming")?,
        last_message: instant(row, "last_message")?,
        last_replayed: instant(row, "last_replayed")?,
        read_only: row.try_get("read_only")?,
        now: instant(row, "now")?.ok_or_else(|| decode("now", "null"))?,
        system_identifier: row.try_get("system_identifier")?,
    })
}

fn newest(row: &PgRow) -> Result<Newest, sqlx::Error> {
    let timeline: i64 = row.try_get("timeline")?;
    Ok(Newest {
        timeline: u32::try_from(timeline).map_err(|e| decode("timeline", e))?,
        position: lsn(row, "position")?.unwrap_or_default(),
        commit: instant(row, "commit")?,
        now: instant(row, "now")?.ok_or_else(|| decode("now", "null"))?,
    })
}

fn standby(row: &PgRow) -> Result<Option<Standby>, sqlx::Error> {
    let state: Option<String> = row.try_get("state")?;
    let name: Option<String> = row.try_get("name")?;
    Ok(match state {
        Some(state) => Some(Standby { name: name.unwrap_or_default(), state, sent: lsn(row, "sent")?, replayed: lsn(row, "replayed")? }),
        None => None,
    })
}

/// Says goodbye, so that the server does not have to find out.
pub(super) async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(Duration::from_millis(500), connection.close()).await;
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// The server ended the session with its answer: whatever it gave as the reason, nothing more comes by this connection. A
/// standby does so to a session that stands between two statements and in the way of replay (40001).
pub(super) fn ended(error: &sqlx::Error) -> bool {
    use sqlx::postgres::{PgDatabaseError, PgSeverity};
    let known = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    known.is_some_and(|e| matches!(e.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// A connection that fails in the midst of a change: something was already carried out.
fn half_done(error: PortError) -> PortError {
    PortError::Unknown(format!("after the first part of the change: {error}"))
}

fn connect_error(error: &sqlx::Error, at: &str, user: &str) -> PortError {
    let code = code(error).unwrap_or_default();
    match code.as_str() {
        "53300" => PortError::Throttled { after: Duration::from_secs(1), message: format!("{at} has no connection left: {error}") },
        // A standby gives way to replay even while a session begins.
        "40001" => PortError::Throttled { after: Duration::from_millis(100), message: format!("{at}: {error}") },
        "3D000" => PortError::NotFound(format!("{at}: {error}")),
        // Starting up, shutting down.
        c if c.starts_with("57P") => PortError::Unreachable(format!("{at}: {error}")),
        c if c.starts_with("28") => PortError::Refused(format!(
            "{at} does not let user `{user}` in: {error} ({c}); check the database's `user` and `password` in the estate"
        )),
        _ => PortError::Unreachable(format!("{at}: {error}")),
    }
}

pub(super) fn query_error(error: &sqlx::Error, doing: Doing, label: &str, user: &str) -> PortError {
    let text = format!("{label}: {error}");
    let lost = |text| if doing == Doing::Writing { PortError::Unknown(text) } else { PortError::Unreachable(text) };
    let Some(code) = code(error) else {
        return match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => PortError::Refused(text),
            _ => lost(text),
        };
    };
    if ended(error) {
        return lost(text);
    }
    match code.as_str() {
        "42501" => PortError::Refused(format!(
            "{text}; user `{user}` needs to own the database and to be a member of `pg_monitor` and `pg_signal_backend`, as the master user of RDS is"
        )),
        // A page or a file that cannot be read as what was written.
        "XX001" | "XX002" | "58030" | "58P01" => PortError::Corrupt(text),
        "40001" | "40P01" | "55P03" => PortError::Throttled { after: Duration::from_millis(200), message: text },
        "57014" if doing == Doing::Reading => lost(text),
        c if c.starts_with("57P") || c.starts_with("08") => lost(text),
        _ => PortError::Refused(text),
    }
}

#[async_trait]
impl SqlRead for Postgres {
    async fn state(&self) -> PortResult<ServerState> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let row = sqlx::query(sql::STATE).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            server_state(&row).map_err(trouble)
        })
        .await
    }

    async fn newest(&self) -> PortResult<Newest> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let row = sqlx::query(sql::NEWEST).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            newest(&row).map_err(trouble)
        })
        .await
    }

    async fn standbys(&self) -> PortResult<Vec<Standby>> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let rows = sqlx::query(sql::STANDBYS).fetch_all(&mut c).await.map_err(trouble)?;
            close(c).await;
            let all: Result<Option<Vec<_>>, _> = rows.iter().map(standby).collect();
            all.map_err(trouble)?.ok_or_else(|| {
                PortError::Refused(format!(
                    "{0}: user `{1}` may not see the state of replication; GRANT pg_monitor TO \"{1}\"",
                    self.settings.label, self.settings.user
                ))
            })
        })
        .await
    }

    async fn replication(&self) -> PortResult<Replication> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ * 2, |mut c| async move {
            let told = facts::replication(&mut c).await.map_err(trouble)?;
            close(c).await;
            Ok(told)
        })
        .await
    }

    async fn inventory(&self) -> PortResult<Inventory> {
        let trouble = self.reading();
        self.with(Doing::Reading, SUMS, |mut c| async move {
            let all = facts::inventory(&mut c).await.map_err(trouble)?;
            close(c).await;
            Ok(all)
        })
        .await
    }

    async fn rows(&self) -> PortResult<Box<dyn RowRead>> {
        let connection = self.connect().await?;
        let (label, user) = (self.settings.label.clone(), self.settings.user.clone());
        Ok(Box::new(Rows::begin(connection, label, user, Arc::clone(&self.clock)).await?))
    }

    async fn present(&self, table: &str, column: &str, ids: &[String]) -> PortResult<Vec<String>> {
        let trouble = self.reading();
        self.with(Doing::Reading, SUMS, |mut c| async move {
            let mut tx = c.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(trouble)?;
            let found = sqlx::query(sql::COLUMN).bind(table).bind(column).fetch_optional(&mut *tx).await.map_err(trouble)?;
            let row = found
                .ok_or_else(|| PortError::NotFound(format!("{} has no column `{column}` in a table `{table}`", self.settings.label)))?;
            let get = |name| row.try_get::<String, _>(name).map_err(trouble);
            let query = sql::present(&get("quoted")?, &get("column")?, &get("type")?);
            let mut present = Vec::new();
            for batch in ids.chunks(BATCH) {
                let rows = sqlx::query(AssertSqlSafe(query.clone())).bind(batch.to_vec()).fetch_all(&mut *tx).await.map_err(trouble)?;
                for row in rows {
                    present.push(row.try_get("id").map_err(trouble)?);
                }
            }
            tx.rollback().await.map_err(trouble)?;
            close(c).await;
            Ok(present)
        })
        .await
    }

    async fn wheel(&self) -> PortResult<Option<String>> {
        self.read_wheel().await
    }

    async fn sessions(&self) -> PortResult<u64> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let row = sqlx::query(sql::SESSIONS).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            row.try_get::<i64, _>("n").map(i64::unsigned_abs).map_err(trouble)
        })
        .await
    }

    async fn lacks_to_close(&self) -> PortResult<Vec<String>> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let row = sqlx::query(sql::RIGHTS).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            let mut lacks = Vec::new();
            for (right, lack) in [
                ("owns", "does not own the database"),
                ("sees", "is no member of `pg_monitor`"),
                ("ends", "is no member of `pg_signal_backend`"),
            ] {
                if !row.try_get::<bool, _>(right).map_err(trouble)? {
                    lacks.push(lack.to_owned());
                }
            }
            Ok(lacks)
        })
        .await
    }
}

#[async_trait]
impl SqlWrite for Postgres {
    async fn make_read_only(&self) -> PortResult<()> {
        let trouble = self.writing();
        self.with(Doing::Writing, SETTLE * 3, |mut c| async move {
            let rows = sqlx::query(sql::EXCEPTIONS).fetch_all(&mut c).await.map_err(trouble)?;
            let whom: Result<Vec<String>, _> = rows.iter().map(|r| r.try_get("whom")).collect();
            let whom = whom.map_err(trouble)?;
            if !whom.is_empty() {
                return Err(PortError::Refused(format!(
                    "{}: default_transaction_read_only is set to off for {}, which the database's own setting does not overrule; reset it there first",
                    self.settings.label,
                    whom.join(", ")
                )));
            }
            self.set_read_only(&mut c, true).await?;
            let in_force = self.until_in_force(true).await?;
            self.end_sessions(&mut c, in_force).await?;
            close(c).await;
            Ok(())
        })
        .await
    }

    async fn make_writable(&self) -> PortResult<()> {
        self.with(Doing::Writing, SETTLE * 3, |mut c| async move {
            self.set_read_only(&mut c, false).await?;
            let in_force = self.until_in_force(false).await?;
            // What began meanwhile would stay read-only for as long as it lives.
            self.end_sessions(&mut c, in_force).await?;
            close(c).await;
            Ok(())
        })
        .await
    }

    async fn swap_wheel(&self, expect: Option<&str>, wheel: &str) -> PortResult<()> {
        self.write_wheel(expect, wheel).await
    }

    async fn prove_writable(&self, mark: &str) -> PortResult<()> {
        let trouble = self.writing();
        self.with(Doing::Writing, WRITE, |mut c| async move {
            for statement in sql::CANARY {
                sqlx::query(statement).execute(&mut c).await.map_err(trouble)?;
            }
            let write = "INSERT INTO muster.canary (mark) VALUES ($1) ON CONFLICT (mark) DO UPDATE SET at = clock_timestamp()";
            sqlx::query(write).bind(mark).execute(&mut c).await.map_err(trouble)?;
            close(c).await;
            // Read back by another session: committed, not merely said.
            let mut fresh = self.connect().await.map_err(half_done)?;
            let found =
                sqlx::query("SELECT at FROM muster.canary WHERE mark = $1").bind(mark).fetch_optional(&mut fresh).await.map_err(trouble)?;
            close(fresh).await;
            match found {
                Some(_) => Ok(()),
                None => Err(PortError::Refused(format!(
                    "{}: a row that was written and acknowledged could not be read back",
                    self.settings.label
                ))),
            }
        })
        .await
    }
}
