//! The writer of an Aurora global database, moved as planned and by force, as actions and by the real program, whatever
//! becomes of the answer. MiniStack alone has it: moto answers both calls with an error.

use super::{
    fault_proxy::Fault,
    rds_stage::{EAST, NOWHERE, Stage, WEST, Which},
};
use aws_sdk_rds::types::GlobalClusterMember;
use muster::providers::port::{PortError, WorldRead};
use serde_json::{Value, json};

const SWITCH: (&str, &str) = ("rds.switchover_global_cluster", "Action=SwitchoverGlobalCluster");
const FAIL: (&str, &str) = ("rds.failover_global_cluster", "Action=FailoverGlobalCluster");

/// Clusters in both regions, of which east's writes, and an instance in each that the estate names.
async fn stage() -> Stage {
    let stage = Stage::up(Which::MiniStack).await;
    for (region, id) in [(EAST, "orders-c-east"), (WEST, "orders-c-west")] {
        let rds = stage.rds(region).await;
        if region == EAST {
            let made = rds.create_global_cluster().global_cluster_identifier("orders-global").engine("aurora-postgresql").send().await;
            made.unwrap_or_else(|e| panic!("{e:?}"));
        }
        let call = rds.create_db_cluster().db_cluster_identifier(id).engine("aurora-postgresql").global_cluster_identifier("orders-global");
        let call = if region == EAST { call.master_username("owner").master_user_password("first-one") } else { call };
        call.send().await.unwrap_or_else(|e| panic!("{id}: {e:?}"));
    }
    stage.make_instance(EAST, "orders-east").await;
    stage.make_instance(WEST, "orders-west").await;
    stage
}

/// The region whose cluster writes, asked past the proxy.
async fn writer(stage: &Stage) -> String {
    let all = stage.rds(EAST).await.describe_global_clusters().send().await.unwrap();
    let members = all.global_clusters()[0].global_cluster_members();
    let writers: Vec<&str> =
        members.iter().filter(|m| m.is_writer() == Some(true)).filter_map(GlobalClusterMember::db_cluster_arn).collect();
    assert_eq!(writers.len(), 1, "{members:?}");
    writers[0].split(':').nth(3).unwrap().to_owned()
}

/// A proof that a region is fenced: its instance is stopped.
async fn proof(stage: &Stage, region: &str) -> Value {
    let with = json!({ "database": "orders", "region": region, "by": ["instance_stopped"] });
    stage.step("database.fence", &format!("fence {region}"), with).await.unwrap()["proof"].clone()
}

fn to(region: &str) -> Value {
    json!({ "database": "orders", "global_cluster": "orders-global", "to": region })
}

