//! Tables at one known position of the log: locked against writers for as long as it takes another session to have its
//! snapshot and the server to write a restore point; asked afterwards, when everybody goes on.

use super::{
    port::*,
    postgres::{Doing, Postgres, close, lsn},
};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use std::time::Duration;

/// Both sessions, from the first to the last word.
const ALL: Duration = Duration::from_secs(2 * 3600);

impl Postgres {
    pub(super) async fn freeze_tables(&self, tables: &[String], forms: &str, questions: &[String], point: &str) -> PortResult<Frozen> {
        // First the one that waits for nothing.
        let reader = self.connect().await?;
        self.with(Doing::Reading, ALL, |writer| self.frozen(writer, reader, tables, forms, questions, point)).await
    }

    async fn frozen(
        &self,
        mut writer: PgConnection,
        mut reader: PgConnection,
        tables: &[String],
        forms: &str,
        questions: &[String],
        point: &str,
    ) -> PortResult<Frozen> {
        // A restore point that nobody refers to is no change: until the record is written, nothing has happened.
        let trouble = self.reading();
        let run =
            async |c: &mut PgConnection, text: String| sqlx::raw_sql(AssertSqlSafe(text)).execute(c).await.map(drop).map_err(&trouble);
        run(&mut reader, format!("SET statement_timeout = 0; {forms}")).await?;
        run(&mut writer, format!("BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE {} IN SHARE MODE", tables.join(", "))).await?;
        let held = self.clock.monotonic();
        run(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1".into()).await?;
        let row = sqlx::query("SELECT pg_create_restore_point($1)::text AS position").bind(point.to_owned()).fetch_one(&mut writer).await;
        let position = row.and_then(|row| lsn(&row, "position")).map_err(&trouble)?.unwrap_or_default();
        run(&mut writer, "COMMIT".into()).await?;
        let held = self.clock.monotonic().saturating_sub(held);
        // What archives by whole segments shall have it soon; and a recovery stops behind the record that follows the position.
        let _ = run(&mut writer, "SELECT pg_switch_wal()".into()).await;
        close(writer).await;
        let mut rows = Vec::new();
        for question in questions {
            let row = sqlx::query(AssertSqlSafe(question.clone())).fetch_one(&mut reader).await.map_err(&trouble)?;
            rows.push((0..row.len()).map(|i| row.try_get(i)).collect::<Result<Vec<Option<String>>, _>>().map_err(&trouble)?);
        }
        close(reader).await;
        Ok(Frozen { position, held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX), rows })
    }
}
