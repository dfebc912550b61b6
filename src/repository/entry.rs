//! One entry of a snapshot's list: a file, folder, link, device or object, with all that restoring it takes.
//!
//! ```text
//! kind       one byte: f file, F file with patched extents, d folder, l symbolic link, h hard link, p FIFO, s socket, c and b device, o object
//! path       bytes; relative to the source; that of a folder ends with "/", that of the source's own folder is empty
//! then, but for o:
//!   mode, uid, gid           numbers; of the mode the twelve bits of permissions
//!   mtime                    signed seconds since 1970, then a number of nanoseconds
//!   attributes               a number, then for each its name and value (bytes), by name
//! and for
//!   f, F  ctime (like mtime), inode (number), content
//!   l  the target (bytes)
//!   h  the path of the first entry with the same file (bytes)
//!   c, b  major and minor (numbers)
//!   o  mtime, etag, version (bytes, empty if there is none), metadata (as attributes), content
//! content    size (number), flags (one byte), BLAKE3 of all of it (32 bytes), extents
//! extents    a number; for each a length (number), which is
//!              even: twice the length of a run of zeros;  odd: twice the length of a chunk, plus one, and its id;
//!              in an F alone, 0: patched, and what follows is its length (number), the id that a chunk of this content
//!              would have, a number of chunks and their ids, a number of parts and for each part which of these chunks
//!              it is of (number, from 0), where it begins there (number) and its length (number)
//! ```
//! Flags: 1, it changed while it was read; 2, the extents are in chunks of their own, and a number and their ids stand
//! here instead. Entries are in the order of their paths' bytes, so a folder comes before what is in it.

use super::{
    names::Id,
    wire::{Malformed, Reader, put_bytes, put_number, put_signed},
};

/// An instant as file systems have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    pub seconds: i64,
    pub nanos: u32,
}

/// What every entry of a file system has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Instant,
    /// Extended attributes, by name.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    Zeros(u64),
    Chunk {
        id: Id,
        length: u32,
    },
    /// Put together from parts of chunks: most of an older one, and what has changed since.
    Patched(Box<Patched>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patched {
    /// What a chunk of this content would be called: who has the content can tell that it is this.
    pub id: Id,
    pub length: u32,
    pub chunks: Vec<Id>,
    /// One after another; together they have `length` bytes.
    pub parts: Vec<Part>,
}

/// A part of one of the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which of them.
    pub chunk: u32,
    pub offset: u32,
    pub length: u32,
}

impl Patched {
    /// Each part with its chunk.
    pub fn parts(&self) -> impl Iterator<Item = (Option<&Id>, Part)> {
        self.parts.iter().map(|part| (self.chunks.get(part.chunk as usize), *part))
    }
}

