//! What a backup of a bucket holds: one object that is written last, so that its presence means that the
//! backup is complete. It names every object with the digest of the bytes that were read.
//!
//! It is one JSON object, with the objects as the last of its fields, and neither written nor read as a whole: of a million
//! objects it has hundreds of megabytes. What it says of itself stands first, so that who wants no more stops there; old
//! ones do not say how many objects they name, nor in which order, and are counted through. Who needs them in order
//! sorts them on disk.

use super::{
    contract::failure,
    set_runs::{Line, Runs},
    set_walk::{Broken, Order},
    shared::*,
};
use crate::model::{effect::Failure, ids::*};
use crate::providers::port::*;
use futures::StreamExt;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Formatter,
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

/// What it says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub run: RunId,
    pub bucket: BucketName,
    pub from: RegionName,
    pub prefix: String,
    pub at: jiff::Timestamp,
    pub copied: u64,
    pub skipped: u64,
    pub bytes_copied: u64,
    /// In which order the objects stand, which is that of the servers' listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// How many they are, and of how many bytes in all. Always there in what [`head`] and [`latest`] answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
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

impl Line for Entry {
    fn key(&self) -> &str {
        &self.key
    }
}

pub(crate) const MANIFESTS: &str = ".muster/manifests/";

/// The latest manifest of copies of that bucket from that region, newest first by the store's own clock.
/// With `prefix`, one of exactly that part of the bucket.
pub(crate) async fn latest(
    objects: &dyn ObjectRead,
    bucket: &BucketName,
    from: &RegionName,
    prefix: Option<&str>,
) -> Result<Option<(String, Head)>, Failure> {
    let mut keys = list_all(objects, MANIFESTS).await.map_err(|e| failure(&e))?;
    keys.sort_by(|a, b| (b.modified, &b.key).cmp(&(a.modified, &a.key)));
    // Stores that tell whole seconds (SeaweedFS) tell the same of two that came shortly one after the other.
    let mut newest: Option<(Option<jiff::Timestamp>, String, Head)> = None;
    for meta in keys {
        if newest.as_ref().is_some_and(|(modified, ..)| *modified != meta.modified) {
            break;
        }
        let manifest = head(objects, &meta.key).await?;
        let fits = manifest.bucket == *bucket && manifest.from == *from && prefix.is_none_or(|p| p == manifest.prefix);
        if fits && newest.as_ref().is_none_or(|(_, _, other)| other.at < manifest.at) {
            newest = Some((meta.modified, meta.key, manifest));
        }
    }
    Ok(newest.map(|(_, key, manifest)| (key, manifest)))
}

// ---------------------------------------------------------------- reading

/// What it says of itself, with how many objects it names.
pub(crate) async fn head(objects: &dyn ObjectRead, key: &str) -> Result<Head, Failure> {
    match read(objects, key, None).await {
        Ok((head, _)) => Ok(head),
        Err(Broken::Port(e) | Broken::Source(e)) => Err(failure(&e)),
        Err(Broken::Unreadable(why)) => Err(why),
        Err(Broken::Disk(why)) => Err(Failure::new("scratch", why)),
        Err(Broken::Order) => Err(unreadable(key, "it is not in order")),
    }
}

/// Sorts what it names into runs on disk. What an earlier try finished is taken as it is.
pub(crate) async fn sort(objects: &dyn ObjectRead, key: &str, order: Order, folder: &Path) -> Result<(), Broken> {
    if Runs::<Entry>::are_whole(folder) {
        return Ok(());
    }
    let (_, runs) = read(objects, key, Some(Runs::begin(folder, order)?)).await?;
    match runs {
        Some(runs) => blocking(move || runs.finish()).await,
        None => Ok(()),
    }
}

