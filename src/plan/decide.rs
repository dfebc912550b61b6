//! What to do next: the engine's whole policy.
//!
//! [`decide`] looks at a run and at what is in flight in this process, and lists what may be begun now.
//! After a crash nothing is in flight, and that is the only difference: an attempt that is open in the
//! journal and not in flight here is observed, never repeated.

use super::{planted::*, state::*, undo};
use crate::model::{effect::*, ids::*, plan::*, runbook::*, status::*};
use std::collections::BTreeSet;

/// Why an approval that was given is void that nothing was done on.
const LATE: &str = "its time ended before anything was done on it";
/// How many steps are at work at once.
pub const PARALLEL: usize = 16;

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Evaluate `when`, render `with`, look at the world, choose.
    Prepare(StepId),
    /// A drill does not ask: the approval is journaled as skipped.
    SkipApproval(StepId),
    Ask(StepId),
    /// Every approval is there: look at the facts once more.
    Confirm(StepId),
    /// What was approved counts no more, and is asked for anew.
    Void {
        step: StepId,
        why: String,
    },
    Apply {
        step: StepId,
        attempt: u32,
    },
    /// See whether an attempt happened, or is complete.
    Observe(StepId),
    Undo(StepId),
    /// Journal that undoing this step is left to a person, or that there is nothing to undo.
    LeaveUndo {
        step: StepId,
        reason: String,
    },
    /// Journal that undoing this step came to nothing.
    EndUndo {
        step: StepId,
        failure: Failure,
    },
    End {
        step: StepId,
        status: StepStatus,
        failure: Option<Failure>,
    },
    /// Nothing can be done before this instant.
    WakeAt(jiff::Timestamp),
    /// A person must act; the process may go.
    Park {
        status: RunStatus,
        reason: String,
    },
    Finish {
        status: RunStatus,
        reason: Option<String>,
    },
}

/// What becomes of a step after an attempt that failed.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterFailure {
    /// Again, not before so many milliseconds (jitter is the caller's).
    Retry {
        after_ms: u64,
    },
    End(StepStatus),
}

/// What may be begun now. Empty while only what is in flight can bring the run on.
#[must_use]
pub fn decide(state: &RunState, in_flight: &BTreeSet<StepId>, now: jiff::Timestamp) -> Vec<Decision> {
    if state.finished_at.is_some() {
        return Vec::new();
    }
    let mut decisions = Vec::new();
    for step in &state.plan.steps {
        if let Some(known) = state.steps.get(&step.id).filter(|_| !in_flight.contains(&step.id)) {
            if stale(state, &step.id, in_flight, now) {
                decisions.push(Decision::Void { step: step.id.clone(), why: LATE.to_owned() });
            } else if !(known.phase == Phase::New && step.needs.iter().any(|need| stale(state, need, in_flight, now))) {
                decisions.extend(for_step(state, step, known, now));
            }
        }
    }
    let acts = |d: &&Decision| !matches!(d, Decision::WakeAt(_));
    if in_flight.is_empty() && decisions.iter().filter(acts).count() == 0 {
        return at_rest(state, decisions, now);
    }
    let room = PARALLEL.saturating_sub(in_flight.len());
    let mut begun = 0;
    decisions.retain(|decision| {
        let works = matches!(decision, Decision::Prepare(_) | Decision::Apply { .. } | Decision::Observe(_));
        begun += usize::from(works);
        !works || begun <= room
    });
    decisions
}

