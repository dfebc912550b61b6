//! A canary by the real program: weights at an emulator of Route 53 that nobody of Muster wrote, a gate of a real
//! Prometheus, and a region that is asked past DNS.

use super::{
    fault_proxy::{Fault, FaultProxy},
    pg::free_port,
    place::Place,
    prometheus::{Prometheus, Service},
    stores_servers::ministack,
};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_route53::{
    Client,
    config::Credentials,
    types::{Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub const EAST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub const WEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
pub const NAME: &str = "api.scoring.test";

pub fn client(url: &str) -> Client {
    let keys = Credentials::new("test", "testtest", None, None, "test");
    let config = aws_sdk_route53::Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    Client::from_conf(config.endpoint_url(url).credentials_provider(keys).build())
}

/// A zone with a weighted record for each region: its identifier.
pub async fn zone(dns: &Client) -> String {
    let made = dns.create_hosted_zone().name("scoring.test").caller_reference("once").send().await.unwrap();
    let id = made.hosted_zone().unwrap().id().trim_start_matches("/hostedzone/").to_owned();
    let changes = [("east", EAST, 100), ("west", WEST, 0)].map(|(set, address, weight)| {
        let value = ResourceRecord::builder().value(address.to_string()).build().unwrap();
        let record = ResourceRecordSet::builder().name(NAME).r#type(RrType::A).ttl(5).set_identifier(set).weight(weight);
        Change::builder().action(ChangeAction::Create).resource_record_set(record.resource_records(value).build().unwrap()).build().unwrap()
    });
    let batch = ChangeBatch::builder().set_changes(Some(changes.to_vec())).build().unwrap();
    dns.change_resource_record_sets().hosted_zone_id(&id).change_batch(batch).send().await.unwrap();
    id
}

/// The weights of east and west.
pub async fn weights(dns: &Client, zone: &str) -> (i64, i64) {
    let all = dns.list_resource_record_sets().hosted_zone_id(zone).send().await.unwrap();
    let of = |set: &str| all.resource_record_sets().iter().find(|r| r.set_identifier() == Some(set)).unwrap().weight().unwrap();
    (of("east"), of("west"))
}

/// What answers in west: with this status, and how often it was asked.
struct West {
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

fn west(port: u16) -> West {
    let listener = TcpListener::bind((WEST, port)).unwrap();
    let west = West { status: Arc::new(AtomicU16::new(200)), asked: Arc::default() };
    let (status, asked) = (west.status.clone(), west.asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            asked.fetch_add(1, Ordering::Relaxed);
            let head = format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status.load(Ordering::Relaxed));
            let _ = stream.write_all(head.as_bytes());
        }
    });
    west
}

/// The estate of an endpoint in this zone, whose API answers there.
fn estate(place: &Place, zone: &str, url: &str, port: u16) {
    place.file("id", "test").file("secret", "testtest");
    place.file(
        "muster.yaml",
        &format!(
            "regions: {{ east: {{}}, west: {{}} }}\nendpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: {zone}\n    ttl: 5s\n\
             \x20   targets: {{ east: {EAST}, west: {WEST} }}\n    port: {port}\n    aws:\n      region: us-east-1\n      endpoints: {{ route53: \"{url}\" }}\n\
             \x20     credentials: {{ access_key_id: {{ file: @/id }}, secret_access_key: {{ file: @/secret }} }}\n",
        ),
    );
}

