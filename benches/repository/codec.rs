//! The codecs and the cutter: MB per CPU second and what is stored, by kind of data; then trees, if some are named:
//! `cargo bench --bench repository_codec -- DIR…`, each also by how much is compressed. A tree that holds a PostgreSQL cluster
//! (`PG_VERSION`) is taken as pages. CPU time of the thread, best of several rounds: load hardly shows in it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use muster::repository::{
    codec::{Compression, Decoder, Encoder, Hint},
    cut::{Cutter, Layout, MAX_CHUNK},
    pages,
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

const ROUNDS: usize = 7;
const SIZE: usize = 32 << 20;
const CHUNK: usize = 1 << 20;

fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn timed<T>(spent: &mut f64, work: impl FnOnce() -> T) -> T {
    let begin = cpu();
    let done = work();
    *spent += cpu() - begin;
    done
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn even(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }

    /// Box and Muller; as wide as weights are.
    fn weight(&mut self) -> f64 {
        (-2.0 * self.even().ln()).sqrt() * (std::f64::consts::TAU * self.even()).cos() * 0.02
    }
}

fn half(x: f64) -> [u8; 2] {
    let bits = (x as f32).to_bits() + 0x1000;
    let exponent = ((bits >> 23) & 0xff).saturating_sub(112);
    (((bits >> 16) & 0x8000 | exponent << 10 | (bits >> 13) & 0x3ff) as u16).to_le_bytes()
}

fn brain(x: f64) -> [u8; 2] {
    let bits = (x as f32).to_bits() + 0x8000;
    [(bits >> 16) as u8, (bits >> 24) as u8]
}

fn json(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    while text.len() < SIZE {
        let (n, word) = (random.next() % 1000, random.next() % 4000);
        text += &format!("  \"layer.{n}.weight\": {{\"tok{:x}\": {}, \"kept\": true}},\n", word * 0x9e37, random.next() % 131_072);
    }
    text.into_bytes()
}

fn kinds() -> Vec<(&'static str, Vec<u8>, Hint)> {
    let mut random = Random(7);
    let mut weights = |count: usize| -> Vec<f64> { (0..count).map(|_| random.weight()).collect() };
    let (halves, singles, doubles) = (weights(SIZE / 2), weights(SIZE / 4), weights(SIZE / 8));
    let single: Vec<u8> = singles.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    vec![
        ("bf16", halves.iter().flat_map(|x| brain(*x)).collect(), Hint::Width(2)),
        ("f16", halves.iter().flat_map(|x| half(*x)).collect(), Hint::Width(2)),
        ("f32", single.clone(), Hint::Width(4)),
        ("f32, no hint, odd", [&[0; 3][..], &single[..SIZE - 3]].concat(), Hint::None),
        ("f64", doubles.iter().flat_map(|x| x.to_le_bytes()).collect(), Hint::Width(8)),
        ("json", json(&mut random), Hint::None),
        ("random", (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect(), Hint::None),
        ("zeros", vec![0; SIZE], Hint::None),
    ]
}

fn codecs() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    println!("{:<20} {:>12} {:>12} {:>8}", "", "encode MB/s", "decode MB/s", "stored");
    for (name, data, hint) in kinds() {
        let (mut encoding, mut decoding) = (f64::MAX, f64::MAX);
        let mut stored = 0;
        let (mut out, mut back) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (mut there, mut and_back) = (0.0, 0.0);
            stored = 0;
            for chunk in data.chunks(CHUNK) {
                out.clear();
                timed(&mut there, || encoder.encode(chunk, hint, &mut out));
                timed(&mut and_back, || decoder.decode(&out, chunk.len(), &mut back)).expect("what was encoded");
                assert!(back == chunk);
                stored += out.len();
            }
            (encoding, decoding) = (encoding.min(there), decoding.min(and_back));
        }
        let speed = |spent: f64| data.len() as f64 / spent / 1e6;
        println!("{name:<20} {:>12.0} {:>12.0} {:>8.4}", speed(encoding), speed(decoding), stored as f64 / data.len() as f64);
    }
}

fn cutting() {
    let mut random = Random(3);
    let data: Vec<u8> = (0..SIZE).flat_map(|_| random.next().to_le_bytes()).collect();
    let (cutter, layout) = (Cutter::new(&[7; 32]), Layout::default());
    let mut best = f64::MAX;
    let mut count = 0;
    for _ in 0..ROUNDS {
        let mut spent = 0.0;
        count = timed(&mut spent, || cuts(&cutter, &layout, &data).len());
        best = best.min(spent);
    }
    println!("\ncutting {:.2} GB per CPU s, {} KiB on average", data.len() as f64 / best / 1e9, data.len() / count / 1024);
}