fn for_step(state: &RunState, step: &PlanStep, known: &StepState, now: jiff::Timestamp) -> Option<Decision> {
    let halted = state.paused.is_some() || state.aborting.is_some() || state.stopping.is_some();
    let id = || step.id.clone();
    match &known.phase {
        Phase::New if halted || !needs_met(state, step) => None,
        Phase::New => Some(waits(known.retry_at, known.retry_from, now).unwrap_or_else(|| match &step.kind {
            StepKind::Approval(_) if state.plan.scope == Scope::Drill => Decision::SkipApproval(id()),
            StepKind::Approval(_) => Decision::Ask(id()),
            StepKind::Action { .. } => Decision::Prepare(id()),
        })),
        // Nothing is sent any more: what was sent before and may still land is waited for after all.
        Phase::Prepared if halted => (known.doubt && !state.interrupted()).then(|| Decision::Observe(id())),
        Phase::Prepared => match known.asked.as_ref().filter(|asked| Some(&asked.over) == known.hash.as_ref()) {
            _ if !gated(state, step, known) => Some(apply(step, known)),
            Some(_) => asked(state, step, known, now),
            None => Some(Decision::Ask(id())),
        },
        Phase::Asked => asked(state, step, known, now),
        // Reads are run again freely; everything else is looked at first.
        Phase::Applying | Phase::Unknown(_) | Phase::Applied if is_read(step) => (!halted).then(|| apply(step, known)),
        Phase::Applying if planted(Defect::NoObservationAfterACrash) => Some(apply(step, known)),
        Phase::Unknown(_) if planted(Defect::UnknownRetried) => Some(apply(step, known)),
        // An operator's pause stops waiting, too: what was applied can be looked at when the run goes on.
        Phase::Applying | Phase::Unknown(_) | Phase::Applied => (!state.interrupted()).then(|| Decision::Observe(id())),
        Phase::Held | Phase::Ended => None,
    }
}

/// Until when what is tried again waits. Who waits by a clock that was set back would wait for ever.
fn waits(due: Option<jiff::Timestamp>, decided: Option<jiff::Timestamp>, now: jiff::Timestamp) -> Option<Decision> {
    due.filter(|at| *at > now && decided.is_none_or(|from| from <= now)).map(Decision::WakeAt)
}

fn apply(step: &PlanStep, known: &StepState) -> Decision {
    Decision::Apply { step: step.id.clone(), attempt: known.attempts + 1 }
}

/// Must this step's intent be approved before it is applied? A drill does not ask, and an override has answered.
fn gated(state: &RunState, step: &PlanStep, known: &StepState) -> bool {
    step.approve.is_some() && state.plan.scope == Scope::Live && known.overridden.is_none()
}

/// An approval that was given, whose time ended before anything that needs it was begun.
fn stale(state: &RunState, id: &StepId, in_flight: &BTreeSet<StepId>, now: jiff::Timestamp) -> bool {
    let halted = state.paused.is_some() || state.aborting.is_some() || state.stopping.is_some();
    let given = state
        .steps
        .get(id)
        .is_some_and(|known| known.status == StepStatus::Succeeded && known.asked.as_ref().is_some_and(|asked| asked.expires_at <= now));
    let approval = || state.plan.step(id).is_some_and(|step| matches!(step.kind, StepKind::Approval(_)));
    if !given || halted || !approval() {
        return false;
    }
    let mut needing = state.plan.steps.iter().filter(|step| step.needs.contains(id)).peekable();
    let untouched = |step: &PlanStep| {
        let known = state.steps.get(&step.id);
        known.is_none_or(|known| known.phase == Phase::New && known.started_at.is_none()) && !in_flight.contains(&step.id)
    };
    needing.peek().is_some() && needing.all(untouched)
}

fn is_read(step: &PlanStep) -> bool {
    matches!(step.kind, StepKind::Action { effect: Effect::Read, .. })
}

fn needs_met(state: &RunState, step: &PlanStep) -> bool {
    step.needs.iter().all(|need| state.steps.get(need).is_some_and(|known| known.status.satisfies()))
}

