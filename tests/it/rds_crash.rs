//! Nothing is made twice: an answer is lost after the effect, or the process is killed between the effect and its record,
//! and what goes on afterwards finds what is there.

use super::{
    fault_proxy::Fault,
    rds_stage::{EAST, Stage, WEST, Which},
};
use serde_json::{Value, json};

/// What each action asks for, with which emulator has it.
fn cases() -> Vec<(Which, &'static str, &'static str, Value)> {
    let east = json!({ "database": "orders", "region": "east" });
    let named = json!({ "database": "orders", "region": "east", "name": "orders-again" });
    let replica = json!({ "database": "orders", "from": "east" });
    let away = json!({ "database": "orders", "from": "east", "to": "west" });
    let prune = json!({ "database": "orders", "region": "east", "keep_last": 1 });
    let mut all = vec![
        (Which::Moto, "rds.copy_snapshot", "Action=CopyDBSnapshot", away.clone()),
        (Which::Moto, "rds.create_replica", "Action=CreateDBInstanceReadReplica", away),
        (Which::Moto, "rds.restore_snapshot", "Action=RestoreDBInstanceFromDBSnapshot", named),
        (Which::Moto, "rds.restore_point_in_time", "Action=RestoreDBInstanceToPointInTime", east.clone()),
    ];
    for which in [Which::Moto, Which::MiniStack] {
        all.push((which, "database.snapshot", "Action=CreateDBSnapshot", east.clone()));
        all.push((which, "rds.create_replica", "Action=CreateDBInstanceReadReplica", replica.clone()));
        all.push((which, "rds.prune_snapshots", "Action=DeleteDBSnapshot", prune.clone()));
    }
    all
}

async fn prepared(which: Which) -> Stage {
    let stage = Stage::up(which).await;
    stage.make_instance(EAST, "orders-east").await;
    for key in ["first", "second"] {
        stage.step("database.snapshot", key, json!({ "database": "orders", "region": "east" })).await.unwrap();
    }
    stage
}

async fn all(stage: &Stage) -> Vec<(usize, usize)> {
    vec![stage.count(EAST).await, stage.count(WEST).await]
}

/// The world as it is when nothing goes wrong, and the same with each answer lost after the effect.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_after_the_effect_makes_nothing_twice() {
    for (which, name, call, with) in cases() {
        let stage = prepared(which).await;
        let before = stage.proxy.asked(call);
        stage.step(name, "step", with.clone()).await.unwrap_or_else(|e| panic!("{which:?} {name}: {e}"));
        let good = all(&stage).await;
        let calls = stage.proxy.asked(call) - before;
        for fault in [Fault::ErrorAfter, Fault::CutAfter] {
            let stage = prepared(which).await;
            let before = stage.proxy.passed(call);
            stage.proxy.fault(call, 1, fault);
            stage.step(name, "step", with.clone()).await.unwrap_or_else(|e| panic!("{which:?} {name}, {fault:?}: {e}"));
            assert_eq!(all(&stage).await, good, "{which:?} {name}, {fault:?}");
            assert_eq!(stage.proxy.passed(call) - before, calls, "{which:?} {name}, {fault:?}: asked no second time");
        }
    }
}

/// The real program is killed while RDS has done its work and the answer is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_between_the_effect_and_its_record_makes_nothing_twice() {
    for (which, name, call, with) in cases() {
        let stage = prepared(which).await;
        let before = stage.proxy.passed(call);
        stage.place.book(&format!("  - id: act\n    uses: {name}\n    with: {with}\n"));
        stage.proxy.fault(call, 1, Fault::HoldAfter);
        let said = tokio::task::block_in_place(|| {
            let running = stage.place.start(&["run", "book.yaml", "--live", "--json"]);
            stage.place.until_told(&format!("{name}: the effect"), || stage.proxy.holding() == 1, || running.told());
            running.signal("KILL");
            running.end();
            stage.proxy.let_go();
            stage.place.muster(&["resume"])
        });
        let said = said.expect(0);
        assert_eq!(said.statuses(), ["succeeded"], "{which:?} {name}");
        let asked = stage.proxy.passed(call) - before;
        assert_eq!(asked, 1, "{which:?} {name}: {asked} calls reached RDS");
    }
}
