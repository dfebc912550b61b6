//! Rows of a PostgreSQL server, seen in single snapshots, so that a standby's can be compared with its
//! primary's while both go on. The connection is kept: a comparison asks often.
//!
//! A look is worth something only if what it says of itself is true. The table is locked (against changes
//! of its form alone) before the snapshot is taken, so that the shape read is the shape scanned. A primary's
//! position is read after the snapshot: every commit that the snapshot shows lies before it in the log. And
//! it must be one that a standby comes to, see [`Rows::reachable`].

use super::{
    clock::Clock,
    port::{Look, Lsn, PortError, PortResult, RowRead, Stretch, TableFile, Version},
    postgres::{Doing, SUMS, decode, lsn, query_error},
    postgres_sql as sql,
};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, postgres::PgRow};
use std::{future::Future, sync::Arc, time::Duration};

pub(super) struct Rows {
    connection: PgConnection,
    about: About,
}

/// What is said and waited with, apart from the connection, which a transaction borrows.
struct About {
    label: String,
    user: String,
    clock: Arc<dyn Clock>,
}

struct Position {
    in_recovery: bool,
    lsn: Lsn,
    busy: bool,
    horizon: u64,
}

impl Rows {
    pub(super) async fn begin(mut connection: PgConnection, label: String, user: String, clock: Arc<dyn Clock>) -> PortResult<Self> {
        let about = About { label, user, clock };
        let set = async { sqlx::raw_sql(sql::SAME_TEXT).execute(&mut connection).await.map_err(|e| about.trouble(&e)) };
        about.within(set).await?;
        Ok(Self { connection, about })
    }

