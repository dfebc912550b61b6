//! Whatever is encoded comes back, in little; whatever is not ours is an error and no panic.

use super::{choose::Chooser, frame::Frames, *};
use proptest::prelude::*;

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From a normal distribution, as weights are: twelve even ones, summed.
    fn weight(&mut self) -> f64 {
        (0..12).map(|_| (self.next() >> 11) as f64 / (1_u64 << 53) as f64).sum::<f64>().mul_add(0.02, -0.12)
    }
}

fn weights<const N: usize>(count: usize, number: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
    let mut random = Random(0x1234_5678_9abc_def1);
    (0..count).flat_map(|_| number(random.weight())).collect()
}

fn bf16(count: usize) -> Vec<u8> {
    weights(count, |x| ((x as f32).to_bits().wrapping_add(0x8000) >> 16).to_le_bytes()).chunks(4).flat_map(|c| [c[0], c[1]]).collect()
}

fn f16(count: usize) -> Vec<u8> {
    let half = |x: f64| {
        let bits = (x as f32).to_bits();
        let exponent = ((bits >> 23) & 0xff).saturating_sub(112);
        (((bits >> 16) & 0x8000) | (exponent << 10) | ((bits >> 13) & 0x3ff)) as u16
    };
    weights(count, |x| half(x).to_le_bytes())
}

fn f32s(count: usize) -> Vec<u8> {
    weights(count, |x| (x as f32).to_le_bytes())
}

fn f64s(count: usize) -> Vec<u8> {
    weights(count, f64::to_le_bytes)
}

fn noise(count: usize) -> Vec<u8> {
    let mut random = Random(99);
    (0..count).map(|_| random.next() as u8).collect()
}

fn text(count: usize) -> Vec<u8> {
    let mut random = Random(5);
    let line = |n: u64| format!("{{\"id\": {n}, \"name\": \"token-{}\", \"kept\": {}}}\n", n % 977, n.is_multiple_of(3));
    std::iter::repeat_with(|| line(random.next() >> 40)).flat_map(String::into_bytes).take(count).collect()
}

fn encoded(raw: &[u8], hint: Hint) -> Vec<u8> {
    let mut stored = Vec::new();
    Encoder::new().encode(raw, hint, &mut stored);
    stored
}

fn decoded(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, CodecError> {
    let mut raw = Vec::new();
    Decoder::new().decode(stored, raw_len, &mut raw).map(|()| raw)
}

/// The stored form, after seeing that it gives the raw bytes back.
fn there_and_back(raw: &[u8], hint: Hint) -> Vec<u8> {
    let stored = encoded(raw, hint);
    assert!(stored.len() <= raw.len() + 1);
    assert!(decoded(&stored, raw.len()).unwrap() == raw);
    stored
}

/// How large the stored form is, of the raw bytes.
fn share(raw: &[u8], hint: Hint) -> f64 {
    there_and_back(raw, hint).len() as f64 / raw.len() as f64
}

#[test]
fn weights_shrink_to_nearly_their_entropy_with_and_without_a_hint() {
    for (name, raw, width, most) in [
        ("bf16", bf16(1 << 19), 2, 0.668),
        ("f16", f16(1 << 19), 2, 0.848),
        ("f32", f32s(1 << 18), 4, 0.834),
        ("f64", f64s(1 << 17), 8, 0.92),
    ] {
        for hint in [Hint::None, Hint::Width(width)] {
            let share = share(&raw, hint);
            assert!(share < most, "{name} {hint:?} {share}");
        }
    }
}

#[test]
fn weights_shrink_alike_wherever_a_chunk_begins() {
    let raw = f32s(1 << 18);
    let whole = share(&raw, Hint::None);
    for lead in 1..8 {
        let share = share(&raw[lead..], Hint::None);
        assert!((share - whole).abs() < 0.002, "{lead} {share} {whole}");
    }
}

#[test]
fn every_kind_of_data_gets_its_codec() {
    let first = |raw: &[u8]| there_and_back(raw, Hint::None)[0];
    assert_eq!(first(&noise(1 << 20)), RAW);
    assert_eq!(first(&text(1 << 20)), ZSTD);
    assert_eq!(first(&text(1 << 10)), ZSTD);
    assert_eq!(first(&bf16(1 << 19)), PLANES);
    assert_eq!(there_and_back(&vec![0; 1 << 20], Hint::None), [SAME, 0]);
    assert_eq!(there_and_back(&[7, 7, 7], Hint::Width(8)), [SAME, 7]);
    assert_eq!(there_and_back(&[], Hint::None), [RAW]);
    assert_eq!(there_and_back(&[9], Hint::None), [RAW, 9]);
}

#[test]
fn noise_that_repeats_is_found_out() {
    let mut raw = noise(3000);
    while raw.len() < 1 << 20 {
        raw.extend_from_within(..3000);
    }
    assert!(share(&raw, Hint::None) < 0.05);
}

#[test]
fn integers_and_weights_that_are_mostly_zero_shrink() {
    let mut random = Random(3);
    let tokens: Vec<u8> = (0..1 << 17).flat_map(|_| (random.next() % 50_000).to_le_bytes()).collect();
    assert!(share(&tokens, Hint::Width(8)) < 0.27);
    let pruned: Vec<u8> =
        bf16(1 << 19).as_chunks::<2>().0.iter().flat_map(|x| if random.next().is_multiple_of(10) { *x } else { [0; 2] }).collect();
    assert!(share(&pruned, Hint::Width(2)) < 0.2, "{}", share(&pruned, Hint::Width(2)));
}

#[test]
fn an_encoder_and_a_decoder_serve_any_number_of_chunks() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let (mut stored, mut raw) = (Vec::new(), vec![1; 9]);
    for chunk in [f32s(5000), text(100_000), bf16(70_001), vec![0; 123_456], noise(17), f64s(1000), Vec::new(), f16(400)] {
        stored.clear();
        encoder.encode(&chunk, Hint::None, &mut stored);
        decoder.decode(&stored, chunk.len(), &mut raw).unwrap();
        assert!(raw == chunk);
    }
}

