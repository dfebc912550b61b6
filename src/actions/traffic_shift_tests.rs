//! The stages of a shift, the gates between them, and the way back.

use super::*;
use crate::actions::contract_tests::{Bench, Fixture};
use crate::providers::sim::SimWorld;
use proptest::prelude::*;
use serde_json::json;

fn weighted_set(set: &str, weight: u32, address: &str) -> WeightedSet {
    let record = RecordSet { name: "api.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec![address.into()] };
    WeightedSet { set: set.into(), weight, health: None, alias: None, record }
}

pub fn weighted_world(world: &SimWorld) {
    let sets = vec![weighted_set("east", 200, "127.0.0.2"), weighted_set("west", 0, "127.0.0.3")];
    world.lock().weights.insert(key(), sets);
    answers(world, 200);
}

fn key() -> (String, String, String) {
    ("scoring.test".into(), "api.scoring.test".into(), "A".into())
}

fn answers(world: &SimWorld, status: u16) {
    world.answer(move |_| Ok(HttpResponse { status, headers: BTreeMap::new(), body: Vec::new() }));
}

fn standing_weights(bench: &Bench) -> Vec<u32> {
    bench.world.lock().weights[&key()].iter().map(|set| set.weight).collect()
}

#[tokio::test]
async fn every_stage_bakes_before_the_next() {
    let bench = Bench::new(&fixture());
    let out = bench.run::<Shift>().await.expect("shifted");
    assert_eq!(standing_weights(&bench), [0, 100]);
    assert_eq!(out.stages.iter().map(|stage| stage.percent).collect::<Vec<_>>(), [5, 50, 100]);
    assert!(out.stages.iter().all(|stage| stage.baked_ms >= 5_000) && bench.elapsed_ms() >= 15_000);
}

/// 300 ms pass in this world until the provider's servers have a change.
#[tokio::test]
async fn a_stage_bakes_from_when_it_has_spread() {
    let bench = Bench::new(&fixture());
    let out = bench.run::<Shift>().await.expect("shifted");
    assert!(out.stages.iter().all(|stage| stage.in_sync_ms >= 300 && stage.change.is_some()), "{out:?}");
    assert!(bench.elapsed_ms() >= 3 * 5_300, "{} ms: the spreading is no part of the bake", bench.elapsed_ms());
}

/// The weights stand, and the provider never says that they have spread.
#[tokio::test]
async fn a_change_that_does_not_spread_is_taken_back() {
    let bench = Bench::new(&fixture());
    bench.world.lock().stuck = true;
    let failure = bench.failed::<Shift>().await;
    assert!(failure.code == "not_in_sync" && failure.message.contains("at 5 %") && failure.message.contains("as it was"), "{failure}");
    assert_eq!(standing_weights(&bench), [200, 0]);
    assert!((14_000..30_000).contains(&bench.elapsed_ms()), "{} ms: the step's time less its bakes", bench.elapsed_ms());
}

#[tokio::test]
async fn the_last_stage_is_done_only_when_it_was_watched() {
    let bench = Bench::new(&fixture());
    let intent = bench.intent::<Shift>().await;
    bench.world.lock().weights.insert(key(), intent.stages[2].clone());
    assert!(matches!(Shift::observe(&bench.read, &intent).await, Seen::Absent), "nobody has seen it bake");
    let out = Shift::apply(&bench.write, &intent).await.expect("watched");
    assert!(out.stages.len() == 1 && out.stages[0].in_sync_ms >= 300 && out.stages[0].baked_ms >= 5_000, "{out:?}");
    assert!(matches!(Shift::observe(&bench.read, &intent).await, Seen::Done(_)));
}

#[tokio::test]
async fn a_bake_that_ends_before_the_caches_do_is_pointed_out() {
    let notes = |bake: &str| {
        let with = json!({ "endpoint": "inference", "to": "west", "bake": bake, "paths": ["/healthz"] });
        let bench = Bench::new(&Fixture::new(with).set(weighted_world));
        async move {
            let input = crate::model::node::decode(&bench.with).expect("an input");
            Shift::prepare(&bench.read, input).await.map_err(|r| r.failure).expect("prepared").notes.join("; ")
        }
    };
    assert!(notes("4s").await.contains("before caches have let go of the old answers (5 s)"));
    assert!(!notes("5s").await.contains("WARNING"));
}

#[tokio::test]
async fn a_gate_that_closes_takes_every_weight_back() {
    let bench = Bench::new(&fixture());
    answers(&bench.world, 503);
    let failure = bench.failed::<Shift>().await;
    assert!(failure.message.contains("at 5 %") && failure.message.contains("status 503") && failure.message.contains("as it was"), "{failure}");
    assert_eq!(standing_weights(&bench), [200, 0]);
}

#[tokio::test]
async fn a_figure_that_is_missing_closes_the_gate() {
    let gates = json!({ "error_rate": { "query": "q", "max": 0.01 } });
    let with = json!({ "endpoint": "inference", "to": "west", "bake": "5s", "metrics": "http://127.0.0.1:9090", "gates": gates });
    let bench = Bench::new(&Fixture::new(with).set(weighted_world).set(|world| {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
        world.answer(|_| Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body: body.to_vec() }));
    }));
    let failure = bench.failed::<Shift>().await;
    assert_eq!(failure.code, "metrics_missing");
    assert_eq!(standing_weights(&bench), [200, 0]);
}

