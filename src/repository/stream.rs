//! Standard input as a source: one file of a given name, read to its end. For dumps that never lie on a disk.

use super::{
    RepositoryError, Result,
    entry::{Entry, Instant, Meta, Node},
    source::{Body, Item, Reading, Source, Unreadable, unread},
};
use std::io::Read;

pub struct Stream {
    item: Option<Item>,
}

impl Stream {
    /// `now` becomes the file's time of change.
    pub fn new(name: &str, input: Box<dyn Read + Send>, now: jiff::Timestamp) -> Result<Self> {
        named(name)?;
        let mtime = Instant { seconds: now.as_second(), nanos: now.subsec_nanosecond().unsigned_abs() };
        let meta = Meta { mode: 0o600, mtime, ..Meta::default() };
        let node = Node::File { meta, ctime: mtime, inode: 0, content: unread(u64::from(u32::MAX)) };
        let entry = Entry { path: name.as_bytes().to_vec(), node };
        Ok(Self { item: Some(Item { entry, reading: Reading::Read(Box::new(Input(input))) }) })
    }
}

/// Can a file be called so?
pub fn named(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(RepositoryError::Refused(format!("`{name}` is no name for a file: choose one without slashes")));
    }
    Ok(())
}

impl Source for Stream {
    fn next(&mut self) -> Option<Result<std::result::Result<Item, Unreadable>>> {
        self.item.take().map(|item| Ok(Ok(item)))
    }
}

struct Input(Box<dyn Read + Send>);

impl Body for Input {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}
