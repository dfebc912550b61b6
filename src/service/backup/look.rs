//! Looking into a repository: its snapshots, one of them with its files, what differs between two, how much it holds.

use super::{
    super::{Muster, ServiceError},
    place::Where,
    watch::Watch,
};
use crate::plan::proof::{ProofState, Trial, proof_state};
use crate::repository::{
    diff::{self, What},
    entry::{Entry, Instant, Node, shown},
    index::Index,
    list,
    names::{INDEX, Id, MARKS, PACKS, PROOFS, SNAPSHOTS},
    open::{Found, Repository},
    proof,
    snapshot::{Snapshot, Stats},
};
use serde::Serialize;
use std::collections::HashSet;

/// A snapshot as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Shot {
    pub id: Id,
    /// Enough of it to name it by.
    pub short: String,
    #[serde(serialize_with = "instant")]
    pub time: jiff::Timestamp,
    pub source: String,
    pub kind: &'static str,
    pub host: String,
    pub user: String,
    pub tags: Vec<String>,
    pub parent: Option<Id>,
    pub run: Option<String>,
    pub program: String,
    pub duration_ms: u64,
    #[serde(flatten)]
    pub stats: Stats,
    /// Is it proven that it restores? Looked up where snapshots are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofState>,
}

pub(super) fn instant<S: serde::Serializer>(at: &jiff::Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&crate::model::time::rfc3339_ms(*at))
}

impl Shot {
    pub(super) fn of(id: Id, snapshot: Snapshot) -> Self {
        Self {
            id,
            short: id.short(),
            time: snapshot.time,
            source: snapshot.source.shown().to_owned(),
            kind: match snapshot.source {
                crate::repository::snapshot::Source::Tree { .. } => "tree",
                crate::repository::snapshot::Source::Bucket { .. } => "bucket",
                crate::repository::snapshot::Source::Stream { .. } => "stream",
                crate::repository::snapshot::Source::Postgres { .. } => "postgres",
            },
            host: snapshot.host,
            user: snapshot.user,
            tags: snapshot.tags,
            parent: snapshot.parent,
            run: snapshot.run,
            program: snapshot.program,
            duration_ms: snapshot.duration_ms,
            stats: snapshot.stats,
            proof: None,
        }
    }
}

/// Which snapshots: of this source, with all these tags.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub source: Option<String>,
    pub tags: Vec<String>,
}

impl Filter {
    pub(super) fn fits(&self, snapshot: &Snapshot) -> bool {
        let source = self.source.as_deref().is_none_or(|wanted| {
            let path = std::path::absolute(wanted).ok();
            let shown = snapshot.source.shown();
            shown == wanted || path.is_some_and(|path| path.components().eq(std::path::Path::new(shown).components()))
        });
        source && self.tags.iter().all(|tag| snapshot.tags.contains(tag))
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Oldest first.
    pub snapshots: Vec<Shot>,
    /// Objects that are no snapshots any more.
    pub damaged: Vec<String>,
}

/// One entry of a snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    pub path: String,
    /// The bytes of a path that is no UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    pub kind: &'static str,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<String>,
    /// BLAKE3 of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Id>,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub changed_while_read: bool,
}

fn hex_path(path: &[u8]) -> Option<String> {
    std::str::from_utf8(path).is_err().then(|| hex::encode(path))
}

impl File {
    fn of(entry: &Entry) -> Self {
        let (kind, to) = match &entry.node {
            Node::File { .. } => ("file", None),
            Node::Folder { .. } => ("folder", None),
            Node::Symlink { target, .. } => ("symlink", Some(target)),
            Node::HardLink { to, .. } => ("hardlink", Some(to)),
            Node::Fifo { .. } => ("fifo", None),
            Node::Socket { .. } => ("socket", None),
            Node::CharDevice { .. } => ("char-device", None),
            Node::BlockDevice { .. } => ("block-device", None),
            Node::Object { .. } => ("object", None),
        };
        let (meta, content) = (entry.node.meta(), entry.node.content());
        let object = if let Node::Object { info, .. } = &entry.node { Some(info.mtime) } else { None };
        Self {
            path: entry.shown(),
            path_hex: hex_path(&entry.path),
            kind,
            size: content.map_or(0, |content| content.size),
            mode: meta.map(|meta| meta.mode),
            uid: meta.map(|meta| meta.uid),
            gid: meta.map(|meta| meta.gid),
            mtime: meta.map(|meta| meta.mtime).or(object).and_then(time),
            digest: content.map(|content| content.digest),
            to: to.map(|to| shown(to)),
            changed_while_read: content.is_some_and(|content| content.changed),
        }
    }
}

/// Times that no calendar reaches are left out.
fn time(at: Instant) -> Option<String> {
    let at = jiff::Timestamp::new(at.seconds, i32::try_from(at.nanos).ok()?).ok()?;
    Some(crate::model::time::rfc3339_ms(at))
}

/// One difference.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// `added`, `removed`, `changed`, `metadata`.
    pub change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Differences {
    pub before: Id,
    pub after: Id,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub metadata: u64,
    pub bytes_added: u64,
    pub bytes_removed: u64,
    pub changes: Vec<Difference>,
}

/// What a repository holds, and what that takes.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    pub repository: String,
    pub id: String,
    pub snapshots: u64,
    /// What all snapshots would restore to, taken together.
    pub snapshot_bytes: u64,
    pub chunks: u64,
    /// The content of all chunks, each once.
    pub content_bytes: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    pub index_bytes: u64,
    pub other_bytes: u64,
    /// Packs that a prune has found unused, and how many bytes they have.
    pub marked_packs: u64,
    pub marked_bytes: u64,
    pub damaged: Vec<String>,
}

