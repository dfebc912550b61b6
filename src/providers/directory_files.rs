//! The files behind a [`super::directory::Directory`]: all that blocks, and all that must come in the right order.

use super::port::{ObjectMeta, PortError, PortResult};
use rustix::{fs::RenameFlags, io::Errno};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashSet},
    fs::{DirBuilder, DirEntry, File, Metadata, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write as _},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Names in the root that hold no objects: ours, and the file system's.
const HIDDEN: [&str; 2] = ["tmp", "lost+found"];
/// In `tmp`: who holds it changes what stands under a key already.
const LOCK: &str = "lock";
/// The longest name of a file or folder.
const LONGEST: usize = 255;
/// Tries for a name that nobody has.
const NAMES: usize = 1_000;

pub(super) struct Root {
    pub path: PathBuf,
    /// Folders that exist, durably.
    known: Mutex<HashSet<PathBuf>>,
    swept: Once,
}

/// Numbers the temporary files of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What went wrong, where, and what to do about it.
fn explain(doing: &str, path: &Path, e: &io::Error) -> PortError {
    let text = format!("{doing} {}: {e}", path.display());
    match e.kind() {
        ErrorKind::NotFound => PortError::NotFound(text),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PortError::Refused(format!("{text}; make room there, or name another place")),
        ErrorKind::PermissionDenied => PortError::Refused(format!("{text}; let the user that Muster runs as read and write there")),
        ErrorKind::ReadOnlyFilesystem => PortError::Refused(format!("{text}; mount it writable, or name another place")),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::DirectoryNotEmpty => {
            PortError::Refused(format!("{text}; what is in the way is not of Muster's making"))
        }
        _ => PortError::Refused(text),
    }
}

/// A key that can be a path below the root, and only there.
pub(super) fn check(key: &str) -> PortResult<()> {
    let refuse = |why: &str| Err(PortError::Refused(format!("`{}` cannot be a key in a directory: {why}", key.escape_debug())));
    let parts: Vec<&str> = key.split('/').collect();
    if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
        return refuse("a part between slashes is empty, `.` or `..`");
    }
    if key.contains('\0') || parts.iter().any(|part| part.len() > LONGEST) {
        return refuse("a part has a NUL or is longer than 255 bytes");
    }
    if HIDDEN.contains(&parts[0]) {
        return refuse("it begins with a name that is kept for other purposes");
    }
    Ok(())
}

/// A file that is replaced gets another inode, and a later time.
fn etag(found: &Metadata) -> String {
    let nanos = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    format!("{:x}-{nanos:x}-{:x}", found.ino(), found.len())
}

fn meta(key: &str, found: &Metadata) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        size: found.len(),
        etag: Some(etag(found)),
        version: None,
        modified: jiff::Timestamp::new(found.mtime(), i32::try_from(found.mtime_nsec()).unwrap_or(0)).ok(),
        metadata: BTreeMap::new(),
        checksum: None,
    }
}

/// An object that was opened.
pub(super) struct Reading {
    file: File,
    pub path: PathBuf,
    pub size: u64,
}

impl Reading {
    /// Exactly these bytes.
    pub fn at(&self, from: u64, length: u64) -> PortResult<Vec<u8>> {
        // Before any memory is taken: the figures may come from a damaged index.
        if from.checked_add(length).is_none_or(|end| end > self.size) {
            let text = format!("{}: {length} bytes from {from} on were asked for, and it has {}", self.path.display(), self.size);
            return Err(PortError::Refused(text));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, from).map_err(|e| explain("reading", &self.path, &e))?;
        Ok(bytes)
    }
}

