//! The `rds.*` actions against emulators that nobody of Muster wrote: each against both where both have the operation.
//! What each lacks is in `docs/aws.md`; where a test asks only one, the other lacks it.

use super::{
    fault_proxy::Fault,
    rds_stage::{EAST, Stage, WEST, Which},
};
use muster::providers::port::{MeasuredLag, PortError, WorldWrite};
use serde_json::json;
use std::time::{Duration, Instant};

const BOTH: [Which; 2] = [Which::Moto, Which::MiniStack];

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_restored_and_pruned() {
    for which in BOTH {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        let east = json!({ "database": "orders", "region": "east" });
        let taken = stage.step("database.snapshot", "one", east.clone()).await.unwrap();
        assert_eq!(taken["status"], "available", "{which:?}");
        let newest = stage.step("database.snapshot", "two", east.clone()).await.unwrap();
        assert_eq!(stage.count(EAST).await, (1, 2), "{which:?}");

        if which == Which::Moto {
            // MiniStack leaves out the tags of an instance that it restores.
            let with = json!({ "database": "orders", "region": "east", "name": "orders-again" });
            let made = stage.step("rds.restore_snapshot", "three", with.clone()).await.unwrap();
            assert_eq!((&made["instance"], &made["status"]), (&json!("orders-again"), &json!("available")));
            assert_eq!(made["snapshot"], newest["snapshot"], "the newest");
            assert!(!made["recovered_point"].is_null());
            let refused = stage.step("rds.restore_snapshot", "four", with).await.unwrap_err();
            assert!(refused.starts_with("conflict"), "{refused}");
        }

        let pruned =
            stage.step("rds.prune_snapshots", "five", json!({ "database": "orders", "region": "east", "keep_last": 1 })).await.unwrap();
        assert_eq!(pruned["deleted"], json!([taken["snapshot"]]), "{which:?}");
        assert_eq!(stage.count(EAST).await.1, 1, "{which:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_to_another_region() {
    let stage = Stage::up(Which::Moto).await;
    stage.make_instance(EAST, "orders-east").await;
    stage.step("database.snapshot", "one", json!({ "database": "orders", "region": "east" })).await.unwrap();
    let with = json!({ "database": "orders", "from": "east", "to": "west" });
    let copy = stage.step("rds.copy_snapshot", "two", with).await.unwrap();
    assert_eq!(copy["status"], "available");
    let kept = stage.instances("west").snapshot(copy["snapshot"].as_str().unwrap()).await.unwrap().unwrap();
    assert!(kept.arn.contains(WEST), "{kept:?}");
    assert_eq!(stage.count(WEST).await, (0, 1));
    assert_eq!(stage.proxy.asked("Action=CopyDBSnapshot"), 1);
    // RDS fetches what is encrypted only by a URL that is signed for the region that it comes from.
    assert_eq!(stage.proxy.asked("PreSignedUrl=https%3A%2F%2Frds.us-east-1"), 1);
    let restored =
        stage.step("rds.restore_snapshot", "three", json!({ "database": "orders", "region": "west", "snapshot": copy["snapshot"] }));
    assert_eq!(restored.await.unwrap()["status"], "available");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_comes_back_as_it_was_at_a_time() {
    let stage = Stage::up(Which::Moto).await;
    stage.make_instance(EAST, "orders-east").await;
    let made = stage.step("rds.restore_point_in_time", "one", json!({ "database": "orders", "region": "east" })).await.unwrap();
    assert_eq!(made["status"], "available");
    assert_eq!(stage.count(EAST).await.0, 2);
    let late = json!({ "database": "orders", "region": "east", "until": "2999-01-01T00:00:00Z" });
    let refused = stage.step("rds.restore_point_in_time", "two", late).await.unwrap_err();
    assert!(refused.starts_with("not_yet"), "{refused}");
    assert_eq!(stage.proxy.asked("Action=RestoreDBInstanceToPointInTime"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_made_beside_its_source_and_in_another_region() {
    for which in BOTH {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        let made = stage.step("rds.create_replica", "one", json!({ "database": "orders", "from": "east" })).await.unwrap();
        let found = stage.instances("east").instance(made["instance"].as_str().unwrap()).await.unwrap().unwrap();
        assert_eq!(found.replicates_from.as_deref(), Some("orders-east"), "{which:?}");
        let source = stage.instances("east").instance("orders-east").await.unwrap().unwrap();
        assert_eq!(source.replicas.len(), 1, "{which:?}: {source:?}");
        if which == Which::Moto {
            let with = json!({ "database": "orders", "from": "east", "to": "west", "name": "orders-west" });
            stage.step("rds.create_replica", "two", with).await.unwrap();
            let found = stage.instances("west").instance("orders-west").await.unwrap().unwrap();
            assert!(found.replicates_from.unwrap().contains("orders-east"));
            assert_eq!((stage.count(EAST).await.0, stage.count(WEST).await.0), (2, 1));
        }
    }
}

/// A lag comes from CloudWatch, and no figure, or -1, is never zero.
#[tokio::test(flavor = "multi_thread")]
async fn a_lag_is_a_figure_a_refusal_or_nothing() {
    for which in BOTH {
        let stage = Stage::up(which).await;
        let west = stage.instances("west");
        assert!(matches!(west.measured_lag("orders-west").await.unwrap(), MeasuredLag::Nothing(_)), "{which:?}");
        stage.put_lag(WEST, "orders-west", 2.5).await;
        stage.put_lag(EAST, "orders-west", 77.0).await;
        let found = west.measured_lag("orders-west").await.unwrap();
        assert!(matches!(found, MeasuredLag::Seconds(s, _) if (s - 2.5).abs() < 1e-9), "{which:?}: {found:?}");
        stage.put_lag(WEST, "orders-gone", -1.0).await;
        assert!(matches!(west.measured_lag("orders-gone").await.unwrap(), MeasuredLag::NotReplicating(_)), "{which:?}");

        // The same through the action: no server answers behind these instances, so monitoring is all there is.
        stage.make_instance(EAST, "orders-east").await;
        let with = json!({ "database": "orders", "region": "west", "max_lag": "30s", "content": false });
        if which == Which::Moto {
            let made = json!({ "database": "orders", "from": "east", "to": "west", "name": "orders-west" });
            stage.step("rds.create_replica", "one", made).await.unwrap();
            let good = stage.check("database.verify_replica", with.clone()).await.unwrap();
            assert_eq!(good["monitored"]["lag_ms"], 2_500, "{good}");
        }
        stage.put_lag(WEST, "orders-west", 45.0).await;
        let late = stage.check("database.verify_replica", with).await.unwrap_err();
        assert!(late.starts_with("lag_exceeded"), "{which:?}: {late}");
    }
}

/// A read is asked again, with a pause; a write goes out once and says that it may try again.
#[tokio::test(flavor = "multi_thread")]
async fn throttled_reads_are_asked_again_and_writes_are_not() {
    for which in BOTH {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        stage.proxy.fault("Action=DescribeDBInstances", 2, Fault::Throttle);
        assert!(stage.instances("east").instance("orders-east").await.unwrap().is_some());
        assert_eq!(stage.proxy.asked("Action=DescribeDBInstances"), 3);
        stage.proxy.fault("Action=DescribeDBInstances", 9, Fault::Throttle);
        let error = stage.instances("east").instance("orders-east").await.unwrap_err();
        assert!(matches!(error, PortError::Throttled { .. }), "{error:?}");
        stage.proxy.heal();
        // One that is only slow is waited for.
        stage.proxy.fault("Action=DescribeDBInstances", 1, Fault::Delay(Duration::from_secs(2)));
        assert!(stage.instances("east").instance("orders-east").await.unwrap().is_some());

        let writer = stage.world.instances_mut("east").unwrap();
        stage.proxy.fault("Action=CreateDBSnapshot", 1, Fault::Throttle);
        let error = writer.create_snapshot("orders-east", "by-hand", &Default::default()).await.unwrap_err();
        assert!(matches!(error, PortError::Throttled { .. }), "{error:?}");
        assert_eq!(stage.proxy.asked("Action=CreateDBSnapshot"), 1, "the journal sees each attempt");
        for fault in [Fault::ErrorAfter, Fault::CutAfter] {
            let id = format!("by-hand-{}", stage.proxy.asked("Action=CreateDBSnapshot"));
            stage.proxy.fault("Action=CreateDBSnapshot", 1, fault);
            let error = writer.create_snapshot("orders-east", &id, &Default::default()).await.unwrap_err();
            assert!(matches!(error, PortError::Unknown(_)), "{fault:?}: {error:?}");
            assert!(writer.snapshot(&id).await.unwrap().is_some(), "{fault:?}: it happened");
        }
        let error = writer.create_snapshot("orders-east", "by-hand-1", &Default::default()).await.unwrap_err();
        assert!(matches!(error, PortError::Conflict { .. }), "{error:?}");
        let error = writer.delete_snapshot("never-there").await.unwrap_err();
        assert!(matches!(error, PortError::NotFound(_)), "{error:?}");
    }
}

/// A region that accepts and never answers is given up within its limit, and the other one is not held up by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_is_given_up_in_time() {
    let stage = Stage::up(Which::Moto).await;
    stage.make_instance(EAST, "orders-east").await;
    stage.make_instance(WEST, "orders-west").await;
    stage.proxy.cut_off(EAST);
    let began = Instant::now();
    let with = json!({ "database": "orders", "region": "east" });
    let refused = stage.step("database.snapshot", "one", with).await.unwrap_err();
    assert!(refused.starts_with("unreachable") && began.elapsed() < Duration::from_secs(10), "{refused} after {:?}", began.elapsed());
    let began = Instant::now();
    stage.step("database.snapshot", "one", json!({ "database": "orders", "region": "west" })).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // A write that was never answered may have happened.
    let writer = stage.world.instances_mut("east").unwrap();
    let error = writer.stop("orders-east").await.unwrap_err();
    assert!(matches!(error, PortError::Unknown(_)), "{error:?}");
}
