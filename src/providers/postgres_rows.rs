//! Rows of a PostgreSQL server, seen in single snapshots, so that a standby's can be compared with its
//! primary's while both go on. The connection is kept: a comparison asks often.
//!
//! A look is worth something only if what it says of itself is true. The table is locked (against changes
//! of its form alone) before the snapshot is taken, so that the shape read is the shape scanned. A primary's
//! position is read after the snapshot: every commit that the snapshot shows lies before it in the log. And
//! it must be one that a standby comes to, see [`Rows::reachable`].

use super::{
    clock::Clock,
    port::*,
    postgres::{Doing, SUMS, decode, ended, lsn, query_error},
    postgres_keys as keys,
    postgres_rowsum::{self as rowsum, ROW, quoted},
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
        let set = async {
            sqlx::raw_sql(sql::SAME_TEXT).execute(&mut connection).await.map_err(|e| about.trouble(&e))?;
            // What cannot be set is no reason not to look.
            let _ = sqlx::raw_sql(sql::GONE).execute(&mut connection).await;
            let row = sqlx::query("SELECT current_setting('server_version_num')::int AS version").fetch_one(&mut connection).await;
            let version: i32 = row.and_then(|row| row.try_get("version")).map_err(|e| about.trouble(&e))?;
            if version < OLDEST {
                return Err(PortError::Config(format!("{} is older than PostgreSQL 14: its rows cannot be compared", about.label)));
            }
            Ok(())
        };
        about.within(set).await?;
        Ok(Self { connection, about })
    }

    /// One look: each of `queries` in one snapshot.
    async fn look<T: Send>(
        &mut self,
        table: &str,
        position: bool,
        queries: Vec<Asked>,
        read: fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> PortResult<Look<T>> {
        let Self { connection, about } = self;
        let trouble = |e: sqlx::Error| about.trouble(&e);
        let work = async {
            let mut tx = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(trouble)?;
            // A partitioned table has its rows elsewhere: all of it is locked.
            let lock = format!("LOCK TABLE {table} IN ACCESS SHARE MODE");
            sqlx::query(AssertSqlSafe(lock)).execute(&mut *tx).await.map_err(trouble)?;
            let here = self::position(&mut tx).await.map_err(trouble)?;
            let at = if position && !here.in_recovery { about.reachable(&mut tx, here.lsn).await? } else { here.lsn };
            let shape = sqlx::query(sql::SHAPE).bind(table).fetch_optional(&mut *tx).await.map_err(trouble)?;
            let shape: Option<String> = shape.map(|row| row.try_get("shape")).transpose().map_err(trouble)?;
            let shape = shape.ok_or_else(|| about.no_table(table))?;
            let mut seen = Vec::new();
            for asked in queries {
                let rows = asked.bound().fetch_all(&mut *tx).await.map_err(trouble)?;
                let part: Result<Vec<T>, _> = rows.iter().map(read).collect();
                seen.extend(part.map_err(trouble)?);
            }
            tx.rollback().await.map_err(trouble)?;
            Ok(Look { at, horizon: here.horizon, busy: here.busy, shape, seen })
        };
        about.within(work).await
    }

    /// One query outside of looks.
    async fn rows(&mut self, asked: Asked) -> PortResult<Vec<PgRow>> {
        let Self { connection, about } = self;
        let work = async { asked.bound().fetch_all(&mut *connection).await.map_err(|e| about.trouble(&e)) };
        about.within(work).await
    }
}

/// A TID range scan is what a piece of a table is read with.
const OLDEST: i32 = 140_000;

/// A query, and the texts for its parameters.
pub(super) struct Asked {
    pub(super) text: String,
    pub(super) values: Vec<Vec<String>>,
}

impl Asked {
    fn plain(text: String) -> Self {
        Self { text, values: Vec::new() }
    }
    fn bound(self) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        self.values.into_iter().fold(sqlx::query(AssertSqlSafe(self.text)), sqlx::query::Query::bind)
    }
}

