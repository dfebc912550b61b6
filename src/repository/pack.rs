//! A pack: many chunks in one object, each a segment of its own, and at its end a directory of them.
//!
//! ```text
//! header                       as of every sealed object
//! segment 0, 1, 2 …            one chunk each, in its stored form (`codec`)
//! segment 2^64-1               the directory: for each chunk its id (32 bytes), the length of its
//!                              segment with its tag, and the length of its content (numbers)
//! directory's length           four bytes, little-endian: of its segment with its tag
//! ```
//!
//! The directory says again what the index says, so that the index can be lost. A chunk is read by one range
//! request. Every byte is authenticated: the header makes the key, the last four must lead to a directory that opens.

use super::{
    RepositoryError, Result,
    codec::{Compression, Decoder, Encoder, Hint},
    cut::MAX_CHUNK,
    keys::Keyring,
    names::{Id, PACKS},
    seal::{self, HEADER, Kind, ObjectKey, TAG},
    wire::{Malformed, Reader, put_number},
};

/// A pack is closed once it has so many bytes. Large enough that a request costs little beside it, small enough that
/// several are held in memory at once. Small in tests, so that little makes many.
pub const ENOUGH: usize = if cfg!(test) { 256 * 1024 } else { 16 * 1024 * 1024 };
/// No content of a chunk is longer; what says so was not written by Muster.
pub const LONGEST: u32 = 64 * 1024 * 1024;
const DIRECTORY: u64 = u64::MAX;
const TRAILER: usize = 4;

/// Where one chunk lies in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub chunk: Id,
    /// Which segment of the pack.
    pub number: u32,
    pub offset: u32,
    /// Of its segment, with the tag.
    pub stored: u32,
    /// Of its content.
    pub length: u32,
}

/// Appends pieces to a directory, as packs and indexes have it.
pub fn put_directory(out: &mut Vec<u8>, pieces: &[Piece]) {
    put_number(out, pieces.len() as u64);
    for piece in pieces {
        out.extend_from_slice(&piece.chunk.0);
        put_number(out, u64::from(piece.stored));
        put_number(out, u64::from(piece.length));
    }
}

pub fn take_directory(reader: &mut Reader) -> std::result::Result<Vec<Piece>, Malformed> {
    let count = reader.count()?;
    let mut pieces = Vec::with_capacity(count.min(reader.rest().len() / 34));
    let mut offset = HEADER as u32;
    for number in 0..count {
        let (chunk, stored, length) = (reader.id()?, reader.small()?, reader.small()?);
        if stored < TAG as u32 || length > LONGEST {
            return Err(Malformed("a chunk has an impossible length"));
        }
        pieces.push(Piece { chunk, number: number as u32, offset, stored, length });
        offset = offset.checked_add(stored).ok_or(Malformed("a pack is impossibly long"))?;
    }
    Ok(pieces)
}

/// A pack that is being filled.
pub struct Packer {
    bytes: Vec<u8>,
    key: ObjectKey,
    pieces: Vec<Piece>,
}

/// A pack that is complete.
pub struct Pack {
    pub id: Id,
    pub bytes: Vec<u8>,
    pub pieces: Vec<Piece>,
}

impl Packer {
    pub fn new(keyring: &Keyring) -> Result<Self> {
        // All that it will need at once: what is not used is not touched, and nothing is moved while it grows.
        let mut bytes = Vec::with_capacity(ENOUGH + 2 * MAX_CHUNK);
        let key = seal::begin(keyring, Kind::Pack, &mut bytes)?;
        Ok(Self { bytes, key, pieces: Vec::new() })
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= ENOUGH
    }

    /// Adds one chunk; gives the length of its segment.
    pub fn add(&mut self, chunk: Id, content: &[u8], hint: Hint, encoder: &mut Encoder) -> Result<u32> {
        let start = self.bytes.len();
        encoder.encode(content, hint, &mut self.bytes);
        self.close(chunk, start, content.len() as u32)
    }

