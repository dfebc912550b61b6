//! The codecs of the backup repository: how the bytes of a chunk become what is stored, and back.
//!
//! Weights of neural networks are most of what Muster backs up, and a general compressor makes little of them:
//! the exponents repeat, the mantissas are noise, and the two alternate. So floating-point numbers are taken
//! apart into byte planes, the planes that have something to give are entropy-coded, and the others are stored as
//! they are. Everything else goes through zstd, or is stored as it is when that would save nothing.
//! What is chosen is decided chunk by chunk from a sample of the bytes (`choose`), never from the name or the
//! format of a file; what was chosen is written in front of the bytes, so reading needs to know nothing. An operator may
//! have less work done, or none at all ([`Compression`]): then the forms are the same, and other ones are chosen.
//!
//! # The stored form
//!
//! The length of the raw bytes is not in it: the reader knows it. Integers are little-endian.
//! The first byte is the codec:
//!
//! | codec | what follows |
//! | --- | --- |
//! | 0 | the raw bytes |
//! | 1 | one zstd frame (RFC 8878) of the raw bytes, without dictionary, checksum and content size |
//! | 2 | byte planes, see below |
//! | 3 | one byte: the raw bytes are that byte, again and again |
//!
//! Codec 2 takes the raw bytes for `lead` bytes, then as many elements of `width` bytes as there are, then a tail
//! shorter than an element. Plane `k` holds byte `k` of every element, so there are `width` planes, each of
//! `n = (raw length - lead) / width` bytes, rounded down.
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | codec: 2 |
//! | 1 | `width`: 2, 4 or 8 |
//! | 1 | `turned`: 1 if every element, as a little-endian integer, was rotated left by one bit before it was taken apart, else 0 |
//! | 1 | `lead`: 0 to `width` - 1 |
//! | | for every plane from 0 on: |
//! | 1 | method: 0 the bytes of the plane, 1 one zstd frame of them, 3 one byte that fills the plane |
//! | 4 | length of what follows for this plane |
//! | length | the plane |
//! | | after the last plane: |
//! | `lead` | the bytes before the first element |
//! | rest | the bytes after the last element, `(raw length - lead) % width` of them |
//!
//! Rotating moves the sign, which is noise, from the top of the number to its bottom, and leaves bf16 and f32 with the
//! whole exponent in one byte. On Gaussian weights that saves 0.8 % of bf16 and costs nothing to compute.
//! The lead is there because a chunk may begin within an element.

mod choose;
mod frame;
mod planes;
#[cfg(test)]
mod tests;

pub use crate::model::estate::Compression;
use choose::{Chooser, Method, Plan};
use frame::Frames;
use zstd_safe::DCtx;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const PLANES: u8 = 2;
const SAME: u8 = 3;

/// In front of a plane: one byte of method, four of length.
const PLANE_HEAD: usize = 5;

/// What the reader of a file knows about a chunk beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    /// Nothing: it is found out.
    #[default]
    None,
    /// The chunk is a sequence of elements of so many bytes, the first of which stands at its beginning: 1, 2, 4 or 8.
    Width(u8),
    /// The chunk is pages of a database.
    Pages,
}

/// Why stored bytes cannot be decoded. Whatever it is, they are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the stored chunk ends too early")]
    Short,
    #[error("the stored chunk names codec {0}, which does not exist")]
    Codec(u8),
    #[error("the stored chunk has planes of a form that does not exist")]
    Form,
    #[error("the stored chunk holds a damaged zstd frame")]
    Zstd,
    #[error("the stored chunk does not give as many bytes as it should")]
    Length,
}

/// Turns raw bytes into their stored form. Holds a few MiB and takes a moment to make: keep one for each thread.
pub struct Encoder {
    compression: Compression,
    chooser: Chooser,
    frames: Frames,
    /// The planes of the chunk at hand, one after another.
    planes: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    pub fn new() -> Self {
        Self::of(Compression::Standard)
    }

    pub fn of(compression: Compression) -> Self {
        Self { compression, chooser: Chooser::new(), frames: Frames::of(compression), planes: Vec::new() }
    }

