//! Each policy of the engine as a short story: what happened, and what is to be done next.
//!
//! A story is a plan and the events of a run; [`Story::next`] gives what `decide` says, a line a decision.

use super::super::state::fold;
use super::*;
use crate::model::{
    effect::{Failure, Seen},
    estate::Estate,
    event::{Body, Event},
    node::{Node, Pos},
    time::Span,
};
use serde_json::Value;

/// A step that may be changed before its story begins.
fn step(id: &str, needs: &[&str]) -> PlanStep {
    PlanStep {
        id: id.into(),
        kind: StepKind::Action { name: "exec.command".into(), version: 1, effect: Effect::OneShot },
        needs: needs.iter().map(|need| StepId::from(*need)).collect(),
        with: Node::empty_map(),
        when: None,
        retry: Retry::default(),
        timeout: Span::from_secs(60),
        on_failure: OnFailure::Pause,
        undo: UndoPolicy::Automatic,
        reach: Vec::new(),
        approve: None,
        pos: Pos::default(),
    }
}
fn effect(mut step: PlanStep, effect: Effect) -> PlanStep {
    step.kind = StepKind::Action { name: "exec.command".into(), version: 1, effect };
    step
}
fn on_failure(mut step: PlanStep, policy: OnFailure) -> PlanStep {
    step.on_failure = policy;
    step
}
fn undo(mut step: PlanStep, policy: UndoPolicy) -> PlanStep {
    step.undo = policy;
    step
}
fn retry(mut step: PlanStep, attempts: u32, backoff: u64, max_backoff: u64) -> PlanStep {
    step.retry = Retry { attempts, backoff: Span::from_ms(backoff), max_backoff: Span::from_ms(max_backoff) };
    step
}
fn approval(id: &str, needs: &[&str], approvers: u32) -> PlanStep {
    let kind = StepKind::Approval(Approval { approvers, expires: Span::from_secs(60), ..Approval::default() });
    PlanStep { kind, ..step(id, needs) }
}

fn begin() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

struct Story {
    state: RunState,
    now: jiff::Timestamp,
    in_flight: BTreeSet<StepId>,
}

fn story(steps: Vec<PlanStep>) -> Story {
    story_in(Scope::Live, steps)
}

fn story_in(scope: Scope, steps: Vec<PlanStep>) -> Story {
    let plan = Plan {
        runbook: "story".into(),
        file: "story.yaml".into(),
        digest: String::new(),
        mode: None,
        scope,
        live: false,
        inputs: Default::default(),
        waive: Vec::new(),
        estate: Estate::default().into(),
        locks: Vec::new(),
        steps,
    };
    let first = event(1, begin(), Body::RunCreated { plan: plan.into(), drill: None });
    let mut story = Story { state: RunState::new(&first).unwrap(), now: begin(), in_flight: BTreeSet::new() };
    story.say(Body::Claimed { owner: "first".into() });
    story
}

fn event(seq: u64, at: jiff::Timestamp, body: Body) -> Event {
    Event { run: "r".into(), seq, at, actor: "test".into(), epoch: 1, body, prev: String::new() }
}

fn failure() -> Failure {
    Failure::new("exit", "it said no")
}