impl Extent {
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Zeros(length) => *length,
            Self::Chunk { length, .. } => u64::from(*length),
            Self::Patched(patched) => u64::from(patched.length),
        }
    }
    /// The chunks that it takes to have its content.
    #[must_use]
    pub fn chunks(&self) -> &[Id] {
        match self {
            Self::Zeros(_) => &[],
            Self::Chunk { id, .. } => std::slice::from_ref(id),
            Self::Patched(patched) => &patched.chunks,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extents {
    Here(Vec<Extent>),
    /// Encoded in these chunks, one after another.
    Elsewhere {
        chunks: Vec<Id>,
        patched: bool,
    },
}

impl Extents {
    /// Is any of them put together from parts? A reader must know.
    #[must_use]
    pub fn is_patched(&self) -> bool {
        match self {
            Self::Here(extents) => is_patched(extents),
            Self::Elsewhere { patched, .. } => *patched,
        }
    }
    /// The chunks that they are encoded in, if they are not here.
    #[must_use]
    pub fn elsewhere(&self) -> &[Id] {
        match self {
            Self::Here(_) => &[],
            Self::Elsewhere { chunks, .. } => chunks,
        }
    }
}

#[must_use]
pub fn is_patched(extents: &[Extent]) -> bool {
    extents.iter().any(|extent| matches!(extent, Extent::Patched(_)))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub size: u64,
    /// It changed while it was read: what is here is no state that it ever had.
    pub changed: bool,
    /// BLAKE3 of all of it, without a key: what `b3sum` prints.
    pub digest: Id,
    pub extents: Extents,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub mtime: Instant,
    pub etag: Vec<u8>,
    pub version: Vec<u8>,
    pub metadata: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File { meta: Meta, ctime: Instant, inode: u64, content: Content },
    Folder { meta: Meta },
    Symlink { meta: Meta, target: Vec<u8> },
    HardLink { meta: Meta, to: Vec<u8> },
    Fifo { meta: Meta },
    Socket { meta: Meta },
    CharDevice { meta: Meta, major: u32, minor: u32 },
    BlockDevice { meta: Meta, major: u32, minor: u32 },
    Object { info: ObjectInfo, content: Content },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub node: Node,
}

impl Node {
    #[must_use]
    pub fn content(&self) -> Option<&Content> {
        match self {
            Self::File { content, .. } | Self::Object { content, .. } => Some(content),
            _ => None,
        }
    }
    #[must_use]
    pub fn meta(&self) -> Option<&Meta> {
        match self {
            Self::File { meta, .. }
            | Self::Folder { meta }
            | Self::Symlink { meta, .. }
            | Self::HardLink { meta, .. }
            | Self::Fifo { meta }
            | Self::Socket { meta }
            | Self::CharDevice { meta, .. }
            | Self::BlockDevice { meta, .. } => Some(meta),
            Self::Object { .. } => None,
        }
    }
    fn kind(&self) -> u8 {
        match self {
            Self::File { content, .. } if content.extents.is_patched() => b'F',
            Self::File { .. } => b'f',
            Self::Folder { .. } => b'd',
            Self::Symlink { .. } => b'l',
            Self::HardLink { .. } => b'h',
            Self::Fifo { .. } => b'p',
            Self::Socket { .. } => b's',
            Self::CharDevice { .. } => b'c',
            Self::BlockDevice { .. } => b'b',
            Self::Object { .. } => b'o',
        }
    }
}

impl Entry {
    /// The path for people: bytes that are no UTF-8 are shown as replacement characters.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.path)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.node.kind());
        put_bytes(out, &self.path);
        if let Some(meta) = self.node.meta() {
            for number in [meta.mode, meta.uid, meta.gid] {
                put_number(out, u64::from(number));
            }
            put_instant(out, meta.mtime);
            put_pairs(out, &meta.attributes);
        }
        match &self.node {
            Node::File { ctime, inode, content, .. } => {
                put_instant(out, *ctime);
                put_number(out, *inode);
                put_content(out, content);
            }
            Node::Symlink { target: to, .. } | Node::HardLink { to, .. } => put_bytes(out, to),
            Node::CharDevice { major, minor, .. } | Node::BlockDevice { major, minor, .. } => {
                put_number(out, u64::from(*major));
                put_number(out, u64::from(*minor));
            }
            Node::Object { info, content } => {
                put_instant(out, info.mtime);
                put_bytes(out, &info.etag);
                put_bytes(out, &info.version);
                put_pairs(out, &info.metadata);
                put_content(out, content);
            }
            Node::Folder { .. } | Node::Fifo { .. } | Node::Socket { .. } => {}
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let kind = reader.byte()?;
        let path = reader.bytes()?.to_vec();
        if kind == b'o' {
            let (mtime, etag, version) = (take_instant(reader)?, reader.bytes()?.to_vec(), reader.bytes()?.to_vec());
            let info = ObjectInfo { mtime, etag, version, metadata: take_pairs(reader)? };
            return Ok(Self { path, node: Node::Object { info, content: take_content(reader, false)? } });
        }
        let (mode, uid, gid) = (reader.small()?, reader.small()?, reader.small()?);
        let meta = Meta { mode, uid, gid, mtime: take_instant(reader)?, attributes: take_pairs(reader)? };
        let node = match kind {
            b'f' | b'F' => {
                let (ctime, inode) = (take_instant(reader)?, reader.number()?);
                Node::File { meta, ctime, inode, content: take_content(reader, kind == b'F')? }
            }
            b'd' => Node::Folder { meta },
            b'l' => Node::Symlink { meta, target: reader.bytes()?.to_vec() },
            b'h' => Node::HardLink { meta, to: reader.bytes()?.to_vec() },
            b'p' => Node::Fifo { meta },
            b's' => Node::Socket { meta },
            b'c' => Node::CharDevice { meta, major: reader.small()?, minor: reader.small()? },
            b'b' => Node::BlockDevice { meta, major: reader.small()?, minor: reader.small()? },
            _ => return Err(Malformed("an entry is of no known kind")),
        };
        Ok(Self { path, node })
    }
}

#[must_use]
pub fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

fn put_instant(out: &mut Vec<u8>, at: Instant) {
    put_signed(out, at.seconds);
    put_number(out, u64::from(at.nanos));
}

fn take_instant(reader: &mut Reader) -> Result<Instant, Malformed> {
    let at = Instant { seconds: reader.signed()?, nanos: reader.small()? };
    if at.nanos < 1_000_000_000 { Ok(at) } else { Err(Malformed("an instant has too many nanoseconds")) }
}

fn put_pairs(out: &mut Vec<u8>, pairs: &[(Vec<u8>, Vec<u8>)]) {
    put_number(out, pairs.len() as u64);
    for (name, value) in pairs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

fn take_pairs(reader: &mut Reader) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Malformed> {
    let count = reader.count()?;
    (0..count).map(|_| Ok((reader.bytes()?.to_vec(), reader.bytes()?.to_vec()))).collect()
}

const CHANGED: u8 = 1;
const ELSEWHERE: u8 = 2;

fn put_content(out: &mut Vec<u8>, content: &Content) {
    put_number(out, content.size);
    let elsewhere = if matches!(content.extents, Extents::Elsewhere { .. }) { ELSEWHERE } else { 0 };
    out.push(elsewhere | if content.changed { CHANGED } else { 0 });
    out.extend_from_slice(&content.digest.0);
    match &content.extents {
        Extents::Here(extents) => put_extents(out, extents),
        Extents::Elsewhere { chunks, .. } => {
            put_number(out, chunks.len() as u64);
            chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.0));
        }
    }
}

fn take_content(reader: &mut Reader, patched: bool) -> Result<Content, Malformed> {
    let (size, flags) = (reader.number()?, reader.byte()?);
    if flags & !(CHANGED | ELSEWHERE) != 0 {
        return Err(Malformed("an entry has flags that are not known"));
    }
    let digest = reader.id()?;
    let extents = if flags & ELSEWHERE == 0 {
        let extents = take_extents(reader, patched)?;
        if !covers(&extents, size) {
            return Err(Malformed("the extents of a file do not add up to its size"));
        }
        Extents::Here(extents)
    } else {
        let count = reader.count()?;
        Extents::Elsewhere { chunks: (0..count).map(|_| reader.id()).collect::<Result<_, _>>()?, patched }
    };
    Ok(Content { size, changed: flags & CHANGED != 0, digest, extents })
}

#[must_use]
pub fn covers(extents: &[Extent], size: u64) -> bool {
    extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.length())) == Some(size)
}

