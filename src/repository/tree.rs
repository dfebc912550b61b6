//! A folder of a file system, or a single file, as a source.
//!
//! It is walked in the order of the paths' bytes, where the path of a folder ends with "/": then what is in a folder
//! follows it at once, and the walk goes along the parent's list. Each open folder is held by its descriptor and its
//! names are looked up from there, so that nobody can move another folder in between while we walk. Links are never
//! followed, but for the root itself: whoever names a link to a volume means the volume.
//!
//! A file is believed to be unchanged when size, time of change, time of change of its metadata (which nobody can set
//! back) and inode are those of the parent, and it lay still for a moment when the parent's backup began. Anything that
//! cannot be read, or is gone between the look into its folder and the look at itself, is given by name with the reason.

use super::{
    RepositoryError, Result,
    attributes::{Attributes, Of, Pairs},
    entry::{Content, Entry, Instant, Meta, Node},
    globs::Globs,
    source::{Item, Parent, Reading, Source, Unreadable, unread},
    tree_body::{FileBody, Seen},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, major, minor, openat, readlinkat, statat},
    io::Errno,
};
use std::{
    collections::HashMap,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Clocks of file systems advance in steps of up to 10 ms: what changed so shortly before the parent was read may have
/// changed again, within the same step, after it was read.
const STEP: i128 = 20_000_000;
/// Those of some go by whole seconds (ext3, NFS over such), or by two (FAT): there a time has no fraction.
const COARSE: i128 = 2_100_000_000;

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Folders on which another file system is mounted are given without what is in them.
    pub one_file_system: bool,
    pub exclude: Globs,
    /// Nothing is believed to be unchanged.
    pub reread: bool,
}

pub struct Tree {
    parent: Parent,
    options: Options,
    device: u64,
    /// The folders that we are in, the innermost last.
    open: Vec<Folder>,
    /// Of what is looked at.
    path: Vec<u8>,
    /// The first path of every file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    attributes: Attributes,
    listing: Vec<u8>,
    /// What comes before anything else is looked at: the root, and what is wrong with a folder just given.
    first: Option<Item>,
    late: Option<Unreadable>,
}

/// An open folder, and what is left of its names.
struct Folder {
    fd: OwnedFd,
    /// The length of its path.
    depth: usize,
    names: Names,
}

/// Names, those of folders with "/" behind them, in order; one allocation for all.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    order: Vec<Range<usize>>,
}

impl Names {
    fn add(&mut self, name: &[u8], folder: bool) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        if folder {
            self.bytes.push(b'/');
        }
        self.order.push(start..self.bytes.len());
    }
    /// Sorted from the last to the first, so that they are taken from the end. A name that is changed to another and back while
    /// they are read may have come twice.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.order.sort_unstable_by(|a, b| bytes[b.clone()].cmp(&bytes[a.clone()]));
        self.order.dedup_by(|a, b| bytes[a.clone()] == bytes[b.clone()]);
    }
    fn take(&mut self) -> Option<Range<usize>> {
        self.order.pop()
    }
}

type Given = std::result::Result<Item, Unreadable>;

