//! A drill as one JSON object: what `drill run --json` ends with, less the evidence over it.

use super::state::{DrillState, Measurement};
use crate::model::{drill::DrillKind, event::RunRole, objective::Verdict, time::rfc3339_ms};
use serde_json::{Value, json};

/// The object of the command line's contract, without `steps` and `evidence`, which its reader adds.
#[must_use]
pub fn summary(state: &DrillState, verdict: Verdict) -> Value {
    let main = state.measured.get(&RunRole::Main);
    let traffic = main.and_then(traffic).map(|(path, calls)| json!({ "path": path, "control_plane_calls": calls }));
    json!({
        "drill": state.drill.drill,
        "id": state.id,
        "run": state.runs.get(&RunRole::Main).map(|(run, _)| run),
        "kind": state.drill.kind,
        "verdict": verdict,
        "scheduled_for": state.scheduled_for.map(rfc3339_ms),
        "started_at": rfc3339_ms(state.started_at),
        "finished_at": state.finished_at.map(rfc3339_ms),
        "rto": main.map(|m| &m.rto),
        "rpo": main.map(|m| &m.rpo),
        "traffic": traffic,
        "restore": restore(state),
        "then": then(state),
    })
}

/// Which path the traffic took, and how many requests went to a control plane of DNS: counted as they were sent. Without
/// a count, and where no step moves traffic, there is no path.
#[must_use]
pub fn traffic(measured: &Measurement) -> Option<(Option<&'static str>, u64)> {
    let note = |name: &str| measured.notes.get(name).and_then(Value::as_u64);
    let (calls, moves) = (note("control_plane_calls")?, note("traffic_calls")?);
    let path = match (calls, moves) {
        (_, 0) => None,
        (0, _) => Some("data-plane"),
        _ => Some("control-plane"),
    };
    Some((path, calls))
}

const DECLARED: &str = "the instant at which the drill began";
const ASKED: &str = "the instant at which the primary was asked for its newest commit";

/// What came back, and the instants that the figures are differences of.
fn restore(state: &DrillState) -> Option<Value> {
    let main = state.measured.get(&RunRole::Main).filter(|_| state.drill.kind == DrillKind::Restore)?;
    let note = |name: &str| main.notes.get(name).cloned().unwrap_or_default();
    let at = &main.instants;
    Some(json!({
        "steps": note("restoring"),
        "lost_at": at.lost.map(rfc3339_ms),
        "lost_at_is": if at.lost == Some(state.started_at) { DECLARED } else { ASKED },
        "recovered_point": at.recovered_point.map(rfc3339_ms),
        "first_file_at": at.first_back.map(rfc3339_ms),
        "restored_at": at.restored.map(rfc3339_ms),
        "verified_at": at.recovered.map(rfc3339_ms),
        "files": note("files"),
        "bytes": note("bytes"),
        "losses": note("losses"),
    }))
}

fn then(state: &DrillState) -> Option<Value> {
    state.context.then.as_ref()?;
    let run = state.runs.get(&RunRole::Then);
    let measured = state.measured.get(&RunRole::Then);
    let note = |name: &str| measured.and_then(|m| m.notes.get(name)).cloned().unwrap_or_default();
    Some(json!({
        "run": run.map(|(id, _)| id),
        "status": run.and_then(|(_, status)| *status),
        "acknowledged_writes": measured.and_then(|m| m.rpo.acknowledged_writes),
        "lost_writes": measured.and_then(|m| m.rpo.lost_writes),
        "write_pause_ms": note("write_pause_ms"),
        "stray_writes": note("stray_writes"),
        "as_found": state.as_found.as_ref().map(|(same, _)| same),
        "differences": state.as_found.as_ref().map(|(_, differences)| differences),
    }))
}
