//! What comes after the files: links and devices, what should not be there, and at last the folders' own metadata, the
//! deepest first, since making something in a folder changes its time.

use super::{
    Lost,
    data::{Work, Worker, lock},
    place::{FILE, FOLDER, dress, dress_name, is_fatal, kind, text},
    plan::split,
};
use crate::repository::{
    Result,
    entry::{Entry, Node, shown},
    globs::Globs,
};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{AtFlags, Dir, FileType, Mode, linkat, makedev, mknodat, openat, readlinkat, renameat, statat, symlinkat, unlinkat},
    io::Errno,
};
use std::collections::BTreeSet;

/// Gives what is complete its name. What stands there goes; a folder only if it is empty, or if that is allowed.
pub(super) fn rename(within: BorrowedFd, from: &[u8], to: &[u8], delete: bool) -> rustix::io::Result<()> {
    match renameat(within, from, within, to) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    if delete {
        remove_all(within, to)?
    } else {
        unlinkat(within, to, AtFlags::REMOVEDIR)?
    }
    renameat(within, from, within, to)
}

/// Removes a folder and all that is in it. No link is followed.
fn remove_all(within: BorrowedFd, name: &[u8]) -> rustix::io::Result<()> {
    let folder = openat(within, name, FOLDER, Mode::empty())?;
    for (inner, is_folder) in names(folder.as_fd())? {
        if is_folder { remove_all(folder.as_fd(), &inner)? } else { unlinkat(&folder, &inner, FILE)? }
    }
    unlinkat(within, name, AtFlags::REMOVEDIR)
}

/// What is in a folder, and which of it are folders.
pub(super) fn names(folder: BorrowedFd) -> rustix::io::Result<Vec<(Vec<u8>, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_folder = match entry.file_type() {
            FileType::Unknown => kind(&statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?) == FileType::Directory,
            kind => kind == FileType::Directory,
        };
        names.push((name.to_vec(), is_folder));
    }
    Ok(names)
}

/// Was it done? An error that ends all does; any other is a loss, and told.
fn unless_fatal(work: &Work, path: &[u8], done: rustix::io::Result<()>, lost: &mut Vec<Lost>) -> Result<u64> {
    match done {
        Ok(()) => Ok(1),
        Err(why) if is_fatal(why) => Err(work.target.wrong(path, why)),
        Err(why) => {
            lost.push(Lost { path: shown(path), why: format!("it cannot be made: {}", text(why)) });
            Ok(0)
        }
    }
}

/// Gives how many there are.
pub(super) fn folders(work: &Work, lost: &mut Vec<Lost>) -> Result<u64> {
    let (mut worker, mut count) = (Worker::default(), 0);
    for folder in &work.plan.folders {
        work.go_on()?;
        let made = work.target.make_folder(&mut worker.near, &folder.path);
        count += unless_fatal(work, &folder.path, made, lost)?;
    }
    Ok(count)
}

/// Symbolic links, FIFOs, sockets and devices. Gives how many there are.
pub(super) fn others(work: &Work, lost: &mut Vec<Lost>) -> Result<u64> {
    let (mut worker, mut count) = (Worker::default(), 0);
    for entry in &work.plan.others {
        work.go_on()?;
        let made = other(work, &mut worker, entry);
        count += unless_fatal(work, &entry.path, made, lost)?;
    }
    Ok(count)
}

fn other(work: &Work, worker: &mut Worker, entry: &Entry) -> rustix::io::Result<()> {
    let Some(meta) = entry.node.meta() else { return Ok(()) };
    let (within, name) = work.target.near(&mut worker.near, &entry.path)?;
    if !is_there(within, name, &entry.node) {
        let unfinished = work.plan.incomplete(&entry.path);
        let _ = unlinkat(within, &unfinished, FILE);
        let mode = Mode::RUSR | Mode::WUSR;
        match &entry.node {
            Node::Symlink { target, .. } => symlinkat(target.as_slice(), within, &unfinished),
            Node::Fifo { .. } => mknodat(within, &unfinished, FileType::Fifo, mode, 0),
            Node::Socket { .. } => mknodat(within, &unfinished, FileType::Socket, mode, 0),
            Node::CharDevice { major, minor, .. } => mknodat(within, &unfinished, FileType::CharacterDevice, mode, makedev(*major, *minor)),
            Node::BlockDevice { major, minor, .. } => mknodat(within, &unfinished, FileType::BlockDevice, mode, makedev(*major, *minor)),
            _ => return Ok(()),
        }?;
        rename(within, &unfinished, name, work.delete)?;
    }
    let without = dress_name(&work.target, within, name, meta, &mut worker.attributes)?;
    work.tell(&entry.path, &without);
    Ok(())
}

