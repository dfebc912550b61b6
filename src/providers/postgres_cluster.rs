//! PostgreSQL where Muster is its superuser: settings, slots, roles, promotion. RDS allows none of it.

use super::{
    port::*,
    postgres::{Doing, Postgres, close, lsn, server_state},
    postgres_sql as sql,
};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

const READ: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(15);
/// A checkpoint writes all that is dirty.
const CHECKPOINT: Duration = Duration::from_mins(10);
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

impl Postgres {
    async fn texts(&self, query: &'static str, bind: Option<Vec<String>>) -> PortResult<Vec<Vec<Option<String>>>> {
        let trouble = self.reading();
        self.with(Doing::Reading, READ, |mut c| async move {
            let asked = sqlx::query(query);
            let asked = match bind {
                Some(values) => asked.bind(values),
                None => asked,
            };
            let rows = asked.fetch_all(&mut c).await.map_err(trouble)?;
            close(c).await;
            let row = |row: &sqlx::postgres::PgRow| (0..row.len()).map(|i| row.try_get(i)).collect::<Result<Vec<_>, _>>();
            rows.iter().map(row).collect::<Result<_, _>>().map_err(trouble)
        })
        .await
    }

    /// One statement whose text was made with `format`'s `%I` and `%L`, by the server itself.
    async fn made(&self, c: &mut PgConnection, maker: &'static str, bind: &[&str]) -> PortResult<()> {
        let trouble = self.writing();
        let mut asked = sqlx::query(maker);
        for value in bind {
            asked = asked.bind((*value).to_owned());
        }
        for row in asked.fetch_all(&mut *c).await.map_err(trouble)? {
            let text: String = row.try_get(0).map_err(trouble)?;
            sqlx::query(AssertSqlSafe(text)).execute(&mut *c).await.map_err(trouble)?;
        }
        Ok(())
    }

    async fn change(&self, limit: Duration, query: &'static str, bind: Option<&str>) -> PortResult<()> {
        let trouble = self.writing();
        self.with(Doing::Writing, limit, |mut c| async move {
            let asked = sqlx::query(query);
            let asked = match bind {
                Some(value) => asked.bind(value.to_owned()),
                None => asked,
            };
            asked.execute(&mut c).await.map_err(trouble)?;
            close(c).await;
            Ok(())
        })
        .await
    }
}

fn first(row: &[Option<String>]) -> Option<&str> {
    row.first().and_then(Option::as_deref)
}

fn text(row: &[Option<String>], at: usize) -> String {
    row.get(at).cloned().flatten().unwrap_or_default()
}

#[async_trait]
impl ClusterRead for Postgres {
    async fn settings(&self, names: &[&str]) -> PortResult<BTreeMap<String, String>> {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        let rows = self.texts("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY($1)", Some(names)).await?;
        Ok(rows.iter().map(|row| (text(row, 0), text(row, 1))).collect())
    }

    async fn slots(&self) -> PortResult<Vec<SlotUse>> {
        let rows = self.texts("SELECT slot_name::text, active::text, wal_status FROM pg_replication_slots ORDER BY 1", None).await?;
        let slot =
            |row: &Vec<Option<String>>| SlotUse { name: text(row, 0), active: text(row, 1) == "true", wal: row.get(2).cloned().flatten() };
        Ok(rows.iter().map(slot).collect())
    }

    async fn logins(&self, but: &[String]) -> PortResult<Vec<LoginRole>> {
        let rows = self.texts(sql::LOGINS, Some(but.to_vec())).await?;
        Ok(rows.iter().map(|row| LoginRole { name: text(row, 0), superuser: text(row, 1) == "true" }).collect())
    }

    async fn revoked(&self) -> PortResult<Vec<String>> {
        let known = self.texts("SELECT to_regclass('muster.revoked')::text", None).await?;
        if known.first().and_then(|row| first(row)).is_none() {
            return Ok(Vec::new());
        }
        let rows = self.texts("SELECT role FROM muster.revoked ORDER BY 1", None).await?;
        Ok(rows.iter().map(|row| text(row, 0)).collect())
    }

