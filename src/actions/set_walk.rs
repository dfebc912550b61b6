//! A listing as a set: object by object in a known order, in bounded memory, from any key on.
//!
//! S3 lists by the bytes of keys. Some servers go folder by folder (SeaweedFS, S3's own directory buckets), which is an
//! order too, and as good to merge by when both sides have it. What has neither is sorted here: runs of it go to disk,
//! sorted, and are merged. Which order a server has is not asked but seen: the first key that comes too early says so.

use crate::providers::port::*;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::mpsc, task::JoinSet};

/// Which of two keys comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// As their bytes do.
    #[default]
    Bytes,
    /// The same with the slash before every other byte, so that a folder is over before its neighbour begins.
    Folders,
    /// As bytes do, once they were sorted on disk.
    Sorted,
}

impl Order {
    pub fn cmp(self, a: &str, b: &str) -> Ordering {
        let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        match self {
            Self::Bytes | Self::Sorted => a.cmp(b),
            Self::Folders => a.bytes().map(rank).cmp(b.bytes().map(rank)),
        }
    }
    /// What to try when a listing is not in this order.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Bytes => Some(Self::Folders),
            Self::Folders => Some(Self::Sorted),
            Self::Sorted => None,
        }
    }
}

/// What is listed.
#[derive(Clone)]
pub(crate) struct Listing {
    pub store: Arc<dyn ObjectRead>,
    pub prefix: String,
    /// All versions, not only what is there now.
    pub versions: bool,
}

/// All that is known of one key; newest first, never empty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item(pub Vec<ObjectVersion>);

impl Item {
    pub fn key(&self) -> &str {
        self.0.first().map_or("", |first| &first.key)
    }
    pub fn latest(&self) -> Option<&ObjectVersion> {
        self.0.first()
    }
}

#[derive(Debug)]
pub(crate) enum Broken {
    /// The listing is not in the order that was thought.
    Order,
    Port(PortError),
    Disk(String),
}

impl From<PortError> for Broken {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

/// Pages that were listed ahead of who takes them.
const AHEAD: usize = 2;
/// So many lines are sorted in memory at a time; twice as many with every so many runs, so that there are never very many.
const RUN: usize = 10_000;
const DOUBLES: usize = 64;

/// Pages of a listing, fetched beside whatever is done with them. Ends when it is dropped.
struct Feed {
    pages: mpsc::Receiver<PortResult<Vec<ObjectVersion>>>,
    _task: JoinSet<()>,
}

fn feed(listing: Listing, behind: Option<String>) -> Feed {
    let (send, pages) = mpsc::channel(AHEAD);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let end = if listing.versions { all_versions(&listing, behind, &send).await } else { objects(&listing, behind, &send).await };
        if let Err(error) = end {
            // Who is gone needs no reason.
            let _ = send.send(Err(error)).await;
        }
    });
    Feed { pages, _task: task }
}

type Pages = mpsc::Sender<PortResult<Vec<ObjectVersion>>>;

async fn objects(listing: &Listing, behind: Option<String>, to: &Pages) -> PortResult<()> {
    let mut page = match behind {
        Some(key) => listing.store.list_behind(&listing.prefix, &key).await?,
        None => listing.store.list(&listing.prefix, None).await?,
    };
    loop {
        if to.send(Ok(page.objects.into_iter().map(current).collect())).await.is_err() {
            return Ok(());
        }
        let Some(next) = page.next else { return Ok(()) };
        page = listing.store.list(&listing.prefix, Some(&next)).await?;
    }
}

async fn all_versions(listing: &Listing, behind: Option<String>, to: &Pages) -> PortResult<()> {
    let mut mark = behind.map(|key| VersionMark { key, version: None });
    loop {
        let page = listing.store.versions(&listing.prefix, mark.as_ref()).await?;
        if to.send(Ok(page.versions)).await.is_err() {
            return Ok(());
        }
        match page.next {
            Some(next) => mark = Some(next),
            None => return Ok(()),
        }
    }
}

fn current(meta: ObjectMeta) -> ObjectVersion {
    let ObjectMeta { key, size, etag, version, modified, .. } = meta;
    ObjectVersion { key, size, etag, version, modified, marker: false, latest: true }
}

/// One side of a comparison.
pub(crate) struct Walker {
    through: Through,
    order: Order,
    last: Option<String>,
    page: VecDeque<ObjectVersion>,
}

enum Through {
    Live(Feed),
    Disk(Merge),
}

impl Walker {
    /// From behind a key on. With [`Order::Sorted`] it is read from the runs under `runs`, which are made first if they
    /// are not there.
    pub async fn begin(listing: Listing, order: Order, behind: Option<String>, runs: &Path) -> Result<Self, Broken> {
        let through = if order == Order::Sorted {
            spool(listing, runs).await?;
            Through::Disk(Merge::open(runs, behind.as_deref()).map_err(|e| disk(runs, &e))?)
        } else {
            Through::Live(feed(listing, behind.clone()))
        };
        Ok(Self { through, order, last: behind, page: VecDeque::new() })
    }

    /// All that there is of the next key.
    pub async fn next(&mut self) -> Result<Option<Item>, Broken> {
        let Some(first) = self.version().await? else { return Ok(None) };
        let in_order = |last: &String| self.order.cmp(last, &first.key) == Ordering::Less;
        if !self.last.as_ref().is_none_or(in_order) {
            return Err(Broken::Order);
        }
        let key = first.key.clone();
        let mut item = Item(vec![first]);
        while let Some(more) = self.version().await? {
            if more.key != key {
                self.page.push_front(more);
                break;
            }
            item.0.push(more);
        }
        self.last = Some(key);
        Ok(Some(item))
    }

