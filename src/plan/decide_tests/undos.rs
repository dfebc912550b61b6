//! An undo that fails in a way that may pass: when it is tried again, and what waits for it.

use super::*;

/// `a` and `b` are done, `c` failed: all of them are undone, the last first.
fn failed() -> Story {
    let mut s = story(vec![step("a", &[]), step("b", &["a"]), on_failure(step("c", &["b"]), OnFailure::Undo)]);
    s.done("a").done("b").fails("c");
    s
}

#[test]
fn an_undo_is_tried_again_when_its_wait_is_over_and_those_before_it_wait() {
    let mut s = failed();
    s.undo_fails_for_now("c", 2_000);
    assert_eq!(s.next(), ["wake in 2000"]);
    assert_eq!(s.later(1_999).next(), ["wake in 1"]);
    assert_eq!(s.later(1).next(), ["undo c"]);
    s.undoing("c");
    assert_eq!((s.state.steps["c"].undo_tries.attempts, s.state.steps["c"].undo_tries.doubt), (2, true));
    s.say(Body::Undone { step: "c".into() });
    assert_eq!(s.undone_to_the_end(), ["undo b", "undo a", "finish failed"]);
    assert_eq!(s.state.reason.as_deref(), Some("step `c` failed"), "everything was undone after all");
}

#[test]
fn another_owner_goes_on_with_an_undo_where_it_was() {
    let mut s = failed();
    s.undo_fails_for_now("c", 2_000).later(500).crash();
    assert_eq!(s.next(), ["wake in 1500"], "its wait goes on");
    s.later(1_500).undoing("c").later(10).crash();
    assert_eq!(s.next(), ["undo c"], "what was begun and not heard of is done again at once");
    s.undoing("c");
    let tries = &s.state.steps["c"].undo_tries;
    assert_eq!((tries.attempts, tries.doubt, tries.since), (3, true, Some(s.now)), "with the attempts there were, and all its time");
}

#[test]
fn an_undo_does_not_wait_for_a_clock_that_was_set_back() {
    let mut s = failed();
    s.undo_fails_for_now("c", 2_000).later(-7_200_000);
    assert_eq!(s.next(), ["undo c"]);
}

#[test]
fn a_pause_holds_an_undo_that_waits_and_an_abort_ends_it() {
    let mut s = failed();
    s.undo_fails_for_now("c", 2_000).pause();
    assert_eq!(s.next(), ["park paused"]);
    assert_eq!(s.say(Body::Resumed).next(), ["wake in 2000"]);
    s.abort();
    assert_eq!(s.undone_to_the_end(), ["end undo of c: aborted", "finish aborted"], "the record leaves nothing open");
    assert!(s.state.steps["c"].failure.as_ref().unwrap().to_string().contains("may have been undone"));
}

#[test]
fn a_run_that_ends_lets_go_of_its_wheel_also_when_that_takes_several_attempts() {
    let wheel = PlanStep { kind: StepKind::Action { name: WHEEL_TAKE.into(), version: 1, effect: Effect::Observable }, ..step("w", &[]) };
    let mut s = story(vec![wheel, step("a", &["w"])]);
    let intent = serde_json::json!({ "bucket": "models", "region": "west" });
    s.say(Body::Prepared { step: "w".into(), intent, hash: "h".into(), measured: None, change: vec![], notes: vec![] });
    s.say(Body::Applying { step: "w".into(), attempt: 1, epoch: 1, key: "k".into() }).verified("w");
    s.abort();
    assert_eq!(s.next(), ["undo w"]);
    s.undo_fails_for_now("w", 2_000);
    assert_eq!(s.next(), ["wake in 2000"], "an abort does not leave the wheel behind");
    assert_eq!(s.later(2_000).undone_to_the_end(), ["undo w", "end a cancelled", "finish aborted"]);
}

#[test]
fn records_from_before_undos_were_tried_again_mean_what_they_meant() {
    let old = r#"{"kind":"undoing","step":"c"}"#;
    let read: Body = serde_json::from_str(old).unwrap();
    assert_eq!(read, Body::Undoing { step: "c".into(), attempt: 1 });
    // An owner died, the next one undid it again; then it failed: so it was told, and so it ends.
    let mut s = failed();
    s.say(read.clone()).crash().say(read).say(Body::UndoFailed { step: "c".into(), failure: failure() });
    assert_eq!((s.state.steps["c"].undo, s.state.steps["c"].undo_tries.attempts), (UndoState::Failed, 2));
    assert_eq!(s.undone_to_the_end(), ["undo b", "undo a", "finish failed"]);
}
