//! Objects in one S3 bucket. Keys are seen without the prefix that the estate gives the bucket, so that
//! two regions' buckets compare whatever their prefixes are.

use super::aws::{AwsClients, Doing, explain, instant};
use super::port::*;
use async_trait::async_trait;
use aws_sdk_s3::{
    config::timeout::TimeoutConfig,
    operation::{get_object::GetObjectOutput, head_object::HeadObjectOutput, list_objects_v2::builders::ListObjectsV2FluentBuilder},
    primitives::{ByteStream, DateTime},
    types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, ObjectLockRetention, ObjectLockRetentionMode},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The largest body that one PutObject takes here.
const LARGEST: usize = 64 * 1024 * 1024;
/// An upload may take so long, and longer by its size at this many bytes a second.
const UPLOAD: Duration = Duration::from_mins(2);
const SLOWEST: u64 = 4 * 1024 * 1024;
/// The longest pause within a body.
const STALL: Duration = Duration::from_secs(30);
/// Of every body, beside the SHA-256 that its signature has already: quick to compute, and known to every server.
pub(super) const CHECKSUM: ChecksumAlgorithm = ChecksumAlgorithm::Crc32;
/// `If-None-Match`: of whatever content, there must be no object.
pub(super) const ANY: &str = "*";
/// So many objects are asked about at a time.
const AT_ONCE: usize = 16;

pub struct S3Bucket {
    pub(super) clients: Arc<AwsClients>,
    pub(super) bucket: String,
    prefix: String,
}

impl S3Bucket {
    #[must_use]
    pub fn new(clients: Arc<AwsClients>, bucket: String, prefix: String) -> Self {
        Self { clients, bucket, prefix }
    }
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
    pub(super) fn name(&self, call: &str, key: &str) -> String {
        format!("{call} s3://{}/{}{key}", self.bucket, self.prefix)
    }
    fn listed(&self, object: &aws_sdk_s3::types::Object) -> Option<ObjectMeta> {
        let key = object.key()?.strip_prefix(&self.prefix)?.to_owned();
        let size = object.size().and_then(|s| u64::try_from(s).ok())?;
        let modified = object.last_modified().and_then(instant);
        Some(ObjectMeta { key, size, etag: tag(object.e_tag()), version: None, modified, metadata: BTreeMap::new(), checksum: None })
    }
    async fn with_etag(&self, listed: ObjectMeta) -> PortResult<ObjectMeta> {
        if listed.etag.is_some() {
            return Ok(listed);
        }
        let looked = self.head(&listed.key).await?;
        Ok(ObjectMeta { etag: looked.and_then(|meta| meta.etag), ..listed })
    }
}

/// Without the quotes, which not every server sends.
pub(super) fn tag(etag: Option<&str>) -> Option<String> {
    etag.map(|t| t.trim_matches('"').to_owned())
}

pub(super) fn known(version: Option<&str>) -> Option<String> {
    version.filter(|v| *v != "null").map(str::to_owned)
}

