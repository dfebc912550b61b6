//! How an undo is tried: what is known of the attempts at it, and what follows when one of them fails.
//!
//! An undo looks for itself before it changes anything, so the same undo twice is once, and an attempt whose answer was
//! lost is simply made again: the next one finds what the last one did. What only passing trouble keeps from being
//! undone must not be left standing; what is refused for good must not be asked for again and again. Hence a bound in
//! number and one in time, both in force after a crash as before it.

use super::{decide::backoff, planted::*};
use crate::model::{effect::Failure, event::*, plan::*, runbook::Retry, time::Span};

/// What is known of the attempts to undo one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// Attempts that were begun.
    pub attempts: u32,
    /// One was begun, and nothing is on record of what came of it.
    pub open: bool,
    /// One before the last may have been carried out, or may still be: a refusal of the last says nothing of it.
    pub doubt: bool,
    /// When its owner began with it: from then on counts the time that it has.
    pub since: Option<jiff::Timestamp>,
    /// When the last attempt was begun.
    pub begun: Option<jiff::Timestamp>,
    /// When it is tried again.
    pub due: Option<jiff::Timestamp>,
    /// When that was decided.
    pub due_from: Option<jiff::Timestamp>,
}

impl Tries {
    /// Another process has the run, or the same one after a pause: it has the whole time, and only the attempts are left
    /// that there were.
    pub(super) fn taken_over(&mut self) {
        self.since = None;
    }

    pub(super) fn fold(&mut self, event: &Event) {
        match &event.body {
            Body::Undoing { .. } => {
                self.doubt |= self.open;
                self.open = true;
                self.attempts += 1;
                self.since.get_or_insert(event.at);
                self.begun = Some(event.at);
                (self.due, self.due_from) = (None, None);
            }
            Body::UndoRetry { unknown, at, .. } => {
                (self.open, self.doubt) = (false, *unknown);
                (self.due, self.due_from) = (Some(*at), Some(event.at));
            }
            _ => {
                self.open = false;
                (self.due, self.due_from) = (None, None);
            }
        }
    }
}

/// What was heard of an attempt that did not undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It cannot be undone, or not by asking again.
    Refused,
    /// Nothing was changed, and it may be otherwise soon; not before so long, says the other side.
    Passing { hint_ms: u64 },
    /// It may have been carried out.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterUndo {
    /// Again, not before so many milliseconds (jitter is the caller's).
    Again {
        after_ms: u64,
    },
    End,
}

/// A step that says nothing of `retry` has this for its undo: its action could not be tried twice, its undo can.
const USUAL: Retry = Retry { attempts: 5, backoff: Span::from_secs(1), max_backoff: Span::from_secs(10) };

/// How often a step's undo is tried, and how long it waits in between.
#[must_use]
pub fn policy(step: &PlanStep) -> Retry {
    if step.retry.attempts > 1 { step.retry.clone() } else { USUAL }
}

/// What becomes of an undo whose last attempt failed. No attempt is begun once the step's time-out has passed since the
/// first, but for the one that looks after an attempt without an answer.
#[must_use]
pub fn after(step: &PlanStep, tries: &Tries, heard: Heard, now: jiff::Timestamp) -> AfterUndo {
    let policy = policy(step);
    let again = heard != Heard::Refused || tries.doubt;
    if !again || planted(Defect::UndoGivenUp) || tries.attempts >= policy.attempts && !planted(Defect::UndoWithoutEnd) {
        return AfterUndo::End;
    }
    let wait = backoff(&policy, tries.attempts);
    let (after_ms, last, more) = match heard {
        Heard::Passing { hint_ms } => (wait.max(hint_ms), Some(now), wait.max(hint_ms)),
        Heard::Refused | Heard::Unknown => (wait, tries.begun, 0),
    };
    // A clock that was set back took no time.
    let passed = tries.since.zip(last).map_or(0, |(since, last)| u64::try_from(last.duration_since(since).as_millis()).unwrap_or(0));
    if passed.saturating_add(more) > step.timeout.ms && !planted(Defect::UndoWithoutEnd) {
        return AfterUndo::End;
    }
    AfterUndo::Again { after_ms }
}

/// Is it open whether it has been undone, once this was heard? That an attempt came too early says nothing of the one
/// before it; a refusal after which it is looked once more does.
#[must_use]
pub fn unknown(tries: &Tries, heard: Heard) -> bool {
    match heard {
        Heard::Unknown => true,
        Heard::Passing { .. } => tries.doubt,
        Heard::Refused => false,
    }
}

/// The failure with which an undo ends: of what is not known, it says so.
#[must_use]
pub fn told(tries: &Tries, heard: Heard, failure: Failure) -> Failure {
    if heard != Heard::Unknown && !tries.doubt {
        return failure;
    }
    let own = failure.remedy.as_ref().map(|own| format!("{own}; ")).unwrap_or_default();
    failure.remedy(format!("{own}{UNSURE}"))
}

const UNSURE: &str = "it may have been undone all the same; look before you undo it by hand";

