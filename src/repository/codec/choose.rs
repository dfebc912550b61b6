//! Which codec a chunk gets: a judgement from 8 KiB of it, at a hundredth of the cost of coding it.
//!
//! The sample is looked at as if it were an array of elements of 1, 2, 4 and 8 bytes. For each it is reckoned how few
//! bits a byte would take if every byte of the element were entropy-coded by itself (Shannon's order-0 entropy). Floating-point
//! numbers of any width, in any container, show themselves by how much fewer these are. What such a reckoning cannot
//! see, repetition, is looked for apart; where it is found, zstd is tried on a piece of the chunk.

use super::{Hint, frame::Frames, planes::rotate_left};

/// The sample: so many windows, spread evenly, of so many bytes. A window begins at a multiple of 8, so that a byte's
/// place within an element is known.
const WINDOWS: usize = 16;
const WINDOW: usize = 512;
const SAMPLE: usize = WINDOWS * WINDOW;
/// Bytes with more bits than this are not worth the time: less than 2 % would be saved.
const NOISE: f32 = 7.85;
/// Bits per byte that a wider element must save over a narrower one.
const MARGIN: f32 = 0.06;
/// A chunk up to this length is given to zstd rather than pondered.
const SHORT: usize = 64 << 10;
/// What zstd is tried on.
const TRIAL: usize = 32 << 10;
/// So many of the sample's 8-byte sequences must have occurred before for repetition to be suspected.
const REPEATED: f32 = 0.05;
const REPEATED_IN_PLANE: f32 = 0.15;
/// A chunk shorter than this has no entropy worth reckoning.
const TINY: usize = 64;

/// How bytes are coded, all of them or those of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Raw,
    Huffman,
    Match,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Raw,
    Same(u8),
    Whole(Method),
    Planes { width: u8, turned: bool, lead: u8, methods: [Method; 8] },
}

/// How often each byte occurs.
type Counts = [u32; 256];

/// The elements of a chunk, and what coding their planes would cost.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    turned: bool,
    lead: usize,
    /// Bits per byte, plane by plane.
    planes: [f32; 8],
    /// Bits per byte over all, with noise at 8.
    bits: f32,
}

pub struct Chooser {
    sample: Vec<u8>,
    /// The sample once more, as the elements that it was found to be.
    elements: Vec<u8>,
    plane: Vec<u8>,
    trial: Vec<u8>,
    /// `n * log2(n)`.
    logs: Vec<f32>,
    /// Where a sequence was last seen, by its hash.
    seen: Vec<u16>,
}

impl Chooser {
    pub fn new() -> Self {
        let logs = (0..=SAMPLE).map(|n| if n == 0 { 0.0 } else { n as f32 * (n as f32).log2() }).collect();
        Self { sample: Vec::new(), elements: Vec::new(), plane: Vec::new(), trial: Vec::new(), logs, seen: vec![0; 1 << 12] }
    }

    pub fn choose(&mut self, raw: &[u8], hint: Hint, frames: &mut Frames) -> Plan {
        match raw {
            [] | [_] | [_, _] => return Plan::Raw,
            [first, rest @ ..] if raw.starts_with(rest) => return Plan::Same(*first),
            _ if raw.len() < TINY => return Plan::Whole(Method::Match),
            _ => {}
        }
        self.take_sample(raw);
        let shape = self.shape(hint);
        let repeats = repeats(&self.sample, &mut self.seen) > REPEATED;
        if shape.width == 1 {
            return self.whole(raw, shape.bits, repeats, frames);
        }
        if repeats && self.trial(raw, frames) < shape.bits {
            return Plan::Whole(Method::Match);
        }
        self.planes(&shape)
    }

    fn take_sample(&mut self, raw: &[u8]) {
        self.sample.clear();
        if raw.len() <= SAMPLE {
            self.sample.extend_from_slice(raw);
            return;
        }
        for n in 0..WINDOWS {
            let begin = ((raw.len() - WINDOW) / (WINDOWS - 1) * n) & !7;
            self.sample.extend_from_slice(raw.get(begin..begin + WINDOW).unwrap_or_default());
        }
    }

    /// Bytes that are best taken as they come.
    fn whole(&mut self, raw: &[u8], bits: f32, repeats: bool, frames: &mut Frames) -> Plan {
        if bits >= NOISE && !repeats {
            return Plan::Raw;
        }
        if raw.len() <= SHORT || self.trial(raw, frames) < bits.min(NOISE) {
            return Plan::Whole(Method::Match);
        }
        if bits < NOISE { Plan::Whole(Method::Huffman) } else { Plan::Raw }
    }

    /// Bits per byte that zstd makes of a piece from the middle.
    fn trial(&mut self, raw: &[u8], frames: &mut Frames) -> f32 {
        let length = raw.len().min(TRIAL);
        let piece = raw.get((raw.len() - length) / 2..).and_then(|rest| rest.get(..length)).unwrap_or_default();
        self.trial.clear();
        if frames.append(Method::Match, piece, &mut self.trial) { self.trial.len() as f32 * 8.0 / length as f32 } else { 8.0 }
    }

