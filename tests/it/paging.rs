//! Listings that go over several pages. The fault proxy asks for pages of one, two or three, whatever the provider wants,
//! and the server really pages: nothing behind the first page may be missed, and nothing may come twice. What an emulator
//! lists as a whole whatever it is asked for, the proxy cuts as Amazon documents it; `docs/aws.md` says which that is.

use super::{
    fault_proxy::{FaultProxy, page_of},
    rds_stage::{EAST, Stage, Which},
    route53_servers::{NAME, client, provider, zone},
    stores_servers::{Server, ministack, moto, open_seaweedfs},
};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use muster::providers::port::*;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const SIZES: [usize; 3] = [1, 2, 3];

// ---------------------------------------------------------------- S3

const KEYS: [&str; 8] = ["a", "b/1", "b/2", "b/3", "c", "d/1", "d/2", "e"];

async fn all(store: &dyn ObjectRead, behind: Option<&str>) -> (Vec<String>, usize) {
    let mut page = match behind {
        Some(key) => store.list_behind("", key).await.unwrap(),
        None => store.list("", None).await.unwrap(),
    };
    let (mut keys, mut pages) = (Vec::new(), 1);
    loop {
        keys.extend(page.objects.into_iter().map(|object| object.key));
        let Some(next) = page.next else { return (keys, pages) };
        page = store.list("", Some(&next)).await.unwrap();
        pages += 1;
    }
}

async fn versions(store: &dyn ObjectRead) -> (Vec<(String, Option<String>, bool, bool)>, usize) {
    let (mut found, mut pages, mut mark) = (Vec::new(), 0, None);
    loop {
        let page = store.versions("", mark.as_ref()).await.unwrap();
        found.extend(page.versions.into_iter().map(|v| (v.key, v.version, v.marker, v.latest)));
        pages += 1;
        match page.next {
            Some(next) => mark = Some(next),
            None => return (found, pages),
        }
    }
}

