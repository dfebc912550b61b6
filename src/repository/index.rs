//! Where every chunk lies: index objects as they are stored, and all of them together in memory.
//!
//! An index object has the directories of packs: a number of packs, then for each its id (32 bytes), its size (a
//! number) and its directory, as in the pack itself. A backup writes one when its packs are safely stored. Several may
//! name the same pack, and no object is longer than stores take in one piece: what is to be named is divided among as
//! many as it takes ([`parts`]). In memory a chunk takes 48 bytes and the share of the table that is empty: between 60 and 110
//! bytes, so for chunks of 1 MiB less than 110 MiB for each TiB of content.

use super::{
    RepositoryError, Result,
    names::{INDEX, Id},
    pack::{Piece, put_directory, take_directory},
    places::Places,
    wire::{Malformed, Reader, put_number},
};
use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// The plain form of an index object has at most so many bytes, unless a single pack takes more (one of chunks of a few
/// bytes each: up to 32 MiB). It does not compress, and a store may take no more than 64 MiB in one piece. Small in tests,
/// so that little makes several.
const MOST: usize = if cfg!(test) { 400 } else { 16 << 20 };
/// What a pack takes in it at most, beside its pieces, and what each of these takes: numbers below 2^32 have five bytes.
const OF_PACK: usize = 32 + 10 + 5;
const OF_PIECE: usize = 32 + 5 + 5;

/// One pack and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackEntry {
    pub pack: Id,
    pub size: u64,
    pub pieces: Vec<Piece>,
}

#[must_use]
pub fn encode(packs: &[PackEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, packs.len() as u64);
    for entry in packs {
        out.extend_from_slice(&entry.pack.0);
        put_number(&mut out, entry.size);
        put_directory(&mut out, &entry.pieces);
    }
    out
}

/// These packs, divided into what each index object names. Without packs there is nothing to be named.
#[must_use]
pub fn parts(packs: &[PackEntry]) -> Vec<&[PackEntry]> {
    let (mut parts, mut begin, mut length) = (Vec::new(), 0, 0);
    for (at, entry) in packs.iter().enumerate() {
        let takes = OF_PACK + OF_PIECE * entry.pieces.len();
        if at > begin && length + takes > MOST {
            parts.push(&packs[begin..at]);
            (begin, length) = (at, 0);
        }
        length += takes;
    }
    if begin < packs.len() {
        parts.push(&packs[begin..]);
    }
    parts
}

pub fn decode(id: &Id, bytes: &[u8]) -> Result<Vec<PackEntry>> {
    read(bytes).map_err(RepositoryError::malformed(id.key(INDEX)))
}

fn read(bytes: &[u8]) -> std::result::Result<Vec<PackEntry>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.count()?;
    let mut packs = Vec::with_capacity(count.min(bytes.len() / 34));
    for _ in 0..count {
        packs.push(PackEntry { pack: reader.id()?, size: reader.number()?, pieces: take_directory(&mut reader)? });
    }
    if reader.is_empty() { Ok(packs) } else { Err(Malformed("something follows its end")) }
}

/// Names are as good as random already.
#[derive(Default)]
pub struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
    // The length of the array comes first, and says nothing.
    fn write_usize(&mut self, _: usize) {}
}

pub type Ids = HashSet<Id, BuildHasherDefault<FirstBytes>>;
pub type ById<T> = HashMap<Id, T, BuildHasherDefault<FirstBytes>>;

#[derive(Clone, Copy, Debug)]
struct Place {
    pack: u32,
    number: u32,
    offset: u32,
    stored: u32,
    length: u32,
}

/// All that is known of where chunks lie.
#[derive(Default)]
pub struct Index {
    packs: Vec<(Id, u64)>,
    by_pack: ById<u32>,
    chunks: ById<Place>,
    /// Where else chunks lie. Filled only when something is not where it says.
    pub(super) others: tokio::sync::OnceCell<Places>,
}