/// Answers as the model in the golden file of east's bucket does, or a little otherwise.
fn predicts(world: &SimWorld, second: &'static str) {
    let golden = br#"{"cases":[{"features":[1.0],"scores":[0.25,0.75],"label":1}]}"#;
    let now = crate::providers::clock::Clock::now(&*world.time());
    world.lock().object("models", "west", "golden.json", golden, now);
    world.answer(move |_| {
        let body = format!("{{\"scores\":[0.25,{second}],\"label\":1}}").into_bytes();
        Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body })
    });
}

#[tokio::test]
async fn a_region_whose_model_answers_otherwise_gets_no_traffic() {
    let with = json!({ "endpoint": "inference", "to": "west", "stages": [5, 100], "bake": "5s", "golden": { "tolerance": 1e-5 } });
    let bench = Bench::new(&Fixture::new(with).set(weighted_world));
    predicts(&bench.world, "0.76");
    let failure = bench.failed::<Shift>().await;
    assert!(failure.code == "golden_differs" && failure.message.contains("at 5 %") && failure.message.contains("`west`"), "{failure}");
    assert_eq!(standing_weights(&bench), [200, 0]);
    predicts(&bench.world, "0.75");
    assert_eq!(bench.run::<Shift>().await.expect("shifted").percent, 100);
}

#[tokio::test]
async fn weights_of_somebody_else_are_left_alone() {
    let bench = Bench::new(&fixture());
    let intent = bench.intent::<Shift>().await;
    bench.world.lock().weights.get_mut(&key()).expect("there")[1].weight = 77;
    assert!(matches!(Shift::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "weights_moved"));
    assert!(matches!(Shift::observe(&bench.read, &intent).await, Seen::Differs { .. }));
    assert!(Shift::undo(&bench.write, &intent, None).await.is_err());
    assert_eq!(standing_weights(&bench), [200, 77]);
}

#[tokio::test]
async fn what_is_found_at_a_stage_goes_on_from_there_or_back() {
    let bench = Bench::new(&fixture());
    let intent = bench.intent::<Shift>().await;
    bench.world.lock().weights.insert(key(), intent.stages[1].clone());
    assert!(matches!(Shift::observe(&bench.read, &intent).await, Seen::Absent));
    let out = Shift::apply(&bench.write, &intent).await.expect("shifted");
    assert_eq!(out.stages.iter().map(|stage| (stage.percent, stage.change.is_some())).collect::<Vec<_>>(), [(50, false), (100, true)]);
    bench.world.lock().weights.insert(key(), intent.stages[1].clone());
    Shift::undo(&bench.write, &intent, None).await.expect("undone");
    assert_eq!(standing_weights(&bench), [200, 0]);
}

#[tokio::test]
async fn what_cannot_be_done_in_time_is_not_begun() {
    let with = json!({ "endpoint": "inference", "to": "west", "stages": [5, 100], "bake": "10h", "paths": ["/healthz"] });
    let bench = Bench::new(&Fixture::new(with).set(weighted_world));
    let failure = bench.failed::<Shift>().await;
    assert_eq!(failure.code, "too_short", "{failure}");
    assert_eq!((standing_weights(&bench), bench.world.writes()), (vec![200, 0], 0));
}

#[tokio::test]
async fn a_stage_that_bakes_twice_is_told_once() {
    let bench = Bench::new(&fixture());
    let intent = bench.intent::<Shift>().await;
    Shift::apply(&bench.write, &intent).await.expect("shifted");
    let out = Shift::apply(&bench.write, &intent).await.expect("looked at again");
    assert_eq!(out.stages.iter().map(|stage| stage.percent).collect::<Vec<_>>(), [5, 50, 100]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    for with in [
        json!({ "endpoint": "inference", "to": "west", "stages": [50, 5], "paths": ["/"] }),
        json!({ "endpoint": "inference", "to": "west", "stages": [101], "paths": ["/"] }),
        json!({ "endpoint": "inference", "to": "west", "stages": [] , "paths": ["/"] }),
        json!({ "endpoint": "inference", "to": "west" }),
        json!({ "endpoint": "inference", "to": "west", "metrics": "http://127.0.0.1:9090" }),
    ] {
        assert_eq!(Bench::new(&Fixture::new(with).set(weighted_world)).refused::<Shift>().await, "input");
    }
    let none = Fixture::new(json!({ "endpoint": "inference", "to": "west", "bake": "0s" }));
    assert_eq!(Bench::new(&none).refused::<Shift>().await, "no_weighted_record");
}

proptest! {
    #[test]
    fn weights_add_up_and_others_keep_their_proportions(percent in 1u32..=100, others in proptest::collection::vec(0u32..=255, 1..6)) {
        let mut before: Vec<_> = others.iter().enumerate().map(|(n, w)| weighted_set(&format!("r{n}"), *w, "127.0.0.2")).collect();
        before.push(weighted_set("mine", 0, "127.0.0.3"));
        let after = weighed(&before, others.len(), percent);
        prop_assert_eq!(after.last().map(|set| set.weight), Some(percent));
        prop_assert_eq!(after.iter().map(|set| set.weight).sum::<u32>(), 100);
        // Who had nothing while others had something gets nothing.
        if others.iter().any(|weight| *weight > 0) {
            prop_assert!(others.iter().zip(&after).all(|(old, new)| *old > 0 || new.weight == 0));
        }
    }
}
