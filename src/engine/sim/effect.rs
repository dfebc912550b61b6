//! The action that simulated runs are made of. It acts on the simulated world through the same ports and under
//! the same permit as any other; what it does when, and what becomes of its answers, the world decides.

use crate::actions::contract::*;
use crate::model::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::{HttpRequest, PortResult};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

pub const NAME: &str = "sim.effect";

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Input {
    pub effect: Effect,
    /// Does a look tell whether it happened?
    pub visible: bool,
    pub resource: String,
    /// How long it thinks before it acts: where a process may lose its lease with the intent on record.
    pub think_ms: u64,
    pub run: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub value: u64,
}

pub struct SimEffect;

async fn ask(cx: &ReadCx, method: &str, input: &Input) -> PortResult<Value> {
    let request = HttpRequest {
        method: method.to_owned(),
        url: format!("{}/{}", cx.run, cx.step),
        headers: BTreeMap::from([("Idempotency-Key".to_owned(), cx.key.clone())]),
        body: serde_json::to_vec(input).ok(),
        connect_to: None,
        timeout: Some(cx.deadline),
    };
    let answer = cx.world.http().send(request).await?;
    Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
}

fn output(answer: &Value) -> Output {
    Output { value: answer["value"].as_u64().unwrap_or(0) }
}

impl Action for SimEffect {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: NAME,
            version: 1,
            summary: "Act on the simulated world",
            effect: Effect::OneShot,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(30),
            example: "",
        }
    }
    fn effect(with: &Node) -> Effect {
        let effect = with.get("effect").and_then(|node| crate::model::node::decode(node).ok());
        effect.unwrap_or(Effect::OneShot)
    }
    fn observes(with: &Node) -> bool {
        let visible = with.get("visible").and_then(|node| crate::model::node::decode(node).ok());
        visible.unwrap_or(false) && !matches!(Self::effect(with), Effect::Read | Effect::OneShot)
    }
    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        Vec::new()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        ask(cx, "PREPARE", &input).await?;
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        if intent.effect == Effect::Read {
            return Ok(output(&ask(cx, "READ", intent).await?));
        }
        cx.world.clock().sleep(Duration::from_millis(intent.think_ms)).await;
        // The permit, and nothing between it and the request.
        cx.world()?;
        Ok(output(&ask(cx, "DO", intent).await?))
    }
    async fn observe(cx: &ReadCx, intent: &Input) -> Seen<Output> {
        if !intent.visible {
            return Seen::CannotTell { why: "nobody can look".into() };
        }
        match ask(cx, "LOOK", intent).await {
            Err(error) => Seen::CannotTell { why: error.to_string() },
            Ok(answer) => match answer["seen"].as_str() {
                Some("done") => Seen::Done(output(&answer)),
                Some("pending") => Seen::Pending { poll_after_ms: 500, note: "not complete".into() },
                _ => Seen::Absent,
            },
        }
    }
    async fn undo(cx: &WriteCx, intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        cx.world()?;
        ask(cx, "UNDO", intent).await?;
        Ok(())
    }
}