async fn every_object_and_version_is_listed(server: Server) {
    server.bucket("paged", false).await;
    let clients = server.clients();
    let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let s3 = &clients.s3().await.unwrap().write;
    s3.put_bucket_versioning().bucket("paged").versioning_configuration(on).send().await.unwrap();
    let whole = server.open("s3://paged/below");
    let put = async |key: &str, body: &str| {
        whole.put(key, body.as_bytes().to_vec().into(), &BTreeMap::new(), false).await.unwrap();
    };
    for key in KEYS {
        put(key, key).await;
    }
    // Several versions of a key, a marker that hides one, and one that was written again behind its marker.
    put("b/2", "second").await;
    put("b/2", "third").await;
    whole.delete("c").await.unwrap();
    whole.delete("d/1").await.unwrap();
    put("d/1", "again").await;
    // Neighbours of the part of the bucket that is meant.
    let outside = server.open("s3://paged");
    for key in ["belo", "below.txt", "c"] {
        outside.put(key, b"x".to_vec().into(), &BTreeMap::new(), false).await.unwrap();
    }

    let there: Vec<&str> = KEYS.into_iter().filter(|key| *key != "c").collect();
    let (every, one_page) = versions(&*whole).await;
    assert_eq!((every.len(), every.iter().filter(|v| v.2).count(), one_page), (13, 2, 1), "{every:?}");
    let proxy = FaultProxy::before(server.port());
    let paged = server.open_through("s3://paged/below", proxy.port);
    for size in SIZES {
        proxy.pages_of(size);
        let (keys, pages) = all(&*paged, None).await;
        assert_eq!(keys, there, "in pages of {size}");
        assert!(pages >= there.len().div_ceil(size), "{pages} pages of {size}");
        for (n, key) in there.iter().enumerate() {
            assert_eq!(all(&*paged, Some(key)).await.0, there[n + 1..], "behind {key} in pages of {size}");
        }
        let (found, pages) = versions(&*paged).await;
        assert!(pages >= every.len().div_ceil(size), "{pages} pages of {size}");
        assert_eq!(found.len(), every.len(), "in pages of {size}: {found:?}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), every.iter().cloned().collect::<BTreeSet<_>>(), "in pages of {size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_lists_every_object_and_version_in_small_pages() {
    every_object_and_version_is_listed(moto().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ministack_lists_every_object_and_version_in_small_pages() {
    every_object_and_version_is_listed(ministack().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_lists_every_object_and_version_in_small_pages() {
    every_object_and_version_is_listed(open_seaweedfs().await).await;
}

/// MiniStack's marker of a version that has no name leads to the very version: who follows it walks in a circle.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_leads_back_to_itself_is_an_error_and_not_endless() {
    let server = ministack().await;
    server.bucket("plain", false).await;
    let whole = server.open("s3://plain");
    for key in ["a", "b"] {
        whole.put(key, b"x".to_vec().into(), &BTreeMap::new(), false).await.unwrap();
    }
    let proxy = FaultProxy::before(server.port());
    proxy.pages_of(1);
    let paged = server.open_through("s3://plain", proxy.port);
    let first = paged.versions("", None).await.unwrap();
    let second = paged.versions("", first.next.as_ref()).await.map(|page| page.versions);
    assert!(matches!(&second, Err(PortError::Refused(why)) if why.contains("leads back")), "{second:?}");
    // The objects themselves are listed all the same.
    assert_eq!(all(&*paged, None).await, (vec!["a".to_owned(), "b".to_owned()], 2));
}

// ---------------------------------------------------------------- Route 53

fn weighted(kind: &str, identifier: &str, value: &str) -> RoutedSet {
    let record = RecordSet { name: NAME.into(), kind: kind.into(), ttl_s: 5, values: vec![value.into()] };
    RoutedSet { set: Some(identifier.into()), routing: Routing::Weighted { weight: 10 }, health: None, alias: None, record }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_set_of_a_name_is_read_and_of_no_other() {
    let (server, dir) = (ministack().await, tempfile::tempdir().unwrap());
    let zone = zone(&client(&server.url()), "paged").await;
    let (whole, _) = provider(&server.url(), dir.path());
    let ours: Vec<RoutedSet> = (0..5).map(|n| weighted("A", &format!("set-{n}"), "127.0.0.2")).collect();
    // By its identifiers, the other kind of the same name comes before: its marker would lead back into ours.
    let others: Vec<RoutedSet> = (0..3).map(|n| weighted("AAAA", &format!("a-{n}"), "::1")).collect();
    for sets in [&ours, &others] {
        whole.replace(&zone, &[], sets, "paged").await.unwrap();
    }
    let proxy = FaultProxy::before(server.port());
    let (paged, _) = provider(&proxy.url(), dir.path());
    for size in 1..=9 {
        proxy.pages_of(size);
        let before = proxy.asked("/rrset");
        assert_eq!(paged.sets(&zone, NAME, "A").await.unwrap(), ours, "in pages of {size}");
        assert_eq!(proxy.asked("/rrset") - before, ours.len().div_ceil(size), "in pages of {size}");
        assert_eq!(paged.sets(&zone, NAME, "AAAA").await.unwrap(), others, "in pages of {size}");
    }
}

/// moto says that there is more of a name, and not where. A part of the sets is never taken for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn more_record_sets_that_nobody_can_get_at_are_an_error() {
    let (server, dir) = (moto().await, tempfile::tempdir().unwrap());
    let zone = zone(&client(&server.url()), "paged").await;
    let proxy = FaultProxy::before(server.port());
    let (paged, _) = provider(&proxy.url(), dir.path());
    let ours: Vec<RoutedSet> = (0..3).map(|n| weighted("A", &format!("set-{n}"), "127.0.0.2")).collect();
    paged.replace(&zone, &[], &ours, "paged").await.unwrap();
    assert_eq!(paged.sets(&zone, NAME, "A").await.unwrap(), ours);
    proxy.pages_of(2);
    let found = paged.sets(&zone, NAME, "A").await;
    assert!(matches!(&found, Err(PortError::Refused(why)) if why.contains("not how to go on")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_is_found_on_whichever_page_it_is() {
    let (server, dir) = (ministack().await, tempfile::tempdir().unwrap());
    let proxy = FaultProxy::before(server.port());
    // As Python writes them, the SDK cannot read them.
    proxy.mend("/healthcheck", |_, body| body.replace(">True<", ">true<").replace(">False<", ">false<"));
    let (paged, _) = provider(&proxy.url(), dir.path());
    let spec = HealthSpec {
        scheme: "https".into(),
        host: "east.api.scoring.test".into(),
        port: 443,
        path: "/healthz".into(),
        inverted: true,
        every_s: 10,
        looks: 2,
        disabled: false,
    };
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(paged.create_health_check(&format!("reference-{n}"), &spec).await.unwrap());
    }
    for size in SIZES {
        proxy.pages_of(size);
        for (n, check) in made.iter().enumerate() {
            assert_eq!(paged.health_check_of(&format!("reference-{n}")).await.unwrap().as_ref(), Some(check), "in pages of {size}");
        }
        let before = proxy.asked("GET /2013-04-01/healthcheck?");
        assert_eq!(paged.health_check_of("reference-9").await.unwrap(), None, "in pages of {size}");
        assert_eq!(proxy.asked("GET /2013-04-01/healthcheck?") - before, made.len().div_ceil(size), "in pages of {size}");
        // Who makes it again gets the same one.
        assert_eq!(paged.create_health_check("reference-4", &spec).await.unwrap(), made[4]);
    }
}

fn param<'a>(request: &'a str, name: &str) -> &'a str {
    let line = request.split_whitespace().nth(1).unwrap_or_default();
    let params = line.split_once('?').map_or("", |(_, query)| query).split('&');
    params.filter_map(|one| one.split_once('=')).find(|(n, _)| *n == name).map_or("", |(_, value)| value)
}

/// moto lists all zones of a name at once; the proxy cuts its list as Amazon does.
#[tokio::test(flavor = "multi_thread")]
async fn every_zone_of_a_name_is_told() {
    let (server, dir) = (moto().await, tempfile::tempdir().unwrap());
    let dns = client(&server.url());
    let mut zones = Vec::new();
    for n in 0..5 {
        zones.push(zone(&dns, &format!("zone-{n}")).await);
    }
    let proxy = FaultProxy::before(server.port());
    proxy.mend("/hostedzonesbyname", |request, body| {
        let from = param(request, "hostedzoneid");
        let (body, next) = page_of(&body, "HostedZone", 2, |_, one| from.is_empty() || one.contains(&format!("/{from}<")));
        let Some((_, next)) = next else { return body };
        let id = next.split_once("/hostedzone/").unwrap().1.split('<').next().unwrap();
        let more = format!(
            "<IsTruncated>true</IsTruncated><NextDNSName>scoring.test.</NextDNSName><NextHostedZoneId>{id}</NextHostedZoneId></ListHostedZonesByNameResponse>"
        );
        body.replace("<IsTruncated>false</IsTruncated>", "").replace("</ListHostedZonesByNameResponse>", &more)
    });
    let (paged, _) = provider(&proxy.url(), dir.path());
    let found = paged.sets("scoring.test", NAME, "A").await;
    let Err(PortError::Config(text)) = found else { panic!("{found:?}") };
    assert!(text.contains("5 hosted zones") && zones.iter().all(|id| text.contains(id.as_str())), "{text}");
    assert_eq!(proxy.asked("/hostedzonesbyname"), 3);
}

/// MiniStack names the last zone of a page as the first of the next one.
#[tokio::test(flavor = "multi_thread")]
async fn zones_that_lead_back_to_themselves_are_an_error_and_not_endless() {
    let (server, dir) = (ministack().await, tempfile::tempdir().unwrap());
    let dns = client(&server.url());
    for reference in ["one", "two"] {
        zone(&dns, reference).await;
    }
    let proxy = FaultProxy::before(server.port());
    proxy.pages_of(1);
    let (paged, _) = provider(&proxy.url(), dir.path());
    let found = tokio::time::timeout(Duration::from_secs(20), paged.sets("scoring.test", NAME, "A")).await.unwrap();
    assert!(matches!(&found, Err(PortError::Refused(why)) if why.contains("leads back")), "{found:?}");
}

// ---------------------------------------------------------------- RDS

/// Neither emulator lists snapshots in pages; the proxy cuts their lists as Amazon does. The newest are on the last page.
#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_read_and_pruned_and_the_newest_is_kept() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        let east = json!({ "database": "orders", "region": "east" });
        let mut newest = String::new();
        for n in 0..5 {
            let taken = stage.step("database.snapshot", &format!("snapshot {n}"), east.clone()).await.unwrap();
            newest = taken["snapshot"].as_str().unwrap().to_owned();
            // Their times count in whole seconds.
            tokio::time::sleep(Duration::from_millis(1_100)).await;
        }
        let ids = async || {
            let found = stage.instances("east").snapshots_of("orders-east").await.unwrap();
            found.into_iter().map(|s| s.id).collect::<Vec<_>>()
        };
        let whole = ids().await;
        assert!(whole.len() >= 5, "{which:?}: {whole:?}");
        stage.proxy.mend("Action=DescribeDBSnapshots", |request, body| {
            if request.contains("DBSnapshotIdentifier=") {
                return body;
            }
            let marker = request.split_once("&Marker=").map_or("0", |(_, rest)| rest.split('&').next().unwrap());
            let from: usize = marker.parse().unwrap();
            let (body, next) = page_of(&body, "DBSnapshot", 2, |n, _| n == from);
            match next {
                Some((next, _)) => body.replace("</DBSnapshots>", &format!("</DBSnapshots><Marker>{next}</Marker>")),
                None => body,
            }
        });
        let before = stage.proxy.asked("Action=DescribeDBSnapshots");
        assert_eq!(ids().await, whole, "{which:?}");
        assert_eq!(stage.proxy.asked("Action=DescribeDBSnapshots") - before, whole.len().div_ceil(2), "{which:?}");
        let with = json!({ "database": "orders", "region": "east", "keep_last": 1 });
        let pruned = stage.step("rds.prune_snapshots", "prune", with).await.unwrap();
        assert_eq!(pruned["deleted"].as_array().unwrap().len(), 4, "{which:?}: {pruned}");
        assert!(stage.instances("east").snapshot(&newest).await.unwrap().is_some(), "{which:?}");
        assert_eq!(stage.count(EAST).await.1, 1, "{which:?}");
    }
}