/// Route 53 says PENDING until all of its servers have a change. Until then nothing bakes, and nothing is done; not the
/// last stage either. MiniStack says it once; here it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_is_watched_only_when_every_server_has_it() {
    let server = ministack().await;
    let dns = client(&server.url());
    let id = zone(&dns).await;
    let (proxy, port) = (FaultProxy::before(server.port()), free_port());
    let pending = Arc::new(AtomicBool::new(true));
    let told = pending.clone();
    proxy.mend("/2013-04-01/change/", move |_, body| if told.load(Ordering::Relaxed) { body.replace("INSYNC", "PENDING") } else { body });
    let west = west(port);
    let place = Place::new();
    estate(&place, &id, &proxy.url(), port);
    place.book("  - id: canary\n    uses: traffic.shift\n    on_failure: stop\n    with: { endpoint: inference, to: west, stages: [100], bake: 1s, every: 100ms, paths: [/healthz] }\n");

    let mut running = place.start(&["run", "book.yaml", "--live", "--json"]);
    while weights(&dns, &id).await != (0, 100) {
        assert!(running.ended().is_none(), "{}", running.told());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let set = Instant::now();
    while set.elapsed() < Duration::from_secs(3) {
        assert!(running.ended().is_none(), "it is done, and the change is PENDING: {}", running.told());
        assert_eq!(west.asked.load(Ordering::Relaxed), 0, "it is watched, and nobody can have got there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pending.store(false, Ordering::Relaxed);
    let output = tokio::task::block_in_place(|| running.end()).expect(0).step("canary")["output"].clone();
    let stage = &output["stages"][0];
    assert!(stage["in_sync_ms"].as_u64().unwrap() >= 2_900 && stage["baked_ms"].as_u64().unwrap() >= 1_000, "{output}");
    assert!(west.asked.load(Ordering::Relaxed) >= 2 && proxy.asked("/2013-04-01/change/") >= 3);

    // One that never spreads is taken back, within the step's time.
    pending.store(true, Ordering::Relaxed);
    place.book("  - id: canary\n    uses: traffic.shift\n    on_failure: stop\n    timeout: 4s\n    with: { endpoint: inference, to: east, stages: [100], bake: 1s, every: 100ms, paths: [/healthz] }\n");
    let failure = tokio::task::block_in_place(|| place.muster(&["run", "book.yaml", "--live"])).expect(1).step("canary")["failure"].clone();
    assert_eq!(failure["code"], "not_in_sync", "{failure}");
    assert_eq!(weights(&dns, &id).await, (0, 100), "every weight is as it was: {failure}");
}

/// Killed while Route 53 has changed the weights and the answer is on its way, at the first stage and at the last: what goes on
/// finds the stage there, learns when it has spread, and bakes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_whose_answer_died_with_the_process_bakes_all_the_same() {
    let server = ministack().await;
    let dns = client(&server.url());
    let id = zone(&dns).await;
    let (proxy, port) = (FaultProxy::before(server.port()), free_port());
    let west = west(port);
    let place = Place::new();
    estate(&place, &id, &proxy.url(), port);
    let batch = format!("POST /2013-04-01/hostedzone/{id}/rrset");
    // Nothing answers in east, so nothing is watched on the way back.
    let watched = "to: west, stages: [50, 100], bake: 1s, every: 100ms, paths: [/healthz]";
    for (last, with, end) in [(false, watched, (0, 100)), (true, "to: east, stages: [50, 100], bake: 0s", (100, 0))] {
        place
            .book(&format!("  - id: canary\n    uses: traffic.shift\n    on_failure: stop\n    with: {{ endpoint: inference, {with} }}\n"));
        let (before, asked) = (proxy.passed(&batch), west.asked.load(Ordering::Relaxed));
        if last {
            proxy.fault(&batch, 1, Fault::Delay(Duration::ZERO));
        }
        proxy.fault(&batch, 1, Fault::HoldAfter);
        let said = tokio::task::block_in_place(|| {
            let running = place.start(&["run", "book.yaml", "--live", "--json"]);
            place.until_told("the weights are changed", || proxy.holding() == 1, || running.told());
            running.signal("KILL");
            running.end();
            proxy.let_go();
            place.muster(&["resume"])
        });
        let output = said.expect(0).step("canary")["output"].clone();
        assert_eq!(weights(&dns, &id).await, end, "{output}");
        assert_eq!(proxy.passed(&batch) - before, 3, "two stages, and the one that was found once more, as it stood: {output}");
        let stages = output["stages"].as_array().unwrap();
        assert!(stages.last().is_some_and(|stage| stage["percent"] == 100), "{output}");
        assert_eq!(west.asked.load(Ordering::Relaxed) > asked, !last, "each stage is watched: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_moves_in_stages_and_back_when_a_gate_closes() {
    let server = ministack().await;
    let (url, port) = (server.url(), free_port());
    let dns = client(&url);
    let id = zone(&dns).await;
    let (service, status) = (Service::new(), west(port).status);
    service.tells("0.002");
    let prometheus = Prometheus::of(&service);
    let place = Place::new();
    estate(&place, &id, &url, port);
    let canary = |stages: &str, bake: &str, to: &str, rest: &str| {
        let gates = format!("      metrics: {}\n      gates: {{ error_rate: {{ query: error_rate, max: 0.01 }} }}\n", prometheus.url);
        place.file(
            "canary.yaml",
            &format!("runbook: canary\nsteps:\n  - id: canary\n    uses: traffic.shift\n    on_failure: stop\n    with:\n      endpoint: inference\n      to: {to}\n      stages: {stages}\n      bake: {bake}\n      every: 100ms\n{gates}{rest}"),
        );
    };
    let run = || tokio::task::block_in_place(|| place.muster(&["run", "canary.yaml", "--live"]));
    tokio::task::block_in_place(|| {
        place.file("wait.yaml", &format!("runbook: wait\nsteps:\n  - id: gate\n    uses: metrics.check\n    on_failure: stop\n    with: {{ url: {}, gates: {{ it: {{ query: error_rate, max: 1 }} }} }}\n", prometheus.url));
        place.until("the first figure is there", || place.muster(&["run", "wait.yaml"]).code == Some(0));
    });

    // A gate that closes while five percent are there.
    canary("[5, 50, 100]", "30s", "west", "");
    let mut running = place.start(&["run", "canary.yaml", "--live", "--json"]);
    while weights(&dns, &id).await != (95, 5) {
        assert!(running.ended().is_none(), "{}", running.told());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    service.tells("0.3");
    let said = tokio::task::block_in_place(|| running.end()).expect(1);
    let failure = said.step("canary")["failure"].clone();
    assert_eq!(failure["code"], "metrics_out_of_bounds", "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("at 5 %"), "{failure}");
    assert_eq!(weights(&dns, &id).await, (100, 0), "every weight is as it was");
    service.tells("0.002");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;

    // The region itself is ill, whatever the figures say.
    status.store(503, Ordering::Relaxed);
    canary("[5, 100]", "1s", "west", "      paths: [/healthz]\n");
    let failure = run().expect(1).step("canary")["failure"].clone();
    assert!(failure["message"].as_str().unwrap().contains("status 503"), "{failure}");
    assert_eq!(weights(&dns, &id).await, (100, 0));
    status.store(200, Ordering::Relaxed);

    // Killed in the middle of the second stage: what goes on finds it there.
    canary("[5, 50, 100]", "2s", "west", "      paths: [/healthz]\n");
    let mut running = place.start(&["run", "canary.yaml", "--live", "--json"]);
    while weights(&dns, &id).await != (50, 50) {
        assert!(running.ended().is_none(), "{}", running.told());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    running.signal("KILL");
    tokio::task::block_in_place(|| running.end());
    let said = tokio::task::block_in_place(|| place.muster(&["resume"])).expect(0);
    let output = said.step("canary")["output"].clone();
    assert_eq!(weights(&dns, &id).await, (0, 100));
    assert_eq!(output["percent"], 100, "{output}");
    let percents: Vec<u64> = output["stages"].as_array().unwrap().iter().map(|stage| stage["percent"].as_u64().unwrap()).collect();
    assert_eq!(percents, [5, 50, 100], "each baked once to its end: {output}");
}