    async fn writers(&self) -> PortResult<Vec<String>> {
        let rows = self.texts(sql::WRITERS, None).await?;
        Ok(rows.iter().map(|row| text(row, 1)).collect())
    }

    async fn refusal(&self, role: &str) -> PortResult<Option<String>> {
        match self.connect_as(role, None).await {
            Ok(connection) => {
                close(connection).await;
                Ok(None)
            }
            Err(PortError::Refused(why)) => Ok(Some(why)),
            Err(e) => Err(e),
        }
    }

    async fn hba(&self) -> PortResult<Hba> {
        let rows = self.texts(sql::HBA, None).await?;
        let of = |kind: &str| rows.iter().filter(|row| first(row) == Some(kind)).map(|row| text(row, 1)).collect::<Vec<_>>();
        Ok(Hba { file: of("file").pop().unwrap_or_default(), rules: of("rule"), errors: of("error") })
    }

    async fn replay(&self, beyond: Lsn, limit: Duration) -> PortResult<Lsn> {
        let trouble = self.reading();
        let until = self.clock.monotonic() + limit;
        self.with(Doing::Reading, limit + READ, |mut c| async move {
            loop {
                let row = sqlx::query("SELECT pg_last_wal_replay_lsn()::text AS at").fetch_one(&mut c).await.map_err(trouble)?;
                let at = lsn(&row, "at").map_err(trouble)?.unwrap_or_default();
                if at > beyond || self.clock.monotonic() >= until {
                    close(c).await;
                    return Ok(at);
                }
                self.clock.sleep(POLL).await;
            }
        })
        .await
    }

    async fn tablespaces(&self) -> PortResult<BTreeMap<u32, PathBuf>> {
        // One that lies in the data directory itself (`allow_in_place_tablespaces`) has a path that begins there.
        let ask =
            "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY oid";
        let rows = self.texts(ask, None).await?;
        let number =
            |row: &Vec<Option<String>>| text(row, 0).parse().map_err(|e| PortError::Refused(format!("a tablespace's number: {e}")));
        rows.iter().map(|row| Ok((number(row)?, PathBuf::from(text(row, 1))))).collect()
    }

    async fn history(&self, timeline: u32) -> PortResult<Vec<(u32, Lsn)>> {
        if timeline == 1 {
            return Ok(Vec::new());
        }
        let file = format!("pg_wal/{timeline:08X}.history");
        let rows = self.texts("SELECT pg_read_file(f) FROM unnest($1::text[]) f", Some(vec![file])).await?;
        let content = rows.first().map(|row| text(row, 0)).unwrap_or_default();
        parse_history(&content).map_err(|e| PortError::Refused(format!("{}: timeline {timeline}: {e}", self.settings.label)))
    }
}

/// Lines of `1<tab>0/3000000<tab>why`.
fn parse_history(content: &str) -> Result<Vec<(u32, Lsn)>, String> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let (timeline, at) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            Ok((timeline.parse().map_err(|_| format!("`{line}` names no timeline"))?, at.parse()?))
        })
        .collect()
}

#[async_trait]
impl ClusterWrite for Postgres {
    async fn checkpoint(&self) -> PortResult<()> {
        let trouble = self.writing();
        self.with(Doing::Writing, CHECKPOINT, |mut c| async move {
            sqlx::query("SET statement_timeout = 0").execute(&mut c).await.map_err(trouble)?;
            sqlx::query("CHECKPOINT").execute(&mut c).await.map_err(trouble)?;
            close(c).await;
            Ok(())
        })
        .await
    }

    /// Asked without waiting: `pg_promote`'s own wait looks ten times a second only.
    async fn promote(&self, limit: Duration) -> PortResult<ServerState> {
        let trouble = self.writing();
        let until = self.clock.monotonic() + limit;
        self.with(Doing::Writing, limit + READ, |mut c| async move {
            let asked = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(false) ELSE true END";
            sqlx::query(asked).execute(&mut c).await.map_err(trouble)?;
            loop {
                let row = sqlx::query("SELECT pg_is_in_recovery() AS r").fetch_one(&mut c).await.map_err(trouble)?;
                if !row.try_get::<bool, _>("r").map_err(trouble)? {
                    break;
                }
                if self.clock.monotonic() >= until {
                    let label = &self.settings.label;
                    return Err(PortError::Unknown(format!("{label}: asked to promote, it is in recovery {} ms later", limit.as_millis())));
                }
                self.clock.sleep(POLL).await;
            }
            let row = sqlx::query(sql::STATE).fetch_one(&mut c).await.map_err(trouble)?;
            close(c).await;
            server_state(&row).map_err(trouble)
        })
        .await
    }

