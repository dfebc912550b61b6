//! What is done for one step outside the loop: prepare, apply, observe, undo. No journal here: a task
//! gets values and gives a report, and [`bodies`] says which events the report amounts to.

use super::{Engine, Retry, failed, wheel};
use crate::actions::contract::*;
use crate::journal::{Claim, chain::sha256_hex};
use crate::model::{effect::*, event::*, ids::*, measured, node::*, plan::*};
use crate::plan::{
    state::{Phase, RunState, StepState},
    undo::{self, AfterUndo, Heard},
};
use crate::providers::clock::Clock;
use crate::runbook::expr;
use serde_json::Value;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// One look at the world may take so long; a step's own timeout bounds all its looks together.
const LOOK: Duration = Duration::from_mins(1);

/// An action keeps its deadline itself, and has something to tidy up when it passes (a child to end). Only
/// one that takes so much longer is cut off.
const OVERTIME: Duration = Duration::from_secs(5);

/// How soon what was accepted is looked at again; doubled from look to look, up to what the action says.
/// A recovery should not wait for a poll, nor a provider be asked all the time.
const FIRST_WAIT: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub enum Work {
    Prepare,
    Apply {
        attempt: u32,
    },
    /// `accepted`: the other side took it, and only its completion is awaited.
    Observe {
        accepted: bool,
    },
    Undo,
    /// Look at the facts of an approval; `confirm`: before its approvals count.
    Facts {
        confirm: bool,
    },
}

/// What the loop tells its tasks: to wait for nothing any more, to read no further.
pub struct Told {
    pub waiting: watch::Receiver<bool>,
    pub reading: watch::Receiver<bool>,
}

/// What came of it.
#[derive(Debug)]
pub enum Report {
    Skip {
        reason: String,
    },
    Prepared(Prepared<Value>),
    Refused {
        refusal: Refusal,
        timed_out: bool,
    },
    /// `observes`: can more be seen of it than this answer?
    Applied {
        attempt: u32,
        result: Result<Value, ApplyError>,
        timed_out: bool,
        observes: bool,
    },
    Observed {
        seen: Seen<Value>,
        timed_out: bool,
    },
    /// Told to stop waiting; nothing new is known.
    StoppedWaiting,
    Undone(Result<(), ApplyError>),
    Facts {
        confirm: bool,
        facts: Result<super::facts::Facts, Failure>,
    },
}

/// The same for every attempt of a step, and for no other step: what the outside world may deduplicate by.
#[must_use]
pub fn key(run: &RunId, step: &StepId) -> String {
    sha256_hex(format!("{run}/{step}").as_bytes())
}

/// What a task is begun from.
pub struct Doing<'a> {
    pub engine: &'a Engine,
    pub state: &'a RunState,
    pub claim: &'a Claim,
    pub owned: &'a Arc<AtomicBool>,
}

type Task = Pin<Box<dyn Future<Output = Report> + Send>>;

