//! Byte planes: taking elements apart and putting them together, at several GB/s without a line of assembly.
//!
//! A plane is split off by halving: the bytes at even places go one way, those at odd places the other, until
//! each half is a plane. Compilers know how to do one such step with vector instructions, for the least of processors,
//! and are at a loss when asked for four or eight planes at once. Steps between the first and the last happen in
//! blocks that stay in the first-level cache.

/// Bytes taken apart at a time.
const BLOCK: usize = 4096;

/// The planes of `elements` of `width` bytes (2, 4, 8), one after another at the beginning of `planes`, which is no shorter.
/// `turned` rotates each element left by one bit first.
pub fn split(elements: &[u8], width: usize, turned: bool, planes: &mut [u8]) {
    let count = elements.len() / width;
    let mut turn = [0; BLOCK];
    for (n, block) in elements.chunks(BLOCK).enumerate() {
        let block = match turn.get_mut(..block.len()) {
            Some(place) if turned => {
                rotate_left(block, width, place);
                place
            }
            _ => block,
        };
        let begin = n * (BLOCK / width);
        let length = block.len() / width;
        let mut places: [&mut [u8]; 8] = Default::default();
        for (k, plane) in planes.chunks_exact_mut(count).take(width).enumerate() {
            if let (Some(place), Some(part)) = (places.get_mut(reversed(k, width)), plane.get_mut(begin..begin + length)) {
                *place = part;
            }
        }
        split_block(block, places.get_mut(..width).unwrap_or_default());
    }
}

/// `places` in the order in which halving yields the planes.
fn split_block(block: &[u8], places: &mut [&mut [u8]]) {
    if let [even, odd] = places {
        halve(block, even, odd);
        return;
    }
    let (mut even, mut odd) = ([0; BLOCK / 2], [0; BLOCK / 2]);
    let half = block.len() / 2;
    if let (Some(even), Some(odd)) = (even.get_mut(..half), odd.get_mut(..half)) {
        halve(block, even, odd);
        let (first, second) = places.split_at_mut(places.len() / 2);
        split_block(even, first);
        split_block(odd, second);
    }
}

fn halve(from: &[u8], even: &mut [u8], odd: &mut [u8]) {
    for ((pair, even), odd) in from.as_chunks::<2>().0.iter().zip(even).zip(odd) {
        let both = u16::from_le_bytes(*pair);
        *even = both as u8;
        *odd = (both >> 8) as u8;
    }
}

/// The elements that the first `width` of `planes` were taken from. Each plane holds a byte for every one of them.
pub fn join(planes: &[&[u8]; 8], width: usize, turned: bool, elements: &mut [u8]) {
    for (n, block) in elements.chunks_mut(BLOCK).enumerate() {
        let begin = n * (BLOCK / width);
        let length = block.len() / width;
        let mut places: [&[u8]; 8] = Default::default();
        for (k, plane) in planes.iter().take(width).enumerate() {
            if let (Some(place), Some(part)) = (places.get_mut(reversed(k, width)), plane.get(begin..begin + length)) {
                *place = part;
            }
        }
        join_block(places.get(..width).unwrap_or_default(), block);
        if turned {
            rotate_right(block, width);
        }
    }
}

fn join_block(places: &[&[u8]], block: &mut [u8]) {
    if let [even, odd] = places {
        interleave(even, odd, block);
        return;
    }
    let (mut even, mut odd) = ([0; BLOCK / 2], [0; BLOCK / 2]);
    let half = block.len() / 2;
    if let (Some(even), Some(odd)) = (even.get_mut(..half), odd.get_mut(..half)) {
        let (first, second) = places.split_at(places.len() / 2);
        join_block(first, even);
        join_block(second, odd);
        interleave(even, odd, block);
    }
}

fn interleave(even: &[u8], odd: &[u8], into: &mut [u8]) {
    for ((pair, even), odd) in into.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
        *pair = (u16::from(*even) | (u16::from(*odd) << 8)).to_le_bytes();
    }
}

/// Where plane `k` stands after halving: at the index whose bits are those of `k` in reverse.
fn reversed(k: usize, width: usize) -> usize {
    match width {
        8 => (k & 1) << 2 | (k & 2) | (k >> 2) & 1,
        4 => (k & 1) << 1 | (k >> 1) & 1,
        _ => k,
    }
}

macro_rules! rotate {
    ($from:expr, $place:expr, $integer:ty, $size:literal) => {
        for (element, place) in $from.as_chunks::<$size>().0.iter().zip($place.as_chunks_mut::<$size>().0) {
            *place = <$integer>::from_le_bytes(*element).rotate_left(1).to_le_bytes();
        }
    };
    ($block:expr, $integer:ty, $size:literal) => {
        for element in $block.as_chunks_mut::<$size>().0 {
            *element = <$integer>::from_le_bytes(*element).rotate_right(1).to_le_bytes();
        }
    };
}

pub fn rotate_left(from: &[u8], width: usize, place: &mut [u8]) {
    match width {
        2 => rotate!(from, place, u16, 2),
        4 => rotate!(from, place, u32, 4),
        _ => rotate!(from, place, u64, 8),
    }
}

fn rotate_right(block: &mut [u8], width: usize) {
    match width {
        2 => rotate!(block, u16, 2),
        4 => rotate!(block, u32, 4),
        _ => rotate!(block, u64, 8),
    }
}