    /// Appends the stored form of `raw` to `out`: at most one byte longer than `raw`.
    pub fn encode(&mut self, raw: &[u8], hint: Hint, out: &mut Vec<u8>) {
        let begin = out.len();
        // Enough for every codec, so that nothing is moved while it is written.
        out.reserve(zstd_safe::compress_bound(raw.len()) + 1024);
        let plan = match self.compression {
            Compression::None => Plan::Raw,
            Compression::Fast | Compression::Standard => self.chooser.choose(raw, hint, &mut self.frames),
        };
        let written = match plan {
            Plan::Raw => false,
            Plan::Same(byte) => {
                out.extend_from_slice(&[SAME, byte]);
                true
            }
            Plan::Whole(method) => {
                out.push(ZSTD);
                self.frames.append(method, raw, out)
            }
            Plan::Planes { width, turned, lead, methods, doubtful } => {
                let (before, rest) = raw.split_at_checked(usize::from(lead)).unwrap_or((&[], raw));
                out.extend_from_slice(&[PLANES, width, u8::from(turned), lead]);
                let tail = self.split(rest, usize::from(width), turned, methods, out);
                out.extend_from_slice(before);
                out.extend_from_slice(tail);
                if doubtful {
                    self.reconsider(raw, begin, out);
                }
                true
            }
        };
        if !written || out.len() - begin > raw.len() {
            out.truncate(begin);
            out.push(RAW);
            out.extend_from_slice(raw);
        }
    }

    /// Puts a frame of `raw` in place of the planes that stand from `begin` on, if it is shorter.
    fn reconsider(&mut self, raw: &[u8], begin: usize, out: &mut Vec<u8>) {
        let end = out.len();
        out.push(ZSTD);
        if self.frames.append(Method::Match, raw, out) && out.len() - end < end - begin {
            out.drain(begin..end);
        } else {
            out.truncate(end);
        }
    }

    /// Writes the planes of the elements in `bytes`, and gives back what is left after the last element.
    fn split<'a>(&mut self, bytes: &'a [u8], width: usize, turned: bool, methods: [Method; 8], out: &mut Vec<u8>) -> &'a [u8] {
        let count = bytes.len() / width;
        let (elements, tail) = bytes.split_at(count * width);
        if self.planes.len() < elements.len() {
            self.planes.resize(elements.len(), 0);
        }
        planes::split(elements, width, turned, &mut self.planes);
        for (plane, method) in self.planes.chunks_exact(count.max(1)).zip(methods).take(width) {
            append_plane(&mut self.frames, method, plane, out);
        }
        tail
    }
}

fn append_plane(frames: &mut Frames, method: Method, plane: &[u8], out: &mut Vec<u8>) {
    let head = out.len();
    out.extend_from_slice(&[0; PLANE_HEAD]);
    let stored = match plane {
        [first, ..] if method == Method::Match && all_same(plane) => {
            out.push(*first);
            SAME
        }
        _ if method != Method::Raw && frames.append(method, plane, out) => ZSTD,
        _ => {
            out.truncate(head + PLANE_HEAD);
            out.extend_from_slice(plane);
            RAW
        }
    };
    let length = u32::try_from(out.len() - head - PLANE_HEAD).unwrap_or(u32::MAX);
    if let Some([method, rest @ ..]) = out.get_mut(head..head + PLANE_HEAD) {
        *method = stored;
        rest.copy_from_slice(&length.to_le_bytes());
    }
}

fn all_same(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [_, rest @ ..] => bytes.starts_with(rest),
    }
}

/// Turns the stored form back into raw bytes. Keep one for each thread.
pub struct Decoder {
    context: DCtx<'static>,
    /// The planes that are not stored as they are, one after another.
    planes: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    pub fn new() -> Self {
        Self { context: DCtx::create(), planes: Vec::new() }
    }