/// The task for one piece of work; `None` when the step is not an action, or was never prepared.
pub fn task(doing: &Doing<'_>, step: &StepId, work: Work, told: Told) -> Option<Task> {
    let Doing { engine, state, claim, .. } = *doing;
    let planned = state.plan.step(step)?;
    let known = state.step(step)?;
    if let Work::Facts { confirm } = work {
        return super::facts::task(doing, planned, confirm, told);
    }
    let StepKind::Action { name, .. } = &planned.kind else { return None };
    let Some(action) = crate::actions::find(name) else {
        let refusal = Refusal::no("unknown_action", format!("this version of muster has no action `{name}`"));
        return Some(Box::pin(async move { Report::Refused { refusal, timed_out: false } }));
    };
    let (read, write) = contexts(doing, planned);
    let limit = planned.timeout.duration();
    let clock = engine.clock.clone();
    let intent = || known.intent.clone().unwrap_or(Value::Null);
    let wheels = wheel::held(engine, state, planned, &read, &*action);
    match work {
        Work::Prepare => {
            let rendered = render(state, claim, planned);
            Some(Box::pin(unless_told(told.reading, async move { prepare(action, read, rendered, limit).await })))
        }
        Work::Apply { attempt } => {
            let observes = action.observes(&planned.with);
            let intent = intent();
            let reads = matches!(&planned.kind, StepKind::Action { effect: Effect::Read, .. });
            let applied = async move {
                if let Err(error) = wheel::steer(&wheels).await {
                    return Report::Applied { attempt, result: Err(error), timed_out: false, observes };
                }
                match tokio::time::timeout(limit + OVERTIME, action.apply(&write, &intent)).await {
                    Ok(result) => Report::Applied { attempt, result, timed_out: false, observes },
                    Err(_) => Report::Applied { attempt, result: Err(ApplyError::Unknown(late(limit))), timed_out: true, observes },
                }
            };
            // A read may be dropped at any point; what changes something is always seen to its end.
            Some(if reads { Box::pin(unless_told(told.reading, applied)) } else { Box::pin(applied) })
        }
        Work::Observe { accepted } => {
            // What was sent and not answered may still be on its way: "absent" is believed only when it cannot land any
            // more. What is about to be sent again, because twice is once, need not wait for that.
            let repeatable = matches!(&planned.kind, StepKind::Action { effect: Effect::Repeatable, .. });
            let halted = state.paused.is_some() || state.aborting.is_some() || state.stopping.is_some();
            let again = repeatable && !halted && known.phase == Phase::Applying;
            let lands = if accepted || again { Duration::ZERO } else { action.lands_within(&planned.with) };
            let intent = intent();
            let look = Look { limit: limit.max(lands), accepted, lands };
            Some(Box::pin(async move { observe(action, read, intent, clock, look, told.waiting).await }))
        }
        Work::Undo => {
            let (intent, output) = (intent(), known.output.clone());
            Some(Box::pin(async move {
                if let Err(error) = wheel::steer(&wheels).await {
                    return Report::Undone(Err(error));
                }
                let undone = tokio::time::timeout(limit + OVERTIME, action.undo(&write, &intent, output)).await;
                Report::Undone(undone.unwrap_or_else(|_| Err(ApplyError::Unknown(late(limit)))))
            }))
        }
        Work::Facts { .. } => None,
    }
}

/// What a step's action sees, and the permit without which it changes nothing.
pub(super) fn contexts(doing: &Doing<'_>, planned: &PlanStep) -> (ReadCx, WriteCx) {
    let Doing { engine, state, claim, owned } = *doing;
    let read = ReadCx {
        world: engine.world.clone(),
        estate: state.plan.estate.clone(),
        run: claim.run.clone(),
        step: planned.id.clone(),
        scope: state.plan.scope,
        lost: state.plan.lost(),
        key: key(&claim.run, &planned.id),
        deadline: planned.timeout.duration(),
        scratch: engine.scratch.join(claim.run.as_str()),
    };
    let (owned, hold, time) = (owned.clone(), claim.hold.clone(), engine.clock.clone());
    let permit = move || owned.load(Ordering::SeqCst) && hold.permits(time.monotonic());
    let write = WriteCx::new(read.clone(), engine.world.clone(), Arc::new(permit));
    (read, write)
}

fn late(limit: Duration) -> Failure {
    Failure::new(
        "timed_out",
        format!("no answer within {}", crate::model::time::Span::from_ms(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))),
    )
}

/// What `when` and `with` come to with what is known now; `None` when the step is not to run.
pub(super) fn render(state: &RunState, claim: &Claim, planned: &PlanStep) -> Result<Option<Node>, String> {
    if planned.when.is_none() && expr::is_plain(&planned.with) {
        return Ok(Some(planned.with.clone()));
    }
    let context = context(state, &claim.run);
    if !holds(state, claim, planned)? {
        return Ok(None);
    }
    expr::render(&planned.with, &context).map(Some).map_err(|e| e.to_string())
}

/// Does the step's `when` hold?
pub fn holds(state: &RunState, claim: &Claim, planned: &PlanStep) -> Result<bool, String> {
    planned.when.as_ref().map_or(Ok(true), |when| expr::truth(when, &context(state, &claim.run)).map_err(|e| e.to_string()))
}

/// What a value comes to that may be an expression.
pub(super) fn value(value: &Value, context: &expr::Context) -> Result<Value, String> {
    let Some(text) = value.as_str() else { return Ok(value.clone()) };
    let node = Node { pos: Default::default(), value: NodeValue::Text { text: text.to_owned(), quoted: true } };
    match expr::render(&node, context).map_err(|e| e.to_string())?.value {
        NodeValue::Typed(value) => Ok(value),
        _ => Ok(value.clone()),
    }
}

/// The variables in a text's expressions.
pub(super) fn variables(text: &str) -> std::collections::BTreeSet<String> {
    expr::variables(text).unwrap_or_default()
}