impl Index {
    #[must_use]
    pub fn of(packs: &[PackEntry]) -> Self {
        Self::without(packs, &HashSet::new())
    }
    /// Chunks are sought in the first of these packs before the second.
    #[must_use]
    pub fn preferring(packs: &[PackEntry], rather_not: &[PackEntry]) -> Self {
        let mut index = Self::of(packs);
        rather_not.iter().for_each(|entry| index.add(entry));
        index
    }
    /// As if these packs were not there.
    #[must_use]
    pub fn without(packs: &[PackEntry], left_out: &HashSet<Id>) -> Self {
        let mut index = Self::default();
        packs.iter().filter(|entry| !left_out.contains(&entry.pack)).for_each(|entry| index.add(entry));
        index
    }
    /// Takes a pack in. A chunk that is there already stays where it was found first.
    pub fn add(&mut self, entry: &PackEntry) {
        if self.by_pack.contains_key(&entry.pack) {
            return;
        }
        let pack = self.packs.len() as u32;
        self.packs.push((entry.pack, entry.size));
        self.by_pack.insert(entry.pack, pack);
        for p in &entry.pieces {
            self.chunks.entry(p.chunk).or_insert(Place { pack, number: p.number, offset: p.offset, stored: p.stored, length: p.length });
        }
    }
    #[must_use]
    pub fn contains(&self, chunk: &Id) -> bool {
        self.chunks.contains_key(chunk)
    }
    /// The pack of a chunk, and where it lies there.
    #[must_use]
    pub fn find(&self, chunk: &Id) -> Option<(Id, Piece)> {
        let place = self.chunks.get(chunk)?;
        let piece = Piece { chunk: *chunk, number: place.number, offset: place.offset, stored: place.stored, length: place.length };
        Some((self.packs.get(place.pack as usize)?.0, piece))
    }
    #[must_use]
    pub fn has_pack(&self, pack: &Id) -> bool {
        self.by_pack.contains_key(pack)
    }
    pub fn packs(&self) -> impl Iterator<Item = &(Id, u64)> {
        self.packs.iter()
    }
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(pack: u8, chunks: &[u8]) -> PackEntry {
        let mut offset = 44;
        let piece = |(number, chunk): (usize, &u8)| {
            let piece = Piece { chunk: Id([*chunk; 32]), number: number as u32, offset, stored: 100 + number as u32, length: 4096 };
            offset += piece.stored;
            piece
        };
        PackEntry { pack: Id([pack; 32]), size: 9000, pieces: chunks.iter().enumerate().map(piece).collect() }
    }

    #[test]
    fn what_is_written_is_read() {
        let packs = vec![entry(1, &[10, 11, 12]), entry(2, &[]), entry(3, &[13])];
        assert_eq!(read(&encode(&packs)), Ok(packs));
    }

    #[test]
    fn no_object_is_too_long_and_nothing_is_left_out() {
        let packs: Vec<PackEntry> = (0..40).map(|n| entry(n, &(0..n % 5).collect::<Vec<u8>>())).collect();
        let divided = parts(&packs);
        assert!(divided.len() > 5 && divided.iter().all(|part| encode(part).len() <= MOST), "{}", divided.len());
        assert_eq!(divided.concat(), packs);
        // No two that follow each other would have fitted into one.
        let takes = |part: &[PackEntry]| part.iter().map(|e| OF_PACK + OF_PIECE * e.pieces.len()).sum::<usize>();
        assert!(divided.windows(2).all(|two| takes(two[0]) + takes(&two[1][..1]) > MOST));
        // A pack that alone is too long stands alone; no packs take no object.
        let long = [entry(1, &[1]), entry(2, &(0..20).collect::<Vec<u8>>()), entry(3, &[2])];
        assert_eq!(parts(&long).iter().map(|part| part.len()).collect::<Vec<_>>(), [1, 1, 1]);
        assert!(parts(&[]).is_empty());
    }

    #[test]
    fn a_chunk_is_found_in_the_first_pack_that_has_it() {
        let mut index = Index::default();
        for e in [entry(1, &[10, 11]), entry(2, &[11, 12]), entry(1, &[99])] {
            index.add(&e);
        }
        let (pack, piece) = index.find(&Id([11; 32])).unwrap();
        assert_eq!((pack, piece.number, piece.offset, piece.stored), (Id([1; 32]), 1, 144, 101));
        assert_eq!((index.chunks(), index.packs().count()), (3, 2));
        assert!(!index.contains(&Id([99; 32])));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
