//! Where a file is cut into chunks: at places that its content names, so that what two files share becomes the same
//! chunks, wherever it stands in them.
//!
//! A safetensors file says itself where its tensors are. It is cut there and nowhere else: two models that share tensors share
//! chunks, in whatever order and behind whatever header the tensors stand (`safetensors`). Every other file is cut where a
//! rolling hash of its last 64 bytes says so (`gear`).
//!
//! # Sizes
//!
//! A tensor is cut into pieces of 1 MiB from its beginning. How much is stored hardly depends on it: on 1.1 GiB of weights 0.02 %
//! between 256 KiB and 4 MiB, and as much again for what a chunk costs in the index. Time does: at 2 MiB a chunk and its planes leave
//! the second-level cache and decoding takes a fifth longer, at 256 KiB encoding does, because each chunk is judged anew.
//! Smaller pieces would share more only of tensors rewritten in part, which training does not do.
//! The last piece takes up to a quarter more rather than leave a crumb.
//!
//! General chunks measure 256 KiB to 4 MiB, 1.1 MiB on average, as those of other tools do. Half of that would store half as much for
//! a scattered change of a database dump, and 1.4 % more of a tree of binaries.
//!
//! Tensors below 256 KiB are grouped, so that ten thousand biases in a row do not become ten thousand chunks. A group ends behind a
//! tensor whose last 64 bytes hash low, with a probability that makes groups of about 256 KiB: a tensor that is changed,
//! added or removed changes its own group and sometimes the next, not all that follow.
//!
//! # What chunk lengths give away
//!
//! The hash is seeded with a secret, so lengths say nothing about content that is cut by it to one who merely compares them with
//! those of known files. Tensors are cut where they are, so whoever sees the lengths of all chunks of a model can tell its shapes.

mod gear;
mod safetensors;
#[cfg(test)]
mod tests;

use super::codec::Hint;
use gear::Gear;
pub use safetensors::Layout;

/// No chunk is longer. With so many bytes at hand `Cutter::next` always finds an end.
pub const MAX_CHUNK: usize = 4 << 20;
/// No chunk of general data is shorter, but for the last of a file.
const MIN_CHUNK: usize = 256 << 10;
/// From this length on an end is more probable.
const NORMAL_CHUNK: usize = 1 << 20;
/// An end is found in one of so many places, as a power of two: before and after `NORMAL_CHUNK`. Together: 1.1 MiB on average.
const RARE: u32 = 22;
const FREQUENT: u32 = 18;

/// Pieces of a tensor.
const PIECE: u64 = 1 << 20;
/// Smaller tensors are grouped.
const SMALL: u64 = 256 << 10;
/// What a group measures at least, about, and at most.
const MIN_GROUP: u64 = 64 << 10;
const GROUP: u64 = 256 << 10;
const MAX_GROUP: u64 = 1 << 20;

pub struct Cutter {
    gear: Gear,
}

impl Cutter {
    /// The same `seed` cuts the same way, always. It is a secret of the repository.
    pub fn new(seed: &[u8; 32]) -> Self {
        Self { gear: Gear::new(seed) }
    }

    /// What the beginning of a file says of its inside. A header of which `head` has only a part
    /// says nothing.
    #[allow(clippy::unused_self)]
    pub fn layout(&self, head: &[u8], size: u64) -> Layout {
        safetensors::layout(head, size).unwrap_or_default()
    }

    /// The length of the chunk at the front of `data`, which stands at `offset` in the file, and what is known of it.
    /// None: more data is needed, or there is none. `last`: `data` reaches to the end of the file.
    ///
    /// The answer does not depend on how much of the file is at hand. Nothing is remembered between calls; he who
    /// asks with `MAX_CHUNK` bytes or more has every byte looked at once.
    pub fn next(&self, layout: &Layout, offset: u64, data: &[u8], last: bool) -> Option<(usize, Hint)> {
        if data.is_empty() {
            return None;
        }
        if offset < layout.header {
            let (data, last) = until(layout.header - offset, data, last);
            return self.by_content(data, last);
        }
        let at = layout.tensors.partition_point(|tensor| tensor.end <= offset);
        let begin = at.checked_sub(1).and_then(|before| layout.tensors.get(before)).map_or(layout.header, |before| before.end);
        let Some(tensor) = layout.tensors.get(at) else { return self.by_content(data, last) };
        if tensor.end - begin < SMALL {
            return self.group(layout, at, offset, data, last);
        }
        let length = piece(offset - begin, tensor.end - begin);
        taken(length, data, last).map(|length| (length, hint(tensor.width)))
    }

    fn by_content(&self, data: &[u8], last: bool) -> Option<(usize, Hint)> {
        let known = data.get(..MAX_CHUNK).unwrap_or(data);
        let strict = known.len().min(NORMAL_CHUNK);
        let found = self
            .gear
            .find(known, MIN_CHUNK, strict, u64::MAX >> RARE)
            .or_else(|| self.gear.find(known, NORMAL_CHUNK, known.len(), u64::MAX >> FREQUENT));
        let end = found.or_else(|| (last || known.len() == MAX_CHUNK).then_some(known.len()))?;
        Some((end, Hint::None))
    }

    /// A group of small tensors that begins at `offset`, in the tensor at index `at`.
    fn group(&self, layout: &Layout, at: usize, offset: u64, data: &[u8], last: bool) -> Option<(usize, Hint)> {
        let mut begin = offset;
        let mut length = 0;
        let mut width = None;
        for tensor in layout.tensors.iter().skip(at) {
            let size = tensor.end - begin;
            if size >= SMALL || tensor.end - offset > MAX_GROUP {
                break;
            }
            begin = tensor.end;
            length = tensor.end - offset;
            width = Some(if width.is_none_or(|width| width == tensor.width) { tensor.width } else { 0 });
            let Some(bytes) = usize::try_from(length).ok().and_then(|length| data.get(..length)) else { break };
            if length >= MIN_GROUP && self.gear.hash(bytes) < u64::MAX / GROUP * size {
                break;
            }
        }
        taken(length, data, last).map(|length| (length, hint(width.unwrap_or(0))))
    }
}

/// What lies before `room` bytes are over, and whether that is all there will be of it.
fn until(room: u64, data: &[u8], last: bool) -> (&[u8], bool) {
    match usize::try_from(room).ok().and_then(|room| data.get(..room)) {
        Some(data) => (data, true),
        None => (data, last),
    }
}

/// A chunk of `length`, if so much is at hand. A file may end before its header says so, when it shrank meanwhile.
fn taken(length: u64, data: &[u8], last: bool) -> Option<usize> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length <= data.len() { Some(length) } else { last.then_some(data.len()) }
}

/// The length of the piece at `offset` within a tensor of `size` bytes.
fn piece(offset: u64, size: u64) -> u64 {
    let end = (offset / PIECE + 1) * PIECE;
    let end = if size < end + PIECE / 4 { size } else { end };
    end - offset
}

fn hint(width: u8) -> Hint {
    if width == 0 { Hint::None } else { Hint::Width(width) }
}
