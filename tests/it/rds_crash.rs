//! Nothing is made twice: an answer is lost after the effect, or the process is killed between the effect and its record,
//! and what goes on afterwards finds what is there.

use super::{
    fault_proxy::Fault,
    rds_stage::{EAST, Stage, WEST, Which},
};
use serde_json::{Value, json};

struct Case {
    which: Which,
    name: &'static str,
    /// The call that has the effect.
    call: &'static str,
    with: Value,
}

/// What each action asks for, of the emulator that has it.
fn cases(which: Which) -> Vec<Case> {
    let east = json!({ "database": "orders", "region": "east" });
    let replica = json!({ "database": "orders", "from": "east" });
    let away = json!({ "database": "orders", "from": "east", "to": "west" });
    let prune = json!({ "database": "orders", "region": "east", "keep_last": 1 });
    let case = |name, call, with: &Value| Case { which, name, call, with: with.clone() };
    let mut all = vec![
        case("database.snapshot", "Action=CreateDBSnapshot", &east),
        case("rds.create_replica", "Action=CreateDBInstanceReadReplica", &replica),
        case("rds.prune_snapshots", "Action=DeleteDBSnapshot", &prune),
    ];
    if which == Which::Moto {
        all.extend([
            case("rds.copy_snapshot", "Action=CopyDBSnapshot", &away),
            case("rds.create_replica", "Action=CreateDBInstanceReadReplica", &away),
            case("rds.restore_point_in_time", "Action=RestoreDBInstanceToPointInTime", &east),
            case("rds.restore_snapshot", "Action=RestoreDBInstanceFromDBSnapshot", &east),
        ]);
    }
    all
}

/// Two snapshots at least, of which one may be pruned.
async fn snapshots(stage: &Stage, about: &str) {
    for n in 0..2 {
        stage.step("database.snapshot", &format!("{about} {n}"), json!({ "database": "orders", "region": "east" })).await.unwrap();
    }
    let prune = json!({ "database": "orders", "region": "east", "keep_last": 2 });
    stage.step("rds.prune_snapshots", about, prune).await.unwrap();
}

/// Instances and snapshots in both regions.
async fn all(stage: &Stage) -> [i64; 4] {
    let ((east, kept), (west, copies)) = (stage.count(EAST).await, stage.count(WEST).await);
    [east, kept, west, copies].map(|n| i64::try_from(n).unwrap())
}

/// What a step changes in number, and how often its call reached the emulator.
async fn changes(stage: &Stage, case: &Case, about: &str, fault: Option<Fault>) -> ([i64; 4], usize) {
    snapshots(stage, about).await;
    let (before, calls) = (all(stage).await, stage.proxy.passed(case.call));
    if let Some(fault) = fault {
        stage.proxy.fault(case.call, 1, fault);
    }
    let done = stage.step(case.name, &format!("{about} itself"), case.with.clone()).await;
    done.unwrap_or_else(|e| panic!("{:?} {}, {about}: {e}", case.which, case.name));
    let after = all(stage).await;
    ([0, 1, 2, 3].map(|n| after[n] - before[n]), stage.proxy.passed(case.call) - calls)
}

/// What happens when nothing goes wrong happens also when each answer is lost after the effect, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_after_the_effect_makes_nothing_twice() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        for (n, case) in cases(which).iter().enumerate() {
            let good = changes(&stage, case, &format!("{n} good"), None).await;
            assert_ne!(good.0, [0; 4], "{which:?} {}: it does something", case.name);
            for fault in [Fault::ErrorAfter, Fault::CutAfter] {
                let lost = changes(&stage, case, &format!("{n} {fault:?}"), Some(fault)).await;
                assert_eq!(lost, good, "{which:?} {}, {fault:?}", case.name);
            }
        }
    }
}

/// The real program is killed while RDS has done its work and the answer is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_between_the_effect_and_its_record_makes_nothing_twice() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = Stage::up(which).await;
        stage.make_instance(EAST, "orders-east").await;
        for (n, case) in cases(which).iter().enumerate() {
            let Case { name, call, with, .. } = case;
            let good = changes(&stage, case, &format!("{n} good"), None).await;
            snapshots(&stage, &format!("{n} killed")).await;
            let (before, calls) = (all(&stage).await, stage.proxy.passed(call));
            stage.killed_before_its_record(name, call, with);
            let after = all(&stage).await;
            let killed = ([0, 1, 2, 3].map(|n| after[n] - before[n]), stage.proxy.passed(call) - calls);
            assert_eq!(killed, good, "{which:?} {name}");
        }
    }
}