    /// Puts the `raw_len` raw bytes into `out`, in place of what was there. Neither `out` nor what is kept for the next
    /// call grows beyond `raw_len`, whatever `stored` says. After an error `out` is empty.
    pub fn decode(&mut self, stored: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let decoded = self.fill(stored, raw_len, out);
        if decoded.is_err() {
            out.clear();
        }
        decoded
    }

    fn fill(&mut self, stored: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let (codec, rest) = stored.split_first().ok_or(CodecError::Short)?;
        match (*codec, rest) {
            (RAW, _) if rest.len() == raw_len => {
                fit(out, raw_len);
                out.copy_from_slice(rest);
                Ok(())
            }
            (ZSTD, _) => {
                fit(out, raw_len);
                frame::fill(&mut self.context, rest, out)
            }
            (PLANES, _) => self.join(rest, raw_len, out),
            (SAME, [byte]) => {
                fit(out, raw_len);
                out.fill(*byte);
                Ok(())
            }
            (RAW | SAME, _) => Err(CodecError::Length),
            (other, _) => Err(CodecError::Codec(other)),
        }
    }

    fn join(&mut self, stored: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let ([width, turned, lead], mut rest) = stored.split_first_chunk().ok_or(CodecError::Short)?;
        let (width, lead) = (usize::from(*width), usize::from(*lead));
        if !matches!(width, 2 | 4 | 8) || *turned > 1 || lead >= width {
            return Err(CodecError::Form);
        }
        let count = raw_len.checked_sub(lead).ok_or(CodecError::Length)? / width;
        let mut found = [Plane::Kept(0); 8];
        let mut kept = 0;
        for plane in found.iter_mut().take(width) {
            (*plane, rest) = self.plane(rest, count, &mut kept)?;
        }
        let (before, tail) = rest.split_at_checked(lead).ok_or(CodecError::Short)?;
        if lead + count * width + tail.len() != raw_len {
            return Err(CodecError::Length);
        }
        let sources = found.map(|plane| match plane {
            Plane::Stored(bytes) => bytes,
            Plane::Kept(at) => self.planes.get(at..at + count).unwrap_or_default(),
        });
        fit(out, raw_len);
        let (first, others) = out.split_at_mut(lead);
        let (elements, last) = others.split_at_mut(count * width);
        first.copy_from_slice(before);
        last.copy_from_slice(tail);
        planes::join(&sources, width, *turned == 1, elements);
        Ok(())
    }

    /// Reads one plane of `count` bytes; `kept` is how much of `self.planes` is taken.
    fn plane<'a>(&mut self, stored: &'a [u8], count: usize, kept: &mut usize) -> Result<(Plane<'a>, &'a [u8]), CodecError> {
        let ([method, length @ ..], rest) = stored.split_first_chunk::<PLANE_HEAD>().ok_or(CodecError::Short)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| CodecError::Short)?;
        let (bytes, rest) = rest.split_at_checked(length).ok_or(CodecError::Short)?;
        if *method == RAW {
            return if length == count { Ok((Plane::Stored(bytes), rest)) } else { Err(CodecError::Length) };
        }
        let at = *kept;
        *kept += count;
        if self.planes.len() < *kept {
            fit(&mut self.planes, *kept);
        }
        let place = self.planes.get_mut(at..*kept).unwrap_or_default();
        match (*method, bytes) {
            (ZSTD, _) => frame::fill(&mut self.context, bytes, place)?,
            (SAME, [byte]) => place.fill(*byte),
            (SAME, _) => return Err(CodecError::Length),
            _ => return Err(CodecError::Form),
        }
        Ok((Plane::Kept(at), rest))
    }
}

/// Where the bytes of a plane are.
#[derive(Clone, Copy)]
enum Plane<'a> {
    Stored(&'a [u8]),
    /// From this index on among those that the decoder keeps.
    Kept(usize),
}

/// Makes `bytes` so long, and no longer in memory than it must be. What was there stays: it will be overwritten.
fn fit(bytes: &mut Vec<u8>, length: usize) {
    bytes.truncate(length);
    bytes.reserve_exact(length - bytes.len());
    bytes.resize(length, 0);
}
