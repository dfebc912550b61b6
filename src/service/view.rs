//! The JSON that machines read, and what stands in it: runs, steps, evidence.

use super::ServiceError;
use crate::journal::{ChainRow, Journal, Stored, chain};
use crate::model::{ids::*, time::rfc3339_ms};
use crate::plan::state::{RunState, StepState, UndoState};
use serde_json::{Value, json};

/// A run's steps, in the order of its file.
#[must_use]
pub fn steps(state: &RunState) -> Vec<Value> {
    let known = |id: &StepId| state.steps.get(id).cloned().unwrap_or_default();
    state.plan.steps.iter().map(|step| step_view(&step.id, step.kind.uses(), &known(&step.id))).collect()
}

fn step_view(id: &StepId, uses: &str, known: &StepState) -> Value {
    let duration = known.started_at.zip(known.ended_at).map(|(from, to)| to.duration_since(from).as_millis());
    let mut view = json!({
        "id": id,
        "uses": uses,
        "status": known.status,
        "attempts": known.attempts,
        "started_at": known.started_at.map(rfc3339_ms),
        "duration_ms": duration,
    });
    let optional = [
        ("failure", serde_json::to_value(&known.failure).unwrap_or_default()),
        ("skipped", json!(known.skipped)),
        ("question", json!(known.question)),
        ("output", known.output.clone().unwrap_or_default()),
        ("overridden", serde_json::to_value(&known.overridden).unwrap_or_default()),
        ("resolved", json!(known.resolved)),
        ("approval", approval(known)),
        ("undo", undo(known)),
        ("warnings", if known.warnings.is_empty() { Value::Null } else { json!(known.warnings) }),
    ];
    if let Some(map) = view.as_object_mut() {
        map.extend(optional.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)));
    }
    view
}

/// What became of its undo, if its run was undone.
fn undo(known: &StepState) -> Value {
    let state = match known.undo {
        UndoState::Not => return Value::Null,
        UndoState::Undoing => "undoing",
        UndoState::Undone => "undone",
        UndoState::Left => "left",
        UndoState::Failed => "failed",
    };
    json!({ "state": state, "attempts": known.undo_tries.attempts })
}

/// What people were asked, and who has answered.
fn approval(known: &StepState) -> Value {
    let Some(asked) = &known.asked else { return Value::Null };
    json!({
        "over": format!("sha256:{}", asked.over),
        "expires_at": rfc3339_ms(asked.expires_at),
        "facts": asked.facts,
        "approved_by": known.approvals,
    })
}

/// What `run --json` ends with.
#[must_use]
pub fn run(id: &RunId, state: &RunState, evidence: &Value) -> Value {
    json!({
        "run": id,
        "runbook": state.plan.runbook,
        "status": state.status,
        "reason": state.reason,
        "started_at": state.started_at.map(rfc3339_ms),
        "finished_at": state.finished_at.map(rfc3339_ms),
        "by": state.initiator,
        "overridden": state.overridden().iter().map(|(id, _)| id).collect::<Vec<_>>(),
        "steps": steps(state),
        "evidence": evidence,
    })
}

/// One line of `runs --json`.
#[must_use]
pub fn row(row: &ChainRow, overridden: &[RunId]) -> Value {
    json!({
        "id": row.id,
        "runbook": row.name,
        "drill": row.parent,
        "status": row.status,
        "overridden": overridden.contains(&row.id),
        "started_at": rfc3339_ms(row.started_at),
        "finished_at": row.finished_at.map(rfc3339_ms),
    })
}

/// The same with who owns it now, which only a shared journal can tell.
#[must_use]
pub fn owned_row(row: &ChainRow, overridden: &[RunId]) -> Value {
    let mut view = self::row(row, overridden);
    if let Some(map) = view.as_object_mut() {
        map.insert("owner".to_owned(), json!(row.owner));
    }
    view
}

/// One event, as `show --json` and the progress lines have it.
#[must_use]
pub fn event(stored: &Stored) -> Value {
    let mut value = serde_json::to_value(&stored.event).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("hash".to_owned(), json!(stored.hash));
    }
    value
}

/// Number of events, last hash, and whether these chains verify.
pub async fn evidence(journal: &dyn Journal, chains: &[RunId]) -> Result<Value, ServiceError> {
    let verified = chain::verify(&journal.dump(Some(chains)).await?);
    let head = match chains.first() {
        Some(first) => Some(journal.row(first).await?.head),
        None => None,
    };
    Ok(json!({
        "events": verified.events,
        "head": head.map(|hash| format!("sha256:{hash}")),
        "verified": verified.verified,
    }))
}