impl Tree {
    pub fn new(root: &Path, parent: Parent, options: Options) -> Result<Self> {
        let wrong = |why: Errno| {
            let why = format!("it cannot be backed up: {}; name a folder or file that is there and may be read", text(why));
            RepositoryError::File { path: PathBuf::from(root), why }
        };
        let stat = statat(CWD, root, AtFlags::empty()).map_err(wrong)?;
        let mut tree = Self {
            parent,
            options,
            device: stat.st_dev,
            open: Vec::new(),
            path: Vec::new(),
            links: HashMap::new(),
            attributes: Attributes::default(),
            listing: Vec::with_capacity(64 * 1024),
            first: None,
            late: None,
        };
        if is_folder(&stat) {
            let fd = openat(CWD, root, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(wrong)?;
            tree.first = Some(tree.enter(fd).map_err(wrong)?);
        } else {
            let whole = root.canonicalize().map_err(|why| wrong(Errno::from_io_error(&why).unwrap_or(Errno::IO)))?;
            let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else { return Err(wrong(Errno::INVAL)) };
            let fd = openat(CWD, folder, FOLDER, Mode::empty()).map_err(wrong)?;
            let mut names = Names::default();
            names.add(name.as_bytes(), false);
            tree.open.push(Folder { fd, depth: 0, names });
        }
        Ok(tree)
    }

    /// Looks at one name of an open folder; its path is in `self.path`.
    fn look(&mut self, folder: &Folder, name: &[u8]) -> Result<Given> {
        let bare = name.strip_suffix(b"/").unwrap_or(name);
        let stat = match statat(&folder.fd, bare, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(why) => return Ok(Err(self.unreadable(text(why)))),
        };
        if is_folder(&stat) != name.ends_with(b"/") {
            return Ok(Err(self.unreadable("something else took its place while its folder was read; the next backup will have it")));
        }
        if is_folder(&stat) {
            return Ok(self.folder(folder, bare, &stat));
        }
        let twin = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&twin)
        {
            let to = first.clone();
            let meta = meta(&stat, self.attributes.read(Of::Name(folder.fd.as_fd(), bare)));
            return Ok(Ok(self.item(Node::HardLink { meta, to }, Reading::Nothing)));
        }
        let given = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(folder, bare, &stat)?,
            other => self.special(folder, bare, &stat, other),
        };
        if stat.st_nlink > 1 && given.is_ok() {
            self.links.insert(twin, self.path.clone());
        }
        Ok(given)
    }

    fn folder(&mut self, within: &Folder, name: &[u8], stat: &Stat) -> Given {
        if self.options.one_file_system && stat.st_dev != self.device {
            let meta = meta(stat, self.attributes.read(Of::Name(within.fd.as_fd(), name)));
            return Ok(self.item(Node::Folder { meta }, Reading::Nothing));
        }
        match openat(&within.fd, name, FOLDER, Mode::empty()).and_then(|fd| self.enter(fd)) {
            Ok(item) => Ok(item),
            Err(why) => {
                // The folder itself is known all the same.
                self.late = Some(self.unreadable(format!("what is in it cannot be read: {}", text(why))));
                let meta = meta(stat, self.attributes.read(Of::Name(within.fd.as_fd(), name)));
                Ok(self.item(Node::Folder { meta }, Reading::Nothing))
            }
        }
    }

    /// Goes into an open folder, whose path is in `self.path`; gives its own entry.
    fn enter(&mut self, fd: OwnedFd) -> rustix::io::Result<Item> {
        let meta = meta(&fstat(&fd)?, self.attributes.read(Of::Open(fd.as_fd())));
        let mut names = Names::default();
        if let Err(why) = list(&fd, &mut self.listing, &mut names) {
            self.late = Some(self.unreadable(format!("not all that is in it can be read: {}", text(why))));
        }
        names.sort();
        self.open.push(Folder { fd, depth: self.path.len(), names });
        Ok(self.item(Node::Folder { meta }, Reading::Nothing))
    }

    fn file(&mut self, folder: &Folder, name: &[u8], stat: &Stat) -> Result<Given> {
        let seen = Seen::of(stat);
        let (ctime, inode) = (seen.ctime, seen.inode);
        if let Some((content, attributes)) = self.unchanged(&seen)? {
            let node = Node::File { meta: meta(stat, attributes), ctime, inode, content };
            return Ok(Ok(self.item(node, Reading::Same)));
        }
        let body = match FileBody::open(folder.fd.as_fd(), name, stat) {
            Ok(body) => body,
            Err(why) => return Ok(Err(self.unreadable(why.to_string()))),
        };
        let meta = meta(stat, self.attributes.read(Of::Open(body.file().as_fd())));
        let node = Node::File { meta, ctime, inode, content: unread(seen.size) };
        Ok(Ok(self.item(node, Reading::Read(Box::new(body)))))
    }

    /// The content that the parent has of this file, if it is still that. The attributes are too: a change of them
    /// would have changed the `ctime`.
    fn unchanged(&mut self, seen: &Seen) -> Result<Option<(Content, Pairs)>> {
        if self.options.reread {
            return Ok(None);
        }
        let entry = self.parent.at(&self.path)?;
        let Some(Entry { node: Node::File { meta, ctime, inode, content }, .. }) = entry else { return Ok(None) };
        let same = (content.size, meta.mtime, ctime, inode) == (seen.size, seen.mtime, seen.ctime, seen.inode);
        Ok((same && lay_still(ctime, self.parent.began) && !content.changed).then_some((content, meta.attributes)))
    }

    fn special(&mut self, folder: &Folder, name: &[u8], stat: &Stat, kind: FileType) -> Given {
        let meta = meta(stat, self.attributes.read(Of::Name(folder.fd.as_fd(), name)));
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let node = match kind {
            FileType::Symlink => match readlinkat(&folder.fd, name, Vec::new()) {
                Ok(target) => Node::Symlink { meta, target: target.into_bytes() },
                Err(why) => return Err(self.unreadable(text(why))),
            },
            FileType::Fifo => Node::Fifo { meta },
            FileType::Socket => Node::Socket { meta },
            FileType::CharacterDevice => Node::CharDevice { meta, major, minor },
            FileType::BlockDevice => Node::BlockDevice { meta, major, minor },
            _ => return Err(self.unreadable("it is of a kind that Muster does not know")),
        };
        Ok(self.item(node, Reading::Nothing))
    }

    fn item(&self, node: Node, reading: Reading) -> Item {
        Item { entry: Entry { path: self.path.clone(), node }, reading }
    }
    fn unreadable(&self, why: impl Into<String>) -> Unreadable {
        Unreadable { path: self.path.clone(), why: why.into() }
    }
}

impl Source for Tree {
    fn next(&mut self) -> Option<Result<Given>> {
        if let Some(root) = self.first.take() {
            return Some(Ok(Ok(root)));
        }
        if let Some(late) = self.late.take() {
            return Some(Ok(Err(late)));
        }
        loop {
            let mut folder = self.open.pop()?;
            let Some(name) = folder.names.take() else { continue };
            self.path.truncate(folder.depth);
            self.path.extend_from_slice(&folder.names.bytes[name.clone()]);
            let excluded = self.options.exclude.fits(&self.path);
            let inner = self.open.len();
            let given = if excluded { None } else { Some(self.look(&folder, &folder.names.bytes[name])) };
            // Below the one that was entered, if one was.
            self.open.insert(inner, folder);
            if given.is_some() {
                return given;
            }
        }
    }
}

/// Was what changed then unchanged long enough, when reading began, that a further change has another time?
fn lay_still(ctime: Instant, began: i128) -> bool {
    let step = if ctime.nanos == 0 { COARSE } else { STEP };
    i128::from(ctime.seconds) * 1_000_000_000 + i128::from(ctime.nanos) < began - step
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn meta(stat: &Stat, attributes: Pairs) -> Meta {
    Meta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: Seen::of(stat).mtime, attributes }
}

fn text(why: Errno) -> String {
    std::io::Error::from(why).to_string()
}

fn list(fd: &OwnedFd, buffer: &mut Vec<u8>, names: &mut Names) -> rustix::io::Result<()> {
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let folder = match entry.file_type() {
            // Some file systems do not say. What is gone by now is told when it is looked at.
            FileType::Unknown => statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_folder(&stat)),
            kind => kind == FileType::Directory,
        };
        names.add(name, folder);
    }
    Ok(())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