impl Muster {
    pub async fn backup_list(&self, at: &Where, filter: &Filter) -> Result<Listed, ServiceError> {
        let opened = self.backup_open(at).await?;
        let found = opened.repository.snapshots().await?;
        let snapshots = found.whole.into_iter().filter(|(_, snapshot)| filter.fits(snapshot));
        let (proofs, valid, now) = (proof::load(&opened.repository).await?, self.backup_proof_valid(at)?, self.clock.now());
        let state = |id: &Id| {
            let tried = proofs.whole.iter().filter(|(_, proof)| proof.snapshot == *id);
            let trials: Vec<Trial> = tried.map(|(_, p)| Trial { at: p.time, ok: p.ok, why: p.why.clone() }).collect();
            Some(proof_state(&trials, now, valid))
        };
        Ok(Listed {
            snapshots: snapshots.map(|(id, snapshot)| Shot { proof: state(&id), ..Shot::of(id, snapshot) }).collect(),
            damaged: found.damaged.iter().chain(&proofs.damaged).map(ToString::to_string).collect(),
        })
    }

    /// One snapshot; each of its entries is given to `file`, if there is one.
    pub async fn backup_show(&self, at: &Where, name: &str, watch: &Watch, file: Option<&dyn Fn(&File)>) -> Result<Shot, ServiceError> {
        let opened = self.backup_open(at).await?;
        let (id, snapshot) = opened.repository.snapshot(name).await?;
        if let Some(file) = file {
            let index = whole(opened.repository.index().await?, watch);
            for chunk in &snapshot.list {
                let content = opened.repository.chunk(&index, chunk).await?;
                list::entries(chunk, &content)?.iter().for_each(|entry| file(&File::of(entry)));
            }
        }
        Ok(Shot::of(id, snapshot))
    }

    pub async fn backup_diff(&self, at: &Where, before: &str, after: &str, watch: &Watch) -> Result<Differences, ServiceError> {
        let opened = self.backup_open(at).await?;
        let repository = &opened.repository;
        let ((old_id, old), (new_id, new)) = (repository.snapshot(before).await?, repository.snapshot(after).await?);
        let index = whole(repository.index().await?, watch);
        let changes = diff::diff(repository, &index, &old, &new).await?;
        let mut all = Differences {
            before: old_id,
            after: new_id,
            added: 0,
            removed: 0,
            changed: 0,
            metadata: 0,
            bytes_added: 0,
            bytes_removed: 0,
            changes: Vec::new(),
        };
        for change in changes {
            all.take(change);
        }
        Ok(all)
    }

    pub async fn backup_stats(&self, at: &Where) -> Result<Totals, ServiceError> {
        let opened = self.backup_open(at).await?;
        totals(&opened.repository).await
    }
}

/// What is damaged in the index is told, and the rest is used.
pub(super) fn whole(found: Found<Index>, watch: &Watch) -> Index {
    found.damaged.iter().for_each(|damaged| watch.warn(damaged));
    found.whole
}

impl Differences {
    fn take(&mut self, change: diff::Change) {
        let mut one = Difference {
            path: shown(&change.path),
            path_hex: hex_path(&change.path),
            change: "",
            before: None,
            after: None,
            parts: Vec::new(),
        };
        match change.what {
            What::Added { size } => {
                (one.change, one.after) = ("added", Some(size));
                self.added += 1;
                self.bytes_added += size;
            }
            What::Removed { size } => {
                (one.change, one.before) = ("removed", Some(size));
                self.removed += 1;
                self.bytes_removed += size;
            }
            What::Changed { before, after } => {
                (one.change, one.before, one.after) = ("changed", Some(before), Some(after));
                self.changed += 1;
            }
            What::Metadata(parts) => {
                (one.change, one.parts) = ("metadata", parts);
                self.metadata += 1;
            }
        }
        self.changes.push(one);
    }
}

async fn totals(repository: &Repository) -> Result<Totals, ServiceError> {
    let snapshots = repository.snapshots().await?;
    let packs = repository.packs().await?;
    let marks = crate::repository::marks::load(repository).await?;
    let marked = crate::repository::marks::packs(&marks.whole, None);
    let mut seen = HashSet::new();
    let mut content = 0;
    for piece in packs.whole.iter().flat_map(|pack| &pack.pieces) {
        if seen.insert(piece.chunk) {
            content += u64::from(piece.length);
        }
    }
    let sum = |folder: &'static str| async move {
        let listed = repository.list(folder).await?;
        Ok::<_, ServiceError>((listed.len() as u64, listed.iter().map(|meta| meta.size).sum::<u64>()))
    };
    let (pack_count, pack_bytes) = sum(PACKS).await?;
    let mut other_bytes = 0;
    for folder in [SNAPSHOTS, MARKS, PROOFS] {
        other_bytes += sum(folder).await?.1;
    }
    let damaged = [&snapshots.damaged, &packs.damaged, &marks.damaged].into_iter().flatten().map(ToString::to_string).collect();
    Ok(Totals {
        repository: repository.place.clone(),
        id: repository.id.clone(),
        snapshots: snapshots.whole.len() as u64,
        snapshot_bytes: snapshots.whole.iter().map(|(_, snapshot)| snapshot.stats.bytes).sum(),
        chunks: seen.len() as u64,
        content_bytes: content,
        packs: pack_count,
        pack_bytes,
        index_bytes: sum(INDEX).await?.1,
        other_bytes,
        marked_packs: marked.len() as u64,
        marked_bytes: packs.whole.iter().filter(|pack| marked.contains(&pack.pack)).map(|pack| pack.size).sum(),
        damaged,
    })
}