impl Story {
    fn say(&mut self, body: Body) -> &mut Self {
        let event = event(self.state.seq + 1, self.now, body);
        fold(&mut self.state, &event);
        self
    }
    fn prepared(&mut self, id: &str) -> &mut Self {
        self.say(Body::Prepared { step: id.into(), intent: Value::Null, hash: "h".into(), measured: None, change: vec![], notes: vec![] })
    }
    /// Prepared, and the intent to act is durable.
    fn applying(&mut self, id: &str) -> &mut Self {
        let attempt = self.state.steps[id].attempts + 1;
        self.prepared(id).say(Body::Applying { step: id.into(), attempt, epoch: 1, key: "k".into() })
    }
    fn done(&mut self, id: &str) -> &mut Self {
        self.applying(id).verified(id)
    }
    fn verified(&mut self, id: &str) -> &mut Self {
        let attempt = self.state.steps[id].attempts;
        self.say(Body::Applied { step: id.into(), attempt, output: Value::Null });
        self.say(Body::Verified { step: id.into(), output: Value::Null, warnings: vec![] })
    }
    /// One attempt fails for certain, and what follows from it is on record.
    fn fails(&mut self, id: &str) -> &mut Self {
        self.applying(id).settles_as_failed(id)
    }
    fn settles_as_failed(&mut self, id: &str) -> &mut Self {
        let attempt = self.state.steps[id].attempts;
        self.say(Body::ApplyFailed { step: id.into(), attempt, failure: failure(), retry_after_ms: None });
        let planned = self.state.plan.step(&id.into()).unwrap().clone();
        let next = match after_failure(&planned, attempt, true, false, None) {
            AfterFailure::Retry { after_ms } => {
                let after = jiff::SignedDuration::from_millis(i64::try_from(after_ms).unwrap());
                Body::RetryAt { step: id.into(), at: self.now + after }
            }
            AfterFailure::End(status) => Body::StepEnded { step: id.into(), status, failure: Some(failure()) },
        };
        self.say(next)
    }
    fn unknown(&mut self, id: &str) -> &mut Self {
        let attempt = self.state.steps[id].attempts + 1;
        self.applying(id).say(Body::ApplyUnknown { step: id.into(), attempt, failure: failure() })
    }
    fn held(&mut self, id: &str) -> &mut Self {
        let why = || "nobody can tell".to_owned();
        self.unknown(id).say(Body::Observed { step: id.into(), seen: Seen::CannotTell { why: why() } });
        self.say(Body::Indeterminate { step: id.into(), question: why() })
    }
    fn undoing(&mut self, id: &str) -> &mut Self {
        let attempt = self.state.steps[id].undo_tries.attempts + 1;
        self.say(Body::Undoing { step: id.into(), attempt })
    }
    /// An attempt to undo fails, and is to be made again so much later.
    fn undo_fails_for_now(&mut self, id: &str, ms: i64) -> &mut Self {
        let at = self.now + jiff::SignedDuration::from_millis(ms);
        self.undoing(id).say(Body::UndoRetry { step: id.into(), attempt: 1, failure: failure(), unknown: true, at })
    }
    fn pause(&mut self) -> &mut Self {
        self.say(Body::PauseRequested { reason: "asked".into() })
    }
    fn abort(&mut self) -> &mut Self {
        self.say(Body::AbortRequested { reason: "enough".into() })
    }
    fn asked(&mut self, id: &str) -> &mut Self {
        let expires_at = self.now + jiff::SignedDuration::from_secs(60);
        self.say(Body::ApprovalAsked {
            step: id.into(),
            over: "plan".into(),
            approvers: 2,
            expires_at,
            message: None,
            facts: Default::default(),
        })
    }
    fn approves(&mut self, id: &str, by: &str, over: &str) -> &mut Self {
        self.say(Body::Approved { step: id.into(), by: by.into(), over: over.into(), signed: None })
    }
    fn later(&mut self, ms: i64) -> &mut Self {
        self.now += jiff::SignedDuration::from_millis(ms);
        self
    }
    /// The process dies and another takes over.
    fn crash(&mut self) -> &mut Self {
        self.say(Body::Claimed { owner: "next".into() })
    }
    fn busy(&mut self, ids: &[&str]) -> &mut Self {
        self.in_flight = ids.iter().map(|id| StepId::from(*id)).collect();
        self
    }
    fn next(&self) -> Vec<String> {
        decide(&self.state, &self.in_flight, self.now).iter().map(|decision| self.line(decision)).collect()
    }
    fn line(&self, decision: &Decision) -> String {
        match decision {
            Decision::Prepare(id) => format!("prepare {id}"),
            Decision::SkipApproval(id) => format!("skip {id}"),
            Decision::Ask(id) => format!("ask {id}"),
            Decision::Confirm(id) => format!("confirm {id}"),
            Decision::Void { step, .. } => format!("void {step}"),
            Decision::Apply { step, attempt } => format!("apply {step} #{attempt}"),
            Decision::Observe(id) => format!("observe {id}"),
            Decision::Undo(id) => format!("undo {id}"),
            Decision::LeaveUndo { step, reason } => format!("leave {step}: {reason}"),
            Decision::EndUndo { step, failure } => format!("end undo of {step}: {}", failure.code),
            Decision::End { step, status, failure } => match failure {
                Some(failure) => format!("end {step} {}: {}", status.word(), failure.code),
                None => format!("end {step} {}", status.word()),
            },
            Decision::WakeAt(at) => format!("wake in {}", at.duration_since(self.now).as_millis()),
            Decision::Park { status, .. } => format!("park {}", status.word()),
            Decision::Finish { status, .. } => format!("finish {}", status.word()),
        }
    }
    /// Follows undo to the end of the run: the lines of all that is done.
    fn undone_to_the_end(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while self.state.finished_at.is_none() {
            for decision in decide(&self.state, &self.in_flight, self.now) {
                lines.push(self.line(&decision));
                match decision {
                    Decision::Undo(step) => drop(self.say(Body::Undoing { step: step.clone(), attempt: 1 }).say(Body::Undone { step })),
                    Decision::LeaveUndo { step, reason } => drop(self.say(Body::UndoLeft { step, reason })),
                    Decision::EndUndo { step, failure } => drop(self.say(Body::UndoFailed { step, failure })),
                    Decision::End { step, status, failure } => drop(self.say(Body::StepEnded { step, status, failure })),
                    Decision::Finish { status, reason } => drop(self.say(Body::RunFinished { status, reason })),
                    other => panic!("{other:?} while undoing"),
                }
            }
            assert!(lines.len() < 100, "it does not end: {lines:?}");
        }
        lines
    }
}