    /// One look: `read` makes the query for each of `parts`, in one snapshot.
    async fn look<T: Send>(
        &mut self,
        table: &str,
        position: bool,
        queries: Vec<String>,
        per: Option<i64>,
        read: fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> PortResult<Look<T>> {
        let Self { connection, about } = self;
        let trouble = |e: sqlx::Error| about.trouble(&e);
        let work = async {
            let mut tx = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(trouble)?;
            let lock = format!("LOCK TABLE ONLY {table} IN ACCESS SHARE MODE");
            sqlx::query(AssertSqlSafe(lock)).execute(&mut *tx).await.map_err(trouble)?;
            let here = self::position(&mut tx).await.map_err(trouble)?;
            let at = if position && !here.in_recovery { about.reachable(&mut tx, here.lsn).await? } else { here.lsn };
            let shape = sqlx::query(sql::SHAPE).bind(table).fetch_optional(&mut *tx).await.map_err(trouble)?;
            let shape: Option<String> = shape.map(|row| row.try_get("shape")).transpose().map_err(trouble)?;
            let shape = shape.ok_or_else(|| about.no_table(table))?;
            let mut seen = Vec::new();
            for text in queries {
                let query = sqlx::query(AssertSqlSafe(text));
                let query = if let Some(per) = per { query.bind(per) } else { query };
                let rows = query.fetch_all(&mut *tx).await.map_err(trouble)?;
                let part: Result<Vec<T>, _> = rows.iter().map(read).collect();
                seen.extend(part.map_err(trouble)?);
            }
            tx.rollback().await.map_err(trouble)?;
            Ok(Look { at, horizon: here.horizon, busy: here.busy, shape, seen })
        };
        about.within(work).await
    }
}

impl About {
    fn trouble(&self, error: &sqlx::Error) -> PortError {
        query_error(error, Doing::Reading, &self.label, &self.user)
    }
    fn no_table(&self, name: &str) -> PortError {
        PortError::NotFound(format!("{} has no table `{name}`", self.label))
    }
    async fn within<T: Send>(&self, work: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
        let late = || PortError::Unreachable(format!("{} did not answer within {} s", self.label, SUMS.as_secs()));
        tokio::time::timeout(SUMS, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// The position of the same content that a standby can come to. Reading alone may add to the log
    /// (pages are tidied up) without anything being flushed for it, so that no standby ever gets there
    /// while nobody writes. Once the log writer had its time, what is not flushed holds no commit.
    async fn reachable(&self, c: &mut PgConnection, at: Lsn) -> PortResult<Lsn> {
        let began = self.clock.monotonic();
        loop {
            let row = sqlx::query(sql::FLUSHED).fetch_one(&mut *c).await.map_err(|e| self.trouble(&e))?;
            let flushed = lsn(&row, "position").map_err(|e| self.trouble(&e))?.unwrap_or_default();
            let settle: i64 = row.try_get("settle_ms").map_err(|e| self.trouble(&e))?;
            if flushed >= at {
                return Ok(at);
            }
            if self.clock.monotonic().saturating_sub(began) > Duration::from_millis(settle.unsigned_abs() + 100) {
                return Ok(flushed);
            }
            self.clock.sleep(Duration::from_millis(10)).await;
        }
    }
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
    let number = |name: &str| row.try_get::<i64, _>(name).map(|n| u64::try_from(n).unwrap_or(0));
    let in_recovery: bool = row.try_get("in_recovery")?;
    let lsn = lsn(&row, "position")?.unwrap_or_default();
    let lsn = if in_recovery { lsn } else { end_of_record(lsn, number("block")?, number("segment")?) };
    Ok(Position { in_recovery, lsn, busy: number("busy")? > 0, horizon: number("horizon")? })
}

fn small(row: &PgRow, name: &str) -> Result<u32, sqlx::Error> {
    u32::try_from(row.try_get::<i64, _>(name)?).map_err(|e| decode(name, e))
}

fn stretch(row: &PgRow) -> Result<Stretch, sqlx::Error> {
    let half = |name: &str| -> Result<u64, sqlx::Error> {
        let text: String = row.try_get(name)?;
        let sum: i128 = text.parse().map_err(|e| decode(name, e))?;
        // The low 64 bits of the exact sum.
        Ok(sum as u64)
    };
    let rows: i64 = row.try_get("rows")?;
    Ok(Stretch { number: small(row, "number")?, rows: rows.unsigned_abs(), sum: format!("{:016x}{:016x}", half("high")?, half("low")?) })
}

fn version(row: &PgRow) -> Result<Version, sqlx::Error> {
    let (block, line, born) = (small(row, "block")?, small(row, "line")?, small(row, "born")?);
    Ok(Version { block, line, born, touched: row.try_get("touched")?, digest: row.try_get("digest")? })
}

#[async_trait]
impl RowRead for Rows {
    async fn tables(&mut self, names: &[String]) -> PortResult<Vec<TableFile>> {
        let Self { connection, about } = self;
        let trouble = |e: sqlx::Error| about.trouble(&e);
        let work = async {
            let mut tx = connection.begin_with("BEGIN READ ONLY").await.map_err(trouble)?;
            // The estate's names are the user's, and are found as the user's would be.
            sqlx::query("SET LOCAL search_path TO DEFAULT").execute(&mut *tx).await.map_err(trouble)?;
            let query = if names.is_empty() { sqlx::query(sql::USER_TABLES) } else { sqlx::query(sql::NAMED_TABLES).bind(names.to_vec()) };
            let rows = query.fetch_all(&mut *tx).await.map_err(trouble)?;
            tx.rollback().await.map_err(trouble)?;
            let mut tables = Vec::with_capacity(rows.len());
            for row in rows {
                let name: Option<String> = row.try_get("name").map_err(trouble)?;
                let asked: String = row.try_get("asked").map_err(trouble)?;
                let name = name.ok_or_else(|| about.no_table(&asked))?;
                tables.push(TableFile { name, blocks: small(&row, "blocks").map_err(trouble)? });
            }
            Ok(tables)
        };
        about.within(work).await
    }

    async fn stretches(&mut self, table: &str, per: u32, position: bool) -> PortResult<Look<Stretch>> {
        self.look(table, position, vec![sql::stretches(table)], Some(i64::from(per.max(1))), stretch).await
    }

    async fn versions(&mut self, table: &str, ranges: &[(u32, u32)], position: bool) -> PortResult<Look<Version>> {
        let queries = ranges.iter().map(|(first, last)| sql::versions(table, *first, *last)).collect();
        self.look(table, position, queries, None, version).await
    }

    async fn replayed(&mut self) -> PortResult<Lsn> {
        let Self { connection, about } = self;
        let work = async { self::position(connection).await.map(|p| p.lsn).map_err(|e| about.trouble(&e)) };
        about.within(work).await
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
