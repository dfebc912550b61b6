//! What is known of a bucket beside its objects' bodies: versions, what protects it, and how far it is replicated.

use super::port::{LockMode, ObjectMeta};
use serde::{Deserialize, Serialize};

/// One version of an object, or the marker that it was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectVersion {
    pub key: String,
    pub size: u64,
    pub etag: Option<String>,
    /// `None` for what was written while the bucket kept no versions.
    pub version: Option<String>,
    pub modified: Option<jiff::Timestamp>,
    /// It says that the object was deleted.
    pub marker: bool,
    /// Nothing is newer under this key.
    pub latest: bool,
}

/// Where a listing of versions goes on. Without a version: after all versions of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionMark {
    pub key: String,
    pub version: Option<String>,
}

pub struct VersionPage {
    /// In the order of their keys' bytes within the page, newest first within a key.
    pub versions: Vec<ObjectVersion>,
    pub next: Option<VersionMark>,
}

/// An object as it stands at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStanding {
    pub meta: ObjectMeta,
    /// Encrypted with a key of KMS: then its etag says nothing of its content.
    pub kms: bool,
    /// How far it is replicated, as the server says: `PENDING`, `COMPLETED`, `FAILED`; `REPLICA` for a copy.
    pub replication: Option<String>,
}

impl From<ObjectMeta> for ObjectStanding {
    fn from(meta: ObjectMeta) -> Self {
        Self { meta, kms: false, replication: None }
    }
}

/// For how long a bucket retains by itself what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockDefault {
    pub mode: LockMode,
    pub days: u32,
}

/// Does a bucket have Object Lock?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketLock {
    Absent,
    /// With what it retains by default, if it does.
    Present(Option<LockDefault>),
}

/// One rule by which a bucket is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationRule {
    pub id: String,
    pub enabled: bool,
    /// Of the keys that it is about, without the prefix that the estate gives the bucket.
    pub prefix: String,
    /// Only objects with certain tags.
    pub tagged: bool,
    pub delete_markers: bool,
    /// The name of the bucket that receives the copies.
    pub to: String,
}

impl ReplicationRule {
    /// Is an object of this key replicated by it, as far as a key tells?
    #[must_use]
    pub fn covers(&self, key: &str) -> bool {
        self.enabled && !self.tagged && key.starts_with(&self.prefix)
    }
}