/// Is exactly this there already?
fn is_there(within: BorrowedFd, name: &[u8], node: &Node) -> bool {
    let Ok(stat) = statat(within, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    match (kind(&stat), node) {
        (FileType::Symlink, Node::Symlink { target, .. }) => {
            readlinkat(within, name, Vec::new()).is_ok_and(|there| there.as_bytes() == target.as_slice())
        }
        (FileType::Fifo, Node::Fifo { .. }) | (FileType::Socket, Node::Socket { .. }) => true,
        (FileType::CharacterDevice, Node::CharDevice { major, minor, .. })
        | (FileType::BlockDevice, Node::BlockDevice { major, minor, .. }) => stat.st_rdev == makedev(*major, *minor),
        _ => false,
    }
}

/// Further names of files. Gives how many there are.
pub(super) fn links(work: &Work, lost: &mut Vec<Lost>) -> Result<u64> {
    let (mut worker, mut first, mut count) = (Worker::default(), Worker::default(), 0);
    for link in &work.plan.links {
        work.go_on()?;
        let whole = work.plan.file(&link.to).is_none_or(|file| work.states[file].lost.get().is_none());
        if whole {
            let made = make_link(work, &mut worker, &mut first, &link.path, &link.to);
            count += unless_fatal(work, &link.path, made, lost)?;
        } else {
            lost.push(Lost { path: shown(&link.path), why: format!("it is a link to `{}`, which is lost", shown(&link.to)) });
            step_aside(work, &mut worker, &link.path);
        }
    }
    Ok(count)
}

fn make_link(work: &Work, worker: &mut Worker, first: &mut Worker, path: &[u8], to: &[u8]) -> rustix::io::Result<()> {
    let (there, old) = work.target.near(&mut first.near, to)?;
    let (within, name) = work.target.near(&mut worker.near, path)?;
    match linkat(there, old, within, name, AtFlags::empty()) {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    let same = |a: &rustix::fs::Stat, b: &rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    let (one, other) = (statat(there, old, AtFlags::SYMLINK_NOFOLLOW)?, statat(within, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if same(&one, &other) {
        return Ok(());
    }
    let unfinished = work.plan.incomplete(path);
    let _ = unlinkat(within, &unfinished, FILE);
    linkat(there, old, within, &unfinished, AtFlags::empty())?;
    rename(within, &unfinished, name, work.delete)
}

/// What is lost must not look whole: an old file under its name is given the name of what is incomplete.
fn step_aside(work: &Work, worker: &mut Worker, path: &[u8]) {
    if let Ok((within, name)) = work.target.near(&mut worker.near, path)
        && statat(within, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
    {
        let _ = renameat(within, name, within, work.plan.incomplete(path));
    }
}

/// Removes what is in the snapshot's folders and not in the snapshot; of what is not chosen nothing.
pub(super) fn delete(work: &Work, include: &Globs, lost: &mut Vec<Lost>) -> Result<u64> {
    let unfinished = |path: &[u8]| [split(path).0, &work.plan.incomplete(path)].concat();
    let losses = work.plan.files.iter().zip(&work.states).filter(|(_, state)| state.lost.get().is_some());
    let losses = losses.map(|(file, _)| &file.path).chain(work.plan.links.iter().map(|link| &link.path));
    let kept: BTreeSet<Vec<u8>> = losses.map(|path| unfinished(path)).collect();
    let mut deleted = 0;
    for folder in &work.plan.folders {
        work.go_on()?;
        let Ok(fd) = work.target.folder(&folder.path) else { continue };
        for (name, is_folder) in names(fd.as_fd()).map_err(|why| work.target.wrong(&folder.path, why))? {
            let path = [folder.path.as_slice(), &name, if is_folder { b"/" } else { b"" }].concat();
            let chosen = include.chooses(&path);
            if work.plan.has(&path) || !chosen || kept.contains(&path) || path == super::MARKER.as_bytes() {
                continue;
            }
            let done = if is_folder { remove_all(fd.as_fd(), &name) } else { unlinkat(&fd, &name, FILE) };
            deleted += unless_fatal(work, &path, done, lost)?;
        }
    }
    Ok(deleted)
}

/// The folders' own metadata.
pub(super) fn dress_folders(work: &Work) -> Result<()> {
    let mut worker = Worker::default();
    for folder in work.plan.folders.iter().rev() {
        let Some(meta) = &folder.meta else { continue };
        // One that could not be made was told already.
        let Ok(fd) = work.target.folder(&folder.path) else { continue };
        match dress(&work.target, fd.as_fd(), meta, false, &mut worker.attributes) {
            Ok(without) => work.tell(&folder.path, &without),
            Err(why) if is_fatal(why) => return Err(work.target.wrong(&folder.path, why)),
            Err(why) => work.tell(&folder.path, &[format!("its owner, mode or time: {}", text(why))]),
        }
    }
    lock(&work.without).sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}
