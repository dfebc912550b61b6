//! Which codec a chunk gets: a judgement from 8 KiB of it, for a few hundredths of the cost of coding it.
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
/// Bytes with more bits than this are not worth the time: less than 2 % would be saved. The mantissas of weights are above.
const NOISE: f32 = 7.85;
/// Bits per byte that a wider element must save over a narrower one.
const MARGIN: f32 = 0.06;
/// A chunk up to this length is given to zstd rather than pondered.
const SHORT: usize = 64 << 10;
/// What zstd is tried on.
const TRIAL: usize = 64 << 10;
/// So many of the sample's 8-byte sequences must have occurred before for repetition to be suspected.
const REPEATED: f32 = 0.01;
/// The same for a plane, of which so many bytes are looked at.
const PLANE_SAMPLE: usize = 2048;
const REPEATED_IN_PLANE: f32 = 0.15;
/// A chunk shorter than this has no entropy worth reckoning.
const TINY: usize = 64;

/// How bytes are coded, all of them or those of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Raw,
    Huffman,
    Match,
    Quick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Raw,
    Same(u8),
    Whole(Method),
    Planes {
        width: u8,
        turned: bool,
        lead: u8,
        methods: [Method; 8],
        /// There is repetition too: zstd might do better.
        doubtful: bool,
    },
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
            _ if hint == Hint::Pages => return Plan::Whole(Method::Quick),
            _ if raw.len() < if hint == Hint::None { SAMPLE } else { TINY } => return Plan::Whole(Method::Match),
            _ => {}
        }
        self.take_sample(raw);
        if hint == Hint::None && is_text(&self.sample) {
            return Plan::Whole(Method::Match);
        }
        let shape = self.shape(hint);
        if shape.width == 1 {
            return self.whole(raw, shape.bits, frames);
        }
        // A sample says all there is to know of numbers, but little of how often something recurs in a whole chunk.
        let (handicap, enough) = if hint == Hint::None { (0.85, SAMPLE) } else { (1.0, SAMPLE / 2) };
        let doubtful = self.repeats(enough) > REPEATED;
        if doubtful && self.trial(raw, frames) * handicap < shape.bits {
            return Plan::Whole(Method::Match);
        }
        let methods = self.methods(&shape);
        Plan::Planes { width: shape.width as u8, turned: shape.turned, lead: shape.lead as u8, methods, doubtful }
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
    fn whole(&mut self, raw: &[u8], bits: f32, frames: &mut Frames) -> Plan {
        if bits >= NOISE {
            let noise = self.sample.chunks(WINDOW).all(is_noise) && self.repeats(SAMPLE) <= REPEATED;
            return if noise { Plan::Raw } else { Plan::Whole(Method::Match) };
        }
        let matching = raw.len() <= SHORT || self.repeats(SAMPLE) > REPEATED || self.trial(raw, frames) < bits;
        Plan::Whole(if matching { Method::Match } else { Method::Huffman })
    }

    /// How much there is for zstd to find in so much of the sample.
    fn repeats(&mut self, length: usize) -> f32 {
        repeats(self.sample.get(..length).unwrap_or(&self.sample), &mut self.seen)
    }

    /// Bits per byte that zstd makes of a piece from the middle.
    fn trial(&mut self, raw: &[u8], frames: &mut Frames) -> f32 {
        let length = raw.len().min(TRIAL);
        let piece = raw.get((raw.len() - length) / 2..).and_then(|rest| rest.get(..length)).unwrap_or_default();
        self.trial.clear();
        if frames.append(Method::Match, piece, &mut self.trial) { self.trial.len() as f32 * 8.0 / length as f32 } else { 8.0 }
    }

    /// How each plane is coded.
    fn methods(&mut self, shape: &Shape) -> [Method; 8] {
        self.take_elements(shape);
        let mut methods = [Method::Raw; 8];
        for (k, (method, bits)) in methods.iter_mut().zip(shape.planes).enumerate().take(shape.width) {
            if bits >= NOISE {
                continue;
            }
            self.plane.clear();
            self.plane.extend(self.elements.iter().skip(k).step_by(shape.width).take(PLANE_SAMPLE));
            // Sequences of few different bytes recur without meaning anything.
            let chance = self.plane.len() as f32 * (-8.0 * 0.85 * bits).exp2();
            // A Huffman code is never shorter than one bit.
            let matching = bits < 1.0 || repeats(&self.plane, &mut self.seen) > REPEATED_IN_PLANE + chance;
            *method = if matching { Method::Match } else { Method::Huffman };
        }
        methods
    }

    /// The narrowest elements that make the most of the sample.
    fn shape(&mut self, hint: Hint) -> Shape {
        let mut places = count_places(&self.sample);
        let mut shapes = [Shape { width: 8, turned: false, lead: 0, planes: [8.0; 8], bits: 8.0 }; 4];
        for (shape, width) in shapes.iter_mut().zip([8, 4, 2, 1]) {
            shape.width = width;
            self.reckon(&places, shape);
            // Elements half as wide: a byte of theirs stands where two of these did.
            let (first, second) = places.split_at_mut(width / 2);
            for (counts, others) in first.iter_mut().zip(second) {
                counts.iter_mut().zip(others).for_each(|(sum, one)| *sum += *one);
            }
        }
        let mut best = shapes[3];
        for shape in shapes.iter().rev() {
            let possible = hint == Hint::None || hint == Hint::Width(shape.width as u8);
            if possible && shape.bits < best.bits - MARGIN {
                best = *shape;
            }
        }
        if best.width > 1 { self.turn(best, hint) } else { best }
    }

    /// What each plane costs. `places` are the bytes by their place in the element.
    fn reckon(&self, places: &[Counts; 8], shape: &mut Shape) {
        let mut sum = 0.0;
        for (bits, counts) in shape.planes.iter_mut().zip(places).take(shape.width) {
            *bits = self.entropy(counts);
            sum += if *bits < NOISE { *bits } else { 8.0 };
        }
        shape.bits = sum / shape.width as f32;
    }

    /// Would it be better to rotate the elements? For that it must be known where they begin: the byte with the least
    /// in it is the exponent, and that is the last.
    fn turn(&mut self, plain: Shape, hint: Hint) -> Shape {
        let least = |(_, a): &(usize, f32), (_, b): &(usize, f32)| a.total_cmp(b);
        let exponent = plain.planes.into_iter().take(plain.width).enumerate().min_by(least).map_or(0, |(k, _)| k);
        let lead = if hint == Hint::None { (exponent + 1) % plain.width } else { 0 };
        let mut turned = Shape { turned: true, lead, ..plain };
        self.take_elements(&turned);
        let mut places = count_places(&self.elements);
        for k in turned.width..8 {
            let (first, second) = places.split_at_mut(k);
            if let (Some(sum), Some(more)) = (first.get_mut(k % turned.width), second.first()) {
                sum.iter_mut().zip(more).for_each(|(sum, one)| *sum += *one);
            }
        }
        self.reckon(&places, &mut turned);
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

    /// Bits per byte by Shannon, plus what a sample of this size makes it seem too low (Miller and Madow), plus what a
    /// Huffman code loses by giving the most frequent byte no less than one bit.
    fn entropy(&self, counts: &Counts) -> f32 {
        let log = |n: u32| self.logs.get(n as usize).copied().unwrap_or_default();
        let (mut total, mut sum, mut kinds, mut most) = (0, 0.0, 0, 0);
        for n in counts {
            total += n;
            sum += log(*n);
            kinds += u32::from(*n > 0);
            most = most.max(*n);
        }
        if total == 0 {
            return 8.0;
        }
        let of_all = |part: f32| part / total as f32;
        let whole = log(total);
        let mut bits = of_all(whole - sum) + of_all((kinds - 1) as f32) / (2.0 * std::f32::consts::LN_2);
        // What is nearly constant has runs, and those are matches.
        if most * 2 > total && most * 32 < total * 31 {
            bits += 1.0 - of_all(whole - log(most) - log(total - most));
        }
        bits
    }
}