    async fn version(&mut self) -> Result<Option<ObjectVersion>, Broken> {
        loop {
            if let Some(next) = self.page.pop_front() {
                return Ok(Some(next));
            }
            match &mut self.through {
                Through::Disk(merge) => return merge.next(),
                Through::Live(feed) => match feed.pages.recv().await {
                    Some(page) => self.page.extend(page?),
                    None => return Ok(None),
                },
            }
        }
    }
}

fn disk(path: &Path, error: &std::io::Error) -> Broken {
    Broken::Disk(format!("{}: {error}", path.display()))
}

/// Within a key the newest comes first.
fn sorts(a: &ObjectVersion, b: &ObjectVersion) -> Ordering {
    (&a.key, b.latest, b.modified).cmp(&(&b.key, a.latest, a.modified))
}

/// Says that all runs are there.
const WHOLE: &str = "whole";

/// Lists everything into sorted runs on disk. What an earlier try finished is taken as it is.
async fn spool(listing: Listing, runs: &Path) -> Result<(), Broken> {
    if runs.join(WHOLE).exists() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(runs);
    std::fs::create_dir_all(runs).map_err(|e| disk(runs, &e))?;
    let (mut feed, mut run, mut number) = (feed(listing, None), Vec::new(), 0);
    while let Some(page) = feed.pages.recv().await {
        run.extend(page?);
        if run.len() >= RUN << (number / DOUBLES) {
            write_run(std::mem::take(&mut run), runs.join(format!("{number:06}.run"))).await?;
            number += 1;
        }
    }
    write_run(run, runs.join(format!("{number:06}.run"))).await?;
    std::fs::write(runs.join(WHOLE), b"").map_err(|e| disk(runs, &e))
}

async fn write_run(mut run: Vec<ObjectVersion>, path: PathBuf) -> Result<(), Broken> {
    let work = tokio::task::spawn_blocking(move || {
        run.sort_by(sorts);
        let mut file = BufWriter::new(File::create(&path)?);
        for version in &run {
            serde_json::to_writer(&mut file, version)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    });
    match work.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Broken::Disk(format!("sorting a listing on disk: {e}"))),
        Err(e) => Err(Broken::Disk(e.to_string())),
    }
}

/// Sorted runs, read as one.
struct Merge {
    runs: Vec<(ObjectVersion, BufReader<File>)>,
    path: PathBuf,
}

impl Merge {
    fn open(path: &Path, behind: Option<&str>) -> std::io::Result<Self> {
        let mut merge = Self { runs: Vec::new(), path: path.to_owned() };
        for entry in std::fs::read_dir(path)? {
            let file = entry?.path();
            if file.extension().is_none_or(|e| e != "run") {
                continue;
            }
            let mut lines = BufReader::with_capacity(16 * 1024, File::open(file)?);
            while let Some(version) = line(&mut lines)? {
                if behind.is_none_or(|behind| version.key.as_str() > behind) {
                    merge.runs.push((version, lines));
                    break;
                }
            }
        }
        Ok(merge)
    }

    fn next(&mut self) -> Result<Option<ObjectVersion>, Broken> {
        let Some(first) = (0..self.runs.len()).min_by(|a, b| sorts(&self.runs[*a].0, &self.runs[*b].0)) else { return Ok(None) };
        let read = line(&mut self.runs[first].1).map_err(|e| disk(&self.path, &e))?;
        Ok(Some(match read {
            Some(next) => std::mem::replace(&mut self.runs[first].0, next),
            None => self.runs.swap_remove(first).0,
        }))
    }
}

fn line(lines: &mut BufReader<File>) -> std::io::Result<Option<ObjectVersion>> {
    let mut text = String::new();
    if lines.read_line(&mut text)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str) -> ObjectVersion {
        ObjectVersion { key: key.into(), size: 1, etag: None, version: None, modified: None, marker: false, latest: true }
    }

    #[test]
    fn folders_are_over_before_their_neighbours_begin() {
        let mut keys = vec!["a/b", "a-b", "a", "a.x/y", "a/a", "b", "a!"];
        keys.sort_by(|a, b| Order::Folders.cmp(a, b));
        assert_eq!(keys, ["a", "a/a", "a/b", "a!", "a-b", "a.x/y", "b"]);
        keys.sort_by(|a, b| Order::Bytes.cmp(a, b));
        assert_eq!(keys, ["a", "a!", "a-b", "a.x/y", "a/a", "a/b", "b"]);
    }

    #[tokio::test]
    async fn runs_are_read_as_one_from_any_key_on() {
        let dir = tempfile::tempdir().unwrap();
        for (number, keys) in [["c", "a", "e"], ["d", "b", "f"]].iter().enumerate() {
            write_run(keys.iter().map(|k| version(k)).collect(), dir.path().join(format!("{number}.run"))).await.unwrap();
        }
        for (behind, want) in [(None, "abcdef"), (Some("b"), "cdef"), (Some("bb"), "cdef"), (Some("f"), "")] {
            let mut merge = Merge::open(dir.path(), behind).unwrap();
            let mut found = String::new();
            while let Some(next) = merge.next().unwrap() {
                found.push_str(&next.key);
            }
            assert_eq!(found, want);
        }
    }
}