impl Root {
    pub fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default(), swept: Once::new() }
    }

    fn at(&self, key: &str) -> PortResult<PathBuf> {
        check(key)?;
        Ok(self.path.join(key))
    }

    pub fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        let path = self.at(key)?;
        match std::fs::metadata(&path) {
            Ok(found) => Ok(found.is_file().then(|| meta(key, &found))),
            // Also when a file stands where a folder of the key would.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(explain("looking at", &path, &e)),
        }
    }

    pub fn open(&self, key: &str) -> PortResult<(ObjectMeta, Reading)> {
        let path = self.at(key)?;
        let open = || -> io::Result<(File, Metadata)> {
            let file = File::open(&path)?;
            let found = file.metadata()?;
            Ok((file, found))
        };
        match open() {
            Ok((file, found)) if found.is_file() => Ok((meta(key, &found), Reading { file, path, size: found.len() })),
            Ok(_) => Err(PortError::NotFound(format!("{} is a folder", path.display()))),
            Err(e) if e.kind() == ErrorKind::NotADirectory => Err(PortError::NotFound(format!("{}: {e}", path.display()))),
            Err(e) => Err(explain("opening", &path, &e)),
        }
    }

    /// All objects whose key begins with this, in the order of their keys' bytes.
    pub fn list(&self, prefix: &str) -> PortResult<Vec<ObjectMeta>> {
        // Only the folder that holds the prefix is read, and what is below it.
        let folder = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
        let mut found = Vec::new();
        if folder.is_empty() || check(folder.trim_end_matches('/')).is_ok() {
            self.walk(folder, prefix, &mut found)?;
        }
        Ok(found)
    }

    /// `folder` is empty or ends with a slash.
    fn walk(&self, folder: &str, prefix: &str, found: &mut Vec<ObjectMeta>) -> PortResult<()> {
        let path = self.path.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // An object of that name is not below itself.
            Err(e) if e.kind() == ErrorKind::NotADirectory && !folder.is_empty() => return Ok(()),
            Err(e) => return Err(explain("listing", &path, &e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| explain("listing", &path, &e))?;
            // What is not UTF-8 is no key, so it is nothing of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let hidden = folder.is_empty() && HIDDEN.contains(&name.as_str());
            let key = format!("{folder}{name}");
            if !hidden && key.starts_with(prefix) {
                names.extend(looked_at(&entry, key).map_err(|e| explain("looking at", &entry.path(), &e))?);
            }
        }
        // With its slash, a folder stands where its objects do.
        names.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, metadata) in names {
            match metadata {
                None => self.walk(&key, prefix, found)?,
                Some(metadata) => found.push(meta(&key, &metadata)),
            }
        }
        Ok(())
    }

    /// A `Conflict` when there is an object already: told before anything is written.
    pub fn absent(&self, key: &str) -> PortResult<()> {
        match self.head(key)? {
            Some(meta) => Err(self.conflict(key, Some(&meta))),
            None => Ok(()),
        }
    }

    fn conflict(&self, key: &str, found: Option<&ObjectMeta>) -> PortError {
        let place = self.path.join(key);
        let found = found.map_or_else(
            || format!("nothing at {}", place.display()),
            |meta| format!("{}, {} bytes, etag {}", place.display(), meta.size, meta.etag.as_deref().unwrap_or("unknown")),
        );
        PortError::Conflict { found }
    }

    /// Makes a folder below the root, or the root itself, if it is missing, and makes sure that it outlives a crash.
    fn folder(&self, path: &Path) -> PortResult<()> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(path) {
            return Ok(());
        }
        let ours = path.starts_with(&self.path) && path != self.path;
        // What somebody else made, he has seen to.
        if ours || !path.is_dir() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            self.folder(parent)?;
            match DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(explain("making the folder", path, &e)),
                _ => sync(parent).map_err(|e| explain("syncing", parent, &e))?,
            }
        }
        known().insert(path.to_owned());
        Ok(())
    }

    /// Begins an object. `new`: only where there is none.
    pub fn begin(&self, key: &str, new: bool) -> PortResult<Write> {
        check(key)?;
        let folder = self.path.join(HIDDEN[0]);
        self.folder(&folder)?;
        self.swept.call_once(|| self.sweep(&folder));
        for _ in 0..NAMES {
            let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = folder.join(name);
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(explain("creating", &path, &e)),
            };
            // Who sweeps at this moment may have been quicker. Where there are no locks, nobody sweeps.
            let lost = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if !lost && file.metadata().is_ok_and(|found| found.nlink() > 0) {
                return Ok(Write { file, path, new, expect: None, published: false });
            }
        }
        Err(PortError::Refused(format!("no name for a temporary file in {} is free: remove what is left there", folder.display())))
    }

    /// Removes what writers left that are no more: their files are not locked. What goes wrong here does no harm.
    fn sweep(&self, folder: &Path) {
        let Ok(_alone) = self.lock_file().and_then(|lock| lock.try_lock().map(|()| lock).map_err(io::Error::from)) else { return };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let dead = |file: File| file.try_lock().is_ok();
            if entry.file_name() != LOCK && File::open(entry.path()).is_ok_and(dead) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn lock_file(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path.join(HIDDEN[0]).join(LOCK))
    }

    /// Held while an object that may be there is replaced or removed, so that a swap sees all that came before it.
    fn alone(&self) -> PortResult<File> {
        let lock = |file: File| file.lock().map(|()| file);
        self.lock_file().and_then(lock).map_err(|e| explain("locking", &self.path.join(HIDDEN[0]).join(LOCK), &e))
    }

    pub fn delete(&self, key: &str) -> PortResult<()> {
        let path = self.at(key)?;
        if self.head(key)?.is_none() {
            return Ok(());
        }
        self.folder(&self.path.join(HIDDEN[0]))?;
        let _alone = self.alone()?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(explain("removing", &path, &e)),
            _ => {}
        }
        settle(&path)
    }
}

