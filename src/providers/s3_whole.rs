//! A bucket as a whole: its versions, and what it promises (Object Lock, replication). Objects one by one are in `s3`.

use super::aws::{Doing, explain, instant};
use super::port::*;
use super::s3::{S3Bucket, known, tag, without_locks};
use aws_sdk_s3::types::{self, ObjectLockEnabled, ObjectLockRetentionMode};

pub(super) async fn versions(bucket: &S3Bucket, prefix: &str, after: Option<&VersionMark>) -> PortResult<VersionPage> {
    let what = bucket.name("ListObjectVersions", prefix);
    let call = bucket.clients.s3().await?.read.list_object_versions().bucket(&bucket.bucket).prefix(bucket.full(prefix));
    let call = call.set_key_marker(after.map(|mark| bucket.full(&mark.key)));
    let call = call.set_version_id_marker(after.and_then(|mark| mark.version.clone()));
    let page = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
    let mut versions: Vec<ObjectVersion> = page.versions().iter().filter_map(|v| version(bucket, v)).collect();
    versions.extend(page.delete_markers().iter().filter_map(|m| marker(bucket, m)));
    versions.sort_by(|a, b| (&a.key, b.latest, b.modified).cmp(&(&b.key, a.latest, a.modified)));
    let next = page.next_key_marker().filter(|_| page.is_truncated() == Some(true)).map(|key| VersionMark {
        key: key.strip_prefix(bucket.prefix()).unwrap_or(key).to_owned(),
        version: page.next_version_id_marker().map(str::to_owned),
    });
    if next.is_none() && page.is_truncated() == Some(true) {
        return Err(PortError::Refused(format!("{what}: the server says that there is more, but not how to go on")));
    }
    // MiniStack's markers of what has no version do.
    if next.is_some() && next.as_ref() == after {
        return Err(PortError::Refused(format!("{what}: the list leads back to where it was")));
    }
    Ok(VersionPage { versions, next })
}

fn version(bucket: &S3Bucket, of: &types::ObjectVersion) -> Option<ObjectVersion> {
    Some(ObjectVersion {
        key: of.key()?.strip_prefix(bucket.prefix())?.to_owned(),
        size: of.size().and_then(|s| u64::try_from(s).ok())?,
        etag: tag(of.e_tag()),
        version: known(of.version_id()),
        modified: of.last_modified().and_then(instant),
        marker: false,
        latest: of.is_latest() == Some(true),
    })
}

fn marker(bucket: &S3Bucket, of: &types::DeleteMarkerEntry) -> Option<ObjectVersion> {
    Some(ObjectVersion {
        key: of.key()?.strip_prefix(bucket.prefix())?.to_owned(),
        size: 0,
        etag: None,
        version: known(of.version_id()),
        modified: of.last_modified().and_then(instant),
        marker: true,
        latest: of.is_latest() == Some(true),
    })
}

pub(super) async fn keeps_versions(bucket: &S3Bucket) -> PortResult<bool> {
    let what = bucket.name("GetBucketVersioning", "");
    let call = bucket.clients.s3().await?.read.get_bucket_versioning().bucket(&bucket.bucket);
    let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
    Ok(answer.status() == Some(&types::BucketVersioningStatus::Enabled))
}

pub(super) async fn lock(bucket: &S3Bucket) -> PortResult<BucketLock> {
    let what = bucket.name("GetObjectLockConfiguration", "");
    let call = bucket.clients.s3().await?.read.get_object_lock_configuration().bucket(&bucket.bucket);
    let answer = match call.send().await.map_err(|e| explain(&e, Doing::Reading, &what)) {
        Ok(answer) => answer,
        Err(e) if without_locks(&e) => return Ok(BucketLock::Absent),
        Err(e) => return Err(e),
    };
    let Some(lock) = answer.object_lock_configuration().filter(|lock| lock.object_lock_enabled() == Some(&ObjectLockEnabled::Enabled))
    else {
        return Ok(BucketLock::Absent);
    };
    Ok(BucketLock::Present(lock.rule().and_then(|rule| rule.default_retention()).and_then(retained)))
}

fn retained(by: &types::DefaultRetention) -> Option<LockDefault> {
    let days = by.days().or_else(|| by.years().map(|years| years.saturating_mul(365)))?;
    let mode = match by.mode()? {
        ObjectLockRetentionMode::Compliance => LockMode::Compliance,
        _ => LockMode::Governance,
    };
    Some(LockDefault { mode, days: u32::try_from(days).ok()? })
}

/// None where nobody made any, and where the server knows no replication.
pub(super) async fn replication_rules(bucket: &S3Bucket) -> PortResult<Vec<ReplicationRule>> {
    let what = bucket.name("GetBucketReplication", "");
    let call = bucket.clients.s3().await?.read.get_bucket_replication().bucket(&bucket.bucket);
    match call.send().await.map_err(|e| explain(&e, Doing::Reading, &what)) {
        Ok(answer) => {
            let rules = answer.replication_configuration().map(types::ReplicationConfiguration::rules).unwrap_or_default();
            Ok(rules.iter().filter_map(|of| rule(bucket, of)).collect())
        }
        Err(PortError::NotFound(text)) if text.contains("ReplicationConfigurationNotFound") => Ok(Vec::new()),
        // SeaweedFS answers 409 for what it does not know.
        Err(PortError::Refused(text)) if ["NotImplemented", "MethodNotAllowed", "OperationAborted"].iter().any(|w| text.contains(w)) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

fn rule(bucket: &S3Bucket, of: &types::ReplicationRule) -> Option<ReplicationRule> {
    let filter = of.filter();
    let both = filter.and_then(types::ReplicationRuleFilter::and);
    #[allow(deprecated)]
    let old = of.prefix();
    let whole = filter.and_then(|f| f.prefix()).or_else(|| both.and_then(|b| b.prefix())).or(old).unwrap_or_default();
    // Of what lies outside of the part of the bucket that is meant, nothing is said.
    let prefix = match whole.strip_prefix(bucket.prefix()) {
        Some(inside) => inside,
        None if bucket.prefix().starts_with(whole) => "",
        None => return None,
    };
    let markers = of.delete_marker_replication().and_then(|d| d.status());
    let to = of.destination().map(types::Destination::bucket).unwrap_or_default();
    Some(ReplicationRule {
        id: of.id().unwrap_or_default().to_owned(),
        enabled: *of.status() == types::ReplicationRuleStatus::Enabled,
        prefix: prefix.to_owned(),
        tagged: filter.and_then(types::ReplicationRuleFilter::tag).is_some() || both.is_some_and(|b| !b.tags().is_empty()),
        delete_markers: markers == Some(&types::DeleteMarkerReplicationStatus::Enabled),
        to: to.rsplit(':').next().unwrap_or_default().to_owned(),
    })
}
