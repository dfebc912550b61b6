//! The same stories where people are asked: in time, too late, void, before a step of its own, in a drill.

use super::*;

#[test]
fn an_approval_needs_different_people_in_time_over_this_very_plan() {
    let mut s = story(vec![approval("ok", &[], 2), step("a", &["ok"])]);
    assert_eq!(s.next(), ["ask ok"]);
    s.asked("ok");
    assert_eq!(s.next(), ["park waiting_approval", "wake in 60000"]);
    s.approves("ok", "ana", "plan").approves("ok", "ana", "plan").approves("ok", "ben", "another plan");
    assert_eq!(s.next(), ["park waiting_approval", "wake in 60000"], "one person twice is one; another plan is none");
    s.approves("ok", "ben", "plan");
    assert_eq!(s.next(), ["end ok succeeded"]);
    assert_eq!(s.crash().next(), ["end ok succeeded"], "given in time, it stands, whoever goes on");
    assert_eq!(s.later(3_600_000).next(), ["void ok"], "but not for ever: nothing is done on what was approved an hour ago");
    s.say(Body::ApprovalVoid { step: "ok".into(), why: "late".into(), facts: Default::default() });
    assert_eq!(s.next(), ["ask ok"]);
}

#[test]
fn an_approval_that_comes_too_late_counts_for_nothing() {
    let mut s = story(vec![approval("ok", &[], 2), step("a", &["ok"])]);
    s.asked("ok").approves("ok", "ana", "plan").later(60_000).approves("ok", "ben", "plan");
    assert_eq!(s.next(), ["end ok failed: approval_expired"]);
    s.say(Body::StepEnded { step: "ok".into(), status: StepStatus::Failed, failure: None });
    assert_eq!(s.next(), ["park paused"]);
    s.say(Body::RetryRequested { step: "ok".into(), by: "ana".into() });
    assert_eq!(s.next(), ["ask ok"]);
    assert_eq!(s.asked("ok").approves("ok", "ben", "plan").next().first().unwrap(), "park waiting_approval", "it begins at none");
}

#[test]
fn a_rejection_fails_the_step_whoever_approved() {
    let mut s = story(vec![approval("ok", &[], 1)]);
    s.asked("ok").approves("ok", "ana", "plan");
    s.say(Body::Rejected { step: "ok".into(), by: "ben".into(), reason: "not today".into() });
    assert_eq!(s.next(), ["end ok failed: rejected"]);
}

#[test]
fn a_drill_does_not_ask() {
    let s = story_in(Scope::Drill, vec![approval("ok", &[], 2)]);
    assert_eq!(s.next(), ["skip ok"]);
}

#[test]
fn others_go_on_while_one_step_waits_for_approval() {
    let mut s = story(vec![approval("ok", &[], 1), retry(step("a", &[]), 2, 1_000, 60_000), step("b", &["ok"])]);
    s.asked("ok");
    assert_eq!(s.next(), ["wake in 60000", "prepare a"]);
    s.fails("a");
    assert_eq!(s.next(), ["wake in 60000", "wake in 1000"], "what is due to be tried again is not left for the approval");
    s.later(1_000).done("a");
    assert_eq!(s.next(), ["park waiting_approval", "wake in 59000"]);
}

/// A step whose intent is approved before it is applied.
fn guarded(id: &str) -> PlanStep {
    PlanStep { approve: Some(Approval { expires: Span::from_secs(60), ..Approval::default() }), ..step(id, &[]) }
}

impl Story {
    fn prepared_as(&mut self, id: &str, hash: &str) -> &mut Self {
        self.say(Body::Prepared {
            step: id.into(),
            intent: Value::Null,
            hash: hash.into(),
            measured: None,
            change: Vec::new(),
            notes: Vec::new(),
        })
    }
    fn asked_over(&mut self, id: &str, over: &str) -> &mut Self {
        let expires_at = self.now + jiff::SignedDuration::from_secs(60);
        self.say(Body::ApprovalAsked {
            step: id.into(),
            over: over.into(),
            approvers: 1,
            expires_at,
            message: None,
            facts: Default::default(),
        })
    }
}

