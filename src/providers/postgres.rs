//! PostgreSQL, asked through SQL. One connection a call: after a failover nothing stale is left to
//! answer, and a frozen server costs one connect timeout, not a pool. The address comes from the estate,
//! or else from the control plane, whose answer is kept until a connection to it fails.
//!
//! `sums` is only worth something if its position is honest: two servers at the same position hold the
//! same rows. On a primary the log must not have grown while the snapshot was taken, and nobody may be
//! in the middle of a commit; on a standby the replay must have stood still around it.

use super::{
    clock::Clock,
    port::{InstanceRead, Lsn, PortError, PortResult, ServerState, SqlRead, SqlWrite, Standby, TableSum},
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
const SUMS: Duration = Duration::from_mins(5);
/// How long `make_read_only` waits for the setting to be in force, and for sessions to end.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a snapshot is tried at which the position is certain.
const TRIES: u32 = 60;
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
    settings: Settings,
    instances: Option<Arc<dyn InstanceRead>>,
    clock: Arc<dyn Clock>,
    asked: Mutex<Option<Address>>,
}

/// Whether what failed may have changed something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
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

    async fn connect(&self) -> PortResult<PgConnection> {
        let s = &self.settings;
        let address = self.address().await?;
        // `new_without_pgpass`: only what the estate says counts, not the environment of whoever runs us.
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&address.host)
            .port(address.port)
            .database(&s.database)
            .username(&s.user)
            .application_name("muster")
            .statement_cache_capacity(0)
            .options([("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "330s")]);
        if let Some(password) = &s.password {
            options = options.password(password.expose_secret());
        }
        let answer = tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await;
        let at = format!("{} ({}:{})", s.label, address.host, address.port);
        let failed = match answer {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(e)) => connect_error(&e, &at, &s.user),
            Err(_) => PortError::Unreachable(format!("{at} did not answer within {} s", CONNECT.as_secs())),
        };
        self.remember(None);
        Err(failed)
    }

    /// Runs one exchange with a connection of its own, within a time limit.
    async fn with<T, F>(&self, doing: Doing, limit: Duration, work: impl FnOnce(PgConnection) -> F + Send) -> PortResult<T>
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

    fn reading(&self) -> impl Fn(sqlx::Error) -> PortError + Copy + Send + '_ {
        |e| query_error(&e, Doing::Reading, &self.settings.label, &self.settings.user)
    }
    fn writing(&self) -> impl Fn(sqlx::Error) -> PortError + Copy + Send + '_ {
        |e| query_error(&e, Doing::Writing, &self.settings.label, &self.settings.user)
    }

    /// One try at sums with a certain position; `None` when the position moved meanwhile.
    async fn try_sums(&self, c: &mut PgConnection, tables: &[String]) -> PortResult<Option<(Lsn, Vec<TableSum>)>> {
        let trouble = self.reading();
        let before = position(c).await.map_err(trouble)?;
        let mut tx = c.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(trouble)?;
        let at = position(&mut tx).await.map_err(trouble)?;
        if at.busy > 0 || at.lsn != before.lsn || at.in_recovery != before.in_recovery {
            tx.rollback().await.map_err(trouble)?;
            return Ok(None);
        }
        let lsn = if at.in_recovery { at.lsn } else { self.reachable(&mut tx, at.lsn).await? };
        if at.in_recovery {
            // Replay shows a transaction to readers an instant before it moves its position: look again.
            self.clock.sleep(Duration::from_millis(25)).await;
            if position(&mut tx).await.map_err(trouble)?.lsn != at.lsn {
                tx.rollback().await.map_err(trouble)?;
                return Ok(None);
            }
        }
        let targets = self.tables(&mut tx, tables).await?;
        for setting in sql::SAME_TEXT {
            sqlx::query(setting).execute(&mut *tx).await.map_err(trouble)?;
        }
        sqlx::query("SET LOCAL statement_timeout = '300s'").execute(&mut *tx).await.map_err(trouble)?;
        let mut sums = Vec::with_capacity(targets.len());
        for target in targets {
            let row = sqlx::query(AssertSqlSafe(sql::sum(&target.quoted, target.only))).fetch_one(&mut *tx).await.map_err(trouble)?;
            sums.push(table_sum(target.name, &row).map_err(trouble)?);
        }
        tx.rollback().await.map_err(trouble)?;
        Ok(Some((lsn, sums)))
    }

    /// The position of the same content that a standby can come to. Reading alone may add to the log
    /// (pages are tidied up) without anything being flushed for it, so that no standby ever gets there
    /// while nobody writes. Once the log writer had its time, what is not flushed holds no commit.
    async fn reachable(&self, c: &mut PgConnection, at: Lsn) -> PortResult<Lsn> {
        let trouble = self.reading();
        let began = self.clock.monotonic();
        loop {
            let row = sqlx::query(sql::FLUSHED).fetch_one(&mut *c).await.map_err(trouble)?;
            let flushed = lsn(&row, "position").map_err(trouble)?.unwrap_or_default();
            let settle: i64 = row.try_get("settle_ms").map_err(trouble)?;
            if flushed >= at {
                return Ok(at);
            }
            if self.clock.monotonic().saturating_sub(began) > Duration::from_millis(settle.unsigned_abs() + 100) {
                return Ok(flushed);
            }
            self.clock.sleep(Duration::from_millis(25)).await;
        }
    }

    async fn tables(&self, c: &mut PgConnection, names: &[String]) -> PortResult<Vec<Target>> {
        let trouble = self.reading();
        let query = if names.is_empty() { sqlx::query(sql::USER_TABLES) } else { sqlx::query(sql::NAMED_TABLES).bind(names.to_vec()) };
        let rows = query.fetch_all(c).await.map_err(trouble)?;
        let mut targets = Vec::with_capacity(rows.len());
        for row in rows {
            let name: String = row.try_get("name").map_err(trouble)?;
            let quoted: Option<String> = row.try_get("quoted").map_err(trouble)?;
            let quoted = quoted.ok_or_else(|| PortError::NotFound(format!("{} has no table `{name}`", self.settings.label)))?;
            targets.push(Target { name, quoted, only: row.try_get("only").map_err(trouble)? });
        }
        Ok(targets)
    }

    /// Waits until new sessions start read-only, as one of them sees it; the server's clock at that moment.
    async fn until_in_force(&self) -> PortResult<i64> {
        let until = self.clock.monotonic() + SETTLE;
        loop {
            let mut fresh = self.connect().await.map_err(half_done)?;
            let row = sqlx::query(sql::IN_FORCE).fetch_one(&mut fresh).await.map_err(self.writing())?;
            close(fresh).await;
            let read_only: bool = row.try_get("read_only").map_err(self.writing())?;
            if read_only {
                return row.try_get("now").map_err(self.writing());
            }
            if self.clock.monotonic() >= until {
                return Err(PortError::Unknown(format!(
                    "{}: the server was told to make new sessions read-only, but {} s later they are not: look at its log and at `pg_file_settings`",
                    self.settings.label,
                    SETTLE.as_secs()
                )));
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends every session that began while the server still let sessions write.
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
                return Err(PortError::Unknown(format!("{}: {left} sessions that may still write would not end", self.settings.label)));
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    async fn set_read_only(&self, c: &mut PgConnection, on: bool) -> PortResult<()> {
        let set =
            if on { "ALTER SYSTEM SET default_transaction_read_only = on" } else { "ALTER SYSTEM RESET default_transaction_read_only" };
        sqlx::query(set).execute(&mut *c).await.map_err(self.writing())?;
        sqlx::query("SELECT pg_reload_conf()").execute(&mut *c).await.map_err(self.writing())?;
        Ok(())
    }
}

struct Target {
    name: String,
    quoted: String,
    only: bool,
}

struct Position {
    in_recovery: bool,
    lsn: Lsn,
    busy: i64,
}

/// The end of the last record: on a primary the insert position skips the header of a page that has
/// only been begun, while the replay position of a standby does not.
fn end_of_record(lsn: Lsn, block: u64, segment: u64) -> Lsn {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    let within = |unit: u64, header: u64| unit > 0 && lsn.0 % unit == header;
    if within(segment, LONG_HEADER) {
        Lsn(lsn.0 - LONG_HEADER)
    } else if within(block, SHORT_HEADER) {
        Lsn(lsn.0 - SHORT_HEADER)
    } else {
        lsn
    }
}

async fn position(c: &mut PgConnection) -> Result<Position, sqlx::Error> {
    let row = sqlx::query(sql::POSITION).fetch_one(c).await?;
    let unit = |name: &str| row.try_get::<i64, _>(name).map(|n| u64::try_from(n).unwrap_or(0));
    let in_recovery: bool = row.try_get("in_recovery")?;
    let lsn = lsn(&row, "position")?.unwrap_or_default();
    let lsn = if in_recovery { lsn } else { end_of_record(lsn, unit("block")?, unit("segment")?) };
    Ok(Position { in_recovery, lsn, busy: row.try_get("busy")? })
}

fn table_sum(table: String, row: &PgRow) -> Result<TableSum, sqlx::Error> {
    let half = |name: &str| -> Result<u64, sqlx::Error> {
        let text: String = row.try_get(name)?;
        let sum: i128 = text.parse().map_err(|e| decode(name, e))?;
        // The low 64 bits of the exact sum.
        Ok(sum as u64)
    };
    let rows: i64 = row.try_get("rows")?;
    Ok(TableSum { table, rows: rows.unsigned_abs(), sum: format!("{:016x}{:016x}", half("high")?, half("low")?) })
}

fn decode(column: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }
}

fn lsn(row: &PgRow, column: &str) -> Result<Option<Lsn>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|t| t.parse()).transpose().map_err(|e: String| decode(column, e))
}

