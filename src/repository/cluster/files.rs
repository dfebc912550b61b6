//! The files of a cluster whose server runs on this machine, read where they are while the server is told that a backup
//! is under way. What has not changed since the parent is not even opened, and of what has, pages are compared.
//!
//! Left out is what PostgreSQL itself leaves out: files of the running server, the log, replication slots, temporary and
//! unlogged relations. A file that vanishes meanwhile was dropped, which the log tells as well; any other that cannot be read ends
//! the backup, since one without it would be none.

use super::{
    page,
    stream::{Kept, Learnt, Old, Shared, lock},
};
use crate::providers::port::Lsn;
use crate::repository::{
    RepositoryError, Result,
    entry::{Entry, Meta, Node},
    globs::Globs,
    pages::{PAGE, PageCheck},
    source::{Body, Item, Parent, Reading, Source, Unreadable, unread},
    tree::{Options, Tree},
};
use std::{
    fs::File,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// As in PostgreSQL's `basebackup.c`: what it makes anew, and what would harm a copy.
const LEFT_OUT: &[&str] = &[
    "/postmaster.pid",
    "/postmaster.opts",
    "/backup_label",
    "/tablespace_map",
    "/backup_manifest",
    "/current_logfiles.tmp",
    "/postgresql.auto.conf.tmp",
    "pg_internal.init*",
    "pgsql_tmp*",
    "/pg_wal/*",
    "/pg_replslot/*",
    "/pg_dynshmem/*",
    "/pg_notify/*",
    "/pg_serial/*",
    "/pg_snapshots/*",
    "/pg_stat_tmp/*",
    "/pg_subtrans/*",
];
/// How often a page that seems wrong is read again: it may be being written.
const AGAIN: u32 = 5;
/// Read last: on a standby it says how far the log must be replayed.
const CONTROL: &[u8] = b"global/pg_control";

/// Ends the backup on the server, and gives the content of `backup_label`. Blocking.
pub type Stop = Box<dyn FnOnce() -> Result<String> + Send>;

pub struct ClusterFiles {
    root: PathBuf,
    tree: Tree,
    /// Tablespaces that are still to be read: number and place.
    tablespaces: Vec<(String, PathBuf)>,
    /// What stands before the paths of the tree that is being read, and where it is.
    prefix: Vec<u8>,
    within: PathBuf,
    old: Old,
    /// Pages have checksums, and were there before this position.
    checked: Option<Lsn>,
    learnt: Shared,
    control: Option<Item>,
    stop: Option<Stop>,
}

fn options() -> Result<Options> {
    let exclude = LEFT_OUT.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>();
    Ok(Options { exclude: Globs::new(&exclude)?, ..Options::default() })
}

impl ClusterFiles {
    /// `parent` twice: for what has not changed, in order, and for pages, in any.
    pub fn new(root: &Path, parent: (Parent, Parent), checked: Option<Lsn>, learnt: Shared, stop: Stop) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            tree: Tree::new(root, parent.0, options()?)?,
            tablespaces: Vec::new(),
            prefix: Vec::new(),
            within: root.to_owned(),
            old: Old::of(parent.1),
            checked,
            learnt,
            control: None,
            stop: Some(stop),
        })
    }

    fn step(&mut self) -> Result<Option<Item>> {
        loop {
            match self.tree.next().transpose()? {
                Some(Ok(item)) => {
                    if let Some(item) = self.take(item) {
                        return Ok(Some(item));
                    }
                }
                Some(Err(lost)) => self.lost(lost)?,
                None => {
                    if let Some((number, place)) = self.tablespaces.pop() {
                        self.prefix = format!("pg_tblspc/{number}/").into_bytes();
                        // What has not changed there is read all the same, and not stored.
                        self.tree = Tree::new(&place, Parent::none(), options()?)?;
                        self.within = place;
                    } else if let Some(control) = self.control.take() {
                        return Ok(Some(control));
                    } else {
                        return self.stop.take().map(|stop| stop().map(|label| self.label(label))).transpose();
                    }
                }
            }
        }
    }

    fn lost(&self, lost: Unreadable) -> Result<()> {
        let path = self.within.join(std::ffi::OsStr::from_bytes(&lost.path));
        // Dropped, or its segment was cut off, since its folder was read.
        if !path.exists() && path.parent().is_some_and(Path::exists) {
            return Ok(());
        }
        Err(RepositoryError::File { path, why: format!("{}: a backup without it would be none", lost.why) })
    }

    /// One entry as it goes into the snapshot; nothing of what is left out.
    fn take(&mut self, mut item: Item) -> Option<Item> {
        if self.is_passing(&item.entry.path) {
            return None;
        }
        let file = self.within.join(std::ffi::OsStr::from_bytes(&item.entry.path));
        item.entry.path = [&self.prefix[..], &item.entry.path].concat();
        if let Node::Symlink { target, .. } = &item.entry.node
            && let Some(number) = item.entry.path.strip_prefix(b"pg_tblspc/")
        {
            let number = String::from_utf8_lossy(number).into_owned();
            let place = PathBuf::from(std::ffi::OsStr::from_bytes(target));
            lock(&self.learnt).links.insert(number.clone(), place.to_string_lossy().into_owned());
            self.tablespaces.push((number, place));
            // Its own entry comes with its content.
            return None;
        }
        // A server's log may be a link to another disk: in a restored cluster it is a folder.
        if matches!(item.entry.node, Node::Symlink { .. }) && item.entry.path == b"pg_wal" {
            let meta = item.entry.node.meta().map(|meta| Meta { mode: 0o700, ..meta.clone() })?;
            return Some(Item { entry: Entry { path: b"pg_wal/".to_vec(), node: Node::Folder { meta } }, reading: Reading::Nothing });
        }
        if let Reading::Read(body) = item.reading {
            let size = item.entry.node.content().map_or(0, |content| content.size);
            let body: Box<dyn Body> = Box::new(Moving(body));
            item.reading = if size > 0 && size.is_multiple_of(PAGE as u64) {
                Reading::Pages(body, self.old.extents(&item.entry.path), self.check(&item.entry.path, file))
            } else {
                Reading::Read(body)
            };
        }
        if item.entry.path == CONTROL {
            self.control = Some(item);
            return None;
        }
        Some(item)
    }

    /// Of a relation that is temporary, or unlogged: of the latter only the initial fork counts.
    fn is_passing(&self, path: &[u8]) -> bool {
        let Some(name) = path.rsplit(|b| *b == b'/').next().and_then(|name| std::str::from_utf8(name).ok()) else { return false };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) {
            return digits(backend) && rest.bytes().next().is_some_and(|b| b.is_ascii_digit());
        }
        let number = name.split(['_', '.']).next().unwrap_or_default();
        if !digits(number) || name.contains("_init") {
            return false;
        }
        let file = self.within.join(std::ffi::OsStr::from_bytes(path));
        file.with_file_name(format!("{number}_init")).exists()
    }

    fn check(&self, path: &[u8], file: PathBuf) -> Option<PageCheck> {
        let (start, segment) = (self.checked?, page::segment(path)?);
        let (learnt, path) = (self.learnt.clone(), path.to_vec());
        Some(Arc::new(move |offset, content: &[u8]| {
            let mut seen = Learnt::default();
            super::stream::judge(&mut seen, &path, segment, start, offset, content);
            seen.corrupt.retain(|(_, block)| {
                let at = u64::from(block % super::stream::SEGMENT) * PAGE as u64;
                (0..AGAIN).all(|_| is_still_corrupt(&file, at, *block, start))
            });
            lock(&learnt).corrupt.append(&mut seen.corrupt);
        }))
    }

    fn label(&self, label: String) -> Item {
        let bytes = label.into_bytes();
        let meta = std::fs::metadata(&self.root).ok();
        let (uid, gid) = meta.map_or((0, 0), |meta| {
            use std::os::unix::fs::MetadataExt;
            (meta.uid(), meta.gid())
        });
        let meta = Meta { mode: 0o600, uid, gid, ..Default::default() };
        let node = Node::File { meta, ctime: Default::default(), inode: 0, content: unread(bytes.len() as u64) };
        Item { entry: Entry { path: b"backup_label".to_vec(), node }, reading: Reading::Read(Box::new(Kept(bytes, 0))) }
    }
}

