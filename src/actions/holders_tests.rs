//! Three servers that each hold a zone: one in the region that is lost, one in that which takes over, one outside of both.

use super::super::{
    contract_tests::{Bench, Fixture, estate},
    dns_lower_ttl::LowerTtl,
    dns_shift::Shift,
    readiness_dns::{self, Dns},
};
use super::*;
use crate::providers::{
    clock::Clock,
    sim::{SimWorld, WriteFault, held_zone},
};
use serde_json::json;

const EAST: &str = "127.0.0.2";
const WEST: &str = "127.0.0.3";
const SERVERS: [&str; 3] = ["ns1", "ns2", "ns3"];

fn record(address: &str) -> RecordSet {
    RecordSet { name: "twin.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec![address.into()] }
}

fn key(server: &str) -> (String, String, String) {
    (held_zone("scoring.test", server), "twin.scoring.test".into(), "A".into())
}

/// The name at east on all three; with `lost`, in an unplanned failover out of it.
fn bench(to: &str, lost: Option<&str>) -> Bench {
    let fixture = Fixture::new(json!({ "endpoint": "twin", "to": to })).set(|world| {
        let now = world.time().now();
        let mut state = world.lock();
        for server in SERVERS {
            state.records.insert(key(server), record(EAST));
        }
        state.visible.insert("twin.scoring.test".into(), vec![(now, Some(record(EAST)))]);
    });
    let mut estate = estate();
    let twin = json!({
        "name": "twin.scoring.test", "provider": "rfc2136", "zone": "scoring.test", "ttl": "5s",
        "targets": { "east": EAST, "west": WEST }, "resolvers": ["127.0.0.1:53"],
        "update": { "servers": [{ "server": "ns1", "region": "east" }, { "server": "ns2", "region": "west" }, { "server": "ns3" }] },
    });
    estate.endpoints.insert("twin".into(), serde_json::from_value(twin).expect("an endpoint"));
    let mut bench = Bench::within(SimWorld::new(std::sync::Arc::new(estate)), &fixture);
    bench.read.lost = lost.map(RegionName::from);
    let run = bench.read.run.to_string();
    bench.another_run(&run);
    bench
}

/// Where each of the three points.
fn there(bench: &Bench) -> [String; 3] {
    SERVERS.map(|server| bench.world.lock().records.get(&key(server)).map_or("nowhere".into(), |record| record.values.join(",")))
}

fn code(error: &ApplyError) -> (&'static str, String, String) {
    match error {
        ApplyError::Definite(f) => ("definite", f.code.clone(), f.message.clone()),
        ApplyError::Retry { failure: f, .. } => ("retry", f.code.clone(), f.message.clone()),
        ApplyError::Unknown(f) => ("unknown", f.code.clone(), f.message.clone()),
    }
}

#[tokio::test]
async fn each_server_is_written_and_put_back() {
    let bench = bench("west", None);
    let intent = bench.intent::<Shift>().await;
    let out = bench.run::<Shift>().await.expect("shifted");
    assert_eq!(there(&bench), [WEST; 3]);
    let change = out.spread.change.expect("a change");
    assert!(SERVERS.iter().all(|server| change.contains(&format!("{server}: C"))), "{change}");
    assert_eq!((out.left_out.len(), Shift::warnings(&bench.run::<Shift>().await.expect("nothing to do")).len()), (0, 0));
    Shift::undo(&bench.write, &intent, None).await.expect("undone");
    assert_eq!(there(&bench), [EAST; 3]);
}

/// What was on each comes back to each, also where they did not have the same.
#[tokio::test]
async fn what_undo_gives_back_is_what_each_had() {
    let bench = bench("west", None);
    bench.world.lock().records.insert(key("ns2"), record(WEST));
    bench.world.lock().records.insert(key("ns3"), RecordSet { ttl_s: 60, ..record(EAST) });
    let prepared = Shift::prepare(&bench.read, serde_json::from_value(json!({ "endpoint": "twin", "to": "west" })).unwrap()).await;
    let prepared = prepared.map_err(|refusal| refusal.failure).expect("prepared");
    assert!(prepared.notes.iter().any(|note| note.contains("do not have the same: ns1 has")), "{:?}", prepared.notes);
    assert_eq!(prepared.change.len(), 2, "ns2 is right already: {:?}", prepared.change);
    Shift::apply(&bench.write, &prepared.intent).await.expect("shifted");
    assert_eq!(there(&bench), [WEST; 3]);
    Shift::undo(&bench.write, &prepared.intent, None).await.expect("undone");
    assert_eq!(there(&bench), [EAST, WEST, EAST]);
    assert_eq!(bench.world.lock().records[&key("ns3")].ttl_s, 60);
}

#[tokio::test]
async fn who_refuses_after_another_took_it_leaves_it_nowhere() {
    for server in ["ns2", "ns3"] {
        let bench = bench("west", None);
        let intent = bench.intent::<Shift>().await;
        bench.world.lock().refusing.insert(held_zone("scoring.test", server));
        let error = Shift::apply(&bench.write, &intent).await.expect_err("it refuses");
        let (kind, _, message) = code(&error);
        assert!(kind == "definite" && message.contains(server), "{error:?}");
        assert_eq!(there(&bench), [EAST; 3], "{server}: all or none");
        Shift::undo(&bench.write, &intent, None).await.expect("nothing is left to undo");
        assert_eq!(there(&bench), [EAST; 3]);
    }
}

/// Where it cannot be taken back either, nobody says that nothing was changed; undoing tries again.
#[tokio::test]
async fn what_could_not_be_taken_back_is_said() {
    let bench = bench("west", None);
    let intent = bench.intent::<Shift>().await;
    bench.world.lock().refusing.insert(held_zone("scoring.test", "ns2"));
    let writes = bench.world.writes();
    // ns1 takes it, ns2 refuses, and ns1 is gone when it shall give it back.
    bench.world.fault(writes + 2, WriteFault::Unreachable);
    let error = Shift::apply(&bench.write, &intent).await.expect_err("it refuses");
    let (kind, word, message) = code(&error);
    assert!(kind == "unknown" && word == "half_done" && message.contains("ns1 has taken the change"), "{error:?}");
    assert_eq!(there(&bench), [WEST, EAST, EAST]);
    Shift::undo(&bench.write, &intent, None).await.expect("undone");
    assert_eq!(there(&bench), [EAST; 3]);
}

#[tokio::test]
async fn a_crash_between_two_servers_is_seen_and_completed() {
    for crash in 0..3 {
        let bench = bench("west", None);
        let intent = bench.intent::<Shift>().await;
        let writes = bench.world.writes();
        bench.world.fault(writes + crash, WriteFault::AppliedButLost);
        let (kind, ..) = code(&Shift::apply(&bench.write, &intent).await.expect_err("the answer is lost"));
        assert_eq!(kind, "unknown", "{crash}");
        let half = there(&bench);
        assert_eq!(half.iter().filter(|at| *at == WEST).count() as u64, crash + 1, "{half:?}");
        let seen = Shift::observe(&bench.read, &intent).await;
        assert!(matches!(seen, Seen::Absent) || crash == 2, "{crash}: {seen:?}");
        Shift::apply(&bench.write, &intent).await.expect("the same intent once more completes it");
        assert_eq!(there(&bench), [WEST; 3]);
        Shift::undo(&bench.write, &intent, None).await.expect("undone");
        assert_eq!(there(&bench), [EAST; 3], "{crash}");
    }
}

/// The region is lost with its server: the others are changed, and that one is named, with a warning.
#[tokio::test]
async fn a_failover_leaves_out_who_is_lost_and_says_so() {
    let bench = bench("west", Some("east")).down("east");
    let out = bench.run::<Shift>().await.expect("shifted");
    assert_eq!(there(&bench), [EAST, WEST, WEST]);
    let told: Vec<(&str, &str)> = out.left_out.iter().map(|left| (left.server.as_str(), left.region.as_str())).collect();
    assert_eq!(told, [("ns1", "east")]);
    let warnings = Shift::warnings(&out);
    assert!(warnings.len() == 1 && warnings[0].contains("ns1 in `east`") && warnings[0].contains("old answer"), "{warnings:?}");
    // It is back, with the old answer: the same step once more brings it in line.
    bench.world.lock().down.clear();
    let again = bench.run::<Shift>().await.expect("in line");
    assert_eq!((there(&bench), again.left_out.len()), ([WEST, WEST, WEST].map(str::to_owned), 0));
}

/// It went away between the plan and the change, or after it: neither holds the failover up.
#[tokio::test]
async fn a_server_that_is_lost_meanwhile_is_left_out_too() {
    let bench = bench("west", Some("east"));
    let intent = bench.intent::<Shift>().await;
    bench.world.lock().down.insert("east".into());
    Shift::apply(&bench.write, &intent).await.expect("the others have it");
    let Seen::Pending { .. } = Shift::observe(&bench.read, &intent).await else { panic!("it is not in sync yet") };
    bench.world.time().sleep(Duration::from_secs(6)).await;
    let Seen::Done(out) = Shift::observe(&bench.read, &intent).await else { panic!("it is done") };
    assert_eq!((there(&bench), out.left_out.len()), ([EAST, WEST, WEST].map(str::to_owned), 1));
    // What cannot be seen is not said to be undone; the others are.
    assert_eq!(code(&Shift::undo(&bench.write, &intent, None).await.expect_err("it cannot be seen")).0, "retry");
    assert_eq!(there(&bench), [EAST; 3]);
    // A server that still answers is changed like any other.
    let bench = self::bench("west", Some("east"));
    assert_eq!(bench.run::<Shift>().await.expect("shifted").left_out, []);
    assert_eq!(there(&bench), [WEST; 3]);
}

/// Nothing is left out of a planned change, nor a server elsewhere than in the lost region, nor the last one.
#[tokio::test]
async fn who_is_needed_is_not_left_out() {
    assert_eq!(bench("west", None).down("east").refused::<Shift>().await, "unreachable");
    assert_eq!(bench("west", Some("east")).down("west").refused::<Shift>().await, "unreachable");
    let bench = bench("west", Some("east")).down("nowhere");
    assert_eq!(bench.refused::<Shift>().await, "unreachable");
    assert_eq!(there(&bench), [EAST; 3]);
}

#[tokio::test]
async fn a_ttl_is_lowered_at_each() {
    let bench = bench("west", None);
    let input = json!({ "endpoint": "twin", "ttl": "1s" });
    let intent =
        LowerTtl::prepare(&bench.read, serde_json::from_value(input).unwrap()).await.map_err(|r| r.failure).expect("prepared").intent;
    LowerTtl::apply(&bench.write, &intent).await.expect("lowered");
    let ttls = |bench: &Bench| SERVERS.map(|server| bench.world.lock().records[&key(server)].ttl_s);
    assert_eq!(ttls(&bench), [1; 3]);
    LowerTtl::undo(&bench.write, &intent, None).await.expect("undone");
    assert_eq!(ttls(&bench), [5; 3]);
}

/// Each server's records are looked at before the event.
#[tokio::test]
async fn readiness_asks_each_server() {
    let bench = bench("west", None).down("east");
    bench.world.lock().records.insert(key("ns3"), record("127.0.0.9"));
    let name = EndpointName::from("twin");
    let found = readiness_dns::look(&bench.read, Dns::Records, &name, &bench.read.estate.endpoints[&name]).await;
    let state =
        |what: &str| found.iter().find(|found| found.what == format!("endpoint/twin record at {what}")).map(|found| found.state.as_str());
    assert_eq!(SERVERS.map(state), [Some("unknown"), Some("expected"), Some("strange")], "{found:?}");
}
