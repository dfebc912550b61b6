//! Objects in parts: bodies whose length nobody knows yet, and copies of what is too large for one call.
//!
//! A part that fails is sent again: until the upload is completed nobody sees it, so that the journal has nothing
//! to know of it. An upload that is not completed is aborted, also when the caller goes away; what a killed process
//! leaves is removed by the bucket's own rule for incomplete uploads (`AbortIncompleteMultipartUpload`).

use super::aws::{Doing, explain, patient};
use super::port::{Chunks, ObjectMeta, ObjectPlace, ObjectWrite, PortError, PortResult};
use super::s3::{ANY, CHECKSUM, S3Bucket, known, limited, tag};
use aws_sdk_s3::{
    Client,
    operation::abort_multipart_upload::builders::AbortMultipartUploadFluentBuilder,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use futures::StreamExt;
use std::{collections::BTreeMap, time::Duration};
use tokio::task::JoinSet;

const MIB: u64 = 1024 * 1024;
/// The smallest part here; a smaller body is one PUT.
const PART: u64 = 8 * MIB;
/// Parts double with every so many: 10,000 of them hold 7.8 TiB, the largest object has 5.
const DOUBLES: usize = 1_000;
/// So much of a body is in memory at a time, or one part where that is larger.
const IN_MEMORY: u64 = 48 * MIB;
/// The largest object that one CopyObject takes, and the parts in which a larger one is copied.
const ONE_COPY: u64 = 5 * 1024 * MIB;
const COPIED_PART: u64 = 1024 * MIB;
const COPIES_AT_ONCE: usize = 4;
/// The longest pause within a body that is still being made.
const STALL: Duration = Duration::from_mins(10);
/// An abort is tried for so long.
const ABORT: Duration = Duration::from_secs(10);

/// How large the part with this number is, from 0.
fn part_size(number: usize) -> u64 {
    PART << (number / DOUBLES)
}

/// Cuts a body into parts.
struct Cutter {
    body: Chunks,
    /// What was read and not yet given away, from this byte on.
    chunk: Vec<u8>,
    from: usize,
    what: String,
}

impl Cutter {
    /// The next part, of exactly this size unless it is the last; and whether it is.
    async fn next(&mut self, size: usize) -> PortResult<(Vec<u8>, bool)> {
        let mut part = Vec::with_capacity(size);
        loop {
            let take = (size - part.len()).min(self.chunk.len() - self.from);
            part.extend_from_slice(&self.chunk[self.from..self.from + take]);
            self.from += take;
            if self.from == self.chunk.len() {
                let next = tokio::time::timeout(STALL, self.body.next()).await;
                let stalled = || PortError::Refused(format!("{}: no more of the body within {} s", self.what, STALL.as_secs()));
                match next.map_err(|_| stalled())? {
                    Some(chunk) => (self.chunk, self.from) = (chunk?, 0),
                    None => return Ok((part, true)),
                }
            } else {
                return Ok((part, false));
            }
        }
    }
}

pub(super) async fn put_stream(
    bucket: &S3Bucket,
    key: &str,
    body: Chunks,
    metadata: &BTreeMap<String, String>,
    only_if_absent: bool,
) -> PortResult<ObjectMeta> {
    let mut cutter = Cutter { body, chunk: Vec::new(), from: 0, what: bucket.name("PutObject", key) };
    let (part, whole) = cutter.next(bytes(PART)).await?;
    if whole {
        return bucket.put(key, part.into(), metadata, only_if_absent).await;
    }
    let mut upload = Upload::begin(bucket, key, metadata, Some(CHECKSUM)).await?;
    upload.only_if_absent = only_if_absent;
    let filled = fill(&mut upload, &mut cutter, part).await;
    match upload.end(key, filled, metadata).await {
        Ok(done) => Ok(done),
        Err(e) => Err(bucket.lost(key, e).await),
    }
}

/// Sends all parts, the first of which was cut already. Answers their size in all.
async fn fill(upload: &mut Upload, cutter: &mut Cutter, first: Vec<u8>) -> PortResult<u64> {
    let (mut part, mut last, mut size) = (first, false, 0);
    for number in 0.. {
        size += part.len() as u64;
        upload.send(number, part);
        if last {
            break;
        }
        upload.room(part_size(number + 1)).await?;
        (part, last) = cutter.next(bytes(part_size(number + 1))).await?;
    }
    Ok(size)
}

fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// `from` as the head `x-amz-copy-source` has it.
fn source(from: &ObjectPlace) -> String {
    let mut text = format!("{}/", from.bucket);
    for byte in from.key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

pub(super) async fn copy(bucket: &S3Bucket, key: &str, from: &ObjectPlace, listed: &ObjectMeta) -> PortResult<ObjectMeta> {
    if listed.size > ONE_COPY {
        return copy_in_parts(bucket, key, from, listed, COPIED_PART).await;
    }
    let what = format!("{} from {}", bucket.name("CopyObject", key), source(from));
    let call = bucket.clients.s3().await?.write.copy_object().bucket(&bucket.bucket).key(bucket.full(key)).copy_source(source(from));
    let call = call.set_copy_source_if_match(listed.etag.as_deref().map(quoted)).customize().config_override(limited(listed.size));
    let done = call.send().await.map_err(|e| explain(&e, Doing::Writing, &what))?;
    let etag = tag(done.copy_object_result().and_then(|copied| copied.e_tag()));
    let (key, version) = (key.to_owned(), known(done.version_id()));
    Ok(ObjectMeta { key, size: listed.size, etag, version, modified: None, metadata: listed.metadata.clone(), checksum: None })
}

/// The size of the parts is an argument, so that a test needs no object of 5 GiB.
pub(super) async fn copy_in_parts(
    bucket: &S3Bucket,
    key: &str,
    from: &ObjectPlace,
    listed: &ObjectMeta,
    part: u64,
) -> PortResult<ObjectMeta> {
    let mut upload = Upload::begin(bucket, key, &listed.metadata, None).await?;
    let copied = copy_all(&mut upload, from, listed, part).await;
    upload.end(key, copied, &listed.metadata).await
}

async fn copy_all(upload: &mut Upload, from: &ObjectPlace, listed: &ObjectMeta, part: u64) -> PortResult<u64> {
    for number in 0..listed.size.div_ceil(part) {
        while upload.parts.len() >= COPIES_AT_ONCE {
            upload.one().await?;
        }
        upload.copy(bytes(number), from, listed, number * part..listed.size.min((number + 1) * part));
    }
    Ok(listed.size)
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

type Sent = PortResult<(u64, CompletedPart)>;

/// An upload that was begun. It is aborted unless it is completed.
struct Upload {
    client: Client,
    bucket: String,
    /// The whole key.
    key: String,
    id: String,
    what: String,
    /// On their way; each answers how many bytes it took.
    parts: JoinSet<Sent>,
    in_flight: u64,
    sent: Vec<CompletedPart>,
    /// It becomes an object only where none is by then. (Whether one was there when it began says nothing.)
    only_if_absent: bool,
    ended: bool,
}

impl Upload {
    async fn begin(
        bucket: &S3Bucket,
        key: &str,
        metadata: &BTreeMap<String, String>,
        checksums: Option<ChecksumAlgorithm>,
    ) -> PortResult<Self> {
        let (client, what) = (bucket.clients.s3().await?.write.clone(), bucket.name("CreateMultipartUpload", key));
        let call = client.create_multipart_upload().bucket(&bucket.bucket).key(bucket.full(key)).set_checksum_algorithm(checksums);
        let metadata = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let begun = call.set_metadata(Some(metadata)).send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
        let id = begun.upload_id().map(str::to_owned);
        Ok(Self {
            client,
            bucket: bucket.bucket.clone(),
            key: bucket.full(key),
            id: id.ok_or_else(|| PortError::Refused(format!("{what}: the server gave the upload no name")))?,
            what: bucket.name("upload of", key),
            parts: JoinSet::new(),
            in_flight: 0,
            sent: Vec::new(),
            only_if_absent: false,
            ended: false,
        })
    }

    /// Sends the part with this number, from 0, beside whatever else is on its way.
    fn send(&mut self, number: usize, part: Vec<u8>) {
        let (size, number, what) = (part.len() as u64, part_number(number), format!("{}, part {}", self.what, number + 1));
        let call = self.client.upload_part().bucket(&self.bucket).key(&self.key).upload_id(&self.id).part_number(number);
        let call = call.checksum_algorithm(CHECKSUM).body(ByteStream::from(part));
        let call = call.customize().config_override(limited(size).retry_config(patient()));
        self.in_flight += size;
        self.parts.spawn(async move {
            let done = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
            let sums = CompletedPart::builder().part_number(number).set_e_tag(done.e_tag).set_checksum_crc32(done.checksum_crc32);
            Ok((size, sums.build()))
        });
    }

    /// The same with these bytes of another object.
    fn copy(&mut self, number: usize, from: &ObjectPlace, listed: &ObjectMeta, range: std::ops::Range<u64>) {
        let (size, number, what) = (range.end - range.start, part_number(number), format!("{} from {}", self.what, source(from)));
        let call = self.client.upload_part_copy().bucket(&self.bucket).key(&self.key).upload_id(&self.id).part_number(number);
        let call = call.copy_source(source(from)).set_copy_source_if_match(listed.etag.as_deref().map(quoted));
        let call = call.copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
        let call = call.customize().config_override(limited(size).retry_config(patient()));
        self.parts.spawn(async move {
            let done = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
            let copied =
                done.copy_part_result.ok_or_else(|| PortError::Refused(format!("{what}: the server does not say what it copied")))?;
            let sums = CompletedPart::builder().part_number(number).set_e_tag(copied.e_tag);
            let sums = sums.set_checksum_crc64_nvme(copied.checksum_crc64_nvme).set_checksum_crc32(copied.checksum_crc32);
            Ok((0, sums.build()))
        });
    }

    /// Waits until a part of this size has room in memory beside those on their way.
    async fn room(&mut self, size: u64) -> PortResult<()> {
        while self.in_flight > 0 && self.in_flight + size > IN_MEMORY {
            self.one().await?;
        }
        Ok(())
    }

    /// Waits for one part, whichever is through first; false when none is on its way.
    async fn one(&mut self) -> PortResult<bool> {
        let Some(part) = self.parts.join_next().await else { return Ok(false) };
        let (size, part) = part.map_err(|e| PortError::Refused(format!("{}: {e}", self.what)))??;
        self.in_flight -= size;
        self.sent.push(part);
        Ok(true)
    }

    /// Makes an object of the parts when `filled` says that they are all on their way, else aborts.
    async fn end(mut self, key: &str, filled: PortResult<u64>, metadata: &BTreeMap<String, String>) -> PortResult<ObjectMeta> {
        let done = match filled {
            Ok(size) => self.complete(key, size, metadata).await,
            Err(e) => Err(e),
        };
        // What may be becoming an object at this moment is left alone.
        if !matches!(done, Ok(_) | Err(PortError::Unknown(_))) {
            self.parts.shutdown().await;
            // That it fails too is no news: the first error is the one to tell.
            let _ = tokio::time::timeout(ABORT, self.abort().send()).await;
        }
        self.ended = true;
        done
    }

    async fn complete(&mut self, key: &str, size: u64, metadata: &BTreeMap<String, String>) -> PortResult<ObjectMeta> {
        while self.one().await? {}
        self.sent.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.sent))).build();
        let call = self.client.complete_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id);
        let call = call.multipart_upload(parts).set_if_none_match(self.only_if_absent.then(|| ANY.to_owned()));
        let call = call.customize().config_override(limited(size));
        let done = call.send().await.map_err(|e| explain(&e, Doing::Writing, &self.what))?;
        let (etag, version) = (tag(done.e_tag()), known(done.version_id()));
        Ok(ObjectMeta { key: key.to_owned(), size, etag, version, modified: None, metadata: metadata.clone(), checksum: None })
    }

    fn abort(&self) -> AbortMultipartUploadFluentBuilder {
        self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id)
    }
}

