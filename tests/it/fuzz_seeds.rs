//! What the fuzzers in `fuzz/` begin with: small true examples of everything stored. They are made here, by the code
//! that writes them: `cargo test --test it -- --ignored fuzz_seeds::make_them`.

use jiff::Timestamp;
use muster::repository::{
    codec::{Encoder, Hint},
    entry::{Content, Entry, Extent, Extents, Instant, Meta, Node, ObjectInfo, Part, Patched, put_extents},
    index::{PackEntry, encode},
    keys::{Keyring, Slot, Unlock},
    marks::Marked,
    names::Id,
    pack::{Piece, put_directory, squeeze},
    proof::{Level, Proof},
    snapshot::{Snapshot, Source, Stats},
    wire::{put_bytes, put_number, put_signed},
};
use secrecy::SecretBox;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

fn folder(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(of)
}

fn json(of: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(of).unwrap()
}

fn id(n: u8) -> Id {
    Id([n; 32])
}

fn pieces() -> Vec<Piece> {
    let piece = |number: u32, offset, stored| Piece { chunk: id(number as u8 + 1), number, offset, stored, length: stored * 2 };
    vec![piece(0, 44, 117), piece(1, 161, 1_000)]
}

fn patched() -> Extent {
    let part = |chunk, offset, length| Part { chunk, offset, length };
    let parts = vec![part(0, 0, 8), part(1, 3, 2), part(0, 10, 5)];
    Extent::Patched(Box::new(Patched { id: id(5), length: 15, chunks: vec![id(1), id(2)], parts }))
}

fn entries() -> Vec<u8> {
    let meta = Meta {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Instant { seconds: -1, nanos: 5 },
        attributes: vec![(b"user.a".to_vec(), b"b".to_vec())],
    };
    let content = |extents| Content { size: 15, changed: false, digest: id(9), extents };
    let here = Extents::Here(vec![Extent::Zeros(5), Extent::Chunk { id: id(1), length: 10 }]);
    let info = ObjectInfo { mtime: Instant { seconds: 1, nanos: 0 }, etag: b"e".to_vec(), version: Vec::new(), metadata: Vec::new() };
    let nodes = [
        ("", Node::Folder { meta: meta.clone() }),
        ("a", Node::File { meta: meta.clone(), ctime: Instant::default(), inode: 7, content: content(here.clone()) }),
        (
            "b",
            Node::File {
                meta: meta.clone(),
                ctime: Instant::default(),
                inode: 8,
                content: content(Extents::Elsewhere { chunks: vec![id(2)], patched: false }),
            },
        ),
        ("c", Node::File { meta: meta.clone(), ctime: Instant::default(), inode: 9, content: content(Extents::Here(vec![patched()])) }),
        ("c1", Node::Fifo { meta }),
        ("d", Node::Object { info, content: content(here) }),
    ];
    let mut out = Vec::new();
    nodes.into_iter().for_each(|(path, node)| Entry { path: path.into(), node }.encode(&mut out));
    out
}

fn snapshot() -> Snapshot {
    Snapshot {
        time: Timestamp::UNIX_EPOCH,
        duration_ms: 1,
        host: "bridge".into(),
        user: "ana".into(),
        program: "muster".into(),
        source: Source::Bucket { url: "s3://b".into() },
        tags: vec!["t".into()],
        parent: Some(id(3)),
        run: None,
        list: vec![id(4)],
        stats: Stats::default(),
    }
}

fn numbers() -> Vec<u8> {
    let mut out = vec![0];
    put_number(&mut out, 300);
    out.push(1);
    put_signed(&mut out, -70_000);
    out.push(3);
    put_bytes(&mut out, b"abc");
    out.push(5);
    out.extend([7; 32]);
    out
}

/// In their stored forms, each behind its length.
fn chunks() -> Vec<(&'static str, Vec<u8>)> {
    let mut encoder = Encoder::new();
    let bf16: Vec<u8> = (0..600u32).flat_map(|n| (0x3f80 + (n * 37 % 90) as u16).to_le_bytes()).collect();
    let text = b"a text that repeats itself, ".repeat(40);
    let of = [
        ("raw", b"x1".to_vec(), Hint::None),
        ("text", text, Hint::None),
        ("fill", vec![5; 900], Hint::None),
        ("planes", bf16, Hint::Width(2)),
    ];
    let form = |(name, raw, hint): (&'static str, Vec<u8>, Hint)| {
        let mut out = (raw.len() as u16).to_le_bytes().to_vec();
        let mut stored = Vec::new();
        encoder.encode(&raw, hint, &mut stored);
        out.extend(stored);
        (name, out)
    };
    of.into_iter().map(form).collect()
}