// ---- the order of steps
#[test]
fn a_step_waits_for_all_that_it_needs() {
    let mut s = story(vec![step("a", &[]), step("b", &[]), step("c", &["a", "b"])]);
    assert_eq!(s.next(), ["prepare a", "prepare b"]);
    s.done("a");
    assert_eq!(s.next(), ["prepare b"]);
    s.done("b");
    assert_eq!(s.next(), ["prepare c"]);
    s.done("c");
    assert_eq!(s.next(), ["finish succeeded"]);
    s.say(Body::RunFinished { status: RunStatus::Succeeded, reason: None });
    assert_eq!(s.next(), [""; 0], "nothing follows the end of a run");
}

#[test]
fn what_is_needed_may_stand_later_in_the_file() {
    let mut s = story(vec![step("a", &["b"]), step("b", &[])]);
    assert_eq!(s.next(), ["prepare b"]);
    assert_eq!(s.done("b").next(), ["prepare a"]);
}

#[test]
fn what_is_in_flight_is_left_alone_and_the_rest_goes_on() {
    let mut s = story(vec![step("a", &[]), step("b", &[])]);
    s.applying("a").busy(&["a"]);
    assert_eq!(s.next(), ["prepare b"]);
    s.applying("b").busy(&["a", "b"]);
    assert_eq!(s.next(), [""; 0], "only what is in flight can bring it on");
}