/// Nearly all of it printable ASCII. Then there is no use in reckoning: zstd it is.
fn is_text(sample: &[u8]) -> bool {
    let printable = |byte: &u8| matches!(byte, b' '..=b'~') | matches!(byte, b'\t'..=b'\r');
    // Few enough at a time to be counted in bytes, sixteen at once.
    let others: usize = sample.chunks(128).map(|part| usize::from(part.iter().map(|byte| u8::from(!printable(byte))).sum::<u8>())).sum();
    others * 50 < sample.len()
}

/// Of 512 random bytes, 221 differ from all others, give or take 6. In what is compressed there may be parts that are not.
fn is_noise(window: &[u8]) -> bool {
    let mut seen = [false; 256];
    for byte in window {
        if let Some(seen) = seen.get_mut(usize::from(*byte)) {
            *seen = true;
        }
    }
    window.len() < WINDOW || seen.iter().filter(|seen| **seen).count() > 195
}

/// How often each byte occurs at each place in eight.
fn count_places(bytes: &[u8]) -> [Counts; 8] {
    let mut places = [[0; 256]; 8];
    for element in bytes.as_chunks::<8>().0 {
        for (counts, byte) in places.iter_mut().zip(element) {
            if let Some(n) = counts.get_mut(usize::from(*byte)) {
                *n += 1;
            }
        }
    }
    places
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