pub fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    put_number(out, extents.len() as u64);
    for extent in extents {
        match extent {
            Extent::Zeros(length) => put_number(out, length << 1),
            Extent::Chunk { id, length } => {
                put_number(out, u64::from(*length) << 1 | 1);
                out.extend_from_slice(&id.0);
            }
            Extent::Patched(patched) => put_patched(out, patched),
        }
    }
}

fn put_patched(out: &mut Vec<u8>, patched: &Patched) {
    put_number(out, 0);
    put_number(out, u64::from(patched.length));
    out.extend_from_slice(&patched.id.0);
    put_number(out, patched.chunks.len() as u64);
    patched.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.0));
    put_number(out, patched.parts.len() as u64);
    for part in &patched.parts {
        for number in [part.chunk, part.offset, part.length] {
            put_number(out, u64::from(number));
        }
    }
}

fn take_patched(reader: &mut Reader) -> Result<Patched, Malformed> {
    let (length, id) = (reader.small()?, reader.id()?);
    let count = reader.count()?;
    let chunks = (0..count).map(|_| reader.id()).collect::<Result<Vec<_>, _>>()?;
    let count = reader.count()?;
    let (mut parts, mut sum) = (Vec::with_capacity(count.min(reader.rest().len() / 3)), 0u64);
    for _ in 0..count {
        let part = Part { chunk: reader.small()?, offset: reader.small()?, length: reader.small()? };
        if part.chunk as usize >= chunks.len() || part.offset.checked_add(part.length).is_none() {
            return Err(Malformed("a part is of no chunk, or beyond its end"));
        }
        sum += u64::from(part.length);
        parts.push(part);
    }
    if sum == u64::from(length) { Ok(Patched { id, length, chunks, parts }) } else { Err(Malformed("parts do not add up")) }
}

