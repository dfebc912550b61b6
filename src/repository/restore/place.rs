//! The target, entered safely: everything is looked up from its descriptor, no symbolic link is followed on the way and
//! no ".." leads out, whatever stands there already or appears while we write.

use super::plan::split;
use crate::repository::{
    RepositoryError,
    attributes::{Attributes, Of},
    entry::Meta,
};
use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, chmodat, chownat, fchmod, fchown,
        fstat, futimens, mkdirat, openat, openat2, statat, unlinkat, utimensat,
    },
    io::{Errno, Result},
    process::{Gid, Uid},
};
use std::{io, path::PathBuf};

pub(super) const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is unlinked is no folder.
pub(super) const FILE: AtFlags = AtFlags::empty();

pub(super) struct Target {
    pub root: OwnedFd,
    pub path: PathBuf,
    /// Files are given their owners.
    pub owner: bool,
}

/// The folder that was entered last: what is next is mostly in there too.
#[derive(Default)]
pub(super) struct Near {
    path: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Target {
    /// Opens a folder by its path (which ends with "/").
    pub fn folder(&self, path: &[u8]) -> Result<OwnedFd> {
        let Some(bare) = path.strip_suffix(b"/") else { return openat(&self.root, ".", FOLDER, Mode::empty()) };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, bare, FOLDER, Mode::empty(), beneath) {
            // An old kernel, a sandbox that does not know the call, or a path longer than any call takes.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::NAMETOOLONG) => self.step_by_step(bare),
            other => other,
        }
    }

    fn step_by_step(&self, path: &[u8]) -> Result<OwnedFd> {
        let mut folder = openat(&self.root, ".", FOLDER, Mode::empty())?;
        for part in path.split(|byte| *byte == b'/') {
            folder = openat(&folder, part, FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }

    /// The folder that a path lies in, open, and the name in there.
    pub fn near<'n, 'p>(&self, near: &'n mut Near, path: &'p [u8]) -> Result<(BorrowedFd<'n>, &'p [u8])> {
        let (folder, name) = split(path);
        if near.fd.is_none() || near.path != folder {
            near.fd = None;
            near.fd = Some(self.folder(folder)?);
            near.path = folder.to_vec();
        }
        // It was just put there.
        let fd = near.fd.as_ref().ok_or(Errno::BADF)?;
        Ok((fd.as_fd(), name))
    }

    /// Makes a folder if it is not there. What stands in its place and is none goes.
    pub fn make_folder(&self, near: &mut Near, path: &[u8]) -> Result<()> {
        let Some(bare) = path.strip_suffix(b"/") else { return Ok(()) };
        let (within, name) = self.near(near, bare)?;
        match mkdirat(within, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        let stat = statat(within, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind(&stat) != FileType::Directory {
            unlinkat(within, name, AtFlags::empty())?;
            return mkdirat(within, name, Mode::RWXU);
        }
        if stat.st_mode & 0o700 != 0o700 {
            let folder = openat(within, name, FOLDER, Mode::empty())?;
            // If this is not allowed, making something in there will say so.
            let _ = fchmod(&folder, Mode::from_raw_mode(stat.st_mode | 0o700));
        }
        Ok(())
    }

    /// An error that ends all, with the path of what it is about.
    pub fn wrong(&self, path: &[u8], why: Errno) -> RepositoryError {
        let path = self.path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
        let remedy = match why {
            Errno::NOSPC | Errno::DQUOT => "; make room and run the same again: it goes on where it is",
            Errno::ROFS => "; choose a target that can be written to",
            _ => "",
        };
        RepositoryError::File { path, why: format!("{}{remedy}", text(why)) }
    }
}

/// What says that nothing more can be written, not only this.
pub(super) fn is_fatal(why: Errno) -> bool {
    matches!(why, Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::STALE)
}

pub(super) fn text(why: Errno) -> String {
    io::Error::from(why).to_string()
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// How many bytes can still be written below an open folder, by who we are.
pub(super) fn room(folder: BorrowedFd) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(folder).ok()?;
    let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
    blocks.checked_mul(stat.f_frsize)
}

/// Gives an open file or folder its owner, attributes, mode and time, as far as they are not so already. What could not
/// be had is told.
pub(super) fn dress(target: &Target, fd: BorrowedFd, meta: &Meta, object: bool, attributes: &mut Attributes) -> Result<Vec<String>> {
    let mut without = Vec::new();
    let mut stat = fstat(fd)?;
    if !object {
        if target.owner && (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
            fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        }
        without = undressed(&attributes.write(Of::Open(fd), &meta.attributes));
        stat = fstat(fd)?;
    }
    let mode = allowed(meta, &stat);
    if stat.st_mode & 0o7777 != mode {
        fchmod(fd, Mode::from_raw_mode(mode))?;
    }
    if (stat.st_mtime, stat.st_mtime_nsec as u32) != (meta.mtime.seconds, meta.mtime.nanos) {
        futimens(fd, &times(meta))?;
    }
    Ok(without)
}

/// The same for what has no descriptor: a link, a FIFO, a device.
pub(super) fn dress_name(
    target: &Target,
    within: BorrowedFd,
    name: &[u8],
    meta: &Meta,
    attributes: &mut Attributes,
) -> Result<Vec<String>> {
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    let stat = statat(within, name, no_follow)?;
    if target.owner && (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
        chownat(within, name, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)), no_follow)?;
    }
    let without = undressed(&attributes.write(Of::Name(within, name), &meta.attributes));
    let stat = statat(within, name, no_follow)?;
    let mode = allowed(meta, &stat);
    if kind(&stat) != FileType::Symlink && stat.st_mode & 0o7777 != mode {
        // There is no call that changes a mode and follows no link: but one by a descriptor that was opened so.
        let fd = openat(within, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        chmodat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    utimensat(within, name, &times(meta), no_follow)?;
    Ok(without)
}

/// What runs as its owner must not run as another.
fn allowed(meta: &Meta, stat: &Stat) -> u32 {
    let same = (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid);
    meta.mode & if same { 0o7777 } else { 0o1777 }
}

fn undressed(failed: &[(&[u8], Errno)]) -> Vec<String> {
    let each = failed.iter().map(|(name, why)| format!("attribute {}: {}", String::from_utf8_lossy(name), text(*why)));
    each.collect()
}

fn times(meta: &Meta) -> Timestamps {
    let mtime = if super::plan::plausible(meta.mtime) {
        Timespec { tv_sec: meta.mtime.seconds, tv_nsec: meta.mtime.nanos.into() }
    } else {
        Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }
    };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime }
}
