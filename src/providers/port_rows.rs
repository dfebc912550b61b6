//! Rows of a database, as comparisons of a replica with its primary see them: in single snapshots, by place in the
//! table's file (a physical replica has each row at the same place) or by key (a logical one has not).

use super::port::{Lsn, PortResult};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A column, as a checksum must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// As SQL writes the type, without its length.
    pub kind: String,
    /// It may be null.
    pub nullable: bool,
}

/// A table whose rows can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFile {
    /// With its schema, quoted as SQL needs it.
    pub name: String,
    /// How many blocks its file has.
    pub blocks: u32,
    /// Its content is not replicated.
    pub unlogged: bool,
    pub columns: Vec<Column>,
    /// The columns of its primary key, or of its replica identity; empty when it has none.
    pub key: Vec<String>,
    /// How text in the key is sorted, with the version of the rules; nothing when the key has no text.
    pub sorted: Option<String>,
}

/// What the rows in a stretch of a table's file, or in a range of its keys, amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Of a stretch: it begins at block `number * per`. Of a range: which of those that were asked for.
    pub number: u32,
    pub rows: u64,
    /// Of every row's content (and place, in a stretch); their order does not matter.
    pub sum: String,
}

/// A piece of a table's file: stretches of `per` blocks, the first and the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub per: u32,
    pub first: u32,
    pub last: u32,
    /// The last one goes to the end of the file, wherever that is.
    pub open: bool,
}

/// One version of one row. Place and birth name it for ever: what they name is never changed, only
/// removed, and a physical replica has it at the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub block: u32,
    pub line: u32,
    /// The transaction that wrote it.
    pub born: u32,
    /// Some transaction has removed it, or tried to, or locked it.
    pub touched: bool,
    pub digest: String,
}

/// Values of the columns of a key, as text.
pub type Key = Vec<String>;

/// Rows whose key is above `after` and at most `upto`; without a bound where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    pub after: Option<Key>,
    pub upto: Option<Key>,
}

/// A row by its key. Its birth says nothing on another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    pub key: Key,
    pub born: u32,
    pub touched: bool,
    pub digest: String,
}

/// How a table is compared by key: both servers are asked in these words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByKey {
    pub table: String,
    /// Those that are replicated.
    pub columns: Vec<Column>,
    /// Name and type.
    pub key: Vec<(String, String)>,
    /// Only rows of which this is true, in SQL: a publication may have a filter.
    pub filter: Option<String>,
    /// The two servers sort text in different ways: sort it by its bytes.
    pub bytewise: bool,
}

/// A row that differs, as it is told: values of its key, digests of the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowText {
    pub block: u32,
    pub line: u32,
    pub key: BTreeMap<String, Option<String>>,
    pub columns: BTreeMap<String, String>,
}

/// What was seen of one table in one snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Look<T> {
    /// On a primary, if asked for: a standby that has replayed this shows all that this look shows. On a
    /// standby: what it had replayed at least.
    pub at: Lsn,
    /// Every transaction below it had ended.
    pub horizon: u64,
    /// A transaction may have been committing: in the log, and not in this look.
    pub busy: bool,
    /// The table's file and columns; looks at different shapes cannot be compared.
    pub shape: String,
    pub seen: Vec<T>,
}

/// One connection through which rows are compared.
#[async_trait]
pub trait RowRead: Send {
    /// The tables of these names (partitions of a partitioned one); all of the user's when there are none.
    async fn tables(&mut self, names: &[String]) -> PortResult<Vec<TableFile>>;
    /// What the rows of each stretch of a piece amount to, in one snapshot. `position`: of a primary, where a standby
    /// must have come to. Sums of different seeds have nothing in common.
    async fn stretches(&mut self, table: &TableFile, piece: Piece, seed: i64, position: bool) -> PortResult<Look<Stretch>>;
    /// Every row in these ranges of blocks, first and last, in one snapshot.
    async fn versions(&mut self, table: &str, ranges: &[(u32, u32)], position: bool) -> PortResult<Look<Version>>;
    /// The rows at these places, as they are told.
    async fn rows_at(&mut self, table: &TableFile, places: &[(u32, u32)]) -> PortResult<Vec<RowText>>;
    /// How far a standby has replayed.
    async fn replayed(&mut self) -> PortResult<Lsn>;

    /// The key of the row that is so many rows above `after`; nothing when there are fewer.
    async fn bound(&mut self, how: &ByKey, after: Option<&Key>, rows: u64) -> PortResult<Option<Key>> {
        let _ = (how, after, rows);
        Ok(None)
    }
    /// What the rows of each range amount to, in one snapshot.
    async fn ranges(&mut self, how: &ByKey, ranges: &[KeyRange], seed: i64, position: bool) -> PortResult<Look<Stretch>> {
        let _ = (how, ranges, seed, position);
        Err(no_keys())
    }
    /// Every row of a range, in one snapshot.
    async fn keyed(&mut self, how: &ByKey, range: &KeyRange, position: bool) -> PortResult<Look<Keyed>> {
        let _ = (how, range, position);
        Err(no_keys())
    }
    /// The rows of these keys, as they are told.
    async fn rows_of(&mut self, how: &ByKey, keys: &[Key]) -> PortResult<Vec<RowText>> {
        let _ = (how, keys);
        Err(no_keys())
    }
    /// How far the subscriber behind this slot has said that it has applied.
    async fn confirmed(&mut self, slot: &str) -> PortResult<Option<Lsn>> {
        let _ = slot;
        Ok(None)
    }
}

fn no_keys() -> super::port::PortError {
    super::port::PortError::Config("this server is not compared by key".into())
}