fn asked(state: &RunState, step: &PlanStep, known: &StepState, now: jiff::Timestamp) -> Option<Decision> {
    let approval = step.asks()?;
    let halted = state.paused.is_some() || state.aborting.is_some() || state.stopping.is_some();
    let id = || step.id.clone();
    let end = |status, failure| Some(Decision::End { step: step.id.clone(), status, failure });
    if let Some(reason) = &known.rejected {
        return end(StepStatus::Failed, Some(Failure::new("rejected", reason.clone())));
    }
    if known.approvals.len() >= approval.approvers as usize {
        let acts = matches!(step.kind, StepKind::Action { .. });
        return match known.expires_at {
            _ if halted && (acts || !approval.facts.is_empty()) => None,
            Some(at) if at <= now => Some(Decision::Void { step: id(), why: LATE.to_owned() }),
            _ if !approval.facts.is_empty() && !known.confirmed => Some(Decision::Confirm(id())),
            _ if acts => Some(apply(step, known)),
            _ => end(StepStatus::Succeeded, None),
        };
    }
    match known.expires_at {
        Some(at) if at <= now => {
            let why = format!("{} of {} approvals came within {}", known.approvals.len(), approval.approvers, approval.expires);
            end(StepStatus::Failed, Some(Failure::new("approval_expired", why)))
        }
        Some(at) => Some(Decision::WakeAt(at)),
        None => None,
    }
}

/// Nothing is in flight and no step can go on by itself: wait, ask, undo, or finish.
fn at_rest(state: &RunState, waiting: Vec<Decision>, now: jiff::Timestamp) -> Vec<Decision> {
    let mut held = state.steps.iter().filter(|(_, known)| known.phase == Phase::Held).map(|(id, _)| id.as_str());
    if let Some(first) = held.next() {
        let names = held.fold(format!("`{first}`"), |names, id| format!("{names}, `{id}`"));
        return park(RunStatus::Indeterminate, format!("what happened in step {names} is not known"));
    }
    if let Some(reason) = state.paused.as_ref().filter(|_| more_to_do(state)) {
        return park(RunStatus::Paused, reason.clone());
    }
    if let Some(reason) = &state.aborting {
        // Whoever aborts does not wait for what is only tried again, and the record does not leave it open. A wheel is
        // let go of all the same.
        let wheels = state.wheels();
        let cut = state.steps.iter().filter(|(id, known)| known.undo == UndoState::Undoing && !wheels.contains(id));
        let cut: Vec<_> = cut.map(|(id, _)| Decision::EndUndo { step: id.clone(), failure: undo::aborted() }).collect();
        return if cut.is_empty() { close(state, RunStatus::Aborted, Some(reason.clone()), now) } else { cut };
    }
    if let Some(stopping) = &state.stopping {
        if stopping.undo
            && let Some(undo) = next_undo(state, now)
        {
            return vec![undo];
        }
        let failed: Vec<_> = state.steps.values().filter(|known| known.undo == UndoState::Failed).collect();
        let note = if failed.is_empty() { "" } else { "; not everything could be undone" };
        return close(state, RunStatus::Failed, Some(format!("step `{}` failed{note}", stopping.because)), now);
    }
    // A step that is due to be tried again does not wait for the approval of another.
    if state.steps.values().any(|known| known.phase == Phase::New && known.retry_at.is_some()) {
        return waiting;
    }
    if let Some((id, _)) = state.steps.iter().find(|(_, known)| known.phase == Phase::Asked) {
        let mut decisions = park(RunStatus::WaitingApproval, format!("step `{id}` waits for approval"));
        decisions.extend(waiting);
        return decisions;
    }
    if !waiting.is_empty() {
        return waiting;
    }
    // A run that was resumed past a failed step still has that step.
    if let Some((id, _)) = state.steps.iter().find(|(_, known)| known.status.is_failure()) {
        return park(RunStatus::Paused, format!("step `{id}` failed"));
    }
    // It was being ended, and then what had stopped it was taken care of: too late for what was cancelled.
    if let Some((id, _)) = state.steps.iter().find(|(_, known)| known.status == StepStatus::Cancelled) {
        return close(state, RunStatus::Failed, Some(format!("step `{id}` was cancelled")), now);
    }
    close(state, RunStatus::Succeeded, overridden(state), now)
}

/// What the end of a run says of the guards that did not hold.
fn overridden(state: &RunState) -> Option<String> {
    let marked = state.overridden();
    let names: Vec<_> = marked.iter().map(|(id, by)| format!("step `{id}` was overridden by {}", by.by)).collect();
    (!names.is_empty()).then(|| names.join("; "))
}

