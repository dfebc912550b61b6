//! Promoting a replica of RDS in another region. **No emulator does it**: MiniStack does not know PromoteReadReplica, and moto
//! accepts it and goes on naming the source. So the proxy mends moto's answers into what Amazon documents: the replica is
//! `modifying` for a while, then it stands on its own. The server behind the replica is a real standby, which leaves
//! recovery when the call has reached moto. What is shown is Muster's side of it, and not Amazon's.

use super::{
    fault_proxy::Fault,
    pg::{Cluster, Home},
    rds_stage::{EAST, Stage, WEST, Which, at},
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

const CALL: &str = "Action=PromoteReadReplica";
const SOURCE: [&str; 2] = ["<ReadReplicaSourceDBInstanceIdentifier>", "</ReadReplicaSourceDBInstanceIdentifier>"];
/// So many looks find the instance in between.
const MODIFYING: usize = 3;

struct Pair {
    stage: Stage,
    proof: Value,
    _east: Cluster,
    west: Arc<Cluster>,
    /// The last to go: the servers' files are in it.
    _home: Home,
}

/// A primary in east, which is fenced, and its replica in west.
async fn pair() -> Pair {
    let home = Home::new();
    let east = Cluster::primary(&home);
    let west = Arc::new(east.standby(&home));
    let stage = Stage::with(Which::Moto, &at(east.port), &at(west.port)).await;
    stage.make_instance(EAST, "orders-east").await;
    let with = json!({ "database": "orders", "from": "east", "to": "west", "name": "orders-west" });
    stage.step("rds.create_replica", "replica", with).await.unwrap();
    let with = json!({ "database": "orders", "region": "east", "by": ["instance_stopped"] });
    let proof = stage.step("database.fence", "fence", with).await.unwrap()["proof"].clone();
    Pair { stage, proof, _east: east, west, _home: home }
}

impl Pair {
    /// As Amazon documents it.
    fn as_documented(&self) {
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        // The proxy outlives the test, and the server must not.
        let (looks, west) = (left.clone(), Arc::downgrade(&self.west));
        self.stage.proxy.mend(CALL, move |_, body| {
            if looks.swap(MODIFYING, Ordering::SeqCst) == usize::MAX
                && let Some(west) = west.upgrade()
            {
                west.promote();
            }
            body
        });
        self.stage.proxy.mend("Action=DescribeDBInstances", move |request, body| {
            if !request.contains("DBInstanceIdentifier=orders-west") || left.load(Ordering::SeqCst) == usize::MAX {
                return body;
            }
            if left.load(Ordering::SeqCst) > 0 {
                left.fetch_sub(1, Ordering::SeqCst);
                return body.replace("<DBInstanceStatus>available<", "<DBInstanceStatus>modifying<");
            }
            let (before, rest) = body.split_once(SOURCE[0]).unwrap_or_else(|| panic!("no source in {body}"));
            format!("{before}{}", rest.split_once(SOURCE[1]).unwrap().1)
        });
    }
    fn with(&self) -> Value {
        json!({ "database": "orders", "region": "west", "proof": self.proof })
    }
    fn is_primary(&self) -> bool {
        self.west.sql("SELECT pg_is_in_recovery()") == "f"
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_promoted_once_whatever_becomes_of_the_answer() {
    for fault in [None, Some(Fault::ErrorAfter), Some(Fault::CutAfter), Some(Fault::Throttle)] {
        let pair = pair().await;
        pair.as_documented();
        // Without a proof nothing is asked.
        let refused = pair.stage.step("database.promote", "none", json!({ "database": "orders", "region": "west" })).await.unwrap_err();
        assert!(refused.starts_with("not_fenced") && pair.stage.proxy.asked(CALL) == 0, "{refused}");
        if let Some(fault) = fault {
            pair.stage.proxy.fault(CALL, 1, fault);
        }
        let out = pair.stage.step("database.promote", "promote", pair.with()).await.unwrap();
        assert_eq!(
            (&out["instance"], &out["timeline_before"], &out["timeline_after"]),
            (&json!("orders-west"), &json!(1), &json!(2)),
            "{out}"
        );
        assert_eq!((pair.stage.proxy.passed(CALL), pair.is_primary()), (1, true), "{fault:?}");
        let refused = pair.stage.step("database.promote", "again", pair.with()).await.unwrap_err();
        assert!(refused.starts_with("not_a_replica"), "{fault:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_between_the_promotion_and_its_record_promotes_once() {
    let pair = pair().await;
    pair.as_documented();
    pair.stage.killed_before_its_record("database.promote", CALL, &pair.with());
    assert_eq!((pair.stage.proxy.passed(CALL), pair.is_primary()), (1, true));
}

/// moto as it is: accepted, and nothing comes of it. That is no promotion, and never said to be one.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_was_accepted_and_did_not_happen_is_none() {
    let pair = pair().await;
    let said = pair.stage.step("database.promote", "promote", pair.with()).await.unwrap_err();
    assert!(said.contains("never came through"), "{said}");
    assert!(!pair.is_primary() && pair.stage.proxy.passed(CALL) > 1);
    assert!(pair.stage.instances("west").instance("orders-west").await.unwrap().unwrap().replicates_from.unwrap().contains(EAST));
    assert_eq!(pair.stage.count(WEST).await.0, 1);
}