fn safetensors() -> Vec<u8> {
    let head = br#"{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    let size = 8 + head.len() as u64 + 16;
    [&size.to_le_bytes()[..], &(head.len() as u64).to_le_bytes(), head, &[1; 16]].concat()
}

/// The first page of a segment, as a server of version 15 writes it.
fn first_page() -> Vec<u8> {
    let mut page = vec![0x10, 0xD1, 2, 0];
    page.extend(1u32.to_le_bytes());
    page.extend((3u64 << 20).to_le_bytes());
    page.extend([0; 8]);
    page.extend(7u64.to_le_bytes());
    page.extend((1u32 << 20).to_le_bytes());
    page.extend(8192u32.to_le_bytes());
    page.extend([9; 24]);
    page
}

/// What the write-ahead log of PostgreSQL has.
fn wal() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let history = b"# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-11-26 03:00:00+00\n";
    let segment = "000000010000000A000000FE";
    let pieces = format!("{segment}.00000000-00002000\n{segment}.00001000-00010000\n{segment}.00020000-00030000\n00000002.history\n");
    vec![
        ("bound", "some", b"MUSTER1W plain".to_vec()),
        ("wal_history", "two", [&3u32.to_le_bytes()[..], history].concat()),
        ("wal_name", "segment", segment.into()),
        ("wal_name", "label", format!("{segment}.00000028.backup").into_bytes()),
        ("wal_name", "key", format!("wal/7445172393480321234/00000001/{segment}.partial").into_bytes()),
        ("wal_name", "pieces", pieces.into_bytes()),
        ("wal_page", "first", first_page()),
    ]
}

pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let key = Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(vec![7; 64]))));
    let slot = Slot::make(&id(0), &Keyring::new().unwrap(), &key, "l".into(), Timestamp::UNIX_EPOCH).unwrap();
    let proof = Proof {
        snapshot: id(1),
        time: Timestamp::UNIX_EPOCH,
        ok: true,
        level: Level::Restored,
        files: 1,
        bytes: 2,
        duration_ms: 3,
        host: "h".into(),
        run: None,
        why: None,
        found: None,
    };
    let (mut directory, mut extents) = (Vec::new(), Vec::new());
    put_directory(&mut directory, &pieces());
    put_extents(&mut extents, &[Extent::Chunk { id: id(1), length: 10 }, Extent::Zeros(4), patched()]);
    let config = serde_json::json!({ "format": "muster-repository", "version": 1, "id": "00", "created": "2026-11-26T00:00:00Z" });
    let mut all = vec![
        ("numbers", "some", numbers()),
        ("slot", "key-file", slot.stored().unwrap().1),
        ("config", "one", json(&config)),
        ("sealed", "some", b"MUSTER1I plain".to_vec()),
        ("directory", "two", directory),
        ("index", "one", encode(&[PackEntry { pack: id(8), size: 2_000, pieces: pieces() }])),
        ("index", "twice", encode(&[pieces()[..1].to_vec(), pieces()].map(|pieces| PackEntry { pack: id(8), size: 2_000, pieces }))),
        ("list", "kinds", entries()),
        ("extents", "two", extents),
        ("snapshot", "one", json(&snapshot())),
        ("marks", "mark", json(&Marked { packs: vec![id(1), id(2)], wal: Vec::new(), grace_s: 86_400 })),
        ("marks", "proof", json(&proof)),
        ("marks", "name", id(0xab).key("packs/").into_bytes()),
        ("safetensors", "two", safetensors()),
        ("expand", "text", squeeze(&b"what is where ".repeat(30))),
    ];
    all.extend(wal());
    all.extend(chunks().into_iter().map(|(name, bytes)| ("codec", name, bytes)));
    all
}

#[test]
#[ignore = "writes fuzz/seeds"]
fn make_them() {
    for (target, name, bytes) in seeds() {
        let dir = folder("seeds").join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn every_fuzzer_has_seeds() {
    let made = seeds();
    for target in std::fs::read_dir(folder("fuzz_targets")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = target.file_stem().unwrap().to_str().unwrap();
        assert!(made.iter().any(|(target, ..)| *target == name), "{name} has none in this file");
        let stored = std::fs::read_dir(folder("seeds").join(name)).map_or(0, Iterator::count);
        assert!(stored > 0, "fuzz/seeds/{name} is empty");
        let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "fuzz/Cargo.toml lacks {name}");
    }
}
