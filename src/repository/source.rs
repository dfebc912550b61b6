//! What is backed up, as a stream of entries in the order of their paths' bytes: from a file system ([`super::tree`]),
//! a bucket ([`super::bucket`]) or standard input ([`super::stream`]).
//!
//! A source decides what has not changed since the parent snapshot, so that it is not even opened; everything else it
//! gives with a [`Body`] to be read. What cannot be read is given by name and does not end the backup.

use super::{
    RepositoryError, Result,
    entry::{Content, Entry, Extent, Extents, Node},
    index::Index,
    list,
    names::Id,
    pages::PageCheck,
};
use std::{collections::HashMap, sync::Arc};

/// One entry. What is in the entry as its content counts only for [`Reading::Same`].
pub struct Item {
    pub entry: Entry,
    pub reading: Reading,
}

pub enum Reading {
    /// It has no content: a folder, a link.
    Nothing,
    /// It has not changed since the parent: the entry has the parent's content already.
    Same,
    /// To be read; its size is a guess.
    Read(Box<dyn Body>),
    /// The same, in chunks of one length, which are compared page by page ([`super::pages`]) with what the parent has
    /// at the same places.
    Pages(Box<dyn Body>, Vec<Extent>, Option<PageCheck>),
}

/// The content of one file or object while it is read. Blocking.
pub trait Body: Send {
    /// Fills the beginning of `into`, as much as there is at once; 0 at the end and where a hole begins.
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize>;
    /// How long the hole is that begins here; 0 if none does.
    fn hole(&mut self) -> std::io::Result<u64>;
    /// After its end: did it change while it was read?
    fn changed(&mut self) -> std::io::Result<bool>;
}

/// What could not be read, and why.
#[derive(Debug)]
pub struct Unreadable {
    pub path: Vec<u8>,
    pub why: String,
}

pub trait Source: Send {
    /// The next entry in order; `None` at the end. Blocking.
    fn next(&mut self) -> Option<Result<std::result::Result<Item, Unreadable>>>;
    /// Does it give entries in the order of their paths? If not, they are kept, and put in order at the end.
    fn in_order(&self) -> bool {
        true
    }
}

/// An entry's content before it is known.
#[must_use]
pub fn unread(size: u64) -> Content {
    Content { size, changed: false, digest: Id([0; 32]), extents: Extents::Here(Vec::new()) }
}

/// The entries of the parent snapshot, met in order by a source that goes along the same order. Holds one chunk of the
/// list at a time, however long the list is.
pub struct Parent {
    chunks: std::vec::IntoIter<Id>,
    entries: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    fetch: Box<dyn FnMut(&Id) -> Result<Vec<u8>> + Send>,
    /// If some of what the parent names is lost: what is not.
    whole: Option<Arc<Index>>,
    /// When reading for the parent began, in nanoseconds since 1970: what changed since may have been read half.
    pub began: i128,
}

impl Parent {
    /// `fetch` gives the content of a chunk.
    pub fn new(chunks: Vec<Id>, began: jiff::Timestamp, fetch: Box<dyn FnMut(&Id) -> Result<Vec<u8>> + Send>) -> Self {
        Self { chunks: chunks.into_iter(), entries: Vec::new().into_iter().peekable(), fetch, whole: None, began: began.as_nanosecond() }
    }
    #[must_use]
    pub fn none() -> Self {
        Self::new(Vec::new(), jiff::Timestamp::UNIX_EPOCH, Box::new(|chunk| Err(RepositoryError::NoChunk { chunk: *chunk })))
    }

    /// Without the entries whose content is not in this index: they are to be read anew.
    #[must_use]
    pub fn but_for_what_is_lost(self, whole: Arc<Index>) -> Self {
        Self { whole: Some(whole), ..self }
    }

