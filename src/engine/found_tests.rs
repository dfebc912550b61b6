//! What the simulation and readers found, told again as short stories: each was a defect of the engine, and stays
//! found also when a seed no longer leads to it.

use super::{
    inbox,
    work::{self, Report},
};
use crate::actions::contract::{ApplyError, DEPOSED, Prepared, Refusal};
use crate::journal::Command;
use crate::model::{effect::*, estate::Estate, event::*, ids::*, node::*, plan::*, runbook::*, status::*, time::Span};
use crate::plan::{
    decide::{Decision, decide},
    state::{Phase, RunState, UndoState, fold},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

fn at(second: i64) -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
}

fn failure(code: &str) -> Failure {
    Failure::new(code, "so it was said")
}

fn id() -> StepId {
    "only".into()
}

struct Story(RunState);

impl Story {
    /// A run of one step that may be tried twice.
    fn of(effect: Effect) -> Self {
        let step = PlanStep {
            approve: None,
            id: id(),
            kind: StepKind::Action { name: "sim.effect".into(), version: 1, effect },
            needs: Vec::new(),
            with: Node::empty_map(),
            when: None,
            retry: Retry { attempts: 2, backoff: Span::from_secs(2), max_backoff: Span::from_secs(2) },
            timeout: Span::from_secs(60),
            on_failure: OnFailure::Pause,
            undo: UndoPolicy::Automatic,
            reach: Vec::new(),
            pos: Pos::default(),
        };
        let plan = Plan {
            runbook: "story".into(),
            file: "story.yaml".into(),
            digest: String::new(),
            mode: None,
            scope: Scope::Live,
            live: false,
            inputs: BTreeMap::new(),
            waive: Vec::new(),
            estate: Estate::default().into(),
            locks: Vec::new(),
            steps: vec![step],
        };
        let created = Body::RunCreated { plan: plan.into(), drill: None };
        let first = Event { run: "r".into(), seq: 1, at: at(0), actor: "test".into(), epoch: 1, body: created, prev: String::new() };
        let mut story = Self(RunState::new(&first).unwrap());
        story.say(at(0), Body::Claimed { owner: "first".into() });
        story
    }

    fn say(&mut self, at: jiff::Timestamp, body: Body) {
        let seq = self.0.seq + 1;
        fold(&mut self.0, &Event { run: "r".into(), seq, at, actor: "test".into(), epoch: 1, body, prev: String::new() });
    }

    fn applying(mut self) -> Self {
        self.say(
            at(1),
            Body::Prepared { step: id(), intent: Value::Null, hash: "h".into(), measured: None, change: Vec::new(), notes: Vec::new() },
        );
        self.say(at(1), Body::Applying { step: id(), attempt: self.0.steps[&id()].attempts + 1, epoch: 1, key: "k".into() });
        self
    }

    /// The events that a task's report amounts to, taken in.
    fn reports(&mut self, report: Report) -> Vec<Body> {
        let known = self.0.steps[&id()].clone();
        let context = work::Context { planned: &self.0.plan.steps[0].clone(), known: &known, now: at(2) };
        let bodies = work::bodies(&context, report, |ms| at(2) + jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap()));
        for body in &bodies {
            self.say(at(2), body.clone());
        }
        bodies
    }

    fn next(&self, now: jiff::Timestamp) -> Vec<Decision> {
        decide(&self.0, &BTreeSet::new(), now)
    }
}

fn applied(attempt: u32, error: ApplyError) -> Report {
    Report::Applied { attempt, result: Err(error), timed_out: false, observes: true }
}

fn seen(seen: Seen<Value>) -> Report {
    Report::Observed { seen, timed_out: false }
}

#[test]
fn what_was_accepted_and_took_too_long_is_looked_at_when_it_is_retried() {
    for (effect, expected) in [(Effect::Observable, Decision::Observe(id())), (Effect::Repeatable, Decision::Prepare(id()))] {
        let mut story = Story::of(effect).applying();
        story.say(at(2), Body::Applied { step: id(), attempt: 1, output: Value::Null });
        story.say(at(62), Body::StepEnded { step: id(), status: StepStatus::TimedOut, failure: Some(failure("timed_out")) });
        story.say(at(63), Body::RetryRequested { step: id(), by: "ana".into() });
        assert_eq!(story.next(at(64)), [expected]);
    }
}

