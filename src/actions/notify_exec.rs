//! `notify.exec`: give a message to a program, as a JSON object on its standard input.
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
    /// The program and its arguments; no shell is involved.
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    pub message: String,
    /// Added to the JSON object as `fields`.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Intent {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    body: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// What the receiver said: an HTTP status, or an exit code.
    pub answer: i32,
}

pub struct Exec;

impl Action for Exec {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "notify.exec",
            version: 1,
            summary: "Give a message to a program on its standard input",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(30),
            example: "id: tell\nuses: notify.exec\nwith: { argv: [/usr/local/bin/page], message: traffic is in west }\n",
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
        if input.argv.first().is_none_or(String::is_empty) {
            return Err(Refusal::no("input", "`argv` names no program"));
        }
        let what = change(format!("message to {}", input.argv.join(" ")), None, Some(input.message));
        let env = super::exec_command::environment(cx, BTreeMap::new());
        let spec = ProcessSpec { argv: input.argv, env, output_limit: 4_096, ..ProcessSpec::default() };
        Ok(Prepared { intent: Intent { argv: spec.argv, env: spec.env, body }, change: vec![what], notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        let spec = ProcessSpec {
            argv: intent.argv.clone(),
            env: intent.env.clone(),
            output_limit: 4_096,
            stdin: Some(intent.body.clone().into_bytes()),
            ..ProcessSpec::default()
        };
        let end = cx.read.world.processes().run(&spec, cx.deadline).await?;
        match end.code {
            Some(0) => Ok(Output { answer: 0 }),
            Some(code) => Err(fail("exit", format!("`{}` ended with exit code {code}", intent.argv.join(" ")))),
            None => Err(ApplyError::Unknown(Failure::new("signal", format!("`{}` did not end by itself", intent.argv.join(" "))))),
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
    super::contract_tests::Fixture::new(serde_json::json!({ "argv": ["mark", "page"], "message": "moved" })).blind()
}
