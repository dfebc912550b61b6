//! Preparing the data-plane path: what is made, what is kept, what is refused, and that undoing leaves nothing.

use super::*;
use crate::actions::contract_tests::{Bench, Fixture, steady_sets};
use crate::providers::sim::SimWorld;
use serde_json::json;

const NAME: &str = "steady.scoring.test";

fn key() -> (String, String, String) {
    ("scoring.test".into(), NAME.into(), "A".into())
}

fn simple(address: &str) -> RecordSet {
    RecordSet { name: NAME.into(), kind: "A".into(), ttl_s: 60, values: vec![address.into()] }
}

fn only(world: &SimWorld, record: RecordSet) {
    let now = crate::providers::clock::Clock::now(&*world.time());
    let mut state = world.lock();
    state.routed.clear();
    state.checks.clear();
    state.objects.retain(|(_, _, key), _| !key.starts_with(".muster/switch/"));
    state.visible.insert(record.name.clone(), vec![(now, Some(record.clone()))]);
    state.records.insert(key(), record);
}

/// The name has one simple record, and nothing else is there.
pub fn unprepared(world: &SimWorld) {
    only(world, simple("127.0.0.2"));
}

#[tokio::test]
async fn records_and_check_are_made_and_undone_without_a_trace() {
    let bench = Bench::new(&fixture());
    let before = bench.world.lock().essence();
    let intent = bench.intent::<Prepare>().await;
    let out = bench.run::<Prepare>().await.expect("prepared");
    assert!(out.change.is_some() && out.health_check.starts_with("muster-0123456789abcdef"), "{out:?}");
    assert_eq!(out.switch, "https://models-west.s3.us-west-2.amazonaws.com/.muster/switch/steady");
    {
        let state = bench.world.lock();
        assert_eq!(state.routed[&key()], steady_sets(&out.health_check));
        let spec = &state.checks[&out.health_check];
        assert!(spec.inverted && spec.path == "/.muster/switch/steady" && spec.host == "models-west.s3.us-west-2.amazonaws.com", "{spec:?}");
    }
    // The primary's record says 5 s now, as the estate does; undone it says 60 again.
    Prepare::undo(&bench.write, &intent, None).await.expect("undone");
    assert_eq!(bench.world.lock().essence(), before);
    assert_eq!(bench.world.lock().records[&key()].ttl_s, 60);
}

#[tokio::test]
async fn what_is_prepared_is_kept() {
    let bench = Bench::new(&Fixture::new(json!({ "endpoint": "steady" })));
    let out = bench.run::<Prepare>().await.expect("nothing to do");
    assert_eq!((out.change, out.health_check.as_str(), bench.world.writes()), (None, "prepared", 0));
    let intent = bench.intent::<Prepare>().await;
    Prepare::undo(&bench.write, &intent, None).await.expect("undone");
    assert!(bench.world.lock().checks.contains_key("prepared"), "a check that it did not make is not its to delete");
}

#[tokio::test]
async fn nobody_is_moved_by_preparing() {
    let bench = Bench::new(&Fixture::new(json!({ "endpoint": "steady" })).set(|world| only(world, simple("127.0.0.3"))));
    assert_eq!(bench.refused::<Prepare>().await, "would_move");
}

#[tokio::test]
async fn a_switch_that_nobody_can_see_is_no_switch() {
    let bench = Bench::new(&fixture());
    bench.world.answer(|_| Ok(HttpResponse { status: 403, headers: BTreeMap::new(), body: Vec::new() }));
    let failure = bench.failed::<Prepare>().await;
    assert!(failure.code == "switch_not_visible" && failure.to_string().contains("everybody read"), "{failure}");
    assert!(bench.world.lock().checks.is_empty() && bench.world.lock().routed.is_empty());
}

#[tokio::test]
async fn records_of_somebody_else_are_left_and_the_check_is_found_again() {
    let bench = Bench::new(&fixture());
    let intent = bench.intent::<Prepare>().await;
    for record in bench.world.lock().records.values_mut() {
        record.values = vec!["127.0.0.9".into()];
    }
    assert!(matches!(Prepare::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "conflict"));
    assert!(matches!(Prepare::observe(&bench.read, &intent).await, Seen::Differs { found } if found.contains("127.0.0.9")));
    assert_eq!(bench.world.lock().checks.len(), 1);
    bench.world.lock().records.insert(key(), simple("127.0.0.2"));
    Prepare::apply(&bench.write, &intent).await.expect("prepared");
    assert_eq!(bench.world.lock().checks.len(), 1, "made once for its reference");
}
