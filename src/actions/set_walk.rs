//! A listing as a set: object by object in a known order, in bounded memory, from any key on.
//!
//! S3 lists by the bytes of keys. Some servers go folder by folder (SeaweedFS, S3's own directory buckets), which is an
//! order too, and as good to merge by when both sides have it. What has neither is sorted here: runs of it go to disk,
//! sorted, and are merged. Which order a server has is not asked but seen: the first key that comes too early says so.

use super::{
    contract::ApplyError,
    set_runs::{Line, Merge, Runs},
    shared::{fail, in_time},
};
use crate::model::effect::Failure;
use crate::providers::{clock::Clock, port::*};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
    time::Duration,
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
    /// For how long a page may stay away; as long as the store itself waits when `None`.
    pub patience: Option<(Arc<dyn Clock>, Duration)>,
}

impl Listing {
    /// What is there now.
    pub fn of(store: Arc<dyn ObjectRead>, prefix: &str) -> Self {
        Self { store, prefix: prefix.to_owned(), versions: false, patience: None }
    }
    async fn page<T>(&self, question: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
        match &self.patience {
            Some((clock, limit)) => in_time(&**clock, *limit, question).await,
            None => question.await,
        }
    }
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
    /// The object that is there now, as a listing of objects tells it.
    pub fn object(&self) -> Option<ObjectMeta> {
        let ObjectVersion { key, size, etag, version, modified, .. } = self.latest().filter(|latest| !latest.marker)?.clone();
        Some(ObjectMeta { key, size, etag, version, modified, metadata: BTreeMap::new(), checksum: None })
    }
}

#[derive(Debug)]
pub(crate) enum Broken {
    /// The listing is not in the order that was thought.
    Order,
    Port(PortError),
    /// The source's listing alone.
    Source(PortError),
    Disk(String),
    /// The manifest is none, or not whole.
    Unreadable(Failure),
}

impl From<PortError> for Broken {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

impl From<Broken> for ApplyError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Order => fail("scratch", "a listing that was sorted here is not"),
            Broken::Port(e) | Broken::Source(e) => e.into(),
            Broken::Disk(why) => fail("scratch", why),
            Broken::Unreadable(why) => Self::Definite(why),
        }
    }
}

/// Pages that were listed ahead of who takes them.
const AHEAD: usize = 2;

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
        Some(key) => listing.page(listing.store.list_behind(&listing.prefix, &key)).await?,
        None => listing.page(listing.store.list(&listing.prefix, None)).await?,
    };
    loop {
        if to.send(Ok(page.objects.into_iter().map(current).collect())).await.is_err() {
            return Ok(());
        }
        let Some(next) = page.next else { return Ok(()) };
        page = listing.page(listing.store.list(&listing.prefix, Some(&next))).await?;
    }
}

async fn all_versions(listing: &Listing, behind: Option<String>, to: &Pages) -> PortResult<()> {
    let mut mark = behind.map(|key| VersionMark { key, version: None });
    loop {
        let page = listing.page(listing.store.versions(&listing.prefix, mark.as_ref())).await?;
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
    Disk(Merge<ObjectVersion>),
}

impl Walker {
    /// From behind a key on. With [`Order::Sorted`] it is read from the runs under `runs`, which are made first if they
    /// are not there.
    pub async fn begin(listing: Listing, order: Order, behind: Option<String>, runs: &Path) -> Result<Self, Broken> {
        let through = if order == Order::Sorted {
            spool(listing, runs).await?;
            Through::Disk(Merge::open(runs, order, behind.as_deref())?)
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

impl Line for ObjectVersion {
    fn key(&self) -> &str {
        &self.key
    }
    /// The newest comes first.
    fn within(&self, other: &Self) -> Ordering {
        (other.latest, other.modified).cmp(&(self.latest, self.modified))
    }
}

/// Lists everything into sorted runs on disk. What an earlier try finished is taken as it is.
async fn spool(listing: Listing, folder: &Path) -> Result<(), Broken> {
    if Runs::<ObjectVersion>::are_whole(folder) {
        return Ok(());
    }
    let mut runs = Runs::begin(folder, Order::Sorted)?;
    let mut feed = feed(listing, None);
    while let Some(page) = feed.pages.recv().await {
        let page = page?;
        let taken = tokio::task::spawn_blocking(move || {
            for version in page {
                runs.push(version)?;
            }
            Ok::<_, Broken>(runs)
        });
        runs = taken.await.map_err(|e| Broken::Disk(e.to_string()))??;
    }
    tokio::task::spawn_blocking(move || runs.finish()).await.map_err(|e| Broken::Disk(e.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_over_before_their_neighbours_begin() {
        let mut keys = vec!["a/b", "a-b", "a", "a.x/y", "a/a", "b", "a!"];
        keys.sort_by(|a, b| Order::Folders.cmp(a, b));
        assert_eq!(keys, ["a", "a/a", "a/b", "a!", "a-b", "a.x/y", "b"]);
        keys.sort_by(|a, b| Order::Bytes.cmp(a, b));
        assert_eq!(keys, ["a", "a!", "a-b", "a.x/y", "a/a", "a/b", "b"]);
    }
}
