//! `muster drill run` killed and interrupted in the middle: another process goes on, finishes the failover
//! without doing anything twice, heals, leads back, and owns up to what it could not measure.

use crate::drill_support::*;
use muster::{
    model::event::{Body, RunRole},
    providers::clock::{Clock, SystemClock},
};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn drill_goes_on_after_an_interrupt_and_after_kill_9_at_ten_random_moments() {
    // Two labs beside each other, since a drill mostly waits: one is killed in the even tenths of its
    // length, the other in the odd ones.
    std::thread::scope(|scope| {
        for (tenths, interrupted_at) in [([0, 2, 4, 6, 8], "applying"), ([1, 3, 5, 7, 9], "healed")] {
            scope.spawn(move || {
                let desk = Desk::with_lab();
                desk.drill("crash", &[]);
                let length = interrupted(&desk, interrupted_at);
                let clock = SystemClock::new();
                for tenth in tenths {
                    let at = (f64::from(tenth) + clock.jitter()) * length as f64 / 10.0;
                    killed(&desk, at as usize, std::time::Duration::from_secs_f64(clock.jitter() * 0.6));
                }
                desk.evidence_holds();
            });
        }
    });
}

/// Ctrl-C once: the run is paused, and `resume` completes the drill. Gives the number of its events.
fn interrupted(desk: &Desk, at: &str) -> usize {
    let before = desk.timeline("east");
    let mut drill = desk.start(&["drill", "run", "crash"]);
    drill.until_event(at);
    drill.signal(Signal::INT);
    let stopped = drill.end();
    assert_eq!(stopped.code, Some(3), "{at}: {}", stopped.story);
    assert!(stopped.story.contains("muster resume"), "{at}: {}", stopped.story);
    let resumed = desk.muster(&["resume"]);
    let view = resumed.result();
    println!("interrupted at {at}: stopped after {:?}, then {} {}", stopped.took, view["verdict"], view["rto"]);
    assert_eq!((resumed.code, &view["verdict"]), (Some(1), &"inconclusive".into()), "{at}: {view}");
    complete(desk, view, before);
    figures(desk, view, at);
    stopped.events().len() + resumed.events().len()
}

/// SIGKILL once so many events are durable, and a little later; then all that must hold.
fn killed(desk: &Desk, at: usize, more: std::time::Duration) {
    let before = desk.timeline("east");
    let mut drill = desk.start(&["drill", "run", "crash"]);
    let reached = drill.until_events(at);
    std::thread::sleep(more);
    if reached {
        drill.signal(Signal::KILL);
    }
    let killed = drill.end();
    let last = killed.events().last().map_or("nothing".to_owned(), |event| event["body"]["kind"].to_string());
    let resumed = desk.muster(&["resume"]);
    let view = resumed.result();
    println!("killed {more:?} after event {at}, {last} being the last: {} {}", view["verdict"], view["rto"]);
    let moment = format!("killed {more:?} after event {at} ({last})\n{}\n{}", killed.story, resumed.story);
    if view.get("resumed").is_some() {
        // Nothing was open: killed before the drill was on record, or after its verdict was.
        let finished = killed.events().iter().any(|event| event["body"]["kind"] == "drill_finished");
        let none = killed.events().is_empty();
        assert!(none || finished || killed.code.is_some(), "{moment}");
        assert_eq!(resumed.code, Some(0), "{moment}");
        assert_eq!(desk.timeline("east"), if none { before } else { before + 2 }, "{moment}");
        return;
    }
    assert_eq!((resumed.code, &view["verdict"]), (Some(1), &"inconclusive".into()), "{moment}\n{view}");
    complete(desk, view, before);
    figures(desk, view, &moment);
}

/// The failover succeeded, once; the estate is as it was found; the record holds.
fn complete(desk: &Desk, view: &Value, before: u32) {
    let run = view["run"].as_str().unwrap_or_else(|| panic!("no run: {view}"));
    let then = &view["then"];
    assert_eq!((&then["status"], &then["as_found"]), (&"succeeded".into(), &true.into()), "{view}");
    let back = then["run"].as_str().unwrap();
    let mut timeline = before;
    for id in [run, back] {
        let shown = desk.muster(&["show", id]);
        let run = shown.result();
        assert_eq!(run["status"], "succeeded", "{run}");
        let promoted = run["steps"].as_array().unwrap().iter().find(|step| step["id"] == "promote").unwrap();
        let output = &promoted["output"];
        assert_eq!((&output["timeline_before"], &output["timeline_after"]), (&timeline.into(), &(timeline + 1).into()), "{promoted}");
        timeline += 1;
        let applied =
            desk.events(id).iter().filter(|s| matches!(&s.event.body, Body::Applied { step, .. } if step.as_str() == "promote")).count();
        assert!(applied <= 1, "promoted {applied} times");
    }
    assert_eq!(desk.timeline("east"), timeline, "the server was promoted other than the record says");
    assert_eq!(view["evidence"]["verified"], true, "{view}");
}

/// What had been measured before the hole stays; what spans it is null, never zero.
fn figures(desk: &Desk, view: &Value, moment: &str) {
    let events = desk.events(view["id"].as_str().unwrap());
    let place = |found: fn(&Body) -> bool| events.iter().position(|stored| found(&stored.event.body));
    let hole = place(|body| matches!(body, Body::Hole { .. })).expect("a hole on record");
    let measured = |role| place(role).is_some_and(|at| at < hole);
    if measured(|body| matches!(body, Body::Measured { phase: RunRole::Main, .. })) {
        assert!(view["rpo"]["lost_writes"] == 0 && view["rto"]["actual_ms"].is_u64(), "{moment}\n{view}");
        parts(view);
    } else {
        for figure in [&view["rto"]["actual_ms"], &view["rto"]["parts_ms"]["act"], &view["rpo"]["actual_ms"], &view["rpo"]["lost_writes"]] {
            assert!(figure.is_null(), "{moment}\n{view}");
        }
    }
    if measured(|body| matches!(body, Body::Measured { phase: RunRole::Then, .. })) {
        assert_eq!(view["then"]["lost_writes"], 0, "{moment}\n{view}");
    }
    let lost = &view["then"]["lost_writes"];
    assert!(lost.is_null() || *lost == 0, "{moment}\n{view}");
}