/// Why an undo that was begun ends with a run that is aborted.
#[must_use]
pub fn aborted() -> Failure {
    Failure::new("aborted", "the run was aborted while it was being undone").remedy(UNSURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{effect::Effect, ids::StepId, node::*, runbook::*};

    fn step(retry: Retry, timeout: u64) -> PlanStep {
        PlanStep {
            id: "only".into(),
            kind: StepKind::Action { name: "exec.command".into(), version: 1, effect: Effect::OneShot },
            needs: Vec::new(),
            with: Node::empty_map(),
            when: None,
            retry,
            timeout: Span::from_secs(timeout),
            on_failure: OnFailure::Undo,
            undo: UndoPolicy::Automatic,
            reach: Vec::new(),
            approve: None,
            pos: Pos::default(),
        }
    }

    fn at(second: i64) -> jiff::Timestamp {
        "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
    }

    fn said(tries: &mut Tries, second: i64, body: Body) {
        tries.fold(&Event { run: "r".into(), seq: 1, at: at(second), actor: "test".into(), epoch: 1, body, prev: String::new() });
    }

    fn begun(tries: &mut Tries, second: i64) {
        let attempt = tries.attempts + 1;
        said(tries, second, Body::Undoing { step: StepId::from("only"), attempt });
    }

    fn again(unknown: bool, tries: &mut Tries, second: i64) {
        let (attempt, failure) = (tries.attempts, Failure::new("x", "-"));
        said(tries, second, Body::UndoRetry { step: "only".into(), attempt, failure, unknown, at: at(second + 1) });
    }

    fn ms(after_ms: u64) -> AfterUndo {
        AfterUndo::Again { after_ms }
    }

    #[test]
    fn a_step_without_a_policy_has_the_usual_one_and_one_with_it_its_own() {
        let usual = step(Retry::default(), 600);
        let mut tries = Tries::default();
        let mut waits = Vec::new();
        for attempt in 0..5 {
            begun(&mut tries, attempt);
            waits.push(after(&usual, &tries, Heard::Unknown, at(attempt)));
        }
        assert_eq!(waits, [ms(1_000), ms(2_000), ms(4_000), ms(8_000), AfterUndo::End]);
        let own = step(Retry { attempts: 2, backoff: Span::from_ms(50), max_backoff: Span::from_secs(1) }, 600);
        let mut tries = Tries::default();
        begun(&mut tries, 0);
        assert_eq!(after(&own, &tries, Heard::Passing { hint_ms: 0 }, at(0)), ms(50));
        assert_eq!(after(&own, &tries, Heard::Passing { hint_ms: 400 }, at(0)), ms(400), "what the other side asked for is waited for");
        begun(&mut tries, 1);
        assert_eq!(after(&own, &tries, Heard::Unknown, at(1)), AfterUndo::End);
    }

    #[test]
    fn what_is_refused_ends_at_once_unless_an_attempt_before_it_was_not_heard_of() {
        let usual = step(Retry::default(), 600);
        let mut tries = Tries::default();
        begun(&mut tries, 0);
        assert_eq!(after(&usual, &tries, Heard::Refused, at(0)), AfterUndo::End);
        // The answer to the first was lost: the refusal of the second may be for what the first did.
        again(true, &mut tries, 0);
        begun(&mut tries, 1);
        assert_eq!(after(&usual, &tries, Heard::Refused, at(1)), ms(2_000));
        again(false, &mut tries, 1);
        begun(&mut tries, 3);
        assert_eq!(after(&usual, &tries, Heard::Refused, at(3)), AfterUndo::End, "it has looked, and is refused once more");
        // That the second was throttled says nothing of the first.
        let mut tries = Tries { doubt: true, ..Tries::default() };
        begun(&mut tries, 0);
        assert!(unknown(&tries, Heard::Passing { hint_ms: 0 }) && unknown(&tries, Heard::Unknown) && !unknown(&tries, Heard::Refused));
        // The same when the process died in between.
        let mut tries = Tries::default();
        begun(&mut tries, 0);
        tries.taken_over();
        begun(&mut tries, 1);
        assert_eq!(after(&usual, &tries, Heard::Refused, at(1)), ms(2_000));
    }

    #[test]
    fn the_time_out_of_the_step_bounds_all_attempts() {
        let short = step(Retry { attempts: 100, backoff: Span::from_secs(4), max_backoff: Span::from_secs(4) }, 10);
        let mut tries = Tries::default();
        begun(&mut tries, 0);
        assert_eq!(after(&short, &tries, Heard::Passing { hint_ms: 0 }, at(6)), ms(4_000));
        assert_eq!(after(&short, &tries, Heard::Passing { hint_ms: 0 }, at(7)), AfterUndo::End, "the next would begin too late");
        assert_eq!(after(&short, &tries, Heard::Passing { hint_ms: 11_000 }, at(0)), AfterUndo::End);
        assert_eq!(after(&short, &tries, Heard::Unknown, at(15)), ms(4_000), "what took all the time without an answer is looked at");
        begun(&mut tries, 19);
        assert_eq!(after(&short, &tries, Heard::Unknown, at(20)), AfterUndo::End, "but once");
        tries.taken_over();
        begun(&mut tries, 90_000);
        assert_eq!(after(&short, &tries, Heard::Unknown, at(90_001)), ms(4_000), "another owner has the whole time");
        assert_eq!(after(&short, &tries, Heard::Passing { hint_ms: 0 }, at(0)), ms(4_000), "a clock that was set back took none");
    }

    #[test]
    fn the_last_word_says_that_it_may_have_been_undone() {
        let failure = || Failure::new("x", "no answer");
        let mut tries = Tries::default();
        begun(&mut tries, 0);
        assert_eq!(told(&tries, Heard::Refused, failure()).remedy, None);
        assert!(told(&tries, Heard::Unknown, failure()).to_string().contains("may have been undone"));
        again(true, &mut tries, 0);
        begun(&mut tries, 1);
        assert!(told(&tries, Heard::Refused, failure()).to_string().contains("may have been undone"));
    }
}