fn with(region: &str, proof: &Value) -> Value {
    json!({ "database": "orders", "global_cluster": "orders-global", "to": region, "proof": proof })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_moves_as_planned_and_by_force() {
    let stage = stage().await;
    let moved = stage.step(SWITCH.0, "one", to("west")).await.unwrap();
    assert!(moved["writer"].as_str().unwrap().contains(WEST) && moved["before"].as_str().unwrap().contains(EAST), "{moved}");
    let refused = stage.step(SWITCH.0, "two", to("west")).await.unwrap_err();
    assert!(refused.starts_with("writes_already"), "{refused}");
    assert_eq!((stage.proxy.asked(SWITCH.1), writer(&stage).await.as_str()), (1, WEST));

    // By force: without a proof, with one of the other region, and with one that does not hold any more, nothing is asked.
    let refused = stage.step(FAIL.0, "three", to("east")).await.unwrap_err();
    assert!(refused.starts_with("not_fenced"), "{refused}");
    let proof_of_east = proof(&stage, "east").await;
    let refused = stage.step(FAIL.0, "four", with("east", &proof_of_east)).await.unwrap_err();
    assert!(refused.starts_with("proof_void"), "{refused}");
    let proof_of_west = proof(&stage, "west").await;
    stage.rds(WEST).await.start_db_instance().db_instance_identifier("orders-west").send().await.unwrap();
    let refused = stage.step(FAIL.0, "five", with("east", &proof_of_west)).await.unwrap_err();
    assert!(refused.starts_with("proof_void"), "{refused}");
    assert_eq!((stage.proxy.asked(FAIL.1), writer(&stage).await.as_str()), (0, WEST));

    let proof_of_west = proof(&stage, "west").await;
    let moved = stage.step(FAIL.0, "six", with("east", &proof_of_west)).await.unwrap();
    assert!(moved["writer"].as_str().unwrap().contains(EAST) && moved["before"].as_str().unwrap().contains(WEST), "{moved}");
    assert_eq!((stage.proxy.asked(FAIL.1), writer(&stage).await.as_str()), (1, EAST));
    assert_eq!((stage.proxy.asked("AllowDataLoss=true"), stage.proxy.asked("Switchover=")), (1, 0));
    assert_eq!(stage.instances("west").global_cluster("no-such").await.unwrap(), None);
}

/// Each way there and back, with the answer lost after the effect: it is not asked for a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_moves_the_writer_once() {
    let stage = stage().await;
    let proofs = [proof(&stage, "east").await, proof(&stage, "west").await];
    for (n, fault) in [None, Some(Fault::ErrorAfter), Some(Fault::CutAfter), Some(Fault::Throttle)].into_iter().enumerate() {
        for (name, call) in [SWITCH, FAIL] {
            for (region, there, proof) in [("west", WEST, &proofs[0]), ("east", EAST, &proofs[1])] {
                let passed = stage.proxy.passed(call);
                if let Some(fault) = fault {
                    stage.proxy.fault(call, 1, fault);
                }
                let asks = if name == FAIL.0 { with(region, proof) } else { to(region) };
                let moved = stage.step(name, &format!("{n} {name} {region}"), asks).await;
                let moved = moved.unwrap_or_else(|e| panic!("{name} to {region}, {fault:?}: {e}"));
                assert!(moved["writer"].as_str().unwrap().contains(there), "{moved}");
                assert_eq!((stage.proxy.passed(call) - passed, writer(&stage).await.as_str()), (1, there), "{name}, {fault:?}");
            }
        }
    }
    // The port itself says that it does not know, and never that it failed.
    let found = stage.world.instances("west").unwrap().global_cluster("orders-global").await.unwrap().unwrap();
    let west = found.members.iter().find(|m| m.region() == WEST).unwrap().arn.clone();
    stage.proxy.fault(FAIL.1, 1, Fault::CutAfter);
    let port = muster::providers::port::WorldWrite::instances_mut(&*stage.world, "west").unwrap();
    let lost = port.fail_over_global("orders-global", &west).await.unwrap_err();
    assert!(matches!(lost, PortError::Unknown(_)) && writer(&stage).await == WEST, "{lost:?}");
}

/// The real program is killed while Aurora has moved the writer and the answer is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_between_the_move_and_its_record_moves_it_once() {
    let stage = stage().await;
    let proof = proof(&stage, "east").await;
    for ((name, call), there, asks) in [(FAIL, WEST, with("west", &proof)), (SWITCH, EAST, to("east"))] {
        stage.killed_before_its_record(name, call, &asks);
        assert_eq!((stage.proxy.passed(call), writer(&stage).await.as_str()), (1, there), "{name}");
    }
}

/// What closes an instance through its API is the cluster's where it is a member of one: it is refused before anything is asked,
/// with what fences it instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_cluster_is_not_fenced_as_an_instance() {
    let stage = Stage::with(Which::MiniStack, &format!("{NOWHERE}        fence: {{ security_group: sg-closed }}\n"), NOWHERE).await;
    let rds = stage.rds(EAST).await;
    let made = rds.create_db_cluster().db_cluster_identifier("orders-c-east").engine("aurora-postgresql");
    made.master_username("owner").master_user_password("first-one").send().await.unwrap_or_else(|e| panic!("{e:?}"));
    let call = rds.create_db_instance().db_instance_identifier("orders-east").engine("aurora-postgresql").db_instance_class("db.r6g.large");
    call.db_cluster_identifier("orders-c-east").send().await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(stage.instances("east").instance("orders-east").await.unwrap().unwrap().cluster.as_deref(), Some("orders-c-east"));
    for with in [
        json!({ "database": "orders", "region": "east" }),
        json!({ "database": "orders", "region": "east", "by": ["security_group_closed"] }),
        json!({ "database": "orders", "region": "east", "by": ["instance_stopped"] }),
    ] {
        let refused = stage.step("database.fence", "one", with.clone()).await.unwrap_err();
        assert!(refused.starts_with("of_a_cluster") && refused.contains("orders-c-east") && refused.contains("lease"), "{with}: {refused}");
    }
    for call in ["Action=ModifyDBInstance", "Action=StopDBInstance", "Action=AddTagsToResource"] {
        assert_eq!(stage.proxy.asked(call), 0, "{call}");
    }
}