#[test]
fn what_stands_before_in_the_output_stays() {
    for raw in [noise(5000), text(5000), f32s(5000), vec![4; 5000]] {
        let mut out = b"before".to_vec();
        Encoder::new().encode(&raw, Hint::None, &mut out);
        assert_eq!(&out[..6], b"before");
        assert!(decoded(&out[6..], raw.len()).unwrap() == raw);
    }
}

#[test]
fn the_form_is_the_documented_one() {
    let planes = [2, 2, 0, 1, 0, 2, 0, 0, 0, 10, 20, 3, 1, 0, 0, 0, 5, 99, 77];
    assert_eq!(decoded(&planes, 6).unwrap(), [99, 10, 5, 20, 5, 77]);
    // 0x8002 is 0x4001 rotated: the sign was the lowest bit.
    let turned = [2, 2, 1, 0, 0, 1, 0, 0, 0, 0x03, 0, 1, 0, 0, 0, 0x80];
    assert_eq!(decoded(&turned, 2).unwrap(), 0xc001_u16.to_le_bytes());
}

#[test]
fn damage_is_named() {
    assert_eq!(decoded(&[], 0), Err(CodecError::Short));
    assert_eq!(decoded(&[9, 1], 1), Err(CodecError::Codec(9)));
    assert_eq!(decoded(&[RAW, 1, 2], 3), Err(CodecError::Length));
    assert_eq!(decoded(&[SAME], 3), Err(CodecError::Length));
    assert_eq!(decoded(&[ZSTD, 1, 2, 3], 3), Err(CodecError::Zstd));
    assert_eq!(decoded(&[PLANES, 3, 0, 0], 3), Err(CodecError::Form));
    assert_eq!(decoded(&[PLANES, 2, 2, 0], 3), Err(CodecError::Form));
    assert_eq!(decoded(&[PLANES, 2, 0, 2], 3), Err(CodecError::Form));
    assert_eq!(decoded(&[PLANES, 2, 0, 1], 0), Err(CodecError::Length));
    let stored = encoded(&bf16(5000), Hint::None);
    assert_eq!(decoded(&stored, 10_001), Err(CodecError::Length));
    assert_eq!(decoded(&stored[..stored.len() - 1], 10_000), Err(CodecError::Short));
}

#[test]
fn a_frame_that_swells_is_refused_within_the_bound() {
    let mut bomb = vec![ZSTD];
    assert!(Frames::of(Compression::Standard).append(Method::Match, &vec![0; 64 << 20], &mut bomb));
    let (mut decoder, mut out) = (Decoder::new(), Vec::new());
    assert!(decoder.decode(&bomb, 1000, &mut out).is_err());
    assert!(out.capacity() <= 1000 && out.is_empty());
}

#[test]
fn memory_follows_the_chunk_at_hand_also_when_it_is_kept() {
    let (mut decoder, mut out) = (Decoder::new(), Vec::new());
    for raw in [noise(600), noise(1000), vec![1; 1500], text(1700), bf16(1000)] {
        decoder.decode(&encoded(&raw, Hint::None), raw.len(), &mut out).unwrap();
        assert_eq!(out.capacity(), raw.len());
    }
}

#[test]
fn the_choice_is_the_same_each_time() {
    let mut chooser = Chooser::new();
    let mut frames = Frames::of(Compression::Standard);
    for raw in [bf16(100_000), text(100_000), noise(100_000), f32s(100_000)] {
        let first = chooser.choose(&raw, Hint::None, &mut frames);
        chooser.choose(&noise(30_000), Hint::None, &mut frames);
        assert_eq!(first, chooser.choose(&raw, Hint::None, &mut frames));
    }
}

