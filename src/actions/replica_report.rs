//! What a verification of a replica comes to, as people and machines read it.

use super::replica::{Note, ReplicaState};
use crate::providers::port::Lsn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a row differs, seen from the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// On both, with other content.
    Changed,
    /// Not on the replica.
    Missing,
    /// On the replica alone.
    Extra,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RowDifference {
    pub kind: Kind,
    /// Block and line, of a physical replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The row's primary key; empty when the table has none, or the row was gone when it was asked for.
    pub key: BTreeMap<String, Option<String>>,
    /// The columns that differ, of a row that both have.
    pub columns: Vec<String>,
}

/// Blocks that a server cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Damage {
    /// `primary` or `standby`.
    pub side: String,
    pub block: Option<u32>,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    Equal,
    Different,
    /// It could not be compared: `why` says so.
    Unknown,
    /// Its content is not meant to be on the replica.
    NotReplicated,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TableReport {
    pub table: String,
    pub state: TableState,
    /// Rows that were compared.
    pub rows: u64,
    /// Of the replica, at the last look at this table.
    #[schemars(with = "Option<String>")]
    pub at: Option<Lsn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<RowDifference>,
    /// So many more rows differ than are listed.
    #[serde(default)]
    pub more: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<Damage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// It was compared by an earlier run that this one went on with.
    #[serde(default)]
    pub resumed: bool,
}

impl TableReport {
    pub(crate) fn new(table: &str, state: TableState) -> Self {
        let table = table.to_owned();
        Self { table, state, rows: 0, at: None, differences: Vec::new(), more: 0, damage: Vec::new(), why: None, resumed: false }
    }
    pub(crate) fn unknown(table: &str, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..Self::new(table, TableState::Unknown) }
    }
    #[must_use]
    pub fn different_rows(&self) -> u64 {
        self.differences.len() as u64 + self.more
    }
    /// Takes in what was found in a part of it.
    pub(crate) fn add(&mut self, found: Found, limit: usize) {
        self.rows += found.rows;
        self.at = self.at.max(found.at);
        self.more += found.more;
        for one in found.differences {
            // Ranges of keys may come to overlap while rows are removed.
            if !one.key.is_empty() && self.differences.contains(&one) {
                continue;
            }
            if self.differences.len() < limit { self.differences.push(one) } else { self.more += 1 }
        }
        self.damage.extend(found.damage);
        if self.different_rows() > 0 || !self.damage.is_empty() {
            self.state = TableState::Different;
        }
        if let Some(why) = found.why {
            // A difference that was found stays one, though not all could be looked at.
            if self.state == TableState::Equal {
                self.state = TableState::Unknown;
            }
            self.why = Some(why);
        }
    }
}

/// What was found in a part of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub rows: u64,
    pub at: Option<Lsn>,
    pub differences: Vec<RowDifference>,
    pub more: u64,
    pub damage: Vec<Damage>,
    /// Why some of it could not be compared.
    pub why: Option<String>,
}

/// Something other than rows that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// `index public.orders_pkey`, `setting max_connections`.
    pub what: String,
    pub primary: Option<String>,
    pub replica: Option<String>,
    /// It makes the replica no good; otherwise it is named and no more.
    pub bad: bool,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaKind {
    Physical,
    Logical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It streams, and what was compared is equal.
    Good,
    Different,
    NotStreaming,
    /// Something that should have been compared was not.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    pub verdict: Verdict,
    pub replication: ReplicaKind,
    pub replica: ReplicaState,
    pub notes: Vec<Note>,
    /// `null` when it was not compared.
    pub structure: Option<Vec<Difference>>,
    /// `null` when content was not compared.
    pub tables: Option<Vec<TableReport>>,
    /// Tables of an earlier run are in it: then this is no picture of one moment.
    pub resumed: bool,
    /// It was stopped before it was done.
    pub interrupted: bool,
}

impl Report {
    pub(crate) fn judge(&mut self) {
        let tables = || self.tables.iter().flatten();
        let different = tables().any(|t| t.state == TableState::Different) || self.structure.iter().flatten().any(|d| d.bad);
        let unknown = self.interrupted || tables().any(|t| t.state == TableState::Unknown);
        self.verdict = if different {
            Verdict::Different
        } else if self.replica.trouble().is_some() {
            Verdict::NotStreaming
        } else if unknown {
            Verdict::Unknown
        } else {
            Verdict::Good
        };
    }
    /// Where the replica was when it was last looked at.
    #[must_use]
    pub fn at(&self) -> Option<Lsn> {
        self.tables.iter().flatten().filter_map(|t| t.at).max()
    }
}
