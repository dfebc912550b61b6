//! Fencing an RDS instance: the API is an emulator's, the server behind the instance is a real PostgreSQL, whose sessions
//! outlive a change of security groups as they do at Amazon's.

use super::{
    pg::{Cluster, Home},
    pg_yard::session,
    rds_stage::{EAST, NOWHERE, Stage, Which, at},
};
use muster::actions::{contract::Action, database_fence::Fence};
use serde_json::json;
use sqlx::Executor;

const FENCE: &str = "        fence:\n          security_group: sg-closed\n          master_password: { fenced: { file: @/fenced }, usual: { file: @/usual } }\n";

async fn stage(which: Which) -> Stage {
    let stage = Stage::with(which, &format!("{NOWHERE}{FENCE}"), NOWHERE).await;
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

/// The server behind the instance is a real one here: a session that was open when the group changed is ended, and the
/// proof names the position that nobody can add to.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_group_ends_the_sessions_that_had_stayed_open() {
    let home = Home::new();
    let server = Cluster::primary(&home);
    server.sql("CREATE ROLE app LOGIN PASSWORD 'a'");
    server.sql("CREATE TABLE writes (id bigint)");
    server.sql("GRANT ALL ON writes TO app");
    let standby = server.standby(&home);
    let stage = Stage::with(Which::Moto, &(at(server.port) + FENCE), &at(standby.port)).await;
    stage.place.file("fenced", "another-one").file("usual", "first-one");
    stage.make_instance(EAST, "orders-east").await;
    let groups = async || {
        let found = stage.instances("east").instance("orders-east").await.unwrap().unwrap();
        found.groups.into_keys().collect::<Vec<_>>()
    };
    let before = groups().await;
    let mut client = session(server.port, "app", "postgres").await.unwrap();
    client.execute("INSERT INTO writes VALUES (1)").await.unwrap();

    let with = json!({ "database": "orders", "region": "east", "planned": true, "by": ["security_group_closed"] });
    let cx = stage.cx("one");
    let input = muster::model::node::decode(&muster::model::node::Node::typed(with)).unwrap();
    let intent = Fence::prepare(&cx.read, input).await.map_err(|r| r.failure).unwrap().intent;
    Fence::apply(&cx, &intent).await.unwrap();
    let muster::model::effect::Seen::Done(out) = Fence::observe(&cx.read, &intent).await else { panic!("it is fenced") };
    let proof = out.proof.unwrap();
    assert!(proof.lsn.is_some() && proof.detail.contains("sg-closed"), "{proof:?}");
    assert_eq!(groups().await, ["sg-closed"]);
    assert!(client.execute("INSERT INTO writes VALUES (2)").await.is_err(), "its session was ended");
    assert_eq!(server.sql("SELECT count(*) FROM writes"), "1");

    Fence::undo(&cx, &intent, None).await.unwrap();
    assert_eq!(groups().await, before, "what stood is back");
    let mut client = session(server.port, "app", "postgres").await.unwrap();
    client.execute("INSERT INTO writes VALUES (3)").await.unwrap();
}

/// A role that may not do the second half of the fence does not begin with the first: nothing is changed at the API.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_cannot_end_the_sessions_does_not_begin() {
    let home = Home::new();
    let server = Cluster::primary(&home);
    server.sql("CREATE ROLE limited LOGIN");
    server.sql("CREATE DATABASE orders");
    let standby = server.standby(&home);
    let stage = Stage::with(Which::Moto, &(at(server.port) + FENCE), &at(standby.port)).await;
    stage.place.file("fenced", "another-one").file("usual", "first-one");
    stage.make_instance(EAST, "orders-east").await;
    let estate =
        stage.place.read("muster.yaml").replace("engine: rds-postgres\n", "engine: rds-postgres\n    name: orders\n    user: limited\n");
    stage.place.file("muster.yaml", &estate);
    stage.place.book("  - id: fence\n    uses: database.fence\n    on_failure: stop\n    with: { database: orders, region: east, planned: true, by: [security_group_closed] }\n");
    let fence = |code| tokio::task::block_in_place(|| stage.place.muster(&["run", "book.yaml", "--live"])).expect(code).step("fence");
    let lacking = |step: &serde_json::Value, what: &str| {
        let text = step["failure"]["message"].as_str().unwrap_or_default();
        assert_eq!((step["failure"]["code"].as_str(), text.contains(what)), (Some("lacks_rights"), true), "{step}");
    };
    let step = fence(1);
    for what in ["does not own the database", "pg_monitor", "pg_signal_backend"] {
        lacking(&step, what);
    }
    server.sql("GRANT pg_monitor, pg_signal_backend TO limited");
    let step = fence(1);
    lacking(&step, "does not own the database");
    assert!(!step.to_string().contains("no member"), "{step}");
    assert_eq!(stage.proxy.asked("Action=ModifyDBInstance"), 0, "nothing was begun");
    server.sql("ALTER DATABASE orders OWNER TO limited");
    assert_eq!(fence(0)["output"]["proof"]["kind"], "security_group_closed");
}

/// The real program is killed while RDS stops the instance and the answer is on its way: it is asked to stop it once.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_is_killed_before_its_record_is_closed_once() {
    for which in [Which::Moto, Which::MiniStack] {
        let stage = stage(which).await;
        let with = json!({ "database": "orders", "region": "east", "by": ["instance_stopped"] });
        stage.killed_before_its_record("database.fence", "Action=StopDBInstance", &with);
        assert_eq!(stage.proxy.passed("Action=StopDBInstance"), 1, "{which:?}");
        assert_eq!(stage.instances("east").instance("orders-east").await.unwrap().unwrap().status, "stopped", "{which:?}");
    }
}
