//! The source that a backup reads: what comes on the replication connection, as entries in the order in which they come.
//!
//! Content is handed on as it comes; at most [`WAITING`] messages of 32 KiB lie between the connection and whoever reads.

use super::{
    page,
    tar::{self, BLOCK, Header, Kind},
};
use crate::providers::port::Lsn;
use crate::repository::{
    RepositoryError, Result,
    entry::{Content, Entry, Extent, Instant, Meta, Node},
    list,
    names::Id,
    pages::{PAGE, PageCheck},
    source::{Body, Item, Parent, Reading, Source, Unreadable, unread},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc::Receiver;

/// Messages that have come and are not read yet.
pub const WAITING: usize = 128;
/// The stream's own manifest, as `pg_basebackup` calls it.
pub const MANIFEST: &[u8] = b"backup_manifest";

/// What comes on the connection.
pub enum Came {
    /// The backup began at this position of the log.
    Started(Lsn),
    /// An archive begins: of the data directory, or of a tablespace by its number.
    Archive(Option<String>),
    Manifest,
    Data(Bytes),
    /// All of it is here.
    End,
    Failed(RepositoryError),
}

/// What was learnt while the stream was read.
#[derive(Default)]
pub struct Learnt {
    /// Pages whose checksums are wrong: file and block.
    pub corrupt: Vec<(Vec<u8>, u32)>,
    /// Where the server's tablespaces are, by number.
    pub links: BTreeMap<String, String>,
    /// Every file and its size, for the comparison with the manifest.
    pub files: HashMap<Vec<u8>, u64>,
    pub manifest: Vec<u8>,
}

pub type Shared = Arc<Mutex<Learnt>>;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection's end, shared with the body that is being read.
struct Input {
    come: Receiver<Came>,
    data: Bytes,
    /// What came while data were expected.
    next: Option<Came>,
    failed: Option<RepositoryError>,
}

impl Input {
    /// At most so many bytes of the archive; none at its end.
    fn take(&mut self, most: usize) -> std::io::Result<Bytes> {
        while self.data.is_empty() && self.next.is_none() && self.failed.is_none() {
            match self.come.blocking_recv() {
                Some(Came::Data(data)) => self.data = data,
                Some(Came::Failed(error)) => self.failed = Some(error),
                Some(other) => self.next = Some(other),
                None => self.failed = Some(RepositoryError::Interrupted("the stream of the backup has ended".to_owned())),
            }
        }
        if self.failed.is_some() {
            return Err(std::io::Error::other("the stream of the backup broke off"));
        }
        Ok(self.data.split_to(most.min(self.data.len())))
    }

    fn skip(&mut self, mut bytes: u64) -> std::io::Result<()> {
        while bytes > 0 {
            let taken = self.take(usize::try_from(bytes).unwrap_or(usize::MAX))?;
            if taken.is_empty() {
                return Err(std::io::Error::other("an archive of the backup ends in the middle of a file"));
            }
            bytes -= taken.len() as u64;
        }
        Ok(())
    }

    /// What is not data: how the stream goes on.
    fn turn(&mut self) -> Came {
        match self.take(0) {
            Ok(_) => self.next.take().unwrap_or(Came::End),
            Err(_) => Came::Failed(self.failed.take().unwrap_or_else(|| RepositoryError::Interrupted("the stream has ended".to_owned()))),
        }
    }
}

/// The files of the parent snapshot, in any order.
pub(super) struct Old {
    files: HashMap<Vec<u8>, Content>,
    fetch: Box<dyn FnMut(&Id) -> Result<Vec<u8>> + Send>,
}

impl Old {
    pub fn of(parent: Parent) -> Self {
        let (files, fetch) = parent.all_files();
        Self { files, fetch }
    }
    /// A parent that is damaged costs storing again, not the backup.
    pub fn extents(&mut self, path: &[u8]) -> Vec<Extent> {
        let Some(content) = self.files.remove(path) else { return Vec::new() };
        list::extents(path, &content, &mut self.fetch).unwrap_or_default()
    }
}

pub struct ClusterStream {
    input: Arc<Mutex<Input>>,
    parent: Option<Parent>,
    old: Option<Old>,
    learnt: Shared,
    /// Pages have checksums.
    checksums: bool,
    start: Lsn,
    /// The archive that is being read: what stands before its paths.
    prefix: Option<Vec<u8>>,
    /// What is left of the last file, up to the next header.
    left: Arc<Mutex<u64>>,
    /// What everything has whose header says nothing else: whose it is, and a time.
    like: Meta,
    /// Given already.
    folders: BTreeSet<Vec<u8>>,
    pending: Vec<Item>,
    ended: bool,
}

impl ClusterStream {
    pub fn new(come: Receiver<Came>, parent: Parent, checksums: bool, learnt: Shared) -> Self {
        let input = Input { come, data: Bytes::new(), next: None, failed: None };
        Self {
            input: Arc::new(Mutex::new(input)),
            parent: Some(parent),
            old: None,
            learnt,
            checksums,
            start: Lsn(0),
            prefix: None,
            left: Arc::default(),
            like: Meta::default(),
            folders: BTreeSet::new(),
            pending: Vec::new(),
            ended: false,
        }
    }

    fn step(&mut self) -> Result<Option<Item>> {
        if self.old.is_none()
            && let Some(parent) = self.parent.take()
        {
            self.old = Some(Old::of(parent));
        }
        loop {
            if let Some(item) = self.pending.pop() {
                return Ok(Some(item));
            }
            if self.ended {
                return Ok(None);
            }
            if self.prefix.is_some()
                && let Some(header) = self.header()?
            {
                if let Some(item) = self.entry(header)? {
                    return Ok(Some(item));
                }
                continue;
            }
            let turn = lock(&self.input).turn();
            self.turned(turn)?;
        }
    }

    /// The stream goes on with something else than data.
    fn turned(&mut self, came: Came) -> Result<()> {
        self.prefix = None;
        match came {
            Came::Started(start) => self.start = start,
            Came::Archive(None) => self.prefix = Some(Vec::new()),
            Came::Archive(Some(number)) => self.prefix = Some(format!("pg_tblspc/{number}/").into_bytes()),
            Came::Manifest => self.manifest()?,
            Came::End => self.ended = true,
            Came::Failed(error) => return Err(error),
            Came::Data(_) => return Err(wrong("data outside of an archive")),
        }
        Ok(())
    }

    /// The next header of this archive; `None` at its end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut input = lock(&self.input);
        let broken = |input: &mut Input, why: std::io::Error| input.failed.take().unwrap_or_else(|| wrong(&why));
        let left = std::mem::take(&mut *lock(&self.left));
        input.skip(left).map_err(|why| broken(&mut input, why))?;
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let taken = input.take(BLOCK - filled).map_err(|why| broken(&mut input, why))?;
            if taken.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(wrong("an archive ends in the middle of a header")) };
            }
            block[filled..filled + taken.len()].copy_from_slice(&taken);
            filled += taken.len();
        }
        match tar::header(&block).map_err(|what| wrong(&what))? {
            Some(header) => Ok(Some(header)),
            // The blocks at the end.
            None => {
                drop(input);
                self.header()
            }
        }
    }

    fn entry(&mut self, header: Header) -> Result<Option<Item>> {
        self.like = Meta { mode: 0o700, ..meta_of(&header) };
        let prefix = self.prefix.clone().unwrap_or_default();
        for folder in [Vec::new(), prefix.clone()] {
            self.folder(&folder, &header);
        }
        let mut path = [prefix, header.path.clone()].concat();
        match header.kind {
            Kind::Folder => {
                path.push(b'/');
                self.folder(&path, &header);
                Ok(None)
            }
            Kind::Link { ref to } => {
                let number = header.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
                let (number, to) = (String::from_utf8_lossy(number).into_owned(), String::from_utf8_lossy(to).into_owned());
                lock(&self.learnt).links.insert(number, to);
                path.push(b'/');
                self.folder(&path, &header);
                Ok(None)
            }
            Kind::File => Ok(Some(self.file(path, &header))),
        }
    }

    /// A folder, once. One that the stream says nothing of belongs to whom the others belong to.
    fn folder(&mut self, path: &[u8], header: &Header) {
        if self.folders.insert(path.to_vec()) {
            let meta = if header.kind == Kind::Folder { meta_of(header) } else { self.like.clone() };
            self.pending.push(Item { entry: Entry { path: path.to_vec(), node: Node::Folder { meta } }, reading: Reading::Nothing });
        }
    }

    fn file(&mut self, path: Vec<u8>, header: &Header) -> Item {
        *lock(&self.left) = header.size + tar::padding(header.size) as u64;
        lock(&self.learnt).files.insert(path.clone(), header.size);
        let body = FileBody { input: self.input.clone(), left: self.left.clone(), size: header.size, at: 0 };
        let meta = meta_of(header);
        let node = Node::File { ctime: meta.mtime, meta, inode: 0, content: unread(header.size) };
        let pages = header.size > 0 && header.size.is_multiple_of(PAGE as u64);
        let reading = if pages {
            let before = self.old.as_mut().map(|old| old.extents(&path)).unwrap_or_default();
            Reading::Pages(Box::new(body), before, self.check(&path))
        } else {
            Reading::Read(Box::new(body))
        };
        Item { entry: Entry { path, node }, reading }
    }

    /// Looks at the pages of a relation's file.
    fn check(&self, path: &[u8]) -> Option<PageCheck> {
        let segment = page::segment(path).filter(|_| self.checksums)?;
        let (learnt, path, start) = (self.learnt.clone(), path.to_vec(), self.start);
        Some(Arc::new(move |offset, content: &[u8]| {
            let mut seen = Learnt::default();
            judge(&mut seen, &path, segment, start, offset, content);
            if !seen.corrupt.is_empty() {
                lock(&learnt).corrupt.append(&mut seen.corrupt);
            }
        }))
    }

    /// The manifest is small beside what it describes: 150 bytes a file.
    fn manifest(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        let mut input = lock(&self.input);
        loop {
            let taken = input.take(usize::MAX);
            let taken = taken.map_err(|why| input.failed.take().unwrap_or_else(|| wrong(&why)))?;
            if taken.is_empty() {
                break;
            }
            bytes.extend_from_slice(&taken);
        }
        drop(input);
        lock(&self.learnt).manifest.clone_from(&bytes);
        let meta = Meta { mode: 0o600, ..self.like.clone() };
        let node = Node::File { ctime: meta.mtime, meta, inode: 0, content: unread(bytes.len() as u64) };
        let reading = Reading::Read(Box::new(Kept(bytes, 0)));
        self.pending.push(Item { entry: Entry { path: MANIFEST.to_vec(), node }, reading });
        Ok(())
    }
}

