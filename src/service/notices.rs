//! Telling people: the estate's channels, for what failed, waits, was missed, and that `serve` lives.
//!
//! A notice is never a step's success condition, and is sent when a process has let go of a run, so that no
//! channel delays one; all channels are told at the same time, each within [`PATIENCE`]. One that is down is
//! logged, and nothing else. Its address is a secret: services such as Slack put the token in the path.

use super::next::{Next, for_run};
use crate::drill::{conduct::DrillError, state::DrillState};
use crate::engine::Engine;
use crate::model::{
    drill::Drill,
    estate::{Estate, Notice, Notify},
    ids::*,
    objective::Verdict,
    status::RunStatus,
    time::rfc3339_ms,
};
use crate::plan::state::RunState;
use crate::providers::port::{HttpRequest, ProcessSpec, WorldRead};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use url::Url;

/// How long a channel may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What is told, before it has its time.
#[derive(Clone, Debug)]
pub struct Message {
    pub notice: Notice,
    pub text: String,
    /// What it is about: run, drill, status.
    pub about: Value,
    /// The commands that bring the matter on, or show more of it.
    pub next: Vec<String>,
}

/// Tells every channel that wants this kind of notice.
pub async fn tell(world: &dyn WorldRead, estate: &Estate, message: &Message) {
    let notice = message.notice;
    let wanted = |channel: &&Notify| channel.on.contains(&notice) || (channel.on.is_empty() && notice != Notice::Heartbeat);
    let channels = estate.notify.iter().filter(wanted).map(|channel| deliver(world, channel, message));
    futures::future::join_all(channels).await;
}

/// Tells one channel; a failure is logged.
pub async fn deliver(world: &dyn WorldRead, channel: &Notify, message: &Message) {
    let Message { notice, text, about, next } = message;
    let body = json!({ "notice": notice, "text": text, "at": rfc3339_ms(world.clock().now()), "about": about, "next": next });
    if let Err(why) = send(world, channel, &body).await {
        tracing::warn!("a notice could not be delivered: {why}");
    }
}

/// Where the webhook is, said outright or kept as a secret.
fn address(world: &dyn WorldRead, channel: &Notify) -> Result<Option<Url>, String> {
    let Some(reference) = &channel.webhook_from else { return Ok(channel.webhook.clone()) };
    let kept = world.secret(reference).map_err(|e| e.to_string())?;
    // Not the parser's own words: they may repeat the secret.
    kept.expose_secret().parse().map(Some).map_err(|_| "what `webhook_from` refers to is not an address".to_owned())
}

async fn send(world: &dyn WorldRead, channel: &Notify, message: &Value) -> Result<(), String> {
    let body = serde_json::to_vec(message).unwrap_or_default();
    if let Some(url) = &address(world, channel)? {
        let place = format!("the webhook at {}", url.host_str().unwrap_or("?"));
        let headers = BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]);
        let request = HttpRequest {
            method: "POST".to_owned(),
            url: url.to_string(),
            headers,
            body: Some(body.clone()),
            timeout: Some(PATIENCE),
            connect_to: None,
        };
        let answer = world.http().send(request).await.map_err(|e| format!("{place}: {}", without_address(&e.to_string(), url)))?;
        if !(200..300).contains(&answer.status) {
            return Err(format!("{place} answered {}", answer.status));
        }
    }
    if !channel.exec.is_empty() {
        // Its arguments may be secrets, too.
        let place = channel.exec.first().map_or("", String::as_str);
        let spec = ProcessSpec { argv: channel.exec.clone(), stdin: Some(body), output_limit: 4096, ..ProcessSpec::default() };
        let end = world.processes().run(&spec, PATIENCE).await.map_err(|e| format!("{place}: {e}"))?;
        match end.code {
            Some(0) => {}
            Some(code) => return Err(format!("{place} ended with exit code {code}")),
            None => return Err(format!("{place} did not end within {} s", PATIENCE.as_secs())),
        }
    }
    Ok(())
}

/// What went wrong, without the address that the error begins with.
fn without_address(error: &str, url: &url::Url) -> String {
    let after = error.split_once(url.path()).filter(|_| url.path().len() > 1).map(|(_, after)| after.trim_start_matches(": "));
    match after {
        Some(why) if !why.contains(url.path()) => why.to_owned(),
        _ => "it could not be reached, or did not answer in time".to_owned(),
    }
}

fn commands(next: &[Next]) -> Vec<String> {
    next.iter().flat_map(|one| one.commands.clone()).collect()
}