/// Would a run that is held have anything to do if it went on, other than to end?
fn more_to_do(state: &RunState) -> bool {
    // What was begun is settled before a run ends, also an aborted one.
    let open = |phase: &Phase| matches!(phase, Phase::Applying | Phase::Unknown(_) | Phase::Applied);
    let unsettled = state.plan.steps.iter().any(|step| !is_read(step) && state.steps.get(&step.id).is_some_and(|known| open(&known.phase)));
    let ends = match &state.stopping {
        Some(stopping) => !stopping.undo || to_undo(state).is_none(),
        None => false,
    };
    unsettled || !(ends || state.aborting.is_some())
}

fn park(status: RunStatus, reason: String) -> Vec<Decision> {
    vec![Decision::Park { status, reason }]
}

/// What never ran is cancelled, by name; then the run ends.
fn close(state: &RunState, status: RunStatus, reason: Option<String>, now: jiff::Timestamp) -> Vec<Decision> {
    // A run that has ended, however it ended, keeps nobody else from acting.
    if let Some((step, known)) = state.wheels().first().and_then(|step| Some((*step, state.step(step)?))) {
        return vec![undo_now(step, known, now)];
    }
    let open = state.plan.steps.iter().filter(|step| state.steps.get(&step.id).is_some_and(|known| known.phase != Phase::Ended));
    let mut decisions: Vec<_> =
        open.map(|step| Decision::End { step: step.id.clone(), status: StepStatus::Cancelled, failure: None }).collect();
    if decisions.is_empty() {
        decisions.push(Decision::Finish { status, reason });
    }
    decisions
}

/// An attempt to undo a step, or the wait before it.
fn undo_now(step: &StepId, known: &StepState, now: jiff::Timestamp) -> Decision {
    waits(known.undo_tries.due, known.undo_tries.due_from, now).unwrap_or_else(|| Decision::Undo(step.clone()))
}

fn next_undo(state: &RunState, now: jiff::Timestamp) -> Option<Decision> {
    let (step, known) = to_undo(state)?;
    Some(match step.undo {
        UndoPolicy::Automatic => undo_now(&step.id, known, now),
        UndoPolicy::Manual => Decision::LeaveUndo { step: step.id.clone(), reason: "its undo is manual".to_owned() },
        UndoPolicy::None => Decision::LeaveUndo { step: step.id.clone(), reason: "it has no undo".to_owned() },
    })
}

/// The next step to undo: every one that was begun, succeeded or not, the last begun first. One whose undo waits to be
/// tried again holds up those before it.
fn to_undo(state: &RunState) -> Option<(&PlanStep, &StepState)> {
    let begun = state.plan.steps.iter().filter_map(|step| {
        let known = state.steps.get(&step.id)?;
        let open = matches!(known.undo, UndoState::Not | UndoState::Undoing) && !is_read(step);
        let left = planted(Defect::UndoOnlyOfWhatSucceeded) && known.status != StepStatus::Succeeded;
        Some((known.first_applying?, step, &**known)).filter(|_| open && !left)
    });
    begun.max_by_key(|(seq, ..)| *seq).map(|(_, step, known)| (step, known))
}

/// What becomes of a step whose attempt number `attempt` failed for certain.
#[must_use]
pub fn after_failure(step: &PlanStep, attempt: u32, retryable: bool, timed_out: bool, hint_ms: Option<u64>) -> AfterFailure {
    if retryable && attempt < step.retry.attempts {
        return AfterFailure::Retry { after_ms: backoff(&step.retry, attempt).max(hint_ms.unwrap_or(0)) };
    }
    AfterFailure::End(match step.on_failure {
        OnFailure::Continue => StepStatus::FailedIgnored,
        _ if timed_out => StepStatus::TimedOut,
        _ => StepStatus::Failed,
    })
}

/// How long is waited after this attempt, in milliseconds: doubled each time, up to the most.
pub(super) fn backoff(retry: &Retry, attempt: u32) -> u64 {
    let doublings = attempt.saturating_sub(1).min(20);
    retry.backoff.ms.saturating_mul(1 << doublings).min(retry.max_backoff.ms)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