/// A relation's blocks in one of its files of 1 GiB.
pub(super) const SEGMENT: u32 = (1 << 30) / PAGE as u32;

/// Blocks are counted over all files of a relation.
pub(super) fn judge(learnt: &mut Learnt, path: &[u8], segment: u32, start: Lsn, offset: u64, content: &[u8]) {
    let first = segment.wrapping_mul(SEGMENT).wrapping_add((offset / PAGE as u64) as u32);
    for (block, page) in (first..).zip(content.chunks_exact(PAGE)) {
        if page::is_corrupt(page, block, start) {
            learnt.corrupt.push((path.to_vec(), block));
        }
    }
}

fn wrong(what: &(impl std::fmt::Display + ?Sized)) -> RepositoryError {
    RepositoryError::Refused(format!("the server's backup is not what it must be: {what}"))
}

fn meta_of(header: &Header) -> Meta {
    Meta { mode: header.mode, uid: header.uid, gid: header.gid, mtime: Instant { seconds: header.mtime, nanos: 0 }, ..Meta::default() }
}

impl Source for ClusterStream {
    fn next(&mut self) -> Option<Result<std::result::Result<Item, Unreadable>>> {
        self.step().transpose().map(|item| item.map(Ok))
    }
    fn in_order(&self) -> bool {
        false
    }
}

/// The content of one file in the stream.
struct FileBody {
    input: Arc<Mutex<Input>>,
    left: Arc<Mutex<u64>>,
    size: u64,
    at: u64,
}

impl Body for FileBody {
    /// Whole pages, so that none is seen in two halves.
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let (mut input, mut filled) = (lock(&self.input), 0);
        let most = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(into.len());
        while filled < most {
            let taken = input.take(most - filled)?;
            if taken.is_empty() {
                return Err(std::io::Error::other("an archive of the backup ends in the middle of a file"));
            }
            into[filled..filled + taken.len()].copy_from_slice(&taken);
            filled += taken.len();
        }
        self.at += filled as u64;
        *lock(&self.left) -= filled as u64;
        Ok(filled)
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    /// It may well: the log makes it whole.
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// Something that is in memory already.
pub struct Kept(pub Vec<u8>, pub usize);

impl Body for Kept {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.0[self.1..];
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        self.1 += length;
        Ok(length)
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}