#[test]
fn no_more_than_the_limit_are_at_work_at_once() {
    let ids: Vec<_> = (0..PARALLEL + 4).map(|n| format!("s{n:02}")).collect();
    let mut s = story(ids.iter().map(|id| step(id, &[])).collect());
    assert_eq!(s.next().len(), PARALLEL);
    s.busy(&ids[..PARALLEL - 1].iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(s.next(), [format!("prepare s{:02}", PARALLEL - 1)]);
    s.busy(&ids[..PARALLEL].iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(s.next(), [""; 0]);
}

#[test]
fn a_skipped_step_satisfies_those_that_need_it() {
    let mut s = story(vec![step("a", &[]), step("b", &["a"])]);
    s.say(Body::Skipped { step: "a".into(), reason: "its `when` is false".into() });
    assert_eq!(s.state.steps["a"].status, StepStatus::Skipped);
    assert_eq!(s.next(), ["prepare b"]);
}

#[test]
fn an_operator_may_skip_what_has_not_begun() {
    let mut s = story(vec![step("a", &[])]);
    s.say(Body::SkipRequested { step: "a".into(), by: "ana".into(), reason: "known good".into() });
    assert_eq!(s.state.steps["a"].skipped.as_deref(), Some("skipped by ana: known good"));
    assert_eq!(s.next(), ["finish succeeded"]);
}

// ---- failures
#[test]
fn the_wait_between_attempts_doubles_up_to_its_cap() {
    let wait = |attempt, attempts, hint| after_failure(&retry(step("a", &[]), attempts, 100, 1_000), attempt, true, false, hint);
    let ms = |after_ms| AfterFailure::Retry { after_ms };
    let waits: Vec<_> = (1..=6).map(|attempt| wait(attempt, 100, None)).collect();
    assert_eq!(waits, [ms(100), ms(200), ms(400), ms(800), ms(1_000), ms(1_000)]);
    assert_eq!(wait(99, 100, None), ms(1_000), "no overflow however many attempts");
    assert_eq!(wait(1, 100, Some(5_000)), ms(5_000), "what the other side asked for is waited for");
    assert_eq!(wait(3, 3, None), AfterFailure::End(StepStatus::Failed));
}

#[test]
fn what_becomes_of_a_step_that_failed_for_the_last_time() {
    use OnFailure::*;
    let table = [
        (Pause, false, StepStatus::Failed),
        (Pause, true, StepStatus::TimedOut),
        (Stop, true, StepStatus::TimedOut),
        (Undo, false, StepStatus::Failed),
        (Continue, false, StepStatus::FailedIgnored),
        (Continue, true, StepStatus::FailedIgnored),
    ];
    for (policy, timed_out, status) in table {
        let planned = on_failure(step("a", &[]), policy);
        assert_eq!(after_failure(&planned, 1, true, timed_out, None), AfterFailure::End(status), "{policy:?} {timed_out}");
    }
    let planned = retry(step("a", &[]), 5, 1, 1);
    assert_eq!(after_failure(&planned, 1, false, false, None), AfterFailure::End(StepStatus::Failed), "what cannot help is not tried");
}

#[test]
fn a_failed_attempt_is_made_again_when_its_wait_is_over() {
    let mut s = story(vec![retry(step("a", &[]), 3, 1_000, 60_000), step("b", &["a"])]);
    s.fails("a");
    assert_eq!(s.next(), ["wake in 1000"]);
    assert_eq!(s.later(999).next(), ["wake in 1"]);
    assert_eq!(s.later(1).next(), ["prepare a"], "it is prepared afresh: the world may have changed");
    assert_eq!(s.prepared("a").next(), ["apply a #2"]);
    s.say(Body::Applying { step: "a".into(), attempt: 2, epoch: 1, key: "k".into() }).settles_as_failed("a");
    assert_eq!(s.next(), ["wake in 2000"]);
    s.later(2_000).fails("a");
    assert_eq!((s.state.steps["a"].status, s.state.steps["a"].attempts), (StepStatus::Failed, 3));
}

#[test]
fn continue_ignores_the_failure_and_says_so() {
    let mut s = story(vec![on_failure(step("a", &[]), OnFailure::Continue), step("b", &["a"])]);
    s.fails("a");
    assert_eq!(s.state.steps["a"].status, StepStatus::FailedIgnored);
    assert_eq!(s.next(), ["prepare b"]);
}

#[test]
fn pause_lets_what_runs_settle_and_then_waits_for_a_person() {
    let mut s = story(vec![step("a", &[]), step("b", &[]), step("c", &["b"])]);
    s.applying("b").fails("a").busy(&["b"]);
    assert_eq!(s.next(), [""; 0]);
    s.busy(&[]).verified("b");
    assert_eq!(s.next(), ["park paused"]);
    s.say(Body::RetryRequested { step: "a".into(), by: "ana".into() });
    assert_eq!(s.next(), ["prepare a", "prepare c"]);
    assert_eq!(s.state.steps["a"].attempts, 0, "a person's retry has all its attempts again");
}

#[test]
fn a_run_resumed_past_a_failed_step_still_has_it() {
    let mut s = story(vec![step("a", &[]), step("b", &["a"]), step("c", &[])]);
    s.fails("a").crash().say(Body::Resumed);
    assert_eq!(s.next(), ["prepare c"]);
    assert_eq!(s.done("c").next(), ["park paused"], "never succeeded with a failed step");
    s.say(Body::SkipRequested { step: "a".into(), by: "ana".into(), reason: "done by hand".into() });
    assert_eq!(s.next(), ["prepare b"]);
}

#[test]
fn taking_care_of_one_failed_step_does_not_lift_another_s_hold() {
    let mut s = story(vec![step("a", &[]), on_failure(step("b", &[]), OnFailure::Stop), step("c", &[])]);
    s.applying("a").applying("b").settles_as_failed("a").settles_as_failed("b");
    s.say(Body::RetryRequested { step: "a".into(), by: "ana".into() });
    assert_eq!(s.next(), ["end a cancelled", "end c cancelled"], "b has stopped the run");
    // A pause that a person asked for is lifted by `resume`, not by the way.
    let mut s = story(vec![step("a", &[]), step("b", &[])]);
    s.pause().fails("a").say(Body::SkipRequested { step: "a".into(), by: "ana".into(), reason: "-".into() });
    assert_eq!(s.next(), ["park paused"]);
}

#[test]
fn stop_begins_nothing_more_and_the_run_has_failed() {
    let mut s = story(vec![on_failure(step("a", &[]), OnFailure::Stop), step("b", &[]), step("c", &["b"])]);
    s.prepared("b").fails("a");
    assert_eq!(s.next(), ["end b cancelled", "end c cancelled"], "also what was prepared is not begun");
    for id in ["b", "c"] {
        s.say(Body::StepEnded { step: id.into(), status: StepStatus::Cancelled, failure: None });
    }
    assert_eq!(s.next(), ["finish failed"]);
}

#[test]
fn a_stopping_run_settles_what_is_open_before_it_ends() {
    let mut s = story(vec![on_failure(step("a", &[]), OnFailure::Stop), step("b", &[]), step("c", &[])]);
    s.applying("b").held("c").fails("a").crash();
    assert_eq!(s.next(), ["observe b"]);
    assert_eq!(s.verified("b").next(), ["park indeterminate"], "nobody knows what c did");
    s.say(Body::Resolved { step: "c".into(), done: false, by: "ana".into(), reason: "looked".into() });
    assert_eq!(s.next(), ["end c cancelled"], "an answer does not make the failed run go on");
}

// ---- undo
#[test]
fn undo_goes_back_from_the_last_begun_each_step_once() {
    let steps = vec![step("a", &[]), step("b", &[]), step("c", &[]), on_failure(step("d", &["a", "b", "c"]), OnFailure::Undo)];
    let mut s = story([steps, vec![step("e", &["d"])]].concat());
    // Begun in the order b, a, c; ended in another.
    s.applying("b").applying("a").done("c").verified("a").verified("b").fails("d");
    let lines = s.undone_to_the_end();
    assert_eq!(lines, ["undo d", "undo c", "undo a", "undo b", "end e cancelled", "finish failed"]);
    assert_eq!(s.state.reason.as_deref(), Some("step `d` failed"));
}

#[test]
fn undo_covers_what_failed_on_the_way_and_what_was_resolved() {
    let mut s = story(vec![
        on_failure(step("a", &[]), OnFailure::Continue),
        step("b", &["a"]),
        effect(step("look", &["b"]), Effect::Read),
        on_failure(step("d", &["look"]), OnFailure::Undo),
    ]);
    s.fails("a").held("b").say(Body::Resolved { step: "b".into(), done: true, by: "ana".into(), reason: "seen".into() });
    s.done("look").fails("d");
    assert_eq!(s.undone_to_the_end(), ["undo d", "undo b", "undo a", "finish failed"], "a read has nothing to undo");
}

#[test]
fn undo_begins_when_everything_is_settled() {
    let mut s = story(vec![step("a", &[]), step("b", &[]), on_failure(step("c", &[]), OnFailure::Undo)]);
    s.applying("a").held("b").fails("c").busy(&["a"]);
    assert_eq!(s.next(), [""; 0]);
    s.verified("a").busy(&[]);
    assert_eq!(s.next(), ["park indeterminate"]);
    s.say(Body::Resolved { step: "b".into(), done: true, by: "ana".into(), reason: "seen".into() });
    assert_eq!(s.next(), ["undo c"]);
}

#[test]
fn what_has_no_undo_is_left_and_named() {
    let last = on_failure(step("c", &["a", "b"]), OnFailure::Undo);
    let mut s = story(vec![undo(step("a", &[]), UndoPolicy::Manual), undo(step("b", &[]), UndoPolicy::None), last]);
    s.done("a").done("b").fails("c");
    assert_eq!(s.undone_to_the_end(), ["undo c", "leave b: it has no undo", "leave a: its undo is manual", "finish failed"]);
}

#[test]
fn an_undo_that_fails_does_not_keep_the_others_from_being_undone() {
    let mut s = story(vec![step("a", &[]), on_failure(step("b", &["a"]), OnFailure::Undo)]);
    s.done("a").fails("b").undoing("b");
    s.say(Body::UndoFailed { step: "b".into(), failure: failure() });
    assert_eq!(s.undone_to_the_end(), ["undo a", "finish failed"]);
    assert_eq!(s.state.reason.as_deref(), Some("step `b` failed; not everything could be undone"));
}

#[test]
fn an_undo_that_a_crash_cut_short_is_done_again_and_no_other() {
    let mut s = story(vec![step("a", &[]), step("b", &["a"]), on_failure(step("c", &["b"]), OnFailure::Undo)]);
    s.done("a").done("b").fails("c");
    s.undoing("c").say(Body::Undone { step: "c".into() });
    s.undoing("b").crash();
    assert_eq!(s.undone_to_the_end(), ["undo b", "undo a", "finish failed"]);
}

#[test]
fn a_pause_holds_between_two_undos() {
    let mut s = story(vec![step("a", &[]), on_failure(step("b", &["a"]), OnFailure::Undo)]);
    s.done("a").fails("b").pause();
    assert_eq!(s.next(), ["park paused"]);
    assert_eq!(s.say(Body::Resumed).next(), ["undo b"]);
}

#[path = "decide_tests/approvals.rs"]
mod approvals;
#[path = "decide_tests/undos.rs"]
mod undos;

// ---- pause, resume, abort
#[test]
fn a_pause_begins_nothing_and_resume_goes_on() {
    let mut s = story(vec![step("a", &[]), step("b", &["a"])]);
    s.applying("a").busy(&["a"]).pause();
    assert_eq!(s.next(), [""; 0]);
    s.verified("a").busy(&[]);
    assert_eq!(s.next(), ["park paused"]);
    assert_eq!(s.crash().next(), ["park paused"], "a new owner alone does not lift it");
    assert_eq!(s.say(Body::Resumed).next(), ["prepare b"]);
}

#[test]
fn a_pause_stops_the_waiting_for_what_was_accepted() {
    let mut s = story(vec![step("a", &[])]);
    s.applying("a").say(Body::Applied { step: "a".into(), attempt: 1, output: Value::Null }).pause();
    assert_eq!(s.next(), ["park paused"]);
    assert_eq!(s.crash().say(Body::Resumed).next(), ["observe a"]);
}

#[test]
fn an_abort_settles_what_is_open_and_undoes_nothing() {
    let mut s = story(vec![step("a", &[]), step("b", &[]), step("c", &["a"])]);
    s.done("b").applying("a").busy(&["a"]).abort();
    assert_eq!(s.next(), [""; 0]);
    s.busy(&[]).crash();
    assert_eq!(s.next(), ["observe a"]);
    s.verified("a");
    assert_eq!(s.next(), ["end c cancelled"]);
    s.say(Body::StepEnded { step: "c".into(), status: StepStatus::Cancelled, failure: None });
    assert_eq!(s.next(), ["finish aborted"]);
}

#[test]
fn an_abort_of_a_paused_run_does_not_forget_what_is_open() {
    let mut s = story(vec![step("a", &[]), step("b", &[])]);
    s.applying("a").crash().pause().abort();
    assert_eq!(s.next(), ["park paused"], "a's outcome is not known, and a paused run does not look");
    assert_eq!(s.say(Body::Resumed).next(), ["observe a"]);
    let mut s = story(vec![step("a", &[])]);
    assert_eq!(s.pause().abort().next(), ["end a cancelled"], "with nothing open it ends at once");
}

#[test]
fn a_failed_run_with_nothing_left_to_do_ends_although_it_is_paused() {
    let mut s = story(vec![on_failure(step("a", &[]), OnFailure::Stop)]);
    assert_eq!(s.fails("a").pause().next(), ["finish failed"]);
}

// ---- what is not known
#[test]
fn an_open_attempt_is_looked_at_and_a_read_is_run_again() {
    for (kind, next) in
        [(Effect::OneShot, "observe a"), (Effect::Observable, "observe a"), (Effect::Repeatable, "observe a"), (Effect::Read, "apply a #2")]
    {
        let mut s = story(vec![effect(step("a", &[]), kind)]);
        assert_eq!(s.applying("a").crash().next(), [next], "{kind:?}");
        let mut s = story(vec![effect(step("a", &[]), kind)]);
        assert_eq!(s.unknown("a").next(), [next], "{kind:?}");
    }
}

#[test]
fn what_was_prepared_and_not_begun_is_prepared_afresh_by_a_new_owner() {
    let mut s = story(vec![step("a", &[])]);
    assert_eq!(s.prepared("a").next(), ["apply a #1"]);
    assert_eq!(s.crash().next(), ["prepare a"]);
}

#[test]
fn what_was_seen_not_to_have_happened_is_begun_with_the_same_intent() {
    let mut s = story(vec![effect(step("a", &[]), Effect::Observable)]);
    s.applying("a").crash().say(Body::Observed { step: "a".into(), seen: Seen::Absent });
    assert_eq!(s.next(), ["apply a #2"]);
}

#[test]
fn what_cannot_be_seen_is_sent_again_only_if_twice_is_once() {
    let unseen = || Body::Observed { step: "a".into(), seen: Seen::CannotTell { why: "down".into() } };
    let mut s = story(vec![effect(step("a", &[]), Effect::Repeatable)]);
    assert_eq!(s.applying("a").crash().say(unseen()).next(), ["apply a #2"]);
    let mut s = story(vec![step("a", &[])]);
    assert_eq!(s.applying("a").crash().say(unseen()).next(), ["observe a"], "never applied");
}

#[test]
fn an_indeterminate_step_waits_for_an_answer_while_others_go_on() {
    let resolved = |done| Body::Resolved { step: "a".into(), done, by: "ana".into(), reason: "looked".into() };
    let mut s = story(vec![step("a", &[]), step("b", &[]), step("c", &["a"])]);
    s.held("a");
    assert_eq!(s.next(), ["prepare b"]);
    assert_eq!(s.done("b").next(), ["park indeterminate"]);
    assert_eq!(s.crash().next(), ["park indeterminate"]);
    let mut other = Story { state: s.state.clone(), now: s.now, in_flight: BTreeSet::new() };
    assert_eq!(s.say(resolved(true)).next(), ["prepare c"]);
    assert_eq!(s.state.steps["a"].status, StepStatus::SucceededWithWarning, "an answer is not a success of the step's own");
    assert_eq!(other.say(resolved(false)).next(), ["prepare a"]);
}

#[test]
fn an_abort_does_not_end_a_run_of_which_something_is_not_known() {
    let mut s = story(vec![step("a", &[])]);
    assert_eq!(s.held("a").abort().next(), ["park indeterminate"]);
    s.say(Body::Resolved { step: "a".into(), done: true, by: "ana".into(), reason: "looked".into() });
    assert_eq!(s.next(), ["finish aborted"]);
}
