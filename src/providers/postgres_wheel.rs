//! The wheel of a database: one row of Muster's own in it, replaced only by whoever names what stands there. It goes where
//! the database goes, since every standby has it too.

use super::{
    port::*,
    postgres::{Doing, Postgres, close},
    postgres_sql as sql,
};
use sqlx::Row;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

impl Postgres {
    pub(super) async fn read_wheel(&self) -> PortResult<Option<String>> {
        let trouble = self.reading();
        self.with(Doing::Reading, LIMIT, |mut c| async move {
            let made = sqlx::query("SELECT to_regclass('muster.wheel') IS NOT NULL AS made").fetch_one(&mut c).await.map_err(trouble)?;
            let made: bool = made.try_get("made").map_err(trouble)?;
            let found =
                if made { sqlx::query("SELECT holder FROM muster.wheel").fetch_optional(&mut c).await.map_err(trouble)? } else { None };
            close(c).await;
            found.map(|row| row.try_get("holder")).transpose().map_err(trouble)
        })
        .await
    }

    pub(super) async fn write_wheel(&self, expect: Option<&str>, wheel: &str) -> PortResult<()> {
        let trouble = self.writing();
        self.with(Doing::Writing, LIMIT, |mut c| async move {
            for statement in [sql::CANARY[0], sql::WHEEL] {
                sqlx::query(statement).execute(&mut c).await.map_err(trouble)?;
            }
            let swap = match expect {
                Some(expect) => {
                    sqlx::query("UPDATE muster.wheel SET holder = $1 WHERE holder = $2").bind(wheel.to_owned()).bind(expect.to_owned())
                }
                None => sqlx::query("INSERT INTO muster.wheel (holder) VALUES ($1) ON CONFLICT DO NOTHING").bind(wheel.to_owned()),
            };
            let swapped = swap.execute(&mut c).await.map_err(trouble)?.rows_affected();
            close(c).await;
            match swapped {
                0 => Err(PortError::Conflict { found: format!("{}: another wheel lies there by now", self.settings.label) }),
                _ => Ok(()),
            }
        })
        .await
    }
}