    async fn set(&self, name: &str, value: Option<&str>) -> PortResult<()> {
        self.with(Doing::Writing, SETTLE + READ, |mut c| async move {
            match value {
                Some(value) => self.made(&mut c, "SELECT format('ALTER SYSTEM SET %I = %L', $1, $2)", &[name, value]).await?,
                None => self.made(&mut c, "SELECT format('ALTER SYSTEM RESET %I', $1)", &[name]).await?,
            }
            sqlx::query("SELECT pg_reload_conf()").execute(&mut c).await.map_err(self.writing())?;
            close(c).await;
            Ok(())
        })
        .await?;
        let Some(value) = value else { return Ok(()) };
        let until = self.clock.monotonic() + SETTLE;
        while self.settings(&[name]).await?.get(name).map(String::as_str) != Some(value) {
            if self.clock.monotonic() >= until {
                return Err(PortError::Unknown(format!("{}: `{name}` was set, and is not in force", self.settings.label)));
            }
            self.clock.sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn make_slot(&self, name: &str) -> PortResult<()> {
        let make =
            "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
        self.change(WRITE, make, Some(name)).await
    }

    async fn drop_slot(&self, name: &str) -> PortResult<()> {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
        self.change(WRITE, drop, Some(name)).await
    }

    async fn let_log_in(&self, roles: &[String], may: bool) -> PortResult<()> {
        let trouble = self.writing();
        let word = if may { "LOGIN" } else { "NOLOGIN" };
        self.with(Doing::Writing, WRITE, |mut c| async move {
            // This session may itself have begun read-only; the change of roles is all or nothing.
            let begin = ["SET default_transaction_read_only = off", "BEGIN", sql::CANARY[0], sql::REVOKED];
            for statement in begin {
                sqlx::query(statement).execute(&mut c).await.map_err(trouble)?;
            }
            for role in roles {
                let make = "SELECT format('ALTER ROLE %I %s', rolname, $2) FROM pg_roles WHERE rolname = $1";
                self.made(&mut c, make, &[role, word]).await?;
                let record = if may {
                    "DELETE FROM muster.revoked WHERE role = $1"
                } else {
                    "INSERT INTO muster.revoked VALUES ($1) ON CONFLICT DO NOTHING"
                };
                sqlx::query(record).bind(role.clone()).execute(&mut c).await.map_err(trouble)?;
            }
            sqlx::query("COMMIT").execute(&mut c).await.map_err(trouble)?;
            close(c).await;
            Ok(())
        })
        .await
    }

    async fn end_writers(&self) -> PortResult<()> {
        let until = self.clock.monotonic() + SETTLE;
        let mut calm = 0;
        // One that is just coming up is not on the list yet: it must be empty three times in a row.
        while calm < 3 {
            self.change(READ, sql::END_WRITERS, None).await?;
            let left = self.writers().await?;
            calm = if left.is_empty() { calm + 1 } else { 0 };
            if self.clock.monotonic() >= until {
                return Err(PortError::Unknown(format!("{}: these would not end: {}", self.settings.label, left.join(", "))));
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn freeze(&self, tables: &[String], forms: &str, questions: &[String], point: &str) -> PortResult<Frozen> {
        self.freeze_tables(tables, forms, questions, point).await
    }
    async fn reload(&self) -> PortResult<()> {
        self.change(WRITE, "SELECT pg_reload_conf()", None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_names_where_each_timeline_ended() {
        let text = "1\t0/3000098\tno recovery target specified\n\n2\t0/5000100\tno recovery target specified\n";
        assert_eq!(parse_history(text).unwrap(), [(1, Lsn(0x0300_0098)), (2, Lsn(0x0500_0100))]);
        assert!(parse_history("1 nonsense").is_err());
    }
}