    /// All its files, by path, and how to have the content of a chunk. A part of the list that is damaged is left out.
    pub fn all_files(mut self) -> (HashMap<Vec<u8>, Content>, Box<dyn FnMut(&Id) -> Result<Vec<u8>> + Send>) {
        let mut files = HashMap::new();
        for chunk in self.chunks {
            let entries = (self.fetch)(&chunk).and_then(|content| list::entries(&chunk, &content)).unwrap_or_default();
            for Entry { path, node } in entries {
                if let Node::File { content, .. } = node {
                    files.insert(path, content);
                }
            }
        }
        (files, self.fetch)
    }

    /// Can its content be had?
    fn is_whole(&mut self, entry: &Entry) -> Result<bool> {
        let (Some(whole), Some(content)) = (self.whole.clone(), entry.node.content()) else { return Ok(true) };
        if !content.extents.elsewhere().iter().all(|chunk| whole.contains(chunk)) {
            return Ok(false);
        }
        let extents = list::extents(&entry.path, content, |chunk| (self.fetch)(chunk))?;
        Ok(extents.iter().flat_map(Extent::chunks).all(|chunk| whole.contains(chunk)))
    }

    /// The parent's entry for this path, unless it is lost: a parent that is damaged costs reading again, not the backup.
    /// Paths must be asked for in ascending order.
    pub fn at(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        match self.meet(path) {
            Err(RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } | RepositoryError::NoChunk { .. }) => Ok(None),
            other => other,
        }
    }

    fn meet(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        loop {
            while let Some(entry) = self.entries.next_if(|entry| entry.path.as_slice() <= path) {
                if entry.path == path {
                    return Ok(self.is_whole(&entry)?.then_some(entry));
                }
            }
            if self.entries.peek().is_some() {
                return Ok(None);
            }
            let Some(chunk) = self.chunks.next() else { return Ok(None) };
            let content = (self.fetch)(&chunk)?;
            self.entries = list::entries(&chunk, &content)?.into_iter().peekable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entry::Meta;

    #[test]
    fn the_parent_is_met_in_order() {
        let entry = |path: &str| Entry { path: path.into(), node: Node::Fifo { meta: Meta::default() } };
        let chunk = |paths: &[&str]| {
            let mut out = Vec::new();
            paths.iter().for_each(|p| entry(p).encode(&mut out));
            out
        };
        let chunks = [chunk(&["a", "b"]), chunk(&["d", "f"])];
        let ids = vec![Id([0; 32]), Id([1; 32])];
        let mut parent = Parent::new(ids, jiff::Timestamp::UNIX_EPOCH, Box::new(move |id| Ok(chunks[usize::from(id.0[0])].clone())));
        let found: Vec<bool> = ["a", "aa", "c", "d", "e", "f", "g"].iter().map(|p| parent.at(p.as_bytes()).unwrap().is_some()).collect();
        assert_eq!(found, [true, false, false, true, false, true, false]);
    }

    #[test]
    fn what_is_damaged_of_the_parent_is_passed_over_and_what_the_store_refuses_is_not() {
        let entry = |path: &str| Entry { path: path.into(), node: Node::Fifo { meta: Meta::default() } };
        let fetch = move |id: &Id| match id.0[0] {
            0 => Err(RepositoryError::damaged("packs/0", "a bit has flipped")),
            1 => Err(RepositoryError::Missing { object: "packs/1".to_owned() }),
            2 => {
                let mut out = Vec::new();
                entry("f").encode(&mut out);
                Ok(out)
            }
            _ => Err(RepositoryError::Refused("no".to_owned())),
        };
        let ids = (0..4).map(|n| Id([n; 32])).collect();
        let mut parent = Parent::new(ids, jiff::Timestamp::UNIX_EPOCH, Box::new(fetch));
        let found: Vec<bool> = ["a", "b", "f"].iter().map(|p| parent.at(p.as_bytes()).unwrap().is_some()).collect();
        assert_eq!(found, [false, false, true]);
        assert!(matches!(parent.at(b"g"), Err(RepositoryError::Refused(_))));
    }
}
