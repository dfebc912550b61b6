//! A runbook compiled for one run: every reference resolved, every default filled in. It is stored in
//! the run's first event, and the run executes exactly this, whatever becomes of the files.

use super::{effect::*, estate::Estate, ids::*, node::Node, runbook::*, time::Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// In which world a run acts. It changes guards (approvals, default `on_failure`), never steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Drill,
    Live,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub runbook: RunbookName,
    /// The runbook's file, for people; nothing is read from it again.
    pub file: String,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub digest: String,
    pub mode: Option<Mode>,
    pub scope: Scope,
    /// May touch what is outside a lab.
    pub live: bool,
    pub inputs: BTreeMap<String, serde_json::Value>,
    pub waive: Vec<Waiver>,
    pub estate: Estate,
    /// Resources that the run locks at its start, sorted.
    pub locks: Vec<Resource>,
    /// In the order of the file; `needs` refers to earlier and later ones alike, without a cycle.
    pub steps: Vec<PlanStep>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    pub id: StepId,
    pub kind: StepKind,
    pub needs: Vec<StepId>,
    pub with: Node,
    pub when: Option<String>,
    pub retry: Retry,
    pub timeout: Span,
    pub on_failure: OnFailure,
    pub undo: UndoPolicy,
    pub reach: Vec<Reach>,
    pub pos: super::node::Pos,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    Action { name: String, version: u16, effect: Effect },
    Approval(Approval),
}

/// What keeps two operators without a common journal from acting at once.
pub const WHEEL_TAKE: &str = "wheel.take";
pub const WHEEL_RELEASE: &str = "wheel.release";

impl StepKind {
    /// What stands in `uses:`.
    #[must_use]
    pub fn uses(&self) -> &str {
        match self {
            Self::Action { name, .. } => name,
            Self::Approval(_) => "approval",
        }
    }
}

/// What an `approval` step asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// How many different people must approve.
    #[serde(default = "one")]
    pub approvers: u32,
    /// After so long an approval counts no more and the step fails.
    #[serde(default = "fifteen_minutes")]
    pub expires: Span,
    /// Shown to whoever approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn one() -> u32 {
    1
}
fn fifteen_minutes() -> Span {
    Span::from_secs(15 * 60)
}

impl Plan {
    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&PlanStep> {
        self.steps.iter().find(|step| step.id == *id)
    }
}