impl About {
    fn trouble(&self, error: &sqlx::Error) -> PortError {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // A statement that took too long, or stood in the way of replay: a smaller one may pass.
        if code.as_deref() == Some("57014") && !ended(error) {
            return PortError::Throttled { after: Duration::from_millis(200), message: format!("{}: {error}", self.label) };
        }
        if code.as_deref() == Some("42501") {
            let text = format!(
                "{}: {error}; user `{}` needs pg_read_all_data, and BYPASSRLS where tables have row security",
                self.label, self.user
            );
            return PortError::Refused(text);
        }
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
    let text: String = row.try_get("sum")?;
    let (rows, sum) = text.split_once(' ').ok_or_else(|| decode("sum", "no count"))?;
    Ok(Stretch { number: small(row, "number")?, rows: rows.parse().map_err(|e| decode("sum", e))?, sum: sum.to_owned() })
}

fn told<T: serde::de::DeserializeOwned + Default>(row: &PgRow, name: &str) -> Result<T, sqlx::Error> {
    let text: Option<String> = row.try_get(name)?;
    text.map_or_else(|| Ok(T::default()), |text| serde_json::from_str(&text).map_err(|e| decode(name, e)))
}

fn row_text(row: &PgRow) -> Result<RowText, sqlx::Error> {
    Ok(RowText { block: small(row, "block")?, line: small(row, "line")?, key: told(row, "key")?, columns: told(row, "columns")? })
}

fn row_text_by_key(row: &PgRow) -> Result<RowText, sqlx::Error> {
    Ok(RowText { key: told(row, "key")?, columns: told(row, "columns")?, ..RowText::default() })
}

fn keyed(row: &PgRow) -> Result<Keyed, sqlx::Error> {
    Ok(Keyed { key: told(row, "key")?, born: small(row, "born")?, touched: row.try_get("touched")?, digest: row.try_get("digest")? })
}

fn table_file(row: &PgRow, name: String) -> Result<TableFile, sqlx::Error> {
    Ok(TableFile {
        name,
        blocks: small(row, "blocks")?,
        unlogged: row.try_get::<Option<bool>, _>("unlogged")?.unwrap_or(false),
        columns: told(row, "columns")?,
        key: told(row, "key")?,
        sorted: row.try_get("sorted")?,
    })
}

/// Arguments for `jsonb_build_object`: each column's name with a digest of its text, or with the text itself.
pub(super) fn pairs<'a>(names: impl Iterator<Item = &'a str>, digests: bool) -> String {
    let value = |name: &str| if digests { format!("md5({ROW}.{name}::text)") } else { format!("left({ROW}.{name}::text, 200)") };
    let pair = |name: &str| format!("'{}', {}", name.replace('\'', "''"), value(&quoted(name)));
    names.map(pair).collect::<Vec<_>>().join(", ")
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
        let version = connection.server_version_num();
        let work = async {
            let mut tx = connection.begin_with("BEGIN READ ONLY").await.map_err(trouble)?;
            // The estate's names are the user's, and are found as the user's would be.
            sqlx::query("SET LOCAL search_path TO DEFAULT").execute(&mut *tx).await.map_err(trouble)?;
            let query = if names.is_empty() {
                sqlx::query(AssertSqlSafe(sql::user_tables(version)))
            } else {
                sqlx::query(AssertSqlSafe(sql::named_tables(version))).bind(names.to_vec())
            };
            let rows = query.fetch_all(&mut *tx).await.map_err(trouble)?;
            tx.rollback().await.map_err(trouble)?;
            let mut tables = Vec::with_capacity(rows.len());
            for row in rows {
                let name: Option<String> = row.try_get("name").map_err(trouble)?;
                let asked: String = row.try_get("asked").map_err(trouble)?;
                let name = name.ok_or_else(|| about.no_table(&asked))?;
                tables.push(table_file(&row, name).map_err(trouble)?);
            }
            Ok(tables)
        };
        about.within(work).await
    }

    async fn stretches(&mut self, table: &TableFile, piece: Piece, seed: i64, position: bool) -> PortResult<Look<Stretch>> {
        let Piece { per, first, last, open } = piece;
        let query = rowsum::stretches(&table.name, &table.columns, seed, per.max(1), first, last, open);
        self.look(&table.name, position, vec![Asked::plain(query)], stretch).await
    }

    async fn versions(&mut self, table: &str, ranges: &[(u32, u32)], position: bool) -> PortResult<Look<Version>> {
        let queries = ranges.iter().map(|(first, last)| Asked::plain(sql::versions(table, *first, *last))).collect();
        self.look(table, position, queries, version).await
    }

    async fn rows_at(&mut self, table: &TableFile, places: &[(u32, u32)]) -> PortResult<Vec<RowText>> {
        let key = pairs(table.key.iter().map(String::as_str), false);
        // More arguments than a function may have: such a table is told without its columns.
        let columns = if table.columns.len() > 45 { String::new() } else { pairs(table.columns.iter().map(|c| c.name.as_str()), true) };
        let places = places.iter().map(|(block, line)| format!("({block},{line})")).collect();
        let asked = Asked { text: sql::rows_at(&table.name, &columns, &key), values: vec![places] };
        let rows = self.rows(asked).await?;
        rows.iter().map(row_text).collect::<Result<_, _>>().map_err(|e| self.about.trouble(&e))
    }

    async fn bound(&mut self, how: &ByKey, after: Option<&Key>, rows: u64) -> PortResult<Option<Key>> {
        let found = self.rows(keys::bound(how, after, rows)).await?;
        found.first().map(|row| told(row, "key")).transpose().map_err(|e| self.about.trouble(&e))
    }

    async fn ranges(&mut self, how: &ByKey, ranges: &[KeyRange], seed: i64, position: bool) -> PortResult<Look<Stretch>> {
        let queries = ranges.iter().enumerate().map(|(number, range)| keys::sum(how, range, number, seed)).collect();
        self.look(&how.table, position, queries, stretch).await
    }

    async fn keyed(&mut self, how: &ByKey, range: &KeyRange, position: bool) -> PortResult<Look<Keyed>> {
        self.look(&how.table, position, vec![keys::rows(how, range)], keyed).await
    }

    async fn rows_of(&mut self, how: &ByKey, wanted: &[Key]) -> PortResult<Vec<RowText>> {
        let mut all = Vec::new();
        for key in wanted {
            let found = self.rows(keys::row(how, key)).await?;
            let read: Result<Vec<RowText>, _> = found.iter().map(row_text_by_key).collect();
            all.extend(read.map_err(|e| self.about.trouble(&e))?);
        }
        Ok(all)
    }

    async fn confirmed(&mut self, slot: &str) -> PortResult<Option<Lsn>> {
        let found = self.rows(Asked { text: keys::CONFIRMED.to_owned(), values: vec![vec![slot.to_owned()]] }).await?;
        let Some(row) = found.first() else { return Ok(None) };
        lsn(row, "position").map_err(|e| self.about.trouble(&e))
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
