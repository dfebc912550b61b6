//! What an operator may do to a run, and when: a command becomes events, or a refusal that says why.

use crate::journal::Command;
use crate::model::{event::*, ids::*, status::*, time::rfc3339_ms};
use crate::plan::state::{Phase, RunState, StepState, UndoState};

/// The events that a command amounts to in this state.
pub fn bodies(state: &RunState, by: &str, command: &Command, now: jiff::Timestamp) -> Result<Vec<Body>, String> {
    if state.finished_at.is_some() {
        return Err(format!("the run has ended: {}", state.status.word()));
    }
    let undoing = state.steps.values().any(|known| known.undo != UndoState::Not);
    if undoing && matches!(command, Command::Retry { .. } | Command::Skip { .. }) {
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
        Command::Approve { step } => {
            let known = asked(state, step)?;
            if let Some(end) = known.expires_at.filter(|end| *end <= now) {
                return Err(format!("the time to approve step `{step}` ended at {}", rfc3339_ms(end)));
            }
            if known.approvals.contains(&by) {
                return Err(format!("{by} has approved step `{step}` already"));
            }
            vec![Body::Approved { step: step.clone(), by, over: known.hash.clone().unwrap_or_default() }]
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
            let open = known.status.is_failure() || matches!(known.phase, Phase::New | Phase::Asked | Phase::Prepared) && !known.doubt;
            if !open || known.status == StepStatus::Skipped {
                return Err(format!("step `{step}` is {}; it cannot be skipped now", known.status.word()));
            }
            vec![Body::SkipRequested { step: step.clone(), by, reason: reason.clone() }]
        }
        Command::Resolve { step, done, reason } => {
            let known = find(state, step)?;
            if known.phase != Phase::Held {
                return Err(format!("step `{step}` is {}; only an indeterminate step is resolved", known.status.word()));
            }
            vec![Body::Resolved { step: step.clone(), done: *done, by, reason: reason.clone() }]
        }
    })
}

fn find<'a>(state: &'a RunState, step: &StepId) -> Result<&'a StepState, String> {
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
