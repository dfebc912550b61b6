//! What a backup of a bucket holds: one object that is written last, so that its presence means that the
//! backup is complete. It names every object with the digest of the bytes that were read.

use super::{contract::failure, shared::*};
use crate::model::{effect::Failure, ids::*};
use crate::providers::port::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub run: RunId,
    pub bucket: BucketName,
    pub from: RegionName,
    pub prefix: String,
    pub at: jiff::Timestamp,
    pub copied: u64,
    pub skipped: u64,
    pub bytes_copied: u64,
    pub objects: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub key: String,
    pub size: u64,
    pub sha256: String,
    /// The source's.
    pub etag: Option<String>,
    pub version: Option<String>,
    /// The copy's.
    pub copy_etag: Option<String>,
}

pub(crate) const MANIFESTS: &str = ".muster/manifests/";

pub(crate) async fn read(objects: &dyn ObjectRead, key: &str) -> Result<Manifest, Failure> {
    let (_, bytes) = read_all(objects, key).await.map_err(|e| failure(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::new("manifest_unreadable", format!("manifest {key}: {e}")))
}

/// The latest manifest of copies of that bucket from that region, newest first by the store's own clock.
/// With `prefix`, one of exactly that part of the bucket.
pub(crate) async fn latest(
    objects: &dyn ObjectRead,
    bucket: &BucketName,
    from: &RegionName,
    prefix: Option<&str>,
) -> Result<Option<(String, Manifest)>, Failure> {
    let mut keys = list_all(objects, MANIFESTS).await.map_err(|e| failure(&e))?;
    keys.sort_by(|a, b| (b.modified, &b.key).cmp(&(a.modified, &a.key)));
    // Stores that tell whole seconds (SeaweedFS) tell the same of two that came shortly one after the other.
    let mut newest: Option<(Option<jiff::Timestamp>, String, Manifest)> = None;
    for meta in keys {
        if newest.as_ref().is_some_and(|(modified, ..)| *modified != meta.modified) {
            break;
        }
        let manifest = read(objects, &meta.key).await?;
        let fits = manifest.bucket == *bucket && manifest.from == *from && prefix.is_none_or(|p| p == manifest.prefix);
        if fits && newest.as_ref().is_none_or(|(_, _, other)| other.at < manifest.at) {
            newest = Some((meta.modified, meta.key, manifest));
        }
    }
    Ok(newest.map(|(_, key, manifest)| (key, manifest)))
}
