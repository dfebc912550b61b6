//! A snapshot: what was backed up, when, by whom, from where, and the chunks of its list. JSON inside a sealed
//! object whose name is the snapshot's identifier. It is written last: if it is there, all of it is.

use super::names::Id;
use crate::providers::port::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When reading began.
    pub time: jiff::Timestamp,
    pub duration_ms: u64,
    pub host: String,
    pub user: String,
    /// `muster 0.1.0`.
    pub program: String,
    pub source: Source,
    #[serde(default)]
    pub tags: Vec<String>,
    /// The snapshot that it was compared with, to read only what changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// The run that made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    pub list: Vec<Id>,
    pub stats: Stats,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Source {
    /// A folder or a file of a file system, by its absolute path.
    Tree { path: String },
    /// Objects of a bucket: `s3://bucket/prefix`.
    Bucket { url: String },
    /// Standard input, under this name.
    Stream { name: String },
    /// A base backup of a PostgreSQL cluster. With the log from `start` to `stop` (`wal/SYSTEM/`) it is a cluster again;
    /// with more of the log, that of any later instant.
    Postgres {
        /// Where the server was, without a password.
        url: String,
        system_identifier: String,
        /// As `server_version_num` says it: 150018, 180004.
        version: u32,
        timeline: u32,
        start: Lsn,
        stop: Lsn,
        wal_segment_size: u32,
        from_standby: bool,
        /// Where the server's tablespaces are, by number. Their content is below `pg_tblspc/NUMBER/`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        tablespaces: BTreeMap<String, String>,
    },
}

impl Source {
    #[must_use]
    pub fn shown(&self) -> &str {
        match self {
            Self::Tree { path } => path,
            Self::Bucket { url } => url,
            Self::Stream { name } => name,
            Self::Postgres { url, .. } => url,
        }
    }
}

/// What there was, and what it took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Files, objects and hard links.
    pub files: u64,
    pub folders: u64,
    /// Links, devices and the like.
    pub others: u64,
    /// Of all files' content.
    pub bytes: u64,
    /// Of content that was read, since it could not be known to be unchanged.
    pub bytes_read: u64,
    /// Of content that was not held already, before compression.
    pub bytes_new: u64,
    /// All that was written.
    pub bytes_stored: u64,
    pub chunks_new: u64,
    /// Files that changed while they were read.
    pub changed_while_read: u64,
    /// Files that could not be read, and are not in the snapshot.
    pub unreadable: u64,
    /// Pages of a database whose checksums are wrong.
    #[serde(default, skip_serializing_if = "is_none")]
    pub corrupt_pages: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks for it
fn is_none(count: &u64) -> bool {
    *count == 0
}
