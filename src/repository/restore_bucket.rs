//! Restoring into a bucket: each file or object of a snapshot becomes an object, several at a time, none held in memory
//! whole. What is there already with the same digest is left alone, so a restore that was cut off goes on. What the
//! snapshot does not have is removed only where that was asked for, and last. A bucket knows no links: each name of a file
//! becomes an object with its content; symbolic links and devices are told, and left out.

use super::{
    RepositoryError, Result,
    entry::{Content, Entry, Extent, Node, shown},
    index::Index,
    list,
    open::{Repository, retried},
    progress::Progress,
    snapshot::Snapshot,
};
use crate::providers::port::{Chunks, ObjectWrite, PortError};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

/// So many objects are written at once.
const AT_ONCE: usize = 4;
/// In the metadata of what is restored: BLAKE3 of its content.
const DIGEST: &str = "muster-blake3";
/// Keys that are Muster's own beside what a bucket is for: the wheel, manifests.
const OWN: &str = ".muster/";
/// Content up to this size goes in one request, and is tried again as a whole.
const SMALL: u64 = 8 * 1024 * 1024;

#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Remove what is not in the snapshot, below the place that it is restored to. Nothing of Muster's own (`.muster/`).
    pub delete: bool,
}

#[derive(Debug, Default)]
pub struct Restored {
    /// Written, or with `dry_run` to be written.
    pub objects: u64,
    pub bytes: u64,
    /// Were there already.
    pub skipped: u64,
    pub skipped_bytes: u64,
    pub deleted: u64,
    /// What could not be restored, and why.
    pub lost: Vec<(String, String)>,
    /// What was damaged or missing in the repository and had from elsewhere in it.
    pub notes: Vec<String>,
}

