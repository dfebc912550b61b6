//! The commands of a replication connection, asked and read.

use super::{PgResult, Session};
use crate::providers::port::Lsn;

/// Which cluster answers, and where its log stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub system_identifier: String,
    pub timeline: u32,
    /// Of a primary: how far its log is safe on disk. Of a standby: how far it has replayed.
    pub position: Lsn,
}

/// What `READ_REPLICATION_SLOT` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub physical: bool,
    /// From where the server keeps its log for the slot, and on which timeline; none before it was first used.
    pub restart: Option<(Lsn, u32)>,
}

impl Session {
    /// # Errors
    /// When the server refuses, is silent or gone.
    pub async fn identify(&mut self) -> PgResult<Identity> {
        const ASK: &str = "IDENTIFY_SYSTEM";
        let row = self.one(ASK).await?;
        let read = || -> Result<Identity, String> {
            Ok(Identity { system_identifier: row.text(0)?.to_owned(), timeline: row.get(1)?, position: row.get(2)? })
        };
        read().map_err(|e| self.protocol(ASK, e))
    }

    /// A setting of the server, as it shows it.
    /// # Errors
    /// When there is none of this name.
    pub async fn show(&mut self, name: &str) -> PgResult<String> {
        let ask = format!("SHOW {}", identifier(name));
        let row = self.one(&ask).await?;
        row.text(0).map(str::to_owned).map_err(|e| self.protocol(&ask, e))
    }

    /// How long the log's segments are: `16MB` is what a server says, and 16,777,216 what it means.
    /// # Errors
    /// When the server refuses, is silent or gone.
    pub async fn segment_size(&mut self) -> PgResult<u64> {
        let shown = self.show("wal_segment_size").await?;
        size(&shown).filter(|n| n.is_power_of_two()).ok_or_else(|| self.protocol("SHOW wal_segment_size", format!("`{shown}`")))
    }

    /// `None` when there is no such slot.
    /// # Errors
    /// When the server refuses, is silent or gone; PostgreSQL before 15 does not know the command.
    pub async fn read_slot(&mut self, name: &str) -> PgResult<Option<SlotState>> {
        let ask = format!("READ_REPLICATION_SLOT {}", identifier(name));
        let row = self.one(&ask).await?;
        let Some(kind) = row.maybe(0) else { return Ok(None) };
        let restart = match (row.maybe(1), row.maybe(2)) {
            (Some(_), Some(_)) => {
                let both = row.get(1).and_then(|position| Ok((position, row.get(2)?)));
                Some(both.map_err(|e| self.protocol(&ask, e))?)
            }
            _ => None,
        };
        Ok(Some(SlotState { physical: kind == "physical", restart }))
    }

    /// A physical slot that keeps the log from now on. A temporary one is gone with this session.
    /// # Errors
    /// When the server refuses (a slot of this name is there: SQLSTATE 42710), is silent or gone.
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> PgResult<()> {
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let options = if self.version() >= 150_000 { "(RESERVE_WAL)" } else { "RESERVE_WAL" };
        let ask = format!("CREATE_REPLICATION_SLOT {}{temporary} PHYSICAL {options}", identifier(name));
        self.query(&ask).await.map(drop)
    }

    /// # Errors
    /// When the server refuses (the slot is in use), is silent or gone.
    pub async fn drop_slot(&mut self, name: &str) -> PgResult<()> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", identifier(name))).await.map(drop)
    }

    /// The history file of a timeline after the first: its name and content.
    /// # Errors
    /// When the server has none, refuses, is silent or gone.
    pub async fn timeline_history(&mut self, timeline: u32) -> PgResult<(String, Vec<u8>)> {
        let ask = format!("TIMELINE_HISTORY {timeline}");
        let row = self.one(&ask).await?;
        let both = row.text(0).and_then(|name| Ok((name.to_owned(), row.text(1)?.as_bytes().to_vec())));
        both.map_err(|e| self.protocol(&ask, e))
    }
}

/// A name as the replication grammar takes it whatever it holds.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL and the replication grammar take it whatever it holds.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn size(shown: &str) -> Option<u64> {
    let digits = shown.find(|c: char| !c.is_ascii_digit()).unwrap_or(shown.len());
    let number: u64 = shown[..digits].parse().ok()?;
    let unit = match &shown[digits..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_read_and_written() {
        assert_eq!((size("16MB"), size("1GB"), size("65536"), size("1 MB")), (Some(16 << 20), Some(1 << 30), Some(65536), None));
        assert_eq!((identifier("a\"b"), literal("it's")), ("\"a\"\"b\"".to_owned(), "'it''s'".to_owned()));
    }
}
