//! Buckets in bad weather: copies and comparisons through a proxy that throttles, delays, loses answers and cuts connections, before
//! servers that nobody here wrote; and a server that is killed between a backup and its restore.

use crate::{
    buckets::{EAST, WEST, Yard, fill, keys, plant},
    fault_proxy::{Fault, FaultProxy},
    repository_s3_tools::{Depot, body as stored, keys as object_keys, noise},
    stores_servers::{Server, ministack, moto, seaweedfs},
};
use futures::TryStreamExt;
use muster::providers::port::*;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Copies whose answers get lost, are refused for coming too fast, or break off: each object is written once, and the manifest
/// too, whatever becomes of an answer; and what is there is what the source holds.
async fn copied_once(server: Server) {
    for bucket in [EAST, WEST] {
        server.bucket(bucket, false).await;
    }
    let proxy = FaultProxy::before(server.port());
    let yard = Yard::at(server, &proxy.url(), "");
    let (source, _) = yard.stores();
    let book = yard.dir.path().join("copy.yaml");
    let text = "runbook: copy\nsteps:\n  - id: copy\n    uses: bucket.backup\n    with: { bucket: models, from: east, to: west, server_copy_above: 5242880 }\n    retry: { attempts: 6, backoff: 50ms }\n    on_failure: stop\n";
    std::fs::write(&book, text).unwrap();
    let manifests = "PUT /models-west/.muster/manifests/";
    let mut round = 0;
    let late = Fault::Delay(Duration::from_millis(700));
    for (fault, passed_on) in [(Fault::SlowDown, false), (Fault::ErrorAfter, true), (Fault::CutAfter, true), (late, true)] {
        for what in ["object", "file", "parts", "manifest"] {
            round += 1;
            let key = format!("r{round}-{what}");
            // In memory, by way of a file, and copied by the server in parts.
            let size = match what {
                "file" => 4 * 1024 * 1024 + 1,
                "parts" => 6 * 1024 * 1024,
                _ => 1_000 + round,
            };
            source.put(&key, vec![round as u8; size].into(), &BTreeMap::new(), false).await.unwrap();
            let writes = match what {
                "manifest" => manifests.to_owned(),
                "parts" => "<CompleteMultipartUpload".to_owned(),
                _ => format!("PUT /models-west/{key}"),
            };
            let before = (proxy.asked(&writes), proxy.passed(&writes));
            proxy.fault(&writes, 1, fault);
            let ended = yard.run(&["run", book.to_str().unwrap(), "--live"]);
            assert_eq!(ended.code, Some(0), "{what}, {fault:?}: {}", ended.said);
            assert_eq!(ended.output()["objects"], round, "{what}, {fault:?}: {}", ended.said);
            let (asked, passed) = (proxy.asked(&writes) - before.0, proxy.passed(&writes) - before.1);
            assert_eq!((asked, passed), (if passed_on { 1 } else { 2 }, 1), "{what}, {fault:?}: written once");
            proxy.heal();
        }
    }
    let same = yard.look("bucket.verify", "{ bucket: models, from: east, to: west, against: manifest, read_data: true }");
    assert_eq!((same.code, same.output()["objects"].as_u64()), (Some(0), Some(round as u64)), "{}", same.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_seaweedfs_is_written_once_whatever_becomes_of_its_answer() {
    copied_once(seaweedfs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_ministack_is_written_once_whatever_becomes_of_its_answer() {
    copied_once(ministack().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_moto_is_written_once_whatever_becomes_of_its_answer() {
    copied_once(moto().await).await;
}

/// What is planted is found and nothing else, whatever becomes of the answers to listings and to looks.
async fn found_all_the_same(server: Server) {
    for bucket in [EAST, WEST] {
        server.bucket(bucket, false).await;
    }
    let proxy = FaultProxy::before(server.port());
    // moto answers with another element than Amazon documents, which the SDK cannot read.
    proxy.mend("?versioning", |_, body| body.replace("GetBucketVersioningResponse", "VersioningConfiguration"));
    let yard = Yard::at(server, &proxy.url(), "");
    let keys = keys(60);
    fill(&yard, &keys).await;
    let backup = yard.look("bucket.backup", "{ bucket: models, from: east, to: west }");
    assert_eq!(backup.code, Some(0), "{}", backup.said);
    let want = plant(&yard, &keys).await;
    // Twice each: both listings, two copies that are described, two that are read, and the manifest.
    let looks = ["list-type=2", "HEAD /models-west/m/", "GET /models-west/m/", "GET /models-west/.muster/manifests/"];
    let late = Fault::Delay(Duration::from_millis(700));
    for against in ["source", "manifest"] {
        for fault in [Fault::SlowDown, Fault::ErrorAfter, Fault::CutAfter, late] {
            let before = looks.map(|look| proxy.asked(look));
            for look in looks {
                proxy.fault(look, 2, fault);
            }
            let with = format!("{{ bucket: models, from: east, to: west, against: {against}, read_data: true }}");
            let differs = yard.look("bucket.verify", &with);
            let met: Vec<bool> = looks.iter().zip(before).map(|(look, before)| proxy.asked(look) >= before + 2).collect();
            // Who compares with the source has no manifest to read; who reads the copies all the same describes none before.
            let want_met = if against == "source" { [true, true, true, false] } else { [true, false, true, true] };
            assert_eq!((differs.code, &met[..]), (Some(1), &want_met[..]), "{against}, {fault:?}: {}", differs.said);
            let found = yard.differences();
            assert_eq!((found.len(), found.into_iter().collect()), (want.len(), want.clone()), "{against}, {fault:?}: {}", differs.said);
            proxy.heal();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planted_on_moto_is_found_through_faults() {
    found_all_the_same(moto().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planted_on_seaweedfs_is_found_through_faults() {
    found_all_the_same(seaweedfs().await).await;
}

// ---------------------------------------------------------------- a server that dies in between

/// What was copied and what was backed up is there bit for bit when the server was killed and started again over its directory.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_survive_that_seaweedfs_is_killed_between_backup_and_restore() {
    let yard = Yard::new(seaweedfs().await, "");
    for bucket in [EAST, WEST, "vault", "back"] {
        yard.server.bucket(bucket, false).await;
    }
    let (east, _) = yard.stores();
    let mut want: BTreeMap<String, Vec<u8>> = [("large/weights.bin", 13_000_007), ("empty", 0), ("one", 1), ("m/golden.json", 70_001)]
        .map(|(key, size)| (key.to_owned(), noise(size as u8, size)))
        .into();
    want.extend((0..30u8).map(|n| (format!("small/{n:02}"), noise(n, 500 + usize::from(n)))));
    for (key, body) in &want {
        east.put(key, body.clone().into(), &BTreeMap::new(), false).await.unwrap();
    }
    let copied = yard.look("bucket.backup", "{ bucket: models, from: east, to: west }");
    assert_eq!(copied.output()["copied"], want.len(), "{}", copied.said);
    let depot = Depot::new(yard.server.open("s3://vault/models")).await;
    let created = depot.backup_bucket(east.clone()).await.unwrap();
    drop((depot, east));

    let Yard { server, dir } = yard;
    let yard = Yard { server: server.killed_and_started_again().await, dir };
    let (east, west) = yard.stores();
    readable(&*west, "one").await;
    for (key, body) in &want {
        for store in [&east, &west] {
            assert!(stored(&**store, key).await == *body, "{key} is not what it was");
        }
    }
    let same = yard.look("bucket.verify", "{ bucket: models, from: east, to: west, against: manifest, read_data: true }");
    assert_eq!((same.code, same.output()["objects"].as_u64()), (Some(0), Some(want.len() as u64)), "{}", same.said);
    // Nothing has to be copied again.
    let again = yard.look("bucket.backup", "{ bucket: models, from: east, to: west }");
    assert_eq!(again.output()["skipped"], want.len(), "{}", again.said);

    let depot = Depot::open(yard.server.open("s3://vault/models")).await;
    depot.is_whole().await;
    let back = yard.server.open("s3://back");
    let done = depot.restore_objects(&created.snapshot, back.clone()).await;
    assert_eq!((done.objects as usize, done.lost), (want.len(), Vec::new()));
    assert_eq!(object_keys(&*back, "").await, want.keys().cloned().collect::<Vec<_>>());
    for (key, body) in &want {
        assert!(stored(&*back, key).await == *body, "{key} came back as something else");
    }
}

/// Its volumes take a moment to be known again; what they hold is compared afterwards.
async fn readable(store: &dyn ObjectRead, key: &str) {
    let begin = Instant::now();
    while let Err(e) = async { store.get(key).await?.chunks.try_concat().await }.await {
        assert!(begin.elapsed() < Duration::from_secs(60), "{key} cannot be read: {e}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