#[test]
fn less_work_stores_more_and_all_of_it_is_read_alike() {
    let stored = |raw: &[u8], hint, compression| {
        let mut stored = Vec::new();
        Encoder::of(compression).encode(raw, hint, &mut stored);
        assert!(decoded(&stored, raw.len()).unwrap() == raw, "{compression:?}");
        stored
    };
    let pages = text(1 << 18);
    for (raw, hint) in [(text(1 << 18), Hint::None), (pages, Hint::Pages), (f64s(1 << 15), Hint::Width(8)), (bf16(1 << 17), Hint::None)] {
        let none = stored(&raw, hint, Compression::None);
        assert!(none[0] == RAW && none[1..] == raw, "{hint:?}");
        let (fast, standard) = (stored(&raw, hint, Compression::Fast), stored(&raw, hint, Compression::Standard));
        assert_eq!(standard, encoded(&raw, hint));
        assert!(fast.len() < none.len() && standard.len() <= fast.len(), "{hint:?}: {} {} {}", none.len(), fast.len(), standard.len());
        // Numbers are taken apart all the same: that is where they have something to give.
        assert_eq!(fast[0], standard[0]);
    }
    // It finds fewer of the matches: that is what makes it fast.
    let raw = text(1 << 18);
    assert!(stored(&raw, Hint::None, Compression::Fast).len() > stored(&raw, Hint::None, Compression::Standard).len());
    assert_eq!(stored(&vec![0; 1 << 18], Hint::None, Compression::None).len(), (1 << 18) + 1);
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Fast), Just(Compression::Standard)]
}

fn any_hint() -> impl Strategy<Value = Hint> {
    prop_oneof![Just(Hint::None), Just(Hint::Pages), any::<u8>().prop_map(Hint::Width)]
}

/// Arbitrary bytes, and data with structure cut off at arbitrary places.
fn any_data() -> impl Strategy<Value = Vec<u8>> {
    let structured = (0..7_u8, 0..20_000_usize, 0..9_usize).prop_map(|(kind, length, skipped)| {
        let mut data = match kind {
            0 => bf16(length / 2 + 8),
            1 => f16(length / 2 + 8),
            2 => f32s(length / 4 + 8),
            3 => f64s(length / 8 + 8),
            4 => text(length + 16),
            5 => vec![0; length + 16],
            _ => [vec![0; length / 2], noise(length / 2 + 16)].concat(),
        };
        data.drain(..skipped);
        data
    });
    let few = (proptest::collection::vec(0..3_u8, 0..3000), 1..5_usize).prop_map(|(data, times)| data.repeat(times));
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..3000), few, structured]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_was_encoded_is_decoded(data in any_data(), hint in any_hint()) {
        there_and_back(&data, hint);
    }

    #[test]
    fn what_was_encoded_with_less_work_is_decoded(data in any_data(), hint in any_hint(), compression in any_compression()) {
        let mut stored = Vec::new();
        Encoder::of(compression).encode(&data, hint, &mut stored);
        prop_assert!(stored.len() <= data.len() + 1);
        prop_assert!(decoded(&stored, data.len()).unwrap() == data);
    }

    #[test]
    fn planes_of_any_form_are_joined_as_they_were_split(
        data in any_data(), width in prop_oneof![Just(2_usize), Just(4), Just(8)], turned: bool,
    ) {
        let whole = &data[..data.len() / width * width];
        let mut split = vec![0; whole.len() + 3];
        planes::split(whole, width, turned, &mut split);
        let count = whole.len() / width;
        let mut sources: [&[u8]; 8] = Default::default();
        for (k, source) in sources.iter_mut().take(width).enumerate() {
            *source = &split[k * count..(k + 1) * count];
        }
        if !turned {
            for (k, source) in sources.iter().take(width).enumerate() {
                prop_assert!(whole.iter().skip(k).step_by(width).eq(source.iter()));
            }
        }
        let mut joined = vec![0; whole.len()];
        planes::join(&sources, width, turned, &mut joined);
        prop_assert!(joined == whole);
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(stored in proptest::collection::vec(any::<u8>(), 0..300), codec in 0..5_u8, raw_len in 0..5000_usize) {
        let mut stored = stored;
        if let Some(first) = stored.first_mut() {
            *first = codec;
        }
        bounded(&stored, raw_len);
    }

    #[test]
    fn damaged_forms_are_decoded_or_refused(data in any_data(), at: prop::sample::Index, to: u8, cut: prop::sample::Index, wrong in 0..9_usize) {
        let mut stored = encoded(&data, Hint::None);
        let at = at.index(stored.len());
        stored[at] = to;
        bounded(&stored, data.len());
        bounded(&stored, data.len() / 2 + wrong);
        bounded(&stored[..cut.index(stored.len())], data.len());
    }
}

/// Decodes and looks only at how much memory was taken and that as much as asked for was given.
fn bounded(stored: &[u8], raw_len: usize) {
    let (mut decoder, mut out) = (Decoder::new(), Vec::new());
    match decoder.decode(stored, raw_len, &mut out) {
        Ok(()) => assert_eq!(out.len(), raw_len),
        Err(_) => assert!(out.is_empty()),
    }
    assert!(out.capacity() <= raw_len.max(8), "{} for {raw_len}", out.capacity());
    assert!(decoder.planes.capacity() <= raw_len.max(8));
}