fn sorted(metadata: Option<&std::collections::HashMap<String, String>>) -> BTreeMap<String, String> {
    metadata.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn size(length: Option<i64>) -> u64 {
    length.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// The time limit for a call that carries or copies so many bytes.
pub(super) fn limited(size: u64) -> aws_sdk_s3::config::Builder {
    let limit = UPLOAD + Duration::from_secs(size / SLOWEST);
    aws_sdk_s3::config::Config::builder().timeout_config(TimeoutConfig::builder().operation_timeout(limit).build())
}

/// The answers of HEAD and GET say the same things by methods of the same names.
macro_rules! described {
    ($key:expr, $answer:expr) => {{
        let (key, answer) = ($key, $answer);
        // Then it must say of how many, or it would be taken for one of the whole.
        let of_parts = answer.checksum_type() == Some(&ChecksumType::Composite);
        let checksums = [
            ("sha256", answer.checksum_sha256()),
            ("crc64nvme", answer.checksum_crc64_nvme()),
            ("crc32c", answer.checksum_crc32_c()),
            ("crc32", answer.checksum_crc32()),
            ("sha1", answer.checksum_sha1()),
        ];
        ObjectMeta {
            key: key.to_owned(),
            size: size(answer.content_length()),
            etag: tag(answer.e_tag()),
            version: known(answer.version_id()),
            modified: when(answer.last_modified()),
            metadata: sorted(answer.metadata()),
            checksum: checksums
                .iter()
                .find_map(|(name, sum)| sum.map(|sum| format!("{name}:{sum}")))
                .filter(|sum| !of_parts || sum.contains('-')),
        }
    }};
}

fn of_head(key: &str, head: &HeadObjectOutput) -> ObjectMeta {
    described!(key, head)
}

fn of_get(key: &str, got: &GetObjectOutput) -> ObjectMeta {
    described!(key, got)
}

fn when(at: Option<&DateTime>) -> Option<jiff::Timestamp> {
    at.and_then(instant)
}

#[async_trait]
impl ObjectRead for S3Bucket {
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        let page = self.page(prefix, |call| call.set_continuation_token(after.map(str::to_owned))).await?;
        if page.next.is_some() && page.next.as_deref() == after {
            return Err(PortError::Refused(format!("{}: the list leads back to where it was", self.name("ListObjectsV2", prefix))));
        }
        Ok(page)
    }

    async fn list_behind(&self, prefix: &str, key: &str) -> PortResult<ObjectPage> {
        self.page(prefix, |call| call.start_after(self.full(key))).await
    }

    async fn versions(&self, prefix: &str, after: Option<&VersionMark>) -> PortResult<VersionPage> {
        super::s3_whole::versions(self, prefix, after).await
    }

    async fn standing(&self, key: &str) -> PortResult<Option<ObjectStanding>> {
        let Some(head) = self.look(key).await? else { return Ok(None) };
        let kms = head.server_side_encryption().is_some_and(|with| with.as_str().starts_with("aws:kms"));
        let replication = head.replication_status().map(|status| status.as_str().to_owned());
        Ok(Some(ObjectStanding { meta: of_head(key, &head), kms, replication }))
    }

    async fn sums(&self, key: &str) -> PortResult<Option<ObjectSums>> {
        super::s3_sums::sums(self, key).await
    }

    async fn keeps_versions(&self) -> PortResult<bool> {
        super::s3_whole::keeps_versions(self).await
    }

    async fn lock(&self) -> PortResult<BucketLock> {
        super::s3_whole::lock(self).await
    }

    async fn replication_rules(&self) -> PortResult<Vec<ReplicationRule>> {
        super::s3_whole::replication_rules(self).await
    }

    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        Ok(self.look(key).await?.map(|head| of_head(key, &head)))
    }

    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        self.body(key, None).await
    }

    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        match self.body(key, Some(etag)).await {
            // Not every server heeds the condition (s3s-fs does not), but every one says what it sends.
            Ok(body) if body.meta.etag.as_deref() == Some(etag) => Ok(body),
            Ok(_) | Err(PortError::Conflict { .. }) => Err(PortError::Conflict { found: self.describe(key).await }),
            Err(e) => Err(e),
        }
    }

    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        let Some(more) = length.checked_sub(1) else { return Ok(Vec::new()) };
        let last = from.saturating_add(more);
        let what = format!("{} bytes {from} to {last}", self.name("GetObject", key));
        let call = self.clients.s3().await?.read.get_object().bucket(&self.bucket).key(self.full(key));
        let got = call.range(format!("bytes={from}-{last}")).send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
        let sent = size(got.content_length());
        if sent != length || got.content_range().is_none() {
            return Err(PortError::Refused(format!("{what}: {sent} bytes were answered where {length} were asked for")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        let mut state = Some((got.body, 0, what));
        while let Some((chunk, next)) = next_chunk(state, length).await {
            bytes.extend_from_slice(&chunk?);
            state = next;
        }
        Ok(bytes)
    }

    fn place(&self, key: &str) -> Option<ObjectPlace> {
        Some(ObjectPlace { bucket: self.bucket.clone(), key: self.full(key) })
    }

    async fn provider(&self) -> PortResult<Option<String>> {
        if let Some(endpoint) = self.clients.s3_endpoint().await? {
            return Ok(Some(endpoint.trim_end_matches('/').to_owned()));
        }
        // Amazon copies between its regions, and not into or out of these.
        let region = self.clients.region().await?;
        let part = ["cn-", "us-gov-", "us-iso", "eusc-"].into_iter().find(|part| region.starts_with(part));
        Ok(Some(format!("aws {}", part.unwrap_or("")).trim_end().to_owned()))
    }

    async fn locks(&self) -> PortResult<bool> {
        Ok(self.lock().await? != BucketLock::Absent)
    }

    async fn retention(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(self.retained(key).await?.map(|(until, _)| until))
    }

    async fn retained(&self, key: &str) -> PortResult<Option<(jiff::Timestamp, Option<LockMode>)>> {
        let call = self.clients.s3().await?.read.get_object_retention().bucket(&self.bucket).key(self.full(key));
        let mode = |mode: &ObjectLockRetentionMode| match mode {
            ObjectLockRetentionMode::Compliance => Some(LockMode::Compliance),
            ObjectLockRetentionMode::Governance => Some(LockMode::Governance),
            _ => None,
        };
        match call.send().await.map_err(|e| explain(&e, Doing::Reading, &self.name("GetObjectRetention", key))) {
            Ok(answer) => {
                let found = answer.retention();
                let until = when(found.and_then(|retained| retained.retain_until_date()));
                Ok(until.map(|until| (until, found.and_then(|retained| retained.mode()).and_then(mode))))
            }
            Err(e) if without_locks(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// How servers say that a bucket has no Object Lock, that an object is not retained, or that they know neither.
pub(super) fn without_locks(error: &PortError) -> bool {
    let said = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
    match error {
        PortError::NotFound(text) => said(text, &["ObjectLockConfigurationNotFound", "NoSuchObjectLockConfiguration"]),
        PortError::Refused(text) => said(text, &["NotImplemented", "InvalidRequest"]),
        _ => false,
    }
}

type Reading = Option<(ByteStream, u64, String)>;

/// One chunk of a body, or the reason why it is not whole; nothing comes after an error.
async fn next_chunk(state: Reading, expected: u64) -> Option<(PortResult<Vec<u8>>, Reading)> {
    let (mut body, seen, what) = state?;
    match tokio::time::timeout(STALL, body.try_next()).await {
        Ok(Ok(Some(chunk))) => {
            let seen = seen + chunk.len() as u64;
            Some((Ok(chunk.to_vec()), Some((body, seen, what))))
        }
        Ok(Ok(None)) if seen == expected => None,
        Ok(Ok(None)) => Some((Err(PortError::Unreachable(format!("{what}: the body ended after {seen} of {expected} bytes"))), None)),
        Ok(Err(e)) => {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            Some((Err(PortError::Unreachable(format!("{what}: the body broke off after {seen} bytes: {e}{cause}"))), None))
        }
        Err(_) => Some((Err(PortError::Unreachable(format!("{what}: no more of the body within {} s", STALL.as_secs()))), None)),
    }
}

#[async_trait]
impl ObjectWrite for S3Bucket {
    async fn put(&self, key: &str, body: Bytes, metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta> {
        let what = self.name("PutObject", key);
        if body.len() > LARGEST {
            return Err(PortError::Refused(format!("{what}: {} bytes are more than one upload takes here ({LARGEST})", body.len())));
        }
        let length = body.len() as u64;
        let mut call = self.clients.s3().await?.write.put_object().bucket(&self.bucket).key(self.full(key));
        call = call.checksum_algorithm(CHECKSUM).body(ByteStream::from(body));
        if !metadata.is_empty() {
            call = call.set_metadata(Some(metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()));
        }
        if only_if_absent {
            call = call.if_none_match(ANY);
        }
        match call.send().await.map_err(|e| explain(&e, Doing::Writing, &what)) {
            Ok(done) => Ok(ObjectMeta {
                key: key.to_owned(),
                size: length,
                etag: tag(done.e_tag()),
                version: known(done.version_id()),
                modified: None,
                metadata: metadata.clone(),
                checksum: None,
            }),
            Err(e) => Err(self.lost(key, e).await),
        }
    }

    async fn put_file(
        &self,
        key: &str,
        file: &std::path::Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        let what = self.name("PutObject", key);
        let refused = |why: String| PortError::Refused(format!("{what}: {}: {why}", file.display()));
        let digest = hex::decode(sha256).map_err(|e| refused(e.to_string()))?;
        let body = ByteStream::from_path(file).await.map_err(|e| refused(e.to_string()))?;
        let size = tokio::fs::metadata(file).await.map_err(|e| refused(e.to_string()))?.len();
        // The digest is sent ahead: the server refuses a body that is another.
        let call = self.clients.s3().await?.write.put_object().bucket(&self.bucket).key(self.full(key)).body(body);
        let call = call.checksum_sha256(aws_smithy_types::base64::encode(digest));
        let call = call.set_metadata(Some(metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()));
        let call = call.set_if_none_match(only_if_absent.then(|| ANY.to_owned()));
        let call = call.customize().config_override(limited(size));
        let done = match call.send().await.map_err(|e| explain(&e, Doing::Writing, &what)) {
            Ok(done) => done,
            Err(e) => return Err(self.lost(key, e).await),
        };
        let (etag, version) = (tag(done.e_tag()), known(done.version_id()));
        Ok(ObjectMeta { key: key.to_owned(), size, etag, version, modified: None, metadata: metadata.clone(), checksum: None })
    }

    async fn put_stream(
        &self,
        key: &str,
        body: Chunks,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        super::s3_parts::put_stream(self, key, body, metadata, only_if_absent).await
    }

    async fn copy_from(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta) -> PortResult<ObjectMeta> {
        super::s3_parts::copy(self, key, from, listed).await
    }

    async fn copy_in_parts(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta, part: u64) -> PortResult<ObjectMeta> {
        super::s3_parts::copy_in_parts(self, key, from, listed, part).await
    }

    async fn retain(&self, key: &str, until: jiff::Timestamp, mode: LockMode) -> PortResult<()> {
        let raised = mode == LockMode::Compliance;
        let mode = match mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        // In whole seconds, as some servers ask, and never sooner than asked.
        let second = until.as_second() + i64::from(until.subsec_nanosecond() > 0);
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(DateTime::from_secs(second)).build();
        let what = self.name("PutObjectRetention", key);
        let call = self.clients.s3().await?.write.put_object_retention().bucket(&self.bucket).key(self.full(key));
        let call = call.checksum_algorithm(CHECKSUM).retention(retention);
        match call.clone().send().await.map_err(|e| explain(&e, Doing::Writing, &what)) {
            // From governance to compliance is a change of the mode, which governance allows to whoever may bypass it.
            Err(PortError::Refused(_)) if raised => {
                let call = call.bypass_governance_retention(true).send().await;
                call.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &format!("{what} (s3:BypassGovernanceRetention)")))
            }
            other => other.map(|_| ()),
        }
    }

    async fn swap(&self, key: &str, body: Vec<u8>, expect: Option<&str>) -> PortResult<()> {
        let what = self.name("PutObject", key);
        let call = self.clients.s3().await?.write.put_object().bucket(&self.bucket).key(self.full(key));
        let call = call.checksum_algorithm(CHECKSUM).body(ByteStream::from(body));
        let call = match expect {
            Some(etag) => call.if_match(format!("\"{etag}\"")),
            None => call.if_none_match(ANY),
        };
        match call.send().await.map_err(|e| explain(&e, Doing::Writing, &what)) {
            Ok(_) => Ok(()),
            // What was to be replaced is gone.
            Err(PortError::NotFound(_)) if expect.is_some() => Err(PortError::Conflict { found: format!("nothing at {key}") }),
            Err(e) => Err(self.lost(key, e).await),
        }
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        let call = self.clients.s3().await?.write.delete_object().bucket(&self.bucket).key(self.full(key));
        call.send().await.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &self.name("DeleteObject", key)))
    }
}

impl S3Bucket {
    async fn page(
        &self,
        prefix: &str,
        begin: impl FnOnce(ListObjectsV2FluentBuilder) -> ListObjectsV2FluentBuilder,
    ) -> PortResult<ObjectPage> {
        let call = self.clients.s3().await?.read.list_objects_v2();
        let call = begin(call.bucket(&self.bucket).prefix(self.full(prefix)));
        let page = call.send().await.map_err(|e| explain(&e, Doing::Reading, &self.name("ListObjectsV2", prefix)))?;
        let listed: Vec<ObjectMeta> = page.contents().iter().filter_map(|o| self.listed(o)).collect();
        // Amazon's listing has every etag. A server that leaves them out (s3s-fs does) is asked object by
        // object: without an etag a copy that is current cannot be told from a stale one.
        let objects = stream::iter(listed.into_iter().map(|meta| self.with_etag(meta))).buffered(AT_ONCE).try_collect().await?;
        let next = page.next_continuation_token().map(str::to_owned).filter(|_| page.is_truncated() == Some(true));
        if next.is_none() && page.is_truncated() == Some(true) {
            let what = self.name("ListObjectsV2", prefix);
            return Err(PortError::Refused(format!("{what}: the server says that there is more, but not how to go on")));
        }
        Ok(ObjectPage { objects, next })
    }

    async fn look(&self, key: &str) -> PortResult<Option<HeadObjectOutput>> {
        let call = self.clients.s3().await?.read.head_object().bucket(&self.bucket).key(self.full(key));
        let call = call.checksum_mode(ChecksumMode::Enabled);
        match call.send().await.map_err(|e| explain(&e, Doing::Reading, &self.name("HeadObject", key))) {
            Ok(head) => Ok(Some(head)),
            Err(PortError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn body(&self, key: &str, etag: Option<&str>) -> PortResult<ObjectBody> {
        let what = self.name("GetObject", key);
        let call = self.clients.s3().await?.read.get_object().bucket(&self.bucket).key(self.full(key));
        let call = call.checksum_mode(ChecksumMode::Enabled).set_if_match(etag.map(|tag| format!("\"{tag}\"")));
        let got = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
        let meta = of_get(key, &got);
        let expected = meta.size;
        let chunks = stream::unfold(Some((got.body, 0u64, what)), move |state| next_chunk(state, expected));
        Ok(ObjectBody { meta, chunks: chunks.boxed() })
    }

    /// What it means that a write, perhaps a conditional one, did not succeed.
    pub(super) async fn lost(&self, key: &str, error: PortError) -> PortError {
        match error {
            // Two conditional writes at once: neither is told which came first, and this one did not happen.
            PortError::Refused(text) if text.contains("ConditionalRequestConflict") => {
                PortError::Throttled { after: Duration::from_millis(200), message: text }
            }
            PortError::Conflict { .. } => PortError::Conflict { found: self.describe(key).await },
            error => error,
        }
    }

    /// What stands in the way of a conditional write, as far as it can be told.
    async fn describe(&self, key: &str) -> String {
        let place = format!("s3://{}/{}{key}", self.bucket, self.prefix);
        match self.head(key).await {
            Ok(Some(meta)) => format!("{place}, {} bytes, etag {}", meta.size, meta.etag.unwrap_or_else(|| "unknown".to_owned())),
            Ok(None) | Err(_) => place,
        }
    }
}
