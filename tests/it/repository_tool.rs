//! Nobody depends on us: `tools/restore.py`, which was written from the document of the format, restores what the program
//! wrote. And the program itself may be killed at any moment.

use crate::place::Place;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn python() -> PathBuf {
    let python = Path::new(ROOT).join(".venv/bin/python");
    assert!(python.exists(), "there is no {}: `make deps` makes it", python.display());
    python
}

/// Numbers of a shape that weights have, as bf16: the sum of four even ones.
fn weights(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut even = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count)
        .flat_map(|_| {
            let number = (even() + even() + even() + even()) * 0.03;
            ((number.to_bits() >> 16) as u16).to_le_bytes()
        })
        .collect()
}

fn safetensors(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(n, bytes)| {
            let begin = at;
            at += bytes.len();
            format!(r#""w{n}":{{"dtype":"BF16","shape":[{}],"data_offsets":[{begin},{at}]}}"#, bytes.len() / 2)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    tensors.iter().for_each(|bytes| file.extend(bytes));
    file
}

/// Models that share a tensor, text, nothing, many small files, odd names, links, a hole.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("configs/ä b")).unwrap();
    let (a, b, c) = (weights(1, 700_000), weights(2, 300_001), weights(3, 700_000));
    fs::write(root.join("base.safetensors"), safetensors(&[a.clone(), b.clone()])).unwrap();
    fs::write(root.join("tuned.safetensors"), safetensors(&[c, b])).unwrap();
    fs::write(root.join("odd.bin"), [&b"x"[..], &a].concat()).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    for n in 0..200 {
        fs::write(root.join(format!("configs/{n}.json")), format!("{{\"layer\": {n}, \"name\": \"{}\"}}", "tok ".repeat(n))).unwrap();
    }
    fs::write(root.join("configs/ä b/ü\n"), "a name with a line in it").unwrap();
    std::os::unix::fs::symlink("../base.safetensors", root.join("configs/link")).unwrap();
    fs::hard_link(root.join("odd.bin"), root.join("twin.bin")).unwrap();
    let hole = fs::File::create(root.join("sparse")).unwrap();
    hole.set_len(9 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&hole, b"in the middle", 5 << 20).unwrap();
}

fn same(one: &Path, other: &Path) {
    let diff = Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

fn backup(place: &Place, args: &[&str]) -> crate::place::Said {
    place.muster(&[&["backup"], args, &["--repo", "vault", "--key-file", "key"]].concat())
}

#[test]
fn who_has_the_document_restores_without_us() {
    let place = Place::new();
    plant(&place.path("src"));
    place.file("pw", "tide\n");
    place.muster(&["backup", "create", "src", "--repo", "vault", "--password-file", "pw"]).expect(0);
    let restored = Command::new(python())
        .arg(Path::new(ROOT).join("tools/restore.py"))
        .args([place.path("vault"), "latest".into(), place.path("out")])
        .arg("--password-file")
        .arg(place.path("pw"))
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    same(&place.path("src"), &place.path("out"));
    // And so do we.
    place.muster(&["backup", "restore", "latest", "--to", "ours", "--repo", "vault", "--password-file", "pw"]).expect(0);
    same(&place.path("src"), &place.path("ours"));
}

#[test]
fn who_has_the_document_gets_the_log_without_us() {
    let place = Place::new();
    let (system, name) = ("7445172393480321234", "000000010000000000000003");
    place.file("src.txt", "x");
    fs::write(place.path("key"), [5; 64]).unwrap();
    backup(&place, &["create", "src.txt"]).expect(0);
    let mut content = [&[0x10, 0xD1, 7, 0, 1, 0, 0, 0][..], &(3u64 << 20).to_le_bytes(), &[0; 8]].concat();
    content.extend(system.parse::<u64>().unwrap().to_le_bytes());
    content.extend((1u32 << 20).to_le_bytes());
    content.resize(1 << 20, 9);
    fs::write(place.path(name), &content).unwrap();
    let archive = ["wal", "archive", name, "--system", system, "--repo", "vault", "--key-file", "key"];
    place.muster(&archive).expect(0);
    let get = |name: &str| {
        let mut tool = Command::new(python());
        tool.arg(Path::new(ROOT).join("tools/restore.py")).arg(place.path("vault")).args(["--wal", system, name]);
        tool.arg(place.path("got")).arg("--key-file").arg(place.path("key")).output().unwrap().status.code()
    };
    assert_eq!(get(name), Some(0));
    assert!(fs::read(place.path("got")).unwrap() == content);
    // Absent and at the end; missing before another one; under a name that is not its own.
    assert_eq!((get("000000010000000000000004"), get("000000010000000000000002")), (Some(1), Some(126)));
    let folder = place.path("vault").join("wal").join(system).join("00000001");
    fs::copy(folder.join(name), folder.join("000000010000000000000005")).unwrap();
    assert_eq!(get("000000010000000000000005"), Some(126));
}

#[test]
fn the_tool_keeps_its_own_word() {
    let tests = Command::new(python()).arg(Path::new(ROOT).join("tests/tools/test_restore.py")).output().unwrap();
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&tests.stderr));
}

#[test]
fn killed_at_any_moment_a_backup_leaves_every_finished_snapshot_whole() {
    let place = Place::new();
    plant(&place.path("src"));
    // A key file needs no stretching: most of the time is then the backup itself.
    place.file("key", &"k".repeat(64));
    let started = Instant::now();
    backup(&place, &["create", "src"]).expect(0);
    let whole = started.elapsed();
    let mut killed = 0;
    for round in 0..12u32 {
        // Something new each time, so that there is something to be killed in.
        fs::write(place.path("src/base.safetensors"), safetensors(&[weights(100 + u64::from(round), 2_000_000)])).unwrap();
        let mut child = place
            .command(&["backup", "create", "src", "--repo", "vault", "--key-file", "key"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * (round + 1) / 16);
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        backup(&place, &["verify", "--read-data"]).expect(0);
    }
    assert!(killed >= 3, "only {killed} were killed in time");
    backup(&place, &["create", "src"]).expect(0);
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    same(&place.path("src"), &place.path("out"));
    // What the dead left behind goes.
    backup(&place, &["prune", "--grace", "0s"]).expect(0);
    backup(&place, &["prune", "--grace", "0s"]).expect(0);
    backup(&place, &["verify", "--read-data"]).expect(0);
}