#[test]
fn an_answer_counts_for_the_question_that_it_was_given_to_and_for_no_later_one() {
    let mut story = Story::of(Effect::Observable).applying();
    let asks = || Body::Indeterminate { step: id(), question: "?".into() };
    story.say(at(2), asks());
    let answer = Command::Resolve { step: id(), done: false, reason: "looked".into(), question: None };
    let answer = inbox::bound(&answer, &story.0);
    let heard = |story: &Story| inbox::bodies(&story.0, &"r".into(), "ana", &answer, at(9));
    let resolved = heard(&story).unwrap();
    // Somebody else said so as well, it was tried again, and again nobody knows; then the letter is read.
    for body in resolved {
        story.say(at(3), body);
    }
    story.say(at(4), Body::Applying { step: id(), attempt: 2, epoch: 1, key: "k".into() });
    story.say(at(5), asks());
    assert!(heard(&story).unwrap_err().contains("anew"));
}

#[test]
fn a_retry_does_not_wait_for_a_clock_that_was_set_back() {
    let mut story = Story::of(Effect::Observable).applying();
    story.reports(applied(1, ApplyError::Definite(failure("refused"))));
    assert_eq!(story.next(at(3)), [Decision::WakeAt(at(4))]);
    assert_eq!(story.next(at(-7200)), [Decision::Prepare(id())]);
}

#[test]
fn a_refusal_says_nothing_of_the_attempt_before_it() {
    // A new owner did not see the first attempt, and sent it again at once, since twice is once.
    let mut story = Story::of(Effect::Repeatable).applying();
    story.reports(seen(Seen::Absent));
    assert_eq!(story.next(at(3)), [Decision::Apply { step: id(), attempt: 2 }]);
    story.say(at(3), Body::Applying { step: id(), attempt: 2, epoch: 1, key: "k".into() });
    story.reports(applied(2, ApplyError::Definite(failure("refused"))));
    assert_eq!(story.next(at(4)), [Decision::Observe(id())], "the first may have landed");
    story.reports(seen(Seen::Done(Value::Null)));
    assert_eq!(story.0.steps[&id()].status, StepStatus::Succeeded);
}

#[test]
fn what_is_not_sent_again_after_all_is_waited_for() {
    let mut story = Story::of(Effect::Repeatable).applying();
    story.reports(seen(Seen::Absent));
    story.say(at(3), Body::AbortRequested { reason: "enough".into() });
    assert_eq!(story.next(at(4)), [Decision::Observe(id())]);
    story.reports(seen(Seen::Absent));
    assert!(matches!(story.next(at(5)).as_slice(), [Decision::End { status: StepStatus::Cancelled, .. }]));
}

#[test]
fn what_could_not_be_seen_is_looked_at_again_before_it_counts_as_failed() {
    let mut story = Story::of(Effect::Repeatable).applying();
    story.reports(applied(1, ApplyError::Unknown(failure("unknown"))));
    story.reports(seen(Seen::CannotTell { why: "down".into() }));
    story.reports(Report::Refused { refusal: Refusal::later("unreachable", "still down"), timed_out: false });
    assert_eq!(story.next(at(9)), [Decision::Observe(id())]);
    let end = story.reports(seen(Seen::CannotTell { why: "down".into() }));
    let told = matches!(&end[1], Body::StepEnded { failure: Some(failure), .. } if failure.remedy.as_deref().is_some_and(|text| text.contains("may have been")));
    assert!(told, "the record says that it may have happened: {end:?}");
}

#[test]
fn what_was_skipped_while_it_was_prepared_is_not_begun() {
    let mut story = Story::of(Effect::OneShot);
    assert_eq!(story.next(at(1)), [Decision::Prepare(id())]);
    story.say(at(1), Body::SkipRequested { step: id(), by: "ana".into(), reason: "no".into() });
    let prepared = Prepared { intent: Value::Null, change: Vec::new(), notes: Vec::new() };
    assert_eq!(story.reports(Report::Prepared(prepared)), []);
    assert!(matches!(story.next(at(2)).as_slice(), [Decision::Finish { .. }]));
}

