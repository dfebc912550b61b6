//! Where Patroni manages the clusters, Patroni is asked: for a change of leaders within a region, for a region to become a
//! standby cluster and for the other to become a primary. Nothing that was acknowledged is lost, nothing happens twice, and
//! a Patroni that is paused, frozen or away is named with what to do about it.

use crate::{
    pg_load::missing,
    pg_patroni_yard::Yard,
    pg_yard::{apply, observed, prepare, undo},
};
use serde_json::{Value, json};
use std::time::Duration;

fn switch(member: &str) -> Value {
    json!({ "database": "orders", "to": "east", "member": member })
}

fn fence(region: &str) -> Value {
    json!({ "database": "orders", "region": region, "planned": true })
}

/// How often the leaders of east have changed, as Patroni itself has it on record.
async fn changes(yard: &Yard) -> usize {
    yard.member("e1").get("history").await.and_then(|h| h.as_array().map(Vec::len)).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn patroni_is_asked_and_nothing_is_lost() {
    let yard = Yard::up().await;
    within_a_region(&yard).await;
    twice_is_once(&yard).await;
    between_regions(&yard).await;
    what_stands_in_the_way(&yard).await;
}

/// While clients write, to the member that Muster chooses.
async fn within_a_region(yard: &Yard) {
    let load = yard.clients();
    load.flows().await;
    let out = yard.done("database.switchover", json!({ "database": "orders", "to": "east" })).await;
    assert_eq!((out["leader"].as_str(), out["rejoined"].as_bool()), (Some("e2"), Some(true)), "{out}");
    assert_eq!((&out["timeline_before"], &out["timeline_after"]), (&1.into(), &2.into()), "{out}");
    assert!(out["write_pause_ms"].is_null(), "Patroni does it, so it was not measured: {out}");
    load.flows().await;
    let account = load.end().await;
    let lost = missing(&yard.member("e2").cluster, &account.acknowledged).len();
    eprintln!(
        "a switchover by Patroni: {} acknowledged, {} failed and tried again, longest gap {} ms, {lost} lost",
        account.acknowledged.len(),
        account.failed.len(),
        account.longest_gap().as_millis()
    );
    assert_eq!(lost, 0);
    // One that leads already is asked for nothing.
    assert_eq!(yard.done("database.switchover", switch("e2")).await["leader"], "e2");
}

/// Muster dies after it has asked, before it has noted so; and asks again although it need not.
async fn twice_is_once(yard: &Yard) {
    let (before, cx) = (changes(yard).await, yard.next("switch"));
    let intent = prepare(&cx, "database.switchover", &switch("e1")).await.unwrap();
    // It dies while Patroni is at it.
    let cut = tokio::time::timeout(Duration::from_millis(150), apply(&cx, "database.switchover", &intent)).await;
    assert!(cut.is_err(), "Patroni was faster than can be: {cut:?}");
    yard.eventually("the request is carried out", async |y| y.role("e1").await.0 == "leader").await;
    let after = yard.next("after the crash");
    let seen = observed(&after, "database.switchover", &intent).await.unwrap();
    assert_eq!(seen["leader"], "e1");
    // Whoever asks again all the same is refused by Patroni itself: another leads by now.
    let again = apply(&after, "database.switchover", &intent).await.unwrap_err();
    assert!(again.code == "refused" && again.message.contains("leader name does not match"), "{again}");
    assert_eq!((yard.role("e1").await.0.as_str(), changes(yard).await), ("leader", before + 1));
    assert_eq!(undo(&after, "database.switchover", &intent).await.unwrap_err().code, "promoted");
}

/// East becomes a standby cluster, west a primary; and back.
async fn between_regions(yard: &Yard) {
    assert_eq!(yard.settled("leader").await.0, "e1");
    assert_eq!(yard.refused("database.switchover", json!({ "database": "orders", "to": "west" })).await.0, "standby_cluster");
    let load = yard.clients();
    load.flows().await;
    // Asked for while clients write: what they were told is there is before the position in the proof.
    let cx = yard.next("fence");
    let intent = prepare(&cx, "database.fence", &fence("east")).await.unwrap();
    apply(&cx, "database.fence", &intent).await.unwrap();
    let proof = observed(&cx, "database.fence", &intent).await.unwrap()["proof"].clone();
    assert_eq!((&proof["kind"], proof["lsn"].is_string()), (&"patroni_demoted".into(), true), "{proof}");
    let out = yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    assert!(out["timeline_after"].as_u64() > out["timeline_before"].as_u64(), "{out}");
    let account = load.end().await;
    let lost = missing(&yard.member("w1").cluster, &account.acknowledged).len();
    eprintln!("from region to region by Patroni: {} acknowledged, {lost} lost", account.acknowledged.len());
    assert_eq!(lost, 0);
    // The proof is worth nothing for the way back, and east cannot be opened under a promoted west.
    assert_eq!(undo(&cx, "database.fence", &intent).await.unwrap_err().code, "promoted");
    yard.settled("standby_leader").await;
    yard.member("w1").cluster.sql("INSERT INTO writes (id) VALUES (-1)");
    let proof = yard.done("database.fence", fence("west")).await["proof"].clone();
    yard.done("database.promote", json!({ "database": "orders", "region": "east", "proof": proof })).await;
    let (leader, _) = yard.settled("leader").await;
    assert_eq!(yard.member(leader).cluster.sql("SELECT count(*) FROM writes WHERE id = -1"), "1");
}

async fn what_stands_in_the_way(yard: &Yard) {
    let (leader, other) = yard.settled("leader").await;
    // Work past Patroni is refused.
    let (code, remedy) = yard.refused("database.fence", json!({ "database": "orders", "region": "east", "by": ["hba_closed"] })).await;
    assert!(code == "no_server" || code == "patroni", "{code}: {remedy}");
    let (code, remedy) = yard.refused("database.switchover", switch("e9")).await;
    assert!(code == "no_member", "{code}: {remedy}");
    // Paused.
    yard.member(leader).configure(json!({ "pause": true })).await;
    for (uses, with) in [("database.switchover", switch(other)), ("database.fence", fence("east"))] {
        assert_eq!(yard.refused(uses, with).await, ("patroni_paused".into(), "patronictl resume orders-east".into()), "{uses}");
    }
    let cx = yard.next("readiness");
    let failed = apply(&cx, "readiness.check", &json!({ "region": "east", "services": [] })).await.unwrap_err();
    assert!(failed.message.contains("database/orders patroni: patroni_paused"), "{failed}");
    replica_verify_names_the_pause(yard, leader);
    yard.member(leader).configure(json!({ "pause": null })).await;
    // One whose Patroni is frozen may be a primary: no proof is given over it.
    yard.member(other).signal("STOP");
    let cx = yard.next("fence");
    let intent = prepare(&cx, "database.fence", &fence("east")).await.unwrap();
    apply(&cx, "database.fence", &intent).await.unwrap();
    yard.eventually("its leader follows", async |y| y.role(leader).await.0 == "standby_leader").await;
    let blind = observed(&cx, "database.fence", &intent).await.unwrap_err();
    assert!(blind.code == "cannot_tell" && blind.message.contains("may be a primary still"), "{blind}");
    yard.member(other).signal("CONT");
    observed(&cx, "database.fence", &intent).await.unwrap();
    undo(&cx, "database.fence", &intent).await.unwrap();
    let (leader, other) = yard.settled("leader").await;
    // A wrong password; a place where nobody answers.
    let mut estate = yard.describe();
    std::fs::write(yard.scratch.path().join("wrong.pw"), "guess").unwrap();
    estate["databases"]["orders"]["instances"]["east"]["patroni"]["password"] = json!({ "file": yard.scratch.path().join("wrong.pw") });
    let cx = yard.of(estate.clone());
    let intent = prepare(&cx, "database.switchover", &switch(other)).await.unwrap();
    let failed = apply(&cx, "database.switchover", &intent).await.unwrap_err();
    assert!(failed.code == "config" && failed.message.contains("restapi.authentication") && !failed.message.contains("guess"), "{failed}");
    estate["databases"]["orders"]["instances"]["east"]["patroni"]["urls"] = json!([format!("http://127.0.0.1:{}", crate::pg::free_port())]);
    let failed = prepare(&yard.of(estate), "database.switchover", &switch(other)).await.unwrap_err();
    assert!(failed.code == "patroni_unreachable" && failed.message.contains("systemctl start patroni"), "{failed}");
    assert_eq!(yard.role(leader).await.0, "leader");
}

/// By hand: the replica is good, and that nobody could fail over to it is said beside it, with what to do.
fn replica_verify_names_the_pause(yard: &Yard, leader: &str) {
    let mut estate = yard.describe();
    estate["databases"]["orders"]["instances"]["east"]["port"] = json!(yard.member(leader).cluster.port);
    estate["lab"] = json!(false);
    let file = yard.scratch.path().join("muster.yaml");
    std::fs::write(&file, estate.to_string()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["replica", "verify", "orders", "--state-only", "--json", "--estate"]).arg(&file).arg("--state").arg(yard.scratch.path());
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    let last = said.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    let answer: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&answer["primary"], &answer["standby"]), (&"east".into(), &"west".into()), "{answer}");
    let notes = answer["notes"].as_array().unwrap();
    let paused = notes.iter().find(|note| note["what"] == "patroni_paused").unwrap_or_else(|| panic!("{answer}"));
    assert!(paused["detail"].as_str().unwrap().contains("`orders` in `east` is paused"), "{paused}");
    assert_eq!(paused["cure"], "patronictl resume orders-east");
}
