//! Fencing an RDS instance: the API is an emulator's, the server behind the instance is a real PostgreSQL, whose sessions
//! outlive a change of security groups as they do at Amazon's.

use super::rds_stage::{EAST, Stage, Which};
use serde_json::json;

const FENCE: &str = "        fence:\n          security_group: sg-closed\n          master_password: { fenced: { file: @/fenced }, usual: { file: @/usual } }\n";

async fn stage(which: Which) -> Stage {
    let stage = Stage::with(which, FENCE).await;
    stage.place.file("fenced", "another-one").file("usual", "first-one");
    stage.make_instance(EAST, "orders-east").await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_instance_is_a_fence_that_expires_and_opens_again() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = stage(which).await;
        let with = json!({ "database": "orders", "region": "east", "by": ["instance_stopped"] });
        let out = stage.step("database.fence", "one", with).await.unwrap();
        let proof = &out["proof"];
        assert_eq!(proof["kind"], "instance_stopped", "{which:?}: {out}");
        let (at, expires): (jiff::Timestamp, jiff::Timestamp) =
            (proof["at"].as_str().unwrap().parse().unwrap(), proof["expires"].as_str().unwrap().parse().unwrap());
        let hours = expires.duration_since(at).as_hours();
        assert!((160..168).contains(&hours), "{which:?}: {hours} hours");
        assert_eq!(stage.instances("east").instance("orders-east").await.unwrap().unwrap().status, "stopped");
        assert_eq!(stage.proxy.asked("Action=StopDBInstance"), 1, "{which:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_password_is_set_once_and_never_shown() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = stage(which).await;
        let by = json!(["instance_stopped", "credentials_rotated"]);
        // RDS changes nothing of a stopped instance, so the password comes first.
        let with = json!({ "database": "orders", "region": "east", "by": ["credentials_rotated"] });
        let refused = stage.step("database.fence", "one", with).await.unwrap_err();
        assert!(refused.starts_with("unsound"), "{which:?}: {refused}");
        stage.proxy.fault("MasterUserPassword=another-one", 1, super::fault_proxy::Fault::CutAfter);
        let with = json!({ "database": "orders", "region": "east", "by": by });
        let out = stage.step("database.fence", "two", with).await.unwrap();
        assert!(!out.to_string().contains("another-one"), "{out}");
        assert_eq!(out["proof"]["also"], json!(["credentials_rotated"]), "{which:?}: {out}");
        assert!(stage.proxy.asked("MasterUserPassword=another-one") >= 1, "{which:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_group_without_its_sessions_ended_is_no_proof() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = stage(which).await;
        // Nothing listens behind the emulator's instance: nobody can say that no session is left.
        let with = json!({ "database": "orders", "region": "east", "by": ["security_group_closed"] });
        let refused = stage.step("database.fence", "one", with).await.unwrap_err();
        assert!(refused.starts_with("cannot tell"), "{which:?}: {refused}");
        let found = stage.instances("east").instance("orders-east").await.unwrap().unwrap();
        assert_eq!(found.groups.keys().collect::<Vec<_>>(), ["sg-closed"], "{which:?}: it is closed all the same");
    }
}