#[test]
fn a_run_whose_steps_were_cancelled_has_not_succeeded() {
    let mut story = Story::of(Effect::OneShot);
    story.say(at(1), Body::StepEnded { step: id(), status: StepStatus::Cancelled, failure: None });
    assert!(matches!(story.next(at(2)).as_slice(), [Decision::Finish { status: RunStatus::Failed, .. }]));
    let skip = crate::journal::Command::Skip { step: id(), reason: "late".into() };
    assert!(super::inbox::bodies(&story.0, &"r".into(), "ana", &skip, at(2)).unwrap_err().contains("is being ended"));
}

#[test]
fn a_step_does_not_fail_because_its_owner_lost_the_run() {
    let mut story = Story::of(Effect::OneShot).applying();
    story.say(at(2), Body::ApplyFailed { step: id(), attempt: 1, failure: failure("x"), retry_after_ms: None });
    let mut story = story.applying();
    let bodies = story.reports(applied(2, ApplyError::Definite(failure(DEPOSED))));
    assert!(matches!(bodies.as_slice(), [Body::ApplyFailed { .. }, Body::RetryAt { .. }]), "{bodies:?}");
    assert_eq!(story.0.steps[&id()].phase, Phase::New);

    story.say(at(3), Body::Undoing { step: id(), attempt: 1 });
    assert_eq!(story.reports(Report::Undone(Err(ApplyError::Definite(failure(DEPOSED))))), []);
    assert_eq!(story.0.steps[&id()].undo, UndoState::Undoing, "the next owner undoes it");
}

fn not_undone(error: ApplyError) -> Report {
    Report::Undone(Err(error))
}

/// Its undo has been begun once more.
fn undoing(mut story: Story) -> Story {
    let attempt = story.0.steps[&id()].undo_tries.attempts + 1;
    story.say(at(2), Body::Undoing { step: id(), attempt });
    story
}

fn done() -> Story {
    let mut story = Story::of(Effect::Repeatable).applying();
    story.reports(seen(Seen::Done(Value::Null)));
    story
}

#[test]
fn an_undo_whose_answer_was_lost_or_that_was_throttled_is_made_again() {
    let slow = ApplyError::Retry { after: std::time::Duration::from_secs(3), failure: failure("throttled") };
    for (error, unknown, wait) in [(ApplyError::Unknown(failure("unknown")), true, 2), (slow, false, 3)] {
        let mut story = undoing(done());
        let said = story.reports(not_undone(error));
        let due = at(2 + wait);
        assert!(matches!(&said[..], [Body::UndoRetry { attempt: 1, unknown: told, at, .. }] if *told == unknown && *at == due), "{said:?}");
        assert_eq!(story.0.steps[&id()].undo, UndoState::Undoing);
        let mut story = undoing(story);
        assert_eq!(story.reports(Report::Undone(Ok(()))), [Body::Undone { step: id() }]);
        assert_eq!(story.0.steps[&id()].status, StepStatus::Undone);
    }
    // Its policy allows two attempts; the second is the last, and what is not known is said.
    let mut story = undoing(done());
    story.reports(not_undone(ApplyError::Unknown(failure("unknown"))));
    let mut story = undoing(story);
    let said = story.reports(not_undone(ApplyError::Unknown(failure("unknown"))));
    let told = matches!(&said[..], [Body::UndoFailed { failure, .. }] if failure.to_string().contains("may have been undone"));
    assert!(told, "{said:?}");
}

#[test]
fn an_undo_that_is_refused_ends_at_once() {
    let mut story = undoing(done());
    let said = story.reports(not_undone(ApplyError::Definite(failure("irreversible"))));
    assert_eq!(said, [Body::UndoFailed { step: id(), failure: failure("irreversible") }]);
}

