//! Extended attributes, access lists among them: all that the file system tells of and lets be read.
//!
//! A file system without them has none, which is no error. A symbolic link's own are meant, never those of what it
//! leads to. What has no descriptor of its own (a link, a device) is reached through the descriptor of its folder, by
//! way of /proc, so that nobody can put another folder in between.

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, lgetxattr, llistxattr, lremovexattr, lsetxattr},
    io::{Errno, Result},
};

pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Linux allows a value, and all names together, this many bytes.
const LONGEST: usize = 64 * 1024;

/// Reads and writes them, again and again with the same buffer.
pub struct Attributes {
    buffer: Vec<u8>,
}

/// What has attributes.
#[derive(Clone, Copy)]
pub enum Of<'a> {
    Open(BorrowedFd<'a>),
    /// A name within an open folder.
    Name(BorrowedFd<'a>, &'a [u8]),
}

impl Default for Attributes {
    fn default() -> Self {
        Self { buffer: vec![0; 2 * LONGEST] }
    }
}

impl Attributes {
    /// All of them, by name.
    pub fn read(&mut self, of: Of) -> Pairs {
        let (names, value) = self.buffer.split_at_mut(LONGEST);
        let path = path(of);
        let length = match of {
            Of::Open(fd) => flistxattr(fd, &mut *names),
            Of::Name(..) => llistxattr(path.as_slice(), &mut *names),
        };
        let names = names.get(..length.unwrap_or(0)).unwrap_or_default();
        let mut pairs = Pairs::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let length = match of {
                Of::Open(fd) => fgetxattr(fd, name, &mut *value),
                Of::Name(..) => lgetxattr(path.as_slice(), name, &mut *value),
            };
            // One that is gone by now, or not for us to see.
            let Ok(length) = length else { continue };
            pairs.push((name.to_vec(), value.get(..length).unwrap_or_default().to_vec()));
        }
        pairs.sort_unstable();
        pairs
    }

    /// Makes them what they are to be. Gives those that could not be set, and why; what cannot be removed stays.
    pub fn write<'p>(&mut self, of: Of, wanted: &'p [(Vec<u8>, Vec<u8>)]) -> Vec<(&'p [u8], Errno)> {
        let there = self.read(of);
        let path = path(of);
        for (name, _) in there.iter().filter(|(name, _)| !wanted.iter().any(|(wanted, _)| wanted == name)) {
            let _ = match of {
                Of::Open(fd) => fremovexattr(fd, name.as_slice()),
                Of::Name(..) => lremovexattr(path.as_slice(), name.as_slice()),
            };
        }
        let new = wanted.iter().filter(|pair| !there.contains(pair));
        let set = |name: &[u8], value: &[u8]| -> Result<()> {
            match of {
                Of::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
                Of::Name(..) => lsetxattr(path.as_slice(), name, value, XattrFlags::empty()),
            }
        };
        new.filter_map(|(name, value)| set(name, value).err().map(|why| (name.as_slice(), why))).collect()
    }
}

fn path(of: Of) -> Vec<u8> {
    match of {
        Of::Open(_) => Vec::new(),
        Of::Name(folder, name) => [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use std::{fs::File, os::unix::fs::symlink};

    #[test]
    fn what_is_set_is_read_and_the_rest_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        let (folder, file) = (File::open(dir.path()).unwrap(), File::open(dir.path().join("f")).unwrap());
        let mut attributes = Attributes::default();
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let wanted = vec![pair("user.a", b"1"), pair("user.b", b"")];
        let failed = attributes.write(Of::Open(file.as_fd()), &wanted);
        if failed.iter().any(|(_, why)| *why == Errno::NOTSUP) {
            eprintln!("skipped: this file system has no extended attributes");
            return;
        }
        assert_eq!(attributes.read(Of::Open(file.as_fd())), wanted);
        assert_eq!(attributes.read(Of::Name(folder.as_fd(), b"f")), wanted);
        assert!(attributes.write(Of::Name(folder.as_fd(), b"f"), &[pair("user.b", b"2")]).is_empty());
        assert_eq!(attributes.read(Of::Open(file.as_fd())), [pair("user.b", b"2")]);
        symlink("f", dir.path().join("l")).unwrap();
        assert!(attributes.read(Of::Name(folder.as_fd(), b"l")).is_empty(), "not those of what it leads to");
    }
}
