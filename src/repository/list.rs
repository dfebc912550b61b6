//! The list of a snapshot's entries, cut into chunks like any content: what did not change is stored once.
//!
//! A chunk of a list holds whole entries. It ends after an entry whose path says so (the first two bytes of its BLAKE3,
//! little-endian, are a multiple of 256), if it has 16 KiB by then, and in any case at 1 MiB. The place of an end
//! hangs on paths alone, so that a change of one file changes one chunk. Extents of a large file, more than 16,384, are
//! stored in chunks of their own, of so many extents each.

use super::{
    RepositoryError, Result,
    entry::{Content, Entry, Extent, Extents, Node, covers, is_patched, put_extents, shown, take_extents},
    names::Id,
    wire::Reader,
};

const SHORTEST: usize = 16 * 1024;
const LONGEST: usize = 1024 * 1024;
const EXTENTS: usize = 16 * 1024;

/// Where chunks of a list are put.
pub trait Sink {
    fn chunk(&mut self, content: Vec<u8>) -> Result<Id>;
}

/// Takes entries in order, gives chunks.
pub struct Lister<S> {
    sink: S,
    bytes: Vec<u8>,
    last: Option<Vec<u8>>,
    chunks: Vec<Id>,
}

impl<S: Sink> Lister<S> {
    pub fn new(sink: S) -> Self {
        Self { sink, bytes: Vec::new(), last: None, chunks: Vec::new() }
    }

    pub fn add(&mut self, mut entry: Entry) -> Result<()> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(RepositoryError::Refused(format!("{} comes out of order, or twice", entry.shown())));
        }
        if let Node::File { content, .. } | Node::Object { content, .. } = &mut entry.node {
            self.shorten(content, EXTENTS)?;
        }
        if matches!(&entry.node, Node::Object { content, .. } if content.extents.is_patched()) {
            return Err(RepositoryError::Refused(format!("{} is an object, and no parts of chunks make one", entry.shown())));
        }
        entry.encode(&mut self.bytes);
        let hash = blake3::hash(&entry.path);
        let ends = u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]).is_multiple_of(256);
        self.last = Some(entry.path);
        if (ends && self.bytes.len() >= SHORTEST) || self.bytes.len() >= LONGEST {
            self.end_chunk()?;
        }
        Ok(())
    }

    /// Puts extents into chunks of their own if there are more than so many.
    pub fn shorten(&mut self, content: &mut Content, most: usize) -> Result<()> {
        let Extents::Here(extents) = &content.extents else { return Ok(()) };
        if extents.len() <= most {
            return Ok(());
        }
        let mut chunks = Vec::new();
        for part in extents.chunks(EXTENTS) {
            let mut bytes = Vec::new();
            put_extents(&mut bytes, part);
            chunks.push(self.sink.chunk(bytes)?);
        }
        content.extents = Extents::Elsewhere { chunks, patched: is_patched(extents) };
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<()> {
        self.chunks.push(self.sink.chunk(std::mem::take(&mut self.bytes))?);
        Ok(())
    }

    /// The chunks of the whole list, and where they were put.
    pub fn finish(mut self) -> Result<(Vec<Id>, S)> {
        if !self.bytes.is_empty() {
            self.end_chunk()?;
        }
        Ok((self.chunks, self.sink))
    }
}

/// The entries of one chunk of a list.
pub fn entries(chunk: &Id, content: &[u8]) -> Result<Vec<Entry>> {
    let mut reader = Reader::new(content);
    let mut entries = Vec::new();
    while !reader.is_empty() {
        entries.push(Entry::decode(&mut reader).map_err(RepositoryError::malformed(format!("chunk {chunk}")))?);
    }
    Ok(entries)
}

/// The extents of a file, wherever they are. `fetch` gives the content of a chunk.
pub fn extents(path: &[u8], content: &Content, mut fetch: impl FnMut(&Id) -> Result<Vec<u8>>) -> Result<Vec<Extent>> {
    let (chunks, patched) = match &content.extents {
        Extents::Here(extents) => return Ok(extents.clone()),
        Extents::Elsewhere { chunks, patched } => (chunks, *patched),
    };
    let mut all = Vec::new();
    for chunk in chunks {
        let bytes = fetch(chunk)?;
        let mut reader = Reader::new(&bytes);
        all.extend(take_extents(&mut reader, patched).map_err(RepositoryError::malformed(format!("chunk {chunk}")))?);
    }
    if covers(&all, content.size) {
        Ok(all)
    } else {
        Err(RepositoryError::damaged(format!("the list of {}", shown(path)), "its extents do not add up to its size"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entry::Meta;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Kept(BTreeMap<Id, Vec<u8>>);
    impl Sink for Kept {
        fn chunk(&mut self, content: Vec<u8>) -> Result<Id> {
            let id = Id::of(&content);
            self.0.insert(id, content);
            Ok(id)
        }
    }

    fn list(entries: &[Entry]) -> (Vec<Id>, Kept) {
        let mut lister = Lister::new(Kept::default());
        entries.iter().for_each(|e| lister.add(e.clone()).unwrap());
        lister.finish().unwrap()
    }
    fn fifos(count: usize) -> Vec<Entry> {
        (0..count).map(|n| Entry { path: format!("{n:06}").into_bytes(), node: Node::Fifo { meta: Meta::default() } }).collect()
    }

    #[test]
    fn all_entries_come_back_and_a_change_touches_one_chunk() {
        let mut all = fifos(20_000);
        let (chunks, kept) = list(&all);
        let back: Vec<Entry> = chunks.iter().flat_map(|c| super::entries(c, &kept.0[c]).unwrap()).collect();
        assert!(back == all && chunks.len() > 5, "{} chunks", chunks.len());
        all[9_999].node = Node::Socket { meta: Meta::default() };
        all.remove(15_000);
        let (other, _) = list(&all);
        let new = other.iter().filter(|c| !chunks.contains(c)).count();
        assert!(new <= 2, "{new} chunks are new");
    }

    #[test]
    fn many_extents_are_kept_apart() {
        let extent = |n: u32| Extent::Chunk { id: Id([n as u8; 32]), length: n };
        let extents: Vec<Extent> = (0..40_000).map(extent).collect();
        let size = extents.iter().map(Extent::length).sum();
        let content = Content { size, changed: false, digest: Id([0; 32]), extents: Extents::Here(extents.clone()) };
        let node = Node::File { meta: Meta::default(), ctime: Default::default(), inode: 1, content };
        let (chunks, kept) = list(&[Entry { path: b"large".to_vec(), node }]);
        let entry = super::entries(&chunks[0], &kept.0[&chunks[0]]).unwrap().remove(0);
        let content = entry.node.content().unwrap();
        assert_eq!((content.extents.elsewhere().len(), content.extents.is_patched()), (3, false));
        assert_eq!(super::extents(&entry.path, content, |id| Ok(kept.0[id].clone())).unwrap(), extents);
    }

    #[test]
    fn what_is_out_of_order_is_refused() {
        let mut lister = Lister::new(Kept::default());
        let all = fifos(2);
        lister.add(all[1].clone()).unwrap();
        assert!(lister.add(all[0].clone()).is_err());
        assert!(lister.add(all[1].clone()).is_err());
    }
}