fn unreadable(key: &str, why: &str) -> Failure {
    Failure::new("manifest_unreadable", format!("manifest {key}: {why}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Broken> + Send + 'static) -> Result<T, Broken> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Broken::Disk(e.to_string()))?
}

/// Pieces of a body that wait for who reads them.
const AHEAD: usize = 4;

/// Reads it while it comes: what it names goes into the runs, which are given back; without them no more is read than
/// what it says of itself, if it says how many objects it names.
async fn read(objects: &dyn ObjectRead, key: &str, runs: Option<Runs<Entry>>) -> Result<(Head, Option<Runs<Entry>>), Broken> {
    let mut chunks = objects.get(key).await?.chunks;
    let (send, pieces) = mpsc::channel(AHEAD);
    let name = key.to_owned();
    let parse = tokio::task::spawn_blocking(move || parsed(&name, Body { pieces, now: Vec::new(), at: 0 }, runs));
    let mut broken = None;
    while let Some(chunk) = chunks.next().await {
        // An error ends the body; who parses must not take what came for all of it.
        let piece = chunk.map_err(|e| broken = Some(e));
        if send.send(piece).await.is_err() || broken.is_some() {
            break;
        }
    }
    drop(send);
    let parsed = parse.await.map_err(|e| Broken::Disk(e.to_string()))?;
    match broken {
        Some(e) => Err(e.into()),
        None => parsed,
    }
}

/// A body, as somebody reads it who may wait.
struct Body {
    pieces: mpsc::Receiver<Result<Vec<u8>, ()>>,
    now: Vec<u8>,
    at: usize,
}

impl Read for Body {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.now.len() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => (self.now, self.at) = (piece, 0),
                Some(Err(())) => return Err(std::io::Error::other("the transfer broke off")),
                None => return Ok(0),
            }
        }
        let rest = self.now.get(self.at..).unwrap_or_default();
        let length = rest.len().min(to.len());
        to[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

fn parsed(key: &str, body: Body, runs: Option<Runs<Entry>>) -> Result<(Head, Option<Runs<Entry>>), Broken> {
    let mut taken = Taken { runs, head: None, count: 0, bytes: 0, broken: None };
    let mut parser = serde_json::Deserializer::from_reader(BufReader::new(body));
    let end = parser.deserialize_map(&mut taken).and_then(|()| parser.end());
    match (taken.broken, taken.head, end) {
        (Some(broken), ..) => Err(broken),
        // Where only this was asked for, it ended there.
        (None, Some(head), Err(_)) if taken.runs.is_none() => Ok((head, None)),
        (None, Some(head), Ok(())) => Ok((head, taken.runs)),
        (None, _, Err(e)) => Err(Broken::Unreadable(unreadable(key, &e.to_string()))),
        (None, None, Ok(())) => Err(Broken::Unreadable(unreadable(key, "it says nothing of itself"))),
    }
}

/// What was found in it so far.
struct Taken {
    runs: Option<Runs<Entry>>,
    head: Option<Head>,
    count: u64,
    bytes: u64,
    broken: Option<Broken>,
}

impl<'de> Visitor<'de> for &mut Taken {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = serde_json::Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name != "objects" {
                fields.insert(name, map.next_value()?);
                continue;
            }
            if self.runs.is_none() {
                let head: Option<Head> = serde_json::from_value(fields.clone().into()).ok();
                self.head = head.filter(|head| head.count.is_some() && head.bytes.is_some());
                if self.head.is_some() {
                    return Err(A::Error::custom("no more is wanted"));
                }
            }
            map.next_value_seed(&mut *self)?;
        }
        let head: Head = serde_json::from_value(fields.into()).map_err(A::Error::custom)?;
        if head.count.is_some_and(|count| count != self.count) {
            return Err(A::Error::custom(format!("it names {} objects, and says {}", self.count, head.count.unwrap_or(0))));
        }
        self.head = Some(Head { count: Some(self.count), bytes: Some(self.bytes), ..head });
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<(), A::Error> {
        while let Some(entry) = objects.next_element::<Entry>()? {
            self.count += 1;
            self.bytes += entry.size;
            if let Some(Err(broken)) = self.runs.as_mut().map(|runs| runs.push(entry)) {
                self.broken = Some(broken);
                return Err(A::Error::custom("the disk does not take it"));
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Taken {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, objects: D) -> Result<(), D::Error> {
        objects.deserialize_seq(self)
    }
}

// ---------------------------------------------------------------- writing

/// The most that is held in memory of one that is written.
const IN_MEMORY: u64 = 4 * 1024 * 1024;

/// One that is being written, on disk.
pub(crate) struct Writer {
    folder: PathBuf,
    objects: BufWriter<File>,
    count: u64,
    bytes: u64,
    copied: u64,
    bytes_copied: u64,
}

impl Writer {
    pub fn begin(folder: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let objects = BufWriter::new(File::create(folder.join("objects"))?);
        Ok(Self { folder: folder.to_owned(), objects, count: 0, bytes: 0, copied: 0, bytes_copied: 0 })
    }

    /// In the order in which they shall stand.
    pub fn add(&mut self, entry: &Entry, copied: bool) -> std::io::Result<()> {
        let between: &[u8] = if self.count == 0 { b"\n" } else { b",\n" };
        self.objects.write_all(between)?;
        serde_json::to_writer(&mut self.objects, entry)?;
        self.count += 1;
        self.bytes += entry.size;
        if copied {
            self.copied += 1;
            self.bytes_copied += entry.size;
        }
        Ok(())
    }

    /// All of it in one file. What it says of itself is only known now, and stands first.
    pub fn finish(mut self, head: impl FnOnce(Figures) -> Head) -> std::io::Result<Written> {
        self.objects.flush()?;
        let Self { folder, count, bytes, copied, bytes_copied, .. } = self;
        let head = head(Figures { count, bytes, copied, skipped: count - copied, bytes_copied });
        let text = serde_json::to_string(&head)?;
        let begin = format!("{},\"objects\":[", text.strip_suffix('}').unwrap_or(&text));
        let path = folder.join("manifest.json");
        let mut whole = begin.as_bytes().chain(File::open(folder.join("objects"))?).chain(&b"\n]}"[..]);
        let (mut file, mut digest, mut length) = (File::create(&path)?, Sha256::new(), 0);
        let mut piece = vec![0; 256 * 1024];
        loop {
            let read = whole.read(&mut piece)?;
            if read == 0 {
                return Ok(Written { path, head, length, sha256: hex::encode(digest.finalize()) });
            }
            file.write_all(&piece[..read])?;
            digest.update(&piece[..read]);
            length += read as u64;
        }
    }
}

/// What was counted while it was written.
pub(crate) struct Figures {
    pub count: u64,
    pub bytes: u64,
    pub copied: u64,
    pub skipped: u64,
    pub bytes_copied: u64,
}

/// One that is written, in a file.
pub(crate) struct Written {
    path: PathBuf,
    pub head: Head,
    length: u64,
    sha256: String,
}

impl Written {
    /// Where none is there yet: one that is there, or comes while this one goes up, stays, and is a `Conflict`. Above what one
    /// upload takes it goes up in parts.
    pub async fn put(&self, target: &dyn ObjectWrite, key: &str, one_upload: u64) -> Result<(), Broken> {
        let disk = |e: std::io::Error| Broken::Disk(format!("{}: {e}", self.path.display()));
        if self.length <= IN_MEMORY.min(one_upload) {
            let body = tokio::fs::read(&self.path).await.map_err(disk)?;
            target.put(key, body.into(), &BTreeMap::new(), true).await?;
            return Ok(());
        }
        // It may have hundreds of megabytes, and a store that ignores the condition would write over what is there.
        if let Some(there) = target.head(key).await? {
            let etag = there.etag.as_deref().unwrap_or("unknown");
            return Err(PortError::Conflict { found: format!("{key}, {} bytes, etag {etag}", there.size) }.into());
        }
        if self.length <= one_upload {
            target.put_file(key, &self.path, &self.sha256, &BTreeMap::new(), true).await?;
        } else {
            let file = tokio::fs::File::open(&self.path).await.map_err(disk)?;
            target.put_stream(key, chunks(file), &BTreeMap::new(), true).await?;
        }
        Ok(())
    }
}

/// A file, piece by piece.
fn chunks(file: tokio::fs::File) -> Chunks {
    use tokio::io::AsyncReadExt;
    let pieces = futures::stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut piece = vec![0; 1024 * 1024];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(piece), Some(file)))
            }
            Err(e) => Some((Err(PortError::Refused(format!("the manifest on disk: {e}"))), None)),
        }
    });
    pieces.boxed()
}

/// As they were written before they said how many objects they name.
#[cfg(test)]
pub(crate) fn old(head: &Head, objects: &[Entry]) -> Vec<u8> {
    let mut all = serde_json::to_value(Head { order: None, count: None, bytes: None, ..head.clone() }).expect("json");
    all["objects"] = serde_json::to_value(objects).expect("json");
    all.to_string().into_bytes()
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
pub(crate) mod tests;
