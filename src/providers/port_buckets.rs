//! What is known of a bucket beside its objects' bodies: versions, checksums, what protects it, and how far it is replicated.

use super::port::{LockMode, ObjectMeta};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// The checksums that a server keeps of an object, by the names of their algorithms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectSums {
    /// Of the very object that these are of.
    pub etag: Option<String>,
    /// Of the whole content, whatever parts it came in.
    pub whole: BTreeMap<String, String>,
    /// Made of the checksums of an upload's parts.
    pub of_parts: BTreeMap<String, String>,
    /// How large the parts are; empty where the server does not tell.
    pub parts: Vec<u64>,
}

impl ObjectSums {
    /// With what HEAD told of the same object, which some servers (SeaweedFS) tell nowhere else.
    #[must_use]
    pub fn and_of_head(mut self, checksum: Option<&str>) -> Self {
        if let Some((name, sum)) = checksum.and_then(|sum| sum.split_once(':')) {
            let (place, sum) = sum.split_once('-').map_or((&mut self.whole, sum), |(sum, _)| (&mut self.of_parts, sum));
            place.entry(name.to_owned()).or_insert_with(|| sum.to_owned());
        }
        self
    }

    /// Is the content the same? `None`: these two cannot be compared.
    #[must_use]
    pub fn same(&self, other: &Self) -> Option<bool> {
        let agree = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>| {
            let mut common = one.iter().filter_map(|(name, sum)| Some(sum == other.get(name)?)).peekable();
            common.peek().is_some().then(|| common.all(|same| same))
        };
        // What was cut at the same places has other such checksums only if it holds something else.
        let cut_alike = !self.parts.is_empty() && self.parts == other.parts;
        agree(&self.whole, &other.whole).or_else(|| cut_alike.then(|| agree(&self.of_parts, &other.of_parts)).flatten())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(whole: &[(&str, &str)], of_parts: &[(&str, &str)], parts: &[u64]) -> ObjectSums {
        let map = |all: &[(&str, &str)]| all.iter().map(|(name, sum)| ((*name).to_owned(), (*sum).to_owned())).collect();
        ObjectSums { etag: None, whole: map(whole), of_parts: map(of_parts), parts: parts.to_vec() }
    }

    #[test]
    fn sums_are_compared_only_with_their_like() {
        let one = sums(&[("crc32", "A"), ("sha256", "S")], &[], &[]);
        assert_eq!(one.same(&sums(&[("crc32", "A")], &[], &[])), Some(true));
        assert_eq!(one.same(&sums(&[("crc32", "A"), ("sha256", "T")], &[], &[])), Some(false), "one that differs is enough");
        assert_eq!(one.same(&sums(&[("crc32c", "A")], &[], &[])), None);
        assert_eq!(one.same(&sums(&[], &[("crc32", "A")], &[5, 1])), None, "of parts, and of the whole");
        let cut = sums(&[], &[("sha256", "S")], &[5, 5, 1]);
        assert_eq!(cut.same(&sums(&[], &[("sha256", "S")], &[5, 5, 1])), Some(true));
        assert_eq!(cut.same(&sums(&[], &[("sha256", "T")], &[5, 5, 1])), Some(false));
        assert_eq!(cut.same(&sums(&[], &[("sha256", "T")], &[6, 4, 1])), None, "cut at other places");
        let unknown = sums(&[], &[("sha256", "S")], &[]);
        assert_eq!(unknown.same(&unknown), None, "nobody says where they were cut");
        // What HEAD says of three parts is worth something once it is known where they were cut.
        let sizes = sums(&[], &[], &[5, 5, 1]);
        let told = |sum| sizes.clone().and_of_head(Some(sum));
        assert_eq!(told("crc32:A=-3").same(&told("crc32:A=-3")), Some(true));
        assert_eq!(told("crc32:A=-3").same(&told("crc32:B=-3")), Some(false));
        assert_eq!(told("crc32:A=").same(&told("crc32:A=-3")), None);
        assert_eq!(sizes.clone().and_of_head(None).same(&sizes), None);
    }
}
