//! Rule 7 rests on what actions say of themselves. So each of them is done with each region down: what then fails must have
//! said that it needs that region, else a plan that cannot work would pass the lint.

use super::{catalogue, contract::*, contract_tests::*, fixture};
use crate::model::{effect::*, ids::RegionName, node::Node};
use serde_json::{Value, json};
use std::time::Duration;

/// Does the step come through in this world?
async fn through(bench: &Bench, action: &dyn DynAction) -> Result<(), String> {
    let prepared = action.prepare(&bench.read, &bench.with).await.map_err(|refusal| refusal.failure.to_string())?;
    let applied = action.apply(&bench.write, &prepared.intent).await;
    applied.map_err(|error| format!("{error:?}"))?;
    if action.effect(&bench.with) == Effect::Read {
        return Ok(());
    }
    for _ in 0..1_000 {
        match action.observe(&bench.read, &prepared.intent).await {
            Seen::Pending { poll_after_ms, .. } => bench.read.world.clock().sleep(Duration::from_millis(poll_after_ms)).await,
            Seen::Done(_) => return Ok(()),
            seen => return Err(format!("{seen:?}")),
        }
    }
    Err("pending for ever".to_owned())
}

fn says(action: &dyn DynAction, with: &Value, region: &str) -> bool {
    let place = Place::Region(RegionName::from(region));
    action.reach(&map_of(with), &estate()).iter().any(|reach| reach.place == place)
}

/// What asks the region that a name leads to when it is asked: after a failover that is the one that took over, and before it
/// nobody can say.
const FOLLOWS: [&str; 1] = ["model.golden"];

/// What inputs change about it, beside the world of the fixture.
fn variants(name: &str) -> Vec<Value> {
    match name {
        "bucket.verify" => ["source", "manifest"].map(|against| json!({ "against": against })).into(),
        "database.verify_replica" => vec![json!({ "content": false }), json!({ "primary": "east" })],
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn what_an_action_cannot_do_without_it_says() {
    let (mut needed, mut unsaid) = (0, Vec::new());
    for action in catalogue() {
        let name = action.spec().name;
        let mut changes = variants(name);
        changes.push(json!({}));
        for change in changes {
            for region in ["east", "west"] {
                let mut made = fixture(name).expect("a fixture");
                if !made.observable || made.local || FOLLOWS.contains(&name) {
                    continue;
                }
                let with = made.with.as_object_mut().expect("a map");
                with.extend(change.as_object().expect("a map").clone());
                let with = made.with.clone();
                let bench = Bench::new(&made).down(region);
                let Err(why) = through(&bench, &*action).await else { continue };
                needed += 1;
                if !says(&*action, &with, region) {
                    unsaid.push(format!("{name} with {with} fails without {region}: {why}"));
                }
            }
        }
    }
    assert!(unsaid.is_empty(), "they do not say that they need it: {unsaid:#?}");
    assert!(needed >= 20, "{needed} steps needed a region: are regions still lost in this world?");
}

#[tokio::test]
async fn a_comparison_with_what_may_be_lost_says_so() {
    let find = |name: &str| super::find(name).expect("there");
    let bucket = |against: Value| json!({ "bucket": "models", "from": "east", "to": "west", "against": against });
    for (against, source) in
        [(json!("manifest"), false), (json!("source"), true), (json!(null), true), (json!("{{ inputs.against }}"), true)]
    {
        let with = bucket(against);
        assert_eq!(says(&*find("bucket.verify"), &with, "east"), source, "{with}");
        assert!(says(&*find("bucket.verify"), &with, "west"), "{with}");
    }
    let replica = json!({ "database": "predictions", "region": "west" });
    assert!(says(&*find("database.verify_replica"), &replica, "east") && says(&*find("database.verify_replica"), &replica, "west"));
    // Without a manifest the source is what is compared with, and it is not there.
    let mut none = fixture("bucket.verify").expect("a fixture");
    none = none.set(|world| drop(world.lock().objects.remove(&("models".into(), "west".into(), ".muster/manifests/x.json".into()))));
    let bench = Bench::new(&none).down("east");
    assert!(through(&bench, &*find("bucket.verify")).await.is_err());
}

#[test]
fn every_action_that_changes_a_resource_locks_it() {
    for action in catalogue() {
        let fixture = fixture(action.spec().name).expect("a fixture");
        let with = Node::typed(fixture.with.clone());
        let node = map_of(&fixture.with);
        let noun = action.spec().name.split('.').next().expect("a noun");
        let owns = matches!(noun, "database" | "bucket" | "dns" | "rds" | "traffic") && action.effect(&with) != Effect::Read;
        assert_eq!(!action.locks(&node).is_empty(), owns, "{}", action.spec().name);
        assert!(!action.reach(&node, &estate()).is_empty(), "{}: it depends on something", action.spec().name);
    }
}