fn instant(row: &PgRow, column: &str) -> Result<Option<jiff::Timestamp>, sqlx::Error> {
    let micros: Option<i64> = row.try_get(column)?;
    micros.map(jiff::Timestamp::from_microsecond).transpose().map_err(|e| decode(column, e))
}

fn server_state(row: &PgRow) -> Result<ServerState, sqlx::Error> {
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

fn standby(row: &PgRow) -> Result<Option<Standby>, sqlx::Error> {
    let state: Option<String> = row.try_get("state")?;
    let name: Option<String> = row.try_get("name")?;
    Ok(match state {
        Some(state) => Some(Standby { name: name.unwrap_or_default(), state, sent: lsn(row, "sent")?, replayed: lsn(row, "replayed")? }),
        None => None,
    })
}

/// Says goodbye, so that the server does not have to find out.
async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(Duration::from_millis(500), connection.close()).await;
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// A connection that fails in the midst of a change: something was already carried out.
fn half_done(error: PortError) -> PortError {
    PortError::Unknown(format!("after the first part of the change: {error}"))
}

fn connect_error(error: &sqlx::Error, at: &str, user: &str) -> PortError {
    let code = code(error).unwrap_or_default();
    match code.as_str() {
        "53300" => PortError::Throttled { after: Duration::from_secs(1), message: format!("{at} has no connection left: {error}") },
        "3D000" => PortError::NotFound(format!("{at}: {error}")),
        // Starting up, shutting down.
        c if c.starts_with("57P") => PortError::Unreachable(format!("{at}: {error}")),
        c if c.starts_with("28") => PortError::Refused(format!(
            "{at} does not let user `{user}` in: {error}; check the database's `user` and `password` in the estate"
        )),
        _ => PortError::Unreachable(format!("{at}: {error}")),
    }
}

fn query_error(error: &sqlx::Error, doing: Doing, label: &str, user: &str) -> PortError {
    let text = format!("{label}: {error}");
    let lost = |text| if doing == Doing::Writing { PortError::Unknown(text) } else { PortError::Unreachable(text) };
    let Some(code) = code(error) else {
        return match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => PortError::Refused(text),
            _ => lost(text),
        };
    };
    match code.as_str() {
        "42501" => PortError::Refused(format!(
            "{text}; user `{user}` needs the rights of a superuser, or `pg_monitor`, `pg_signal_backend`, and (from version 15) `GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only`"
        )),
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

    async fn sums(&self, tables: &[String]) -> PortResult<(Lsn, Vec<TableSum>)> {
        self.with(Doing::Reading, SUMS, |mut c| async move {
            for attempt in 0..TRIES {
                if let Some(done) = self.try_sums(&mut c, tables).await? {
                    close(c).await;
                    return Ok(done);
                }
                // Uneven pauses, so as not to fall into step with a writer.
                self.clock.sleep(Duration::from_millis(u64::from(3 + attempt * 7 % 23))).await;
            }
            let message =
                format!("{}: its log never stood still long enough to tell at which position the rows were counted", self.settings.label);
            Err(PortError::Throttled { after: Duration::from_secs(1), message })
        })
        .await
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

    async fn sessions(&self) -> PortResult<u64> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let row = sqlx::query(sql::SESSIONS).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            row.try_get::<i64, _>("n").map(i64::unsigned_abs).map_err(trouble)
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
                    "{}: default_transaction_read_only is set to off for {}, which a server-wide setting does not overrule; reset it there first",
                    self.settings.label,
                    whom.join(", ")
                )));
            }
            self.set_read_only(&mut c, true).await?;
            let in_force = self.until_in_force().await?;
            self.end_sessions(&mut c, in_force).await?;
            close(c).await;
            Ok(())
        })
        .await
    }

    async fn make_writable(&self) -> PortResult<()> {
        self.with(Doing::Writing, WRITE, |mut c| async move {
            self.set_read_only(&mut c, false).await?;
            close(c).await;
            self.until_writable().await
        })
        .await
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

impl Postgres {
    async fn until_writable(&self) -> PortResult<()> {
        let until = self.clock.monotonic() + SETTLE;
        loop {
            let mut fresh = self.connect().await.map_err(half_done)?;
            let row = sqlx::query(sql::IN_FORCE).fetch_one(&mut fresh).await.map_err(self.writing())?;
            close(fresh).await;
            let read_only: bool = row.try_get("read_only").map_err(self.writing())?;
            if !read_only {
                return Ok(());
            }
            if self.clock.monotonic() >= until {
                let why = "the setting was reset, but new sessions still start read-only: it is set elsewhere too (postgresql.conf, the role or the database)";
                return Err(PortError::Refused(format!("{}: {why}", self.settings.label)));
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_just_begun_is_the_end_of_the_one_before() {
        let at = |text: &str| end_of_record(text.parse().unwrap(), 8192, 16 << 20).to_string();
        assert_eq!(at("0/3000028"), "0/3000000", "a new segment: the long header");
        assert_eq!(at("0/3002018"), "0/3002000", "a new page: the short one");
        for within in ["0/3002020", "0/3000000", "0/300A4F8"] {
            assert_eq!(at(within), within);
        }
    }
}