pub(super) fn context(state: &RunState, run: &RunId) -> expr::Context {
    let context = expr::Context::new(&state.plan.inputs).with_run(run.as_str());
    let outputs = state.steps.iter().filter_map(|(id, known)| Some((id, known.output.clone()?)));
    outputs.fold(context, |context, (id, output)| context.with_step(id.as_str(), output))
}

async fn prepare(action: Box<dyn DynAction>, cx: ReadCx, rendered: Result<Option<Node>, String>, limit: Duration) -> Report {
    let with = match rendered {
        Ok(Some(with)) => with,
        Ok(None) => return Report::Skip { reason: "its `when` is false".to_owned() },
        Err(why) => return Report::Refused { refusal: Refusal::no("expression", why), timed_out: false },
    };
    match tokio::time::timeout(limit, action.prepare(&cx, &with)).await {
        Ok(Ok(prepared)) => Report::Prepared(prepared),
        Ok(Err(refusal)) => Report::Refused { refusal, timed_out: false },
        Err(_) => Report::Refused { refusal: Refusal { failure: late(limit), retry: true }, timed_out: true },
    }
}

/// How a task looks at what was attempted.
struct Look {
    limit: Duration,
    /// The other side took it, and only its completion is awaited.
    accepted: bool,
    /// How long what nobody answered may still land.
    lands: Duration,
}

/// Looks until there is something to say. Once the other side has accepted, "absent" only means "not yet".
async fn observe(
    action: Box<dyn DynAction>,
    cx: ReadCx,
    intent: Value,
    clock: Arc<dyn Clock>,
    Look { limit, accepted, lands }: Look,
    mut waiting: watch::Receiver<bool>,
) -> Report {
    let begun = clock.monotonic();
    let mut patience = FIRST_WAIT;
    loop {
        // By when the look began, not by when it is judged: in between this process may have been frozen.
        let asked = clock.monotonic().saturating_sub(begun);
        let seen = match tokio::time::timeout(LOOK, action.observe(&cx, &intent)).await {
            Ok(seen) => seen,
            Err(_) => Seen::CannotTell { why: late(LOOK).message },
        };
        let poll = match &seen {
            Seen::Pending { poll_after_ms, .. } => *poll_after_ms,
            Seen::Absent if accepted || asked < lands => 100,
            Seen::CannotTell { .. } if asked < lands => 100,
            // Right after a crash what is to be looked at may be down as well: look again, up to the limit.
            Seen::CannotTell { .. } if accepted => 500,
            _ => return Report::Observed { seen, timed_out: false },
        };
        if clock.monotonic().saturating_sub(begun) >= limit {
            return Report::Observed { seen, timed_out: true };
        }
        tokio::select! {
            biased;
            () = truth(&mut waiting) => return Report::StoppedWaiting,
            () = clock.sleep(Duration::from_millis(poll).min(patience)) => {}
        }
        patience = patience.saturating_mul(2);
    }
}

/// Until the loop says that nothing is waited for any more.
pub async fn truth(waiting: &mut watch::Receiver<bool>) {
    // The sender lives as long as the loop that waits for this task.
    if waiting.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Work that changes nothing, dropped when nothing is waited for any more.
pub(super) async fn unless_told(mut reading: watch::Receiver<bool>, work: impl Future<Output = Report>) -> Report {
    tokio::select! {
        biased;
        report = work => report,
        () = truth(&mut reading) => Report::StoppedWaiting,
    }
}

/// What a task that died without a report amounts to.
#[must_use]
pub fn died(work: Work, why: &str) -> Report {
    let failure = Failure::new("defect", format!("Muster's own work on this step died: {why}"));
    match work {
        Work::Prepare => Report::Refused { refusal: Refusal { failure, retry: false }, timed_out: false },
        Work::Apply { attempt } => Report::Applied { attempt, result: Err(ApplyError::Unknown(failure)), timed_out: false, observes: true },
        Work::Observe { .. } => Report::Observed { seen: Seen::CannotTell { why: failure.message }, timed_out: true },
        Work::Undo => Report::Undone(Err(ApplyError::Unknown(failure))),
        Work::Facts { confirm } => Report::Facts { confirm, facts: Err(failure) },
    }
}

/// What is needed to tell what a report amounts to.
pub struct Context<'a> {
    pub planned: &'a PlanStep,
    pub known: &'a StepState,
    pub now: jiff::Timestamp,
}