/// Chains of before undos were tried again say of no attempt which it was. They are verified by the bytes that were stored.
#[test]
fn a_chain_of_before_is_verified_and_means_what_it_meant() {
    use crate::journal::{ChainKind, ChainRow, Draft, chain};
    let undoing = || Body::Undoing { step: id(), attempt: 1 };
    let bodies = [
        Body::RunCreated { plan: Story::of(Effect::Repeatable).0.plan, drill: None },
        Body::Claimed { owner: "first".into() },
        Body::Prepared { step: id(), intent: Value::Null, hash: "h".into(), measured: None, change: Vec::new(), notes: Vec::new() },
        Body::Applying { step: id(), attempt: 1, epoch: 1, key: "k".into() },
        Body::StepEnded { step: id(), status: StepStatus::Failed, failure: None },
        undoing(),
        // That owner died.
        Body::Claimed { owner: "next".into() },
        undoing(),
        Body::UndoFailed { step: id(), failure: failure("unknown") },
        Body::RunFinished { status: RunStatus::Failed, reason: None },
    ];
    let (run, mut prev, mut rows, mut events) = (RunId::from("r"), String::new(), Vec::new(), Vec::new());
    for (n, body) in (0..).zip(bodies) {
        let draft = Draft { at: at(n), actor: "test".into(), body };
        let sealed = chain::seal(&run, 1, n.unsigned_abs(), &prev, vec![draft]).unwrap().remove(0);
        let old = String::from_utf8(sealed.record).unwrap().replace(r#""step":"only","attempt":1}"#, r#""step":"only"}"#);
        let one = chain::Sealed::new(serde_json::from_str(&old).unwrap(), old.into_bytes());
        prev.clone_from(&one.stored.hash);
        rows.push(chain::EventRow::from(&one));
        events.push(one.stored.event);
    }
    let old = |row: &&chain::EventRow| row.kind == "undoing" && !String::from_utf8_lossy(&row.record).contains("attempt");
    assert_eq!(rows.iter().filter(old).count(), 2);
    let row = ChainRow {
        id: run,
        kind: ChainKind::Run,
        name: "story".into(),
        parent: None,
        status: "failed".into(),
        started_at: at(0),
        finished_at: Some(at(9)),
        seq: 10,
        head: prev,
        owner: None,
    };
    let found = chain::verify(&chain::Dump { rows: vec![row], events: rows, heads: None });
    assert!(found.verified, "{:?}", found.problems);
    let state = RunState::of(&events).unwrap();
    let known = &state.steps[&id()];
    assert_eq!((known.undo, known.undo_tries.attempts, state.status), (UndoState::Failed, 2, RunStatus::Failed));
}

/// A success that a person must hear of ended like any other: nobody was told.
#[test]
fn what_an_action_wants_heard_of_its_success_is_on_record_and_stops_nothing() {
    let output = |why: Option<&str>| serde_json::json!({ "instance": "orders in east", "final_snapshot": null, "position": null, "stranded_unknown": why });
    for (why, status) in [(None, StepStatus::Succeeded), (Some("a hole"), StepStatus::SucceededWithWarning)] {
        let mut story = Story::of(Effect::Observable);
        std::sync::Arc::make_mut(&mut story.0.plan).steps[0].kind =
            StepKind::Action { name: "database.rejoin".into(), version: 1, effect: Effect::Observable };
        let mut story = story.applying();
        story.say(at(2), Body::Applied { step: id(), attempt: 1, output: output(why) });
        story.reports(seen(Seen::Done(output(why))));
        let step = &story.0.steps[&id()];
        assert_eq!((step.status, step.warnings.len()), (status, usize::from(why.is_some())), "{step:?}");
        assert!(step.warnings.iter().all(|said| said.contains("nobody can tell") && said.contains("a hole")), "{step:?}");
        assert!(matches!(story.next(at(3)).as_slice(), [Decision::Finish { status: RunStatus::Succeeded, .. }]), "{:?}", story.next(at(3)));
    }
}

/// A step that takes a wheel, once people have approved that.
fn approved_wheel() -> Story {
    let mut story = Story::of(Effect::Repeatable);
    let plan = std::sync::Arc::make_mut(&mut story.0.plan);
    plan.steps[0].kind = StepKind::Action { name: "wheel.take".into(), version: 1, effect: Effect::Repeatable };
    plan.steps[0].approve = Some(Approval { expires: Span::from_secs(600), ..Approval::default() });
    story
}

fn wheel(bucket: &str, since: i64) -> Report {
    let wheel = json!({ "epoch": 5, "run": "r", "by": "ana@here", "since": at(since) });
    let intent = json!({ "bucket": bucket, "region": "west", "waived": null, "expect": "etag", "wheel": wheel });
    Report::Prepared(Prepared { intent, change: Vec::new(), notes: Vec::new() })
}

/// Asks over what was prepared, and one person says yes.
fn say_yes(story: &mut Story) {
    assert_eq!(story.next(at(2)), [Decision::Ask(id())]);
    let over = story.0.steps[&id()].hash.clone().unwrap();
    let asked =
        Body::ApprovalAsked { step: id(), over: over.clone(), approvers: 1, expires_at: at(600), message: None, facts: BTreeMap::new() };
    story.say(at(2), asked);
    story.say(at(3), Body::Approved { step: id(), by: "ben".into(), over, signed: None });
}

/// Whoever resumes prepares the step afresh. When it was taken differs each time, so no approval ever fitted it.
#[test]
fn an_approval_holds_what_is_done_and_not_what_was_measured() {
    let mut story = approved_wheel();
    let first = story.reports(wheel("models", 1));
    let [Body::Prepared { intent, hash, measured: Some(found), .. }] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!((&intent["wheel"], &found["wheel"]), (&json!({ "epoch": 5, "run": "r" }), &json!({ "by": "ana@here", "since": at(1) })));
    say_yes(&mut story);
    story.say(at(4), Body::Claimed { owner: "next".into() });
    assert_eq!(story.next(at(4)), [Decision::Prepare(id())]);
    let again = story.reports(wheel("models", 5));
    assert!(matches!(again.as_slice(), [Body::Prepared { hash: same, .. }] if same == hash), "{again:?}");
    assert_eq!(story.next(at(5)), [Decision::Apply { step: id(), attempt: 1 }]);
    // Whoever acts has all of it, as it was measured last.
    assert_eq!(story.0.steps[&id()].intent.as_ref().unwrap()["wheel"]["since"], json!(at(5)));
}

#[test]
fn what_would_be_done_otherwise_is_not_what_was_approved_and_the_record_says_so() {
    let mut story = approved_wheel();
    story.reports(wheel("models", 1));
    say_yes(&mut story);
    story.say(at(4), Body::Claimed { owner: "next".into() });
    let other = story.reports(wheel("others", 5));
    let [Body::ApprovalVoid { why, .. }, Body::Prepared { .. }] = other.as_slice() else { panic!("{other:?}") };
    assert_eq!(why, "what the step would do has changed since it was approved: `bucket`");
    say_yes(&mut story);
    assert_eq!(story.next(at(5)), [Decision::Apply { step: id(), attempt: 1 }]);
    // Nobody had approved: there is nothing to be said of it.
    let mut story = approved_wheel();
    story.reports(wheel("models", 1));
    story.say(at(2), Body::Claimed { owner: "next".into() });
    assert!(matches!(story.reports(wheel("others", 5)).as_slice(), [Body::Prepared { .. }]));
}

/// A run that was begun before what was measured stood apart: all of it is in the intent, and in its hash.
#[test]
fn what_was_prepared_before_measurements_stood_apart_means_what_it_meant() {
    let mut story = approved_wheel();
    let record = r#"{"run":"r","seq":3,"at":"2026-01-01T00:00:01Z","actor":"test","epoch":1,"body":{"kind":"prepared","step":"only","intent":{"bucket":"models","region":"west","waived":null,"expect":"etag","wheel":{"epoch":5,"run":"r","by":"ana@here","since":"2026-01-01T00:00:01Z"}},"hash":"7b1d","change":[],"notes":[]},"prev":"p"}"#;
    let event: Event = serde_json::from_str(record).unwrap();
    assert_eq!(serde_json::to_string(&event).unwrap(), record, "and it is written as it was");
    story.say(event.at, event.body);
    let known = &story.0.steps[&id()];
    assert_eq!((known.hash.as_deref(), &known.intent.as_ref().unwrap()["wheel"]["since"]), (Some("7b1d"), &json!(at(1))));
    say_yes(&mut story);
    assert_eq!(story.next(at(3)), [Decision::Apply { step: id(), attempt: 1 }], "in the process that asked it is good");
    story.say(at(4), Body::Claimed { owner: "a later version".into() });
    let again = story.reports(wheel("models", 5));
    assert!(
        matches!(again.as_slice(), [Body::ApprovalVoid { why, .. }, Body::Prepared { .. }] if why.contains("written down otherwise")),
        "{again:?}"
    );
}