    /// How each plane is coded.
    fn planes(&mut self, shape: &Shape) -> Plan {
        self.take_elements(shape);
        let mut methods = [Method::Raw; 8];
        for (k, (method, bits)) in methods.iter_mut().zip(shape.planes).enumerate().take(shape.width) {
            if bits >= NOISE {
                continue;
            }
            self.plane.clear();
            self.plane.extend(self.elements.iter().skip(k).step_by(shape.width));
            // Sequences of few different bytes recur without meaning anything.
            let chance = self.plane.len() as f32 * (-8.0 * 0.85 * bits).exp2();
            // A Huffman code is never shorter than one bit.
            let matching = bits < 1.0 || repeats(&self.plane, &mut self.seen) > REPEATED_IN_PLANE + chance;
            *method = if matching { Method::Match } else { Method::Huffman };
        }
        Plan::Planes { width: shape.width as u8, turned: shape.turned, lead: shape.lead as u8, methods }
    }

    /// The narrowest elements that make the most of the sample.
    fn shape(&mut self, hint: Hint) -> Shape {
        let mut places = [[0; 256]; 8];
        for element in self.sample.as_chunks::<8>().0 {
            for (counts, byte) in places.iter_mut().zip(element) {
                count(counts, *byte);
            }
        }
        let widths: &[usize] = match hint {
            Hint::Width(1) => &[1],
            Hint::Width(2) => &[1, 2],
            Hint::Width(4) => &[1, 4],
            Hint::Width(8) => &[1, 8],
            _ => &[1, 2, 4, 8],
        };
        let mut best = Shape { width: 1, turned: false, lead: 0, planes: [8.0; 8], bits: f32::MAX };
        for width in widths {
            let shape = self.reckon(&places, Shape { width: *width, ..best });
            if shape.bits < best.bits - MARGIN {
                best = shape;
            }
        }
        if best.width > 1 { self.turn(best, hint) } else { best }
    }

    /// What each plane costs. `places` are the bytes by their place in 8.
    fn reckon(&self, places: &[Counts; 8], mut shape: Shape) -> Shape {
        let mut sum = 0.0;
        for (k, bits) in shape.planes.iter_mut().enumerate().take(shape.width) {
            let mut counts = [0; 256];
            for place in places.iter().skip(k).step_by(shape.width) {
                counts.iter_mut().zip(place).for_each(|(sum, one)| *sum += one);
            }
            *bits = self.entropy(&counts);
            sum += if *bits < NOISE { *bits } else { 8.0 };
        }
        shape.bits = sum / shape.width as f32;
        shape
    }

    /// Would it be better to rotate the elements? For that it must be known where they begin: the byte with the least
    /// in it is the exponent, and that is the last.
    fn turn(&mut self, plain: Shape, hint: Hint) -> Shape {
        let least = |(_, a): &(usize, f32), (_, b): &(usize, f32)| a.total_cmp(b);
        let exponent = plain.planes.into_iter().take(plain.width).enumerate().min_by(least).map_or(0, |(k, _)| k);
        let lead = if hint == Hint::None { (exponent + 1) % plain.width } else { 0 };
        let turned = Shape { turned: true, lead, ..plain };
        self.take_elements(&turned);
        let mut places = [[0; 256]; 8];
        for element in self.elements.as_chunks::<8>().0 {
            for (counts, byte) in places.iter_mut().zip(element) {
                count(counts, *byte);
            }
        }
        let turned = self.reckon(&places, turned);
        if turned.bits < plain.bits { turned } else { plain }
    }

    fn take_elements(&mut self, shape: &Shape) {
        self.elements.clear();
        for window in self.sample.chunks(WINDOW) {
            let window = window.get(shape.lead..).unwrap_or_default();
            let whole = window.get(..window.len() & !7).unwrap_or_default();
            let begin = self.elements.len();
            self.elements.extend_from_slice(whole);
            if let (true, Some(place)) = (shape.turned, self.elements.get_mut(begin..)) {
                rotate_left(whole, shape.width, place);
            }
        }
    }

    /// Bits per byte by Shannon, plus what a sample of this size makes it seem too low (Miller and Madow).
    fn entropy(&self, counts: &Counts) -> f32 {
        let (mut total, mut sum, mut kinds) = (0, 0.0, 0);
        for n in counts {
            total += n;
            sum += self.logs.get(*n as usize).copied().unwrap_or_default();
            kinds += u32::from(*n > 0);
        }
        if total == 0 {
            return 8.0;
        }
        let total = total as f32;
        total.log2() - sum / total + (kinds - 1) as f32 / (2.0 * std::f32::consts::LN_2 * total)
    }
}

fn count(counts: &mut Counts, byte: u8) {
    if let Some(n) = counts.get_mut(usize::from(byte)) {
        *n += 1;
    }
}

/// The part of the 8-byte sequences in `bytes` that occur earlier in them.
fn repeats(bytes: &[u8], seen: &mut [u16]) -> f32 {
    seen.fill(0);
    let mut repeated = 0_u32;
    for (at, window) in bytes.windows(8).enumerate() {
        let Some(sequence) = window.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else { continue };
        let hash = (sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize;
        if let Some(place) = seen.get_mut(hash) {
            let before = bytes.get(usize::from(*place)..).and_then(|rest| rest.first_chunk());
            repeated += u32::from(at > 0 && before == window.first_chunk::<8>());
            *place = at as u16;
        }
    }
    repeated as f32 / bytes.len().max(1) as f32
}
