//! `muster demo` as a newcomer starts it: it recovers from each loss, measures it, and leaves nothing behind,
//! also when it is broken off.

use crate::drill_support::*;
use rustix::process::Signal;
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};

/// The whole demo; what it promises whatever is lost.
fn recovers_from(scenario: &str) {
    let ran = recovers(scenario, "control-plane", "own");
    through_the_control_plane(ran.result());
    home_by_a_switchover(&ran);
}

fn through_the_control_plane(view: &Value) {
    assert_eq!(view["traffic"]["path"], "control-plane", "{view}");
    assert!(view["traffic"]["control_plane_calls"].as_u64().unwrap() > 0, "{view}");
}

/// The way back: primary and standby change places under load, and what clients feel is that and no more.
fn home_by_a_switchover(ran: &Ran) {
    let then = &ran.result()["then"];
    let run = then["run"].as_str().unwrap();
    let of_run = |kind: &str, step: &str| {
        let is = |event: &&&Value| event["run"] == run && event["body"]["kind"] == kind && event["body"]["step"] == step;
        ran.events().iter().filter(is).map(|event| (*event).clone()).collect::<Vec<_>>()
    };
    let switched = of_run("verified", "switch").pop().unwrap_or_else(|| panic!("no switchover: {}", ran.story));
    let output = &switched["body"]["output"];
    assert_eq!((&output["to"], &output["rejoined"]), (&"east".into(), &true.into()), "{switched}");
    // The name had moved before, while writes went on.
    let moved = of_run("verified", "traffic").pop().unwrap_or_else(|| panic!("no traffic moved: {}", ran.story));
    assert!(moved["seq"].as_u64().unwrap() < switched["seq"].as_u64().unwrap(), "{moved} {switched}");
    let (held, felt) = (output["write_pause_ms"].as_u64().unwrap(), then["write_pause_ms"].as_u64().unwrap());
    println!("the way back: writes held for {held} ms, none acknowledged for {felt} ms, {} acknowledged", then["acknowledged_writes"]);
    assert!(felt < held + 1_000, "clients felt {felt} ms of a pause of {held} ms");
}

#[test]
fn demo_on_amazons_servers_comes_back_by_fence_and_promotion() {
    let ran = recovers("kill-region", "control-plane", "rds");
    through_the_control_plane(ran.result());
    let steps: Vec<_> =
        ran.events().iter().filter(|event| event["body"]["kind"] == "verified").map(|e| e["body"]["step"].clone()).collect();
    assert!(steps.contains(&"admit".into()) && !steps.contains(&"switch".into()), "{steps:?}");
}

#[test]
fn demo_fails_over_through_the_data_plane_with_the_control_plane_killed() {
    let ran = recovers("kill-region", "data-plane", "own");
    let view = ran.result();
    assert_eq!(view["traffic"], serde_json::json!({ "path": "data-plane", "control_plane_calls": 0 }), "{view}");
    let bodies = ran.events().into_iter().map(|event| &event["body"]);
    let faults: Vec<_> = bodies.filter(|body| body["kind"] == "injected").map(|body| body["fault"].clone()).collect();
    assert!(faults.len() == 2 && faults[0]["lose-control-plane"].is_object() && faults[1]["kill"].is_object(), "{faults:?}");
    let steps = view["steps"].as_array().unwrap();
    let traffic = steps.iter().find(|step| step["id"] == "traffic").unwrap();
    assert_eq!((&traffic["uses"], &traffic["status"]), (&"dns.standby_takes_over".into(), &"succeeded".into()));
}

fn recovers(scenario: &str, path: &str, servers: &str) -> Ran {
    let desk = Desk::new();
    let ran = desk.muster(&["demo", "--scenario", scenario, "--path", path, "--servers", servers]);
    assert_eq!(ran.code, Some(0), "{}", ran.story);
    let view = ran.result();
    assert_eq!((&view["verdict"], reasons(view).as_str()), (&"pass".into(), ""), "{view}");
    assert!(view["rpo"]["acknowledged_writes"].as_u64().unwrap() > 100, "{view}");
    assert!(view["rpo"]["lost_writes"].is_u64(), "{view}");
    assert!(view["rto"]["actual_ms"].as_i64().unwrap() < 15_000, "{view}");
    println!("{scenario}, {path}, {servers}: RTA {} ms in parts {:?}, whole demo {:?}", view["rto"]["actual_ms"], parts(view), ran.took);
    let then = &view["then"];
    assert_eq!((&then["status"], &then["as_found"]), (&"succeeded".into(), &true.into()), "{then}");
    assert_eq!((&then["lost_writes"], &then["stray_writes"]), (&0.into(), &0.into()), "{then}");
    assert!(then["acknowledged_writes"].as_u64().unwrap() > 0, "{then}");
    assert_eq!(view["evidence"]["verified"], true, "{view}");
    the_probe_detected_it(&ran);
    second_drill(&view["database_restore"], servers);

    assert_eq!(desk.processes(), Vec::<String>::new(), "processes are left");
    let report = format!("muster-demo-report-{}.html", view["id"].as_str().unwrap());
    assert_eq!(desk.leavings(), BTreeSet::from([report]), "only the report is meant to stay");
    assert!(!desk.state().exists());
    ran
}