#[test]
fn an_approval_of_an_intent_stands_for_that_intent_alone() {
    let mut s = story(vec![guarded("a")]);
    s.prepared_as("a", "h1");
    assert_eq!(s.next(), ["ask a"]);
    s.asked_over("a", "h1");
    assert_eq!(s.next(), ["park waiting_approval", "wake in 60000"]);
    s.approves("a", "ana", "h1");
    assert_eq!(s.next(), ["apply a #1"]);
    assert_eq!(s.crash().next(), ["prepare a"], "a new owner looks again before it acts");
    s.prepared_as("a", "h1");
    assert_eq!(s.next(), ["apply a #1"], "it comes to the same: approved");
    s.crash().prepared_as("a", "h2");
    assert_eq!(s.next(), ["ask a"], "it comes to something else");
    s.asked_over("a", "h2").approves("a", "ana", "h1");
    assert_eq!(s.next().first().unwrap(), "park waiting_approval", "what was approved was another intent");
}

#[test]
fn an_intent_is_not_applied_after_the_time_of_its_approval() {
    let mut s = story(vec![guarded("a")]);
    s.prepared_as("a", "h").asked_over("a", "h").approves("a", "ana", "h").later(60_000);
    assert_eq!(s.next(), ["void a"]);
    s.say(Body::ApprovalVoid { step: "a".into(), why: "late".into(), facts: Default::default() });
    assert_eq!(s.next(), ["prepare a"]);
    let mut s = story_in(Scope::Drill, vec![guarded("a")]);
    assert_eq!(s.prepared_as("a", "h").next(), ["apply a #1"], "a drill does not ask");
}

#[test]
fn facts_are_looked_at_once_more_before_an_approval_counts() {
    let mut ok = approval("ok", &[], 1);
    let fact = Fact { value: serde_json::json!(1), at_most: None, at_least: None, equals: None };
    let facts = std::collections::BTreeMap::from([("f".to_owned(), fact)]);
    ok.kind = StepKind::Approval(Approval { expires: Span::from_secs(60), facts, ..Approval::default() });
    let mut s = story(vec![ok, step("a", &["ok"])]);
    s.asked("ok").approves("ok", "ana", "plan");
    assert_eq!(s.next(), ["confirm ok"]);
    s.say(Body::FactsConfirmed { step: "ok".into(), facts: Default::default() });
    assert_eq!(s.next(), ["end ok succeeded"]);
    assert_eq!(s.crash().next(), ["confirm ok"], "a new owner does not take it on trust");
    s.say(Body::ApprovalVoid { step: "ok".into(), why: "f".into(), facts: Default::default() });
    assert_eq!(s.next(), ["ask ok"]);
}

#[test]
fn an_override_lets_a_run_go_on_and_is_no_success() {
    let over = |id: &str| Body::Overridden {
        step: id.into(),
        by: "ana".into(),
        reason: "r".into(),
        was: "failed".into(),
        output: None,
        signed: None,
    };
    let mut s = story(vec![approval("ok", &[], 2), step("a", &["ok"])]);
    s.asked("ok").later(60_000).say(Body::StepEnded { step: "ok".into(), status: StepStatus::Failed, failure: None });
    assert_eq!(s.next(), ["park paused"]);
    s.say(over("ok"));
    assert_eq!(s.state.steps["ok"].status, StepStatus::Skipped);
    assert_eq!(s.next(), ["prepare a"]);
    let mut s = story(vec![guarded("a")]);
    s.prepared_as("a", "h").asked_over("a", "h").say(over("a"));
    assert_eq!(s.next(), ["prepare a"], "what is overridden is the guard; the step is still to be done");
    assert_eq!(s.prepared_as("a", "h").next(), ["apply a #1"]);
    s.done("a");
    assert_eq!(s.state.steps["a"].status, StepStatus::SucceededWithWarning);
    assert_eq!(s.next(), ["finish succeeded"]);
}