impl Drop for Upload {
    /// The caller went away: nobody waits for the abort, but it is tried.
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.ended, tokio::runtime::Handle::try_current()) {
            let (mut parts, abort) = (std::mem::take(&mut self.parts), self.abort());
            runtime.spawn(async move {
                parts.shutdown().await;
                let _ = tokio::time::timeout(ABORT, abort.send()).await;
            });
        }
    }
}

/// S3 counts parts from 1.
fn part_number(number: usize) -> i32 {
    i32::try_from(number + 1).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_the_largest_object() {
        let all: u64 = (0..10_000).map(part_size).sum();
        assert!(all >= 5 << 40, "{all}");
        assert!(part_size(9_999) <= 5 << 30, "the largest part that S3 takes");
        assert_eq!(part_size(999), PART);
    }

    #[test]
    fn a_source_is_written_as_a_header_can_have_it() {
        let from = ObjectPlace { bucket: "b".into(), key: "a/ä +?%~.bin".into() };
        assert_eq!(source(&from), "b/a/%C3%A4%20%2B%3F%25~.bin");
    }

    #[tokio::test]
    async fn a_body_is_cut_into_parts_whatever_its_chunks_are() {
        for chunk in [1, 3, 10, 11, 100] {
            let whole: Vec<u8> = (0..100).collect();
            let chunks: Vec<PortResult<Vec<u8>>> = whole.chunks(chunk).map(|c| Ok(c.to_vec())).collect();
            let mut cutter = Cutter { body: futures::stream::iter(chunks).boxed(), chunk: Vec::new(), from: 0, what: String::new() };
            let mut parts = Vec::new();
            while let (part, false) = cutter.next(25).await.unwrap() {
                parts.push(part);
            }
            assert_eq!(parts.len(), 3, "the fourth is the last");
            assert_eq!(parts.concat(), whole[..75]);
        }
    }
}