/// The database from its backup, which was made before all the load, and its log, which came through loss, promotion and the way back:
/// what is lacking is held against what the primary has, on the timeline that it is on by then.
fn second_drill(restored: &Value, servers: &str) {
    if servers != "own" {
        assert!(restored.is_null(), "{restored}");
        return;
    }
    let (rpo, loss) = (&restored["rpo"], &restored["restore"]["losses"]["prove"]);
    println!("from its backup and its log alone: {rpo}, {loss}");
    // From commit to commit, and each is counted.
    assert_eq!((&restored["verdict"], &rpo["upper_bound"]), (&"pass".into(), &false.into()), "{restored}");
    assert!(rpo["actual_ms"].as_u64().unwrap() < 1_000 && rpo["lost_commits"].as_u64().unwrap() < 10, "{rpo}");
    assert!(loss["primary_timeline"].as_u64().unwrap() > 1 && loss["region"] == "east", "{loss}");
}

/// Fault, verdict of the probe, run: in this order, and the verdict as late as so many missed answers are.
fn the_probe_detected_it(ran: &Ran) {
    let (fault, injecting) = ran.event("injecting");
    let (verdict, detected) = ran.event("detected");
    let (started, run) = ran.event("run_started");
    assert!(fault < verdict && verdict < started, "{fault} {verdict} {started}");
    let (body, lost_at) = (&detected["body"], instant(&injecting["at"]));
    assert_eq!(body["missed"], 5, "{body}");
    // Four intervals of 40 ms lie between the first and the fifth question; one may have been under way.
    let took = instant(&body["at"]).duration_since(lost_at);
    assert!(took.as_millis() >= 3 * 40, "detected {took:?} after the injection: no probe is as fast");
    assert!(instant(&run["at"]) >= instant(&body["at"]), "the run began before the verdict");
    let measured = &ran.event("measured").1["body"];
    assert_eq!(measured["instants"]["detected"], body["at"], "{measured}");
    assert!(measured["instants"]["last_good"].is_string(), "{measured}");
}

#[test]
fn demo_recovers_from_a_killed_region() {
    recovers_from("kill-region");
}

#[test]
fn demo_recovers_from_a_frozen_region_and_what_thaws_acknowledges_nothing() {
    recovers_from("freeze-region");
}

#[test]
fn demo_recovers_from_a_lost_database() {
    recovers_from("lose-database");
}

#[test]
fn demo_that_is_interrupted_leaves_nothing() {
    let desk = Desk::new();
    let moments: [(&str, fn(&Running) -> bool); 3] = [
        ("while the lab comes up", |demo| demo.story().contains("copying it to the west")),
        ("in the steady state", |demo| demo.lines().iter().any(|line| line["event"]["body"]["kind"] == "drill_created")),
        ("in the failover", |demo| demo.lines().iter().any(|line| line["event"]["body"]["kind"] == "run_started")),
    ];
    for (moment, reached) in moments {
        let mut demo = desk.start(&["demo"]);
        assert!(demo.until(reached), "{moment}: {}", demo.story());
        demo.signal(Signal::INT);
        let told = std::time::Instant::now();
        let ran = demo.end();
        let took = told.elapsed();
        println!("interrupted {moment}: ended after {took:?} with {:?}", ran.code);
        assert_eq!(ran.code, Some(2), "{moment}: {}", ran.story);
        assert!(took < Duration::from_secs(30), "{moment}: {took:?}");
        assert!(ran.story.contains("nothing is left"), "{moment}: {}", ran.story);
        assert!(!ran.story.contains("muster resume"), "{moment}: there is nothing to go on with: {}", ran.story);
        assert_eq!(ran.story.matches("interrupted:").count(), 1, "{moment}: {}", ran.story);
        assert_eq!(desk.processes(), Vec::<String>::new(), "{moment}");
        assert_eq!(desk.leavings(), BTreeSet::new(), "{moment}");
    }
}

#[test]
fn demo_that_is_killed_is_cleaned_up_by_lab_down() {
    let desk = Desk::new();
    let mut demo = desk.start(&["demo"]);
    demo.until_event("drill_created");
    demo.signal(Signal::KILL);
    assert_eq!(demo.end().code, None);
    assert_ne!(desk.processes(), Vec::<String>::new(), "the lab outlives a demo that is killed");
    let left = desk.leavings();
    let home = left.iter().find(|name| name.starts_with("muster-demo-")).expect("the demo's directory");
    let state = desk.tmp().join(home).join("state");
    let down = desk.muster(&["lab", "down", "--state", state.to_str().unwrap()]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert_eq!(desk.processes(), Vec::<String>::new());
    assert_eq!(desk.leavings(), BTreeSet::from([home.clone()]), "the journal stays, for whoever wants to look");
}

#[test]
fn demo_that_is_killed_is_cleaned_up_by_the_next_one() {
    let desk = Desk::new();
    let mut killed = desk.start(&["demo"]);
    killed.until_event("run_created");
    killed.signal(Signal::KILL);
    assert_eq!(killed.end().code, None);
    assert_ne!(desk.processes(), Vec::<String>::new(), "the lab outlives a demo that is killed");
    let mut next = desk.start(&["demo"]);
    next.until_event("run_created");
    next.signal(Signal::INT);
    assert_eq!(next.end().code, Some(2));
    assert_eq!(desk.processes(), Vec::<String>::new());
    assert_eq!(desk.leavings(), BTreeSet::new());
}
