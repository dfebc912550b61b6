//! What verification costs: hashing, and comparing a large bucket with its manifest.
//!
//! The bucket is the simulated one, so that the figure is Muster's own share and not a store's.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use muster::actions::{
    contract::{ReadCx, WriteCx},
    find,
};
use muster::journal::chain::sha256_hex;
use muster::model::plan::Scope;
use muster::providers::{clock::Clock as _, sim::SimWorld};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use support::*;

const MIB: usize = 1 << 20;
const OBJECTS: u64 = 20_000;

/// A bucket in east, its copy in west, and the manifest of the copy.
fn world() -> SimWorld {
    let estate = muster::runbook::load::load_estate("muster.yaml", &shipped("muster.yaml")).expect("reads").estate;
    let world = SimWorld::new(Arc::new(estate));
    let now = world.time().now();
    let mut state = world.lock();
    let mut entries = Vec::new();
    for n in 0..OBJECTS {
        let (key, body) = (format!("models/{n:06}.bin"), n.to_string());
        let digest = sha256_hex(body.as_bytes());
        for region in ["east", "west"] {
            state.object("models", region, &key, body.as_bytes(), now);
        }
        let copy = state.objects.get_mut(&("models".into(), "west".into(), key.clone())).expect("the copy");
        copy.metadata.insert("muster-sha256".into(), digest.clone());
        entries.push(json!({ "key": key, "size": body.len(), "sha256": digest, "etag": digest, "version": null, "copy_etag": digest }));
    }
    let manifest = json!({ "run": "r", "bucket": "models", "from": "east", "prefix": "models/", "at": now, "copied": OBJECTS, "skipped": 0,
        "bytes_copied": 0, "objects": entries });
    state.object("models", "west", ".muster/manifests/r.json", manifest.to_string().as_bytes(), now);
    drop(state);
    world
}

fn main() {
    let bytes: Vec<u8> = (0..64 * MIB).map(|n| (n % 251) as u8).collect();
    let hashed = measure(7, || sha256_hex(&bytes));
    hashed.print("SHA-256 of 64 MiB", 1);
    println!("{:<44} {:>9.0} MiB/s", "", hashed.rate(64));
    let world = world();
    let read = ReadCx {
        world: Arc::new(world.clone()),
        estate: world.estate(),
        run: "bench".into(),
        step: "verify".into(),
        scope: Scope::Drill,
        lost: None,
        key: "k".into(),
        deadline: Duration::from_secs(600),
        scratch: std::env::temp_dir(),
    };
    let write = WriteCx::new(read, Arc::new(world), Arc::new(|| true));
    let action = find("bucket.verify").expect("the action");
    let input = json!({ "bucket": "models", "from": "east", "to": "west", "read_data": false });
    let compared = measure_async(3, || async {
        let output: Value = action.apply(&write, &input).await.expect("equal");
        assert_eq!(output["objects"], OBJECTS);
    });
    compared.print("compare 20,000 objects with their manifest", OBJECTS);
}
