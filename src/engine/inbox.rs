//! What an operator may do to a run, and when: a command becomes events, or a refusal that says why.

use crate::journal::Command;
use crate::model::{effect::Effect, event::*, ids::*, plan::*, status::*};
use crate::plan::{
    approval,
    state::{Phase, RunState, StepState, UndoState},
};

/// The events that a command amounts to in this state.
pub fn bodies(state: &RunState, run: &RunId, by: &str, command: &Command, now: jiff::Timestamp) -> Result<Vec<Body>, String> {
    if state.finished_at.is_some() {
        return Err(format!("the run has ended: {}", state.status.word()));
    }
    let undoing = state.steps.values().any(|known| known.undo != UndoState::Not);
    if undoing && matches!(command, Command::Retry { .. } | Command::Skip { .. } | Command::Override { .. }) {
        return Err("the run is being undone; it can only be resumed to its end".to_owned());
    }
    let ending = state.steps.values().any(|known| known.status == StepStatus::Cancelled);
    if ending && matches!(command, Command::Retry { .. } | Command::Skip { .. }) {
        return Err("the run is being ended, its remaining steps are cancelled; begin a new run".to_owned());
    }
    let by = by.to_owned();
    Ok(match command {
        Command::Pause { reason } => vec![Body::PauseRequested { reason: reason.clone() }],
        Command::Abort { reason } => vec![Body::AbortRequested { reason: format!("{reason} (by {by})") }],
        Command::MakeWay { to, reason } => {
            vec![Body::MakeWay { to: to.clone() }, Body::AbortRequested { reason: format!("{reason} (by {by})") }]
        }
        Command::Approve { step, signed, request } => {
            let known = asked(state, step)?;
            if request.is_some_and(|request| known.asked.as_ref().is_some_and(|asked| asked.seq != request)) {
                return Err(format!("step `{step}` was asked for anew after this answer was given: muster show {run}"));
            }
            approval::check(state, run, step, &by, signed.as_ref(), now)?;
            vec![Body::Approved { step: step.clone(), by, over: known.hash.clone().unwrap_or_default(), signed: signed.clone() }]
        }
        Command::Override { step, reason, signed } => {
            let known = find(state, step)?;
            let was = overridable(state, step, known)?;
            approval::check_override(state, run, step, &by, reason, signed.as_ref())?;
            vec![Body::Overridden { step: step.clone(), by, reason: reason.clone(), was, output: None, signed: signed.clone() }]
        }
        Command::Reject { step, reason } => {
            asked(state, step)?;
            vec![Body::Rejected { step: step.clone(), by, reason: reason.clone() }]
        }
        Command::Retry { step } => {
            let known = find(state, step)?;
            if !known.status.is_failure() {
                return Err(format!("step `{step}` is {}; only a failed step can be tried again", known.status.word()));
            }
            vec![Body::RetryRequested { step: step.clone(), by }]
        }
        Command::Skip { step, reason } => {
            let known = find(state, step)?;
            if state.plan.step(step).is_some_and(|step| matches!(step.kind, StepKind::Approval(_))) {
                return Err(format!("step `{step}` is an approval: it is approved, rejected or overridden, not skipped"));
            }
            let open = known.status.is_failure() || matches!(known.phase, Phase::New | Phase::Asked | Phase::Prepared) && !known.doubt;
            // The wheel is given up by a person whose run cannot see it any more.
            let wheel = state.wheels().contains(&step);
            if !(open || wheel) || known.status == StepStatus::Skipped {
                return Err(format!("step `{step}` is {}; it cannot be skipped now", known.status.word()));
            }
            vec![Body::SkipRequested { step: step.clone(), by, reason: reason.clone() }]
        }
        Command::Resolve { step, done, reason, question } => {
            let known = find(state, step)?;
            if known.phase != Phase::Held {
                return Err(format!("step `{step}` is {}; only an indeterminate step is resolved", known.status.word()));
            }
            if question.is_some_and(|asked| asked != known.mark) {
                return Err(format!("step `{step}` was asked about anew after this answer was given: muster show {run}"));
            }
            vec![Body::Resolved { step: step.clone(), done: *done, by, reason: reason.clone() }]
        }
    })
}

/// An answer is one to the question that stands when it is given, not to one that comes after it.
#[must_use]
pub fn bound(command: &Command, state: &RunState) -> Command {
    let mut command = command.clone();
    if let Command::Resolve { step, question, .. } = &mut command {
        *question = question.or_else(|| state.step(step).map(|known| known.mark));
    }
    if let Command::Approve { step, request, .. } = &mut command {
        *request = request.or_else(|| state.step(step).and_then(|known| known.asked.as_ref()).map(|asked| asked.seq));
    }
    command
}

/// What an override would go past: a guard that waits or did not hold. What acts is never overridden: it was
/// done or it was not, and saying otherwise would be a lie on record.
fn overridable(state: &RunState, step: &StepId, known: &StepState) -> Result<String, String> {
    let Some(planned) = state.plan.step(step) else { return Err(format!("there is no step `{step}`")) };
    let code = known.failure.as_ref().map(|failure| failure.code.as_str()).unwrap_or_default();
    let failed = known.status.is_failure();
    let refused = failed && ["approval_expired", "rejected", "out_of_bounds", "fact_unknown"].contains(&code);
    let guard = match &planned.kind {
        StepKind::Approval(_) => known.phase == Phase::Asked || failed,
        StepKind::Action { effect: Effect::Read, .. } if planned.approve.is_none() => failed,
        StepKind::Action { .. } => planned.approve.is_some() && (known.phase == Phase::Asked || refused),
    };
    if guard {
        let word = known.status.word().replace('_', " ");
        return Ok(if code.is_empty() || !failed { word } else { format!("{word}: {code}") });
    }
    Err(format!(
        "step `{step}` ({}) is {}; only a guard is overridden: an approval that waits or failed, or a check that failed",
        planned.kind.uses(),
        known.status.word().replace('_', " ")
    ))
}

/// A command that does not apply any more, as an event.
#[must_use]
pub fn refused(by: &str, command: &Command, why: String) -> Body {
    let (word, step) = match command {
        Command::Pause { .. } => ("pause", None),
        Command::Abort { .. } => ("abort", None),
        Command::MakeWay { .. } => ("make way", None),
        Command::Approve { step, .. } => ("approve", Some(step)),
        Command::Override { step, .. } => ("override", Some(step)),
        Command::Reject { step, .. } => ("reject", Some(step)),
        Command::Retry { step } => ("retry", Some(step)),
        Command::Skip { step, .. } => ("skip", Some(step)),
        Command::Resolve { step, .. } => ("resolve", Some(step)),
    };
    Body::CommandRefused { by: by.to_owned(), command: word.to_owned(), step: step.cloned(), why }
}

/// The step of that name; or which there are.
pub fn find<'a>(state: &'a RunState, step: &StepId) -> Result<&'a StepState, String> {
    state.step(step).ok_or_else(|| {
        let names: Vec<_> = state.plan.steps.iter().map(|step| step.id.as_str()).collect();
        format!("the run has no step `{step}`; its steps are {}", names.join(", "))
    })
}

fn asked<'a>(state: &'a RunState, step: &StepId) -> Result<&'a StepState, String> {
    let known = find(state, step)?;
    if known.phase == Phase::Asked {
        Ok(known)
    } else {
        Err(format!("step `{step}` is {}; it does not wait for approval", known.status.word()))
    }
}
