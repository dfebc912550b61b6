//! Telling people: the estate's channels, for what failed, waits, was missed, and that `serve` lives.
//!
//! A notice is never a step's success condition: a channel that is down is logged, and nothing else.

use crate::engine::Engine;
use crate::model::{
    estate::{Estate, Notice, Notify},
    ids::RunId,
    status::RunStatus,
};
use crate::plan::state::RunState;
use crate::providers::port::{HttpRequest, ProcessSpec, WorldRead};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// How long a channel may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells every channel that wants this kind of notice.
pub async fn tell(world: &dyn WorldRead, estate: &Estate, notice: Notice, text: &str, more: Value) {
    let message = json!({ "notice": notice, "text": text, "at": crate::model::time::rfc3339_ms(world.clock().now()), "about": more });
    let wanted = |channel: &&Notify| channel.on.contains(&notice) || (channel.on.is_empty() && notice != Notice::Heartbeat);
    for channel in estate.notify.iter().filter(wanted) {
        if let Err(why) = send(world, channel, &message).await {
            tracing::warn!("a notice could not be delivered: {why}");
        }
    }
}

async fn send(world: &dyn WorldRead, channel: &Notify, message: &Value) -> Result<(), String> {
    let body = serde_json::to_vec(message).unwrap_or_default();
    if let Some(url) = &channel.webhook {
        let headers = BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]);
        let request = HttpRequest {
            method: "POST".to_owned(),
            url: url.to_string(),
            headers,
            body: Some(body.clone()),
            timeout: Some(PATIENCE),
            connect_to: None,
        };
        let answer = world.http().send(request).await.map_err(|e| e.to_string())?;
        if !(200..300).contains(&answer.status) {
            // Not the address: its path may be the secret.
            return Err(format!("the webhook at {} answered {}", url.host_str().unwrap_or("?"), answer.status));
        }
    }
    if !channel.exec.is_empty() {
        let spec = ProcessSpec { argv: channel.exec.clone(), stdin: Some(body), output_limit: 4096, ..ProcessSpec::default() };
        let end = world.processes().run(&spec, PATIENCE).await.map_err(|e| e.to_string())?;
        if end.code != Some(0) {
            return Err(format!("{} ended with {:?}", channel.exec.first().map_or("", String::as_str), end.code));
        }
    }
    Ok(())
}

/// What is told when a process lets go of a run.
pub async fn run_left(engine: &Engine, run: &RunId, state: &RunState) {
    let notice = match state.status {
        RunStatus::Failed | RunStatus::Aborted => Notice::Failed,
        RunStatus::Paused | RunStatus::WaitingApproval => Notice::Waiting,
        RunStatus::Indeterminate => Notice::Indeterminate,
        RunStatus::Succeeded => Notice::Succeeded,
        RunStatus::Planned | RunStatus::Running => return,
    };
    let why = state.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let text = format!("runbook {} is {}{why}", state.plan.runbook, state.status.word());
    let about = json!({ "run": run, "runbook": state.plan.runbook, "status": state.status, "scope": state.plan.scope });
    tell(&*engine.world, &state.plan.estate, notice, &text, about).await;
}
