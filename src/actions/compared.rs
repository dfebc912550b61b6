//! What came back, compared with the snapshot that it came from: every file against its digest, every link and folder
//! against the list. It reads only.

use crate::providers::clock::Clock;
use crate::repository::{
    Result,
    entry::{Content, Entry, Node},
    globs::Globs,
    index::Index,
    list,
    open::Repository,
    progress::Progress,
    snapshot::Snapshot,
};
use jiff::Timestamp;
use std::{
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// So many differences are told by name.
const TOLD: usize = 5;

#[derive(Clone, Debug, Default)]
pub(crate) struct Compared {
    pub files: u64,
    pub bytes: u64,
    /// When the first file was known to be whole.
    pub first_at: Option<Timestamp>,
    wrong: u64,
    told: Vec<String>,
}

impl Compared {
    pub fn is_good(&self) -> bool {
        self.wrong == 0
    }
    /// What is wrong, in one sentence.
    pub fn why(&self) -> String {
        let more = self.wrong.saturating_sub(self.told.len() as u64);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("{} of what the snapshot holds did not come back: {}{more}", self.wrong, self.told.join("; "))
    }
    pub fn lost(&mut self, what: &str, why: &str) {
        self.wrong += 1;
        if self.told.len() < TOLD {
            self.told.push(format!("{what}: {why}"));
        }
    }
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.first_at = self.first_at.or(other.first_at);
        self.wrong += other.wrong;
        let room = TOLD.saturating_sub(self.told.len());
        self.told.extend(other.told.into_iter().take(room));
    }
}

/// Compares everything that the snapshot holds, or what of it the patterns match, with what lies in `folder`. What lies
/// there besides is nobody's concern.
pub(crate) async fn compare(
    repository: &Repository,
    snapshot: &Snapshot,
    folder: &Path,
    include: &Globs,
    clock: &Arc<dyn Clock>,
    progress: &Arc<Progress>,
) -> Result<Compared> {
    let index: Index = repository.index().await?.whole;
    let mut all = Compared::default();
    for chunk in &snapshot.list {
        let entries = match repository.chunk(&index, chunk).await.and_then(|content| list::entries(chunk, &content)) {
            Ok(entries) => entries,
            Err(error @ crate::repository::RepositoryError::Store { .. }) => return Err(error),
            Err(error) => {
                all.lost(&format!("a part of the list ({})", chunk.short()), &error.to_string());
                continue;
            }
        };
        let entries = meant(entries, include);
        let (folder, clock, progress) = (folder.to_owned(), clock.clone(), progress.clone());
        let part = tokio::task::spawn_blocking(move || compare_part(&entries, &folder, &*clock, &progress)).await;
        all.add(part.map_err(|e| crate::repository::RepositoryError::Interrupted(e.to_string()))?);
    }
    Ok(all)
}

fn meant(mut entries: Vec<Entry>, include: &Globs) -> Vec<Entry> {
    entries.retain(|entry| include.is_empty() || (!entry.path.ends_with(b"/") && include.fits_within(&entry.path)));
    entries
}

fn compare_part(entries: &[Entry], folder: &Path, clock: &dyn Clock, progress: &Progress) -> Compared {
    let mut part = Compared::default();
    for entry in entries {
        if progress.is_stopped() {
            part.lost(&entry.shown(), "it was not compared: the step was stopped");
            return part;
        }
        match one(entry, folder) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                part.files += 1;
                part.bytes += bytes;
                part.first_at.get_or_insert_with(|| clock.now());
                progress.add(1, bytes);
            }
            Err(why) => part.lost(&entry.shown(), &why),
        }
    }
    part
}

/// The bytes of a file that is whole; `None` for what has no content of its own.
fn one(entry: &Entry, folder: &Path) -> std::result::Result<Option<u64>, String> {
    let path = place(folder, &entry.path).ok_or("its path leads out of the target")?;
    let said = |e: std::io::Error| if e.kind() == std::io::ErrorKind::NotFound { "it is missing".to_owned() } else { e.to_string() };
    let there = std::fs::symlink_metadata(&path).map_err(said)?;
    match &entry.node {
        Node::File { content, .. } | Node::Object { content, .. } if there.is_file() => whole(&path, content).map(Some),
        Node::File { .. } | Node::Object { .. } => Err("it is no file".to_owned()),
        Node::Folder { .. } if !there.is_dir() => Err("it is no folder".to_owned()),
        Node::Symlink { target, .. } => {
            let to = std::fs::read_link(&path).map_err(said)?;
            if to.as_os_str().as_bytes() == target.as_slice() { Ok(None) } else { Err(format!("it leads to {}", to.display())) }
        }
        Node::HardLink { to, .. } => {
            use std::os::unix::fs::MetadataExt;
            let first = std::fs::symlink_metadata(place(folder, to).ok_or("it leads out of the target")?).map_err(said)?;
            if (first.dev(), first.ino()) == (there.dev(), there.ino()) { Ok(None) } else { Err("it is a file of its own".to_owned()) }
        }
        _ => Ok(None),
    }
}

fn whole(path: &Path, content: &Content) -> std::result::Result<u64, String> {
    let mut digest = blake3::Hasher::new();
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let bytes = std::io::copy(&mut file, &mut digest).map_err(|e| e.to_string())?;
    if bytes != content.size {
        return Err(format!("it has {bytes} bytes instead of {}", content.size));
    }
    if digest.finalize().as_bytes() == &content.digest.0 { Ok(bytes) } else { Err("its digest differs".to_owned()) }
}

/// A list may come from whoever can write to the repository: no path of it is followed out of the folder.
fn place(folder: &Path, path: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(path))
}
