//! The engine as a whole: durable steps a second, how soon a run goes on after a crash, what an open run and a
//! schedule cost, beside what the store itself can do in the same minute on the same disk.
//!
//! `cargo bench --no-default-features --bench engine` measures all of it; names after `--` choose parts:
//! `steps resume recovery idle schedules list`. The store's limit and the engine's figure take turns, so
//! that their ratio does not hang on how busy the machine was. PostgreSQL is one of the bench's own, if its programs
//! are there. What is killed, and `muster serve`, are real processes; this program starts itself again for those that
//! it kills.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "engine/parts.rs"]
mod parts;
#[path = "engine/stores.rs"]
mod stores;
mod support;

use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [child, rest @ ..] = args.as_slice()
        && child == "child"
    {
        return parts::child(rest);
    }
    let wanted = |part: &str| args.is_empty() || args.iter().any(|arg| arg == part);
    let dir = tempfile::Builder::new().prefix("muster-bench-").tempdir_in(place()).expect("a directory");
    println!("load at the start: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    if wanted("steps") {
        for store in stores::all(&place()) {
            parts::steps(&*store, dir.path());
        }
    }
    let all: [(&str, fn(&Path)); 5] = [
        ("resume", parts::resume),
        ("recovery", parts::recovery),
        ("idle", parts::idle),
        ("schedules", parts::schedules),
        ("list", parts::list),
    ];
    for (name, part) in all {
        if wanted(name) {
            let place = dir.path().join(name);
            std::fs::create_dir_all(&place).expect("a directory");
            part(&place);
        }
    }
    println!("load at the end: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
}

/// A directory on the disk that the program is built on; `MUSTER_BENCH_DIR` for another disk.
fn place() -> std::path::PathBuf {
    std::env::var_os("MUSTER_BENCH_DIR").map_or_else(|| std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")), Into::into)
}