    /// Adds one chunk that is in its stored form already.
    pub fn add_stored(&mut self, chunk: Id, stored: &[u8], length: u32) -> Result<u32> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(stored);
        self.close(chunk, start, length)
    }

    fn close(&mut self, chunk: Id, start: usize, length: u32) -> Result<u32> {
        let number = self.pieces.len() as u32;
        self.key.seal(u64::from(number), &mut self.bytes, start)?;
        let stored = (self.bytes.len() - start) as u32;
        self.pieces.push(Piece { chunk, number, offset: start as u32, stored, length });
        Ok(stored)
    }

    pub fn finish(mut self) -> Result<Pack> {
        let start = self.bytes.len();
        put_directory(&mut self.bytes, &self.pieces);
        self.key.seal(DIRECTORY, &mut self.bytes, start)?;
        let length = (self.bytes.len() - start) as u32;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        Ok(Pack { id: Id::of(&self.bytes), bytes: self.bytes, pieces: self.pieces })
    }
}

/// How many bytes at a pack's end its directory takes, from its last four.
pub fn directory_length(last: &[u8]) -> Option<usize> {
    let last = last.get(last.len().checked_sub(TRAILER)?..)?;
    Some(u32::from_le_bytes(last.try_into().ok()?) as usize + TRAILER)
}

/// The directory of the pack `id`, of so many bytes in all: from its header and its end (`directory_length` bytes).
pub fn open_directory(keyring: &Keyring, id: &Id, header: &[u8], end: &[u8], size: u64) -> Result<Vec<Piece>> {
    let damaged = |why| RepositoryError::damaged(id.key(PACKS), why);
    let key = seal::unlock(keyring, Kind::Pack, header).map_err(damaged)?;
    let mut sealed = end.get(..end.len().saturating_sub(TRAILER)).unwrap_or_default().to_vec();
    let plain = key.open(DIRECTORY, &mut sealed).ok_or_else(|| damaged("its directory does not decrypt"))?;
    let mut reader = Reader::new(plain);
    let pieces = take_directory(&mut reader).map_err(RepositoryError::malformed(id.key(PACKS)))?;
    let described = pieces.last().map_or(HEADER as u64, |p| u64::from(p.offset) + u64::from(p.stored)) + end.len() as u64;
    if !reader.is_empty() || described != size {
        return Err(damaged("its directory does not describe all of it"));
    }
    Ok(pieces)
}

/// Opens chunks of packs, again and again without allocating.
#[derive(Default)]
pub struct Opener {
    decoder: Decoder,
    pub content: Vec<u8>,
}

impl Opener {
    /// Decrypts and decodes one segment in place and compares it with the chunk's name; the content is then in
    /// `content`.
    pub fn open(&mut self, keyring: &Keyring, key: &ObjectKey, piece: &Piece, sealed: &mut [u8]) -> std::result::Result<(), &'static str> {
        let plain = key.open(u64::from(piece.number), sealed).ok_or("it does not decrypt with the repository's key")?;
        let decoded = self.decoder.decode(plain, piece.length as usize, &mut self.content);
        decoded.map_err(|_| "it does not decode to what the index says")?;
        if keyring.chunk_id(&self.content) != piece.chunk {
            return Err("its content is not what its name says");
        }
        Ok(())
    }
}

/// The content of an object of one segment: the length of its plain form (a number), then its stored form.
#[must_use]
pub fn squeeze(plain: &[u8]) -> Vec<u8> {
    squeeze_by(Compression::Standard, plain)
}

/// The same with so much work done for it.
#[must_use]
pub fn squeeze_by(compression: Compression, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, plain.len() as u64);
    Encoder::of(compression).encode(plain, Hint::None, &mut out);
    out
}

/// The plain form again. What it says of its length is believed up to a bound.
pub fn expand(stored: &[u8]) -> std::result::Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(stored);
    let length = usize::try_from(reader.number()?).ok().filter(|l| *l <= MOST_PLAIN).ok_or(Malformed("it is impossibly long"))?;
    let mut plain = Vec::new();
    Decoder::new().decode(reader.rest(), length, &mut plain).map_err(|_| Malformed("it does not decode"))?;
    Ok(plain)
}

/// No index, snapshot or list of marks is longer: what is, is neither written nor read.
pub const MOST_PLAIN: usize = 1 << 30;
