//! `condition.check`: go on only if something holds that is known already.
//!
//! The condition is an expression over inputs and outputs of steps before it, so nothing outside is asked and
//! nothing can be lost: a `when` skips a step, this one fails, and says why. Without an expression it is a
//! step that does nothing, durably; `muster bench noop` is made of such.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What must be true: an expression, in `{{ }}` and quotes.
    pub that: bool,
    /// What to say when it is not.
    #[serde(default)]
    pub otherwise: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub holds: bool,
}

pub struct Check;

impl Action for Check {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "condition.check",
            version: 1,
            summary: "Go on only if a condition over inputs and outputs holds",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(10),
            example: "id: enough\nuses: condition.check\nwith: { that: \"{{ steps.fence.proof.epoch > 1 }}\", otherwise: no lease was ever granted }\n",
        }
    }
    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![reach_here()]
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(_cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(_cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        let why = || intent.otherwise.clone().unwrap_or_else(|| "the condition does not hold".to_owned());
        if intent.that { Ok(Output { holds: true }) } else { Err(fail("condition", why())) }
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "that": true }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;
    use serde_json::json;

    #[tokio::test]
    async fn what_does_not_hold_fails_with_the_reason() {
        for (with, why) in [
            (json!({ "that": false }), "the condition does not hold"),
            (json!({ "that": false, "otherwise": "both regions are the same" }), "both regions are the same"),
        ] {
            let mut fixture = fixture();
            fixture.with = with;
            assert_eq!(Bench::new(&fixture).failed::<Check>().await.message, why);
        }
    }
}
