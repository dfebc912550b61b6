//! Cuts cover a file exactly, hang on its content alone, and share what two files share.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn cutter() -> Cutter {
    Cutter::new(&[42; 32])
}

fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(count).collect()
}

fn text(count: usize) -> Vec<u8> {
    (0..).flat_map(|n: u64| format!("line {n} says {}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()).take(count).collect()
}

/// A tensor for a file: name, type, bytes.
type Named = (String, &'static str, Vec<u8>);

fn safetensors(tensors: &[Named], metadata: &str) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!({ "note": metadata }));
    }
    let mut at = 0;
    for (name, dtype, bytes) in tensors {
        let size = match *dtype {
            "F32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        let described = serde_json::json!({ "dtype": dtype, "shape": [bytes.len() / size], "data_offsets": [at, at + bytes.len()] });
        header.insert(name.clone(), described);
        at += bytes.len();
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(tensors.iter().flat_map(|(_, _, bytes)| bytes));
    file
}

fn model(count: usize, size: usize, seed: u64) -> Vec<Named> {
    (0..count).map(|n| (format!("layer.{n}.weight"), "BF16", noise(size, seed + 2 * n as u64))).collect()
}

fn layout_of(file: &[u8]) -> Layout {
    cutter().layout(file, file.len() as u64)
}

/// Lengths and hints, with `buffer` bytes at hand at a time; what does not suffice is added to.
fn lengths(file: &[u8], buffer: usize) -> Vec<(usize, Hint)> {
    let (cutter, layout) = (cutter(), layout_of(file));
    let (mut at, mut have) = (0, 0);
    let mut cuts = Vec::new();
    while at < file.len() {
        have = have.max((at + buffer).min(file.len()));
        match cutter.next(&layout, at as u64, &file[at..have], have == file.len()) {
            Some(cut) => {
                cuts.push(cut);
                at += cut.0;
            }
            None => have = (have + buffer).min(file.len()),
        }
    }
    cuts
}

fn chunks(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = file;
    lengths(file, MAX_CHUNK)
        .into_iter()
        .map(|(length, _)| {
            let (chunk, after) = rest.split_at(length);
            rest = after;
            chunk
        })
        .collect()
}

/// Bytes of the chunks of `of` that are not among those of `base`.
fn fresh(of: &[u8], base: &[u8]) -> usize {
    let known: HashSet<_> = chunks(base).into_iter().collect();
    chunks(of).into_iter().filter(|chunk| !known.contains(chunk)).map(<[u8]>::len).sum()
}

#[test]
fn general_chunks_have_the_sizes_they_should() {
    let file = noise(24 << 20, 1);
    let sizes: Vec<usize> = chunks(&file).iter().map(|chunk| chunk.len()).collect();
    assert!(sizes.iter().all(|size| *size <= MAX_CHUNK));
    assert!(sizes[..sizes.len() - 1].iter().all(|size| *size >= MIN_CHUNK));
    let mean = file.len() / sizes.len();
    assert!((900 << 10..1300 << 10).contains(&mean), "{mean}");
}

#[test]
fn another_seed_cuts_elsewhere() {
    let file = noise(8 << 20, 1);
    let first = cutter().next(&Layout::default(), 0, &file, true);
    let second = Cutter::new(&[43; 32]).next(&Layout::default(), 0, &file, true);
    assert_ne!(first, second);
}

#[test]
fn lanes_find_what_a_plain_search_finds() {
    let gear = Gear::new(&[1; 32]);
    let data = noise(300_000, 7);
    let plain = |from: usize, to: usize, limit| (from + 1..=to).find(|end| gear.hash(&data[..*end]) <= limit);
    for from in [64, 65, 1000, 33_333] {
        for bits in [12, 15, 17, 30] {
            let limit = u64::MAX >> bits;
            assert_eq!(gear.find(&data, from, data.len(), limit), plain(from, data.len(), limit));
        }
    }
    assert_eq!(gear.find(&data, 100, 50, u64::MAX), None);
    assert_eq!(gear.find(&data, 400_000, 500_000, u64::MAX), None);
}

#[test]
fn an_insertion_at_the_front_of_a_text_costs_a_few_chunks() {
    let base = text(12 << 20);
    for inserted in [b"x".to_vec(), b"a line of its own\n".to_vec(), vec![0; 100_000]] {
        let changed = [&inserted[..], &base].concat();
        let fresh = fresh(&changed, &base);
        assert!(fresh < 4 << 20, "{fresh}");
    }
}

#[test]
fn a_variant_shares_the_tensors_it_shares() {
    let base = model(60, 1 << 20, 1);
    let mut variant = base.clone();
    for n in [5, 17, 40] {
        variant[n].2 = noise(1 << 20, 1000 + n as u64);
    }
    let (old, new) = (safetensors(&base, ""), safetensors(&variant, "fine-tuned"));
    let header = usize::try_from(layout_of(&new).header).unwrap();
    assert_eq!(fresh(&new, &old), (3 << 20) + header);
}

#[test]
fn order_and_header_do_not_matter() {
    let mut tensors = model(6, 3_000_002, 1);
    let old = safetensors(&tensors, "");
    tensors.reverse();
    tensors.swap(1, 4);
    let new = safetensors(&tensors, "a longer description than before, of odd length");
    let header = usize::try_from(layout_of(&new).header).unwrap();
    assert_eq!(fresh(&new, &old), header);
    assert!(lengths(&new, MAX_CHUNK)[1..].iter().all(|(_, hint)| *hint == Hint::Width(2)));
}

#[test]
fn small_tensors_are_grouped_and_groups_stay() {
    let mut tensors: Vec<Named> = (0..10_000).map(|n| (format!("b{n}"), "F32", noise(4096, 3 * n + 1))).collect();
    let old = safetensors(&tensors, "");
    let count = chunks(&old).len();
    assert!((60..400).contains(&count), "{count}");
    tensors[3000].2 = noise(4096, 77);
    tensors.insert(6000, ("new".to_owned(), "F32", noise(4096, 78)));
    tensors.remove(9000);
    let new = safetensors(&tensors, "");
    let header = usize::try_from(layout_of(&new).header).unwrap();
    let fresh = fresh(&new, &old) - header;
    assert!(fresh < 3 << 20, "{fresh}");
}

#[test]
fn pieces_leave_no_crumbs() {
    for (size, lengths) in [
        (1 << 20, &[1 << 20][..]),
        ((1 << 20) + 5, &[(1 << 20) + 5]),
        (5 << 18, &[1 << 20, 1 << 18]),
        (3 << 20, &[1 << 20, 1 << 20, 1 << 20]),
        ((3 << 20) + 9, &[1 << 20, 1 << 20, (1 << 20) + 9]),
    ] {
        let mut at = 0;
        for length in lengths {
            assert_eq!(piece(at, size), *length);
            at += length;
        }
        assert_eq!(at, size);
    }
}

#[test]
fn what_is_odd_is_not_believed() {
    let wrap = |header: &str, data: usize| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.resize(file.len() + data, 7);
        file
    };
    let knows = |header: &str, data: usize| layout_of(&wrap(header, data)).knows_tensors();
    assert!(knows(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}   "#, 4));
    assert!(knows(r#"{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#, 4), "a type of tomorrow");
    assert!(knows(r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1));
    for (why, header, data) in [
        ("too short", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 3),
        ("too long", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 5),
        ("a gap", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}}"#, 5),
        ("not its shape", r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#, 4),
        ("overlap", r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}"#, 4),
        ("backwards", r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[4,0]}}"#, 0),
        ("no tensors", "{}", 0),
        ("not an object", "{\"a\":1}", 0),
        ("not JSON", "{hello", 9),
        ("overflow", r#"{"a":{"dtype":"F64","shape":[18446744073709551615,9],"data_offsets":[0,18446744073709551615]}}"#, 4),
    ] {
        assert!(!knows(header, data), "{why}");
    }
    assert!(!layout_of(b"{}").knows_tensors());
    assert!(!layout_of(&u64::MAX.to_le_bytes()).knows_tensors());
}

#[test]
fn a_file_that_shrinks_or_grows_meanwhile_is_still_covered() {
    let file = safetensors(&model(3, 1_500_000, 1), "");
    let layout = layout_of(&file);
    for actual in [file[..file.len() - 700_000].to_vec(), [file.clone(), noise(9_000_000, 5)].concat()] {
        let mut at = 0;
        while let Some((length, _)) = cutter().next(&layout, at as u64, &actual[at..], true) {
            assert!((1..=MAX_CHUNK).contains(&length));
            at += length;
        }
        assert_eq!(at, actual.len());
    }
}

/// Tensors of all sizes that matter: tiny, small, in pieces.
fn any_model() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![Just(0_usize), 1..300_usize, 1000..90_000_usize, 200_000..300_000_usize, 900_000..1_600_000_usize];
    let tensor = (size, any::<bool>(), any::<u64>());
    (proptest::collection::vec(tensor, 0..16), ".{0,40}").prop_map(|(sizes, note)| {
        let tensors = sizes.into_iter().enumerate().map(|(n, (size, wide, seed))| {
            let (dtype, element) = if wide { ("F32", 4) } else { ("U8", 1) };
            (format!("t{n}"), dtype, noise(size / element * element, seed))
        });
        safetensors(&tensors.collect::<Vec<_>>(), &note)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cuts_cover_a_file_and_do_not_depend_on_how_it_arrives(
        file in prop_oneof![any_model(), (0..6_000_000_usize, any::<u64>()).prop_map(|(size, seed)| noise(size, seed))],
        buffer in 1000..3_000_000_usize,
    ) {
        let cuts = lengths(&file, MAX_CHUNK);
        prop_assert_eq!(cuts.iter().map(|(length, _)| length).sum::<usize>(), file.len());
        prop_assert!(cuts.iter().all(|(length, _)| (1..=MAX_CHUNK).contains(length)));
        prop_assert_eq!(&lengths(&file, buffer), &cuts);
        prop_assert_eq!(&lengths(&file, file.len().max(1)), &cuts);
    }
}

proptest! {
    #[test]
    fn no_head_is_too_odd(head in proptest::collection::vec(any::<u8>(), 0..200), json in ".{0,100}", size: u64) {
        cutter().layout(&head, size);
        let mut like = (json.len() as u64 + 1).to_le_bytes().to_vec();
        like.push(b'{');
        like.extend(json.bytes());
        cutter().layout(&like, size);
    }
}
