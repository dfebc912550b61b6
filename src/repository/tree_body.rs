//! The content of one file while it is read: large reads straight into the caller's buffer, holes as the file system
//! knows them, and whether it stayed the same all the while.

use super::{entry::Instant, source::Body};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{Advice, FileType, Mode, OFlags, SeekFrom, Stat, fadvise, fstat, openat, seek},
    io::{Errno, pread},
};
use std::io;

/// Smaller files are read at once: advice about them would cost more than it gains.
const ADVISED: u64 = 256 * 1024;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime: Instant,
    pub ctime: Instant,
}

impl Seen {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Instant { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            ctime: Instant { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        }
    }
}

pub(super) struct FileBody {
    file: OwnedFd,
    /// As it was when its name was looked at: the entry says the same.
    seen: Seen,
    at: u64,
    /// Where the next hole begins, or the end.
    data_ends: u64,
    sparse: bool,
}

impl FileBody {
    /// Opens `name` in an open folder. `stat` is what was seen there.
    pub(super) fn open(folder: BorrowedFd, name: &[u8], stat: &Stat) -> io::Result<Self> {
        // A FIFO that has taken the file's place must not make us wait for who writes into it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(folder, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Only its owner may leave no trace of having read it.
            Err(Errno::PERM) => openat(folder, name, flags, Mode::empty()),
            other => other,
        }?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no longer a file"));
        }
        let seen = Seen::of(stat);
        if seen.size >= ADVISED {
            let _ = fadvise(&file, 0, None, Advice::Sequential);
        }
        let sparse = u64::try_from(stat.st_blocks).is_ok_and(|blocks| blocks * 512 < seen.size);
        let mut body = Self { file, seen, at: 0, data_ends: u64::MAX, sparse };
        body.data_ends = body.next_hole();
        Ok(body)
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Where the data end that begin here. A file that the kernel makes up (in /proc) has no size: it is read to its
    /// end. What is appended while a file is read is not: it may never end.
    fn next_hole(&self) -> u64 {
        let end = if self.seen.size == 0 { u64::MAX } else { self.seen.size };
        if !self.sparse {
            return end;
        }
        // Where holes cannot be asked for, all is data.
        seek(&self.file, SeekFrom::Hole(self.at)).map_or(end, |hole| hole.min(end))
    }
}

impl Body for FileBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data_ends.saturating_sub(self.at)).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match pread(&self.file, &mut into[..most], self.at) {
                Err(Errno::INTR) => {}
                Err(why) => return Err(why.into()),
                Ok(length) => {
                    self.at += length as u64;
                    return Ok(length);
                }
            }
        }
    }

    fn hole(&mut self) -> io::Result<u64> {
        if !self.sparse || self.at >= self.seen.size {
            return Ok(0);
        }
        let data = match seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) => data.min(self.seen.size),
            // No data follow: the hole goes to the end, wherever that is by now.
            Err(Errno::NXIO) => Seen::of(&fstat(&self.file)?).size.min(self.seen.size),
            Err(why) => return Err(why.into()),
        };
        let length = data.saturating_sub(self.at);
        if length > 0 {
            self.at = data;
            self.data_ends = self.next_hole();
        }
        Ok(length)
    }

    fn changed(&mut self) -> io::Result<bool> {
        Ok(Seen::of(&fstat(&self.file)?) != self.seen)
    }
}
