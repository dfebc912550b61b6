//! A runbook as written: the steps and what each may do when things go wrong.

use super::{ids::*, node::Node, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a runbook is run. `failover` is unplanned, `switchover` planned and without loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Failover,
    Switchover,
    Failback,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Runbook {
    pub runbook: RunbookName,
    pub description: Option<String>,
    pub mode: Option<Mode>,
    pub waive: Vec<Waiver>,
    pub inputs: BTreeMap<String, InputSpec>,
    pub steps: Vec<Step>,
}

/// A rule that this runbook does not keep, and why; it stands on the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    pub rule: Rule,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// An unplanned failover needs no global control plane.
    GlobalControlPlane,
    /// An unplanned failover needs nothing in the failed region.
    FailedRegion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    Region,
    Service,
    Database,
    Bucket,
    Endpoint,
    String,
    Integer,
    Number,
    Boolean,
    Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    #[serde(rename = "type")]
    pub kind: InputType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Taken when no value is given; without it the input is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The only values allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

/// One step, after `parallel:` groups and implied `needs` have been made plain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub id: StepId,
    /// The action's name, or `approval`.
    pub uses: String,
    pub description: Option<String>,
    pub needs: Vec<StepId>,
    pub with: Node,
    pub when: Option<String>,
    pub retry: Retry,
    pub timeout: Option<Span>,
    pub on_failure: Option<OnFailure>,
    pub undo: Option<UndoPolicy>,
    /// What people are asked once it is known what the step would do; decoded when it is compiled.
    pub approve: Option<Node>,
    /// Where the step stands in its file.
    pub pos: super::node::Pos,
}

/// How often a step is tried, and how long it waits between: `backoff`, doubled each time up to
/// `max_backoff`, with a fifth of jitter either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How many attempts in all; 1 to 100.
    #[serde(default = "one")]
    pub attempts: u32,
    #[serde(default = "one_second")]
    pub backoff: Span,
    #[serde(default = "one_minute")]
    pub max_backoff: Span,
}

fn one() -> u32 {
    1
}
fn one_second() -> Span {
    Span::from_secs(1)
}
fn one_minute() -> Span {
    Span::from_secs(60)
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: one(), backoff: one_second(), max_backoff: one_minute() }
    }
}

/// What a failed step does to its run. Left out: `pause` live, `stop` in a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Wait for a person, who may retry, skip or abort.
    Pause,
    /// Start nothing more; the run has failed.
    Stop,
    /// Go on; the step is `failed_ignored`.
    Continue,
    /// Undo what was done, in reverse order; the run has failed.
    Undo,
}

/// What happens to the step when its run is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UndoPolicy {
    Automatic,
    Manual,
    None,
}