/// `wanted` chooses by path.
pub async fn restore(
    repository: Arc<Repository>,
    snapshot: &Snapshot,
    to: Arc<dyn ObjectWrite>,
    wanted: impl Fn(&[u8]) -> bool,
    how: How,
    progress: Arc<Progress>,
) -> Result<Restored> {
    let index = Arc::new(repository.index().await?.whole);
    let mut done = Restored::default();
    // Only where it is asked for: a million keys are many.
    let (mut keys, mut unknown) = (HashSet::new(), false);
    let mut names = Names::new();
    for chunk in &snapshot.list {
        let entries = match repository.chunk(&index, chunk).await {
            Ok(content) => list::entries(chunk, &content)?,
            Err(error) if error.is_loss() => {
                let lost = (format!("all entries in list chunk {}", chunk.short()), error.to_string());
                done.lost.push(lost);
                unknown = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        if how.delete {
            keys.extend(entries.iter().map(|entry| entry.path.clone()));
        }
        let mut those: Vec<Entry> = entries.into_iter().filter(|entry| wanted(&entry.path)).collect();
        for entry in &mut those {
            if let Node::HardLink { to, .. } = &mut entry.node {
                names.entry(std::mem::take(to)).or_default().push(std::mem::take(&mut entry.path));
            }
        }
        those.retain(|entry| !matches!(entry.node, Node::HardLink { .. }));
        done.all(&repository, &index, &to, those, how.dry_run, &progress).await?;
    }
    if !names.is_empty() {
        further(&repository, &index, snapshot, &to, names, how.dry_run, &progress, &mut done).await?;
    }
    if how.delete && unknown {
        let why = "a part of the snapshot's list cannot be read: what is not on it is not known".to_owned();
        done.lost.push(("nothing is removed".to_owned(), why));
    } else if how.delete {
        done.deleted = remove(&*to, &keys, how.dry_run, &progress).await?;
    }
    done.notes = index.detours().told();
    Ok(done)
}

/// Further names of files, by the path of the entry that has the content.
type Names = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// Once more over the list, for those files that have several names.
#[allow(clippy::too_many_arguments)]
async fn further(
    repository: &Arc<Repository>,
    index: &Arc<Index>,
    snapshot: &Snapshot,
    to: &Arc<dyn ObjectWrite>,
    mut names: Names,
    dry_run: bool,
    progress: &Progress,
    done: &mut Restored,
) -> Result<()> {
    for chunk in &snapshot.list {
        let entries = match repository.chunk(index, chunk).await {
            Ok(content) => list::entries(chunk, &content)?,
            // It was told.
            Err(error) if error.is_loss() => continue,
            Err(error) => return Err(error),
        };
        let mut those = Vec::new();
        for entry in entries {
            let paths = names.remove(&entry.path).unwrap_or_default();
            those.extend(paths.into_iter().map(|path| Entry { path, node: entry.node.clone() }));
        }
        done.all(repository, index, to, those, dry_run, progress).await?;
    }
    for (first, paths) in names {
        let why = format!("it is a link to `{}`, which the list does not have", shown(&first));
        done.lost.extend(paths.iter().map(|path| (shown(path), why.clone())));
    }
    Ok(())
}

impl Restored {
    /// Restores these, several at a time, and counts them.
    async fn all(
        &mut self,
        repository: &Arc<Repository>,
        index: &Arc<Index>,
        to: &Arc<dyn ObjectWrite>,
        entries: Vec<Entry>,
        dry_run: bool,
        progress: &Progress,
    ) -> Result<()> {
        let each = stream::iter(entries).map(|entry| one(repository, index, to, entry, dry_run, progress)).buffer_unordered(AT_ONCE);
        let outcomes: Vec<Result<Outcome>> = each.collect().await;
        for outcome in outcomes {
            match outcome? {
                Outcome::Written(bytes) => (self.objects, self.bytes) = (self.objects + 1, self.bytes + bytes),
                Outcome::There(bytes) => (self.skipped, self.skipped_bytes) = (self.skipped + 1, self.skipped_bytes + bytes),
                Outcome::Lost(path, why) => self.lost.push((path, why)),
                Outcome::Nothing => {}
            }
        }
        Ok(())
    }
}

/// Removes what is not among the keys; counts it.
async fn remove(to: &dyn ObjectWrite, keys: &HashSet<Vec<u8>>, dry_run: bool, progress: &Progress) -> Result<u64> {
    let (mut surplus, mut after) = (Vec::new(), None);
    loop {
        let page = retried("the bucket's listing", || to.list("", after.as_deref())).await?;
        let others = page.objects.into_iter().map(|object| object.key);
        surplus.extend(others.filter(|key| !key.starts_with(OWN) && !keys.contains(key.as_bytes())));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if dry_run {
        return Ok(surplus.len() as u64);
    }
    for key in &surplus {
        if progress.is_stopped() {
            return Err(stopped());
        }
        retried(key, || to.delete(key)).await?;
    }
    Ok(surplus.len() as u64)
}

fn stopped() -> RepositoryError {
    RepositoryError::Interrupted("the restore was stopped; running it again goes on".to_owned())
}

enum Outcome {
    Written(u64),
    There(u64),
    Lost(String, String),
    /// A folder: buckets have none.
    Nothing,
}

async fn one(
    repository: &Arc<Repository>,
    index: &Arc<Index>,
    to: &Arc<dyn ObjectWrite>,
    entry: Entry,
    dry_run: bool,
    progress: &Progress,
) -> Result<Outcome> {
    if progress.is_stopped() {
        return Err(stopped());
    }
    let lost = |why: &str| Outcome::Lost(entry.shown(), why.to_owned());
    let content = match &entry.node {
        Node::File { content, .. } | Node::Object { content, .. } => content,
        Node::Folder { .. } => return Ok(Outcome::Nothing),
        _ => return Ok(lost("a bucket holds files alone: restore it into a folder")),
    };
    let Ok(key) = std::str::from_utf8(&entry.path) else { return Ok(lost("its name is no UTF-8, as keys must be")) };
    let digest = content.digest.to_string();
    let there = retried(key, || to.head(key)).await?;
    if there.is_some_and(|there| there.size == content.size && there.metadata.get(DIGEST) == Some(&digest)) {
        progress.add(1, content.size);
        return Ok(Outcome::There(content.size));
    }
    if dry_run {
        progress.add(1, content.size);
        return Ok(Outcome::Written(content.size));
    }
    let mut metadata = user_metadata(&entry);
    metadata.insert(DIGEST.to_owned(), digest);
    let written = if content.size <= SMALL {
        small(repository, index, to, key, content, &metadata).await
    } else {
        large(repository, index, to, key, content, &metadata).await
    };
    progress.add(1, content.size);
    match written {
        Ok(()) => Ok(Outcome::Written(content.size)),
        Err(error) if error.is_loss() => Ok(lost(&error.to_string())),
        Err(error) => Err(error),
    }
}

fn user_metadata(entry: &Entry) -> BTreeMap<String, String> {
    let Node::Object { info, .. } = &entry.node else { return BTreeMap::new() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    info.metadata.iter().map(|(name, value)| (text(name), text(value))).collect()
}

async fn small(
    repository: &Repository,
    index: &Index,
    to: &Arc<dyn ObjectWrite>,
    key: &str,
    content: &Content,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut bytes = Vec::with_capacity(content.size as usize);
    for extent in repository.extents(index, key.as_bytes(), content).await? {
        bytes.extend(repository.extent(index, &extent).await?);
    }
    let bytes = bytes::Bytes::from(bytes);
    retried(key, || to.put(key, bytes.clone(), metadata, false)).await.map(drop)
}

async fn large(
    repository: &Arc<Repository>,
    index: &Arc<Index>,
    to: &Arc<dyn ObjectWrite>,
    key: &str,
    content: &Content,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let extents = repository.extents(index, key.as_bytes(), content).await?;
    // Why the body broke off, if it did: the store only knows that it did.
    let broken = Arc::new(Mutex::new(None));
    let (repository, index, why) = (repository.clone(), index.clone(), broken.clone());
    let body: Chunks = stream::iter(extents.into_iter().flat_map(pieces))
        .then(move |extent| {
            let (repository, index, why) = (repository.clone(), index.clone(), why.clone());
            async move {
                repository.extent(&index, &extent).await.map_err(|error| {
                    let told = PortError::Refused(error.to_string());
                    why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    told
                })
            }
        })
        .boxed();
    let written = to.put_stream(key, body, metadata, false).await;
    if let Some(error) = broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    written.map(drop).map_err(RepositoryError::store(key))
}

/// A run of zeros in pieces that fit into memory.
fn pieces(extent: Extent) -> Vec<Extent> {
    const PIECE: u64 = 4 * 1024 * 1024;
    match extent {
        Extent::Zeros(length) => (0..length.div_ceil(PIECE)).map(|n| Extent::Zeros(PIECE.min(length - n * PIECE))).collect(),
        other => vec![other],
    }
}