fn is_still_corrupt(file: &Path, at: u64, block: u32, start: Lsn) -> bool {
    let mut page = vec![0; PAGE];
    let read = File::open(file).and_then(|file| file.read_exact_at(&mut page, at));
    // What is gone is nobody's page any more.
    read.is_ok() && page::is_corrupt(&page, block, start)
}

impl Source for ClusterFiles {
    fn next(&mut self) -> Option<Result<std::result::Result<Item, Unreadable>>> {
        self.step().transpose().map(|item| item.map(Ok))
    }
    fn in_order(&self) -> bool {
        false
    }
}

/// A file of a running server changes while it is read: the log makes it whole.
struct Moving(Box<dyn Body>);

impl Body for Moving {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        self.0.hole()
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// Is this the data directory of the server that answers? Its identifier, its port and when it was started say so.
pub fn is_its_directory(root: &Path, system: &str, port: &str, started: i64) -> Result<()> {
    let fail = |why: String| RepositoryError::File { path: root.to_owned(), why };
    let control =
        std::fs::read(root.join("global/pg_control")).map_err(|e| fail(format!("it is no data directory of PostgreSQL ({e})")))?;
    let found = control.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if found.to_string() != system {
        return Err(fail(format!("it holds the cluster {found}, and the server that answers has {system}: name its own directory")));
    }
    let pid = std::fs::read_to_string(root.join("postmaster.pid")).map_err(|e| fail(format!("no server runs on it ({e})")))?;
    let lines: Vec<&str> = pid.lines().map(str::trim).collect();
    let its: i64 = lines.get(2).and_then(|line| line.parse().ok()).unwrap_or_default();
    if lines.get(3) != Some(&port) || (its - started).abs() > 5 {
        return Err(fail(
            "another server of the same cluster runs on it, a standby perhaps: name the directory of the one in the URL".to_owned(),
        ));
    }
    Ok(())
}