fn cuts(cutter: &Cutter, layout: &Layout, data: &[u8]) -> Vec<(usize, Hint)> {
    let (mut at, mut cuts) = (0, Vec::new());
    while let Some((length, hint)) = cutter.next(layout, at as u64, &data[at..], true) {
        cuts.push((length, hint));
        at += length;
    }
    cuts
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")) {
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

#[derive(Default)]
struct Sums {
    read: usize,
    unique: usize,
    stored: usize,
    chunks: usize,
    cutting: f64,
    encoding: f64,
    decoding: f64,
}

/// All of a tree, each chunk once, by the directory at the top.
fn tree(root: &Path) {
    let (cutter, mut encoder, mut decoder) = (Cutter::new(&[7; 32]), Encoder::new(), Decoder::new());
    let (mut found, mut seen, mut sums) = (Vec::new(), HashSet::new(), BTreeMap::<String, Sums>::new());
    let (mut out, mut back) = (Vec::new(), Vec::new());
    files(root, &mut found);
    found.sort();
    for path in found {
        let data = std::fs::read(&path).expect("a file");
        let top = path.strip_prefix(root).unwrap().components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        for name in [top, "all".to_owned()] {
            sums.entry(name).or_default().read += data.len();
        }
        let mut one = Sums::default();
        let size = data.len() as u64;
        let found = timed(&mut one.cutting, || {
            let layout = cutter.layout(&data[..data.len().min(2 * MAX_CHUNK)], size);
            cuts(&cutter, &layout, &data)
        });
        let mut at = 0;
        for (length, hint) in found {
            let raw = &data[at..at + length];
            at += length;
            if !seen.insert(*blake3::hash(raw).as_bytes()) {
                continue;
            }
            out.clear();
            timed(&mut one.encoding, || encoder.encode(raw, hint, &mut out));
            timed(&mut one.decoding, || decoder.decode(&out, length, &mut back)).expect("what was encoded");
            assert!(back == raw);
            (one.unique, one.stored, one.chunks) = (one.unique + length, one.stored + out.len(), one.chunks + 1);
        }
        for (name, sum) in &mut sums {
            if name == "all" || path.starts_with(root.join(name)) {
                sum.unique += one.unique;
                sum.stored += one.stored;
                sum.chunks += one.chunks;
                sum.cutting += one.cutting;
                sum.encoding += one.encoding;
                sum.decoding += one.decoding;
            }
        }
    }
    println!(
        "\n{:<14} {:>9} {:>9} {:>9} {:>7} {:>7} | CPU s: {:>6} {:>7} {:>7}",
        "MiB", "read", "unique", "stored", "", "chunks", "cut", "encode", "decode"
    );
    let mib = |bytes: usize| bytes as f64 / 1_048_576.0;
    for (name, sum) in sums {
        let Sums { read, unique, stored, chunks, cutting, encoding, decoding } = sum;
        let share = stored as f64 / unique.max(1) as f64;
        println!(
            "{name:<14} {:>9.1} {:>9.1} {:>9.1} {share:>7.4} {chunks:>7} |        {cutting:>6.3} {encoding:>7.3} {decoding:>7.3}",
            mib(read),
            mib(unique),
            mib(stored)
        );
    }
}

/// So much of a tree is looked at, at most.
const MOST: usize = 256 << 20;

/// The chunks of a tree, as a backup of it would cut them, each once.
fn chunks(root: &Path) -> Vec<(Vec<u8>, Hint)> {
    let is_cluster = root.join("PG_VERSION").exists();
    let (cutter, mut found, mut seen, mut chunks, mut sum) = (Cutter::new(&[7; 32]), Vec::new(), HashSet::new(), Vec::new(), 0);
    files(&if is_cluster { root.join("base") } else { root.to_owned() }, &mut found);
    found.sort();
    for path in found {
        let data = std::fs::read(&path).expect("a file");
        let cuts = if is_cluster {
            (0..data.len()).step_by(pages::CHUNK).map(|at| (pages::CHUNK.min(data.len() - at), Hint::Pages)).collect()
        } else {
            cuts(&cutter, &cutter.layout(&data[..data.len().min(2 * MAX_CHUNK)], data.len() as u64), &data)
        };
        let mut at = 0;
        for (length, hint) in cuts {
            let chunk = &data[at..at + length];
            at += length;
            // Zeros are not stored at all.
            if sum < MOST && chunk.iter().any(|byte| *byte != 0) && seen.insert(*blake3::hash(chunk).as_bytes()) {
                sum += length;
                chunks.push((chunk.to_vec(), hint));
            }
        }
    }
    chunks
}

/// What each choice of the operator's costs, in turns.
fn compressions(root: &Path) {
    let (chunks, mut decoder) = (chunks(root), Decoder::new());
    let size: usize = chunks.iter().map(|(chunk, _)| chunk.len()).sum();
    let all = [Compression::None, Compression::Fast, Compression::Standard];
    let mut encoders = all.map(Encoder::of);
    let mut best = [(f64::MAX, f64::MAX, 0); 3];
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (encoder, best) in encoders.iter_mut().zip(&mut best) {
            let (mut there, mut and_back, mut stored) = (0.0, 0.0, 0);
            for (chunk, hint) in &chunks {
                out.clear();
                timed(&mut there, || encoder.encode(chunk, *hint, &mut out));
                timed(&mut and_back, || decoder.decode(&out, chunk.len(), &mut back)).expect("what was encoded");
                assert!(back == *chunk);
                stored += out.len();
            }
            *best = (best.0.min(there), best.1.min(and_back), stored);
        }
    }
    println!("\n{}: {:.1} MiB in {} chunks, each once", root.display(), size as f64 / 1_048_576.0, chunks.len());
    println!("{:<20} {:>12} {:>12} {:>8} {:>12}", "", "encode MB/s", "decode MB/s", "stored", "bytes");
    for (how, (there, and_back, stored)) in all.iter().zip(best) {
        let (speed, share) = (|spent: f64| size as f64 / spent / 1e6, stored as f64 / size.max(1) as f64);
        println!("{:<20} {:>12.0} {:>12.0} {share:>8.4} {stored:>12}", format!("{how:?}"), speed(there), speed(and_back));
    }
}

fn main() {
    codecs();
    cutting();
    for directory in std::env::args().skip(1).filter(|argument| !argument.starts_with('-')) {
        tree(Path::new(&directory));
        compressions(Path::new(&directory));
    }
}
