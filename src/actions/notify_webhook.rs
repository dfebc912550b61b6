//! `notify.webhook`: send a message to a URL, as a JSON object, by POST.
//!
//! **Half-done** it may be: sent, and the answer lost. Nobody can look whether a message arrived, so it is
//! sent again, with the same key: whoever receives it drops what it has seen (`Idempotency-Key`,
//! `MUSTER_KEY`, and `key` in the message). A message twice is better than none. It is not undone.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub url: url::Url,
    pub message: String,
    /// Added to the JSON object as `fields`.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Intent {
    url: String,
    body: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// What the receiver said: an HTTP status, or an exit code.
    pub answer: i32,
}

pub struct Webhook;

impl Action for Webhook {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "notify.webhook",
            version: 1,
            summary: "Send a message to a URL as a JSON object",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(30),
            example: "id: tell\nuses: notify.webhook\nwith: { url: \"https://hooks.example.org/dr\", message: traffic is in west }\n",
        }
    }
    fn observes(_with: &Node) -> bool {
        // Whether the other side got it shows in its answer alone.
        false
    }

    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![reach_here()]
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let mut body = serde_json::Map::new();
        for (name, value) in [("run", cx.run.0.as_str()), ("step", cx.step.0.as_str()), ("key", cx.key.as_str()), ("message", input.message.as_str())] {
            body.insert(name.to_owned(), value.into());
        }
        body.insert("fields".to_owned(), serde_json::json!(input.fields));
        let body = serde_json::Value::Object(body).to_string();
        let what = change(format!("message to {}", input.url.host_str().unwrap_or("?")), None, Some(input.message));
        Ok(Prepared { intent: Intent { url: input.url.to_string(), body }, change: vec![what], notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", cx.key.as_str())];
        let headers: BTreeMap<String, String> = headers.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let body = Some(intent.body.clone().into_bytes());
        let request = HttpRequest { method: "POST".into(), url: intent.url.clone(), headers, body, connect_to: None, timeout: Some(cx.deadline) };
        let answer = cx.read.world.http().send(request).await?;
        match answer.status {
            200..300 => Ok(Output { answer: i32::from(answer.status) }),
            500.. => Err(ApplyError::Unknown(Failure::new("http", format!("the webhook answered with status {}", answer.status)))),
            _ => Err(fail("http", format!("the webhook refused the message with status {}", answer.status))),
        }
    }
    async fn observe(_cx: &ReadCx, _intent: &Intent) -> Seen<Output> {
        Seen::CannotTell { why: "nobody can look whether a message arrived; it may be sent again, with the same key".into() }
    }
    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "url": "http://127.0.0.1:1/hook", "message": "moved" })).blind().set(|world| {
        world.answer(|_| Ok(HttpResponse { status: 204, headers: BTreeMap::new(), body: Vec::new() }));
    })
}