/// `patched`: there may be some that are put together from parts.
pub fn take_extents(reader: &mut Reader, patched: bool) -> Result<Vec<Extent>, Malformed> {
    let count = reader.count()?;
    let mut extents = Vec::with_capacity(count.min(reader.rest().len() / 2));
    for _ in 0..count {
        let number = reader.number()?;
        let length = number >> 1;
        extents.push(if number == 0 && patched {
            Extent::Patched(Box::new(take_patched(reader)?))
        } else if number & 1 == 0 {
            Extent::Zeros(length)
        } else {
            let length = u32::try_from(length).map_err(|_| Malformed("a chunk has an impossible length"))?;
            Extent::Chunk { id: reader.id()?, length }
        });
    }
    Ok(extents)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn instant() -> impl Strategy<Value = Instant> {
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Instant { seconds, nanos })
    }
    fn pairs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..3)
    }
    fn id() -> impl Strategy<Value = Id> {
        any::<[u8; 32]>().prop_map(Id)
    }
    fn patched() -> impl Strategy<Value = Extent> {
        let part = |chunks: usize| (0..chunks as u32, 0..1u32 << 20, 0..1u32 << 20);
        let parts = vec(id(), 1..4).prop_flat_map(move |chunks| (id(), vec(part(chunks.len()), 0..5), Just(chunks)));
        parts.prop_map(|(id, parts, chunks)| {
            let parts: Vec<Part> = parts.into_iter().map(|(chunk, offset, length)| Part { chunk, offset, length }).collect();
            Extent::Patched(Box::new(Patched { id, length: parts.iter().map(|part| part.length).sum(), chunks, parts }))
        })
    }
    fn content() -> impl Strategy<Value = Content> {
        let zeros = (1..u64::from(u32::MAX)).prop_map(Extent::Zeros);
        let chunk = (id(), any::<u32>()).prop_map(|(id, length)| Extent::Chunk { id, length });
        let here = vec(prop_oneof![zeros, chunk, patched()], 0..5).prop_map(Extents::Here);
        let elsewhere = (vec(id(), 0..4), any::<bool>()).prop_map(|(chunks, patched)| Extents::Elsewhere { chunks, patched });
        let extents = prop_oneof![here, elsewhere];
        (any::<bool>(), id(), extents, any::<u32>()).prop_map(|(changed, digest, extents, size)| {
            let size = if let Extents::Here(e) = &extents { e.iter().map(Extent::length).sum() } else { u64::from(size) };
            Content { size, changed, digest, extents }
        })
    }
    pub(in crate::repository) fn entry() -> impl Strategy<Value = Entry> {
        let meta = (any::<u32>(), any::<u32>(), any::<u32>(), instant(), pairs()).prop_map(|(mode, uid, gid, mtime, attributes)| Meta {
            mode,
            uid,
            gid,
            mtime,
            attributes,
        });
        let info = (instant(), any::<Vec<u8>>(), any::<Vec<u8>>(), pairs()).prop_map(|(mtime, etag, version, metadata)| ObjectInfo {
            mtime,
            etag,
            version,
            metadata,
        });
        let node = (0..9, meta, info, content(), any::<(Vec<u8>, u32, u32, u64)>(), instant()).prop_map(
            |(kind, meta, info, content, (to, major, minor, inode), ctime)| match kind {
                0 => Node::File { meta, ctime, inode, content },
                1 => Node::Folder { meta },
                2 => Node::Symlink { meta, target: to },
                3 => Node::HardLink { meta, to },
                4 => Node::Fifo { meta },
                5 => Node::Socket { meta },
                6 => Node::CharDevice { meta, major, minor },
                7 => Node::BlockDevice { meta, major, minor },
                // An object's are never patched.
                _ if content.extents.is_patched() => Node::File { meta, ctime, inode, content },
                _ => Node::Object { info, content },
            },
        );
        (any::<Vec<u8>>(), node).prop_map(|(path, node)| Entry { path, node })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entry in entry()) {
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Entry::decode(&mut reader), Ok(entry.clone()));
            prop_assert!(reader.is_empty());
            // Who does not know patched extents meets a kind that there is not, and stops.
            let patched = entry.node.content().is_some_and(|content| content.extents.is_patched());
            prop_assert_eq!(bytes[0] == b'F', patched);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in prop::sample::select(&b"fFdlhpscbo"[..])) {
            let mut bytes = bytes;
            bytes.insert(0, kind);
            let _ = Entry::decode(&mut Reader::new(&bytes));
        }
    }
}