/// The events that a report amounts to. `at` turns a wait into an instant (with jitter).
pub fn bodies(cx: &Context<'_>, report: Report, at: impl Fn(u64) -> jiff::Timestamp) -> Vec<Body> {
    let step = cx.planned.id.clone();
    // A person skipped the step while it was prepared: it stays so.
    if cx.known.phase != Phase::New && matches!(report, Report::Skip { .. } | Report::Prepared(_) | Report::Refused { .. }) {
        return Vec::new();
    }
    match report {
        Report::Skip { reason } => vec![Body::Skipped { step, reason }],
        Report::Prepared(prepared) => was_prepared(cx, step, prepared),
        Report::Refused { refusal, timed_out } => {
            let attempt = cx.known.attempts + 1;
            let retry = Retry { allowed: refusal.retry, timed_out, hint_ms: None };
            let mut next = failed(cx.planned, &step, attempt, &refusal.failure, retry, at);
            if cx.known.doubt && matches!(next, Body::StepEnded { .. }) {
                // Before it counts as failed: an attempt before this one may stand.
                next = Body::ApplyUnknown { step: step.clone(), attempt, failure: refusal.failure.clone() };
            }
            vec![Body::Refused { step, attempt, failure: refusal.failure, retry: refusal.retry }, next]
        }
        Report::Applied { attempt, result: Ok(output), observes, .. } => {
            let mut bodies = vec![Body::Applied { step: step.clone(), attempt, output: output.clone() }];
            if !observes {
                bodies.push(verified(cx, step, output));
            }
            bodies
        }
        Report::Applied { attempt, result: Err(error), timed_out, .. } => not_applied(cx, step, attempt, error, timed_out, at),
        Report::Observed { seen, timed_out } => observed(cx, step, seen, timed_out, at),
        // What facts amount to is decided over the whole run, in `facts`.
        Report::StoppedWaiting | Report::Facts { .. } => Vec::new(),
        Report::Undone(Ok(())) => vec![Body::Undone { step }],
        // Nothing was tried, and it is the next owner's to undo.
        Report::Undone(Err(ApplyError::Definite(failure))) if failure.code == DEPOSED => Vec::new(),
        Report::Undone(Err(error)) => vec![not_undone(cx, step, error, at)],
    }
}

/// What is approved is what would be done; what was measured stands beside it, and may be another at every look.
fn was_prepared(cx: &Context<'_>, step: StepId, prepared: Prepared<Value>) -> Vec<Body> {
    let Prepared { mut intent, change, notes } = prepared;
    let paths = crate::actions::find(cx.planned.kind.uses()).map(|action| action.measured()).unwrap_or_default();
    let found = measured::take(&mut intent, paths);
    let hash = sha256_hex(&serde_json::to_vec(&intent).unwrap_or_default());
    // Who approved hears why that counts no more, before the same people are asked anew.
    let other = cx.known.asked.as_ref().is_some_and(|asked| asked.over != hash) && !cx.known.approvals.is_empty();
    let void = other.then(|| {
        let mut then = cx.known.intent.clone().unwrap_or(Value::Null);
        measured::take(&mut then, paths);
        Body::ApprovalVoid { step: step.clone(), why: changed(&then, &intent), facts: super::facts::Facts::new() }
    });
    let prepared = Body::Prepared { step, intent, hash, measured: found, change, notes };
    void.into_iter().chain([prepared]).collect()
}

/// What of an intent is another than it was, by name.
fn changed(then: &Value, now: &Value) -> String {
    let names = [then, now].into_iter().filter_map(Value::as_object).flat_map(|fields| fields.keys());
    let mut other: Vec<_> = names.filter(|name| then.get(name) != now.get(name)).map(|name| format!("`{name}`")).collect();
    other.sort_unstable();
    other.dedup();
    match other.is_empty() {
        true => "the step is written down otherwise than when it was approved".to_owned(),
        false => format!("what the step would do has changed since it was approved: {}", other.join(", ")),
    }
}

fn not_undone(cx: &Context<'_>, step: StepId, error: ApplyError, at: impl Fn(u64) -> jiff::Timestamp) -> Body {
    let (failure, heard) = match error {
        ApplyError::Definite(failure) => (failure, Heard::Refused),
        ApplyError::Retry { after, failure } => (failure, Heard::Passing { hint_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX) }),
        ApplyError::Unknown(failure) => (failure, Heard::Unknown),
    };
    let tries = &cx.known.undo_tries;
    match undo::after(cx.planned, tries, heard, cx.now) {
        AfterUndo::Again { after_ms } => {
            let unknown = undo::unknown(tries, heard);
            Body::UndoRetry { step, attempt: tries.attempts, failure, unknown, at: at(after_ms) }
        }
        AfterUndo::End => Body::UndoFailed { step, failure: undo::told(tries, heard, failure) },
    }
}