/// An entry of a listing: a folder, with a slash behind its key, or a file with what is known of it.
fn looked_at(entry: &DirEntry, key: String) -> io::Result<Option<(String, Option<Metadata>)>> {
    // Links are followed: somebody may have moved a part of the store to another disk.
    match std::fs::metadata(entry.path()) {
        Ok(found) if found.is_dir() => Ok(Some((key + "/", None))),
        Ok(found) if found.is_file() => Ok(Some((key, Some(found)))),
        Ok(_) => Ok(None),
        // Removed meanwhile.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a change under this path durable. If that fails, it may or may not outlive a crash.
fn settle(path: &Path) -> PortResult<()> {
    let folder = path.parent().unwrap_or(path);
    sync(folder).map_err(|e| PortError::Unknown(format!("syncing {}: {e}", folder.display())))
}

/// An object that is being written. Dropped before it is finished, it was never there.
pub(super) struct Write {
    file: File,
    path: PathBuf,
    new: bool,
    expect: Option<String>,
    published: bool,
}

impl Write {
    pub fn add(&mut self, bytes: &[u8]) -> PortResult<()> {
        self.file.write_all(bytes).map_err(|e| explain("writing", &self.path, &e))
    }

    /// All of a file, whose SHA-256 must be this.
    pub fn add_file(&mut self, from: &Path, sha256: &str) -> PortResult<()> {
        let mut source = File::open(from).map_err(|e| explain("opening", from, &e))?;
        let (mut piece, mut sum) = (vec![0; 1024 * 1024], Sha256::new());
        loop {
            let length = source.read(&mut piece).map_err(|e| explain("reading", from, &e))?;
            if length == 0 {
                break;
            }
            sum.update(&piece[..length]);
            self.add(&piece[..length])?;
        }
        let sum = hex::encode(sum.finalize());
        if sum == sha256.to_ascii_lowercase() {
            return Ok(());
        }
        Err(PortError::Refused(format!("{} has the SHA-256 {sum}, not {sha256}: it changed meanwhile", from.display())))
    }

    /// Only in place of the object with this etag, if one is given.
    pub fn instead_of(mut self, etag: Option<String>) -> Self {
        self.expect = etag;
        self
    }

    /// Gives the bytes their key, for good.
    pub fn finish(mut self, root: &Root, key: &str) -> PortResult<ObjectMeta> {
        let target = root.at(key)?;
        self.file.sync_data().map_err(|e| explain("syncing", &self.path, &e))?;
        let written = self.file.metadata().map_err(|e| explain("looking at", &self.path, &e))?;
        let folder = target.parent().unwrap_or(&root.path);
        root.folder(folder)?;
        let first = self.publish(root, key, &target);
        // Somebody removed the folder since it was made.
        let again = matches!(&first, Err(PortError::NotFound(_)));
        if again {
            root.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
            root.folder(folder)?;
        }
        if again { self.publish(root, key, &target) } else { first }?;
        settle(&target)?;
        Ok(meta(key, &written))
    }

    fn publish(&mut self, root: &Root, key: &str, target: &Path) -> PortResult<()> {
        if self.new {
            return match rename_new(&self.path, target) {
                Ok(()) => self.done(),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(root.conflict(key, root.head(key)?.as_ref())),
                Err(e) => Err(explain("writing", target, &e)),
            };
        }
        let _alone = root.alone()?;
        if let Some(expect) = &self.expect {
            let found = root.head(key)?;
            if found.as_ref().and_then(|meta| meta.etag.as_ref()) != Some(expect) {
                return Err(root.conflict(key, found.as_ref()));
            }
        }
        std::fs::rename(&self.path, target).map_err(|e| explain("writing", target, &e))?;
        self.done()
    }

    fn done(&mut self) -> PortResult<()> {
        self.published = true;
        Ok(())
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.published {
            // If that fails, the next writer sweeps.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Renames only where nothing is yet.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems cannot.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_new(from, to),
        done => done.map_err(io::Error::from),
    }
}

/// The same in two steps: the file has both names for a moment.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_renaming_replace_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for rename in [rename_new, link_new] {
            std::fs::write(&from, b"new").unwrap();
            std::fs::write(&to, b"old").unwrap();
            assert_eq!(rename(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!((std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap()), (b"new".to_vec(), b"old".to_vec()));
            std::fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(!from.exists() && std::fs::read(&to).unwrap() == b"new");
        }
    }
}
