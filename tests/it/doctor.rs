//! `muster doctor --permissions` on S3 and Route 53: everything that reads is really asked, what is denied is told as denied and
//! as nothing else, and only what changes something stays unasked. The emulators look at no policy: what denies is the proxy.

use super::{
    fault_proxy::{Fault, FaultProxy},
    place::Place,
    route53_servers::{EAST, NAME, WEST, client, zone},
    stores_servers::{Server, ministack, moto},
};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;

const BOOK: &str = "  - id: copy
    uses: bucket.backup
    with: { bucket: models, from: east, to: west }
  - id: compare
    uses: bucket.verify
    with: { bucket: models, from: east, to: west }
  - id: prepare
    uses: dns.prepare
    with: { endpoint: inference }
  - id: ready
    uses: readiness.check
    with: { region: west }
";

/// Two buckets, and a zone that the estate knows by its name; all of it by way of the proxy.
async fn desk(server: &Server, proxy: &FaultProxy) -> Place {
    for bucket in ["models-east", "models-west"] {
        server.bucket(bucket, false).await;
        // Of a bucket that never kept any an emulator may say something that the SDK cannot read.
        let versions = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let clients = server.clients();
        let s3 = &clients.s3().await.unwrap().write;
        s3.put_bucket_versioning().bucket(bucket).versioning_configuration(versions).send().await.unwrap();
        let store = server.open(&format!("s3://{bucket}"));
        store.put("model.onnx", Bytes::from_static(b"weights"), &BTreeMap::new(), false).await.unwrap();
    }
    zone(&client(&server.url()), "once").await;
    let place = Place::new();
    place.file("id", "test").file("secret", "testtest");
    let aws = |region: &str, name: &str| {
        let keys = "credentials: { access_key_id: { file: @/id }, secret_access_key: { file: @/secret } }";
        format!("{{ region: {region}, endpoints: {{ {name}: \"{}\" }}, {keys} }}", proxy.url())
    };
    place.file(
        "muster.yaml",
        &format!(
            "regions:\n  east: {{ aws: {east} }}\n  west: {{ aws: {west} }}\nbuckets:\n  models: {{ east: {{ bucket: models-east }}, west: {{ bucket: models-west }} }}\n\
             endpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: scoring.test\n    ttl: 5s\n    targets: {{ east: {EAST}, west: {WEST} }}\n\
             \x20   aws: {dns}\n    standby: {{ region: west, bucket: models }}\n",
            east = aws("us-east-1", "s3"),
            west = aws("us-east-1", "s3"),
            dns = aws("us-east-1", "route53"),
        ),
    );
    place.book(BOOK);
    place
}

/// What each permission was found to be, with the places where it was tried.
fn outcomes(last: &Value) -> BTreeMap<String, Vec<(String, String)>> {
    let mut all: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for check in last["checks"].as_array().unwrap() {
        let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        all.entry(text("permission")).or_default().push((text("place"), text("outcome")));
    }
    all
}

/// `untold`: what the server says nothing of; `garbled`: what it answers so that the SDK cannot read it.
async fn asked(server: Server, untold: &[&str], garbled: &[&str]) {
    let proxy = FaultProxy::before(server.port());
    let place = desk(&server, &proxy).await;
    let doctor = || tokio::task::block_in_place(|| place.muster(&["doctor", "--permissions", "book.yaml"]));
    let said = doctor().expect(0).last();
    let all = outcomes(&said);
    for name in [
        "s3:ListBucket",
        "s3:ListBucketVersions",
        "s3:GetBucketVersioning",
        "s3:GetBucketObjectLockConfiguration",
        "s3:GetReplicationConfiguration",
        "s3:GetObject",
        "s3:GetObjectAttributes",
        "route53:ListResourceRecordSets",
        "route53:ListHostedZonesByName",
        "route53:ListHealthChecks",
        "route53:GetHealthCheck",
        "route53:GetHealthCheckStatus",
        "route53:GetChange",
    ] {
        let found = all.get(name).unwrap_or_else(|| panic!("{name} in {all:?}"));
        let places = if name.starts_with("s3:") { 2 } else { 1 };
        assert_eq!(found.len(), places, "{name} was tried wherever it is needed: {found:?}");
        assert!(
            untold.contains(&name) || garbled.contains(&name) || found.iter().all(|(_, outcome)| outcome == "allowed"),
            "{name}: {found:?} in {said}"
        );
    }
    for name in ["s3:PutObject", "s3:AbortMultipartUpload", "route53:ChangeResourceRecordSets", "route53:CreateHealthCheck"] {
        assert_eq!(all[name], [(String::new(), "not_checked".to_owned())], "{name}");
    }

    // What is denied, and nothing else.
    for (has, denied) in [
        ("models-west/?versioning", "s3:GetBucketVersioning"),
        ("models-east/?replication", "s3:GetReplicationConfiguration"),
        ("models-west/?object-lock", "s3:GetBucketObjectLockConfiguration"),
        ("models-east/model.onnx?x-id=GetObject", "s3:GetObject"),
        ("/2013-04-01/hostedzonesbyname", "route53:ListHostedZonesByName"),
        ("/rrset?", "route53:ListResourceRecordSets"),
        ("/2013-04-01/healthcheck?", "route53:ListHealthChecks"),
        ("/2013-04-01/change/", "route53:GetChange"),
    ] {
        if garbled.contains(&denied) {
            continue;
        }
        proxy.fault(has, usize::MAX, Fault::Deny);
        let said = doctor().expect(1);
        let found = outcomes(&said.last());
        let refused: Vec<&String> =
            found.iter().filter(|(_, all)| all.iter().any(|(_, outcome)| outcome == "denied")).map(|(name, _)| name).collect();
        assert_eq!(refused, [denied], "{has} was denied: {}", said.out);
        let elsewhere = found[denied].iter().filter(|(_, outcome)| outcome == "allowed").count();
        assert_eq!(elsewhere, found[denied].len() - 1, "{denied} in one place alone: {:?}", found[denied]);
        proxy.heal();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tries_what_reads_on_ministack() {
    asked(ministack().await, &["route53:GetHealthCheckStatus", "route53:GetChange"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tries_what_reads_on_moto() {
    asked(moto().await, &["route53:GetHealthCheckStatus", "route53:GetChange"], &["s3:GetBucketVersioning"]).await;
}
