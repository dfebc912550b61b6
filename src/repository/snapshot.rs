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
    Stream {
        name: String,
        /// Of a database that was dumped: where, without a password. Two servers may have databases of one name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<String>,
    },
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
            Self::Stream { name, .. } => name,
            Self::Postgres { url, .. } => url,
        }
    }
}

impl Snapshot {
    /// Snapshots with the same take each other's places when a rule lets go of the older ones: those of one source on one
    /// host; of a database those of one cluster, from wherever it was backed up, under whatever address and position.
    #[must_use]
    pub fn series(&self) -> String {
        match &self.source {
            Source::Postgres { system_identifier, .. } => serde_json::json!(["postgres", system_identifier]),
            source => serde_json::json!([self.host, source]),
        }
        .to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, source: Source) -> String {
        let snapshot = Snapshot {
            time: jiff::Timestamp::UNIX_EPOCH,
            duration_ms: 0,
            host: host.to_owned(),
            user: String::new(),
            program: String::new(),
            source,
            tags: Vec::new(),
            parent: None,
            run: None,
            list: Vec::new(),
            stats: Stats::default(),
        };
        snapshot.series()
    }
    fn of_dump(name: &str, server: Option<&str>) -> String {
        of("one", Source::Stream { name: name.to_owned(), of: server.map(str::to_owned) })
    }
    fn cluster(system: &str, url: &str, start: u64) -> Source {
        Source::Postgres {
            url: url.to_owned(),
            system_identifier: system.to_owned(),
            version: 150_018,
            timeline: 1,
            start: Lsn(start),
            stop: Lsn(start + 100),
            wal_segment_size: 16 << 20,
            from_standby: false,
            tablespaces: BTreeMap::new(),
        }
    }

    /// A rule keeps the newest of each series whatever else it says: were each base backup one of its own, none would ever go,
    /// nor the log from the first on.
    #[test]
    fn base_backups_of_one_cluster_take_each_others_places() {
        let first = of("one", cluster("7", "postgres://db1/", 1));
        assert_eq!(of("one", cluster("7", "postgres://db1/", 5000)), first);
        // The standby was promoted, and is backed up from another machine.
        assert_eq!(of("two", cluster("7", "postgres://db2/", 9000)), first);
        assert_ne!(of("one", cluster("8", "postgres://db1/", 1)), first);
        let tree = |host, path: &str| of(host, Source::Tree { path: path.to_owned() });
        assert_eq!(tree("one", "/a"), tree("one", "/a"));
        assert!(tree("one", "/a") != tree("two", "/a") && tree("one", "/a") != tree("one", "/b"));
        let dump = |of: Option<&str>| of_dump("app.dump", of);
        assert!(dump(Some("postgres://db1/app")) != dump(Some("postgres://db2/app")) && dump(None) == dump(None));
    }
}
