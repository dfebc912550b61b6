//! The fuzzers of `fuzz/`, compiled with the tests so that none falls behind the code, and each given its seeds: whole, cut off
//! at every length, with every bit turned, and some thousands of random changes. `make fuzz` looks for more, and longer.

#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/bound.rs"]
mod bound;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/codec.rs"]
mod codec;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/config.rs"]
mod config;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/directory.rs"]
mod directory;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/expand.rs"]
mod expand;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/extents.rs"]
mod extents;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/index.rs"]
mod index;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/list.rs"]
mod list;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/marks.rs"]
mod marks;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/numbers.rs"]
mod numbers;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/safetensors.rs"]
mod safetensors;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/sealed.rs"]
mod sealed;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/slot.rs"]
mod slot;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/snapshot.rs"]
mod snapshot;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/wal_history.rs"]
mod wal_history;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/wal_name.rs"]
mod wal_name;
#[allow(unused_attributes)]
#[path = "../../fuzz/fuzz_targets/wal_page.rs"]
mod wal_page;

/// In place of the fuzzer's own: its body as a function.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub fn one($data: &[u8]) $body
    };
}

const FUZZERS: &[(&str, fn(&[u8]))] = &[
    ("bound", bound::one),
    ("codec", codec::one),
    ("config", config::one),
    ("directory", directory::one),
    ("expand", expand::one),
    ("extents", extents::one),
    ("index", index::one),
    ("list", list::one),
    ("marks", marks::one),
    ("numbers", numbers::one),
    ("safetensors", safetensors::one),
    ("sealed", sealed::one),
    ("slot", slot::one),
    ("snapshot", snapshot::one),
    ("wal_history", wal_history::one),
    ("wal_name", wal_name::one),
    ("wal_page", wal_page::one),
];
/// Changes for each seed.
const CHANGES: u32 = 2_000;

/// A generator that needs no crate (xorshift): what is tried is the same every time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

/// A few bytes set, removed, doubled or put in.
fn changed(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.throw(4) {
        let at = dice.throw(bytes.len());
        let until = (at + 1 + dice.throw(8)).min(bytes.len());
        match dice.throw(4) {
            _ if bytes.is_empty() => bytes.push(dice.throw(256) as u8),
            0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, dice.throw(256) as u8][dice.throw(6)],
            1 => drop(bytes.drain(at..until)),
            2 => bytes.extend_from_within(at..until),
            _ => bytes.insert(at, dice.throw(256) as u8),
        }
    }
    bytes
}

#[test]
fn every_fuzzer_bears_its_seeds_and_what_is_near_them() {
    let seeds = crate::fuzz_seeds::seeds();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for (name, one) in FUZZERS {
        let own: Vec<_> = seeds.iter().filter(|(target, ..)| target == name).map(|(.., bytes)| bytes).collect();
        assert!(!own.is_empty(), "{name} has no seeds");
        for seed in own {
            one(seed);
            (0..seed.len()).for_each(|length| one(&seed[..length]));
            for bit in 0..seed.len() * 8 {
                let mut turned = seed.clone();
                turned[bit / 8] ^= 1 << (bit % 8);
                one(&turned);
            }
            (0..CHANGES).for_each(|_| one(&changed(seed, &mut dice)));
        }
    }
}

#[test]
fn every_fuzzer_is_among_them() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(FUZZERS.iter().any(|(known, _)| *known == name), "{name} is not in this file");
    }
}