/// Done, and what its action wants heard of it.
fn verified(cx: &Context<'_>, step: StepId, output: Value) -> Body {
    let warnings = crate::actions::find(cx.planned.kind.uses()).map(|action| action.warnings(&output)).unwrap_or_default();
    Body::Verified { step, output, warnings }
}

fn not_applied(
    cx: &Context<'_>,
    step: StepId,
    attempt: u32,
    error: ApplyError,
    timed_out: bool,
    at: impl Fn(u64) -> jiff::Timestamp,
) -> Vec<Body> {
    let read = matches!(cx.planned.kind, StepKind::Action { effect: Effect::Read, .. });
    let (failure, retry) = match error {
        // A read that was not answered has changed nothing.
        ApplyError::Unknown(failure) if read => (failure, Retry { allowed: true, timed_out, hint_ms: None }),
        ApplyError::Unknown(failure) => return vec![Body::ApplyUnknown { step, attempt, failure }],
        // What was said of this attempt says nothing of the one before it.
        ApplyError::Definite(failure) | ApplyError::Retry { failure, .. } if cx.known.doubt => {
            return vec![Body::ApplyUnknown { step, attempt, failure }];
        }
        ApplyError::Retry { after, failure } => {
            (failure, Retry { allowed: true, timed_out: false, hint_ms: u64::try_from(after.as_millis()).ok() })
        }
        ApplyError::Definite(failure) => (failure, Retry { allowed: true, timed_out: false, hint_ms: None }),
    };
    // The step did not fail, its owner did: the next one tries, however many attempts are left.
    let next = if failure.code == DEPOSED {
        Body::RetryAt { step: step.clone(), at: at(0) }
    } else {
        failed(cx.planned, &step, attempt, &failure, retry, at)
    };
    vec![Body::ApplyFailed { step, attempt, failure, retry_after_ms: retry.hint_ms }, next]
}

fn observed(cx: &Context<'_>, step: StepId, seen: Seen<Value>, timed_out: bool, at: impl Fn(u64) -> jiff::Timestamp) -> Vec<Body> {
    let mut bodies = vec![Body::Observed { step: step.clone(), seen: seen.clone() }];
    let accepted = cx.known.phase == Phase::Applied;
    let repeatable = matches!(cx.planned.kind, StepKind::Action { effect: Effect::Repeatable, .. });
    bodies.push(match seen {
        Seen::Done(output) => verified(cx, step, output),
        Seen::Absent if !accepted => match &cx.known.phase {
            // The attempt is known to have failed after all: it counts, and may be made again.
            Phase::Unknown(failure) => {
                let retry = Retry { allowed: true, timed_out: failure.code == "timed_out", hint_ms: None };
                failed(cx.planned, &step, cx.known.attempts, failure, retry, at)
            }
            _ => return bodies,
        },
        Seen::Pending { note, .. } if accepted && timed_out => {
            let why = Failure::new("timed_out", format!("accepted, but not complete within {}: {note}", cx.planned.timeout));
            failed(cx.planned, &step, u32::MAX, &why, Retry { allowed: false, timed_out: true, hint_ms: None }, at)
        }
        Seen::Pending { note, .. } => question(step, format!("an earlier attempt is still under way: {note}")),
        Seen::Absent => question(step, "it was accepted, but nothing of it can be seen".to_owned()),
        Seen::Differs { found } => question(step, format!("something else is there: {found}")),
        // The same intent twice is once: it is simply sent again.
        Seen::CannotTell { .. } if !accepted && repeatable => match &cx.known.phase {
            Phase::Unknown(failure) => {
                let remedy = "it may have been carried out, which could not be seen; look before you decide";
                let failure = failure.clone().remedy(remedy);
                failed(cx.planned, &step, cx.known.attempts, &failure, Retry { allowed: true, timed_out: false, hint_ms: None }, at)
            }
            _ => return bodies,
        },
        Seen::CannotTell { why } => question(step, why),
    });
    bodies
}

fn question(step: StepId, question: String) -> Body {
    Body::Indeterminate { step, question }
}