/// What is told when a process lets go of a run; `muster` is how Muster is called for it.
pub async fn run_left(engine: &Engine, muster: &str, run: &RunId, state: &RunState) {
    let Some(notice) = notice_of(state.status) else { return };
    let why = state.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let marked = state.overridden();
    let mark = if marked.is_empty() || state.status == RunStatus::Succeeded { "" } else { " (guards were overridden)" };
    let text = format!("runbook {} is {}{mark}{why}", state.plan.runbook, state.status.word().replace('_', " "));
    let marked: Vec<_> = marked.into_iter().map(|(id, _)| id).collect();
    let about = json!({ "run": run, "overridden": marked, "drill": null, "runbook": state.plan.runbook, "status": state.status, "scope": state.plan.scope, "actor": engine.actor });
    let mut next = vec![format!("{muster} show {run}")];
    next.extend(commands(&for_run(muster, run, state)));
    tell(&*engine.world, &state.plan.estate, &Message { notice, text, about, next }).await;
}

fn notice_of(status: RunStatus) -> Option<Notice> {
    match status {
        RunStatus::Failed | RunStatus::Aborted => Some(Notice::Failed),
        RunStatus::Paused | RunStatus::WaitingApproval => Some(Notice::Waiting),
        RunStatus::Indeterminate => Some(Notice::Indeterminate),
        RunStatus::Succeeded => Some(Notice::Succeeded),
        RunStatus::Planned | RunStatus::Running => None,
    }
}

/// What is told when a drill has ended. Its runs are part of it and are not told apart.
pub async fn drill_ended(engine: &Engine, muster: &str, state: &DrillState) {
    let (name, id) = (&state.drill.drill, &state.id);
    let (notice, status, text) = match &state.verdict {
        Some((Verdict::Pass, _)) => (Notice::Succeeded, json!(Verdict::Pass), format!("drill {name} passed")),
        Some((verdict, reasons)) => (Notice::Failed, json!(verdict), format!("drill {name} did not pass: {}", reasons.join("; "))),
        None => {
            let why = state.skipped.as_deref().unwrap_or("it did not run");
            (Notice::Missed, json!("skipped"), format!("drill {name} was skipped: {why}"))
        }
    };
    let run = state.runs.get(&crate::model::event::RunRole::Main).map(|(run, _)| run);
    let about = json!({ "run": run, "drill": name, "id": id, "status": status, "actor": engine.actor });
    let next = vec![format!("{muster} show {id}"), format!("{muster} drill report {id}")];
    tell(&*engine.world, &state.context.estate, &Message { notice, text, about, next }).await;
}

/// What is told when a drill stopped before its end. An interruption was asked for and is not told.
pub async fn drill_stopped(engine: &Engine, muster: &str, state: &DrillState, error: &DrillError) {
    let (name, id) = (&state.drill.drill, &state.id);
    let mut next = vec![format!("{muster} show {id}")];
    let (notice, status, run, text) = match error {
        DrillError::Interrupted(_) => return,
        DrillError::NeedsAPerson { run, status, .. } => {
            let known = super::runs::state_of(&*engine.journal, run).await.ok();
            let why = known.as_ref().and_then(|state| state.reason.as_deref()).map(|why| format!(": {why}")).unwrap_or_default();
            next.extend(known.iter().flat_map(|state| commands(&for_run(muster, run, state))));
            let text = format!("drill {name} needs a person; its run is {}{why}", status.word().replace('_', " "));
            (notice_of(*status).unwrap_or(Notice::Waiting), json!(status), Some(run), text)
        }
        other => {
            next.push(format!("{muster} resume {id}"));
            (Notice::Failed, json!("stopped"), None, format!("drill {name} stopped before its end: {other}"))
        }
    };
    let about = json!({ "run": run, "drill": name, "id": id, "status": status, "actor": engine.actor });
    tell(&*engine.world, &state.context.estate, &Message { notice, text, about, next }).await;
}

/// What is told of fires that started nothing: one notice, however many they are.
#[must_use]
pub fn missed(muster: &str, drill: &Drill, fires: &[(jiff::Timestamp, String)]) -> Option<Message> {
    let (first, (latest, reason)) = (fires.first()?.0, fires.last()?);
    let name = &drill.drill;
    let text = if fires.len() == 1 {
        format!("drill {name} was missed: {reason}")
    } else {
        format!("drill {name} was missed {} times from {} to {}; the last: {reason}", fires.len(), rfc3339_ms(first), rfc3339_ms(*latest))
    };
    let about = json!({ "run": null, "drill": name, "status": "missed", "scheduled_for": rfc3339_ms(*latest), "times": fires.len() });
    let next = vec![format!("{muster} drill history"), format!("{muster} drill run {name}")];
    Some(Message { notice: Notice::Missed, text, about, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_webhook_is_never_told() {
        let url: url::Url = "https://hooks.example.org/services/T0/SECRET".parse().unwrap();
        let error = "unreachable: https://hooks.example.org/services/T0/SECRET: connection refused";
        assert_eq!(without_address(error, &url), "connection refused");
        for odd in ["unreachable: connection refused", "/services/T0/SECRET twice /services/T0/SECRET"] {
            assert!(!without_address(odd, &url).contains("SECRET"), "{odd}");
        }
    }
}
